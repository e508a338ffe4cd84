"""Trying a structural edit: gates at the inputs of the matrices that write to the residual stream. Nothing is cut.

The logits are those of the cut model, to the bit: what a head or a channel would add is multiplied by 0 first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.structure import SUBLAYERS, Cut, Part, Unit
from harness.models.decoder import Decoder
from harness.models.fused import Replacement, patched
from harness.models.skipped import nothing
from harness.models.units import changed, channel_lines, head_lines, norms_of, settled

NO_SHIFTS: Mapping[Unit, Tensor] = {}


@contextmanager
def gated(decoder: Decoder, cut: Cut, shifts: Mapping[Unit, Tensor] = NO_SHIFTS) -> Iterator[None]:
    """While inside, the model computes what it would behind the cut.

    Blocks that are gone pass the residual stream, sub-layers that are gone add nothing and have no norm, and heads and
    channels that are gone are zeros where they would be read. Meant for forwards without a cache.

    Args:
        shifts: constants (D,) that blocks and sub-layers of the cut add.

    Raises:
        Refusal: the model cannot take the cut (`units.settled`).
    """
    total = settled(decoder, cut)
    with ExitStack() as stack:
        stack.enter_context(patched(_replacements(decoder, total, shifts)))
        for linear, kept in _gates(decoder, total):
            handle = linear.register_forward_pre_hook(partial(_multiplied, kept))
            stack.callback(handle.remove)
        yield


def _replacements(decoder: Decoder, total: Cut, shifts: Mapping[Unit, Tensor]) -> Iterator[Replacement]:
    """Replacements of blocks, sub-layers and norms that are gone."""
    gone = set(total.blocks)
    for index in decoder.indices:
        block = decoder.block(index)
        if index in gone:
            added = _sum(shifts, index, ("block", *SUBLAYERS))
            yield f"block {index}", block, "forward", partial(_pass_block, added, tuples=decoder.anatomy.tuples)
            continue
        for sublayer, part in zip(SUBLAYERS, decoder.anatomy.parts, strict=True):
            if not total.gone(sublayer, index) or decoder.cut.gone(sublayer, index):
                continue
            added = _sum(shifts, index, (sublayer,))
            for name in norms_of(decoder, index, sublayer):
                yield f"{name} {index}", block.get_submodule(name), "forward", _pass
            if part:
                give = _skip_attention if sublayer == "attention" else _skip
                yield f"{sublayer} {index}", block.get_submodule(part), "forward", partial(give, added)
            else:
                for name in decoder.anatomy.mlp[0]:
                    yield f"{name} {index}", block.get_submodule(name), "forward", _pass
                yield (
                    f"{sublayer} {index}",
                    block.get_submodule(decoder.anatomy.mlp_output),
                    "forward",
                    partial(_skip, added),
                )


def _gates(decoder: Decoder, total: Cut) -> Iterator[tuple[nn.Module, Tensor]]:
    """The linears of which some inputs are gone, and the mask (I,) of the others."""
    lines: dict[str, Callable[..., Any]] = {"head": head_lines, "channel": channel_lines}
    for index in decoder.indices:
        for part, of in lines.items():
            if index not in total.blocks and (kept := changed(decoder, total, index, part)) is not None:
                *_, (name, _, columns) = of(decoder, index, kept)
                linear: Any = decoder.block(index).get_submodule(name)
                mask = torch.zeros(linear.in_features, dtype=linear.weight.dtype)
                mask[columns] = 1.0
                yield linear, mask.to(next(decoder.model.parameters()).device)


def _multiplied(kept: Tensor, _: nn.Module, positional: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (positional[0] * kept.to(positional[0].device),)


def _pass(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
    return hidden_states


def _sum(shifts: Mapping[Unit, Tensor], index: int, parts: Sequence[Part]) -> Tensor | None:
    """The constant (D,) in place of some parts of a block; None without any."""
    found = [shifts[Unit(part, index)] for part in parts if Unit(part, index) in shifts]
    return torch.stack(found).sum(dim=0) if found else None


def _shifted(hidden_states: Tensor, added: Tensor | None) -> Tensor:
    return hidden_states if added is None else hidden_states + added.to(hidden_states)


def _pass_block(added: Tensor | None, hidden_states: Tensor, *_: Any, tuples: bool, **__: Any) -> Any:
    behind = _shifted(hidden_states, added)
    return (behind, None) if tuples else behind


def _skip(added: Tensor | None, hidden_states: Tensor, residual: Tensor | None = None, **_: Any) -> Tensor:
    return _shifted(nothing(hidden_states, residual), added)


def _skip_attention(
    added: Tensor | None, hidden_states: Tensor, residual: Tensor | None = None, **_: Any
) -> tuple[Tensor, None]:
    return _shifted(nothing(hidden_states, residual), added), None
