"""The memory that a run takes, counted from the model's geometry and the options: what fits, and where.

The counts are those of the tensors that exist together, up to lower-order terms. Beside them a GPU holds what its
libraries take (`LIBRARIES`). Shapes are written as in the rest of the harness: L tokens, D hidden size, F feed-forward
size, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch

from harness.calibration import batches
from harness.calibration.batches import CANDIDATE_LOGIT_BYTES as FITNESS_LOGITS
from harness.config import RunConfig
from harness.core.allocation import Budget
from harness.core.geometry import Geometry
from harness.core.search import LevelGrid
from harness.core.statistic import gram, squared_norms
from harness.core.training import Cost
from harness.models.machine import available, free_memory, reclaimable_on
from harness.runtime.errors import UserError
from harness.runtime.memory import AHEAD, GIB
from harness.training.costs import cost

LIBRARIES = 1.0 * GIB
"""Workspaces of a GPU's libraries, and what its allocator cannot give out for being in pieces."""
LONGEST_PROMPT = 1024
"""Tokens that the longest zero-shot prompt (BoolQ's) may take."""
SELECTION = {"cuda": 10, "cpu": 24}
"""Bytes a weight of the largest matrix while it is pruned: scores, mask, result; on a CPU their order, in 64 bits."""
SIGHTLESS = ("uniform", "file", "alphapruning")
"""Allocators that look at no input of a linear."""
LOGIT_PIECES = 5
"""Tensors as large as a piece of logits while a candidate is judged: in 16 and 32 bits, logarithms, products."""


@dataclass(frozen=True)
class Need:
    """Bytes. A run has `waiting` beside the weights from pass to pass; that may wait in host memory, as may `blocks`.

    `block` are the matrices of one block, `outside` embedding and head. `pruning` is the working memory of one block's
    calibration and pruning, `scoring` that of evaluation, `recovering` that of a recovery, whose weights do not wait;
    `under_way` are hidden states on their way to host memory and
    back, where they wait there.
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
    """What a run needs with calibration windows of `length` and evaluation windows of `window` tokens.

    Args:
        itemsize: bytes of a weight.
        weights: bytes of the whole model where they are known better than from the geometry.
        calibrated: whether the model is run on calibration windows at all.
    """
    block = geometry.block_parameters * itemsize
    blocks = geometry.blocks * block
    outside = geometry.outside_parameters * itemsize if weights is None else max(0.0, weights - blocks)
    tokens = max(length, tokens_at_once(cfg, itemsize, cuda))
    waiting = passing = choosing = 0.0
    if cfg.method is not None:
        waiting += _levels(cfg, geometry, itemsize)
        choosing += _selection(geometry, cuda) + block  # the pruned weights of a block wait for each other
    if calibrated:
        waiting += _waiting(cfg, geometry, length, itemsize)
        plain = cuda and itemsize == 4  # on a CPU it goes in pieces (`models/attention.py`)
        passing += _batch(geometry, tokens, length, itemsize, plain=plain) + _grams(cfg, geometry)
        choosing += _factors(cfg, geometry, fast=is_fast(cfg, itemsize, cuda)) + _epochs(cfg.method, geometry, length)
        choosing += _beside(cfg.method, geometry, cuda)
        passing = max(passing, _curvature(cfg, geometry, length, itemsize), _judging(cfg, geometry, length, cuda))
    pruning = max(passing, choosing)
    scoring = _scoring(cfg, geometry, window, itemsize, cuda)
    at_once = max(tokens if calibrated else 0, window, batches.tokens_at_once(itemsize, cuda))
    under_way = 2 * (AHEAD + 1) * at_once * geometry.hidden * itemsize if cuda else 0
    recovered = recovery_cost(cfg, geometry, length, itemsize, cuda=cuda)
    recovering = recovered.kept_bytes + recovered.working_bytes
    return Need(blocks, block, outside, waiting, pruning, scoring, under_way, recovering)


def recovery_cost(cfg: RunConfig, geometry: Geometry, length: int, itemsize: int, *, cuda: bool) -> Cost:
    """What the recovery of a run asks for, with windows of `length` tokens where it says nothing of them."""
    in_scope = len(cfg.scope.blocks(geometry.blocks))
    own = getattr(cfg.recovery, "length", None)
    return cost(cfg.recovery, geometry, in_scope, 1 - cfg.asked, own or length, itemsize, cuda=cuda)


def is_fast(cfg: RunConfig, itemsize: int, cuda: bool) -> bool:
    """Return whether sums are taken in another order than the released codes', several windows at once."""
    return cuda and itemsize == 2 and cfg.numerics == "fast"


def tokens_at_once(cfg: RunConfig, itemsize: int, cuda: bool) -> int:
    """Tokens of a calibration batch; at least a window's."""
    if cfg.numerics == "exact":
        return 1  # so every window goes alone, as in the released codes
    if not cuda:
        return batches.CPU_TOKENS_PER_BATCH
    return batches.SHORT_TOKENS_PER_BATCH if itemsize == 2 else batches.TOKENS_PER_BATCH


def _waiting(cfg: RunConfig, geometry: Geometry, length: int, itemsize: int) -> float:
    """The hidden states, twice where a walk passes over dense blocks, and what a method keeps between passes."""
    tokens = cfg.calibration.windows * length
    method: Any = cfg.method
    kept = 0
    if hasattr(method, "kept_bytes"):
        kept = method.kept_bytes(tokens, geometry.hidden, geometry.wide, itemsize, gated=geometry.gated)
    copies = 1 if cfg.composed["allocator"]["name"] in SIGHTLESS and cfg.inputs != "dense" else 2
    return float(copies * tokens * geometry.hidden * itemsize + kept)


def _selection(geometry: Geometry, cuda: bool) -> float:
    a_weight = SELECTION["cuda" if cuda else "cpu"]
    return float(a_weight * geometry.hidden * geometry.wide * (2 if not geometry.gated else 1))


def _batch(geometry: Geometry, tokens: int, length: int, itemsize: int, *, plain: bool = False) -> float:
    """One batch inside a block, with all its scores where attention is plain."""
    inside = tokens * (8 * geometry.hidden + 3 * geometry.wide) * itemsize
    return float(inside + (3 * tokens * geometry.heads * length * 4 if plain else 0))


def _grams(cfg: RunConfig, geometry: Geometry) -> float:
    """Gram matrices of all distinct inputs of a block, unless a method says that its statistic has none."""
    without = getattr(cfg.method, "statistic", gram) in (None, squared_norms) or not getattr(
        cfg.method, "sees_gram", True
    )
    return 0.0 if without else 4.0 * geometry.gram_elements


def _factors(cfg: RunConfig, geometry: Geometry, *, fast: bool) -> float:
    """Gram matrices with their factors, and what stands beside them while the widest is factorised.

    As the released codes do it, each has its inverse too.
    """
    largest = 4.0 * max(geometry.wide, geometry.hidden) ** 2
    grams = _grams(cfg, geometry)
    if solver_bytes := getattr(cfg.method, "solver_bytes", None):
        inputs = (geometry.gram_elements, max(geometry.wide, geometry.hidden) ** 2)
        return float(grams + solver_bytes(*inputs, geometry.group_elements, fast=fast))
    return grams and (2 * grams + 3 * largest if fast else 3 * grams + 4 * largest)


def _epochs(method: Any, geometry: Geometry, length: int) -> float:
    """What a method that passes over the tokens again has beside what it keeps."""
    if not hasattr(method, "passing_bytes"):
        return 0.0
    return float(method.passing_bytes(length, geometry.hidden, geometry.wide, gated=geometry.gated))


def _beside(method: Any, geometry: Geometry, cuda: bool) -> float:
    """What a method has beside one matrix while it prunes it, if it says so; of the largest as of both shapes."""
    if not hasattr(method, "working_bytes"):
        return 0.0
    shapes = ((geometry.hidden, geometry.wide), (geometry.wide, geometry.hidden), (geometry.hidden, geometry.hidden))
    return float(max(method.working_bytes(*shape, cuda=cuda) for shape in shapes))


def _curvature(cfg: RunConfig, geometry: Geometry, length: int, itemsize: int) -> float:
    """Traces: the graph and gradients of a block, a window in front of every block, its logits and their gradient.

    All of it in float32; of 16-bit weights there is a copy in float32, of one block and what is outside the blocks.
    """
    if not getattr(cfg.allocator, "asks_for_traces", False) or cfg.method is None:
        return 0.0
    states = geometry.blocks * length * geometry.hidden
    graph = length * (8 * geometry.hidden + 6 * geometry.wide)
    logits = 4 * length * geometry.vocabulary
    copied = geometry.block_parameters + geometry.outside_parameters if itemsize < 4 else 0
    return 4.0 * (4 * geometry.block_parameters + states + graph + logits + copied)


def _judging(cfg: RunConfig, geometry: Geometry, length: int, cuda: bool) -> float:
    """A search: the dense model's probabilities for all fitness windows, and what is made of a piece of logits."""
    windows = getattr(cfg.allocator, "fitness_windows", 0) + getattr(cfg.allocator, "held_out", 0)
    pieces = LOGIT_PIECES * min(FITNESS_LOGITS["cuda" if cuda else "cpu"], 4 * length * geometry.vocabulary * windows)
    return float(4 * windows * length * geometry.vocabulary + pieces)


def _levels(cfg: RunConfig, geometry: Geometry, itemsize: int) -> float:
    """The database of a searching allocator, where memory holds it, and the dense matrices that a walk puts back."""
    blocks = len(cfg.scope.blocks(geometry.blocks)) * geometry.block_parameters * itemsize
    dense = blocks if cfg.composed["allocator"]["name"] == "mrp" else 0
    if not hasattr(cfg.allocator, "database"):
        return float(dense)
    dense += blocks if cfg.allocator.inputs == "pruned" else 0
    return float(dense + (database_bytes(cfg, geometry, itemsize) if cfg.allocator.database == "memory" else 0))


def database_bytes(cfg: RunConfig, geometry: Geometry, itemsize: int) -> float:
    """The levels of a searching allocator, which has some."""
    search = cfg.allocator
    grid = LevelGrid(search.step, search.reach, search.minimum, search.maximum, tuple(search.levels))
    count = sum(pattern.sparsity > 0 for pattern in grid.pattern_of(Budget.of_pattern(cfg.pattern)).values())
    return float(count * len(cfg.scope.blocks(geometry.blocks)) * geometry.block_parameters * itemsize)


def _scoring(cfg: RunConfig, geometry: Geometry, window: int, itemsize: int, cuda: bool) -> float:
    """A batch inside a block (attention is fused), or behind all with a part of the logits, twice in float32 too."""
    if not cfg.evaluators:
        return 0.0
    vocabulary = geometry.vocabulary
    at_once = max(window, batches.tokens_at_once(itemsize, cuda))
    tokens = min(at_once, window * batches.windows_of_logits(window, vocabulary))
    logits = tokens * vocabulary * (4 + 4 + itemsize)
    rows = max((getattr(evaluator, "batch_size", 0) for evaluator in cfg.evaluators.values()), default=0)
    logits = max(logits, rows * LONGEST_PROMPT * vocabulary * (4 + itemsize))
    inside = _batch(geometry, at_once, window, itemsize)
    return float(max(logits, inside) + at_once * geometry.hidden * itemsize)


class Offload(NamedTuple):
    """What is to wait in host memory; activations None: what finds no room."""

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
