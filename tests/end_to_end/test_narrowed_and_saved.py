"""Heads and channels gone, what is left pruned, saved and read again: the numbers of the record stay what they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, OPTConfig, OPTForCausalLM

from tests.commands import SMALL, save_tiny

PLANNED = [
    ("flap", "planner.amount=0.3"),
    ("flap", "planner.structure=UL-UM"),
    ("wanda_sp", "planner.round_to=8"),
    ("magnitude_sp", "planner.of=units"),
    ("llm_pruner", "planner.ranking=global"),
    ("saap", "planner.keep_first=0"),
]
SIZES = {"vocab_size": 976, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8}


def record(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def saved_as(folder: Path, kind: Any, config: Any) -> Path:
    """A tiny checkpoint of another family, with the embedded tokenizer."""
    save_tiny(folder)
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    return folder


def values(found: dict[str, Any]) -> list[float]:
    return [one["value"] for one in found["measures"]]


@pytest.mark.parametrize("form", ["padded", "sliced"])
@pytest.mark.parametrize(("planner", "setting"), PLANNED)
def test_what_is_left_is_pruned_and_kept(
    typed: Callable[..., Any], tmp_path: Path, planner: str, setting: str, form: str
) -> None:
    dense, folder = save_tiny(tmp_path / "dense", num_hidden_layers=3), tmp_path / "saved"
    options = ["model=hf", "model.window=32", *SMALL]
    done = typed(
        *options, f"model.path={dense}", f"planner={planner}", setting, "method=wanda", "sparsity=0.5",
        f"save={folder}", f"save_form={form}", f"records={tmp_path / 'records'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    first = record(tmp_path / "records")
    removed = first["plan"]["removed"]
    assert removed["linears"] > 0 and removed["parameters"] > 0 and removed["channels"] > 0
    assert first["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.03)
    again = typed(*options, f"model.path={folder}", "method=none", f"records={tmp_path / 'again'}")
    assert again.status == 0, again.err
    assert values(record(tmp_path / "again")) == pytest.approx(values(first), rel=1e-5)


def test_biases_lie_in_a_plain_checkpoint(typed: Callable[..., Any], tmp_path: Path) -> None:
    """LLaMA's class has a place for them, which transformers alone reads."""
    dense, folder = save_tiny(tmp_path / "dense", num_hidden_layers=3), tmp_path / "saved"
    done = typed(
        "model=hf", "model.window=32", *SMALL, f"model.path={dense}", "planner=flap", "planner.amount=0.3",
        "method=none", f"save={folder}", f"records={tmp_path / 'records'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    config = AutoConfig.from_pretrained(folder)
    assert config.attention_bias or config.mlp_bias
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert any(bool(one.abs().sum() > 0) for name, one in model.named_parameters() if name.endswith("_proj.bias"))


def test_biases_without_a_place_are_refused(typed: Callable[..., Any], tmp_path: Path) -> None:
    """Mistral's class has none: one sentence that says what to do, before the work."""
    config = MistralConfig(**SIZES, intermediate_size=48, num_key_value_heads=2, sliding_window=None)
    dense = saved_as(tmp_path / "dense", MistralForCausalLM, config)
    options = ["model=hf", "model.window=32", *SMALL, f"model.path={dense}", "planner=flap", "method=none"]
    options += [f"save={tmp_path / 'saved'}", f"records={tmp_path / 'records'}"]
    done = typed(*options)
    assert done.status == 2 and "save_form=sliced" in done.err and "bias" in done.err
    assert typed(*options, "planner.bias=false").status == 0
    assert typed(*options, "save_form=sliced", f"save={tmp_path / 'sliced'}").status == 0


def test_heads_of_opt_are_padded(typed: Callable[..., Any], tmp_path: Path) -> None:
    """Its class takes heads of hidden size over heads only, so that those that are gone lie there as zeros."""
    config = OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, max_position_embeddings=64)
    dense = saved_as(tmp_path / "dense", OPTForCausalLM, config)
    folder = tmp_path / "saved"
    options = ["model=hf", "model.window=32", *SMALL]
    done = typed(
        *options, f"model.path={dense}", "planner=flap", "planner.amount=0.3", "planner.structure=UL-UM",
        "method=none", f"save={folder}", f"records={tmp_path / 'records'}",
    )  # fmt: skip
    assert done.status == 0, done.err
    first = record(tmp_path / "records")
    assert first["plan"]["edit"]["head"] and first["parameters"]["saved"] > first["parameters"]["model"]
    assert AutoConfig.from_pretrained(folder).num_attention_heads == 4
    again = typed(*options, f"model.path={folder}", "method=none", f"records={tmp_path / 'again'}")
    assert values(record(tmp_path / "again")) == pytest.approx(values(first), rel=1e-5)
    assert again.status == 0
