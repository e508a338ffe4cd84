"""The one-shot benchmark: names of methods with settings and ways, and that nothing of a way stays behind."""

from __future__ import annotations

import pytest
import torch

from benchmarks.speed.common import SHAPES, Shape, random_model, random_tokens
from benchmarks.speed.oneshot import METHODS, arithmetic, by_part, work_of
from harness.core import scaled

SMALL = Shape(32, 48, 1, 2, 64)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_prunes(name: str) -> None:
    before = dict(scaled.ARITHMETIC)
    model = random_model(SMALL, 1, torch.device("cpu"), 16)
    work_of(name)(model, random_tokens(SMALL, 4, 16, torch.device("cpu")))
    weight = model.model.layers[0].mlp.down_proj.weight
    assert float((weight == 0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert before == scaled.ARITHMETIC


def test_a_way_is_taken_inside_and_a_wrong_one_refused() -> None:
    with arithmetic("nodes/half"):
        assert scaled.ARITHMETIC["fast"] == ("split", "half", "nodes")
    with pytest.raises(SystemExit, match="'node/half' is no way"), arithmetic("node/half"):
        pass


def test_parts_of_every_way() -> None:
    numbers: dict[str, object] = {}
    lines = by_part(SMALL, torch.device("cpu"), numbers)
    assert len(lines) == 2 + 5 + 3 and len(numbers) == 2 * (5 + 3)
    assert "7b" in SHAPES
