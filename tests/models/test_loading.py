"""From a folder to a model in memory, and each thing that can be wrong with a folder, in one sentence."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import choice, edit_config, edit_weights, load, sentence
from helpers import TINY, tiny, windows
from safetensors.torch import load_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from harness.models.checkpoint import Checkpoint, architecture, find_checkpoint, weights_hash
from harness.models.decoder import decoder_of
from harness.models.loading import load_model, resolve_dtype
from harness.models.machine import resolve_device
from harness.models.placement import Where, placement_of
from harness.models.tokenizer import load_tokenizer
from harness.models.weights import file_hash
from harness.runtime.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny LLaMA as a checkpoint."""
    tiny("llama").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("name", TINY)
def test_every_family_loads_as_it_was_saved(name: str, tmp_path: Path) -> None:
    saved = tiny(name)
    saved.save_pretrained(tmp_path)
    model = load(tmp_path)
    assert not model.training and model.config.use_cache is False
    assert not any(parameter.requires_grad for parameter in model.parameters())
    torch.testing.assert_close(model(windows(2)).logits, saved(windows(2)).logits, rtol=1e-4, atol=1e-4)


def test_a_dtype_is_the_one_asked_for(folder: Path) -> None:
    assert {parameter.dtype for parameter in load(folder, torch.bfloat16).parameters()} == {torch.bfloat16}


def test_what_a_checkpoint_says_of_itself(folder: Path) -> None:
    found = find_checkpoint(choice(folder, revision="abc"))
    assert (found.folder, found.revision, found.context) == (folder, "abc", 64)
    assert found.size == (folder / "model.safetensors").stat().st_size
    assert Checkpoint(folder, {}, (), None).context == 2048


def test_no_path() -> None:
    assert sentence(lambda: find_checkpoint(choice(""))) == "model=hf needs model.path=<hub id or folder>."


@pytest.mark.parametrize("path", ["/no/such/folder", "./none", "~/none-of-this-name", "plain-name", "a/b/c"])
def test_a_folder_that_is_not_there(path: str) -> None:
    assert sentence(lambda: find_checkpoint(choice(path))) == f"the model folder {path} of model=hf does not exist."


def test_a_hub_model_that_is_not_there_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> str:
        raise ConnectionError("no network in tests")

    monkeypatch.setattr("huggingface_hub.snapshot_download", no_network)
    with pytest.raises(UserError) as caught:
        find_checkpoint(choice("some/model"))
    said = str(caught.value)
    assert "neither a local folder nor to be had from the hub (ConnectionError)" in said
    assert said.endswith("python -m harness prefetch model=hf model.path=some/model")
    with pytest.raises(UserError, match=r"python -m harness prefetch model=opt-125m$"):
        find_checkpoint(choice("facebook/opt-125m", name="opt-125m"))


def test_a_hub_model_is_its_snapshot(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot(path: str, **options: Any) -> str:
        asked.update(options, path=path)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert find_checkpoint(choice("some/model", revision="main")).revision == "model"  # the folder of the snapshot
    assert asked["path"] == "some/model" and asked["revision"] == "main"
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in asked["allow_patterns"])


def test_no_configuration(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert sentence(lambda: find_checkpoint(choice(folder))) == f"the model folder {folder} has no config.json."


@pytest.mark.parametrize(
    ("content", "says"),
    [("{", "is not valid JSON"), ("", "is not valid JSON"), ("\xff", "is not in UTF-8; save it")],
)
def test_a_configuration_that_is_no_json(folder: Path, content: str, says: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    assert f"config.json {says}" in sentence(lambda: find_checkpoint(choice(folder)))


def test_a_configuration_that_is_no_object(folder: Path) -> None:
    (folder / "config.json").write_text("[]")
    assert "config.json" in sentence(lambda: find_checkpoint(choice(folder)))


def test_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert sentence(lambda: find_checkpoint(choice(folder))) == (
        f"{folder} holds no weights (model.safetensors or model.safetensors.index.json)."
    )


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.ckpt"])
def test_pickles_alone_are_refused(folder: Path, name: str) -> None:
    (folder / "model.safetensors").rename(folder / name)
    assert "holds pickle weights only, which are refused" in sentence(lambda: find_checkpoint(choice(folder)))


def test_pickles_beside_safetensors_are_ignored(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"nothing good")
    assert [path.name for path in find_checkpoint(choice(folder)).weights] == ["model.safetensors"]
    load(folder)


def test_code_of_a_checkpoint_is_refused_unless_asked_for(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert "needs code from its own repository; add model.trust_remote_code=true" in said
    assert find_checkpoint(choice(folder, trust_remote_code=True)).weights


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite(folder: Path, bad: float) -> None:
    edit_weights(folder, lambda weights: weights["model.layers.1.mlp.up_proj.weight"][3].fill_(bad))
    assert sentence(lambda: load(folder)).startswith(
        f"the weight model.layers.1.mlp.up_proj.weight of {folder} is not finite"
    )


def test_a_file_of_noise(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x07" * 1000)
    assert "is not a safetensors file, or not whole" in sentence(lambda: load(folder))


def test_a_weight_of_another_shape(folder: Path) -> None:
    edit_weights(folder, lambda w: w.update({"model.norm.weight": torch.ones(31)}))
    assert sentence(lambda: load(folder)) == (
        f"the tensor model.norm.weight of {folder} has the shape 31, its config.json asks for 32."
    )


@pytest.mark.parametrize("missing", ["model.layers.0.self_attn.q_proj.weight", "lm_head.weight"])
def test_a_weight_that_is_missing(folder: Path, missing: str) -> None:
    """Transformers would draw it at random, with a warning."""
    edit_weights(folder, lambda weights: weights.pop(missing))
    assert missing in sentence(lambda: load(folder))


def test_a_missing_shard(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    shards = find_checkpoint(choice(tmp_path)).weights
    assert len(shards) > 2
    shards[1].unlink()
    assert f"lacks {shards[1].name}, which its model.safetensors.index.json names" in sentence(lambda: load(tmp_path))


def test_what_is_hashed_is_what_is_loaded(folder: Path) -> None:
    """Transformers prefers the single file to the index, and a file that the configuration names to both."""
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    index = folder / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"weight_map": dict.fromkeys(load_file(folder / "other.safetensors"), "other.safetensors")})
    )
    assert [path.name for path in find_checkpoint(choice(folder)).weights] == ["model.safetensors"]
    (folder / "model.safetensors").unlink()
    assert [path.name for path in find_checkpoint(choice(folder)).weights] == ["other.safetensors"]
    edit_config(folder, transformers_weights="other.safetensors")
    assert "names its weights itself (other.safetensors)" in sentence(lambda: find_checkpoint(choice(folder)))


@pytest.mark.parametrize("places", [None, [], {}, {"a": "../../etc/passwd"}, {"a": "/etc/passwd"}, {"a": ["x"]}])
def test_an_index_that_maps_to_no_files_of_the_folder(folder: Path, places: Any) -> None:
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert "does not map weights to files beside it" in said or "lacks ['x']" in said


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "max_position_embeddings", "head_dim"])
@pytest.mark.parametrize("size", ["many", 0, -1, 2.5, True, [1]])
def test_a_size_that_is_no_number(folder: Path, name: str, size: Any) -> None:
    edit_config(folder, **{name: size})
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert said == f"{folder / 'config.json'} has no whole number above 0 for {name}."


def test_a_configuration_nested_without_end(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000)
    assert "config.json is nested too deeply" in sentence(lambda: find_checkpoint(choice(folder)))


def test_code_of_a_checkpoint_is_part_of_what_it_is(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "modeling.Own"})
    own = choice(folder, trust_remote_code=True)
    (folder / "modeling.py").write_text("scale = 1")
    before = architecture(find_checkpoint(own))
    (folder / "modeling.py").write_text("scale = 5.0")
    assert architecture(find_checkpoint(own)) != before


def test_not_a_language_model(folder: Path) -> None:
    edit_config(folder, model_type="no_such_type")
    assert "the model family 'no_such_type' has no layout; known: bloom, " in sentence(lambda: load(folder))


def test_the_hash_of_weights(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.safetensors"
    one = hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights_hash(find_checkpoint(choice(folder))) == file_hash(path) == one
    tiny("llama").save_pretrained(tmp_path / "shards", max_shard_size="40KB")
    sharded = find_checkpoint(choice(tmp_path / "shards"))
    each = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(sharded.weights)]
    assert weights_hash(sharded) == hashlib.sha256("".join(each).encode()).hexdigest()
    path.write_bytes(path.read_bytes() + b" ")
    assert file_hash(path) != one  # a changed file is read again


def test_shards_load(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    torch.testing.assert_close(load(tmp_path)(windows(1)).logits, tiny("llama")(windows(1)).logits)


def test_devices() -> None:
    assert resolve_device("cpu") == CPU
    assert resolve_device("auto").type in ("cpu", "cuda")
    for wrong in ("gpu", "cpu:x", "", "meta", "mps", "tpu"):
        assert "is none of auto, cpu, cuda, cuda:<number>" in sentence(lambda wrong=wrong: resolve_device(wrong))
    said = sentence(lambda: resolve_device("cuda:99"))
    assert "device=cuda:99 is not there: this machine has" in said and "GPUs; take one of auto, cpu" in said


def test_dtypes(folder: Path) -> None:
    checkpoint = find_checkpoint(choice(folder))

    def auto(config: dict[str, Any], device: str) -> torch.dtype:
        return resolve_dtype("auto", Checkpoint(folder, config, checkpoint.weights, None), torch.device(device))

    assert resolve_dtype("bfloat16", checkpoint, CPU) == torch.bfloat16
    assert auto({"dtype": "bfloat16"}, "cpu") == torch.float32
    assert auto({"dtype": "bfloat16"}, "cuda") == torch.bfloat16
    assert auto({"torch_dtype": "float16"}, "cuda") == torch.float16
    assert auto({}, "cuda") == torch.float32


@pytest.mark.parametrize("stored", ["float64", "float8_e4m3fn"])
def test_a_stored_dtype_that_is_none_of_ours(folder: Path, stored: str) -> None:
    checkpoint = Checkpoint(folder, {"dtype": stored}, (), None)
    assert stored in sentence(lambda: resolve_dtype("auto", checkpoint, torch.device("cuda")))


def test_a_model_that_waits_in_host_memory_loads_as_it_was_saved(folder: Path) -> None:
    model = load_model(find_checkpoint(choice(folder)), choice(folder), torch.float32, Where(CPU, offload=True))
    assert placement_of(decoder_of(model)).offloaded
    torch.testing.assert_close(model(windows(2)).logits, tiny("llama")(windows(2)).logits, rtol=1e-4, atol=1e-4)


def test_tokenizers(folder: Path) -> None:
    checkpoint = find_checkpoint(choice(folder))
    assert "holds no vocabulary of a tokenizer" in sentence(lambda: load_tokenizer(checkpoint, choice(folder)))
    (folder / "tokenizer.json").write_text("{}")
    assert "has no tokenizer that can be loaded" in sentence(lambda: load_tokenizer(checkpoint, choice(folder)))
    words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, "<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    assert load_tokenizer(checkpoint, choice(folder))("a b a")["input_ids"] == [1, 0, 1]


def test_a_file_that_is_cut_off_or_has_more_than_its_header_counts(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for content in (whole[:-1], whole + b"x"):
        path.write_bytes(content)
        assert sentence(lambda: find_checkpoint(choice(folder))) == (
            f"{path} is not whole: it has {len(content)} bytes, its header counts {len(whole)}; "
            "copy or download it again."
        )


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_mark_of_the_encoding_in_front_of_the_configuration(folder: Path, encoding: str) -> None:
    path = folder / "config.json"
    path.write_bytes(path.read_text(encoding="utf-8").encode(encoding))
    said = sentence(lambda: find_checkpoint(choice(folder)))
    assert said == f"{path} opens with a byte order mark; save it as UTF-8 without one."
