"""The allocators on real models and real text against what the authors' own code gives there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import pytest
import torch
from helpers import FakeView
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import catalogue
from harness.calibration.views.model import LiveModelView
from harness.calibration.walk.batches import batched
from harness.core.allocation import Budget, fit
from harness.core.spectrum import power_law_exponent
from harness.core.statistic import SquaredNorms, Statistic, squared_norms
from harness.data.windows import Calibration, calibration_windows
from harness.models.decoder import decoder_of

AUTHORS = json.loads((Path(__file__).parent / "authors_allocations.json").read_text(encoding="utf-8"))
SETTINGS = AUTHORS["settings"]


@dataclass
class Observed:
    """A block that was observed before: a `BlockView` of one statistic."""

    index: int
    weights: Mapping[str, Tensor]
    seen: Mapping[str, SquaredNorms]

    def observe(self, statistic: Statistic) -> Mapping[str, SquaredNorms]:
        assert statistic is squared_norms
        return self.seen


def observed(name: str) -> FakeView:
    """A model that was observed once, for all allocators."""
    folder = Path(os.environ["HARNESS_ASSETS"]) / "models" / name
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)
    calibration = Calibration(SETTINGS["corpus"], SETTINGS["windows"], SETTINGS["length"], SETTINGS["seed"])
    windows = calibration_windows(calibration, AutoTokenizer.from_pretrained(folder), SETTINGS["length"])
    decoder = decoder_of(model)
    view = LiveModelView(decoder, batched(windows), range(len(decoder.modules)))
    return FakeView(
        [Observed(block.index, block.weights, block.observe(squared_norms)) for block in view.observe(squared_norms)]
    )


@pytest.mark.assets
@pytest.mark.parametrize("model", ["proxy-llama-11m", "proxy-opt-11m"])
def test_blocks_get_what_the_authors_code_gives_them(model: str) -> None:
    """AlphaPruning's sparsity above 1 in one block of the LLaMA proxy is clipped and the others shifted, by `fit`."""
    view, budget, away = observed(model), Budget(SETTINGS["sparsity"]), {}
    sizes = {site: rows * columns for site, (rows, columns) in view.shapes.items()}
    cases = [case for case in AUTHORS["cases"] if case["model"] == model]
    assert {case["allocator"] for case in cases} == {"owl", "dlp", "alphapruning"}
    for case in cases:
        theirs = dict(zip(view.blocks, case["sparsities"], strict=True))
        expected = fit({site: value for sites, value in theirs.items() for site in sites}, sizes, budget)
        found = catalogue.build("allocator", {"name": case["allocator"], **case["settings"]}).allocate(view, budget)
        assert found.keys() == expected.keys()
        distances = {site: abs(found[site].sparsity - expected[site].sparsity) for site in found}
        away[case["allocator"], *case["settings"].values()] = max(distances.values())
        if exponents := case.get("exponents"):
            ours = [fmean(power_law_exponent(view.weights[site]) for site in sites) for sites in view.blocks]
            assert ours == pytest.approx(exponents, abs=1e-3)
    assert {allocator: distance for allocator, distance in away.items() if distance > 0.002} == {}
