"""Candidates put together from a database of levels and judged, several in one batch, block by block.

Every matrix is pruned once per level. A candidate is never written into the model: while a block runs, its linears
read the levels of the candidates at hand. Candidates that agree in all blocks so far share one hidden state, so what
is equal runs once. Shapes: C candidates, N windows, L tokens, D hidden size, O outputs, I inputs, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.calibration.levels.database import LevelDatabase, check_size, find_room
from harness.calibration.walk.batches import CANDIDATE_TOKENS
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.stream import Stream
from harness.core.allocation import Allocation
from harness.core.interfaces import Objective
from harness.core.pattern import Pattern
from harness.core.search import CANDIDATE_LOGIT_BYTES
from harness.methods.each import EachLinear, as_block_method, prune_one
from harness.models.decoder import Decoder
from harness.models.losses import logits_in_pieces, window_losses
from harness.models.pieces import patched
from harness.runtime.progress import progress

STACKED = 1 << 21
"""Weights up to this size are multiplied as one batch on a GPU, whose launches they would not fill alone."""


class LevelAssembler:
    """Puts candidates together and gives their losses: an `Assembler`."""

    def __init__(
        self,
        decoder: Decoder,
        scope: Sequence[int],
        windows: Tensor,
        level_database: LevelDatabase,
        objective: Objective,
    ) -> None:
        self.facts: dict[str, Any] = {}
        self._scope, self._level_database, self._objective = scope, level_database, objective
        self._decoder, self._windows = decoder, windows
        self._stream = Stream(decoder, [windows[:1]])
        self._linears = [decoder.linears(index) for index in scope]
        self._before = torch.cat([self._enter(window) for window in windows.split(1)])  # (N, L, D) in front of scope

    @torch.no_grad()
    def _enter(self, window: Tensor) -> Tensor:
        hidden = self._stream.embed(window)
        for index in self._decoder.before(self._scope):
            hidden = self._stream.run_block(index, hidden, window)
        return hidden

    @torch.no_grad()
    def losses(self, candidates: Sequence[Allocation], windows: slice = slice(None)) -> list[float]:
        """The mean loss of every candidate over some of the windows, in nats per token."""
        chosen = range(len(self._windows))[windows]
        tokens = len(chosen) * self._windows.shape[1]
        together = max(1, CANDIDATE_TOKENS[self._windows.device.type] * 4 // tokens)
        found: list[float] = []
        for start in progress(range(0, len(candidates), together), "search"):
            found += self._judge(candidates[start : start + together], chosen)
        return found

    def _judge(self, candidates: Sequence[Allocation], chosen: range) -> list[float]:
        """States are (hidden, candidates that share it); they part where their candidates do."""
        states = [(self._before[chosen.start : chosen.stop], list(range(len(candidates))))]
        for index, linears in zip(self._scope, self._linears, strict=True):
            parted: dict[tuple[int, tuple[Pattern, ...]], list[int]] = {}
            for number, (_, members) in enumerate(states):
                for member in members:
                    levels = tuple(candidates[member][site] for site in linears)
                    parted.setdefault((number, levels), []).append(member)
            with self._stream.placement.on_device(self._decoder.block(index)):
                parting = [(states[number][0], levels) for number, levels in parted]
                hidden = self._run(index, linears, parting, self._windows[chosen.start : chosen.stop])
            states = list(zip(hidden, parted.values(), strict=True))
        losses = [0.0] * len(candidates)
        for last, members in states:
            behind = last
            for index in self._decoder.behind(self._scope):
                behind = self._in_parts(index, behind, self._windows[chosen.start : chosen.stop])
            loss = self._loss(behind, chosen)
            for member in members:
                losses[member] = loss
        return losses

    def _run(
        self, index: int, linears: Mapping[str, nn.Linear], states: Sequence[tuple[Tensor, tuple[Pattern, ...]]],
        tokens: Tensor,
    ) -> list[Tensor]:  # fmt: skip
        """One block over several states, each (N, L, D) of tokens (N, L), with its levels by linear."""
        rows, length = states[0][0].shape[:2]
        size = max(1, CANDIDATE_TOKENS[self._windows.device.type] // (rows * length))
        outputs: list[Tensor] = []
        levels = _Levels(self._level_database, linears)
        for start in range(0, len(states), size):
            batch = states[start : start + size]
            multiplied: dict[nn.Module, Any] = {
                linear: partial(_multiplied, linear.bias, [levels[site, chosen[place]] for _, chosen in batch])
                for place, (site, linear) in enumerate(linears.items())
            }
            with patched(multiplied):
                hidden = batch[0][0] if len(batch) == 1 else torch.cat([hidden for hidden, _ in batch])
                outputs += self._in_parts(index, hidden, tokens, len(batch)).split(rows)
        return outputs

    def _in_parts(self, index: int, hidden: Tensor, tokens: Tensor, candidates: int = 1) -> Tensor:
        """A block over as many windows (N, L) at once as fit; those of several candidates (C · N, L, D) always fit."""
        size = max(1, CANDIDATE_TOKENS[hidden.device.type] // hidden.shape[1])
        if candidates > 1 or len(hidden) <= size:
            return self._stream.run_block(index, hidden, tokens.repeat(candidates, 1))
        with self._stream.placement.on_device(self._decoder.block(index)):
            pairs = zip(hidden.split(size), tokens.split(size), strict=True)
            return torch.cat([self._stream.run_block(index, part, behind) for part, behind in pairs])

    def _loss(self, hidden: Tensor, chosen: range) -> float:
        """The mean over all targets, from one candidate's last hidden state (N, L, D)."""
        here = slice(chosen.start, chosen.stop)
        if self._objective == "nll":
            return float(window_losses(self._stream.logits, hidden, self._windows[here], self._at_once).mean())
        dense, minus_entropy = (part[here] for part in self._dense)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for windows, positions, logits in logits_in_pieces(self._stream.logits, hidden, self._at_once):
            crossed = _dot(dense[windows, positions], logits)
            total += (minus_entropy[windows, positions] - crossed + logits.logsumexp(-1)).double().sum()
        return float(total) / minus_entropy.numel()

    @property
    def _vocabulary(self) -> int:
        return int(self._decoder.config.get_text_config().vocab_size)

    @property
    def _at_once(self) -> int:
        """Positions whose logits are there at once."""
        return CANDIDATE_LOGIT_BYTES[self._windows.device.type] // (4 * self._vocabulary)

    @cached_property
    def _dense(self) -> tuple[Tensor, Tensor]:
        """The dense model's probabilities p (N, L - 1, V), and Σ p log p (N, L - 1)."""
        hidden = self._before
        for index in (*self._scope, *self._decoder.behind(self._scope)):
            hidden = self._in_parts(index, hidden, self._windows)
        dense = torch.empty(len(hidden), hidden.shape[1] - 1, self._vocabulary, device=hidden.device)
        minus_entropy = dense.new_empty(dense.shape[:2])
        for windows, positions, logits in logits_in_pieces(self._stream.logits, hidden, self._at_once):
            dense[windows, positions] = logits.softmax(-1)
            minus_entropy[windows, positions] = _dot(dense[windows, positions], logits.log_softmax(-1))
        return dense, minus_entropy


def _dot(one: Tensor, other: Tensor) -> Tensor:
    """Position by position (b, p, V) → (b, p), without a product in memory."""
    return torch.bmm(one.flatten(0, 1)[:, None], other.flatten(0, 1)[:, :, None]).view(one.shape[:-1])


class _Levels:
    """The levels of one block that are in use, each fetched once."""

    def __init__(self, level_database: LevelDatabase, linears: Mapping[str, nn.Linear]) -> None:
        self._level_database, self._linears = level_database, linears
        self._fetched: dict[tuple[str, Pattern], Tensor] = {}

    def __getitem__(self, key: tuple[str, Pattern]) -> Tensor:
        if key[1].sparsity == 0:
            return self._linears[key[0]].weight
        if key not in self._fetched:
            self._fetched[key] = self._level_database.get(*key)
        return self._fetched[key]


def _multiplied(bias: Tensor | None, weights: Sequence[Tensor], inputs: Tensor) -> Tensor:
    """Inputs (C · n, …, I), those of one candidate side by side, times one weight (O, I) each."""
    if all(weight is weights[0] for weight in weights):
        return functional.linear(inputs, weights[0], bias)
    if _stacks(inputs, weights[0]):
        parts = inputs.reshape(len(weights), -1, inputs.shape[-1])
        product = torch.bmm(parts, torch.stack(list(weights)).mT)
        return (product if bias is None else product + bias).reshape(*inputs.shape[:-1], -1)
    shares = inputs.chunk(len(weights))
    return torch.cat([functional.linear(share, weight, bias) for share, weight in zip(shares, weights, strict=True)])


def _stacks(inputs: Tensor, weight: Tensor) -> bool:
    return inputs.is_cuda and weight.numel() <= STACKED


def build_assembler(
    decoder: Decoder,
    batches: Sequence[Tensor],
    scope: Sequence[int],
    method: Any,
    levels: Mapping[str, Sequence[Pattern]],
    *,
    inputs: Allocation | None,
    windows: Tensor,
    objective: Objective,
    limit: float | None,
    folder: Path | None,
    gib: float | None,
) -> LevelAssembler:
    """Prune every matrix to every level, and stand ready to judge candidates on `windows` (N, L).

    Args:
        inputs: what the blocks in front are pruned to while a block is; None leaves them dense.
        limit: GiB that the database may take.
        folder: where its files go; None keeps it in memory.
        gib: what that folder may take.

    Raises:
        UserError: the database does not fit its limit or the folder's.
    """
    started = time.perf_counter()
    linears = {site: linear for index in scope for site, linear in decoder.linears(index).items()}
    sizes = {site: linear.weight.numel() for site, linear in linears.items()}
    item = next(decoder.model.parameters()).element_size()
    needed = check_size(sizes, levels, item, limit)
    if folder is not None:
        find_room(folder, gib, needed)
    level_database = LevelDatabase(windows.device, folder)
    with dense_again(decoder, scope, touched=inputs is not None):
        for block in stream(decoder, batches, scope, edited=inputs is not None, label="levels"):
            made = _levels_of(block, method, levels)
            for site, weights in made.items():
                level_database.put(site, weights)
            for site, pattern in (inputs or {}).items():
                if site in made and pattern.sparsity > 0:
                    block.write(site, made[site][pattern])
    assembler = LevelAssembler(decoder, scope, windows, level_database, objective)
    assembler.facts |= {
        "levels": max(len(patterns) for patterns in levels.values()),
        "bytes": needed,
        "seconds": round(time.perf_counter() - started, 2),
    }
    return assembler


@torch.no_grad()
def _levels_of(block: Any, method: Any, levels: Mapping[str, Sequence[Pattern]]) -> dict[str, dict[Pattern, Tensor]]:
    """Every level of every matrix of a block that removes anything."""
    weights = block.weights
    made: dict[str, dict[Pattern, Tensor]] = {site: {} for site in weights}
    lifted = as_block_method(method)
    method_of = lifted.method_for(block) if isinstance(lifted, EachLinear) else None
    seen = block.observe(lifted.method.statistic) if isinstance(lifted, EachLinear) and lifted.method.statistic else {}
    for place in range(max(len(levels[site]) for site in weights)):
        patterns = {site: levels[site][min(place, len(levels[site]) - 1)] for site in weights}
        removing = {site: pattern for site, pattern in patterns.items() if pattern.sparsity > 0}
        if method_of is not None:
            pruned = {
                site: prune_one(method_of(site), site, weights[site], seen.get(site), asked)
                for site, asked in removing.items()
            }
        else:
            pruned = dict(lifted.prune_block(block, patterns)) if removing else {}
        for site in removing:
            made[site][patterns[site]] = pruned[site].weight
    return made


@contextmanager
def dense_again(decoder: Decoder, scope: Sequence[int], *, touched: bool = True) -> Iterator[None]:
    """Undo at the end whatever is written into the blocks of `scope` inside."""
    kept: list[tuple[nn.Linear, Tensor]] = []
    if touched:
        for index in scope:
            kept += [(linear, linear.weight.data.clone()) for linear in decoder.linears(index).values()]
    try:
        yield
    finally:
        for linear, weight in kept:
            linear.weight.data.copy_(weight)
