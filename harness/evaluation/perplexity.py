"""Perplexity by the protocol of the SparseGPT and Wanda papers.

Shapes: B windows, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.calibration.walk.batches import evaluation_tokens, windows_of_logits
from harness.calibration.walk.blocks import Walk
from harness.calibration.walk.devices import each
from harness.calibration.walk.stream import Stream
from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.data.corpora import corpus_named
from harness.data.windows import evaluation_windows
from harness.evaluation.protocol import Context, Measure, Protocol
from harness.models.decoder import Decoder
from harness.models.losses import Head, next_token_losses
from harness.models.pieces import first, last_output, logits_behind
from harness.models.placement import placement_of
from harness.runtime.errors import UserError
from harness.runtime.oom import with_oom_backoff
from harness.runtime.progress import progress

TOKENS = {"wikitext2": 340_000, "ptb": 110_000, "embedded-a": 40_000, "embedded-b": 40_000, "embedded-c": 40_000}
"""Tokens of the test splits, about; of another text 256 windows are counted, as of C4."""


@component("evaluator", "perplexity")
@dataclass(frozen=True)
class Perplexity:
    """Frantar and Alistarh 2023 (arXiv 2301.00774), released `datautils.py` and `opt_eval`: exp of the mean NLL.

    The text is joined and tokenised once, with one BOS at its start; windows do not overlap, the remainder is dropped,
    each window's mean over its L − 1 targets weighs the same. `documents` and `windows` cut the text (C4).
    """

    corpus: str
    """The text."""
    split: str = "test"
    """Its part."""
    documents: int | None = None
    """Documents from its start; null: all."""
    windows: int | None = None
    """Windows from its start; null: all."""

    def __post_init__(self) -> None:
        if self.split not in corpus_named(self.corpus).splits:
            raise UserError(f"corpus '{self.corpus}' has no split '{self.split}'.")
        for name, count in (("documents", self.documents), ("windows", self.windows)):
            if count is not None and count < 1:
                raise UserError(f"evaluation of {self.corpus}: {name}={count} has to be at least 1, or null for all.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Every token of the text once."""
        return Cost(forwards=TOKENS.get(self.corpus, 256 * work.window))

    def protocol(self, context: Context) -> Protocol:
        """The protocol at a window length; a limit makes it another one."""
        return Protocol(
            f"{self.corpus}-{self.split}@{context.window}" + (f",limit={context.limit}" if context.limit else ""),
            {
                "corpus": self.corpus,
                "split": self.split,
                "join": corpus_named(self.corpus).splits[self.split].join,
                "documents": self.documents,
                "windows": self.windows,
                "window": context.window,
                "limit": context.limit,
                "bos": "tokenizer's own, once at the start of the text",
                "stride": context.window,
                "remainder": "dropped",
                "average": "exp(mean over windows of mean over window-1 targets)",
            },
        )

    def tokens(self, tokenizer: Any, context: Context) -> Tensor:
        """The windows (N, L) that are scored."""
        limits = [limit for limit in (self.windows, context.limit) if limit]
        return evaluation_windows(
            self.corpus,
            self.split,
            tokenizer,
            context.window,
            documents=self.documents,
            limit=min(limits, default=None),
        )

    def __call__(self, decoder: Decoder, tokenizer: Any, context: Context) -> Iterator[Measure]:
        windows = self.tokens(tokenizer, context)
        mean = mean_nll(decoder, windows, context.device, label=self.corpus)
        value = math.exp(mean) if mean < 700 else math.inf
        finite = math.isfinite(value)
        yield Measure(
            self.corpus,
            "perplexity",
            value if finite else None,
            None,
            str(self.protocol(context)),
            len(windows),
            "" if finite else f"not finite: the mean negative log-likelihood is {mean}",
        )


def mean_nll(decoder: Decoder, windows: Tensor, device: torch.device, label: str = "perplexity") -> float:
    """Mean negative log-likelihood of windows (N, L): mean over windows of the mean over their L − 1 targets.

    Raises:
        Failure: not even one window fits into memory.
    """
    tokens = evaluation_tokens(decoder.model.dtype.itemsize, device.type == "cuda")
    batch = max(1, min(tokens // windows.shape[1], len(windows)))
    return with_oom_backoff(lambda size: _mean_nll(decoder, windows, size, device, label), batch, "evaluation")


@torch.no_grad()
def _mean_nll(decoder: Decoder, windows: Tensor, batch: int, device: torch.device, label: str) -> float:
    """The same with so many windows at once, which decides the rounding alone."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for loss in _losses(decoder, windows.split(batch), device, label):
        total += loss.to(device)
    return float(total) / len(windows)


def _losses(decoder: Decoder, batches: Sequence[Tensor], device: torch.device, label: str) -> Iterator[Tensor]:
    """The term of each batch (B, L) in the sum over windows of the mean over their targets.

    A model that fits one device runs whole. Otherwise all batches go through one block after the other, so that each
    block is brought to its device once; what runs is the same, to the bit on equal devices.
    """
    placement = placement_of(decoder)
    if not placement.offloaded and not placement.others:
        model, blocks = decoder.model, decoder.modules
        for tokens in progress(batches, label):
            tokens = tokens.to(device)
            output = last_output(model, blocks, tokens)
            head = partial(logits_behind, model, blocks, tuples=isinstance(output, tuple))
            yield _loss(model.config, head, first(output), tokens)
        return
    walk = Walk(decoder, batches)
    for index in progress(decoder.indices, label):
        with walk.block(index, needs_outputs=False) as block:
            block.advance()
    walk.settle()
    for losses in each(_losses_behind, walk.streams):
        yield from losses


def _losses_behind(stream: Stream) -> list[Tensor]:
    """Of the batches of one device, whose hidden states are behind the last block."""
    pairs = zip(stream.hidden, stream.batches, strict=True)
    return [_loss(stream.model.config, stream.logits, hidden, tokens) for hidden, tokens in pairs]


def _loss(config: Any, head: Head, hidden: Tensor, tokens: Tensor) -> Tensor:
    """Σ over windows (B, L) of the mean negative log-likelihood of their targets, in float64.

    The head takes hidden states (B, L, D) a few windows at a time. The mean of a window is one of float32, as the
    released codes have it.
    """
    length = tokens.shape[1]
    at_once = length * windows_of_logits(length, config.get_text_config().vocab_size)
    total = torch.zeros((), dtype=torch.float64, device=hidden.device)
    for _, losses in next_token_losses(head, hidden, tokens, at_once):
        total += losses.mean(dim=1).double().sum()
    return total
