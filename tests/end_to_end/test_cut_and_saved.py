"""A cut model, pruned, saved and read again by transformers alone: what the record counts is what lies in the files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def parameters(folder: Path) -> int:
    """The elements of all tensors in a folder's files; a tied head lies there once."""
    return sum(one.numel() for path in folder.glob("*.safetensors") for one in load_file(path).values())


@pytest.mark.parametrize("part", ["block", "sublayer"])
def test_the_record_counts_what_is_saved(
    typed: Callable[..., Any], options: list[str], tmp_path: Path, part: str
) -> None:
    folder = tmp_path / "saved"
    done = typed(
        *options, "planner=block_influence", f"planner.part={part}", "planner.keep_first=1", "method=magnitude",
        "sparsity=0.5", f"save={folder}",
    )  # fmt: skip
    assert done.status == 0, done.err
    (path,) = (tmp_path / "records").glob("*.json")
    record = json.loads(path.read_text())
    counts = record["parameters"]
    assert counts["saved"] == parameters(folder)
    assert counts["model"] < counts["dense"]
    assert (counts["saved"] > counts["model"]) == (part == "sublayer")  # which is padded: no class leaves it out
    assert record["plan"]["edit"] and record["sparsity"]["achieved"] == pytest.approx(0.5, abs=0.02)
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokens = torch.arange(6)[None] + 5
    with_cache = model.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=True)
    assert torch.equal(with_cache, model.generate(tokens, max_new_tokens=8, do_sample=False, use_cache=False))
    again = typed(
        *options, f"model.path={folder}", "method=none", f"records={tmp_path / 'again'}"
    )  # fmt: skip
    assert again.status == 0, again.err
    (path,) = (tmp_path / "again").glob("*.json")
    reloaded = json.loads(path.read_text())
    assert [one["value"] for one in reloaded["measures"]] == pytest.approx(
        [one["value"] for one in record["measures"]], rel=1e-5
    )
