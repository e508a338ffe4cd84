"""Every tensor of a checkpoint is used exactly once, or the checkpoint is refused in a sentence that names one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import choice, edit_config, edit_weights, load, sentence
from helpers import TINY, tiny, windows
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.models.checkpoint import find_checkpoint

Q = "model.layers.0.self_attn.q_proj.weight"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny LLaMA as a checkpoint."""
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def shards(folder: Path, first: dict[str, Tensor], second: dict[str, Tensor], **places: str | None) -> None:
    """The checkpoint in two files, with the index that belongs to them but for some places."""
    (folder / "model.safetensors").unlink()
    save_file(first, folder / FIRST, {"format": "pt"})
    save_file(second, folder / SECOND, {"format": "pt"})
    index = dict.fromkeys(first, FIRST) | dict.fromkeys(second, SECOND) | places
    content = {"weight_map": {name: place for name, place in index.items() if place}}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def halves(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    return tuple({name: weights[name] for name in part} for part in (names[:9], names[9:]))  # type: ignore[return-value]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.int32])
def test_weights_that_need_scales(folder: Path, dtype: torch.dtype) -> None:
    edit_weights(folder, lambda weights: weights.update({Q: weights[Q].to(dtype)}))
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert f"the tensor {Q} of {folder} is stored as " in said and "quantized checkpoints are not pruned" in said


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_point_weights_of_several_dtypes_load(folder: Path, dtype: torch.dtype) -> None:
    edit_weights(folder, lambda weights: weights.update({Q: weights[Q].to(dtype)}))
    torch.testing.assert_close(load(folder)(windows(1)).logits, tiny("llama")(windows(1)).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "name", [f"{Q}_scale", "model.layers.0.self_attn.q_proj.bias", "model.layers.0.mlp.extra.weight"]
)
def test_a_tensor_without_a_place(folder: Path, name: str) -> None:
    edit_weights(folder, lambda weights: weights.update({name: torch.ones(32), "model.layers.1.z": torch.ones(1)}))
    said = sentence(lambda: load(folder))
    assert said.startswith(
        f"the weights of {folder} hold {name} and 1 more, for which the model of its config.json has"
    )


@pytest.mark.parametrize("name", TINY)
def test_fewer_blocks_than_the_file_holds(name: str, tmp_path: Path) -> None:
    tiny(name).save_pretrained(tmp_path)
    said = (tmp_path / "config.json").read_text(encoding="utf-8")
    key = "n_layer" if '"n_layer"' in said else "num_hidden_layers"
    edit_config(tmp_path, **{key: 1})
    said = sentence(lambda: find_checkpoint(choice(tmp_path)))
    assert "hold block 1 (" in said and ".1." in said and f"set {key}=2 there" in said


def test_more_blocks_than_the_file_holds(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=10**9)
    assert f"the weights of {folder} lack block 2; " in sentence(lambda: find_checkpoint(choice(folder)))


def test_a_model_pruned_in_depth_by_hand_loads(folder: Path) -> None:
    edit_config(folder, num_hidden_layers=1)
    edit_weights(folder, lambda weights: [weights.pop(name) for name in list(weights) if ".layers.1." in name])
    assert len(load(folder).model.layers) == 1


def test_a_tensor_in_two_shards(folder: Path) -> None:
    first, second = halves(folder)
    name = next(iter(first))
    shards(folder, first, second | {name: first[name] * 3})
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert said == f"{folder} holds the tensor {name} twice, in {FIRST} and in {SECOND}; delete one."


def test_a_tensor_under_two_names(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"norm.weight": torch.ones(32)}))
    assert sentence(lambda: load(folder)).startswith(f"{folder} holds model.norm.weight twice, as ")


def test_an_index_that_places_a_tensor_elsewhere(folder: Path) -> None:
    first, second = halves(folder)
    name = next(iter(first))
    shards(folder, first, second, **{name: SECOND})
    assert f"places {name} in {SECOND}; it is in {FIRST}." in sentence(lambda: find_checkpoint(choice(folder)))


def test_an_index_that_names_a_tensor_that_is_nowhere(folder: Path) -> None:
    shards(folder, *halves(folder), **{"model.layers.0.extra": FIRST})
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert f"places model.layers.0.extra in {FIRST}, which does not hold it." in said


def test_a_tensor_that_the_index_does_not_name(folder: Path) -> None:
    first, second = halves(folder)
    shards(folder, first, second, **{(name := next(iter(second))): None})
    assert f"{SECOND} holds {name}, which {INDEX} does not name." in sentence(lambda: find_checkpoint(choice(folder)))


def test_a_shard_that_the_index_does_not_name(folder: Path) -> None:
    shards(folder, *halves(folder))
    assert find_checkpoint(choice(folder)).weights
    save_file({"a": torch.ones(1)}, folder / "model-00003-of-00002.safetensors")
    assert "holds model-00003-of-00002.safetensors, which" in sentence(lambda: find_checkpoint(choice(folder)))


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("declared", [{"quant_method": "awq"}, {"quant_method": "of tomorrow"}, {"bits": 4}])
@pytest.mark.parametrize("nested", [False, True])
def test_quantization_of_any_kind_is_refused(folder: Path, key: str, declared: Any, nested: bool) -> None:
    edit_config(folder, **({"text_config": {key: declared}} if nested else {key: declared}))
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert "declares quantized weights" in said and said.endswith("to float32, bfloat16 or float16.")
    edit_config(folder, **({"text_config": {key: None}} if nested else {key: None}))
    assert find_checkpoint(choice(folder)).weights


@pytest.mark.parametrize("name", [name for name in TINY if TINY[name].get("model_type", name) not in ("opt",)])
def test_names_without_what_stands_in_front_of_them(name: str, tmp_path: Path) -> None:
    """Checkpoints of the bare decoder, whose head is the embedding or stands beside it."""
    tiny(name).save_pretrained(tmp_path)
    renamed = {key.removeprefix("model."): one for key, one in load_file(tmp_path / "model.safetensors").items()}
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(windows(1)).logits, tiny(name)(windows(1)).logits, rtol=1e-4, atol=1e-4)


def test_old_names_of_opt(tmp_path: Path) -> None:
    tiny("opt").save_pretrained(tmp_path)
    renamed = {key.removeprefix("model."): one for key, one in load_file(tmp_path / "model.safetensors").items()}
    assert "decoder.embed_tokens.weight" in renamed
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(windows(1)).logits, tiny("opt")(windows(1)).logits, rtol=1e-4, atol=1e-4)


def test_frequencies_of_old_checkpoints_load_where_they_are_the_models_own(folder: Path) -> None:
    made = tiny("llama").model.rotary_emb.inv_freq
    name = "model.layers.{}.self_attn.rotary_emb.inv_freq"
    edit_weights(folder, lambda weights: weights.update({name.format(i): made.to(torch.bfloat16) for i in range(2)}))
    torch.testing.assert_close(load(folder)(windows(1)).logits, tiny("llama")(windows(1)).logits)
    edit_weights(folder, lambda weights: weights.update({name.format(i): made / 4 for i in range(2)}))
    assert f"hold {name.format(0)}, whose values are not those that the rope settings" in sentence(lambda: load(folder))


@pytest.mark.parametrize(
    ("name", "buffer"),
    [
        ("model.layers.0.self_attn.bias", torch.ones(1, 1, 8, 8)),
        ("model.layers.0.self_attn.masked_bias", torch.tensor(-1e4)),
        ("model.position_ids", torch.arange(8)),
    ],
)
def test_buffers_that_a_model_makes_itself_are_left_out(folder: Path, name: str, buffer: Tensor) -> None:
    edit_weights(folder, lambda weights: weights.update({name: buffer}))
    torch.testing.assert_close(load(folder)(windows(1)).logits, tiny("llama")(windows(1)).logits)


def test_a_bias_is_no_mask(folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.layers.0.self_attn.bias": torch.ones(32)}))
    assert "hold model.layers.0.self_attn.bias, for which" in sentence(lambda: load(folder))


@pytest.mark.parametrize("name", ["opt", "gemma"])
def test_a_tied_head(name: str, tmp_path: Path) -> None:
    """The embedding again, which old checkpoints hold, or something else, which one of two would win."""
    tiny(name).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    (embedding,) = [one for key, one in weights.items() if "embed_tokens" in key]
    save_file(weights | {"lm_head.weight": embedding.clone()}, tmp_path / "model.safetensors", {"format": "pt"})
    torch.testing.assert_close(load(tmp_path)(windows(1)).logits, tiny(name)(windows(1)).logits, rtol=1e-4, atol=1e-4)
    save_file(weights | {"lm_head.weight": 2 * embedding}, tmp_path / "model.safetensors", {"format": "pt"})
    said = sentence(lambda: load(tmp_path))
    assert "ties the head to the embedding, and the weights hold another lm_head.weight" in said


def test_an_adapter_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}", encoding="utf-8")
    assert "holds an adapter (adapter_config.json); merge it" in sentence(lambda: find_checkpoint(choice(folder)))
