"""Optional hooks of a component, beside what its kind has to do, each with its default.

`@component` gives a class the defaults of the hooks that it leaves out, so that whoever asks reads a plain attribute;
`completed` does the same for a class that was not announced. The required parts of a kind are in `interfaces.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from harness.core.costs import Cost, Work, observing
from harness.core.geometry import Geometry
from harness.core.pattern import Pattern
from harness.core.statistic import Statistic, gram

T = TypeVar("T", bound=type)


class Component(Protocol):
    """Hooks of components of every kind."""

    revision: int = 1
    """Raised when its numbers change on purpose; records of another revision are stale."""

    def identity(self) -> Mapping[str, Any]:
        """Values that stand for some of its settings in a run's identity: the content of a file for its path."""
        return {}

    def check(self) -> None:
        """Look at what its settings name, before anything runs.

        Raises:
            UserError: it cannot be used.
        """

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Its cost at a point, counted from the model's sizes."""
        return Cost()


class MethodHooks(Component, Protocol):
    """Hooks of a method."""

    statistic: Statistic | None = gram
    """Statistic observed; None: nothing, so no block runs for it. The default is for methods of whole blocks, which
    need not say it; others have to."""
    weight_statistic: Any = None
    """Statistic kept of a weight where points share a model, in place of what is observed (`core/histogram.py`)."""
    beside_dense: bool = False
    """True if it compares the pruned model with the dense one, and so gets blocks that are a `ReferencedView`."""

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        """Why it cannot give a matrix (O, I) this pattern; None where it can."""
        return None

    def for_part(self, part: Literal["attention", "mlp"]) -> Any:
        """The method for the matrices of one part of a block."""
        return self

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """By what it observes, see `observing`."""
        return observing(self.statistic, geometry, work)


class AllocatorHooks(Component, Protocol):
    """Hooks of an allocator."""

    needs_calibration: bool = True
    """True if it looks at the inputs of a matrix."""
    uses_cache: bool = False
    """True if it keeps values in the cache folder (`Probe.cached`)."""
    asks_for_traces: bool = False
    """True if it asks for traces of curvature, whose own revision is then part of a run's identity."""
    levels: tuple[int, ...] = ()
    """The levels n of a mixed n:M budget that it may use; none: all."""

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """One pass over the calibration windows, unless it looks at none."""
        return Cost(forwards=work.tokens if self.needs_calibration else 0)


class PlannerHooks(Component, Protocol):
    """Hooks of a planner."""

    needs_calibration: bool = True
    """True if it looks at calibration windows."""
    uses_cache: bool = False
    """True if it keeps values in the cache folder (`StructureView.cached`)."""

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """One pass over the calibration windows, unless it looks at none."""
        return Cost(forwards=work.tokens if self.needs_calibration else 0)


class ConversionHooks(Component, Protocol):
    """Hooks of a conversion."""

    needs_calibration: bool = True
    """True if it looks at calibration windows."""


class RecoveryHooks(Component, Protocol):
    """Hooks of a recovery."""

    needs_calibration: bool = False
    """True if it looks at calibration windows."""
    keeps_zeros: bool = True
    """True if it leaves the zeros that pruning made; one that the shared loop trains has to say it."""

    vectors: bool = False
    """True if it adapts norms and biases (n,) of the blocks in scope too."""

    leaves_plain: bool = True
    """True if a plain checkpoint of the family holds what it leaves."""

    def trials(self, steps: int) -> int:
        """Windows that it sends forward to choose what trains, over so many steps."""
        return 0


class EvaluatorHooks(Component, Protocol):
    """Hooks of an evaluator."""

    corpus: str | None = None
    """The text that it reads, of which it reads the `split`; None: its data are its own, see `data_hash`."""
    split: str = ""
    measures_anew: bool = False
    """True if its values are of the moment, as seconds are, so that no other point's are taken for them."""
    needs_resident: bool = False
    """True if the model has to lie on its device as a whole."""

    def data_hash(self) -> str:
        """The sha256 of the data of an evaluator that reads no corpus."""
        return ""

    def tokens(self, tokenizer: Any, context: Any) -> Tensor | None:
        """The windows (N, L) that will be scored, for a look at them before a model is loaded."""
        return None

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """256 windows, where it does not say it."""
        return Cost(forwards=256 * work.window)


HOOKS: dict[str, type] = {
    "method": MethodHooks,
    "allocator": AllocatorHooks,
    "planner": PlannerHooks,
    "conversion": ConversionHooks,
    "recovery": RecoveryHooks,
    "evaluator": EvaluatorHooks,
}


def hooks(kind: str) -> dict[str, Any]:
    """The optional hooks of a kind with their defaults, by name."""
    bases = [base for base in reversed(HOOKS[kind].__mro__) if base.__module__ == __name__]
    return {name: value for base in bases for name, value in vars(base).items() if not name.startswith("_")}


def completed(kind: str, cls: T) -> T:
    """The class, with the defaults of those optional hooks of its kind that it lacks; its settings stay."""
    settings = {one.name for one in fields(cls)} if is_dataclass(cls) else set()
    for name, default in hooks(kind).items():
        if not hasattr(cls, name) and name not in settings:
            setattr(cls, name, default)
    return cls
