"""What `config.json` may say and what not: it describes a model, it does not decide how the harness runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import choice, edit_config, edit_weights, load, sentence
from helpers import tiny, windows

from harness.models.checkpoint import architecture, find_checkpoint
from harness.models.loading import as_published, fuse_attention, load_config
from harness.models.weights import read_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny LLaMA as a checkpoint."""
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("value", ["sdpa", "eager", "flash_attention_2", "kernels-community/flash-attn", {"": "sdpa"}])
def test_the_harness_chooses_the_attention(folder: Path, key: str, value: Any) -> None:
    """Plain in float32, fused in 16 bits; with a hub kernel's name nothing is fetched."""
    before = architecture(find_checkpoint(choice(folder)))
    edit_config(folder, **{key: value})
    if not key.endswith("internal"):
        assert architecture(find_checkpoint(choice(folder))) == before
    for dtype, attention in ((torch.float32, "eager"), (torch.bfloat16, "sdpa")):
        model = load(folder, dtype)
        assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {
            attention
        }
        fuse_attention(model)
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    "said",
    [
        {"output_attentions": True}, {"output_hidden_states": True}, {"return_dict": False}, {"use_kernels": True},
        {"experts_implementation": "kernels-community/moe"}, {"_experts_implementation": "of-tomorrow"},
        {"trust_remote_code": True}, {"kernel_config": {"a": "b"}}, {"use_cache": False},
    ],
)  # fmt: skip
def test_what_a_model_gives_is_not_for_its_checkpoint_to_say(folder: Path, said: dict[str, Any]) -> None:
    edit_config(folder, **said)
    model = load(folder)
    given = model(windows(2))
    assert given.attentions is None and given.hidden_states is None
    torch.testing.assert_close(given.logits, tiny("llama")(windows(2)).logits, rtol=1e-4, atol=1e-4)
    assert type(model).__module__ == "transformers.models.llama.modeling_llama"


@pytest.mark.parametrize("cache", [True, False])
def test_a_cache_is_left_as_it_was(folder: Path, cache: bool) -> None:
    edit_config(folder, use_cache=cache)
    model = load(folder)
    assert model.config.use_cache is False
    with as_published(model):
        assert model.config.use_cache is cache
    assert model.config.use_cache is False


def test_code_named_anywhere_is_refused(folder: Path) -> None:
    edit_config(folder, text_config={"auto_map": {"AutoConfig": "own.Config"}})
    assert "needs code from its own repository" in sentence(lambda: find_checkpoint(choice(folder)))


@pytest.mark.parametrize("family", ["gptj", "codegen"])
def test_a_family_without_a_layout_is_refused_before_its_blocks_are_counted(folder: Path, family: str) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": family, "n_layer": 4}), encoding="utf-8")
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert said.startswith(f"the model family '{family}' has no layout; known: ")


def test_no_model_type(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 2}), encoding="utf-8")
    assert sentence(lambda: find_checkpoint(choice(folder))) == f"{folder / 'config.json'} names no model_type."


def test_a_wrong_head_count_is_a_mistake_of_the_configuration_and_said_whole(folder: Path) -> None:
    edit_config(folder, num_attention_heads=5)
    said = sentence(lambda: load_config(find_checkpoint(choice(folder)), choice(folder)))
    assert said.startswith(f"{folder / 'config.json'} describes no model that transformers can make (")
    assert "hidden size (32) is not a multiple of the number of attention heads (5)" in said


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e-5, -1])
def test_a_norm_that_cannot_be(folder: Path, value: float) -> None:
    edit_config(folder, rms_norm_eps=value)
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert said.startswith(f"{folder / 'config.json'} has rms_norm_eps={value}, which ")


def test_a_number_that_a_dtype_does_not_hold(folder: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(folder, lambda weights: weights[name][3].fill_(1e5))
    assert load(folder) is not None and load(folder, torch.bfloat16) is not None
    assert sentence(lambda: load(folder, torch.float16)) == (
        f"the weight {name} of {folder} is finite in the file and overflows float16 (largest magnitude 1e+05); take "
        "dtype=bfloat16 or dtype=float32."
    )
    edit_weights(folder, lambda weights: weights.update({name: weights[name].double() * 1e40}))
    assert "overflows float32 (largest magnitude 1e+45); no dtype of the harness holds it." in sentence(
        lambda: load(folder)
    )


def test_text_is_utf8(folder: Path) -> None:
    content = json.dumps(json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"note": "grüße"})
    (folder / "config.json").write_bytes(content.encode().decode("unicode_escape").encode())
    assert read_json(folder / "config.json")["note"] == "grüße"


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer_config.json", "generation_config.json"]
)
@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_something_else_of_a_files_name(folder: Path, name: str, kind: str) -> None:
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).mkdir()
    assert sentence(lambda: find_checkpoint(choice(folder))) == f"{folder / name} is not a file."


def test_a_device_is_no_model() -> None:
    said = sentence(lambda: find_checkpoint(choice("/dev/zero")))
    assert said == "the model path /dev/zero of model=hf is not a folder."


@pytest.mark.parametrize("path", ["~nobody-of-this-name/x", "~nobody-of-this-name"])
def test_a_home_folder_that_nobody_has(path: str) -> None:
    said = sentence(lambda: find_checkpoint(choice(path)))
    assert said == f"the home folder in {path} cannot be found; write the path without ~."
