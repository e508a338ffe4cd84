"""SparseGPT and Wanda by the block: ours in both numeric modes, and the authors' code beside it where it is.

    python -m benchmarks.speed.block --shape 7b --authors <clone>     # an H200
    python -m benchmarks.speed.block --shape 11m --windows 32 --length 512 --authors <clone>     # two CPU cores

The clone is locuslab/wanda at 8e8fc87, which holds SparseGPT too. All sides prune the same random blocks on the same
tokens, in turn. A block's seconds are those of two blocks less those of one, so that each has both of its passes, or
with `--whole` its share of a model of the shape; memory is the peak with two (or all). A ratio is printed only if the
squared error that pruning brings to the first block's outputs is that of the authors' code to `SAME_ERROR`. Masks are
told beside it, block by block, with the noise of the reference: what the authors' code differs from itself when its
windows come in the opposite order, and when every window runs twice in one batch, so that products round otherwise.
Prints a Markdown table and writes it to `results/bench/block_<shape>.md` (`model_<shape>.md`), its numbers beside it as
JSON.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.speed.common import (
    SHAPES,
    Shape,
    device,
    gib,
    in_pairs,
    load_wanda,
    random_model,
    random_tokens,
    run_authors,
    spread,
    timed,
    write,
)  # fmt: skip
from harness.calibration.walk.batches import CPU_TOKENS_PER_BATCH, SHORT_TOKENS_PER_BATCH, batched
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.reference import walk_for
from harness.compress import prune
from harness.core.pattern import Unstructured
from harness.core.statistic import gram
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.models.attention import in_pieces
from harness.models.decoder import decoder_of
from harness.models.fused import fused

METHODS: dict[str, Any] = {"sparsegpt": SparseGPT(), "wanda": Wanda()}
SPARSITY = 0.5
SAME_ERROR = 1e-3
COLUMNS = (
    *("method", "side", "seconds a block", "×", "first run, more", "peak GiB"),
    *("error of block 0", "masks that differ, block 0", "block 1"),
)
Work = Callable[[LlamaForCausalLM, Tensor], None]


class Task(NamedTuple):
    """How often a side is timed (0: its weights alone count), and what it does to a model with which windows."""

    repeat: int
    work: Work
    ids: Tensor


class Side(NamedTuple):
    """Seconds a block of each repeat, what the first run took more than the others, peak bytes, weights by block."""

    seconds: list[float]
    first: float
    peak: int
    weights: list[dict[str, Tensor]]


def main() -> None:
    """Every method by every side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--authors-repeat", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="all blocks of the shape, not one")
    options = parser.parse_args()
    module = load_wanda(options.authors) if options.authors else None
    ids = random_tokens(SHAPES[options.shape], options.windows, options.length, device())
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
    numbers: dict[str, Any] = {}
    for method in METHODS:
        sides = _sides(options, method, module, ids)
        errors = errors_of(options.shape, ids, sides)
        for name, side in sides.items():
            lines.append(_row(method, name, sides, errors))
            print(lines[-1], flush=True)
            told = {"seconds": side.seconds, "first": side.first, "peak": side.peak, "error": errors[name]}
            numbers[f"{method}, {name}"] = told
        write(
            f"{'model' if options.whole else 'block'}_{options.shape}",
            f"{'A block of a whole model' if options.whole else 'One block'} of shape {options.shape}",
            f"{options.windows} windows of {options.length} tokens, {SPARSITY:.0%}, {options.repeat} repeats "
            f"(authors: {options.authors_repeat}), median (range).",
            lines,
            numbers,
        )


def _sides(options: argparse.Namespace, method: str, module: Any, ids: Tensor) -> dict[str, Side]:
    modes = ("fast", "exact")
    tasks = {mode: Task(options.repeat, ours(METHODS[method], exact=mode == "exact"), ids) for mode in modes}
    if module is not None:
        theirs = _theirs(module, method)
        tasks["authors"] = Task(options.authors_repeat, theirs, ids)
        tasks["authors, windows reversed"] = Task(0, theirs, ids.flip(0))
        tasks["authors, windows in pairs"] = Task(0, in_pairs()(theirs), ids)
    return measure(SHAPES[options.shape], options.whole, tasks)


@torch.no_grad()
def errors_of(shape: str, ids: Tensor, sides: dict[str, Side]) -> dict[str, float]:
    """By side: Σ over matrices of tr(Δ H Δᵀ), Δ what pruning changed of the first block, H of the dense block's inputs.

    Masks and weights of another order of sums differ; what they cost should not.
    """
    model = random_model(SHAPES[shape], 1, ids.device, ids.shape[1])
    with _plain_products():
        (block,) = stream(decoder_of(model), batched(ids, 1), range(1), edited=False, label="", exact=True)
        seen = block.observe(gram)
        errors = dict.fromkeys(sides, 0.0)
        for site, dense in block.weights.items():
            for name, side in sides.items():
                change = side.weights[0][site].to(ids.device).float() - dense.float()
                errors[name] += float((change @ seen[site].matrix * change).sum(dtype=torch.float64))
    return errors


def ours(method: Any, *, exact: bool) -> Work:
    """Uniform pruning of a model by a method of the harness, as a run does it."""

    def work(model: LlamaForCausalLM, ids: Tensor) -> None:
        decoder = decoder_of(model)
        blocks = range(model.config.num_hidden_layers)
        sites = [site for index in blocks for site in decoder.linears(index)]
        tokens = 1 if exact else SHORT_TOKENS_PER_BATCH if ids.is_cuda else CPU_TOKENS_PER_BATCH
        allocation = dict.fromkeys(sites, Unstructured(SPARSITY))
        with fused(decoder, wanted=ids.is_cuda and not exact), in_pieces(model):
            walk = partial(walk_for(method), exact=exact)
            prune(decoder, batched(ids, tokens), blocks, method, allocation, walk=walk, masks=False)

    return work


def _theirs(module: Any, method: str) -> Work:
    return lambda model, ids: run_authors(module, method, model, ids, SPARSITY)


def measure(shape: Shape, whole: bool, tasks: Mapping[str, Task]) -> dict[str, Side]:
    """All sides take turns; their first round warms up (kernels are compiled in it) and is told apart."""
    sizes = (shape.blocks,) if whole else (1, 2)
    taken: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in tasks}
    peaks: dict[str, int] = {}
    weights: dict[str, list[dict[str, Tensor]]] = {}
    for number in range(max(task.repeat for task in tasks.values()) + 1):
        for name, task in tasks.items():
            for size in () if number > task.repeat else sizes if task.repeat else sizes[-1:]:
                model = random_model(shape, size, task.ids.device, task.ids.shape[1])
                with _plain_products():
                    once, peaks[name], _ = timed(partial(task.work, model, task.ids))
                taken[name][size].append(once)
                weights[name] = [_weights(model, index) for index in range(min(size, 2))]
    return {name: _side(times, peaks[name], weights[name]) for name, times in taken.items()}


def _side(taken: Mapping[int, list[float]], peak: int, weights: list[dict[str, Tensor]]) -> Side:
    """Of two sizes the difference counts, of one its share."""
    (blocks, larger), *smaller = sorted(taken.items(), reverse=True)
    seconds = [once / blocks for once in larger[1:]]
    if smaller:
        seconds = [two - one for one, two in zip(smaller[0][1][1:], larger[1:], strict=False)]
    first = larger[0] - statistics.median(larger[1:]) if seconds else 0.0
    return Side(seconds, first, peak, weights)


@contextmanager
def _plain_products() -> Iterator[None]:
    """Float32 products are not shortened, as the authors' code asks for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _weights(model: LlamaForCausalLM, index: int) -> dict[str, Tensor]:
    return {site: linear.weight.cpu() for site, linear in decoder_of(model).linears(index).items()}


def _differing(side: Side, other: Side, index: int) -> float:
    """The share of weights of a block that one side keeps and the other does not."""
    pairs = [(mine, other.weights[index][site]) for site, mine in side.weights[index].items()]
    return sum(int(((a != 0) != (b != 0)).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)


def _row(method: str, name: str, sides: dict[str, Side], errors: dict[str, float]) -> str:
    side, ratio, error, differ = sides[name], "", "", ["", ""]
    if authors := sides.get("authors"):
        differ = [f"{_differing(side, authors, index):.1e}" for index in range(2)]
        more = errors[name] / errors["authors"] - 1
        error = f"{more:+.1e}"
        if side.seconds:
            ratio = f"{statistics.median(authors.seconds) / statistics.median(side.seconds):.2f}"
        if not abs(more) <= SAME_ERROR:
            ratio = "another error"
    seconds = spread(side.seconds) if side.seconds else "–"
    first = f"{side.first:.1f} s" if side.seconds else "–"
    cells = (method, name, seconds, ratio, first, gib(side.peak), error, *differ)
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
