"""Losses of cut models without cutting: candidates walk through the blocks together, and part where they differ.

Shapes: C candidates, K samples of masks, N windows, n of them at once, L tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.calibration.walk.batches import CANDIDATE_TOKENS
from harness.calibration.walk.stream import Stream
from harness.core.geometry import Geometry
from harness.core.interfaces import Masks, Question
from harness.core.search import CANDIDATE_LOGIT_BYTES
from harness.core.structure import SUBLAYERS, UNCUT, Cut, Part, Unit
from harness.models.decoder import Decoder
from harness.models.gates import gated
from harness.models.losses import logits_in_pieces, window_losses
from harness.models.machine import available
from harness.models.units import check_part
from harness.runtime.progress import progress

STATES = 0.25
"""The share of the free memory that the hidden states of all candidates may take."""


@torch.no_grad()
def losses(decoder: Decoder, cuts: Sequence[Cut], windows: Tensor, objective: Question) -> Tensor:
    """The loss (C, N) of each cut on each window (N, L), in float64 on the CPU.

    Cuts that agree in all blocks so far share one hidden state, so what is equal runs once.

    Raises:
        Refusal: a cut that the model cannot take.
    """
    stream = Stream(decoder, [windows[:1]])
    candidates = list(cuts) if objective == "nll" else [*cuts, UNCUT]
    found = []
    for tokens in progress(windows.split(_together(stream, len(candidates))), "losses of cuts"):
        tokens = tokens.to(stream.placement.device)
        ends = _walk(stream, [_by_block(decoder, cut) for cut in candidates], tokens)
        dense = None if objective == "nll" else next(end for end, members in ends if members[-1] == len(cuts))
        here = torch.empty(len(candidates), len(tokens), dtype=torch.float64)
        for end, members in ends:
            here[members] = _judged(stream, end, dense, tokens, objective).cpu()
        found.append(here[: len(cuts)])
    stream.placement.settle()
    return torch.cat(found, dim=1)


def _together(stream: Stream, candidates: int) -> int:
    """Windows that go through all blocks at once."""
    width, device = stream.hidden[0].shape[-1], stream.placement.device
    a_window = candidates * stream.window * width * stream.hidden[0].element_size()
    return max(1, min(CANDIDATE_TOKENS[device.type] // stream.window, int(STATES * available(device)) // a_window))


def _by_block(decoder: Decoder, cut: Cut) -> dict[int, Cut]:
    """The part of a cut that is in each block it touches."""
    inside: dict[int, set[Any]] = {}
    for unit in cut.units:
        inside.setdefault(unit.block, set()).add(unit)
    return {index: Cut(frozenset(units)) for index, units in inside.items() if index in decoder.indices}


def _walk(
    stream: Stream, candidates: Sequence[Mapping[int, Cut]], tokens: Tensor
) -> list[tuple[Tensor, list[int]]]:  # fmt: skip
    """The last hidden states (n, L, D), each with the candidates that arrive there."""
    states = [(_embedded(stream, tokens), list(range(len(candidates))))]
    for index in stream.decoder.indices:
        parting: dict[tuple[int, Cut], list[int]] = {}
        for number, (_, members) in enumerate(states):
            for member in members:
                parting.setdefault((number, candidates[member].get(index, UNCUT)), []).append(member)
        with stream.placement.on_device(stream.decoder.block(index)):
            hidden = [_run(stream, index, states[number][0], tokens, cut) for number, cut in parting]
        states = list(zip(hidden, parting.values(), strict=True))
    return states


def _embedded(stream: Stream, tokens: Tensor) -> Tensor:
    """The hidden states (n, L, D) in front of the first block; windows alone, as others may follow from the tokens."""
    return torch.cat([stream.embed(window) for window in tokens.split(1)])


def _run(stream: Stream, index: int, hidden: Tensor, tokens: Tensor, cut: Cut) -> Tensor:
    if cut.blocks:
        return hidden
    if not cut:
        return stream.run_block(index, hidden, tokens)
    with gated(stream.decoder, cut):
        return stream.run_block(index, hidden, tokens)


def _judged(stream: Stream, hidden: Tensor, dense: Tensor | None, tokens: Tensor, objective: Question) -> Tensor:
    """The loss (n,) of windows from their last hidden states (n, L, D), those of the dense model being `dense`."""
    vocabulary = int(stream.decoder.config.get_text_config().vocab_size)
    at_once = CANDIDATE_LOGIT_BYTES[hidden.device.type] // (4 * vocabulary)
    if dense is None:
        return window_losses(stream.logits, hidden, tokens, at_once)
    sums = torch.zeros(len(hidden), dtype=torch.float64, device=hidden.device)
    pieces = (logits_in_pieces(stream.logits, states, at_once) for states in (hidden, dense))
    for here, there in zip(*pieces, strict=True):
        sums[here.windows] += _distance(here.logits, there.logits, objective).sum(dim=1, dtype=torch.float64)
    return sums / (hidden.shape[1] - 1)


def _distance(logits: Tensor, dense: Tensor, objective: Question) -> Tensor:
    """The term of each position (b, p)."""
    if objective == "distance":
        return torch.linalg.vector_norm(dense - logits, dim=-1)
    expected, got = dense.log_softmax(-1), logits.log_softmax(-1)
    return (expected.exp() * (expected - got)).sum(-1)


@torch.no_grad()
def masked_losses(decoder: Decoder, geometry: Geometry, masks: Masks, windows: Tensor) -> Tensor:
    """The mean negative log-likelihood (K, N) of each sample of masks on each window (N, L).

    Rows k·n to (k+1)·n of a batch are the windows under sample k: all samples are one forward, or two where sub-layers
    have masks, whose parts of a block run one after the other.

    Raises:
        Refusal: no cut is like such a mask in this family (`units.check_part`).
    """
    for part in masks:
        check_part(decoder, part)
    stream = Stream(decoder, [windows[:1]])
    samples = len(next(iter(masks.values())))
    found = []
    for tokens in windows.split(max(1, _together(stream, samples) // samples)):
        tokens = tokens.to(stream.placement.device)
        hidden, rows = _embedded(stream, tokens).repeat(samples, 1, 1), tokens.repeat(samples, 1)
        factors = {part: mask.to(hidden).repeat_interleave(len(tokens), dim=0) for part, mask in masks.items()}
        for index in decoder.indices:
            here = {part: factor[:, index] for part, factor in factors.items()}
            with stream.placement.on_device(decoder.block(index)), _masked(decoder, geometry, here, index):
                behind = _masked_block(stream, geometry.parallel, here, index, hidden, rows)
            hidden = _kept(hidden, behind, here.get("block"))
        found.append(_judged(stream, hidden, None, rows, "nll").cpu().unflatten(0, (samples, -1)))
    stream.placement.settle()
    return torch.cat(found, dim=1)


def _masked_block(
    stream: Stream, parallel: bool, factors: Masks, index: int, hidden: Tensor, tokens: Tensor
) -> Tensor:  # fmt: skip
    """Output (rows, L, D) of a block, its sub-layers with the factors (rows,) that they have."""
    if not {"attention", "mlp"} & set(factors):
        return stream.run_block(index, hidden, tokens)
    without = {part: Cut(frozenset({Unit(part, index)})) for part in SUBLAYERS}
    middle = _kept(hidden, _run(stream, index, hidden, tokens, without["mlp"]), factors.get("attention"))
    entering = hidden if parallel else middle
    behind = _kept(entering, _run(stream, index, entering, tokens, without["attention"]), factors.get("mlp"))
    return middle + (behind - entering) if parallel else behind


def _kept(before: Tensor, behind: Tensor, factor: Tensor | None) -> Tensor:
    """Each row as far as its factor (rows,) says from in front of something to behind it; at 0 and 1 to the bit."""
    if factor is None:
        return behind
    by_row = factor[:, None, None]
    return torch.where(by_row == 1, behind, before + by_row * (behind - before))


@contextmanager
def _masked(decoder: Decoder, geometry: Geometry, factors: Masks, index: int) -> Iterator[None]:
    """While inside, one block's heads and channels have the factors (rows, units) of their parts, row by row."""
    layout, width = decoder.anatomy, geometry.query // geometry.groups
    outputs: dict[Part, tuple[str, int]] = {"head": (layout.attention_output, width), "channel": (layout.mlp_output, 1)}
    with ExitStack() as stack:
        for part, (name, inputs) in outputs.items():
            if part in factors:
                by_input = factors[part].repeat_interleave(inputs, dim=1)  # (rows, I)
                linear = decoder.block(index).get_submodule(name)
                stack.callback(linear.register_forward_pre_hook(partial(_multiplied, by_input)).remove)
        yield


def _multiplied(factor: Tensor, _: nn.Module, positional: tuple[Tensor, ...]) -> tuple[Tensor]:
    """Inputs (rows, L, I), or (rows · L, I) where a family flattens them, times a factor (rows, I)."""
    (inputs,) = positional
    return ((inputs.reshape(len(factor), -1, inputs.shape[-1]) * factor[:, None]).reshape(inputs.shape),)
