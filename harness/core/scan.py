"""Losses of cuts on windows, kept as they come: a planner that is killed and started again goes on behind the last.

Shapes: C cuts, N windows, L tokens.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from harness.core.cost import removed
from harness.core.costs import Cost, Work
from harness.core.depth import Amount
from harness.core.geometry import Geometry
from harness.core.interfaces import Entry, Question, StructureView
from harness.core.search import CANDIDATE_LOGIT_BYTES
from harness.core.structure import Cut, Unit
from harness.runtime.errors import Failure

PIECE = 4096
"""Tokens of the windows whose losses are asked for and kept together: always the same ones, for equal bits."""
SHARE = 10
"""Times that asking takes as long as writing did, before what is known is written again."""
LOGIT_PIECES = 5
"""Tensors as large as a piece of logits while it is judged."""


class Scan:
    """The losses that a planner asks for, in its order; those of an earlier attempt are given back to the bit.

    Args:
        entry: where they are kept. What it holds is taken up as far as the same was asked in the same order.
    """

    def __init__(self, view: StructureView, entry: Entry, objective: Question) -> None:
        self._view, self._entry, self._objective = view, entry, objective
        self._known: list[tuple[str, list[list[float]]]] = [(key, rows) for key, rows in entry.read() or ()]
        self._asked, self._written = 0, len(self._known)
        self._since, self._writing = time.perf_counter(), 0.0

    def losses(self, cuts: Sequence[Cut], windows: Tensor) -> Tensor:
        """The loss (C, N) of each cut on each window (N, L), in float64 on the CPU."""
        pieces = windows.split(max(1, PIECE // windows.shape[1]))
        return torch.cat([self._of_piece(cuts, piece) for piece in pieces], dim=1)

    def _of_piece(self, cuts: Sequence[Cut], windows: Tensor) -> Tensor:
        asked = json.dumps([[cut.json() for cut in cuts], len(windows)], sort_keys=True)
        key, place = hashlib.sha256(asked.encode()).hexdigest()[:16], self._asked
        self._asked += 1
        if place < len(self._known) and self._known[place][0] == key:
            return torch.tensor(self._known[place][1], dtype=torch.float64)
        del self._known[place:]  # of other questions
        self._written = min(self._written, place)
        found = self._view.losses(cuts, windows, self._objective)
        self._known.append((key, found.tolist()))
        if time.perf_counter() - self._since >= SHARE * self._writing:
            self.write()
        return found

    def write(self) -> None:
        """Keep what is not kept yet."""
        if self._written == len(self._known):
            return
        begin = time.perf_counter()
        self._entry.write([list(one) for one in self._known])
        self._since = time.perf_counter()
        self._writing, self._written = self._since - begin, len(self._known)


@contextmanager
def scanning(
    view: StructureView, purpose: str, revision: str, objective: Question, **settings: Any
) -> Iterator[Scan]:  # fmt: skip
    """The scan of a planner, by its name and what its questions depend on; no other process works on it meanwhile."""
    entry = view.cached(purpose, {"revision": revision, "objective": objective, "piece": PIECE, **settings})
    with entry.held():
        scan = Scan(view, entry, objective)
        try:
            yield scan
        finally:
            scan.write()


def judging(tokens: int, passes: float, heads: float, candidates: int, geometry: Geometry, work: Work) -> Cost:
    """The cost of losses on windows of so many tokens: states of all candidates, and pieces of their logits.

    Args:
        passes: how often each token goes through all blocks in scope, and `heads` through the head.
    """
    head, blocks = geometry.vocabulary * geometry.hidden, work.blocks * geometry.block_parameters
    states = candidates * max(PIECE, work.length) * geometry.hidden * work.itemsize
    logits = min(CANDIDATE_LOGIT_BYTES[work.device], 4 * work.length * geometry.vocabulary)
    forwards = tokens * (passes * blocks + heads * head) / (blocks + head)
    return Cost(forwards=forwards, working_bytes=states + LOGIT_PIECES * logits)


def one_by_one(candidates: int) -> float:
    """Passes through all blocks that so many candidates take together, where each lacks another unit of one model.

    They share what is in front of that unit, so each runs what is behind it, half the blocks in the mean.
    """
    return (candidates + 1) / 2


def greedy(view: StructureView, scan: Scan, units: Sequence[Unit], amount: Amount, windows: Tensor) -> Cut:
    """The cut that grows by the unit without which the mean loss is lowest, until it takes the amount away.

    Args:
        units: candidates, the first of equals going first.

    Raises:
        Refusal: all of them are not enough.
        Failure: no candidate has a finite loss.
    """
    amount.first_of(units, view.geometry)
    gone: list[Unit] = []
    rounds: list[Mapping[str, Any]] = []
    while removed(Cut(frozenset(gone)), view.geometry, amount.of) < amount.amount:
        left = [unit for unit in units if unit not in gone]
        losses = scan.losses([Cut(frozenset({*gone, unit})) for unit in left], windows).mean(dim=1).tolist()
        worst = [loss if math.isfinite(loss) else math.inf for loss in losses]
        if min(worst) == math.inf:
            raise Failure("no unit can go without a loss that is not finite; dtype=float32 may be enough.")
        gone.append(left[worst.index(min(worst))])
        scores = {f"{unit.part} {unit.block}": loss for unit, loss in zip(left, losses, strict=True)}
        rounds.append({"gone": [gone[-1].part, gone[-1].block], "loss": min(worst), "scores": scores})
    view.log(order=[[unit.part, unit.block] for unit in gone], rounds=rounds)
    return Cut(frozenset(gone))
