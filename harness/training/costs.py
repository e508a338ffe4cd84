"""Costs of a recovery, counted from a model's sizes before there is a checkpoint.

Shapes as elsewhere: L tokens, D hidden size, F feed-forward size, V vocabulary, O outputs, I inputs.
"""

from __future__ import annotations

from harness.core.costs import Cost
from harness.core.geometry import Geometry
from harness.core.recoveries import Scored
from harness.core.training import Training, rates_of, steps_of
from harness.data.packed import HELD_OUT_WINDOWS
from harness.training.loop import TOKENS_AT_ONCE

STATE = 16
"""Bytes of a trained value on its device: it, its gradient, and AdamW's two moments, in float32."""
COPIES = 8
"""Bytes of a trained value in host memory: as it began, and as the best learning rate so far left it."""


def cost(
    recovery: Training, sizes: Geometry, in_scope: int, kept: float, length: int, itemsize: int, *, cuda: bool
) -> Cost:
    """The cost of a recovery that the shared loop trains.

    Args:
        in_scope: how many blocks are recovered, and `kept` the share of their weights that is left.
        length: tokens of a window.
        itemsize: bytes of a weight.
    """
    steps, rates = steps_of(recovery, length), len(rates_of(recovery))
    tokens = rates * steps * recovery.batch * length
    checks = rates * (recovery.checks + 1) * HELD_OUT_WINDOWS * length
    trials = rates * length * recovery.trials(steps)  # type: ignore[attr-defined]
    again = tokens if recomputes(recovery, cuda=cuda) else 0
    values = in_scope * sum(recovery.trained(*shape, kept) for shape in _matrices(sizes))  # type: ignore[attr-defined]
    masks = in_scope * sizes.block_parameters
    scored = isinstance(recovery, Scored)  # before training: a difference of every weight, and its gradient
    lasting = max(8.0 * masks if scored else 0.0, values * (STATE + (0 if cuda else COPIES))) + masks
    return Cost(
        tokens + again + checks + trials, tokens, lasting, _working(recovery, sizes, length, itemsize, cuda=cuda)
    )


def recomputes(recovery: Training, *, cuda: bool) -> bool:
    """Return whether activations are computed again for gradients: memory is short on GPUs, and time on a CPU."""
    return cuda if recovery.checkpointing is None else recovery.checkpointing


def _working(recovery: Training, sizes: Geometry, length: int, itemsize: int, *, cuda: bool) -> float:
    """The graph of what goes through the model at once: all blocks, or one and the hidden states between them."""
    windows = max(1, min(TOKENS_AT_ONCE["cuda" if cuda else "cpu"] // length, recovery.batch))
    tokens = windows * length
    block = tokens * (8 * sizes.hidden + 6 * sizes.wide) * itemsize + sizes.block_parameters * itemsize
    if itemsize == 4:  # plain attention: scores, probabilities and a gradient
        block += 3 * 4 * tokens * length * sizes.heads
    largest = max(rows * columns for rows, columns in _matrices(sizes))
    states = sizes.blocks * tokens * sizes.hidden * itemsize
    graph = states + block if recomputes(recovery, cuda=cuda) else sizes.blocks * block
    return graph + 3 * 4 * largest + tokens * sizes.vocabulary * (itemsize + 3 * 4)


def _matrices(sizes: Geometry) -> list[tuple[int, int]]:
    """The shapes (O, I) of the matrices of a block."""
    attention = [(sizes.query, sizes.hidden), *[(sizes.key_value, sizes.hidden)] * 2, (sizes.hidden, sizes.query)]
    return [*attention, *[(sizes.wide, sizes.hidden)] * (2 if sizes.gated else 1), (sizes.hidden, sizes.wide)]
