"""The benchmark of SparseLLM at a tiny size: both numerics, SparseGPT beside them, and where the time goes."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.speed.common import Shape, random_tokens
from benchmarks.speed.sparsellm import STEPS, block_model, by_step, inner_alone, ours, run_ours
from benchmarks.speed.steps import stepwise
from harness.methods.sparsellm import SparseLLM

SMALL = Shape(32, 48, 2, 2, 64)


def test_both_numerics_are_timed_and_as_good() -> None:
    ids = random_tokens(SMALL, 8, 32, torch.device("cpu"))
    fast, exact = (ours(SMALL, ids, repeat, 2, exact=not repeat) for repeat in (1, 0))
    assert fast.loss == pytest.approx(exact.loss, rel=1e-3) and len(fast.seconds) == len(exact.seconds) == 1
    assert len(inner_alone(SMALL, ids, 2, 2)[0]) == 2
    assert any("observe" in line for line in by_step(SMALL, ids, 2))


def test_steps_add_up_and_leave_nothing_behind() -> None:
    before = [getattr(owner, name) for places in STEPS.values() for owner, name in places]
    ids = random_tokens(SMALL, 4, 32, torch.device("cpu"))
    with stepwise({"outer": [(math, "dist")]}) as seconds:
        run_ours(block_model(SMALL, ids.device), ids, SparseLLM())
        math.dist([0.0], [1.0])
    assert set(seconds) == {"outer", "other"} and all(taken >= 0 for taken in seconds.values())
    assert before == [getattr(owner, name) for places in STEPS.values() for owner, name in places]
