"""The authors' side of a sweep: each point a process of its own that runs their `main.py`, and what holds it to ours.

Uniform points run in locuslab/wanda, OWL's in luuyin/OWL, AlphaPruning's in haiquanlu/AlphaPruning. AlphaPruning's code
keeps its metric in a file: the first of its points computes it, and its seconds count once, not once a sparsity.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from benchmarks.speed.authors import MOST_WINDOWS, Order, digest
from benchmarks.speed.points import ALLOCATORS, METHODS, Given, Point, Side
from harness import compose
from harness.core.places import ROOT
from harness.data.corpora import corpus_named
from harness.data.windows import calibration_windows, evaluation_windows
from harness.models.tokenizer import load_tokenizer
from harness.prepare import look_up

REVISIONS = {"wanda": "8e8fc87", "OWL": "dddb7a4", "AlphaPruning": "5f0e984"}
"""Clones, and the commits that were looked at."""
DEFAULTS = {"calibration": "c4-sample", "evaluation": "[wikitext2]", "dtype": "float16"}
"""Of both sides, unless told otherwise: what their codes do, on texts that are there."""
STAND_INS = {"wikitext train": ["wikitext2-sample", "train"], "wikitext test": ["wikitext2", "test"]}
"""Of WikiText-2's training text, which they tokenise and throw away, only a megabyte is at hand: less work for them."""
MODEL = "llama"
"""The name their codes see: OWL's looks into it for the family, all look for "opt", "30b", "65b"."""
SAME_ZEROS = 1e-3
BOUNDS = {
    ("magnitude", "uniform"): 0.005,
    ("wanda", "uniform"): 0.005,
    ("sparsegpt", "uniform"): 0.02,
    **{(method, "owl"): 0.05 for method in METHODS},
}
"""How far a perplexity may be from theirs. Ours fits allocations to the budget; of AlphaPruning it is only told."""


class Setting(NamedTuple):
    """Settings that all of their points share."""

    clones: Path
    order: Order
    windows: int
    seed: int
    tokens: dict[str, str]
    """Digests of ours, which theirs have to be."""

    @property
    def about(self) -> str:
        """For the table."""
        revisions = ", ".join(f"{name} {revision}" for name, revision in REVISIONS.items())
        dtype = self.order.dtype if self.order.dtype == "float16" else f"{self.order.dtype} (their codes say float16)"
        evaluated = "" if self.order.limit is None else f"{self.order.limit} windows of "
        return (
            f"Alone is the authors' code, a process a point ({revisions}). Both on one device, {dtype}, calibrated on "
            f"{self.windows} windows of {self.order.length}, evaluated on {evaluated}WikiText-2's test text"
        )


def with_defaults(overrides: Sequence[str]) -> list[str]:
    """Overrides, and the defaults for what they leave open."""
    named = {text.lstrip("+").partition("=")[0] for text in overrides}
    return [*(f"{key}={value}" for key, value in DEFAULTS.items() if key not in named), *overrides]


def on_one_device() -> None:
    """Of several GPUs both sides see the first: theirs would spread a model over all, ours its windows."""
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def setting(clones: Path, overrides: Sequence[str], point: Point, folder: Path) -> Setting:
    """Their side of what overrides say of ours; its folder holds the model under a name that suits them.

    Raises:
        SystemExit: their codes cannot do it.
    """
    compose.register()
    cfg = compose.compose_run([*overrides, *point.overrides])
    inputs = look_up(cfg)
    corpus = cfg.calibration.corpus
    wrong = [
        (missing := [name for name in REVISIONS if not (clones / name / "main.py").is_file()])
        and f"{clones} has no clone of {', '.join(missing)}",
        inputs.checkpoint.config.get("model_type") != "llama" and "their codes are compared on LLaMA only",
        list(cfg.evaluators) != ["wikitext2"] and "their codes evaluate on WikiText-2: 'evaluation=[wikitext2]'",
        corpus_named(corpus).sampling != "documents" and "their codes draw windows from documents, as of C4",
        cfg.calibration.windows > MOST_WINDOWS and f"their codes hold {MOST_WINDOWS} windows at most",
        cfg.dtype == "auto" and "both sides need a dtype by name",
        inputs.calibration_length != inputs.evaluation_window and "their codes know one length of windows",
    ]
    if any(wrong):
        raise SystemExit("; ".join(text for text in wrong if text) + ".")
    (folder / "metric").mkdir(parents=True)
    (folder / MODEL).symlink_to(inputs.checkpoint.folder.resolve())
    texts = {**STAND_INS, "c4 train": [corpus, "train"], "c4 validation": [corpus, "validation"]}
    order = Order(str(folder), texts, inputs.calibration_length, cfg.evaluation_limit, cfg.dtype)
    tokenizer = load_tokenizer(inputs.checkpoint, cfg.model)
    drawn = calibration_windows(cfg.calibration, tokenizer, order.length)
    text = ("wikitext2", "test", tokenizer, order.length)
    tokens = {
        "calibration": digest(drawn),
        "evaluation": digest(evaluation_windows(*text, documents=None, limit=order.limit)),
    }
    return Setting(clones.resolve(), order, cfg.calibration.windows, cfg.calibration.seed, tokens)


def run_alone(point: Point, common: Setting) -> Side:
    """One point of theirs, from the start of its process to its end."""
    clone, arguments = command(point, common)
    order = json.dumps(common.order._asdict())
    folder = Path(common.order.folder)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.authors", str(clone), order, "--", *arguments],
        cwd=ROOT,
        capture_output=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{clone.name}, {point.name}: {done.stderr.decode()[-3000:]}")
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    (folder / "told.json").unlink()
    # magnitude alone is not calibrated
    if any(common.tokens[use] != tokens for use, tokens in told["tokens"].items()):
        raise SystemExit(f"{clone.name}, {point.name}: its tokens are not ours, so there is nothing to compare.")
    given = Given([told["perplexity"]], told["sparsity"], seconds)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Side(seconds, processor, {point.name: given}, once=tuple(told.get("metric", (0.0, 0.0))))


def command(point: Point, common: Setting) -> tuple[Path, list[str]]:
    """The clone of a point, and the arguments of its `main.py`."""
    clone, suffix, settings = {
        "uniform": ("wanda", "", ()),
        "owl": ("OWL", "_owl", ("--Lamda", "0.08", "--Hyper_m", "5")),
        "alphapruning": (
            "AlphaPruning",
            "_ww",
            ("--ww_metric", "alpha_peak", "--ww_metric_cache", "metric", "--epsilon", "0.3"),
        ),
    }[point.allocator]
    return common.clones / clone, [
        *("--model", MODEL),
        *("--prune_method", f"{point.method}{suffix}"),
        *("--sparsity_ratio", str(point.sparsity)),
        *("--sparsity_type", "unstructured"),
        *("--nsamples", str(common.windows)),
        *("--seed", str(common.seed)),
        *("--save", "saved"),
        *settings,
    ]


def compare(ours: Side, theirs: Side, chosen: Sequence[Point]) -> dict[str, float]:
    """The largest relative difference of a perplexity by allocator.

    Raises:
        SystemExit: the two sides did not compute the same.
    """
    worst = dict.fromkeys(ALLOCATORS, 0.0)
    wrong = []
    for point in chosen:
        mine, other = ours.points[point.name], theirs.points[point.name]
        if abs(mine.achieved - other.achieved) > SAME_ZEROS:
            wrong.append(f"{point.name}: {mine.achieved:.5f} of the weights are zero, theirs {other.achieved:.5f}")
        apart = abs(mine.values[0] - other.values[0]) / other.values[0]
        worst[point.allocator] = max(worst[point.allocator], apart)
        # not "above the bound": a perplexity that is not a number is no agreement
        if not apart <= BOUNDS.get((point.method, point.allocator), float("inf")):
            wrong.append(f"{point.name}: perplexity {mine.values[0]:.6g}, theirs {other.values[0]:.6g} ({apart:.2%})")
    if wrong:
        raise SystemExit("\n".join(["no ratio is printed, for the two sides differ:", *wrong]))
    return worst


def breakdown(ours: Side, theirs: Side, chosen: Sequence[Point]) -> list[str]:
    """Mean seconds of a point by method and allocator; AlphaPruning's metric is left out of theirs."""
    lines = [
        "",
        "Mean seconds of a point, ours inside the sweep, theirs from the start of its process to its end:",
        "",
        "| method | allocator | together | alone | ratio |",
        "|---|---|---|---|---|",
    ]
    for method in METHODS:
        for allocator in ALLOCATORS:
            names = [point.name for point in chosen if (point.method, point.allocator) == (method, allocator)]
            suffix = f" method={method} allocator={allocator}"
            mine = fmean(given.seconds for name, given in ours.points.items() if name.endswith(suffix))
            # the first of AlphaPruning's points computed the metric
            metric = theirs.once[0] if (method, allocator) == (METHODS[0], "alphapruning") else 0.0
            other = (sum(theirs.points[name].seconds for name in names) - metric) / len(names)
            lines.append(f"| {method} | {allocator} | {mine:.2f} | {other:.2f} | {other / mine:.2f} |")
    return lines


def told_apart(worst: dict[str, float], theirs: Side) -> str:
    """How far the sides are from one another, and what was counted once."""
    apart = ", ".join(f"{allocator} {value:.2g}" for allocator, value in worst.items())
    return (
        f"Largest relative difference of a perplexity: {apart}. AlphaPruning's metric, {theirs.once[0]:.1f} s, which "
        "its code keeps in a file, counts once"
    )
