"""Constants in the residual stream, in place of blocks and sub-layers that are gone: biases of what writes to it.

Behind a block that is gone the stream is that behind the block in front of it, so a constant there is a bias of that
block's feed-forward part. D is the hidden size.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from harness.core.structure import SUBLAYERS, Part, Unit
from harness.models.decoder import Decoder
from harness.models.skipped import Skipped
from harness.runtime.errors import Refusal


def add_shift(decoder: Decoder, unit: Unit, shift: Tensor) -> None:
    """Let the model add a constant (D,) where a block or a sub-layer was.

    Args:
        decoder: the decoder without the unit.

    Raises:
        Refusal: the unit is there, or nothing that is left can hold the constant.
    """
    index, sublayer = place_of(decoder, unit)
    part = decoder.anatomy.parts[SUBLAYERS.index(sublayer)]
    last = decoder.anatomy.attention_output if sublayer == "attention" else decoder.anatomy.mlp_output
    block, like = decoder.block(index), next(decoder.model.parameters())
    if decoder.cut.gone(sublayer, index):
        stub: Any = block.get_submodule(part or last)
        assert isinstance(stub, Skipped)
        stub.add(_sum(stub.constant, shift, like))
        return
    layout = decoder.anatomy
    key, value = layout.norm_in_stream or ("", None)
    if layout.norms_behind or (key and getattr(decoder.config, key, None) == value):
        raise Refusal(
            f"nothing can stand in for {unit.part} {unit.block}: the family '{decoder.config.model_type}' norms what "
            f"block {index} in front of it adds, so that no bias there is a constant in the residual stream."
        )
    linear: Any = block.get_submodule(last)
    linear.bias = nn.Parameter(_sum(linear.bias, shift, like), requires_grad=False)


def place_of(decoder: Decoder, unit: Unit) -> tuple[int, Part]:
    """The block and the sub-layer through which a constant reaches the place of a unit."""
    if unit.part in SUBLAYERS and decoder.cut.gone(unit.part, unit.block):
        return unit.block, unit.part
    if unit.block not in decoder.cut.blocks:
        raise Refusal(f"nothing can stand in for {unit.part} {unit.block}, which stays.")
    in_front = [index for index in decoder.indices if index < unit.block]
    if not in_front:
        raise Refusal(
            f"nothing can stand in for {unit.part} {unit.block}: no block is left in front of it whose bias could be "
            "the constant; keep the first block."
        )
    return in_front[-1], SUBLAYERS[1]


def _sum(before: Tensor | None, shift: Tensor, like: Tensor) -> Tensor:
    """A bias (D,) with a constant added to it in float32 at least, in the dtype and on the device of the model."""
    if before is not None:
        shift = before.to(shift) + shift
    return shift.to(like.device, like.dtype, copy=True)
