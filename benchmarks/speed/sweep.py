"""A sweep of 63 points in one process, beside each point in a process of its own, as the authors' codes run.

    python -m benchmarks.speed.sweep     # two CPU cores
    python -m benchmarks.speed.sweep --shape 1b calibration=wikitext2-sample 'evaluation=[wikitext2]'     # an H200

40, 50, 60, 65, 70, 75 and 80 % × magnitude, Wanda, SparseGPT × uniform, OWL, AlphaPruning, perplexity after each. The
clock of a side runs from the start of its first process to the end of its last: imports, loading and tokenising count.
Alone, `--alone` sparsities are run (all nine points of each) and counted up to seven. The ratio is printed only if both
sides give the same perplexities: equal numbers on a CPU, within `TOLERANCE` on a GPU. With `--shape` the model is a
random one, written to a temporary folder first. Further arguments are overrides of every point; `inputs=dense` is the
other experiment, whose ratio is to be told apart from this one. Prints a Markdown table with what was counted, and
writes it to `results/bench/sweep_<model>.md`.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.speed.common import SHAPES, device, random_model, write
from harness import compose
from harness.data.corpora import EMBEDDED
from harness.execute import execute
from harness.prepare import prepare
from harness.record.provenance import ROOT

SPARSITIES = (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
METHODS = ("magnitude", "wanda", "sparsegpt")
ALLOCATORS = ("uniform", "owl", "alphapruning")
TOLERANCE = 1e-3
COUNTED = {
    "loads": "harness.session.load_model",
    "block forwards": "harness.calibration.stream.Stream.run_piece",
    "factorisations": "harness.core.statistic.damped_inverse",
    "spectra": "harness.allocators.alphapruning.power_law_exponent",
    "evaluations": "harness.evaluation.perplexity.mean_nll",
}


class Side(NamedTuple):
    """Seconds of all points by the clock and of the processor, what each measured, what was counted, stages."""

    seconds: float
    processor: float
    values: dict[str, list[float]]
    counts: Counter[str]
    stages: Counter[str]

    def plus(self, other: Side) -> Side:
        """Both together."""
        values = {**self.values, **other.values}
        counts, stages = self.counts + other.counts, self.stages + other.stages
        return Side(self.seconds + other.seconds, self.processor + other.processor, values, counts, stages)


def main() -> None:
    """Run both sides, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--alone", default="0.6", help="sparsities of the points that are run alone")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    if options.child:
        child(json.loads(options.child), options.overrides)
        return
    alone = [float(text) for text in options.alone.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        overrides = [*options.overrides, *(shaped(options.shape, Path(folder)) if options.shape else ())]
        together = timed(points(SPARSITIES), overrides, Path(folder) / "together")
        print(f"together: {together.seconds:.1f} s", file=sys.stderr, flush=True)
        single = Side(0.0, 0.0, {}, Counter(), Counter())
        for number, point in enumerate(points(alone)):
            single = single.plus(timed([point], overrides, Path(folder) / f"alone{number}"))
    share = len(SPARSITIES) / len(alone)
    told(options, together, single, share, gate(together, single))


def points(sparsities: Sequence[float]) -> list[list[str]]:
    """The overrides of every point, sparsity outermost."""
    return [
        [f"sparsity={sparsity}", f"method={method}", f"allocator={allocator}"]
        for sparsity in sparsities
        for method in METHODS
        for allocator in ALLOCATORS
    ]


def shaped(shape: str, folder: Path) -> list[str]:
    """A random checkpoint of a shape, with the embedded tokenizer."""
    model = random_model(SHAPES[shape], SHAPES[shape].blocks, device())
    model.config.bos_token_id, model.config.eos_token_id = 0, 1
    model.save_pretrained(folder / shape)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "embedded-llama" / name, folder / shape)
    return ["model=hf", f"model.path={folder / shape}"]


def timed(chosen: list[list[str]], overrides: Sequence[str], folder: Path) -> Side:
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
    told = json.loads((folder / "told.json").read_text())
    return Side(seconds, processor, told["values"], Counter(told["counts"]), Counter(told["stages"]))


def child(order: dict[str, Any], overrides: Sequence[str]) -> None:
    """Run points one after the other, as a sweep does, and leave what they gave in a file."""
    compose.register()
    counts = Counter[str]()
    for name, where in COUNTED.items():
        count(counts, name, where)
    values: dict[str, list[float]] = {}
    stages = Counter[str]()
    folder = Path(order["records"])
    for point in order["points"]:
        cfg = compose.compose_run([*overrides, f"records={folder}", *point])
        _, record = execute(cfg, prepare(cfg), in_sweep=True)
        if record.status != "ok":
            raise SystemExit(f"{' '.join(point)}: {record.status}: {record.reason}")
        values[" ".join(point)] = [measure["value"] for measure in record.measures]
        stages.update({name: stage["seconds"] for name, stage in record.stages.items()})
    (folder / "told.json").write_text(json.dumps({"values": values, "counts": counts, "stages": stages}))


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
        for name, values in alone.values.items()
        for mine, theirs in zip(together.values[name], values, strict=True)
    ]
    worst = max(abs(mine - theirs) / theirs for mine, theirs in pairs)
    if worst > (TOLERANCE if torch.cuda.is_available() else 0.0):
        raise SystemExit(f"the perplexities differ by up to {worst:.3g}: no ratio is printed")
    return worst


def told(options: argparse.Namespace, together: Side, alone: Side, share: float, worst: float) -> None:
    """The table with what it was measured on."""
    name = options.shape or next((text[6:] for text in options.overrides if text.startswith("model=")), "default")
    number = len(together.values)
    measured = f"{len(alone.values)} of them measured, times {share:g}"
    about = (
        f"{' '.join(options.overrides) or 'default settings'}. Largest relative difference of a perplexity: "
        f"{worst:.3g}. Alone: {measured}."
    )
    lines = [
        "| | together | alone | ratio |",
        "|---|---|---|---|",
        row("seconds", together.seconds, alone.seconds * share, "{:.1f}"),
        row("processor seconds", together.processor, alone.processor * share, "{:.1f}"),
        row("seconds a point", together.seconds / number, alone.seconds * share / number, "{:.2f}"),
    ]
    lines += [row(kind, together.counts[kind], alone.counts[kind] * share, "{:.0f}") for kind in COUNTED]
    stages = [(key, together.stages[key], alone.stages[key] * share) for key in alone.stages]
    lines += [row(f"stage {key} (s)", mine, theirs, "{:.1f}") for key, mine, theirs in stages]
    write(f"sweep_{name}", f"A sweep of {number} points, model {name}", about, lines)


def row(name: str, together: float, alone: float, form: str) -> str:
    """One line of the table."""
    ratio = f"{alone / together:.2f}" if together else "–"
    return f"| {name} | {form.format(together)} | {form.format(alone)} | {ratio} |"


if __name__ == "__main__":
    main()
