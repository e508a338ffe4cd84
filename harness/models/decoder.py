"""A loaded decoder as one value: its modules, where their matrices live, and what of the dense model is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from torch import nn

from harness.core.interfaces import FeedForward
from harness.core.structure import UNCUT, Cut
from harness.models.anatomy import COVERAGE, FAMILIES, Anatomy, no_layout
from harness.models.conv1d import to_linears
from harness.models.fitting import check_layout, check_linears, check_lists
from harness.models.skipped import LowRank
from harness.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Decoder:
    """A model, the layout of its family, and what was cut from it.

    Blocks, and with them sites, are numbered as in the dense model: behind a cut of blocks 2 and 5 the matrices of the
    last of 8 blocks are still `model.layers.7.…`, though the module list has six.
    """

    model: PreTrainedModel
    anatomy: Anatomy
    cut: Cut = UNCUT

    @property
    def config(self) -> Any:
        """The model's Hugging Face configuration."""
        return self.model.config

    @property
    def modules(self) -> nn.ModuleList:
        """The blocks that are left, first to last."""
        blocks = self.model.get_submodule(self.anatomy.blocks)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    @cached_property
    def dense_blocks(self) -> int:
        """How many blocks the dense model has."""
        return len(self.modules) + len(self.cut.blocks)

    @cached_property
    def indices(self) -> tuple[int, ...]:
        """The numbers of the blocks that are left, ascending."""
        gone = set(self.cut.blocks)
        return tuple(index for index in range(self.dense_blocks) if index not in gone)

    def before(self, scope: Sequence[int]) -> tuple[int, ...]:
        """The blocks that are left in front of those of a scope."""
        return tuple(index for index in self.indices if scope and index < scope[0])

    def until(self, scope: Sequence[int], begin: int = 0) -> tuple[int, ...]:
        """The blocks that are left from `begin` to the last one of a scope."""
        return tuple(index for index in self.indices if scope and begin <= index <= scope[-1])

    def behind(self, scope: Sequence[int]) -> tuple[int, ...]:
        """The blocks that are left behind those of a scope."""
        return tuple(index for index in self.indices if not scope or index > scope[-1])

    def position(self, index: int) -> int:
        """Where a block that is left stands in the module list."""
        return self._positions[index]

    @cached_property
    def _positions(self) -> Mapping[int, int]:
        return {index: position for position, index in enumerate(self.indices)}

    def block(self, index: int) -> nn.Module:
        """One block."""
        return self.modules[self.position(index)]

    def linears(self, index: int) -> dict[str, nn.Linear]:
        """Site → linear of one block, in the order in which it runs them; what was cut as a whole is left out."""
        block = self.block(index)
        found = {}
        for name in self.anatomy.linears_left(self.cut, index):
            linear = block.get_submodule(name)
            assert isinstance(linear, nn.Linear), f"{name} is a {type(linear).__name__}"
            found[self.site(index, name)] = linear
        return found

    def inputs(self, index: int) -> tuple[tuple[str, ...], ...]:
        """The sites of one block, those that read the same input together, in the order in which it runs them."""
        left = set(self.anatomy.linears_left(self.cut, index))
        groups = (tuple(self.site(index, name) for name in group if name in left) for group in self.anatomy.inputs)
        return tuple(group for group in groups if group)

    def site(self, index: int, name: str = "") -> str:
        """The full name of something in one block, by its name there; of the block itself without one."""
        return f"{self.anatomy.blocks}.{index}.{name}".removesuffix(".")

    def feed_forward(self, index: int) -> FeedForward:
        """The feed-forward part of one block; one without matrices where it is gone."""
        if self.cut.gone("mlp", index):
            return FeedForward((), "", self.anatomy.gated, nn.Identity(), {})
        plain = self.anatomy.plain_activation
        activation = plain() if plain else self.block(index).get_submodule(self.anatomy.activation)
        readers, (down,) = (tuple(self.site(index, name) for name in group) for group in self.anatomy.mlp)
        linears = self.linears(index)
        biases = {site: linears[site].bias for site in (*readers, down) if linears[site].bias is not None}
        return FeedForward(readers, down, self.anatomy.gated, activation, biases)


_CUTS: WeakKeyDictionary[nn.Module, Cut] = WeakKeyDictionary()
"""Cuts made in models."""


def remember_cut(decoder: Decoder) -> None:
    """Let `decoder_of` know what was cut from a model."""
    _CUTS[decoder.model] = decoder.cut


def decoder_of(model: nn.Module) -> Decoder:
    """The model with the layout of its family, checked against its weights, and what was cut from it before.

    Matrices that the family keeps transposed become ordinary linears.

    Raises:
        UserError: unknown family, the layout does not fit the model (`fitting.py`), or it names less than 99 % of the
            blocks' matrix weights.
    """
    config: Any = model.config
    family = getattr(config, "model_type", "?")
    if family not in FAMILIES:
        raise no_layout(family)
    decoder = Decoder(cast("PreTrainedModel", model), FAMILIES[family], _CUTS.get(model, UNCUT))
    check_lists(model, family, decoder.anatomy)
    if decoder.anatomy.conv1d:
        to_linears(model)
    check_linears(decoder, family)
    for index in decoder.indices:
        matrices = sum(p.numel() for p in decoder.block(index).parameters() if p.dim() >= 2)
        matrices -= sum(
            p.numel() for one in decoder.block(index).modules() if isinstance(one, LowRank) for p in one.parameters()
        )
        named = sum(linear.weight.numel() for linear in decoder.linears(index).values())
        if named < COVERAGE * matrices:
            raise UserError(
                f"the layout of family '{family}' names {named / matrices:.1%} of the weights of block {index}; "
                f"at least {COVERAGE:.0%} is needed (fused or expert weights are not covered)."
            )
    check_layout(decoder, family)
    return decoder
