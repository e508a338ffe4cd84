"""Log-likelihoods of answers behind contexts by a decoder, in batches of tokens.

The requests of a task become rows once (`packing.py`); a point runs them: the blocks over every token, the head where a
token of an answer is predicted. A model whose blocks wait in host memory takes as many rows as memory has room for
through one block after the other, so that each block crosses once for all of them.

Shapes: B rows, T tokens, n targets of a batch, D hidden size, V vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from harness.evaluation.packing import Batch, Item, Request, batches_of, items_of, plain_rows, rows_of
from harness.models.decoder import Decoder
from harness.models.machine import available
from harness.models.pieces import arguments_of_blocks, first, last_output, logits_behind
from harness.models.placement import placement_of
from harness.runtime.oom import is_out_of_memory, with_oom_backoff
from harness.runtime.progress import progress

AT_ONCE = {"cpu": 2048, "cuda": 32768}
"""Tokens of a batch: fewer leave a GPU waiting for launches."""
LOGIT_BYTES = {"cpu": 1 << 24, "cuda": 1 << 29}
"""Logits that are there at once, in float32: on a CPU such as come from memory that the process has already."""
SHORTEST = {"cpu": 128, "cuda": 512}
"""Tokens of a row, at least: longer rows leave less room, and attention reads their whole square."""
STATES = 0.4
"""The share of the free memory that rows of a model in host memory may take while they wait for the next block."""


class Likelihood(NamedTuple):
    """Σ log p of an answer's tokens, in nats, and whether each of them is the most likely one."""

    value: float
    greedy: bool


@dataclass
class Requests:
    """The requests of a task, and their rows, which are made once for each way to run them."""

    requests: Sequence[Request]
    _items: dict[tuple[int, bool], list[Item]] = field(default_factory=dict)

    def items(self, longest: int, *, shared: bool) -> list[Item]:
        """The items for a model of so many positions."""
        key = (longest, shared)
        if key not in self._items:
            self._items[key] = items_of(self.requests, longest, shared=shared)
        return self._items[key]

    def batches(self, longest: int, tokens: int, shortest: int, *, shared: bool) -> list[Batch]:
        """Batches of so many tokens."""
        items = self.items(longest, shared=shared)
        rows = rows_of(items, min(shortest, longest)) if shared else plain_rows(items)
        return list(batches_of(rows, tokens))


@torch.no_grad()
def likelihoods(decoder: Decoder, requests: Requests, longest: int, label: str) -> list[Likelihood]:
    """The log-likelihood of each request, its log-probabilities and their sums in float32 at least.

    Args:
        longest: positions that the model has.

    Raises:
        Failure: not even one row fits into memory.
    """
    device = placement_of(decoder).device
    shared = sees_branches(decoder, longest)

    def run(tokens: int) -> list[Likelihood]:
        batches = requests.batches(longest, tokens, SHORTEST[device.type], shared=shared)
        return _gathered(_scores(decoder, batches, label), batches, len(requests.requests))

    return with_oom_backoff(run, AT_ONCE[device.type], "zero-shot evaluation")


def _gathered(scores: Iterator[Tensor], batches: Sequence[Batch], count: int) -> list[Likelihood]:
    """Sums over the targets of each request from log-probabilities and greediness (2, n) of each batch."""
    found = torch.cat([score.cpu() for score in list(scores)], dim=1).double()
    requests = torch.cat([batch.requests for batch in batches])
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, requests, found[0])
    missed = torch.zeros(count, dtype=torch.float64).index_add_(0, requests, 1 - found[1])
    return [Likelihood(value, not misses) for value, misses in zip(sums.tolist(), missed.tolist(), strict=True)]


def _scores(decoder: Decoder, batches: Sequence[Batch], label: str) -> Iterator[Tensor]:
    """Log-probabilities of targets, and 1 where they are the most likely tokens, (2, n) for each batch, in order."""
    placement = placement_of(decoder)
    model, blocks = decoder.model, decoder.modules
    if placement.offloaded:
        yield from _walked(decoder, batches, label)
        return
    for batch in progress(batches, label):
        here = batch.to(placement.device)
        output = last_output(model, blocks, here.tokens, **_told(here, model.dtype))
        yield _judged(model, blocks, first(output), here, tuples=isinstance(output, tuple))


def _told(batch: Batch, dtype: torch.dtype) -> dict[str, Tensor]:
    """What the model is told beside the tokens: nothing for plain rows."""
    mask = batch.mask(dtype)
    return {} if mask is None else {"attention_mask": mask, "position_ids": batch.positions}


def _judged(model: nn.Module, blocks: nn.ModuleList, hidden: Tensor, batch: Batch, *, tuples: bool) -> Tensor:
    """The same from the last hidden states (B, T, D) of one batch."""
    config: Any = model.config
    states = hidden.flatten(0, 1)[batch.places]
    at_once = max(1, LOGIT_BYTES[states.device.type] // (4 * config.get_text_config().vocab_size))
    found = []
    for piece, targets in zip(states.split(at_once), batch.targets.split(at_once), strict=True):
        logits = logits_behind(model, blocks, piece[:, None], tuples=tuples)[:, 0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        best, argmax = logits.max(dim=1)
        own = logits.gather(1, targets[:, None])[:, 0]
        value = own - best - (logits - best[:, None]).exp_().sum(dim=1).log()
        found.append(torch.stack([value, (argmax == targets).to(value.dtype)]))
    return torch.cat(found, dim=1)


@dataclass
class _Waiting:
    """A batch in front of a block: hidden states (B, T, D), and what each block is called with beside them."""

    batch: Batch
    hidden: Tensor
    arguments: Sequence[Mapping[str, Any]]


def _walked(decoder: Decoder, batches: Sequence[Batch], label: str) -> Iterator[Tensor]:
    """The same by a model whose blocks visit the device: all batches that memory has room for through each of them."""
    placement, blocks = placement_of(decoder), decoder.modules
    tuples = _gives_tuples(decoder)
    for group in _groups(batches, int(STATES * available(placement.device)), decoder):
        waiting = []
        for batch in group:
            here = batch.to(placement.device)
            told = _told(here, decoder.model.dtype)
            waiting.append(_Waiting(here, *arguments_of_blocks(decoder.model, blocks, here.tokens, tuples, **told)))
        for position, index in enumerate(progress(decoder.indices, label)):
            with placement.on_device(decoder.block(index)):
                for one in waiting:
                    one.hidden = first(blocks[position](one.hidden, **one.arguments[position]))
        placement.settle()
        for one in waiting:
            yield _judged(decoder.model, blocks, one.hidden, one.batch, tuples=tuples)


def _gives_tuples(decoder: Decoder) -> bool:
    tokens = torch.zeros((1, 1), dtype=torch.long, device=placement_of(decoder).device)
    return isinstance(last_output(decoder.model, decoder.modules, tokens), tuple)


def _groups(batches: Sequence[Batch], room: int, decoder: Decoder) -> Iterator[list[Batch]]:
    """Batches that wait together in so many bytes, with masks and rotations."""
    config: Any = decoder.config.get_text_config()
    itemsize, group, taken = decoder.model.dtype.itemsize, list[Batch](), 0
    for batch in batches:
        size = batch.tokens.numel() * (3 * config.hidden_size + batch.tokens.shape[1]) * itemsize
        if group and taken + size > room:
            yield group
            group, taken = [], 0
        group.append(batch)
        taken += size
    yield group


_SEES: dict[str, bool] = {}
"""Whether models of a form, by the hash of their configuration, take a mask and positions of their own."""


def sees_branches(decoder: Decoder, longest: int) -> bool:
    """Return whether the model gives answers behind a shared context, beside others, what it gives them alone.

    Tried once for each form of a model: some families take their positions from the mask, or attend by windows or
    slopes of their own.
    """
    window = getattr(decoder.config.get_text_config(), "sliding_window", None)
    if window and window < longest:
        return False
    form = (
        f"{decoder.config.to_json_string(use_diff=False)} {decoder.config._attn_implementation} {decoder.model.dtype}"
    )
    key = hashlib.sha256(form.encode()).hexdigest()
    if key not in _SEES:
        try:
            _SEES[key] = _tried(decoder, longest)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:  # whatever a family raises for such a mask
            if is_out_of_memory(error):
                raise
            _SEES[key] = False
    return _SEES[key]


TRIAL = 8
"""Tokens of a context of the trial."""
TRIAL_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 1e-1, torch.float16: 3e-2}
"""The largest difference of a log-likelihood, relative to the spread of all (at least 1), that rounding explains."""


def _tried(decoder: Decoder, longest: int) -> bool:
    """Compare shared with plain rows on a few requests."""
    vocabulary = decoder.config.get_text_config().vocab_size
    numbers = [tuple((place * step + 5) % vocabulary for place in range(TRIAL)) for step in (7, 11)]
    answers = [tuple((place * step + 3) % vocabulary for place in range(3)) for step in (13, 17, 19)]
    requests = Requests([Request(context, answer) for context in numbers for answer in answers])
    both = []
    for shared in (True, False):
        batches = requests.batches(longest, AT_ONCE["cpu"], TRIAL_ROW, shared=shared)
        both.append([one.value for one in _gathered(_scores(decoder, batches, "trial"), batches, 6)])
    packed, plain = (torch.tensor(values) for values in both)
    limit = TRIAL_TOLERANCE[decoder.model.dtype] * max(1.0, float(plain.abs().max()))
    return bool((packed - plain).abs().max() <= limit)


TRIAL_ROW = 64
"""Tokens of a row of the trial: both contexts with their answers."""
