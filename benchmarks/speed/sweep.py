"""A sweep of 63 points in one process, beside each point in a process of its own, as the authors' codes run.

    python -m benchmarks.speed.sweep     # two CPU cores
    python -m benchmarks.speed.sweep --shape 1b calibration=wikitext2-sample 'evaluation=[wikitext2]'     # an H200
    python -m benchmarks.speed.sweep --shape 160m --authors <folder of clones>     # the same beside the authors' codes

40, 50, 60, 65, 70, 75 and 80 % × magnitude, Wanda, SparseGPT × uniform, OWL, AlphaPruning, perplexity after each. The
clock of a side runs from the start of its first process to the end of its last: imports, loading and tokenising count.
Alone, `--alone` sparsities are run (all nine points of each) and counted up to seven. The ratio is printed only if both
sides give the same perplexities: equal numbers on a CPU, within `TOLERANCE` on a GPU. With `--shape` the model is a
random one, written to a temporary folder first. Further arguments are overrides of every point; `inputs=dense` is the
other experiment, whose ratio is to be told apart from this one.

With `--authors` the points alone are not ours: each is a process that runs the unmodified `main.py` of one of the
clones `wanda`, `OWL`, `AlphaPruning` below that folder (`pointwise.py`, which also says how close the numbers have to
be). Both sides then take C4's sample, WikiText-2 and float16 unless overrides say otherwise, and 128 windows of 2048
tokens; `calibration.windows=`, `calibration.length=` with `evaluation_window=`, and `evaluation_limit=` hold for both.

Prints a Markdown table with what was counted, and writes it to `results/bench/sweep_<model>.md`, the raw numbers to the
`.json` beside it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed import pointwise
from benchmarks.speed.common import SHAPES, shaped, write, write_raw
from benchmarks.speed.points import SPARSITIES, Given, Point, Side, points
from harness import compose
from harness.core.places import ROOT
from harness.execute import execute
from harness.prepare import prepare

TOLERANCE = 1e-3
COUNTED = {
    "loads": ("harness.session.load_model",),
    "block forwards": ("harness.calibration.walk.stream.Stream.run_piece",),
    "factorisations": ("harness.core.statistic.damped_inverse", "harness.core.statistic.unchecked_factor"),
    "spectra": ("harness.allocators.alphapruning.power_law_exponent",),
    "evaluations": ("harness.evaluation.perplexity.mean_nll",),
}
"""Where the functions are looked up, which for those imported by name is the module that calls them."""


def main() -> None:
    """Run both sides, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--alone", default="0.6", help="sparsities of the points that are run alone")
    parser.add_argument("--authors", type=Path, help="a folder of clones, whose code then runs alone in place of ours")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    if options.child:
        child(json.loads(options.child), options.overrides)
        return
    chosen = points([float(text) for text in options.alone.split(",")])
    if options.authors:
        options.overrides = pointwise.with_defaults(options.overrides)
        pointwise.on_one_device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        overrides = [*options.overrides, *(shaped(options.shape, folder) if options.shape else ())]
        common = None
        if options.authors:
            common = pointwise.setting(options.authors, overrides, chosen[0], folder / "authors")
        together = timed(points(SPARSITIES), overrides, folder / "together")
        print(f"together: {together.seconds:.1f} s", file=sys.stderr, flush=True)
        single = Side()
        for number, point in enumerate(chosen):
            alone = (
                partial(pointwise.run_alone, point, common)
                if common
                else partial(timed, [point], overrides, folder / f"alone{number}")
            )
            single = single.plus(alone())
            print(f"{point.name}: {single.points[point.name].seconds:.1f} s", file=sys.stderr, flush=True)
    if common:
        told_beside_authors(options, common, together, single, chosen)
    else:
        told(options, together, single, gate(together, single))


def timed(chosen: Sequence[Point], overrides: Sequence[str], folder: Path) -> Side:
    """These points in a process of their own."""
    order = json.dumps({"points": chosen, "records": str(folder)})
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed.sweep", "--child", order, *overrides], cwd=ROOT, capture_output=True
    )
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    told = json.loads((folder / "told.json").read_text(encoding="utf-8"))
    given = {name: Given(**one) for name, one in told["points"].items()}
    return Side(seconds, processor, given, Counter(told["counts"]), Counter(told["stages"]))


def child(order: dict[str, Any], overrides: Sequence[str]) -> None:
    """Run points one after the other, as a sweep does, and leave what they gave in a file."""
    compose.register()
    counts = Counter[str]()
    for name, places in COUNTED.items():
        for where in places:
            count(counts, name, where)
    side = Side(counts=counts)
    folder = Path(order["records"])
    for point in (Point(*one) for one in order["points"]):
        started = time.perf_counter()
        cfg = compose.compose_run([*overrides, f"records={folder}", *point.overrides])
        record = execute(prepare(cfg), in_sweep=True).record
        if record.status != "ok":
            raise SystemExit(f"{point.name}: {record.status}: {record.reason}")
        values = [measure["value"] for measure in record.measures]
        seconds = time.perf_counter() - started
        side.points[point.name] = Given(values, record.sparsity["achieved"] or 0.0, seconds)
        side.stages.update({name: stage["seconds"] for name, stage in record.stages.items()})
    (folder / "told.json").write_text(json.dumps(side.plain), encoding="utf-8")


def count(counts: Counter[str], name: str, where: str) -> None:
    """Count the calls of a function, or of a method of a class."""
    path, _, attribute = where.rpartition(".")
    try:
        owner: Any = importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, kind = path.rpartition(".")
        owner = getattr(importlib.import_module(module), kind)
    function = getattr(owner, attribute)

    def counted(*arguments: Any, **named: Any) -> Any:
        counts[name] += 1
        return function(*arguments, **named)

    setattr(owner, attribute, counted)


def gate(together: Side, alone: Side) -> float:
    """The largest relative difference of a perplexity.

    Raises:
        SystemExit: the two sides did not compute the same.
    """
    pairs = [
        (mine, theirs)
        for name, given in alone.points.items()
        for mine, theirs in zip(together.points[name].values, given.values, strict=True)
    ]
    worst = max(abs(mine - theirs) / theirs for mine, theirs in pairs)
    if worst > (TOLERANCE if torch.cuda.is_available() else 0.0):
        raise SystemExit(f"the perplexities differ by up to {worst:.3g}: no ratio is printed")
    return worst


def told(options: argparse.Namespace, together: Side, alone: Side, worst: float) -> None:
    """The table with what it was measured on."""
    share = len(together.points) / len(alone.points)
    lines = seconds_lines(together, alone)
    lines += [row(kind, together.counts[kind], alone.counts[kind] * share, "{:.0f}") for kind in COUNTED]
    stages = [(key, together.stages[key], alone.stages[key] * share) for key in alone.stages]
    lines += [row(f"stage {key} (s)", mine, theirs, "{:.1f}") for key, mine, theirs in stages]
    finish(options, together, alone, f"Largest relative difference of a perplexity: {worst:.3g}", lines)


def told_beside_authors(
    options: argparse.Namespace, common: pointwise.Setting, together: Side, alone: Side, chosen: Sequence[Point]
) -> None:
    """The same beside the authors' codes, in which nothing is counted, by method and allocator."""
    try:
        worst = pointwise.compare(together, alone, chosen)
    except SystemExit:
        # what was computed is kept: it is needed to find out why
        write_raw(f"sweep_{model_name(options)}_refused", raw(options, together, alone))
        raise
    lines = seconds_lines(together, alone)
    lines += [f"| {kind} | {together.counts[kind]} | – | – |" for kind in COUNTED]
    lines += [f"| stage {key} (s) | {seconds:.1f} | – | – |" for key, seconds in together.stages.items()]
    lines += pointwise.breakdown(together, alone, chosen)
    finish(options, together, alone, f"{common.about}. {pointwise.told_apart(worst, alone)}", lines)


def seconds_lines(together: Side, alone: Side) -> list[str]:
    """The head of the table and its lines of seconds, for all points on both sides."""
    number = len(together.points)
    share = number / len(alone.points)
    seconds, processor = alone.counted_up(share)
    return [
        "| | together | alone | ratio |",
        "|---|---|---|---|",
        row("seconds", together.seconds, seconds, "{:.1f}"),
        row("processor seconds", together.processor, processor, "{:.1f}"),
        row("seconds a point", together.seconds / number, seconds / number, "{:.2f}"),
    ]


def row(name: str, together: float, alone: float, form: str) -> str:
    """One line of the table."""
    ratio = f"{alone / together:.2f}" if together else "–"
    return f"| {name} | {form.format(together)} | {form.format(alone)} | {ratio} |"


def finish(options: argparse.Namespace, together: Side, alone: Side, about: str, lines: Sequence[str]) -> None:
    """Write table and raw numbers."""
    name, number, measured = model_name(options), len(together.points), len(alone.points)
    about = (
        f"{' '.join(options.overrides) or 'default settings'}. {about}. "
        f"Alone: {measured} of them measured, times {number / measured:g}."
    )
    data = raw(options, together, alone)
    write(f"sweep_{name}", f"A sweep of {number} points, model {name}", about, lines, data)


def model_name(options: argparse.Namespace) -> str:
    """The shape, or the name of the model asked for."""
    chosen = (text.removeprefix("model=") for text in options.overrides if text.startswith("model="))
    return options.shape or next(chosen, "default")


def raw(options: argparse.Namespace, together: Side, alone: Side) -> dict[str, Any]:
    """All that was measured."""
    return {
        "model": model_name(options),
        "overrides": options.overrides,
        "authors": pointwise.REVISIONS if options.authors else None,
        "share": len(together.points) / len(alone.points),
        "together": together.plain,
        "alone": alone.plain,
    }


if __name__ == "__main__":
    main()
