"""Zero-shot accuracy of a tiny model: brute force, BOS, limit, notes, the hub, and that nothing is left behind."""

from __future__ import annotations

import json
import math
import random
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harness.data import corpora
from harness.evaluation import prepared
from harness.evaluation.protocol import Context
from harness.evaluation.zeroshot import ZeroShot
from harness.models.decoder import decoder_of
from harness.runtime.errors import Refusal, UserError

CONTEXT = Context(window=32, limit=None, seed=0, device=torch.device("cpu"))
EXACT = replace(CONTEXT, exact=True)
WORDS = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "tree", "question", "answer", "a", ".", "?", ":"]


@pytest.fixture
def facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The embedded task `embedded-facts`, 40 items of two choices."""
    draw = random.Random(1)
    rows = [
        {"query": f"the {draw.choice(WORDS[1:])} sat", "choices": ["on mat", "under tree ."], "gold": draw.randrange(2)}
        for _ in range(40)
    ]
    path = tmp_path / "tasks" / "embedded-facts.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(corpora, "EMBEDDED", tmp_path)
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Words, with a BOS from a post-processor in tokenizer.json, as the proxies have it."""
    words = Tokenizer(
        models.WordLevel({"<pad>": 0, "<s>": 1, "<unk>": 2} | {w: i + 3 for i, w in enumerate(WORDS)}, "<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="<s>", unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 3,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=24,
        tie_word_embeddings=True,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("add_bos_token", [False, True])
def test_bos_rule(facts: Path, model: LlamaForCausalLM, tokenizer: Any, add_bos_token: bool) -> None:
    assert tokenizer.encode("the cat")[0] == tokenizer.bos_token_id
    seen: list[torch.Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    evaluator = ZeroShot("embedded-facts", add_bos_token=add_bos_token, batch_size=4)
    shared, exact = (list(evaluator(decoder_of(model), tokenizer, context)) for context in (CONTEXT, EXACT))
    hook.remove()
    assert [m.value for m in shared] == [m.value for m in exact] and shared[0].protocol != exact[0].protocol
    for tokens in (one for one in seen if len(one) == 4):  # lm-eval's own batches
        assert ((tokens == 1).sum(dim=1) == int(add_bos_token)).all()
        assert not add_bos_token or (tokens[:, 0] == 1).all()
    assert any(len(tokens) == 4 for tokens in seen)
    assert ("no-bos" in evaluator.protocol(CONTEXT).name) != add_bos_token


def test_bos_is_refused_where_the_tokenizer_adds_none(facts: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    bare = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()), bos_token="<s>"
    )
    bare.backend_tokenizer.post_processor = None
    with pytest.raises(Refusal, match="does not put one BOS"):
        list(ZeroShot("embedded-facts", add_bos_token=True)(decoder_of(model), bare, CONTEXT))


def test_accuracy_is_the_likeliest_choice(facts: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    found: dict[str, int] = {"acc": 0, "acc_norm": 0}
    items = [json.loads(line) for line in facts.read_text().splitlines()]
    for item in items:
        prompt = tokenizer.encode(item["query"], add_special_tokens=False)
        sums = []
        for choice in item["choices"]:
            tokens = tokenizer.encode(f"{item['query']} {choice}", add_special_tokens=False)
            logs = model(torch.tensor([tokens])).logits[0].log_softmax(-1).detach()
            sums.append(sum(float(logs[i - 1, tokens[i]]) for i in range(len(prompt), len(tokens))))
        scores = {"acc": sums, "acc_norm": [s / len(c) for s, c in zip(sums, item["choices"], strict=True)]}
        for metric, values in scores.items():
            found[metric] += values.index(max(values)) == item["gold"]
    measures = {m.metric: m for m in ZeroShot("embedded-facts")(decoder_of(model), tokenizer, CONTEXT)}
    assert {name: m.value for name, m in measures.items()} == {name: n / len(items) for name, n in found.items()}
    assert measures["acc"].samples == 40 and measures["acc"].note == ""
    right = found["acc"] / 40
    assert measures["acc"].stderr == pytest.approx(math.sqrt(right * (1 - right) / 39))


def test_a_task_is_made_once_and_its_answers_are_the_models_own(
    facts: Path, model: LlamaForCausalLM, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Any] = []
    own = ZeroShot.load

    def counted(self: ZeroShot) -> Any:
        loads.append(own(self))
        return loads[-1]

    monkeypatch.setattr(prepared, "_PREPARED", {})
    monkeypatch.setattr(ZeroShot, "load", counted)
    torch.manual_seed(7)
    other = LlamaForCausalLM(model.config).eval()

    def values(one: LlamaForCausalLM) -> list[float | None]:
        return [m.value for m in ZeroShot("embedded-facts")(decoder_of(one), tokenizer, CONTEXT)]

    first, between, again = values(model), values(other), values(model)
    assert len(loads) == 1 and first == again != between
    alone = list(ZeroShot("embedded-facts")(decoder_of(other), tokenizer, EXACT))
    assert [m.value for m in alone] == between


def random_states() -> tuple[Any, ...]:
    numbers: Any = numpy.random.get_state()
    return random.getstate(), numbers[1].tolist(), torch.get_rng_state().tolist()


def test_nothing_is_left_behind(
    facts: Path,
    model: LlamaForCausalLM,
    tokenizer: Any,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    padding, settings = tokenizer.padding_side, dict(tokenizer.special_tokens_map)
    random.seed(5), numpy.random.seed(5), torch.manual_seed(5)
    before = random_states()
    measures = list(ZeroShot("embedded-facts")(decoder_of(model), tokenizer, CONTEXT))
    assert random_states() == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (tokenizer.padding_side, dict(tokenizer.special_tokens_map)) == (padding, settings)
    assert capfd.readouterr() == ("", "")
    assert len(measures) == 2


def test_limit_and_protocol(facts: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    evaluator, limited = ZeroShot("embedded-facts"), replace(CONTEXT, limit=10)
    measures = list(evaluator(decoder_of(model), tokenizer, limited))
    assert [m.samples for m in measures] == [10, 10]
    assert measures[0].protocol == str(evaluator.protocol(limited))
    assert evaluator.protocol(limited).name == "embedded-facts@lm-eval-1,0-shot,no-bos,limit=10"
    whole = evaluator.protocol(CONTEXT)
    assert whole.settings["sha256"] == {"test": evaluator.data_hash()}
    ids = {
        str(whole),
        str(evaluator.protocol(limited)),
        str(evaluator.protocol(EXACT)),
        str(ZeroShot("embedded-facts", batch_size=4).protocol(EXACT)),
    }
    assert len(ids) == 4
    assert ZeroShot("boolq").protocol(CONTEXT).name == "boolq@lm-eval-2.0,0-shot,no-bos"


def test_what_a_reader_has_to_know_is_noted(facts: Path, model: LlamaForCausalLM, tokenizer: Any) -> None:
    facts.write_text(json.dumps({"query": "the cat " * 20, "choices": ["sat", "ran"], "gold": 0}) + "\n")
    measures = list(ZeroShot("embedded-facts")(decoder_of(model), tokenizer, CONTEXT))
    assert measures[0].note == "2 requests were cut to the model's context of 24 tokens"
    assert measures[0].stderr is None

    broken = LlamaForCausalLM(model.config)
    broken.lm_head.weight.data.fill_(math.nan)
    measures = list(ZeroShot("embedded-facts")(decoder_of(broken), tokenizer, CONTEXT))
    assert measures[0].value is None and "not finite: 2 log-likelihoods" in measures[0].note

    facts.write_text(json.dumps({"query": "the", "choices": ["sat " * 30, "ran"], "gold": 0}) + "\n")
    with pytest.raises(Refusal, match="longer than the model's context of 24 tokens"):
        list(ZeroShot("embedded-facts")(decoder_of(model), tokenizer, CONTEXT))


def test_tasks_of_the_hub(monkeypatch: pytest.MonkeyPatch, model: LlamaForCausalLM, tokenizer: Any) -> None:
    monkeypatch.delenv("HARNESS_ASSETS", raising=False)
    row = {"question": "the cat ?", "support": "a mat", "correct_answer": "sat"}
    row |= {"distractor1": "ran", "distractor2": "tree", "distractor3": "dog"}
    rows = datasets.Dataset.from_list([row] * 3)
    rows.info.download_checksums = {f"hf://datasets/allenai/sciq@{'0a' * 20}/data/test.parquet": {}}
    monkeypatch.setattr(datasets, "load_dataset", lambda **_: datasets.DatasetDict(test=rows, train=rows))
    evaluator = ZeroShot("sciq")
    assert len(evaluator.data_hash()) == 64
    assert evaluator.protocol(CONTEXT).settings["source"] == "hub"
    measures = list(evaluator(decoder_of(model), tokenizer, CONTEXT))
    assert [(m.metric, m.samples, m.note) for m in measures] == [
        (metric, 3, f"hub revision {'0a' * 20}; 20.00% of the tokens of the task are the unknown one")
        for metric in ("acc", "acc_norm")
    ]

    def unreachable(**_: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    for task in ("sciq", "boolq"):
        with pytest.raises(UserError, match=rf"prefetch 'evaluation=\[{task}\]'"):
            ZeroShot(task).load()
    with pytest.raises(UserError, match="reports no accuracy"):
        ZeroShot("gsm8k").load()
