"""The sweep of 63 points counted up for a geometry at which the authors' codes take hours.

    python -m benchmarks.speed.count_up --shape 7b --authors <folder of clones>     # an H200
    python -m benchmarks.speed.count_up --shape 160m --authors <folder of clones>     # where sweep.py measures it whole

Needs `results/bench/block_<shape>.json` (`benchmarks/speed/block.py --authors`) and the clones of `sweep.py`. Measured
here, on a random checkpoint of the shape: ours, one process with the uniform and OWL's points of `OURS`, and the
spectra of one block; theirs, the processes of `THEIRS`. The rest is counted:

- ours: the points of the second sparsity stand for those of five more. AlphaPruning's points are uniform ones, their
  spectra those of one block times the blocks.
- theirs: SparseGPT's points are Wanda's, with the other seconds a block; OWL's scores cost each of its points what they
  cost Wanda's; AlphaPruning's points are uniform ones. Its metric is left out: its code computes it on the CPU and
  keeps it in a file.

No ratio is printed unless the perplexities of `THEIRS` agree as `pointwise.py` asks. Prints a Markdown table and writes
it to `results/bench/sweep_<shape>_counted.md`, its numbers beside it as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks.speed import pointwise
from benchmarks.speed.common import SHAPES, bench_folder, device, random_model, shaped, write
from benchmarks.speed.common import timed as clocked
from benchmarks.speed.points import ALLOCATORS, METHODS, SPARSITIES, Point, Side, points
from benchmarks.speed.sweep import timed
from harness.core.spectrum import power_law_exponent
from harness.models.decoder import decoder_of

OURS = (0.6, 0.7)
THEIRS = (Point(0.6, "magnitude", "uniform"), Point(0.6, "wanda", "uniform"), Point(0.6, "wanda", "owl"))


class Parts(NamedTuple):
    """Seconds, all measured.

    Of ours the whole process, its points at the second sparsity by method and allocator, and all spectra; of theirs the
    processes of `THEIRS`, and what a block of the model takes more with SparseGPT than with Wanda, times the blocks.
    """

    process: float
    second: Mapping[tuple[str, str], float]
    spectra: float
    magnitude: float
    wanda: float
    owl: float
    sparsegpt_more: float

    @property
    def ours(self) -> float:
        """Seconds of 63 points in one process."""
        more = len(SPARSITIES) - len(OURS)
        uniform = sum(seconds for (_, allocator), seconds in self.second.items() if allocator == "uniform")
        return self.process + more * sum(self.second.values()) + len(SPARSITIES) * uniform + self.spectra

    @property
    def theirs(self) -> float:
        """Seconds of 63 processes."""
        uniform = self.magnitude + self.wanda + (self.wanda + self.sparsegpt_more)
        scores = len(METHODS) * (self.owl - self.wanda)
        return len(SPARSITIES) * (len(ALLOCATORS) * uniform + scores)


def main() -> None:
    """Measure the parts, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--authors", type=Path, required=True)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_intermixed_args()
    more = sparsegpt_more(options.shape)
    overrides = pointwise.with_defaults(options.overrides)
    pointwise.on_one_device()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = [*overrides, *shaped(options.shape, folder)]
        common = pointwise.setting(options.authors, asked, THEIRS[0], folder / "authors")
        together = timed([point for point in points(OURS) if point.allocator != "alphapruning"], asked, folder / "ours")
        print(f"ours: {together.seconds:.1f} s", file=sys.stderr, flush=True)
        alone = Side()
        for point in THEIRS:
            alone = alone.plus(pointwise.run_alone(point, common))
            print(f"{point.name}: {alone.points[point.name].seconds:.1f} s", file=sys.stderr, flush=True)
    worst = max(pointwise.compare(together, alone, THEIRS).values())
    magnitude, wanda, owl = (alone.points[point.name].seconds for point in THEIRS)
    parts = Parts(
        together.seconds,
        {point[1:]: together.points[point.name].seconds for point in points(OURS[1:]) if point.name in together.points},
        spectra(options.shape),
        magnitude,
        wanda,
        owl,
        more,
    )
    report(options.shape, overrides, common.about, worst, parts)


def sparsegpt_more(shape: str) -> float:
    """Seconds that all blocks take more with the authors' SparseGPT than with their Wanda, by `block.py`.

    Raises:
        SystemExit: it was not measured.
    """
    kept = bench_folder() / f"block_{shape}.json"
    if not kept.exists():
        raise SystemExit(f"{kept.name} is not there: run python -m benchmarks.speed.block --shape {shape} --authors …")
    told = json.loads(kept.read_text(encoding="utf-8"))
    one, other = (statistics.median(told[f"{method}, authors"]["seconds"]) for method in ("sparsegpt", "wanda"))
    return SHAPES[shape].blocks * (one - other)


def spectra(shape: str) -> float:
    """Seconds of AlphaPruning's exponents of all blocks, one of them measured."""
    model = random_model(SHAPES[shape], 1, device())
    linears = decoder_of(model).linears(0).values()
    power_law_exponent(next(iter(linears)).weight)  # the first call loads the library
    seconds, _, _ = clocked(lambda: [power_law_exponent(linear.weight) for linear in linears])
    return SHAPES[shape].blocks * seconds


def report(shape: str, overrides: list[str], about: str, worst: float, parts: Parts) -> None:
    """The table: what was measured, and what follows."""
    second = [f"{method} {allocator} {seconds:.1f}" for (method, allocator), seconds in parts.second.items()]
    blocks, number = SHAPES[shape].blocks, len(points(SPARSITIES))
    lines = [
        "| | ours (s) | authors (s) |",
        "|---|---|---|",
        f"| one process, {2 * len(second)} points of two sparsities | {parts.process:.1f} | – |",
        f"| of these the second sparsity's | {sum(parts.second.values()):.1f} | – |",
        f"| spectra of {blocks} blocks, once | {parts.spectra:.1f} | not counted |",
        f"| a process, magnitude, uniform | – | {parts.magnitude:.1f} |",
        f"| a process, Wanda, uniform | – | {parts.wanda:.1f} |",
        f"| a process, Wanda, OWL | – | {parts.owl:.1f} |",
        f"| SparseGPT more than Wanda, {blocks} blocks | – | {parts.sparsegpt_more:.1f} |",
        f"| **{number} points, counted** | **{parts.ours:.0f}** | **{parts.theirs:.0f}** |",
        "",
        f"Ratio: **{parts.theirs / parts.ours:.2f}**. Our points at the second sparsity: {', '.join(second)} s.",
    ]
    data = {**parts._asdict(), "second": {" ".join(key): seconds for key, seconds in parts.second.items()}}
    data |= {"ours": parts.ours, "theirs": parts.theirs}
    about = f"{' '.join(overrides)}. {about}. Largest relative difference of a perplexity: {worst:.2g}."
    write(f"sweep_{shape}_counted", f"A sweep of {number} points counted up, shape {shape}", about, lines, data)


if __name__ == "__main__":
    main()
