"""The settings that every trained recovery has, and what follows from them: steps, learning rates, checks.

A recovery inherits them as its fields: `recovery.tokens=`, `recovery.lr=` and so on. There are no other names in the
class, so that a recovery may call its own fields as it likes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from harness.runtime.errors import UserError

Schedule = Literal["cosine", "linear", "constant"]
"""What becomes of the learning rate behind its warm-up: down to 0 as a cosine or a line, or as it is."""


@dataclass(frozen=True)
class Training:
    """Next-token training with AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) on a packed stream of tokens."""

    text: str | None = None
    """The corpus, of which the train split is read; None: the calibration's."""
    tokens: int = 1_000_000
    """The budget, rounded up to whole steps; a text that is shorter is read again in another order. The default is for
    a GPU: on two CPU cores it takes minutes with the smallest models and hours with real ones; 20000 is a try."""
    batch: int = 8
    """Windows of an optimiser step; how many go through the model at once is not said here."""
    length: int | None = None
    """Tokens of a window; None: the calibration's."""
    lr: float | tuple[float, ...] = 1e-4
    """The peak learning rate, or several: each trains the whole budget from the same start, and the one with the lowest
    loss on held-out windows of the same text is taken."""
    weight_decay: float = 0.0
    """Of what is trained, so of the difference from the pruned weights and not of the weights."""
    clip: float = 1.0
    """The largest norm of the gradient of all that is trained; 0: any."""
    warmup: float = 0.05
    """The share of the steps in which the learning rate rises to its peak."""
    schedule: Schedule = "cosine"
    """What becomes of the learning rate behind its warm-up: down to 0 as a cosine or a line, or as it is."""
    checks: int = 4
    """How often, evenly spaced, the held-out loss is measured after the start."""
    checkpointing: bool | None = field(default=None, metadata={"identity": False})
    """Compute a block's activations again for its gradients; None: on a GPU."""

    def __post_init__(self) -> None:
        for name, least in (("tokens", 1), ("batch", 1), ("length", 2), ("checks", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"recovery.{name}={value} has to be at least {least}.")
        if not rates_of(self) or not all(rate > 0 for rate in rates_of(self)):
            given = list(self.lr) if isinstance(self.lr, tuple) else self.lr
            raise UserError(f"recovery.lr={given} has to be a positive learning rate or a list of such.")
        if self.weight_decay < 0 or self.clip < 0 or not 0 <= self.warmup <= 1:
            raise UserError("recovery.weight_decay and recovery.clip are at least 0, recovery.warmup is from 0 to 1.")


def rates_of(settings: Training) -> tuple[float, ...]:
    """The peak learning rates to choose from."""
    return settings.lr if isinstance(settings.lr, tuple) else (settings.lr,)


def steps_of(settings: Training, length: int) -> int:
    """Optimiser steps of one learning rate with windows of `length` tokens."""
    return math.ceil(settings.tokens / (settings.batch * length))


def share_at(settings: Training, step: int, steps: int) -> float:
    """The share of the peak learning rate in a step, counted from 0."""
    warm = math.ceil(settings.warmup * steps)
    if step < warm:
        return (step + 1) / warm
    left = 1 - (step - warm) / max(1, steps - warm)
    return {"cosine": 0.5 * (1 - math.cos(math.pi * left)), "linear": left, "constant": 1.0}[settings.schedule]


def checked_steps(settings: Training, steps: int) -> frozenset[int]:
    """The numbers of finished steps behind which the held-out loss is measured: the last one is among them."""
    return frozenset(round(steps * check / settings.checks) for check in range(1, settings.checks + 1)) - {0}
