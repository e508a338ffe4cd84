"""DLP's formula: numbers by hand, and the properties of the densities that its authors publish."""

from __future__ import annotations

import pytest
import torch
from helpers import FakeBlock, FakeView, inputs, normal

from harness.allocators.dlp import Dlp
from harness.core.allocation import Budget
from harness.core.pattern import NofM
from harness.core.proposals import min_max_shift

# ironartisan/DLP@31d480f, ratios/: densities at 70 % and α = 0.15, to four digits
LLAMA_7B = (
    ".4676 .4517 .4347 .4174 .4054 .3907 .3825 .3753 .3680 .3621 .3533 .3466 .3336 .3260 .3182 .3088 "
    ".2953 .2801 .2698 .2605 .2447 .2366 .2315 .2210 .2141 .2034 .1961 .1919 .1843 .1751 .1676 .1862"
)
LLAMA2_7B = (
    ".4652 .4497 .4235 .4038 .3947 .3845 .3723 .3639 .3583 .3511 .3458 .3391 .3327 .3249 .3166 .3085 "
    ".2925 .2854 .2732 .2680 .2566 .2513 .2407 .2316 .2293 .2194 .2108 .1991 .1875 .1826 .1652 .1723"
)


@pytest.mark.parametrize("text", [LLAMA_7B, LLAMA2_7B], ids=["llama-7b", "llama2-7b"])
def test_the_published_densities_are_already_spread(text: str) -> None:
    """Mean 0.3 and range 0.3: as scores they give themselves, at any scale."""
    densities = [float(word) for word in text.split()]
    for scores in (densities, [7 * density - 1 for density in densities]):
        found = min_max_shift(scores, 0.7, 0.15)
        assert [1 - sparsity for sparsity in found] == pytest.approx(densities, abs=2e-4)
        assert sum(found) / len(found) == pytest.approx(0.7, abs=1e-12)
        assert max(found) - min(found) == pytest.approx(0.3, abs=1e-12)


def block(index: int, *weights: float) -> FakeBlock:
    site = f"blocks.{index}"
    return FakeBlock(index, {site: torch.tensor([weights])}, {site: torch.ones(1, len(weights))})


def sparsities(allocator: Dlp, view: FakeView) -> list[float]:
    return [pattern.sparsity for pattern in allocator.allocate(view, Budget(0.7)).values()]


def test_dlp_by_hand() -> None:
    """Medians (the lower of the two in the middle) 1, 2, 5 and means 4, 3, 5: a quarter and a half of the range."""
    view = FakeView([block(0, 1, -1, 2, 12), block(1, 1, 2, -4, 5), block(2, 5, 5, -5, 5)])
    assert sparsities(Dlp(), view) == pytest.approx([0.575, 0.65, 0.875])
    assert sparsities(Dlp(statistic="mean"), view) == pytest.approx([0.7, 0.55, 0.85])
    assert sparsities(Dlp(spread=0), view) == pytest.approx([0.7] * 3)


def test_dlp_in_levels() -> None:
    view = FakeView([block(0, 1, 1, 1, 1), block(1, 9, 9, 9, 9)])
    assert list(Dlp(spread=0.25).allocate(view, Budget.of_pattern(NofM(2, 4))).values()) == [NofM(3, 4), NofM(1, 4)]


@pytest.mark.parametrize("statistic", ["median", "mean"])
def test_it_is_the_formula_over_all_matrices_of_a_block(statistic: str) -> None:
    """I = 1 − m / Σ m of |W| ‖x‖, then min-max and shift, step by step."""
    blocks = []
    for index in range(4):
        weights = {f"{index}.up": (index + 1) * normal(6, 8, seed=index), f"{index}.down": normal(8, 6, seed=9 + index)}
        blocks.append(FakeBlock(index, weights, {f"{index}.up": inputs(12, 8), f"{index}.down": inputs(12, 6)}))
    typical = []
    for one in blocks:
        scores = torch.cat([(w.abs() * one.inputs[site].norm(dim=0)).flatten() for site, w in one.weights.items()])
        typical.append(float(scores.sort().values[47] if statistic == "median" else scores.mean()))
    importance = [1 - m / sum(typical) for m in typical]
    spread = [(i - min(importance)) / (max(importance) - min(importance)) * 0.3 for i in importance]
    expected = [0.7 - (density - sum(spread) / 4) for density in spread for _ in range(2)]
    assert sparsities(Dlp(statistic=statistic), FakeView(blocks)) == pytest.approx(expected, abs=1e-5)
