"""Heads and channels that stay, and biases, on a real model and real text against what the authors' own codes keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from harness.core.structure import Plan
from harness.planners.flap import Flap
from harness.planners.llm_pruner import LLMPruner
from tests.oracles.test_authors_structured import authors, view_of

BLOCKS, HEADS = range(8), range(4)


def heads_kept(plan: Plan) -> list[list[int]]:
    return [[head for head in HEADS if head not in plan.edit.gone("head", block)] for block in BLOCKS]


def channels_kept(plan: Plan) -> list[int]:
    return [704 - len(plan.edit.gone("channel", block)) for block in BLOCKS]


def norms(plan: Plan, matrix: str) -> Sequence[float]:
    """The length of each block's bias."""
    nothing = torch.zeros(1)
    return [float(plan.tensors.get(f"model.layers.{block}.{matrix}.bias", nothing).norm()) for block in BLOCKS]


@pytest.mark.assets
def test_flap() -> None:
    known: dict[str, Any] = authors("flap WIFV AL-AM")
    asked = view_of(known["windows"])
    plan = Flap(variant="released", amount=known["ratio"]).plan(asked)
    assert heads_kept(plan) == known["heads_kept"]
    assert channels_kept(plan) == known["channels_kept"]
    assert norms(plan, "self_attn.o_proj") == pytest.approx(known["bias_norm_o"], abs=2e-5, rel=1e-5)
    assert norms(plan, "mlp.down_proj") == pytest.approx(known["bias_norm_down"], abs=2e-5, rel=1e-5)
    scores = asked.diagnostics["scores"]["heads"]
    for block in BLOCKS:
        assert scores[str(block)] == pytest.approx(known["attn_score"][block], rel=1e-3, abs=1e-4)


@pytest.mark.assets
def test_llm_pruner() -> None:
    known: dict[str, Any] = authors("llm-pruner taylor param_first block-wise local")
    planner = LLMPruner(amount=known["ratio"], of="units", windows=known["windows"])
    asked = view_of(known["windows"])
    plan = planner.plan(asked)
    assert heads_kept(plan) == known["heads_kept"]
    assert channels_kept(plan) == known["channels_kept"]
    third = [channel for channel in range(704) if channel not in plan.edit.gone("channel", 3)]
    assert third[:12] == known["channels_kept_block3_first12"]
    assert asked.diagnostics["removed"]["linears"] == pytest.approx(known["fraction_removed"], rel=1e-12)
