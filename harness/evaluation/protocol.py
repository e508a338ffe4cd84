"""A protocol: everything that makes two measured numbers comparable, as a named, hashed object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Protocol:
    """A readable name and the settings behind it; equal ids mean equal settings."""

    name: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        canonical = json.dumps(dict(self.settings), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return f"{self.name}#{hashlib.sha256(canonical.encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Measure:
    """One number. `value` is None, with a note, where it is not finite; accuracies are fractions."""

    task: str
    metric: str
    value: float | None
    stderr: float | None
    protocol: str
    samples: int
    note: str = ""


@dataclass(frozen=True)
class Context:
    """What every evaluator is given beside the model: the window, the limit, and the seed of the run."""

    window: int
    limit: int | None
    seed: int
    device: torch.device
