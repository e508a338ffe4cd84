"""A protocol: everything that makes two measured numbers comparable, as a named, hashed object."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import torch

from harness.catalogue import name_of
from harness.models.decoder import Decoder
from harness.runtime.errors import Failure


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


def measured(evaluator: Any, decoder: Decoder, tokenizer: Any, context: Context) -> list[dict[str, Any]]:
    """Measures of a model by an evaluator, as plain values that a record can hold.

    Raises:
        Failure: it yields something else than measures.
    """
    who = f"the evaluator '{name_of(evaluator)}'"
    answer = evaluator(decoder, tokenizer, context)
    if not isinstance(answer, Iterable):
        raise Failure(f"{who} returned {type(answer).__name__}, where measures are due.")
    return [_plain(who, one) for one in answer]


def _plain(who: str, one: Any) -> dict[str, Any]:
    if not isinstance(one, Measure):
        raise Failure(f"{who} yielded {type(one).__name__}, where a Measure is due.")
    plain = asdict(one)
    for key in ("task", "metric", "protocol", "note"):
        if not isinstance(plain[key], str):
            raise Failure(f"{who} yielded a measure whose {key} is {plain[key]!r}, where a text is due.")
    for key in ("value", "stderr", "samples"):
        number = plain[key]
        if number is not None and (isinstance(number, bool) or not isinstance(number, Real)):
            raise Failure(f"{who} yielded a measure whose {key} is {number!r}, where a number is due.")
        if number is not None and not math.isfinite(number):
            plain[key] = None
            plain["note"] = plain["note"] or f"its {key} is not finite"
        elif number is not None:
            plain[key] = int(number) if isinstance(number, Integral) else float(number)
    return plain


@dataclass(frozen=True)
class Context:
    """Arguments of every evaluator beside the model: the window, the limit, and the seed of the run."""

    window: int
    limit: int | None
    seed: int
    device: torch.device
    exact: bool = False
    """Whether arithmetic is that of the released codes (`numerics=exact`)."""
