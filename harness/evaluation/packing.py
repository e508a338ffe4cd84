"""Requests of a task as rows of tokens: answers behind their common context, items beside one another, no padding.

A request asks for the log-likelihood of an answer behind a context. An item is a context with all of its answers: the
context runs once, each answer sees it and itself. Rows hold several items, which do not see each other. Where a family
cannot be told such a mask, each answer is an item, and each item a row (`Row.plain`).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

MULTIPLE = 64
"""Rows are as long as a multiple of so many tokens: masks of other lengths are slow in attention kernels."""
NOBODY = -1
"""The item of padding."""


class Request(NamedTuple):
    """Tokens of a context, at least one, and of the answer behind it, at least one."""

    context: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """A context and answers behind it, one after the other; an answer's last token is a target only.

    `branches` is 0 in the context and 1, 2, … in the answers. `targets` are places in this item, the tokens that
    follow them, and the numbers of the requests.
    """

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    branches: tuple[int, ...]
    targets: tuple[tuple[int, int, int], ...]


@dataclass
class Row:
    """Items beside one another in a row of so many tokens."""

    length: int
    items: list[Item] = field(default_factory=list)
    plain: bool = False


@dataclass(frozen=True)
class Batch:
    """Rows (B, T) on the host, and what their targets are: flat places, tokens and requests, (n,) each.

    Without items the rows are plain: one text each, padded behind, seen causally.
    """

    tokens: Tensor
    positions: Tensor
    branches: Tensor
    items: Tensor | None
    places: Tensor
    targets: Tensor
    requests: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""

        def here(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=True)

        items = None if self.items is None else here(self.items)
        places, targets, requests = here(self.places), here(self.targets), here(self.requests)
        return Batch(here(self.tokens), here(self.positions), here(self.branches), items, places, targets, requests)

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """0 where a token (B, 1, T, T) sees another one, the least number of the dtype elsewhere; None: causal."""
        if self.items is None:
            return None
        same = self.items[:, :, None] == self.items[:, None, :]
        seen = (self.branches[:, None, :] == 0) | (self.branches[:, :, None] == self.branches[:, None, :])
        allowed = torch.tril(same & seen)
        empty = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return empty.masked_fill_(~allowed, torch.finfo(dtype).min)[:, None]


def items_of(requests: Sequence[Request], longest: int, *, shared: bool = True) -> list[Item]:
    """Items of at most `longest` tokens, the longest first.

    A request that is longer loses the beginning of its context, as lm-eval has it, and stands alone.

    Args:
        longest: the model's context.
        shared: whether answers share their context; else only such as are predicted from the very same tokens do.
    """
    groups: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
    for number, (context, answer) in enumerate(requests):
        kept = context[max(0, len(context) + len(answer) - 1 - longest) :]
        groups.setdefault((kept, () if shared else answer[:-1]), []).append(number)
    items = [
        item
        for (context, _), numbers in groups.items()
        for item in _items(context, [(number, requests[number].answer) for number in numbers], longest)
    ]
    return sorted(items, key=lambda item: -len(item.tokens))


def _items(context: tuple[int, ...], answers: Sequence[tuple[int, tuple[int, ...]]], longest: int) -> Iterator[Item]:
    """One item, or several where all answers together are too long; equal inputs of answers run once."""
    branches: dict[tuple[int, ...], list[tuple[int, int]]] = {}
    for number, answer in answers:
        branches.setdefault(answer[:-1], []).append((number, answer[-1]))
    pending: list[tuple[tuple[int, ...], list[tuple[int, int]]]] = []
    room = longest - len(context)
    for inputs, ends in branches.items():
        if len(inputs) > room and pending:
            yield _item(context, pending)
            pending, room = [], longest - len(context)
        pending.append((inputs, ends))
        room -= len(inputs)
    yield _item(context, pending)


def _item(context: tuple[int, ...], answers: Sequence[tuple[tuple[int, ...], list[tuple[int, int]]]]) -> Item:
    tokens, positions, branches = [*context], [*range(len(context))], [0] * len(context)
    targets: list[tuple[int, int, int]] = []
    for branch, (inputs, ends) in enumerate(answers, 1):
        start = len(tokens)
        tokens += inputs
        positions += range(len(context), len(context) + len(inputs))
        branches += [branch] * len(inputs)
        places = [len(context) - 1, *range(start, len(tokens))]
        for number, end in ends:
            targets += [(place, token, number) for place, token in zip(places, (*inputs, end), strict=True)]
    return Item(tuple(tokens), tuple(positions), tuple(branches), tuple(targets))


def rows_of(items: Sequence[Item], shortest: int) -> list[Row]:
    """Rows that items, the longest first, fill: each goes where it leaves least room, or opens a row.

    A row is `shortest`, twice, four times … as long, the longest no longer than the longest item needs.
    """
    rows: list[Row] = []
    room: list[tuple[int, int]] = []
    longest = max((_rounded(len(item.tokens)) for item in items), default=shortest)
    for item in items:
        size = len(item.tokens)
        if (found := bisect_left(room, (size, -1))) < len(room):
            left, number = room.pop(found)
        else:
            length = shortest
            while length < size:
                length *= 2
            length = max(shortest, min(length, longest))
            rows.append(Row(length))
            left, number = length, len(rows) - 1
        rows[number].items.append(item)
        insort(room, (left - size, number))
    return rows


def _rounded(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE


def plain_rows(items: Sequence[Item]) -> list[Row]:
    """A row for each item, which has one branch at most."""
    return [Row(len(item.tokens), [item], plain=True) for item in items]


def batches_of(rows: Sequence[Row], tokens: int) -> Iterator[Batch]:
    """Batches of about so many tokens, rows of like length together, the longest first."""
    waiting: list[Row] = []
    for row in sorted(rows, key=lambda row: -row.length):
        length = waiting[0].length if waiting else row.length
        apart = bool(waiting) and row.length != length and not row.plain
        if apart or (len(waiting) + 1) * length > max(tokens, length):
            yield _batch(waiting)
            waiting = []
        waiting.append(row)
    if waiting:
        yield _batch(waiting)


def _batch(rows: Sequence[Row]) -> Batch:
    length, plain = rows[0].length, rows[0].plain
    filled: Mapping[str, numpy.ndarray] = {
        name: numpy.full((len(rows), length), NOBODY if name == "items" else 0, dtype=numpy.int64)
        for name in ("tokens", "positions", "branches", "items")
    }
    targets: list[tuple[int, int, int]] = []
    for number, row in enumerate(rows):
        start = 0
        for which, item in enumerate(row.items):
            end = start + len(item.tokens)
            for name in ("tokens", "positions", "branches"):
                filled[name][number, start:end] = getattr(item, name)
            filled["items"][number, start:end] = which
            offset = number * length + start
            targets += [(offset + place, token, request) for place, token, request in item.targets]
            start = end
    places, following, requests = torch.tensor(targets, dtype=torch.int64).T.contiguous()
    tokens, positions, branches, items = (torch.from_numpy(array) for array in filled.values())
    return Batch(tokens, positions, branches, None if plain else items, places, following, requests)
