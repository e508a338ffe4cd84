"""Depth planners on real models and real text against what the authors' own codes give there (`authors_depth.json`)."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import catalogue
from harness.calibration.views.structure import DecoderView
from harness.core.structure import Cut, Unit
from harness.data.windows import Calibration, calibration_windows
from harness.models.decoder import decoder_of

CASES: list[dict[str, Any]] = json.loads(Path(__file__).with_name("authors_depth.json").read_text())["cases"]
ENDS = {"taylor", "perplexity"}
"""Planners whose kept ends are more than the proxies have; the scores are of all blocks."""


@lru_cache
def decoder(model: str) -> Any:
    path = Path(os.environ["HARNESS_ASSETS"]) / "models" / model
    loaded = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    return decoder_of(loaded), calibration_windows(
        Calibration("c4-sample", 2, 512, 0), AutoTokenizer.from_pretrained(path), 512
    )


def view(model: str) -> DecoderView:
    found, tokens = decoder(model)
    return DecoderView(found, list(tokens.split(2)), found.indices)


def name(case: dict[str, Any]) -> str:
    return " ".join([case["model"], case["planner"], *map(str, case["settings"].values())])


@pytest.mark.assets
@pytest.mark.parametrize("case", CASES, ids=name)
def test_scores_and_orders(case: dict[str, Any]) -> None:
    ends = {"keep_first": 0, "keep_last": 0} if case["planner"] in ENDS else {}
    catalogue.discover()
    planner = catalogue.build("planner", {"name": case["planner"], "windows": None, **ends, **case["settings"]})
    asked = view(case["model"])
    edit = planner.plan(asked).edit
    if "order" in case:
        assert asked.diagnostics["order"] == case["order"]
        assert edit == Cut(frozenset(Unit(part, block) for part, block in case["order"]))
        return
    found = [one["score"] for one in asked.diagnostics["scores"]]
    assert found == pytest.approx(case["scores"], rel=1e-4, abs=1e-4 * max(map(abs, case["scores"])))
