"""The settings of the allocators that the papers compare with: OWL, AlphaPruning, DLP."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ALLOCATORS, FakeBlock, FakeView, tiny, windows

from harness import catalogue
from harness.allocators.alphapruning import AlphaPruning
from harness.calibration.views.model import LiveModelView
from harness.core.allocation import Budget
from harness.models.decoder import decoder_of
from harness.runtime.errors import Refusal, UserError


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("owl", {"spread": 0.08, "threshold": 5.0}),
        ("dlp", {"spread": 0.15, "statistic": "median"}),
        ("alphapruning", {"epsilon": 0.3, "granularity": "block"}),
    ],
)
def test_the_defaults_are_those_of_the_papers_at_70_percent(name: str, settings: dict[str, Any]) -> None:
    assert catalogue.defaults("allocator", name) == {"name": name, **settings, "levels": []}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "dlp", "spread": -0.1}, r"allocator\.spread has to be at least 0"),
        ({"name": "dlp", "statistic": "mode"}, r"allocator\.statistic"),
        ({"name": "alphapruning", "epsilon": -0.1}, r"allocator\.epsilon has to be between 0 and 1"),
        ({"name": "alphapruning", "epsilon": 1.5}, r"allocator\.epsilon has to be between 0 and 1"),
        ({"name": "alphapruning", "granularity": "row"}, r"allocator\.granularity"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        catalogue.build("allocator", settings)


def test_a_matrix_without_a_spectrum_is_refused() -> None:
    block = FakeBlock(0, {"blocks.0": torch.ones(1, 4)}, {})
    with pytest.raises(Refusal, match=r"the spectrum of blocks\.0 has no tail"):
        AlphaPruning().allocate(FakeView([block]), Budget(0.5))


@pytest.mark.parametrize("name", ["owl", "dlp", "alphapruning"])
def test_the_scores_of_blocks_are_told(name: str) -> None:
    """As plain numbers, for the record."""
    model = tiny("llama")
    view = LiveModelView(decoder_of(model), [windows(3)], range(2))
    ALLOCATORS[name].allocate(view, Budget(0.7))
    assert [type(score) for score in view.diagnostics["score"]] == [float, float]
