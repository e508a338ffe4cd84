"""What a model writes: how often continuations repeat themselves, and answers that it has to find words for."""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

import torch

from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.data.corpora import corpus_named, read_text
from harness.data.windows import encode, evaluation_windows
from harness.data.zeroshot import TASKS, hub_rows
from harness.evaluation.protocol import Context, Measure, Protocol
from harness.evaluation.speed import continued
from harness.evaluation.zeroshot import ZeroShot
from harness.models.decoder import Decoder
from harness.models.placement import placement_of
from harness.runtime.errors import Refusal, UserError

Row = dict[str, Any]
AT_ONCE = 32
"""Prompts that are continued together; those of one length, so that none is padded."""


@component("evaluator", "text_generation")
@dataclass(frozen=True)
class Generation:
    """Greedy decoding by the model's own `generate` and its cache.

    `rep_n` is 1 − distinct / all n-grams of tokens of a continuation, the mean over continuations (Welleck et al. 2020,
    arXiv 1908.04319, seq-rep-n). `exact_match` is the share of the questions of a multiple-choice task whose answer the
    model writes by itself: the words behind the question are those of the right choice. `acc` beside it is the task's
    usual accuracy on the same questions.
    """

    text: str = "embedded-a"
    """The text whose test split is continued."""
    prompts: int = 64
    """Windows of it."""
    prompt: int = 32
    """Tokens of a window."""
    new: int = 64
    """Tokens of a continuation."""
    ngrams: tuple[int, ...] = (2, 3, 4)
    """The n of repetitions."""
    task: str | None = "embedded-facts"
    """The task with questions, one of the generated ones; null: none."""

    needs_resident = True

    def __post_init__(self) -> None:
        if "test" not in corpus_named(self.text).splits:
            raise UserError(f"corpus '{self.text}' has no split 'test'.")
        if min(self.prompts, self.prompt, self.new) < 1 or not all(0 < n <= self.new for n in self.ngrams):
            raise UserError("evaluation of generation: prompts, prompt, new are at least 1, and ngrams from 1 to new.")
        if self.task is not None and (self.task not in TASKS or TASKS[self.task].template):
            own = ", ".join(sorted(name for name, task in TASKS.items() if not task.template))
            raise UserError(f"evaluation of generation: task={self.task} has no open answers; there are {own}.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Every token that is read or made; answers are short, and asked for twice."""
        asked = ZeroShot(self.task).cost(geometry, work).forwards if self.task else 0
        return Cost(forwards=self.prompts * (self.prompt + self.new) + 2 * asked)

    def protocol(self, context: Context) -> Protocol:
        """The protocol; a limit makes it another one."""
        limit = f",limit={context.limit}" if context.limit else ""
        task = ZeroShot(self.task).protocol(context).settings if self.task else None
        return Protocol(
            f"generation@{self.text},{self.prompts}x{self.prompt}+{self.new}{limit}",
            {
                "text": self.text,
                "prompts": self.prompts,
                "prompt": self.prompt,
                "new": self.new,
                "limit": context.limit,
                "decoding": "generate, greedy, with its cache",
                "repetition": "1 - distinct/all n-grams of tokens, mean over continuations up to the end of text",
                "match": "first words behind the question",
                "task": task,
            },
        )

    def data_hash(self) -> str:
        """The sha256 of the text's and the task's."""
        parts = [read_text(self.text, "test").sha256, ZeroShot(self.task).data_hash() if self.task else ""]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, decoder: Decoder, tokenizer: Any, context: Context) -> Iterator[Measure]:
        if placement_of(decoder).offloaded:
            raise Refusal("a model that is offloaded does not generate here; take offload=off and a larger device.")
        protocol = str(self.protocol(context))
        written = self._continuations(decoder, tokenizer, context)
        for n in self.ngrams:
            values = [repetition(one, n) for one in written if len(one) >= n]
            if values:
                yield Measure("generation", f"rep_{n}", fmean(values), _error(values), protocol, len(values))
            else:
                note = f"not measured: no continuation has {n} tokens"
                yield Measure("generation", f"rep_{n}", None, None, protocol, 0, note)
        if self.task is None:
            return
        rows = self._rows(context.limit)
        hits = [float(hit) for hit in answered(decoder, tokenizer, rows, context.device)]
        yield Measure("generation", "exact_match", fmean(hits), _error(hits), protocol, len(hits))
        for one in ZeroShot(self.task)(decoder, tokenizer, context):
            if one.metric == "acc":
                yield Measure("generation", "acc", one.value, one.stderr, protocol, one.samples, one.note)

    def _continuations(self, decoder: Decoder, tokenizer: Any, context: Context) -> list[list[int]]:
        """Tokens of every continuation, up to the end of text."""
        count = min(self.prompts, context.limit or self.prompts)
        windows = evaluation_windows(self.text, "test", tokenizer, self.prompt, documents=None, limit=count)
        found: list[list[int]] = []
        for tokens in windows.to(context.device).split(AT_ONCE):
            found += continued(decoder, tokens, self.new).tolist()
        return [until(one, _ends(decoder)) for one in found]

    def _rows(self, limit: int | None) -> list[Row]:
        """The questions, the first ones of a limit as lm-eval takes them."""
        assert self.task is not None
        known = TASKS[self.task]
        _, path = ZeroShot(self.task)._files()[known.evaluated]
        return hub_rows(self.task, known.evaluated, path)[:limit]


def repetition(tokens: Sequence[int], n: int) -> float:
    """1 − distinct / all n-grams of a sequence."""
    grams = [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams)


def until(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens in front of the first that ends a text."""
    stop = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[:stop])


def answered(decoder: Decoder, tokenizer: Any, rows: Sequence[Row], device: torch.device) -> list[bool]:
    """Whether the words that the model writes behind each question are those of the right choice."""
    prompts = [_bare(encode(tokenizer, row["query"]), tokenizer) for row in rows]
    longest = max(len(encode(tokenizer, f" {choice}")) for row in rows for choice in row["choices"])
    by_length: dict[int, list[int]] = defaultdict(list)
    for number, prompt in enumerate(prompts):
        by_length[len(prompt)].append(number)
    hits = [False] * len(rows)
    for numbers in by_length.values():
        for start in range(0, len(numbers), AT_ONCE):
            here = numbers[start : start + AT_ONCE]
            tokens = torch.tensor([prompts[number] for number in here], device=device)
            for number, one in zip(here, continued(decoder, tokens, longest + 1).tolist(), strict=True):
                right = str(rows[number]["choices"][rows[number]["gold"]]).split()
                said = tokenizer.decode(until(one, _ends(decoder)), skip_special_tokens=True).split()
                hits[number] = said[: len(right)] == right
    return hits


def _bare(tokens: list[int], tokenizer: Any) -> list[int]:
    """A prompt without the mark that the tokenizer opens a text with, as zero-shot questions go without."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return tokens[1:] if len(tokens) > 1 and bos is not None and tokens[0] == bos else tokens


def _ends(decoder: Decoder) -> set[int]:
    end = decoder.model.generation_config.eos_token_id
    return set() if end is None else set(end) if isinstance(end, list) else {int(end)}


def _error(values: Sequence[float]) -> float | None:
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
