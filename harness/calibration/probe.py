"""Read-only questions to the model that allocators and planners may ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from harness.calibration.stream import StreamedBlock, stream
from harness.core.statistic import Statistic
from harness.models.anatomy import Anatomy


class ModelProbe:
    """The model as it is now, restricted to the blocks in scope: a `Probe`."""

    def __init__(self, model: nn.Module, anatomy: Anatomy, batches: Sequence[Tensor], scope: range) -> None:
        self._model, self._anatomy, self._batches, self._scope = model, anatomy, batches, scope

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """The sites of each block in scope."""
        return tuple(tuple(self._anatomy.block_linears(self._model, index)) for index in self._scope)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """Site → (outputs, inputs), over the blocks in scope."""
        found: dict[str, tuple[int, int]] = {}
        for index in self._scope:
            for site, linear in self._anatomy.block_linears(self._model, index).items():
                found[site] = (linear.out_features, linear.in_features)
        return found

    def observe(self, statistic: Statistic) -> Iterator[StreamedBlock]:
        """The blocks in scope over the calibration windows, nothing being changed."""
        return stream(self._model, self._anatomy, self._batches, self._scope, edited=False, label="probe")
