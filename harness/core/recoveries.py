"""The protocols of recoveries, which train a pruned model, and of conversions, which put another in its place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from harness.core.interfaces import Site


class Adapter(NamedTuple):
    """What is trained of one matrix: tensors in float32 by name, and what they add to its weight (O, I).

    `delta(weight, parts)` (O, I) is in float32 and has gradients in `parts`. With the parts as they are here, where
    training begins, it is zero. `merges` is what is added in the end where that is something else (a masked product).
    """

    parts: Mapping[str, Tensor]
    delta: Callable[[Tensor, Mapping[str, Tensor]], Tensor]
    merges: Callable[[Tensor, Mapping[str, Tensor]], Tensor] | None = None


@runtime_checkable
class Recovery(Protocol):
    """What is trained of a pruned model, as data; `harness/training` has the loop that every recovery shares.

    It inherits its settings from `core.training.Training`. `keeps_zeros` promises that what is merged is zero wherever
    a weight was pruned. `adapter` is given the weight (O, I) and what may train of it: the mask `kept` of pruning, or
    that of `Scored`; None leaves the matrix as it is. With `vectors = True` it is asked of the norms and biases (n,) of
    blocks too, of which everything may train. `trained` is the number of trained values of a matrix of which a share is
    kept.

    It may be `Scored` and a `Selector` too. One that is not trained so has `heal` instead, see `WholeRecovery`.
    """

    @property
    def keeps_zeros(self) -> bool: ...

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter | None: ...

    def trained(self, outputs: int, inputs: int, kept: float) -> float: ...


class ScoreView(Protocol):
    """The pruned model before it is trained: weights and masks (O, I) by site, and gradients of the training loss.

    `gradients` is that of the mean loss of so many training windows, in float32, at pruned weights too.
    """

    @property
    def weights(self) -> Mapping[Site, Tensor]: ...

    @property
    def kept(self) -> Mapping[Site, Tensor]: ...

    @property
    def generator(self) -> torch.Generator: ...

    def gradients(self, windows: int) -> Mapping[Site, Tensor]: ...


@runtime_checkable
class Scored(Protocol):
    """Chooses the weights that train, over the whole model at once: site → mask (O, I), one for every site."""

    def supports(self, view: ScoreView) -> Mapping[Site, Tensor]: ...


class Trial(Protocol):
    """What a selector may ask in front of a step: the adapted blocks, random numbers, losses on training windows.

    `losses` multiplies what adapters add by a strength in some blocks (by index; 1 in all others), one loss in nats per
    token for each such choice, all on the same windows.
    """

    @property
    def blocks(self) -> tuple[int, ...]: ...

    @property
    def generator(self) -> Random: ...

    def losses(self, strengths: Sequence[Mapping[int, float]]) -> list[float]: ...


@runtime_checkable
class Selector(Protocol):
    """Chooses the blocks whose adapters train in a step; the others work and rest.

    `state` is None in front of the first step and then whatever was given back, as JSON has it: it is part of
    checkpoints.
    """

    def select(self, step: int, state: Any, trial: Trial) -> tuple[Collection[int], Any]: ...


class RecoveryView(Protocol):
    """The pruned model, for a recovery that has it to itself: a decoder (`models/decoder.py`), its masks and inputs.

    `kept` holds the mask (O, I) of every matrix in scope, False where a weight is gone; `windows` are the calibration
    windows, batches (B, L). `updates` puts low-rank maps in place of blocks and sub-layers that are gone and gives
    their tensors by name; `train` trains adapters of such tensors on the text of a recovery that has `Training`'s
    settings, and merges them. `log` puts facts into the record.
    """

    @property
    def decoder(self) -> Any: ...

    @property
    def tokenizer(self) -> Any: ...

    @property
    def kept(self) -> Mapping[Site, Tensor]: ...

    @property
    def windows(self) -> Sequence[Tensor]: ...

    @property
    def generator(self) -> Random: ...

    def updates(self, rank: int) -> Mapping[str, Tensor]: ...

    def train(self, adapters: Mapping[str, Adapter]) -> None: ...

    def log(self, **facts: Any) -> None: ...


@runtime_checkable
class WholeRecovery(Protocol):
    """A recovery with another loop than the harness's: it changes the decoder's model in place.

    It leaves the zeros outside `kept` alone unless it says `keeps_zeros = False`, and the model as plain as it came: no
    hooks, no modules of its own but those of `updates`, `requires_grad` as before. One that looks at calibration
    windows says `needs_calibration = True`.
    """

    def heal(self, view: RecoveryView) -> None: ...


class ConversionView(Protocol):
    """What a conversion may use beside the decoder: calibration windows (B, L), and the blocks in scope."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def windows(self) -> Sequence[Tensor]: ...

    @property
    def scope(self) -> Sequence[int]: ...

    @property
    def generator(self) -> Random: ...


@runtime_checkable
class Conversion(Protocol):
    """Makes another model out of a decoder's, which may be of another class.

    It gives a decoder with the new model and its anatomy; the old one is not used afterwards, and may lose its weights
    to it. One that looks at no calibration window says `needs_calibration = False`.
    """

    def convert(self, decoder: Any, view: ConversionView) -> Any: ...
