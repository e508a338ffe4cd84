"""The memory that a run takes, counted from the model's geometry and the options: what fits, and where.

The counts are those of the tensors that exist together, up to lower-order terms. Beside them a GPU holds what its
libraries take (`LIBRARIES`). Shapes are written as in the rest of the harness: L tokens, D hidden size, F feed-forward
size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from harness.calibration.walk import batches
from harness.config import RunConfig
from harness.core.allocation import Budget
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.core.training import Training
from harness.models.machine import available, free_memory, reclaimable_on
from harness.runtime.errors import UserError
from harness.runtime.memory import AHEAD, GIB
from harness.training.costs import cost

LIBRARIES = 1.0 * GIB
"""Workspaces of a GPU's libraries, and what its allocator cannot give out for being in pieces."""
SELECTION = {"cuda": 10, "cpu": 24}
"""Bytes a weight of the largest matrix while it is pruned: scores, mask, result; on a CPU their order, in 64 bits."""


@dataclass(frozen=True)
class Need:
    """Bytes. A run has `waiting` beside the weights from pass to pass; that may wait in host memory, as may `blocks`.

    `block` are the matrices of one block, `outside` embedding and head. `pruning` is the working memory of one block's
    calibration and pruning, `scoring` that of evaluation, `recovering` that of a recovery, whose weights do not wait;
    `under_way` are hidden states on their way to host memory and back, where they wait there.
    """

    blocks: float
    block: float
    outside: float
    waiting: float
    pruning: float
    scoring: float
    under_way: float = 0.0
    recovering: float = 0.0

    @property
    def beside_weights(self) -> float:
        """Peak of what is there beside the weights."""
        return max(self.waiting + self.pruning, self.recovering, self.scoring)

    @property
    def resident(self) -> float:
        """Peak on the device that holds everything."""
        return self.blocks + self.outside + self.beside_weights

    @property
    def activations_offloaded(self) -> float:
        """Peak on a GPU that holds the weights, while what waits does so in host memory."""
        return self.blocks + self.outside + max(self.pruning, self.recovering, self.scoring) + self.under_way

    @property
    def offloaded(self) -> float:
        """Peak on a GPU that two blocks at a time visit; a recovery has them all there."""
        if self.recovering:
            return self.activations_offloaded
        return 2 * self.block + self.outside + max(self.pruning, self.scoring) + self.under_way

    def host(self, *, offload: bool) -> float:
        """Host memory for what waits there."""
        return self.waiting + (self.blocks if offload else 0)

    def mode(self, free: float) -> Literal["resident", "offload", "too large"]:
        """How a GPU with so many free bytes can run it."""
        if self.activations_offloaded + LIBRARIES <= free:
            return "resident"
        return "offload" if self.offloaded + LIBRARIES <= free else "too large"


def need_of(
    cfg: RunConfig, geometry: Geometry, *, length: int, window: int, itemsize: int, weights: float | None = None,
    calibrated: bool = True, cuda: bool = True,
) -> Need:  # fmt: skip
    """Need of a run with calibration windows of `length` and evaluation windows of `window` tokens.

    Args:
        itemsize: bytes of a weight.
        weights: bytes of the whole model where they are known better than from the geometry.
        calibrated: whether the model is run on calibration windows at all.
    """
    block = geometry.block_parameters * itemsize
    blocks = geometry.blocks * block
    outside = geometry.outside_parameters * itemsize if weights is None else max(0.0, weights - blocks)
    work = work_of(cfg, geometry, length, window, itemsize, cuda=cuda)
    tokens = max(length, work.at_once)
    planner = cfg.planner.cost(geometry, work)
    method = allocator = Cost()
    waiting = passing = choosing = 0.0
    if cfg.method is not None:
        method, allocator = cfg.method.cost(geometry, work), cfg.allocator.cost(geometry, work)
        choosing += _selection(geometry, cuda) + block  # the pruned weights of a block wait for each other
        choosing += method.statistic_bytes + method.factor_bytes + method.working_bytes
    if calibrated:
        waiting += _states(cfg, geometry, work)
        plain = cuda and itemsize == 4  # on a CPU it goes in pieces (`models/attention.py`)
        passing += _batch(geometry, tokens, length, itemsize, plain=plain)
    waiting = max(waiting + allocator.kept_bytes + method.kept_bytes, planner.kept_bytes)
    passing += max(method.statistic_bytes, planner.working_bytes)
    pruning = max(passing, allocator.working_bytes, choosing)
    scoring = _scoring(cfg, geometry, work)
    at_once = max(tokens if calibrated else 0, window, batches.evaluation_tokens(itemsize, cuda))
    under_way = 2 * (AHEAD + 1) * at_once * geometry.hidden * itemsize if cuda else 0
    recovered = recovery_cost(cfg, geometry, work)
    recovering = recovered.kept_bytes + recovered.working_bytes
    return Need(blocks, block, outside, waiting, pruning, scoring, under_way, recovering)


def recovery_cost(cfg: RunConfig, geometry: Geometry, work: Work) -> Cost:
    """The cost of a run's recovery, in windows of the calibration's length where it says nothing of them."""
    if not isinstance(cfg.recovery, Training):
        return cfg.recovery.cost(geometry, work)
    length = cfg.recovery.length or work.length
    return cost(cfg.recovery, geometry, work.blocks, 1 - cfg.asked, length, work.itemsize, cuda=work.cuda)


def work_of(cfg: RunConfig, geometry: Geometry, length: int, window: int, itemsize: int, *, cuda: bool) -> Work:
    """The work of a run, of which its components say their costs.

    Args:
        length: tokens of a calibration window.
        window: tokens of an evaluation window.
        itemsize: bytes of a weight.
    """
    return Work(
        blocks=len(cfg.scope.blocks(geometry.blocks)),
        windows=cfg.calibration.windows,
        length=length,
        at_once=batches.calibration_tokens(itemsize, cuda, exact=cfg.numerics == "exact"),
        window=window,
        itemsize=itemsize,
        cuda=cuda,
        fast=is_fast(cfg, itemsize, cuda),
        budget=Budget.of_pattern(cfg.pattern),
    )


def is_fast(cfg: RunConfig, itemsize: int, cuda: bool) -> bool:
    """Return whether sums are taken in another order than the released codes', several windows at once."""
    return cuda and itemsize == 2 and cfg.numerics == "fast"


def _states(cfg: RunConfig, geometry: Geometry, work: Work) -> float:
    """The hidden states, twice where a walk passes over dense blocks."""
    passes_over = cfg.inputs == "dense" or cfg.allocator.needs_calibration
    return float((2 if passes_over else 1) * work.tokens * geometry.hidden * work.itemsize)


def _selection(geometry: Geometry, cuda: bool) -> float:
    a_weight = SELECTION["cuda" if cuda else "cpu"]
    return float(a_weight * geometry.hidden * geometry.wide * (2 if not geometry.gated else 1))


def _batch(geometry: Geometry, tokens: int, length: int, itemsize: int, *, plain: bool = False) -> float:
    """One batch inside a block, with all its scores where attention is plain."""
    inside = tokens * (8 * geometry.hidden + 3 * geometry.wide) * itemsize
    return float(inside + (3 * tokens * geometry.heads * length * 4 if plain else 0))


def _scoring(cfg: RunConfig, geometry: Geometry, work: Work) -> float:
    """A batch inside a block (attention is fused), or behind all with a part of the logits, twice in float32 too."""
    if not cfg.evaluators:
        return 0.0
    window, itemsize, vocabulary = work.window, work.itemsize, geometry.vocabulary
    at_once = max(window, batches.evaluation_tokens(itemsize, work.cuda))
    tokens = min(at_once, window * batches.windows_of_logits(window, vocabulary))
    logits = tokens * vocabulary * (4 + 4 + itemsize)
    own = max(evaluator.cost(geometry, work).working_bytes for evaluator in cfg.evaluators.values())
    inside = _batch(geometry, at_once, window, itemsize)
    return float(max(logits, own, inside) + at_once * geometry.hidden * itemsize)


class Offload(NamedTuple):
    """Parts to wait in host memory; activations None: what finds no room."""

    blocks: bool
    activations: bool | None


def check_memory(need: Need, offload: str, device: torch.device) -> Offload:
    """Refuse before the work starts what cannot fit; decide what waits in host memory of what can.

    Raises:
        UserError: less memory is free than is needed, on the device or in the host.
    """
    host = free_memory() + reclaimable_on(torch.device("cpu"))
    if device.type == "cpu":
        waits = offload == "on"
        _refuse_beyond(need.resident + (2 * need.block if waits else 0), host, device)
        return Offload(waits, waits)
    free = available(device) + reclaimable_on(device)
    mode = need.mode(free)
    if offload == "off":
        advice = "" if mode == "too large" else f"offload=auto, which needs {_gib(need.offloaded)} there,"
        _refuse_beyond(need.resident + LIBRARIES, free, device, advice)
        return Offload(False, False)
    blocks = offload == "on" or mode != "resident"
    activations = blocks or need.resident + LIBRARIES > free
    _refuse_beyond((need.offloaded if blocks else need.activations_offloaded) + LIBRARIES, free, device)
    if activations:
        _refuse_beyond(need.host(offload=blocks), host, torch.device("cpu"))
    return Offload(blocks, activations or None)


def _refuse_beyond(needed: float, free: float, device: torch.device, advice: str = "") -> None:
    if needed > free:
        raise UserError(
            f"this run needs about {_gib(needed)} on {device} and {_gib(free)} are free; "
            f"take {advice + ' or ' if advice else ''}fewer or shorter calibration windows, a smaller dtype, "
            "or a larger machine."
        )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
