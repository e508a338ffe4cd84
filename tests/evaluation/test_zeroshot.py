"""Zero-shot tasks: our rows through lm-eval's own templates, known scorers, and what users get wrong.

Chance: a random scorer finds one of k choices, so the mean of 1/k over a task's items. A constant scorer ties, takes
the first choice, and so gets the share of items whose answer is the first one: chance, but for BoolQ's 62 % of yes.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
from lm_eval.api.model import LM

from harness.data import corpora
from harness.data import zeroshot as data
from harness.evaluation import zeroshot_lm
from harness.evaluation.protocol import Context
from harness.evaluation.zeroshot import ZeroShot
from harness.evaluation.zeroshot_lm import evaluate, hub_task, quiet, templates, with_examples
from harness.runtime.errors import UserError

SAMPLES = {
    "boolq": 3270,
    "rte": 277,
    "hellaswag": 10042,
    "winogrande": 1267,
    "arc_easy": 2376,
    "arc_challenge": 1172,
    "openbookqa": 500,
    "piqa": 1838,
}
ROWS = json.loads(Path(__file__).with_name("zeroshot_rows.json").read_text())
"""The first two items of each task: as the local file has them, and as the hub has them (written by hand)."""

ASSETS = Path(os.environ.get("HARNESS_ASSETS") or "/nowhere", "data")
needs_assets = pytest.mark.skipif(not (ASSETS / "zeroshot").is_dir(), reason="HARNESS_ASSETS has no zeroshot files")
CONTEXT = Context(window=32, limit=None, seed=0, device=torch.device("cpu"))


def write_task(folder: Path, monkeypatch: pytest.MonkeyPatch, task: str, rows: dict[str, list[Any]]) -> dict[str, Path]:
    """A folder of assets that holds rows as the task's files, with the hashes of these files known."""
    known, files, paths = data.TASKS[task], {}, {}
    for split, items in rows.items():
        path = folder / "data" / known.files[split].path
        content = "".join(json.dumps(item) + "\n" for item in items).encode()
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        files[split] = replace(known.files[split], sha256=hashlib.sha256(content).hexdigest())
        paths[split] = path
    monkeypatch.setitem(data.TASKS, task, replace(known, files=known.files | files))
    monkeypatch.setenv("HARNESS_ASSETS", str(folder))
    return paths


class Stub(LM):
    """A language model that is a function from (item, choice) to log-likelihood."""

    def __init__(self, likelihood: Callable[[int, int], float]) -> None:
        super().__init__()
        self.likelihood = likelihood

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        return [(self.likelihood(request.doc_id, request.idx), False) for request in requests]

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Any]) -> list[str]:
        raise NotImplementedError


def score(lm: LM, task: Any, fewshot: int = 0) -> dict[str, zeroshot_lm.Score]:
    with quiet():
        return evaluate(lm, with_examples(task, fewshot))


def requests(task: Any) -> list[tuple[str, str]]:
    """Every (prompt, choice) pair in order."""
    with quiet():
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=None, rank=0, world_size=1)
    return [request.args for request in task.instances]


def golds(task: str, rows: list[Any]) -> list[int]:
    """The index of each right choice, from the rows as the file has them."""
    if task == "winogrande":
        return [int(row["answer"]) - 1 for row in rows]
    return [int(row["answer"] if task == "boolq" else row["label"]) for row in rows]


def choices(task: str, row: Any) -> int:
    return len(row.get("choices") or row.get("endings") or ("one", "other"))


@pytest.mark.parametrize("task", SAMPLES)
def test_prompts_are_those_of_the_installed_template(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = data.TASKS[task]
    write_task(tmp_path, monkeypatch, task, {known.evaluated: ROWS[task]["local"]})
    ours = ZeroShot(task).load()
    asked: list[Any] = []

    def from_hub(path: str, name: str | None = None, **_: Any) -> Any:
        asked.append((path, name))
        rows = datasets.Dataset.from_list(ROWS[task]["hub"])
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), rows))

    monkeypatch.setattr(datasets, "load_dataset", from_hub)
    theirs = hub_task(templates() / str(known.template))
    assert asked == [(theirs.DATASET_PATH, theirs.DATASET_NAME)]
    assert requests(ours) == requests(theirs)
    perfect = Stub(lambda item, choice: -float(choice != golds(task, ROWS[task]["local"])[item]))
    for built in (ours, theirs):
        assert {score.value for score in score(perfect, built).values()} == {1.0}
    assert ours.VERSION == theirs.VERSION


def test_hellaswag_markup_is_removed_as_lm_eval_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = {
        "activity_label": "Home",
        "ctx_a": "[header] How to tie a knot [title] Take a rope. [step] Hold it.",
        "ctx_b": "the rope",
        "endings": ["is long. [title] Pull it.", "[substeps] is short."],
        "label": "0",
    }
    local = {
        "activity_label": "Home",
        "query_lmeval": "Home: How to tie a knot. Take a rope. Hold it. The rope",
        "endings": ["is long.. Pull it.", "is short."],
        "label": 0,
    }
    write_task(tmp_path, monkeypatch, "hellaswag", {"validation": [local]})
    ours = requests(ZeroShot("hellaswag").load())
    path = templates() / "hellaswag" / "hellaswag.yaml"
    theirs = requests(zeroshot_lm.local_task(path, {"validation": [hub]}))
    assert ours[0] == theirs[0]
    assert ours[1] == (theirs[1][0], " is short.") and theirs[1][1] == "  is short."  # the departure that is recorded
    assert "endings without the blank" in ZeroShot("hellaswag").protocol(CONTEXT).settings["departure"]


def test_evaluate_is_lm_evals_own_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    write_task(tmp_path, monkeypatch, "arc_easy", {"test": ROWS["arc_easy"]["local"] * 10})
    lm = Stub(lambda item, choice: -float((item * 7 + choice * 3) % 5))
    ours = score(lm, ZeroShot("arc_easy").load())
    with quiet():
        manager = TaskManager(include_defaults=False)
        report: Any = simple_evaluate(
            model=lm, tasks=[ZeroShot("arc_easy").load()], num_fewshot=0, task_manager=manager
        )
    theirs = report["results"]["arc_easy"]
    for metric in ("acc", "acc_norm"):
        assert ours[metric].value == theirs[f"{metric},none"] > 0
        assert ours[metric].stderr == theirs[f"{metric}_stderr,none"]
    assert ours["acc"].samples == 20


@needs_assets
@pytest.mark.assets
@pytest.mark.parametrize("task", SAMPLES)
def test_known_scorers_on_the_whole_file(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known = data.TASKS[task]
    path = ASSETS / known.files[known.evaluated].path
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    rows = [json.loads(line) for line in text.decode().split("\n") if line]
    assert rows[:2] == ROWS[task]["local"]
    assert ZeroShot(task).data_hash() == hashlib.sha256(text).hexdigest() == known.files[known.evaluated].sha256

    right, draw = golds(task, rows), random.Random(0)
    built = ZeroShot(task).load()
    perfect = score(Stub(lambda item, choice: -float(choice != right[item])), built)
    constant = score(Stub(lambda item, choice: 0.0), built)
    guess = score(Stub(lambda item, choice: math.log(draw.random())), built)
    chance = sum(1 / choices(task, row) for row in rows) / len(rows)
    error = 4 * math.sqrt(chance * (1 - chance) / len(rows))
    assert {result.samples for result in perfect.values()} == {SAMPLES[task]}
    assert {result.value for result in perfect.values()} == {1.0}
    assert all(result.value == pytest.approx(right.count(0) / len(rows)) for result in constant.values())
    assert abs(guess["acc"].value - chance) < error
    assert task == "boolq" or abs(constant["acc"].value - chance) < error


def test_fewshot_examples_come_from_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"id": "x", "question": "Which?", "choices": ["this", "that"], "label": 1}
    rows = {"test": ROWS["arc_easy"]["local"], "train": [other, other]}
    write_task(tmp_path, monkeypatch, "arc_easy", rows)
    evaluator = ZeroShot("arc_easy", fewshot=1)
    assert set(evaluator.protocol(CONTEXT).settings["sha256"]) == {"test", "train"}
    prompts: list[str] = []

    class Reader(Stub):
        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            prompts.extend(request.args[0] for request in requests)
            return super().loglikelihood(requests)

    score(Reader(lambda item, choice: 0.0), evaluator.load(), fewshot=1)
    question = ROWS["arc_easy"]["local"][0]["question"]
    assert prompts[0] == f"Question: Which?\nAnswer: that\n\nQuestion: {question}\nAnswer:"

    write_task(tmp_path, monkeypatch, "boolq", {"validation": ROWS["boolq"]["local"]})
    with pytest.raises(UserError, match="no training split to draw 5 examples from"):
        ZeroShot("boolq", fewshot=5).protocol(CONTEXT)


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"unknown lm-eval task 'bolq'; did you mean .*boolq"):
        ZeroShot("bolq")
    with pytest.raises(UserError, match="batch_size at least 1"):
        ZeroShot("boolq", batch_size=0)
    path = write_task(tmp_path, monkeypatch, "boolq", {"validation": ROWS["boolq"]["local"]})["validation"]
    path.write_bytes(gzip.compress(b"{}"))
    with pytest.raises(UserError, match="is not the one known"):
        ZeroShot("boolq").data_hash()
    path.write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        ZeroShot("boolq").load()
    monkeypatch.setattr(corpora, "EMBEDDED", tmp_path)
    with pytest.raises(UserError, match="run make embedded"):
        ZeroShot("embedded-cloze").data_hash()
    monkeypatch.setattr(zeroshot_lm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="need the package lm-eval"):
        ZeroShot("boolq").protocol(CONTEXT)
