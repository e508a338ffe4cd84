"""Log-likelihoods behind shared contexts: those of each text alone, on every family, resident or block by block."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import TINY, tiny

from harness.data.corpora import EMBEDDED
from harness.evaluation import likelihoods as module
from harness.evaluation.likelihoods import Requests, likelihoods, sees_branches
from harness.evaluation.packing import Request, batches_of, items_of, rows_of
from harness.evaluation.prepared import encode
from harness.models.decoder import decoder_of
from harness.models.placement import Where, place

LONGEST = 40
BY_THEMSELVES = {"mistral", "qwen2", "gemma2", "gemma3_text", "bloom", "falcon-rw"}
"""Families with a window of 8 tokens, or with slopes that they make from a mask of padding."""


def drawn(seed: int = 0) -> list[Request]:
    """Requests of all kinds: shared contexts, single tokens, equal answers, equal beginnings, and such as are cut."""
    draw = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.randrange(3, 64) for _ in range(count))

    requests = []
    for length in (1, 3, 9, 17, 30, 38, 60):
        context, beginning = tokens(length), tokens(2)
        answers = [tokens(1), tokens(1), tokens(5), beginning + tokens(1), beginning + tokens(2)]
        requests += [Request(context, answer) for answer in (*answers, answers[2])]
    draw.shuffle(requests)
    return requests


def alone(model: Any, request: Request) -> tuple[float, bool]:
    """The text alone, cut from the left as lm-eval cuts it."""
    text = (request.context + request.answer)[-(LONGEST + 1) :]
    logits = model(torch.tensor([text[:-1]]), use_cache=False).logits[0].double().log_softmax(-1)
    behind = logits[len(logits) - len(request.answer) :]
    answer = torch.tensor(request.answer)
    return float(behind.gather(1, answer[:, None]).sum()), bool((behind.argmax(1) == answer).all())


@torch.no_grad()
@pytest.mark.parametrize("name", TINY)
def test_each_text_alone(name: str) -> None:
    model = tiny(name)
    decoder, requests = decoder_of(model), drawn()
    assert sees_branches(decoder, LONGEST) == (name not in BY_THEMSELVES)
    found = likelihoods(decoder, Requests(requests), LONGEST, "test")
    for one, request in zip(found, requests, strict=True):
        value, greedy = alone(model, request)
        assert one.value == pytest.approx(value, rel=1e-4, abs=1e-4) and one.greedy == greedy


@pytest.mark.parametrize("name", ["llama", "opt", "bloom", "gemma3_text"])
def test_block_by_block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = Requests(drawn())
    resident = likelihoods(decoder_of(tiny(name)), requests, LONGEST, "test")
    model = tiny(name)
    decoder = decoder_of(model)
    assert place(decoder, Where(torch.device("cpu"), offload=True)).offloaded
    for tokens, share in ((2048, 0.4), (128, 0.4), (128, 1e-6)):  # one batch, several, each by itself
        monkeypatch.setitem(module.AT_ONCE, "cpu", tokens)
        monkeypatch.setattr(module, "STATES", share)
        waiting = likelihoods(decoder, requests, LONGEST, "test")
        assert [one.value for one in waiting] == pytest.approx([one.value for one in resident], rel=1e-5, abs=1e-5)
        assert [one.greedy for one in waiting] == [one.greedy for one in resident]


def test_greedy_answers_are_found() -> None:
    model = tiny("llama")
    context = (5, 9, 13)
    with torch.no_grad():
        first = int(model(torch.tensor([context])).logits[0, -1].argmax())
        second = int(model(torch.tensor([(*context, first)])).logits[0, -1].argmax())
    requests = [Request(context, (first, second)), Request(context, (first, (second + 1) % 64))]
    found = likelihoods(decoder_of(model), Requests(requests), LONGEST, "test")
    assert [one.greedy for one in found] == [True, False]


def test_what_runs_is_counted_once() -> None:
    context, answers = tuple(range(10)), [(20, 21, 22), (20, 21, 23), (30,), (31,), (20, 21, 22)]
    (item,) = items_of([Request(context, answer) for answer in answers], LONGEST)
    assert len(item.tokens) == 10 + 2, "inputs that are equal run once, last tokens do not run"
    assert len(item.targets) == sum(map(len, answers))
    alone = items_of([Request(context, answer) for answer in answers], LONGEST, shared=False)
    assert sorted(len(one.tokens) for one in alone) == [10, 12]


def test_items_fit_and_are_all_there() -> None:
    requests = drawn(1)
    items = items_of(requests, LONGEST)
    assert max(len(item.tokens) for item in items) <= LONGEST
    rows = rows_of(items, 64)
    assert sum(len(row.items) for row in rows) == len(items)
    assert all(sum(len(item.tokens) for item in row.items) <= row.length for row in rows)
    batches = list(batches_of(rows, 128))
    assert all(batch.tokens.numel() <= 128 for batch in batches)
    counts = torch.bincount(torch.cat([batch.requests for batch in batches]), minlength=len(requests))
    assert counts.tolist() == [len(request.answer) for request in requests]


def test_long_items_are_split_between_answers() -> None:
    context = tuple(range(30))
    requests = [Request(context, tuple(range(start, start + 6))) for start in range(10, 50, 10)]
    assert [len(item.tokens) for item in items_of(requests, LONGEST)] == [40, 40]


@pytest.mark.parametrize("bos", [False, True])
def test_tokens_are_lm_evals(bos: bool) -> None:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "embedded-llama")
    model = LlamaForCausalLM.from_pretrained(EMBEDDED / "embedded-llama")
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=1, add_bos_token=bos)
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    theirs._loglikelihood_tokens = lambda requests, **_: seen.extend(  # type: ignore[method-assign]
        (tuple(context), tuple(answer)) for _, context, answer in requests
    )
    texts = [
        ("The river", " is long"), ("The river ", "is long"), ("The river\n\n", " is"), ("", "Is it?"),
        (f"{tokenizer.decode(theirs.prefix_token_id)}The", " end"), ("A bit", " c"),
    ]  # fmt: skip
    theirs.loglikelihood([type("Asked", (), {"args": pair}) for pair in texts], disable_tqdm=True)  # type: ignore[misc]
    assert encode(tokenizer, texts, bos) == seen
