"""SparseGPT and Wanda by the block: ours in both numeric modes, and the authors' code beside it where it is.

    python -m benchmarks.speed.block --shape 7b --authors <clone>     # an H200
    python -m benchmarks.speed.block --shape 11m --windows 32 --length 512 --authors <clone>     # two CPU cores

The clone is locuslab/wanda at 8e8fc87, which holds SparseGPT too. All sides prune the same random blocks on the same
tokens. A block's seconds are those of two blocks less those of one, so that each has both of its passes; memory is the
peak with two. Before any ratio: the masks of `exact` and `fast` against the authors', block by block, beside the noise
of the reference: what the authors' code differs from itself when its windows come in the opposite order. Where the
first block's masks differ by more than `NOISES` times that, and by more than `FLIPS`, no ratio is printed. Prints a
Markdown table and writes it to `results/bench/block_<shape>.md`, its numbers beside it as JSON.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.speed.common import (
    SHAPES,
    device,
    gib,
    load_wanda,
    random_model,
    random_tokens,
    run_authors,
    spread,
    timed,
    write,
)  # fmt: skip
from harness.calibration.stream import SHORT_TOKENS_PER_BATCH, TOKENS_PER_BATCH, batched, stream
from harness.core.pattern import Unstructured
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.models.anatomy import anatomy_of
from harness.models.fused import fused
from harness.run import prune

METHODS: dict[str, Any] = {"sparsegpt": SparseGPT(), "wanda": Wanda()}
SPARSITY = 0.5
FLIPS, NOISES = 1e-5, 1.5
"""The share of the first block's masks that another order of sums may decide, and how many times the noise."""
NOISE = "authors, windows reversed"
Work = Callable[[LlamaForCausalLM, Tensor], None]


class Side(NamedTuple):
    """Seconds a block of each repeat, what the first run took more than the others, peak bytes, masks by block."""

    seconds: list[float]
    first: float
    peak: int
    masks: list[Tensor]


def main() -> None:
    """Every method by every side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--authors-repeat", type=int, default=3)
    options = parser.parse_args()
    module = load_wanda(options.authors) if options.authors else None
    ids = random_tokens(SHAPES[options.shape], options.windows, options.length, device())
    lines = [
        "| method | side | seconds a block | × | first run, more | peak GiB | masks that differ, block 0 | block 1 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    numbers: dict[str, Any] = {}
    for method in METHODS:
        sides = _sides(options, method, module, ids)
        for name, side in sides.items():
            lines.append(_row(method, name, side, sides))
            print(lines[-1], flush=True)
            numbers[f"{method}, {name}"] = {"seconds": side.seconds, "first": side.first, "peak": side.peak}
        write(
            f"block_{options.shape}",
            f"One block of shape {options.shape}",
            f"{options.windows} windows of {options.length} tokens, {SPARSITY:.0%}, {options.repeat} repeats "
            f"(authors: {options.authors_repeat}), median (range).",
            lines,
            numbers,
        )


def _sides(options: argparse.Namespace, method: str, module: Any, ids: Tensor) -> dict[str, Side]:
    shape = options.shape
    sides = {
        mode: _measure(shape, ids, options.repeat, _ours(method, exact=mode == "exact")) for mode in ("fast", "exact")
    }
    if module is not None:
        theirs = _theirs(module, method)
        sides["authors"] = _measure(shape, ids, options.authors_repeat, theirs)
        sides[NOISE] = _measure(shape, ids.flip(0), 0, theirs)
    return sides


def _agrees(side: Side, sides: dict[str, Side]) -> bool:
    """Whether a side chose in the first block what the authors' code did, as far as that agrees with itself."""
    noise = _differing(sides[NOISE], sides["authors"], 0)
    return _differing(side, sides["authors"], 0) <= max(FLIPS, NOISES * noise)


def _differing(side: Side, other: Side, index: int) -> float:
    return float((side.masks[index] != other.masks[index]).float().mean())


def _ours(method: str, *, exact: bool) -> Work:
    def work(model: LlamaForCausalLM, ids: Tensor) -> None:
        anatomy = anatomy_of(model)
        blocks = range(model.config.num_hidden_layers)
        sites = [site for index in blocks for site in anatomy.block_linears(model, index)]
        tokens = 1 if exact else SHORT_TOKENS_PER_BATCH if ids.is_cuda else TOKENS_PER_BATCH
        allocation = dict.fromkeys(sites, Unstructured(SPARSITY))
        with fused(model, anatomy, wanted=ids.is_cuda and not exact):
            walk = partial(stream, exact=exact)
            prune(model, anatomy, batched(ids, tokens), blocks, METHODS[method], allocation, walk=walk)

    return work


def _theirs(module: Any, method: str) -> Work:
    return lambda model, ids: run_authors(module, method, model, ids, SPARSITY)


def _measure(shape: str, ids: Tensor, repeat: int, work: Work) -> Side:
    """The first round warms up (kernels are compiled in it) and is told apart."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeat + 1):
        for blocks, seconds in taken.items() if repeat else [(2, taken[2])]:
            model = random_model(SHAPES[shape], blocks, ids.device, ids.shape[1])
            with _plain_products():
                once, peak, _ = timed(partial(work, model, ids))
            seconds.append(once)
    masks = [_mask(model, index) for index in range(2)]
    seconds = [two - one for one, two in zip(taken[1][1:], taken[2][1:], strict=False)]
    first = taken[1][0] - statistics.median(taken[1][1:]) if repeat else 0.0
    return Side(seconds, first, peak, masks)


@contextmanager
def _plain_products() -> Iterator[None]:
    """Float32 products are not shortened, as the authors' code asks for."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def _mask(model: LlamaForCausalLM, index: int) -> Tensor:
    linears = anatomy_of(model).block_linears(model, index)
    return torch.cat([(linear.weight != 0).flatten() for linear in linears.values()]).cpu()


def _row(method: str, name: str, side: Side, sides: dict[str, Side]) -> str:
    ratio, differ = "", ["", ""]
    if authors := sides.get("authors"):
        differ = [f"{_differing(side, authors, index):.1e}" for index in range(2)]
        if side.seconds:
            ratio = f"{statistics.median(authors.seconds) / statistics.median(side.seconds):.2f}"
        if not _agrees(side, sides):
            ratio = "other masks"
    seconds = spread(side.seconds) if side.seconds else "–"
    first = f"{side.first:.1f} s" if side.seconds else "–"
    return f"| {method} | {name} | {seconds} | {ratio} | {first} | {gib(side.peak)} | {differ[0]} | {differ[1]} |"


if __name__ == "__main__":
    main()
