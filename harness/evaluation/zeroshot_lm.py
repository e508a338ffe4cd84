"""Where the harness meets lm-eval: its installed templates, its tasks on our rows, its model class around our model.

lm-eval is imported inside the functions, so that naming a task and its protocol costs nothing.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib.util
import json
import logging
import os
import random
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
import yaml

from harness.data.vocabulary import check_tokens, embedding_rows
from harness.evaluation.likelihoods import likelihoods
from harness.evaluation.packing import Request
from harness.evaluation.prepared import PreparedTask
from harness.models.decoder import Decoder
from harness.runtime.errors import Refusal, UserError
from harness.runtime.oom import with_oom_backoff

FEWSHOT_SEED = 1234
"""The seed of few-shot examples, lm-eval's default."""

METRICS = ("acc", "acc_norm")
NOISY = ("lm_eval", "datasets", "httpx", "huggingface_hub")


class Score(NamedTuple):
    """One metric of one task as lm-eval reports it, as a fraction."""

    value: float
    stderr: float | None
    samples: int


def templates() -> Path:
    """The folder of lm-eval's installed task templates.

    Raises:
        UserError: lm-eval is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("zero-shot tasks need the package lm-eval, which is not installed: run make setup.")
    return Path(spec.submodule_search_locations[0]) / "tasks"


def package() -> str:
    """The version of the installed lm-eval."""
    templates()
    return version("lm_eval")


@lru_cache(maxsize=1)
def installed_tasks() -> dict[str, Path]:
    """Every installed task and its template: lm-eval's own index in a second, where its TaskManager takes 25."""
    name = re.compile(rb"^[\"']?task[\"']? *: *[\"']?([^\s\"'#\[]+)", re.MULTILINE)
    found: dict[str, Path] = {}
    for path in sorted(templates().rglob("*.yaml")):
        if match := name.search(path.read_bytes()):
            found.setdefault(match[1].decode(), path)
    return found


@lru_cache(maxsize=64)
def read_template(path: Path) -> dict[str, Any]:
    """A template with what it includes, functions as their names; enough for version and splits."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))
    config: dict[str, Any] = yaml.load(path.read_bytes(), Loader=Loader)
    includes = config.pop("include", [])
    merged: dict[str, Any] = {}
    for include in [includes] if isinstance(includes, str) else includes:
        merged |= read_template(path.parent / include)
    return merged | config


def reports_accuracy(template: Mapping[str, Any]) -> bool:
    """Return whether a task has a metric that the harness records; multiple choice has them unless it lists others."""
    listed = template.get("metric_list")
    if listed is None:
        return template.get("output_type") == "multiple_choice"
    return any(metric["metric"] in METRICS for metric in listed)


def local_task(path: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    """The installed task of a template on our rows: only where the documents come from is replaced."""
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(path)
    config.pop("tag", None)
    return _task_on(config, splits)


def choice_task(name: str, task_version: float, rows: Sequence[Mapping[str, Any]]) -> Any:
    """A multiple-choice task on rows of query, choices and gold; a choice follows the query after one blank."""
    return _task_on(
        {
            "task": name,
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "query",
            "doc_to_choice": "choices",
            "doc_to_target": "gold",
            "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in METRICS],
            "metadata": {"version": task_version},
        },
        {"test": rows},
    )


def _task_on(config: dict[str, Any], splits: Mapping[str, Sequence[Mapping[str, Any]]]) -> Any:
    import datasets
    from lm_eval.api.task import ConfigurableTask

    documents = {split: datasets.Dataset.from_list([dict(row) for row in rows]) for split, rows in splits.items()}
    if prepare := config.pop("process_docs", None):  # once; lm-eval itself would prepare them at every look
        documents = {split: prepare(rows) for split, rows in documents.items()}
    for key in ("training_split", "validation_split", "test_split"):
        if config.get(key) not in documents:  # lm-eval reads every split that is named, needed or not
            config[key] = None
    return ConfigurableTask(config=config | {"custom_dataset": lambda **_: datasets.DatasetDict(documents)})


def hub_task(path: Path) -> Any:
    """The installed task of a template on the hub's documents; downloads what is not in the cache."""
    from lm_eval.tasks import TaskManager

    loaded = TaskManager(include_defaults=False).load([str(path)])["tasks"]
    return next(iter(loaded.values()))


def documents_hash(task: Any) -> str:
    """The sha256 of a task's documents, one line of JSON each."""
    digest = hashlib.sha256()
    for document in task.eval_docs:
        digest.update(json.dumps(document, sort_keys=True, default=str).encode() + b"\n")
    return digest.hexdigest()


def hub_revisions(task: Any) -> list[str]:
    """The hub revisions that a task's documents were taken from, as the data set remembers them."""
    urls: set[str] = set()
    for split in getattr(task, "dataset", {}).values():
        urls |= set(split.info.download_checksums or {})
    return sorted({match[1] for url in urls if (match := re.search(r"@([0-9a-f]{40})", url))})


def language_model(decoder: Decoder, tokenizer: Any, task: PreparedTask, bos: bool, exact_batch: int | None) -> Any:
    """lm-eval's Hugging Face model around ours, in its own context length, with log-probabilities in float32.

    Args:
        exact_batch: requests at a time by lm-eval's own loop; None: answers share their context, in batches of tokens.

    Raises:
        Refusal: a BOS is asked for and the tokenizer does not put exactly one in front.
    """
    from lm_eval.models.huggingface import HFLM

    class Scorer(HFLM):
        """Draws bars for a terminal only, and counts what a reader of the accuracy has to know."""

        truncated = 0
        undefined = 0
        unknown = 0.0

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            if exact_batch:
                return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())
            tokens = task.tokens(tokenizer, bos, [request.args for request in requests])
            self._look_at(tokens.requests)
            results = likelihoods(decoder, tokens, self.max_length, task.task.task_name)
            self.undefined += sum(one.value != one.value for one in results)
            return [(one.value, one.greedy) for one in results]

        def _loglikelihood_tokens(self, requests: list[Any], **options: Any) -> list[tuple[float, bool]]:
            self._look_at([Request(tuple(query), tuple(answer)) for _, query, answer in requests])
            results = with_oom_backoff(
                partial(self._in_batches, requests, options), self.batch_size, "zero-shot evaluation"
            )
            self.undefined += sum(likelihood != likelihood for likelihood, _ in results)
            return results

        def _look_at(self, requests: Sequence[Request]) -> None:
            tokens = torch.tensor([token for query, answer in requests for token in (*query, *answer)])
            self.unknown = check_tokens(tokens, self.tokenizer, embedding_rows(self.model), "the task")
            too_long = sum(len(answer) > self.max_length for _, answer in requests)
            if too_long:
                raise Refusal(f"{too_long} answers are longer than the model's context of {self.max_length} tokens.")
            self.truncated += sum(len(query) + len(answer) > self.max_length + 1 for query, answer in requests)

        def _in_batches(self, requests: list[Any], options: Mapping[str, Any], size: int) -> list[tuple[float, bool]]:
            self.batch_size_per_gpu = size
            return super()._loglikelihood_tokens(requests, **options)

    if bos:
        _check_bos(tokenizer)
    return Scorer(
        pretrained=decoder.model,
        tokenizer=copy.deepcopy(tokenizer),  # lm-eval sets its padding
        batch_size=exact_batch or 1,
        add_bos_token=bos,
        softmax_dtype=torch.float32,  # a sum of bfloat16 log-probabilities tells few endings apart
    )


def _check_bos(tokenizer: Any) -> None:
    ids = tokenizer.encode("a", add_special_tokens=True)
    bare = tokenizer.encode("a", add_special_tokens=False)
    if tokenizer.bos_token_id is None or ids != [tokenizer.bos_token_id, *bare]:
        raise Refusal("add_bos_token=true, but the tokenizer of this model does not put one BOS in front of a text.")


def with_examples(task: Any, fewshot: int) -> Any:
    """A task that shows so many solved examples, drawn with lm-eval's seed."""
    task.set_config(key="num_fewshot", value=fewshot)
    task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return task


def evaluate(lm: Any, task: Any, limit: int | None = None) -> dict[str, Score]:
    """The accuracies of any lm-eval language model on one task (`with_examples`), by lm-eval's evaluator.

    Equivalent to `simple_evaluate(model=lm, tasks=[task], limit=limit)` without its report on the
    machine (seconds for each task, and a question to the hub).
    """
    from lm_eval.evaluator import evaluate as run

    name = task.task_name
    with _templates_compiled_once():
        report: Any = run(
            lm=lm, task_dict={"tasks": {name: task}}, limit=limit, bootstrap_iters=1000, log_samples=False
        )
    found, samples = report["results"][name], report["n-samples"][name]["effective"]
    return {
        metric: Score(float(found[key]), _number(found[f"{metric}_stderr,{filtered}"]), int(samples))
        for key in found
        for metric, _, filtered in [key.partition(",")]
        if metric in METRICS
    }


@contextlib.contextmanager
def _templates_compiled_once() -> Iterator[None]:
    """lm-eval compiles a template anew for every document, which is most of its time beside the model's."""
    from lm_eval.utils import env

    environment: Any = env
    environment.from_string = lru_cache(maxsize=None)(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) else None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No word from lm-eval and its helpers on standard output or in the log, bars on a terminal only."""
    import datasets

    with contextlib.ExitStack() as stack:
        for logger in map(logging.getLogger, NOISY):
            stack.callback(logger.setLevel, logger.level)
            logger.setLevel(logging.ERROR)
        out: TextIO = sys.stderr
        if not out.isatty():  # lm-eval draws its bars wherever it is
            out = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stderr(out))
            if not datasets.are_progress_bars_disabled():
                stack.callback(datasets.enable_progress_bars)
                datasets.disable_progress_bars()
        stack.enter_context(contextlib.redirect_stdout(out))
        yield


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """lm-eval's default seeds inside; outside, Python's, NumPy's and torch's generators are as they were."""
    import numpy

    state, numpy_state = random.getstate(), numpy.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(0)
        numpy.random.seed(1234)
        torch.default_generator.manual_seed(1234)
        try:
            yield
        finally:
            random.setstate(state)
            numpy.random.set_state(numpy_state)
