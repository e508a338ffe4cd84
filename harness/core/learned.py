"""The state of a learned policy: as it goes, as plain values that a cache keeps to the bit, and for a record."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor

from harness.core.policy import Policy, rate
from harness.core.structure import Part

POINTS = 200
"""Points of a course in a record, at most."""


@dataclass
class Learned:
    """A policy, the scores (B, U) that it began with, the mean loss and the baseline of every step so far."""

    policy: Policy
    first: Mapping[Part, Tensor]
    losses: list[float] = field(default_factory=list)
    baselines: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def begun(cls, scores: Mapping[Part, Tensor]) -> Learned:
        """The state in front of the first step."""
        return cls(Policy(scores), scores)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any], device: torch.device) -> Learned:
        """The state that `json` gave."""
        scores, first = ({cast("Part", part): _tensor(one, device) for part, one in plain[name].items()}
                         for name in ("scores", "first"))  # fmt: skip
        policy = Policy(scores, plain["baseline"], plain["updates"])
        return cls(policy, first, list(plain["losses"]), list(plain["baselines"]), plain["seconds"])

    def json(self) -> dict[str, Any]:
        """Plain values; scores are the bytes of their float32."""
        return {
            "scores": {part: _text(one) for part, one in self.policy.scores.items()},
            "first": {part: _text(one) for part, one in self.first.items()},
            "baseline": self.policy.baseline,
            "updates": self.policy.updates,
            "losses": self.losses,
            "baselines": self.baselines,
            "seconds": self.seconds,
        }

    def add(self, policy: Policy, losses: Tensor) -> None:
        """Take a step, of which these were the losses (K,); those that are not finite count in no mean."""
        valid = losses[losses.isfinite()]
        self.policy = policy
        self.losses.append(float(valid.mean()) if len(valid) else float("nan"))
        self.baselines.append(float("nan") if policy.baseline is None else policy.baseline)


def thinned(learned: Learned, steps: int, lr: float) -> list[dict[str, float | int | None]]:
    """The course of a schedule of so many steps: at most `POINTS` stretches of it, of each the last step with its rate
    and baseline, and the mean loss."""
    stretch = max(1, -(-len(learned.losses) // POINTS))
    course: list[dict[str, float | int | None]] = []
    for start in range(0, len(learned.losses), stretch):
        losses = [loss for loss in learned.losses[start : start + stretch] if loss == loss]
        last = min(start + stretch, len(learned.losses)) - 1
        baseline = learned.baselines[last]
        course.append(
            {
                "step": last + 1,
                "loss": sum(losses) / len(losses) if losses else None,
                "baseline": baseline if baseline == baseline else None,
                "lr": rate(last, steps, lr),
            }
        )
    return course


def _text(scores: Tensor) -> dict[str, Any]:
    content = scores.detach().cpu().float().contiguous().numpy().tobytes()
    return {"shape": list(scores.shape), "float32": base64.b64encode(content).decode()}


def _tensor(plain: Mapping[str, Any], device: torch.device) -> Tensor:
    content = bytearray(base64.b64decode(plain["float32"]))
    return torch.frombuffer(content, dtype=torch.float32).reshape(plain["shape"]).clone().to(device)
