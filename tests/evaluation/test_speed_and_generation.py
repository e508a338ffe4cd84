"""Speed and generation of a model that was cut: what runs, what is counted, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny
from torch import Tensor, nn

from harness.core.structure import Cut, Plan, Unit
from harness.evaluation.generation import Generation, answered, repetition, until
from harness.evaluation.protocol import Context, Measure
from harness.evaluation.speed import Speed, continued
from harness.models.decoder import Decoder, decoder_of
from harness.models.placement import Where, place
from harness.models.surgery import operate
from harness.runtime.errors import Refusal, UserError
from harness.session import Session

CPU = torch.device("cpu")
CONTEXT = Context(window=24, limit=None, seed=0, device=CPU)
SHORT = Speed(prompt=5, new=6, batch=3, repeats=3, warmup=1)
CUT = Plan(Cut(frozenset({Unit("block", 1), Unit("attention", 0), Unit("head", 2, 0), Unit("channel", 2, 3)})))


def cut_model(family: str = "llama") -> Decoder:
    return operate(decoder_of(tiny(family, num_hidden_layers=4)), CUT)


def forwards(model: nn.Module) -> list[tuple[int, int]]:
    """The shapes (B, L) of the tokens of every forward from now on."""
    seen: list[tuple[int, int]] = []

    def look(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens: Tensor = positional[0] if positional else named["input_ids"]
        seen.append((tokens.shape[0], tokens.shape[1]))

    model.register_forward_pre_hook(look, with_kwargs=True)
    return seen


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_what_is_timed(family: str) -> None:
    """A prefill of the window, then prompts that are read once and decoded one token a forward, in every repeat."""
    decoder = cut_model(family)
    seen = forwards(decoder.model)
    measures = list(SHORT(decoder, None, CONTEXT))
    times = SHORT.repeats + SHORT.warmup
    one, together = ([(batch, 5)] + [(batch, 1)] * 5 for batch in (1, 3))
    assert seen == [(1, 24)] * times + one * times + together * times
    assert [(one.task, one.metric) for one in measures] == [
        *(("speed", metric) for metric in ("prefill_ms", "decode_tokens_per_s", "peak_bytes")),
        *(("speed@3", metric) for metric in ("decode_tokens_per_s", "peak_bytes")),
    ]
    assert all(one.value is not None and one.value > 0 for one in measures)
    assert measures[0].samples == 3 and measures[0].note.startswith("quartiles")


def test_the_clock_counts_the_tokens_behind_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that goes a second a look, 3 prompts and 5 further tokens take one: 15 tokens a second."""
    moments = iter(range(10**6))
    monkeypatch.setattr("harness.evaluation.speed.time.perf_counter", lambda: float(next(moments)))
    measures = {(one.task, one.metric): one for one in SHORT(cut_model(), None, CONTEXT)}
    assert measures["speed", "prefill_ms"].value == 1000
    assert measures["speed", "decode_tokens_per_s"].value == 5
    assert measures["speed@3", "decode_tokens_per_s"].value == 15
    assert measures["speed@3", "decode_tokens_per_s"].stderr == 0


def test_the_protocol_names_machine_dtype_and_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    def protocol(decoder: Decoder) -> str:
        return next(iter(SHORT(decoder, None, CONTEXT))).protocol

    decoder = cut_model()
    known = protocol(decoder)
    assert f"{torch.get_num_threads()}-CPU-threads" in known
    assert protocol(decoder) == known
    decoder.model.to(torch.bfloat16)
    assert protocol(decoder) != known
    decoder.model.to(torch.float32)
    decoder.model.set_attn_implementation("sdpa" if decoder.config._attn_implementation != "sdpa" else "eager")
    assert protocol(decoder) != known


def test_what_cannot_be_timed_is_one_sentence() -> None:
    decoder = cut_model()
    with pytest.raises(Refusal, match="more than the model's context"):
        list(replace(SHORT, prefill=10**6)(decoder, None, CONTEXT))
    place(decoder, Where(CPU, offload=True))
    with pytest.raises(Refusal, match="lies on its device as a whole"):
        list(SHORT(decoder, None, CONTEXT))
    with pytest.raises(UserError, match="repeats at least 2"):
        Speed(repeats=1)


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_continuations_are_greedy(family: str) -> None:
    """The cache of the cut model gives what forwards over the whole text give."""
    decoder = cut_model(family)
    decoder.model.generation_config.eos_token_id = None
    tokens = torch.arange(10).reshape(2, 5) + 3
    found, known = continued(decoder, tokens, 7), tokens
    with torch.no_grad():
        for _ in range(7):
            known = torch.cat([known, decoder.model(known, use_cache=False).logits[:, -1].argmax(-1)[:, None]], dim=1)
    assert torch.equal(found, known[:, 5:])


def test_repetitions() -> None:
    assert repetition([1, 2, 3, 4], 2) == 0
    assert repetition([5, 5, 5, 5, 5], 2) == 0.75  # one distinct pair of four
    assert repetition([1, 2, 1, 2, 1], 3) == pytest.approx(1 / 3)
    assert until([4, 7, 2, 9], {2}) == [4, 7]


def test_open_answers_are_compared_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question is continued beside others of its length only; more words behind the answer do no harm."""
    said = {"a b": "the cat sat", "b": "the dog", "c d": "cat"}
    words = ["a", "b", "c", "d", "the", "cat", "dog", "sat", "."]

    class Words:
        bos_token_id = None

        def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
            return {"input_ids": [words.index(word) for word in text.split()]}

        def decode(self, tokens: list[int], **_: Any) -> str:
            return " ".join(words[token] for token in tokens)

    lengths = []

    def write(_: Decoder, tokens: Tensor, new: int, **__: Any) -> Tensor:
        lengths.append(tokens.shape[1])
        lines = [said[Words().decode(row)] for row in tokens.tolist()]
        return torch.tensor([(Words()(line)["input_ids"] + [8] * new)[:new] for line in lines])

    monkeypatch.setattr("harness.evaluation.generation.continued", write)
    choices = ["the cat", "the dog", "cat"]
    rows = [{"query": query, "choices": choices, "gold": gold} for query, gold in (("a b", 0), ("b", 0), ("c d", 2))]
    assert answered(cut_model(), Words(), rows, CPU) == [True, False, True]
    assert sorted(lengths) == [1, 2]


def test_both_on_the_embedded_model(typed: Callable[..., Any], tmp_path: Path) -> None:
    """Of a cut model with its own tokenizer; sizes are in the record, accuracy is that of the task itself."""
    small = ["new=4", "batch=2", "repeats=2", "warmup=0", "prefill=32", "prompt=8"]
    record = typed(
        *("planner=block_influence", "method=none", "evaluation=[speed,generation,embedded-facts]"),
        *(f"evaluation.speed.{setting}" for setting in small),
        *("evaluation.generation.prompts=4", "evaluation.generation.new=8", "evaluation_limit=12"),
        *("calibration.windows=2", "calibration.length=64", f"records={tmp_path}"),
    ).record
    measures = {(one["task"], one["metric"]): one for one in record["measures"]}
    assert measures["generation", "acc"]["value"] == measures["embedded-facts", "acc"]["value"]
    assert measures["generation", "exact_match"]["samples"] == 12
    for n in (2, 3, 4):
        assert 0 <= measures["generation", f"rep_{n}"]["value"] < 1
    assert measures["speed@2", "decode_tokens_per_s"]["samples"] == 2
    sizes = record["parameters"]
    assert sizes["disk_bytes"] == 4 * sizes["model"] and min(sizes["macs"], sizes["kv_bytes"]) > 0
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("name", ["speed", "generation"])
def test_offload_is_refused_before_the_work(name: str, typed: Callable[..., Any], tmp_path: Path) -> None:
    done = typed("method=none", f"evaluation=[{name}]", "offload=on", f"records={tmp_path}")
    assert done.status == 2 and "record:" not in done.out
    assert f"evaluation={name} needs a model that stays on its device; with offload its weights would wait" in done.err


def test_a_task_without_open_answers_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no open answers; there are embedded-cloze, embedded-facts"):
        Generation(task="hellaswag")


def test_seconds_are_measured_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of one process share what they measure of a dense model, but for what is of the moment."""
    monkeypatch.setattr("harness.session._model_key", lambda _: "key")
    monkeypatch.setattr("harness.session.tokenizer_hashes", lambda _: [])
    monkeypatch.setattr("harness.session.describe", lambda judge: type(judge).__name__)
    calls: list[str] = []

    def judge(name: str, *, anew: bool) -> Any:
        @dataclass(frozen=True)
        class Judge:
            measures_anew = anew

            def protocol(self, context: Context) -> str:
                return name

            def __call__(self, decoder: Decoder, tokenizer: Any, context: Context) -> Iterator[Measure]:
                calls.append(name)
                yield Measure(name, "acc", float(len(calls)), None, name, 1)

        return Judge()

    evaluators = {"kept": judge("kept", anew=False), "timed": judge("timed", anew=True)}
    cfg = SimpleNamespace(evaluators=evaluators, numerics="fast")
    data = {name: {"sha256": ""} for name in evaluators}
    run: Any = SimpleNamespace(cfg=cfg, inputs=SimpleNamespace(checkpoint=None), facts={"data": data})
    session, decoder = Session(keeps=True), cut_model()
    first, again = (session.dense_measures(run, decoder, None, CONTEXT) for _ in range(2))
    assert calls == ["kept", "timed", "timed"]
    assert first[0] == again[0] and first[1]["value"] != again[1]["value"]
    assert session.tally["measures"] == 1
