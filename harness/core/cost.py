"""Sizes of a model behind a structural edit, counted without a model; and how far to go down a list of units.

T tokens. Multiplications are counted as LLM-Pruner's `test_speedup.py` counts them (Ma et al. 2023, arXiv 2305.11627,
Table 3): products of linears and head, attention's two products over all pairs of positions, one for each of its
weights, four for every rotated pair (two an element), two an element of a norm, one an element of an activation;
embeddings, biases and sums are free.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

from harness.core.geometry import Geometry
from harness.core.structure import SUBLAYERS, UNCUT, Cut, Part, Unit
from harness.runtime.errors import Refusal

TOKENS = 64
"""Tokens for which LLM-Pruner counts."""
Of = Literal["blocks", "sublayers", "linears", "parameters"]
"""In which units an amount is said: a number of blocks or of sub-layers, a fraction of the weights of the blocks'
matrices, or of all parameters."""


class Size(NamedTuple):
    """Parameters, those of them that one token meets, and those in the matrices of blocks; multiplications for some
    tokens; bytes of keys and values that a cache holds for each token."""

    parameters: int
    active: int
    linears: int
    macs: int
    kv_bytes: int


def cost(edit: Cut, geometry: Geometry, *, tokens: int = TOKENS, itemsize: int = 2) -> Size:
    """The size of what a cut leaves of a model.

    Args:
        tokens: the length of the sequence for which multiplications are counted.
        itemsize: bytes of an element of the cache.

    Raises:
        Refusal: the model has no such unit.
    """
    check(edit, geometry)
    return _size(edit, geometry, tokens, itemsize)


def _size(edit: Cut, geometry: Geometry, tokens: int = TOKENS, itemsize: int = 2) -> Size:
    """The same of any cut, of one that leaves nothing too."""
    outside = geometry.outside_parameters
    width = geometry.embedding or geometry.hidden
    head = width * geometry.vocabulary + (width * geometry.hidden * 2 if width != geometry.hidden else 0)
    last = 2 * geometry.hidden if geometry.norm_first else 0
    found = [_block(edit, geometry, index, tokens, itemsize) for index in range(geometry.blocks)]
    sums = Size(*(sum(column) for column in zip(*found, strict=True)))
    return Size(
        sums.parameters + outside,
        sums.active + outside,
        sums.linears,
        sums.macs + tokens * (head + last),
        sums.kv_bytes,
    )


def check(edit: Cut, geometry: Geometry) -> None:
    """Look whether the model has what a cut takes from it, and anything is left.

    Raises:
        Refusal: it has not, or nothing is.
    """
    counts = {part: geometry.count(part) for part in get_args(Part)}
    strange = [
        unit for unit in edit.units if not (_in(unit.block, geometry.blocks) and _in(unit.index, counts[unit.part]))
    ]
    if strange:
        first = min(strange)
        part, block, index = first.part, first.block, first.index
        which, each = f"{block}", ""
        if part not in ("block", *SUBLAYERS):
            which, each = f"{index} of block {block}", f" with {counts[part]} {part}s each"
        raise Refusal(f"the {part} {which} cannot go: the model has the blocks 0-{geometry.blocks - 1}{each}.")
    if len(edit.blocks) == geometry.blocks:
        raise Refusal(f"all {geometry.blocks} blocks of the model would go; leave one.")


def _in(number: int, count: int) -> bool:
    return 0 <= number < count


def _block(edit: Cut, geometry: Geometry, index: int, tokens: int, itemsize: int) -> Size:
    """Size of what a cut leaves of one block."""
    if edit.gone("block", index):
        return Size(0, 0, 0, 0, 0)
    attention = mlp = Size(0, 0, 0, 0, 0)
    groups, channels = geometry.groups - len(edit.gone("head", index)), geometry.wide - len(edit.gone("channel", index))
    if groups and not edit.gone("attention", index):  # with its last unit a part goes as a whole
        attention = _attention(geometry, groups, tokens, itemsize)
    if channels and not edit.gone("mlp", index):
        mlp = _mlp(geometry, channels, geometry.experts - len(edit.gone("expert", index)), tokens)
    if not attention.parameters and not mlp.parameters:
        return attention
    shared = _norms(geometry, geometry.norms[2], tokens)
    return Size(*(sum(column) for column in zip(attention, mlp, shared, strict=True)))


def _norms(geometry: Geometry, count: int, tokens: int) -> Size:
    """Norms over the hidden states."""
    parameters = count * geometry.norm_vectors * geometry.hidden
    return Size(parameters, parameters, 0, 2 * tokens * count * geometry.hidden, 0)


def _attention(geometry: Geometry, groups: int, tokens: int, itemsize: int) -> Size:
    """An attention with some of its key/value groups, and its norms."""
    head, queries = geometry.head, groups * geometry.heads // geometry.groups
    heads = queries + groups  # of queries and of keys
    linears = 2 * geometry.hidden * head * heads
    biases = head * (heads + groups) * geometry.biases[0] + geometry.hidden * geometry.biases[1]
    norms = _norms(geometry, geometry.norms[0], tokens)
    over_heads = geometry.norm_vectors * (head * heads if geometry.norms_span else geometry.head_norms * head)
    parameters = linears + biases + over_heads + norms.parameters
    pairs = tokens * tokens * queries * (2 * head + 1)
    turned = 2 * tokens * heads * (geometry.rotated + (head if geometry.head_norms else 0))
    macs = tokens * linears + pairs + turned + norms.macs
    return Size(parameters, parameters, linears, macs, 2 * groups * head * itemsize)


def _mlp(geometry: Geometry, channels: int, experts: int, tokens: int) -> Size:
    """A feed-forward part with some of its channels or experts, and its norms."""
    one = (geometry.readers + 1) * geometry.hidden * channels
    bias = (channels * geometry.readers + geometry.hidden) * geometry.biases[2]
    norms = _norms(geometry, geometry.norms[1], tokens)
    all_of, met, router = 1, 1, 0
    if geometry.experts:
        all_of, met, router = experts, min(geometry.chosen, experts), experts * geometry.hidden
    macs = tokens * (met * (one + channels) + router) + norms.macs
    parameters, active = (count * (one + bias) + router + norms.parameters for count in (all_of, met))
    return Size(parameters, active, all_of * one + router, macs, 0)


def removed(edit: Cut, geometry: Geometry, of: Of) -> float:
    """How much a cut takes: a number of blocks or of sub-layers (a block is two), or a fraction."""
    if of == "blocks":
        return len(edit.blocks)
    if of == "sublayers":
        return 2 * len(edit.blocks) + sum(unit.part in SUBLAYERS for unit in edit.units)
    dense, left = (getattr(_size(cut, geometry), of) for cut in (UNCUT, edit))
    return float((dense - left) / dense)


def first_units(
    order: Sequence[Unit], amount: float, of: Of, geometry: Geometry,
    grow: Callable[[Sequence[Unit]], Cut] = lambda units: Cut(frozenset(units)),
) -> Cut:  # fmt: skip
    """The fewest units from the front of a list that take away an amount.

    Args:
        order: units, the first to go first.
        amount: a number of blocks or of sub-layers, or a fraction, as `of` says.

    Raises:
        Refusal: all of them are not enough.
    """

    def taken(count: int) -> float:
        return removed(grow(order[:count]), geometry, of)

    total = taken(len(order))
    if total < amount:
        raise Refusal(f"{amount:g} of the {of} cannot go: all units that may take {total:.4g} away.")
    return grow(order[: bisect_left(range(len(order) + 1), amount, key=taken)])
