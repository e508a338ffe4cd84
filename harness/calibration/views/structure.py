"""Read-only questions of planners: what passes through units, what their gates are worth, what a cut would cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from harness.calibration.derivatives.gradients import BlockGradients, gate_gradients, gradients
from harness.calibration.views.model import LiveModelView
from harness.calibration.views.passages import passages
from harness.calibration.views.trials import losses, masked_losses
from harness.core.geometry import Geometry
from harness.core.interfaces import Masks, Passage, Question
from harness.core.structure import SUBLAYERS, Cut, Part, Unit
from harness.models.geometry import of_config
from harness.models.units import WHOLE, sublayer_of
from harness.models.written import dense_config
from harness.runtime.errors import Failure


class DecoderView(LiveModelView):
    """The model as it is now, restricted to the blocks in scope: a `StructureView`."""

    @cached_property
    def geometry(self) -> Geometry:
        """The sizes of the dense model."""
        return of_config({**self._decoder.config.to_dict(), **dense_config(self._decoder)})

    @cached_property
    def windows(self) -> Tensor:
        """The calibration windows (N, L).

        Raises:
            Failure: the run has none.
        """
        if not self._batches:
            raise Failure("a planner asks for calibration windows, and the run has none.")
        return torch.cat(list(self._batches))

    def draw(self, count: int, length: int | None = None) -> Tensor:
        """Further windows (count, L) of the calibration text, always the same; without a text the calibration's own.

        Args:
            length: their L, where it is not that of the calibration windows.
        """
        if self._draw is None:
            return self.windows[:count, :length]
        return self._draw(count) if length is None else self._draw(count, length)

    def packed(self, count: int, length: int) -> Tensor:
        """Windows (count, L) of the documents of the calibration text, each with its own beginning of text, one after
        the other; fewer where the text ends. Without a text they are those of `draw`."""
        return self._pack(count, length) if self._pack else self.draw(count, length)

    def units(self, part: Part) -> tuple[Unit, ...]:
        """The units of a part in the blocks in scope, in the order in which the model runs them."""
        return tuple(Unit(part, index, unit) for index in self._scope for unit in range(self.geometry.count(part)))

    def writers(self, part: Part) -> dict[int, str]:
        """The matrices through which the heads or channels of the blocks in scope write to the residual stream."""
        layout, cut = self._decoder.anatomy, self._decoder.cut
        name = layout.attention_output if part == "head" else layout.mlp_output
        having = (index for index in self._scope if not cut.gone(WHOLE[part], index))
        return {index: self._decoder.site(index, name) for index in having}

    @property
    def biases(self) -> dict[str, Tensor]:
        """Site → bias (O,), over the matrices of the blocks in scope that have one."""
        return {site: linear.bias.data for site, linear in self._linears.items() if linear.bias is not None}

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
