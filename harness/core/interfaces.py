"""The protocols that components follow; structural typing, no base classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from harness.core.allocation import Allocation, Budget
from harness.core.geometry import Geometry
from harness.core.pattern import Pattern
from harness.core.statistic import ActivationStats, Gram, Statistic
from harness.core.structure import Cut, Part, Plan, Unit

Site = str
"""The full name of one weight matrix, such as `model.layers.0.mlp.up_proj`."""


class Pruned(NamedTuple):
    """A pruned weight (O, I), what was kept, and a remark for the record (a raised damping, a fallback).

    `ok` () is a flag on the device where nobody has looked yet whether the result may be used; None where it may.
    `order` (I,) are the inputs in the order in which an N:M pattern holds; None where it is their own.
    `unseen` (I,) is True for inputs that calibration never saw, None where nobody knows; methods need not say it.
    """

    weight: Tensor
    kept: Tensor
    note: str = ""
    ok: Tensor | None = None
    order: Tensor | None = None
    unseen: Tensor | None = None


class FeedForward(NamedTuple):
    """The part of a block behind attention: down(φ(gate x) ⊙ up x) if `gated`, else down(φ(up x)).

    `readers` are the matrices that read x: gate and up, one matrix with the rows of gate over those of up, or up alone.
    `biases` holds the bias (O,) of each linear that has one.
    """

    readers: tuple[Site, ...]
    down: Site
    gated: bool
    activation: Callable[[Tensor], Tensor]
    biases: Mapping[Site, Tensor]

    @property
    def sites(self) -> tuple[Site, ...]:
        """Its matrices, as the block runs them; none where the block has no such part any more."""
        return (*self.readers, self.down) if self.readers else ()


class BlockView(Protocol):
    """One block under calibration: its weights, and what its linears see with all earlier blocks as they are now.

    `observe` takes one statistic for all linears, or one for each of some; linears that read the same input share it.
    `log` puts facts about the pruning of this block (a loss per epoch, a fallback) into the record.
    """

    index: int

    @property
    def weights(self) -> Mapping[Site, Tensor]: ...

    @property
    def feed_forward(self) -> FeedForward: ...

    def observe(self, statistic: Statistic | Mapping[Site, Statistic]) -> Mapping[Site, ActivationStats]: ...

    def log(self, **facts: Any) -> None: ...


class Difference(NamedTuple):
    """How the inputs x of some linears differ from those x̄ of the dense model on the same tokens.

    `gram` is that of x. `shift` (I, I) is Σ (x̄ − x) xᵀ and `drift` (O, I) is Σ (r̄ − r) xᵀ, both scaled as `gram` is; r
    is what the outputs are added to in the residual stream, and `drift` is None for linears that do not write to it.
    """

    gram: Gram
    shift: Tensor
    drift: Tensor | None


@runtime_checkable
class WrittenView(Protocol):
    """A block whose weights a method may have written already; `dense` holds what they were."""

    dense: Mapping[Site, Tensor]


@runtime_checkable
class KnowingView(Protocol):
    """A block that keeps what is made of a dense weight alone, for all points that share the model."""

    def weight_statistic(self, site: Site, make: Callable[[], Any]) -> Any: ...


class ReferencedView(BlockView, WrittenView, Protocol):
    """A block beside the dense model's, for a method that says `beside_dense = True`.

    `groups` are its linears by the input that they read, in the order in which the block runs them. `write` puts a
    weight in place, for later groups to see; the dense model keeps its own.
    """

    groups: tuple[tuple[Site, ...], ...]

    def difference(self, sites: Sequence[Site]) -> Difference: ...

    def write(self, site: Site, weight: Tensor) -> None: ...


Draws = Literal["gaussian", "rademacher"]
"""The distribution of Hutchinson's vectors."""


class Trace(NamedTuple):
    """The trace of one matrix's diagonal block of a curvature matrix, and its standard error (NaN where unknown)."""

    value: float
    stderr: float = math.nan


Objective = Literal["nll", "kl"]
"""What a candidate is judged by: the mean negative log-likelihood, or the mean KL divergence of the dense model's
distribution over the next token from the candidate's; both in nats per token."""


class Database(NamedTuple):
    """Where the levels of an assembler live, and how many GiB they may take (None: no limit)."""

    place: Literal["memory", "disk"] = "memory"
    limit: float | None = None


class Assembler(Protocol):
    """A database of pruned matrices, one per site and level, from which candidates are put together and judged.

    A candidate is an allocation whose patterns are all levels of the database; a pattern without zeros is the dense
    matrix. The model is left as it was.
    """

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def losses(self, candidates: Sequence[Allocation], windows: slice = slice(None)) -> list[float]: ...


class Entry(Protocol):
    """One cached value, kept as a file where the run has a cache folder; a killed run finds what was written last."""

    def read(self) -> Any | None: ...

    def write(self, value: Any) -> None: ...

    def held(self) -> AbstractContextManager[None]: ...


class ModelView(Protocol):
    """Read-only questions to the model: sizes, weights, statistics of the inputs, curvature; all as it is now.

    `method` and `seed` are the run's own, `window` is the length of a calibration window. `pruned` walks the blocks as
    pruning would leave them, each once it is pruned; `reuse_prefix` says that a walk with this method went before, and
    leaves out the first blocks as far as they are as it left them. Traces are of the loss of the first calibration
    windows; `hessian_trace` has those of the norm weights too. `assembler` prunes every matrix to each of its levels,
    the blocks in front of it being dense or pruned to `inputs`, and judges candidates on further windows of the
    calibration text. `cached` belongs to this model, calibration and scope; so does `remembered`, which lasts as long
    as the process: scores before they are fitted to a budget. `log` puts facts (a trajectory) into the record.
    """

    method: Any
    seed: int
    weights_sha256: str | None

    @property
    def shapes(self) -> Mapping[Site, tuple[int, int]]: ...

    @property
    def blocks(self) -> tuple[tuple[Site, ...], ...]: ...

    @property
    def weights(self) -> Mapping[Site, Tensor]: ...

    @property
    def window(self) -> int: ...

    def observe(self, statistic: Statistic) -> Iterator[BlockView]: ...

    def pruned(self, method: Any, allocation: Allocation, *, reuse_prefix: bool = False) -> Iterator[BlockView]: ...

    def fisher_trace(self, windows: int) -> Mapping[Site, Trace]: ...

    def hessian_trace(self, windows: int, probes: int, draws: Draws) -> Mapping[Site, Trace]: ...

    def assembler(
        self,
        method: Any,
        levels: Mapping[Site, Sequence[Pattern]],
        *,
        inputs: Mapping[Site, Pattern] | None,
        windows: int,
        objective: Objective,
        database: Database,
    ) -> Assembler: ...

    def cached(self, purpose: str, settings: Mapping[str, Any]) -> Entry: ...

    def remembered(
        self, purpose: str, settings: Mapping[str, Any], compute: Callable[[], Any], *, calibrated: bool = True
    ) -> Any: ...

    def log(self, **facts: Any) -> None: ...


class Passage(NamedTuple):
    """Hidden states (N, L, D) of some windows in front of a block or a sub-layer and behind it, in float32.

    A sub-layer is measured across its own residual addition: behind it is in front of it plus what it adds.
    """

    unit: Unit
    before: Tensor
    behind: Tensor


class Gradients(Protocol):
    """One block's weights with the gradients of a loss, all (O, I), or (D,) for the weight of a norm; in float32.

    `squares` holds the mean over windows of the squared gradients of each window's own loss, if they were asked for.
    """

    index: int
    weights: Mapping[Site, Tensor]
    gradients: Mapping[Site, Tensor]
    squares: Mapping[Site, Tensor]

    def by_unit(self, part: Part, values: Mapping[Site, Tensor], *, absolute: bool = False) -> Mapping[Site, Tensor]:
        """Sums (units,) of values (O, I) over the rows or columns that each head or channel has of each matrix.

        Args:
            absolute: add up the absolute values of the sums of single rows or columns.
        """
        ...


Masks = Mapping[Part, Tensor]
"""For heads and channels (K, blocks, units), for blocks and sub-layers (K, blocks): factors, 1 where a unit stays.

Blocks are all those of the dense model."""

Question = Literal["nll", "kl", "distance"]
"""How far a cut model is from the dense one on a window: its mean negative log-likelihood and the mean KL divergence of
the dense distribution from its own, in nats per token, or the mean Euclidean distance of their logits."""


class StructureView(ModelView, Protocol):
    """What planners may ask, beside what allocators may; nothing is changed in the model.

    `windows` (N, L) are the calibration windows; `draw` gives further ones of the same text, always the same, of their
    length or another, `packed` ones of its documents one after the other, as many as it has. `units` are those of the
    blocks in scope, `writers` the matrices of each through which heads or channels write to the residual stream, by
    block; `sites_of` a block or a sub-layer are its matrices and norms, whose weights are `weights` (O, I) and `norms`
    (D,); `biases` (O,) are those that matrices in scope have. `hidden` passes over the calibration windows. Losses are
    those of each cut, or of each sample of masks, on each window (·, N), in float64 on the CPU; masks stand beside one
    another in a batch.
    `gradients` of the mean loss of windows come block by block, last block first; those of gates, `gate_gradients`, are
    (blocks, units) for heads and channels, (blocks,) for blocks and sub-layers.
    """

    @property
    def geometry(self) -> Geometry: ...

    @property
    def windows(self) -> Tensor: ...

    def draw(self, count: int, length: int | None = None) -> Tensor: ...

    def packed(self, count: int, length: int) -> Tensor: ...

    def units(self, part: Part) -> tuple[Unit, ...]: ...

    def writers(self, part: Part) -> Mapping[int, Site]: ...

    @property
    def biases(self) -> Mapping[Site, Tensor]: ...
    @property
    def norms(self) -> Mapping[Site, Tensor]: ...

    def sites_of(self, unit: Unit) -> tuple[Site, ...]: ...

    def hidden(self, part: Literal["block", "sublayer"]) -> Iterator[Passage]: ...

    def gradients(self, windows: Tensor, *, squares: bool = False) -> Iterator[Gradients]: ...

    def gate_gradients(self, windows: Tensor, parts: Sequence[Part]) -> Mapping[Part, Tensor]: ...

    def losses(self, cuts: Sequence[Cut], windows: Tensor, objective: Question = "nll") -> Tensor: ...

    def masked_losses(self, masks: Masks, windows: Tensor) -> Tensor: ...


@runtime_checkable
class LinearMethod(Protocol):
    """Weight and what was seen → pruned weight; what it may say beside that is in `component.MethodHooks`."""

    @property
    def statistic(self) -> Statistic | None: ...

    def prune(self, weight: Tensor, stats: ActivationStats, pattern: Pattern) -> Pruned: ...


@runtime_checkable
class ScoringMethod(LinearMethod, Protocol):
    """A LinearMethod whose mask keeps the weights (O, I) of the largest scores."""

    def score(self, weight: Tensor, stats: ActivationStats) -> Tensor: ...


@runtime_checkable
class GroupedMethod(LinearMethod, Protocol):
    """A LinearMethod that can prune matrices with the same inputs in one go, leaving it open if that was `ok`.

    `prepare` is told of what was seen before anything is pruned, so that work can start beside other work.
    """

    def prepare(self, stats: ActivationStats) -> None: ...

    def prune_together(
        self, weights: Sequence[Tensor], stats: ActivationStats, patterns: Sequence[Pattern]
    ) -> Sequence[Pruned]: ...


@runtime_checkable
class BlockMethod(Protocol):
    """Prunes a whole block; a LinearMethod is lifted to one that treats each linear alone."""

    def prune_block(self, block: BlockView, patterns: Mapping[Site, Pattern]) -> Mapping[Site, Pruned]: ...


@runtime_checkable
class Wrapper(BlockMethod, Protocol):
    """A method around another one, `behind` it, that decides."""

    @property
    def behind(self) -> Any: ...


def behind(method: Any) -> Any:
    """The method that decides, behind whatever is around it."""
    while isinstance(method, Wrapper):
        method = method.behind
    return method


@runtime_checkable
class Allocator(Protocol):
    """How much to remove where: site → pattern, with the budget as parameter-weighted mean."""

    def allocate(self, view: ModelView, budget: Budget) -> Allocation: ...


@runtime_checkable
class Planner(Protocol):
    """Which structures go (depth, width, experts), as data."""

    def plan(self, view: StructureView) -> Plan: ...
