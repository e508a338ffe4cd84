"""Read-only questions of planners: what passes through units, what their gates are worth, what a cut would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from harness.calibration.gradients import BlockGradients, gate_gradients, gradients
from harness.calibration.model_view import LiveModelView
from harness.calibration.passages import passages
from harness.calibration.trials import losses, masked_losses
from harness.core.geometry import Geometry
from harness.core.interfaces import Masks, Passage, Question
from harness.core.structure import SUBLAYERS, Cut, Part, Unit
from harness.models.geometry import of_config
from harness.models.units import sublayer_of
from harness.runtime.errors import Failure


class DecoderView(LiveModelView):
    """The model as it is now, restricted to the blocks in scope: a `StructureView`."""

    @cached_property
    def geometry(self) -> Geometry:
        """The sizes of the model."""
        return of_config(self._decoder.config.to_dict())

    @cached_property
    def windows(self) -> Tensor:
        """The calibration windows (N, L).

        Raises:
            Failure: the run has none.
        """
        if not self._batches:
            raise Failure("a planner asks for calibration windows, and the run has none.")
        return torch.cat(list(self._batches))

    def draw(self, count: int) -> Tensor:
        """Further windows (count, L) of the calibration text, always the same; without a text the calibration's own."""
        return self._draw(count) if self._draw else self.windows[:count]

    def units(self, part: Part) -> tuple[Unit, ...]:
        """The units of a part in the blocks in scope, in the order in which the model runs them."""
        return tuple(Unit(part, index, unit) for index in self._scope for unit in range(self.geometry.count(part)))

    @property
    def norms(self) -> dict[str, Tensor]:
        """The weights (D,) of the norms of the blocks in scope."""
        return {
            self._decoder.site(index, name): weight for index in self._scope for name, weight in self._norms_of(index)
        }

    def _norms_of(self, index: int) -> list[tuple[str, Tensor]]:
        named = self._decoder.block(index).named_parameters()
        return [(name.removesuffix(".weight"), p) for name, p in named if p.dim() == 1 and name.endswith(".weight")]

    def sites_of(self, unit: Unit) -> tuple[str, ...]:
        """The matrices and norms that a block has, or that go with a sub-layer."""
        decoder, index = self._decoder, unit.block
        names = [*decoder.anatomy.linears_left(decoder.cut, index), *(name for name, _ in self._norms_of(index))]
        if unit.part in SUBLAYERS:
            names = [name for name in names if sublayer_of(decoder, index, name) == unit.part]
        return tuple(decoder.site(index, name) for name in names)

    def hidden(self, part: Literal["block", "sublayer"]) -> Iterator[Passage]:
        """Hidden states in front of each block or sub-layer in scope and behind it, over the calibration windows."""
        sublayers, parallel = part == "sublayer", self.geometry.parallel
        return passages(self._decoder, self._batches, self._scope, sublayers=sublayers, parallel=parallel)

    def gradients(self, windows: Tensor, *, squares: bool = False) -> Iterator[BlockGradients]:
        """Weights with the gradients of the mean loss of windows (N, L), block by block, the last one first."""
        return gradients(self._decoder, windows, self._scope, squares=squares)

    def gate_gradients(self, windows: Tensor, parts: Sequence[Part]) -> dict[Part, Tensor]:
        """Derivatives of the mean loss of windows (N, L) with respect to a factor in front of each unit, by part.

        Raises:
            Refusal: units of a part cannot go alone in this family.
        """
        return gate_gradients(self._decoder, self.geometry, windows, self._scope, parts)

    def losses(self, cuts: Sequence[Cut], windows: Tensor, objective: Question = "nll") -> Tensor:
        """The loss (C, N) of each cut on each window (N, L); nothing is cut."""
        return losses(self._decoder, cuts, windows, objective)

    def masked_losses(self, masks: Masks, windows: Tensor) -> Tensor:
        """The loss (K, N) of each sample of masks on each window (N, L), all samples in one batch.

        Raises:
            Refusal: units of a part cannot go alone in this family.
        """
        return masked_losses(self._decoder, self.geometry, masks, windows)
