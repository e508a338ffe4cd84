"""Policy gradient on the authors' toy, step by step, with the masks and losses that their own code had."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.core.policy import Policy, Rule, rate, reaching, updated
from harness.core.structure import Part

PARTS: dict[Part, str] = {"head": "attn", "channel": "mlp"}


def toys() -> list[dict[str, Any]]:
    """The runs of `ChannelPGPruner` on two blocks of 4 heads and 8 channels, every step of them."""
    path = Path(os.environ["HARNESS_ASSETS"]) / "reported/authors_code_structured.jsonl"
    return [row["toy"] for row in map(json.loads, path.read_text().splitlines()) if row["model"] == "toy"]


def by_part(step: dict[str, Any], prefix: str = "") -> dict[Part, Tensor]:
    """Scores (B, U), or masks (B, K, U): the authors' blocks keep their own samples."""
    return {part: torch.tensor(step[prefix + name]) for part, name in PARTS.items()}


@pytest.mark.assets
def test_every_step_of_the_toy() -> None:
    assert toys()
    for toy in toys():
        rule = Rule(toy["rate"], toy["total_steps_of_cosine"], toy["lr"], toy["K"], toy["window"])
        start, *steps = toy["history"]
        policy = Policy(by_part(start))
        for step in steps:
            assert rate(policy.updates, rule.steps, rule.lr) == pytest.approx(step["lr"], rel=1e-9)
            masks = {part: mask.transpose(0, 1).bool() for part, mask in by_part(step, "masks_").items()}
            policy = updated(policy, masks, torch.tensor(step["losses"]), rule)
            assert policy.baseline == pytest.approx(step["delta"], abs=1e-6)
            for part, scores in by_part(step).items():
                assert (policy.scores[part] - scores).abs().max() < 1e-6, (step["step"], part)
        for part, name in PARTS.items():
            assert torch.equal(reaching(policy.scores[part], rule.keep).int(), torch.tensor(toy["hard_masks"][name]))
