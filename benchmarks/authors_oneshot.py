"""Perplexity and first masks of one-shot methods beside their authors' codes, on the same windows, in float32.

    python -m benchmarks.authors_oneshot --clones <folder> --results <file.jsonl> [--workers 8]
    python -m benchmarks.authors_oneshot --results <file.jsonl> --table

`<folder>` holds work trees of the authors' repositories under the names in `CODES`; their functions run as they are
(`authors_code.py`).

A run is a model, a method, a setting and a number j: j = 0 has the windows as drawn, any other a permutation of them,
by which sums round differently. A method that this moves is compared by the means of several runs.

A line of the results is one side of a run. Runs that the file has are not done again.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import math
import multiprocessing
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import authors_code
from benchmarks.authors_code import CODES
from benchmarks.authors_table import table
from benchmarks.speed.common import device, give_positions, measured_on
from harness import catalogue
from harness.calibration.walk.batches import batched
from harness.compress import prune
from harness.core.pattern import parse_pattern
from harness.data.corpora import assets
from harness.data.windows import Calibration, calibration_windows, evaluation_windows
from harness.evaluation.perplexity import mean_nll
from harness.models.decoder import decoder_of

OURS: dict[str, dict[str, Any]] = {
    "ria": {"variant": "released"},
    "dsnot": {"variant": "released"},
    "thanos": {"variant": "released"},
    "alps": {},
    "admm": {"variant": "released"},
}
"""Settings of ours that follow the released codes."""
SETTINGS = {name: ("0.5", "0.7") if name in ("alps", "admm") else ("0.5", "0.7", "2of4") for name in CODES}
BROKEN = {("proxy-opt-11m", "dsnot", "2of4"): "prune_opt.py, line 147: name.split('.')[1] of 'fc1'"}
"""Where their code raises."""
RUNS = {"ria": 2, "dsnot": 2, "thanos": 5, "alps": 5, "admm": 5}
LENGTH = 512
TEXTS = ("wikitext2", "ptb")


class Task(NamedTuple):
    """A run of both sides."""

    model: str
    method: str
    setting: str
    number: int


class Work(NamedTuple):
    """Settings that all runs share."""

    clones: Path
    windows: int
    limit: int | None
    threads: int


def main() -> None:
    """Do what the file does not have yet, or print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--table", action="store_true", help="write results/bench/authors_oneshot.md instead")
    parser.add_argument("--clones", type=Path, help="work trees of the authors' repositories")
    parser.add_argument("--models", nargs="+", default=["proxy-llama-11m", "proxy-opt-11m"])
    parser.add_argument("--methods", nargs="+", default=list(CODES), choices=list(CODES))
    parser.add_argument("--settings", nargs="+", help="only these, for example 0.5 2of4")
    parser.add_argument("--runs", type=int, help="runs of each point, in place of RUNS")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--limit", type=int, help="windows of each text that are evaluated")
    parser.add_argument("--workers", type=int, default=1, help="processes")
    parser.add_argument("--threads", type=int, default=1, help="threads of a process")
    options = parser.parse_args()
    if options.table:
        table([json.loads(line) for line in options.results.read_text(encoding="utf-8").splitlines()])
        return
    if options.clones is None:
        parser.error("--clones is needed")
    work = Work(options.clones.resolve(), options.windows, options.limit, options.threads)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    there = finished(options.results, work)
    tasks = [task for task in tasks_of(options) if task not in there]
    with options.results.open("a", encoding="utf-8") as file:
        for lines in results(tasks, work, options.workers):
            file.writelines(json.dumps(line) + "\n" for line in lines)
            file.flush()


def tasks_of(options: argparse.Namespace) -> list[Task]:
    """All runs that were asked for, the first of every point before the second of any."""
    points = [
        (model, method, setting)
        for method in sorted(options.methods, key=list(CODES).index, reverse=True)  # the slow ones first
        for model in options.models
        for setting in SETTINGS[method]
        if (not options.settings or setting in options.settings) and (model, method, setting) not in BROKEN
    ]
    numbered = itertools.product(range(options.runs or max(RUNS.values())), points)
    tasks = (Task(model, method, setting, number) for number, (model, method, setting) in numbered)
    return [task for task in tasks if task.number < (options.runs or RUNS[task.method])]


def finished(results: Path, work: Work) -> set[Task]:
    """The runs of which a file has both sides."""
    if not results.exists():
        return set()
    lines = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    same = [line for line in lines if (line["windows"], line["limit"]) == (work.windows, work.limit)]
    sides = [(Task(line["model"], line["method"], line["setting"], line["number"]), line["side"]) for line in same]
    return {task for task, _ in sides if all((task, side) in sides for side in ("ours", "theirs"))}


def results(tasks: list[Task], work: Work, workers: int) -> Iterator[list[dict[str, Any]]]:
    """The lines of every run, as they come; a run that fails has none."""
    if workers == 1:
        yield from (lines for task in tasks if (lines := attempted(task, work)))
        return
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for one in as_completed([pool.submit(attempted, task, work) for task in tasks]):
            if lines := one.result():
                yield lines


def attempted(task: Task, work: Work) -> list[dict[str, Any]]:
    """The lines of a run; of one that fails the traceback is printed."""
    try:
        return compared(task, work)
    except Exception:
        print(task, traceback.format_exc(), file=sys.stderr, flush=True)
        return []


@torch.no_grad()
def compared(task: Task, work: Work) -> list[dict[str, Any]]:
    """Both sides of a run, and how many weights are zero in one of two models alone.

    `apart` compares the first blocks of the sides on the same windows; `moved` theirs with their own on the windows as
    drawn; `all` and `unseen` all blocks of the sides, and of that the weights of inputs that are zero on all windows.
    Theirs takes any of equal scores for N:M, and those weights score nothing.
    """
    begin(work.threads)
    tokens = windows(task.model, work.windows)
    given = tokens if not task.number else tokens[order(task.number, len(tokens))]
    sides = {}
    for side, way in (("theirs", theirs), ("ours", ours)):
        model = fresh(task.model)
        synchronise()
        started = time.perf_counter()
        way(model, task, given, work)
        synchronise()
        sides[side] = (model.to(device()), time.perf_counter() - started)
    masks = {side: zeros(model) for side, (model, _) in sides.items()}
    everywhere = apart_everywhere(sides["ours"][0], sides["theirs"][0], given)
    moved = None
    if task.number:
        shallow = fresh(task.model, blocks=1)
        theirs(shallow, task, tokens, work)
        moved = differing(masks["theirs"], zeros(shallow))
    common = task._asdict() | {"windows": work.windows, "limit": work.limit, "where": measured_on()}
    common |= {"apart": differing(masks["ours"], masks["theirs"]), "moved": moved} | everywhere
    common["weights"] = {name: mask.numel() for name, mask in masks["ours"].items()}
    return [
        common | {"side": side, "seconds": seconds, "zeros": share_of_zeros(model)} | perplexities(model, task, work)
        for side, (model, seconds) in sides.items()
    ]


@cache
def begin(threads: int) -> None:
    """Prepare a process."""
    torch.set_num_threads(threads)
    give_positions()
    catalogue.discover()
    if not torch.cuda.is_available():
        authors_code.stay_on_cpu()


def order(number: int, count: int) -> Tensor:
    """A permutation of the windows."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(number))


def synchronise() -> None:
    """Wait for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@cache
def dense(name: str) -> Any:
    """A model in float32 with plain attention, on the device."""
    path = folder(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    model.config.use_cache = False
    return model.eval().requires_grad_(False).to(device())


def folder(name: str) -> Path:
    """Where a proxy lies."""
    root = assets()
    if root is None:
        raise SystemExit("HARNESS_ASSETS names no folder with models and texts.")
    return root / "models" / name


def fresh(name: str, blocks: int | None = None) -> Any:
    """A copy of the dense model, or of its first blocks."""
    model = copy.deepcopy(dense(name))
    if blocks is not None:
        inner = model.model.decoder if "opt" in name else model.model
        inner.layers = inner.layers[:blocks]
        model.config.num_hidden_layers = blocks
    return model


@cache
def tokenizer(name: str) -> Any:
    """Of a proxy."""
    return AutoTokenizer.from_pretrained(folder(name))


@cache
def windows(name: str, count: int) -> Tensor:
    """Calibration windows (N, L) of the C4 sample, seed 0."""
    return calibration_windows(Calibration("c4-sample", count, LENGTH, 0), tokenizer(name), LENGTH).to(device())


@cache
def texts(name: str, limit: int | None) -> dict[str, Tensor]:
    """Windows (N, L) of each text that is evaluated."""
    drawn = {
        text: evaluation_windows(text, "test", tokenizer(name), LENGTH, documents=None, limit=limit) for text in TEXTS
    }
    return drawn


def perplexities(model: Any, task: Task, work: Work) -> dict[str, float]:
    """Of a pruned model, by our evaluator on either side."""
    decoder = decoder_of(model)
    return {text: math.exp(mean_nll(decoder, ids, device())) for text, ids in texts(task.model, work.limit).items()}


def zeros(model: Any) -> dict[str, Tensor]:
    """Where the matrices of the first block are zero, by the last part of their names."""
    linears = decoder_of(model).linears(0)
    return {site.rsplit(".", 1)[-1]: (linear.weight == 0).cpu() for site, linear in linears.items()}


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, int]:
    """By matrix, the weights that are zero in one of two models alone."""
    return {name: int((one[name] != other[name]).sum()) for name in one}


def apart_everywhere(one: Any, other: Any, tokens: Tensor) -> dict[str, int]:
    """Of all blocks, the weights that are zero in one of two models alone, and of inputs that `other` never sees."""
    pairs = [(decoder_of(one).linears(index), decoder_of(other).linears(index)) for index in decoder_of(one).indices]
    linears = [(mine[site], yours[site]) for mine, yours in pairs for site in mine]
    seen = [torch.zeros(linear.in_features, dtype=torch.bool, device=tokens.device) for _, linear in linears]

    def look(_: Any, given: tuple[Tensor, ...], into: Tensor) -> None:
        into |= (given[0] != 0).flatten(0, -2).any(dim=0)

    hooks = [
        linear.register_forward_pre_hook(partial(look, into=into))
        for (_, linear), into in zip(linears, seen, strict=True)
    ]
    for window in tokens:
        other(window[None])
    for hook in hooks:
        hook.remove()
    apart = [(mine.weight == 0) != (yours.weight == 0) for mine, yours in linears]
    unseen = sum(int(mask[:, ~into].sum()) for mask, into in zip(apart, seen, strict=True))
    return {"all": sum(int(mask.sum()) for mask in apart), "unseen": unseen}


def share_of_zeros(model: Any) -> float:
    """Of all matrices of all blocks."""
    decoder = decoder_of(model)
    weights = [linear.weight for index in decoder.indices for linear in decoder.linears(index).values()]
    return sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights)


def ours(model: Any, task: Task, tokens: Tensor, work: Work) -> None:
    """Prune as a run does it."""
    decoder = decoder_of(model)
    method = catalogue.build("method", {"name": task.method} | OURS[task.method])
    sites = [site for index in decoder.indices for site in decoder.linears(index)]
    allocation = dict.fromkeys(sites, parse_pattern(task.setting))
    prune(decoder, batched(tokens), decoder.indices, method, allocation, masks=False)


def theirs(model: Any, task: Task, tokens: Tensor, work: Work) -> None:
    """Prune by the authors' code."""
    authors_code.run(work.clones, task.method, task.setting, model, tokens)


if __name__ == "__main__":
    main()
