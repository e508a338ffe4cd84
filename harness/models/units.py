"""Where the units of a decoder lie in its matrices, and which cuts it can take.

Heads and channels are numbered as in the dense block; their rows and columns are those of the block as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.core.structure import SUBLAYERS, Cut, Part, Unit
from harness.models.decoder import Decoder
from harness.runtime.errors import Refusal

WHOLE: dict[str, Part] = {"head": "attention", "channel": "mlp"}
"""The sub-layer that goes with the last unit of a part."""


class Heads(NamedTuple):
    """The key/value groups of one block, the query heads of each, and the size of a head."""

    groups: int
    queries: int
    size: int


class Lines(NamedTuple):
    """Lines left of a linear: rows of its weight and bias, or columns of its weight."""

    name: str
    rows: Tensor | None = None
    columns: Tensor | None = None


def head_size(config: Any) -> int:
    """The size of a head, which some configurations name and others leave to hidden size and number of heads."""
    named = getattr(config, "head_dim", None)
    return int(named or config.hidden_size // config.num_attention_heads)


def heads(decoder: Decoder, index: int) -> Heads:
    """The heads of a block that has attention, as it is."""
    block, layout = decoder.block(index), decoder.anatomy
    size = head_size(decoder.config)
    queries = _linear(block, layout.attention_output).in_features // size
    readers = layout.attention[0]
    if len(readers) > 1:
        groups = _linear(block, readers[1]).out_features // size
    else:
        groups = (_linear(block, readers[0]).out_features // size - queries) // 2
    return Heads(groups, queries // groups, size)


def channels(decoder: Decoder, index: int) -> int:
    """The hidden units of a feed-forward part, as it is."""
    return _linear(decoder.block(index), decoder.anatomy.mlp_output).in_features


def dense_count(decoder: Decoder, part: str, index: int) -> int:
    """How many heads or channels a block had before anything was cut from it; it has the sub-layer yet."""
    here = heads(decoder, index).groups if part == "head" else channels(decoder, index)
    return here + len(decoder.cut.gone(part, index))  # type: ignore[arg-type]


def settled(decoder: Decoder, cut: Cut) -> Cut:
    """All that is gone behind a cut: what was gone before, and sub-layers of which no head or channel is left.

    Such a sub-layer goes as one that is named does: with its norm and biases, it adds nothing.

    Raises:
        Refusal: the dense model has no such unit, its family cannot lose one alone, or no block would be left.
    """
    for unit in cut.units:
        _check(decoder, unit)
    total = decoder.cut | cut
    emptied = {
        Unit(sublayer, index)
        for index in decoder.indices
        for part, sublayer in WHOLE.items()
        if (gone := total.gone(part, index)) and len(gone) == dense_count(decoder, part, index)  # type: ignore[arg-type]
    }
    total |= Cut(frozenset(emptied))
    if len(total.blocks) == decoder.dense_blocks:
        raise Refusal(f"no block would be left of the {decoder.dense_blocks} that the model has.")
    return total


def _check(decoder: Decoder, unit: Unit) -> None:
    last = decoder.dense_blocks - 1
    if not 0 <= unit.block <= last:
        raise Refusal(f"block {unit.block} cannot go: the model has the blocks 0-{last}.")
    if unit.part == "expert":
        raise Refusal(f"expert {unit.index} of block {unit.block} cannot go: the model is no mixture of experts.")
    if unit.part not in WHOLE:
        return
    check_part(decoder, unit.part)
    if unit.block in decoder.cut.blocks or decoder.cut.gone(WHOLE[unit.part], unit.block):
        return
    count = dense_count(decoder, unit.part, unit.block)
    if not 0 <= unit.index < count:
        raise Refusal(
            f"{unit.part} {unit.index} of block {unit.block} cannot go: the block has the {unit.part}s 0-{count - 1}."
        )


def check_part(decoder: Decoder, part: str) -> None:
    """Refuse units that cannot go alone.

    Raises:
        Refusal: the family normalizes all heads together, so that each is another one without its neighbours.
    """
    if part == "head" and not decoder.anatomy.heads_alone:
        raise Refusal(f"heads cannot go one by one in the family '{_family(decoder)}': a norm spans all of them.")


def _family(decoder: Decoder) -> str:
    return str(getattr(decoder.config, "model_type", "?"))


def changed(decoder: Decoder, total: Cut, index: int, part: str) -> Tensor | None:
    """Positions, within the part as it is, of what a cut leaves of a block's heads or channels; None if it is all."""
    before = decoder.cut.gone(part, index)  # type: ignore[arg-type]
    after = total.gone(part, index)  # type: ignore[arg-type]
    if len(before) == len(after):
        return None
    earlier, gone = set(before), set(after)
    there = [unit for unit in range(dense_count(decoder, part, index)) if unit not in earlier]
    return torch.tensor([position for position, unit in enumerate(there) if unit not in gone], device="cpu")


def head_lines(decoder: Decoder, index: int, kept: Tensor) -> Iterator[Lines]:
    """The lines of attention's matrices that the kept key/value groups have."""
    layout, (groups, queries, size) = decoder.anatomy, heads(decoder, index)
    wide = queries * size
    of_queries, of_keys = _runs(kept, wide), _runs(kept, size)
    readers = layout.attention[0]
    if layout.order == "separate":
        yield from (Lines(name, rows) for name, rows in zip(readers, (of_queries, of_keys, of_keys), strict=True))
    elif layout.order == "parts":
        starts = (0, groups * wide, groups * (wide + size))
        parts = zip(starts, (of_queries, of_keys, of_keys), strict=True)
        yield Lines(readers[0], torch.cat([start + rows for start, rows in parts]))
    else:
        yield Lines(readers[0], _runs(kept, wide + 2 * size))
    yield Lines(layout.attention_output, columns=of_queries)


def channel_lines(decoder: Decoder, index: int, kept: Tensor) -> Iterator[Lines]:
    """The lines of the feed-forward matrices that the kept channels have."""
    layout = decoder.anatomy
    readers = layout.mlp[0]
    halves = layout.gated and len(readers) == 1
    rows = torch.cat([kept, channels(decoder, index) + kept]) if halves else kept
    yield from (Lines(name, rows) for name in readers)
    yield Lines(layout.mlp_output, columns=kept)


def norms_of(decoder: Decoder, index: int, sublayer: str) -> list[str]:
    """The norms that a block has and that go with a sub-layer."""
    block = decoder.block(index)
    attention, mlp = ([name for name in names if hasattr(block, name)] for names in decoder.anatomy.norms)
    mine, other = (attention, mlp) if sublayer == SUBLAYERS[0] else (mlp, attention)
    return mine if other else []


def sublayer_of(decoder: Decoder, index: int, name: str) -> str | None:
    """The sub-layer with which a matrix or norm of a block goes, by its name there; None: with the block alone."""
    layout = decoder.anatomy
    for sublayer, groups, part in zip(SUBLAYERS, (layout.attention, layout.mlp), layout.parts, strict=True):
        own = {one for group in groups for one in group} | set(norms_of(decoder, index, sublayer))
        if name in own or (part and name.startswith(f"{part}.")):
            return sublayer
    return None


def _runs(starts: Iterable[int] | Tensor, size: int) -> Tensor:
    """The numbers of all lines of units that have so many each."""
    return (torch.as_tensor(starts, device="cpu")[:, None] * size + torch.arange(size, device="cpu")).flatten()


def _linear(block: nn.Module, name: str) -> nn.Linear:
    linear = block.get_submodule(name)
    assert isinstance(linear, nn.Linear), f"{name} is a {type(linear).__name__}"
    return linear
