"""The frozen configuration of one run: below `compose`, only these typed values exist."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.core.pattern import Pattern
from harness.data.windows import Calibration
from harness.models.checkpoint import ModelChoice
from harness.runtime.errors import UserError, unknown

Inputs = Literal["pruned", "dense"]
"""Inputs for a block's calibration: what the blocks before it give, pruned as they are by then, or as they were."""
TRACKERS = ("csv", "wandb", "wandb-offline")


@dataclass(frozen=True)
class Scope:
    """Which blocks are pruned at all: `all`, `first_half`, or `<first>-<last>`, counted from 0, both included."""

    text: str

    def __post_init__(self) -> None:
        if self.text not in ("all", "first_half") and not re.fullmatch(r"[0-9]{1,9}-[0-9]{1,9}", self.text):
            raise UserError(f"scope={self.text} is none of all, first_half, <first>-<last> (for example 0-3).")

    def blocks(self, count: int) -> range:
        """The blocks of a model with `count` of them.

        Raises:
            UserError: the range is empty or reaches beyond the last block.
        """
        if self.text == "all":
            return range(count)
        if self.text == "first_half":
            return range(count // 2)
        first, last = map(int, self.text.split("-"))
        if first > last or last >= count:
            raise UserError(
                f"scope={self.text} does not fit: the model has the blocks 0-{count - 1}, and a scope goes upwards."
            )
        return range(first, last + 1)


@dataclass(frozen=True)
class Tracker:
    """Who is told of a finished run beside the record: nobody (csv), or W&B online or offline."""

    name: str
    project: str = "pruning-harness"
    group: str | None = None

    def __post_init__(self) -> None:
        if self.name not in TRACKERS:
            raise unknown("tracker", self.name, TRACKERS)


Form = Literal["padded", "sliced"]
"""How a model is written whose blocks differ in width or lack a part: as a plain one with zeros in between, or in its
true widths, which only the harness reads."""


@dataclass(frozen=True)
class RunConfig:
    """Everything one run needs, typed and checked; `composed` is its plain form, `auto` and `null` still in it."""

    model: ModelChoice
    window: int | str | None
    method: Any | None
    allocator: Any
    planner: Any
    recovery: Any
    pattern: Pattern
    scope: Scope
    calibration: Calibration
    evaluators: Mapping[str, Any]
    evaluation_window: int | None
    evaluation_limit: int | None
    seed: int
    device: str
    dtype: str
    numerics: str
    offload: str
    tracker: Tracker
    records: Path
    cache: Path | None
    cache_gib: float | None
    checkpoint_every: float | None
    save: Path | None
    force: bool
    composed: Mapping[str, Any]
    inputs: Inputs = "pruned"
    share: bool = True
    layer_error: bool = False
    save_form: Form = "padded"
    conversion: Any = None

    @property
    def asked(self) -> float:
        """The fraction of zeros asked for; nothing is asked of a dense model."""
        return 0.0 if self.method is None else self.pattern.sparsity
