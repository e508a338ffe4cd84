"""Cost of one candidate of a search beside the bare forward pass on its tokens.

    python -m benchmarks.speed.search --shape 7b     # an H200
    python -m benchmarks.speed.search --shape 11m --length 512     # two CPU cores

A random LLaMA model of the shape, its database of levels (every n of 4, by magnitude) in memory. Per repeat, in turn:
the model's own forward over the fitness windows; one candidate alone; a generation of sixteen mutants of one parent,
which share the blocks in which they agree. Prints a Markdown table and writes it to `results/bench/search_<shape>.md`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from random import Random

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.speed.common import SHAPES, device, gib, random_model, random_tokens, synchronise, write
from harness.calibration.views.model import LiveModelView
from harness.core.allocation import Budget
from harness.core.interfaces import Database
from harness.core.pattern import NofM
from harness.core.proposals import sizes
from harness.core.search import LevelGrid, Space
from harness.methods.magnitude import Magnitude
from harness.models.decoder import decoder_of

CHILDREN = 16


def main() -> None:
    """Time the three for a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    shape, where = SHAPES[options.shape], device()
    model = random_model(shape, shape.blocks, where)
    windows = random_tokens(shape, options.windows, options.length, where)
    view = LiveModelView(decoder_of(model), [windows[:1]], range(shape.blocks), draw=lambda _: windows)
    space = Space(view.blocks, sizes(view), Budget.of_pattern(NofM(1, 4)), LevelGrid(), "matrix")
    started = time.perf_counter()
    assembler = view.assembler(
        Magnitude(), {site: list(space.pattern_of.values()) for site in view.shapes},
        inputs=None, windows=options.windows, objective="nll", database=Database(),
    )  # fmt: skip
    synchronise()
    built = time.perf_counter() - started
    draw = Random(0)
    parent = space.mutated(space.uniform, 0.5, draw)

    def alone() -> None:
        assembler.losses([space.patterns(space.mutated(parent, 0.5, draw))])

    def generation() -> None:
        assembler.losses([space.patterns(space.mutated(parent, 0.02, draw)) for _ in range(CHILDREN)])

    seconds = interleaved([lambda: bare(model, windows), alone, generation], options.repeat)
    rows = zip(("bare forward", "one candidate", f"{CHILDREN} mutants, each"), seconds, (1, 1, CHILDREN), strict=True)
    lines = ["| | seconds (median, min–max) | × bare forward |", "|---|---|---|"]
    middle = statistics.median(seconds[0])
    for name, taken, share in rows:
        each = [one / share for one in taken]
        median = statistics.median(each)
        lines.append(f"| {name} | {median:.4f}, {min(each):.4f}–{max(each):.4f} | {median / middle:.3f} |")
    write(
        f"search_{options.shape}",
        f"One candidate's evaluation, shape {options.shape}",
        f"{options.windows} windows of {options.length} tokens, {options.repeat} repeats in turn. "
        f"The database: {gib(assembler.facts['bytes'])} GiB, made in {built:.1f} s.",
        lines,
    )


@torch.no_grad()
def bare(model: LlamaForCausalLM, windows: Tensor) -> None:
    """The logits of all windows, as many at once as evaluation takes."""
    for part in windows.split(max(1, 4096 // windows.shape[1])):
        model(part, use_cache=False).logits  # noqa: B018


def interleaved(works: list[Callable[[], None]], repeat: int) -> list[list[float]]:
    """Seconds of every repeat of every work, in turn; the first round warms up and is not counted."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(repeat + 1):
        for work, taken in zip(works, seconds, strict=True):
            synchronise()
            started = time.perf_counter()
            work()
            synchronise()
            if number:
                taken.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
