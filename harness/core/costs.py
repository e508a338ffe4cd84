"""Costs of a component, counted without a model: passes, sums, walks and bytes, which others turn into seconds.

A component says it by `cost(geometry, work) -> Cost`; `needs.py` reads the bytes, `study/estimate.py` the rest, by the
rates of a device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.core.allocation import Budget
from harness.core.geometry import Geometry
from harness.core.statistic import Statistic, squared_norms

FISHER, HESSIAN = 4, 13
"""Forward passes that a window costs in the Fisher trace, and a window and probe in the Hessian's (measured)."""


@dataclass(frozen=True)
class Work:
    """The work of one point, as far as costs depend on it.

    Attributes:
        blocks: how many blocks are in scope.
        windows: calibration windows, of `length` tokens each.
        at_once: tokens of a calibration batch; a single window may have more.
        window: tokens of an evaluation window.
        itemsize: bytes of a weight.
        cuda: whether a GPU computes.
        fast: whether statistics are summed several windows at once (`numerics=fast` in 16 bits on a GPU).
        budget: the zeros that an allocator is to spend.
    """

    blocks: int
    windows: int
    length: int
    at_once: int
    window: int
    itemsize: int
    cuda: bool
    fast: bool
    budget: Budget

    @property
    def tokens(self) -> int:
        """Those of all calibration windows."""
        return self.windows * self.length

    @property
    def device(self) -> str:
        """The device type, `cuda` or `cpu`."""
        return "cuda" if self.cuda else "cpu"


@dataclass(frozen=True)
class Cost:
    """The cost of a component; costs that follow one another add up.

    Bytes are beside the weights, those of methods in the block at hand. Of a method, the walk over the blocks is not
    counted: its `statistic` says whether there is one.

    Attributes:
        forwards: tokens that go forward through the head and the blocks in scope; of recoveries and evaluators, all.
        backwards: tokens that go backward, each about two forwards.
        kept_bytes: from the component's begin to its end; they may wait in host memory.
        working_bytes: of one step: one matrix of a method, one batch of an allocator, planner or recovery.
        traced: tokens forward in float32, whatever the weights are; backward passes through graphs count as forwards.
        summed: tokens whose Gram matrices are summed, at every distinct input of every block in scope.
        column_walks: how often the inputs of every block in scope are factorised and their columns walked over.
        operations: further operations in float32.
        launches: blocks times batches that these take.
        halves: further operations of products in half precision.
        factored: n³ of matrices that are factorised and inverted, but for those of column walks.
        spectral: n³ of matrices whose eigenvectors are computed.
        spectra: matrices (·, D) whose singular values are computed.
        statistic_bytes: of what is accumulated over the inputs of a block.
        factor_bytes: of what is made of that, for all matrices of a block.
        stored_bytes: of files below the cache folder.
        drawn: tokens of windows that are drawn of the calibration text beside its own.
    """

    forwards: float = 0.0
    backwards: float = 0.0
    kept_bytes: float = 0.0
    working_bytes: float = 0.0
    traced: float = 0.0
    summed: float = 0.0
    column_walks: float = 0.0
    operations: float = 0.0
    launches: float = 0.0
    spectra: float = 0.0
    statistic_bytes: float = 0.0
    factor_bytes: float = 0.0
    stored_bytes: float = 0.0
    halves: float = 0.0
    factored: float = 0.0
    spectral: float = 0.0
    drawn: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """This and then that: steps do not overlap, what is kept stays."""
        sums = {name: value + vars(other)[name] for name, value in vars(self).items()}
        return replace(Cost(**sums), working_bytes=max(self.working_bytes, other.working_bytes))

    def arithmetic(self, times: float = 1) -> Cost:
        """Products, factors and eigenvectors alone, so many times over: what a method spends that others hold."""
        counted = ("operations", "halves", "factored", "spectral")
        return Cost(**{name: times * getattr(self, name) for name in counted})


def observing(statistic: Statistic | None, geometry: Geometry, work: Work, factor_bytes: float | None = None) -> Cost:
    """The cost of pruning every matrix by a statistic: next to nothing by norms or without any.

    Any other is taken for the Gram matrix of the inputs, factorised and walked over a column at a time (SparseGPT).

    Args:
        factor_bytes: of what is made of the Gram matrices, if not what SparseGPT makes of them.
    """
    if statistic in (None, squared_norms):
        return Cost()
    return Cost(
        summed=work.tokens,
        column_walks=1,
        statistic_bytes=4.0 * geometry.gram_elements,
        factor_bytes=factors(geometry, work) if factor_bytes is None else factor_bytes,
    )


def factors(geometry: Geometry, work: Work) -> float:
    """Bytes of the factors of a block's Gram matrices, and of what stands beside them while the widest is factorised.

    As the released codes do it, each has its inverse too.
    """
    grams, largest = 4.0 * geometry.gram_elements, 4.0 * max(geometry.wide, geometry.hidden) ** 2
    return grams + 3 * largest if work.fast else 2 * grams + 4 * largest


def products(geometry: Geometry, work: Work, count: float) -> float:
    """Operations of so many products of every matrix (O, I) in scope with a matrix (I, I) of its inputs."""
    return 2 * count * geometry.solver_elements * work.blocks


def solver_inputs(geometry: Geometry) -> tuple[int, int, int]:
    """Elements of a block's Gram matrices, of the largest one, and of the weights that are solved with it together."""
    return geometry.gram_elements, max(geometry.wide, geometry.hidden) ** 2, geometry.group_elements


def largest(geometry: Geometry, bytes_of: Callable[[int, int], float]) -> float:
    """The most bytes that a method has beside one matrix, by a function of its outputs and inputs."""
    shapes = ((geometry.hidden, geometry.wide), (geometry.wide, geometry.hidden), (geometry.hidden, geometry.hidden))
    return max(bytes_of(*shape) for shape in shapes)


def block_bytes(geometry: Geometry, work: Work) -> float:
    """The matrices of all blocks in scope."""
    return float(work.blocks * geometry.block_parameters * work.itemsize)


def fisher_trace(windows: int, geometry: Geometry, work: Work) -> Cost:
    """The cost of `Probe.fisher_trace` over so many calibration windows."""
    return Cost(traced=FISHER * windows * work.length, working_bytes=_curvature(geometry, work))


def hessian_trace(windows: int, probes: int, geometry: Geometry, work: Work) -> Cost:
    """The cost of `Probe.hessian_trace` over so many calibration windows."""
    return Cost(traced=HESSIAN * windows * probes * work.length, working_bytes=_curvature(geometry, work))


def gradient_sums(windows: int, geometry: Geometry, work: Work, *, squares: bool) -> Cost:
    """The cost of a view's `gradients` of so many windows: the passes of a Fisher trace, and the sums of one block.

    The states in front of every block wait for their gradients, those of all windows in float32.
    """
    passes = fisher_trace(windows, geometry, work)
    sums = 4.0 * geometry.block_parameters * (2 if squares else 1)
    states = 4.0 * windows * work.length * geometry.hidden * (geometry.blocks + 2)
    return replace(passes, working_bytes=passes.working_bytes + sums, kept_bytes=states)


def _curvature(geometry: Geometry, work: Work) -> float:
    """The graph and gradients of a block, a window in front of every block, its logits and their gradient.

    All of it in float32; of 16-bit weights there is a copy in float32, of one block and what is outside the blocks.
    """
    states = geometry.blocks * work.length * geometry.hidden
    graph = work.length * (8 * geometry.hidden + 6 * geometry.wide)
    logits = 4 * work.length * geometry.vocabulary
    copied = geometry.block_parameters + geometry.outside_parameters if work.itemsize < 4 else 0
    return 4.0 * (4 * geometry.block_parameters + states + graph + logits + copied)
