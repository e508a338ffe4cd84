"""One-shot methods by the block, and what decides their speed: products and inverses, by the way they are made.

    python -m benchmarks.speed.oneshot                                              # an H200, LLaMA-2-7B's shape
    python -m benchmarks.speed.oneshot --shape 11m --windows 8 --length 256 --repeat 1          # a CPU

A method is a name, or for those that iterate (alps, admm) `name:<way>/<steps>` (`alps:nodes/half`) with a way of
`core/resolvent.py` and a rounding of `core/products.py`; without it they take what a run takes. Settings follow a comma
(`wanda,refit=true`). All prune the same random blocks on the same tokens in turn; seconds and peak are counted as in
`block.py`. The error is that of the first block's outputs, over that of the first method. Then the parts at the widths
of the shape: seconds of one inverse each way, and of a product with as many rows as the width, each rounding.
Prints two Markdown tables and writes them to `results/bench/oneshot_<shape>.md`, the numbers beside them as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor

from benchmarks.speed.block import Side, Task, Work, errors_of, measure, ours
from benchmarks.speed.common import SHAPES, Shape, device, gib, random_tokens, spread, timed, write
from harness import catalogue
from harness.core import scaled
from harness.core.products import Multiplier, Rounding
from harness.core.resolvent import Resolvent, Way
from harness.core.scaled import Arithmetic

METHODS = (
    *("sparsegpt", "admm", "admm:factor/half", "alps", "alps:nodes/half", "alps:factor/half", "alps:factor64/split"),
    *("alps:nodes/float32", "wanda,refit=true"),
)
SLOW = ("spectrum", "spectrum32")
"""Ways of which one inverse at the largest width takes a GPU seconds: once each is enough."""
RHO = 0.3


def main() -> None:
    """Methods, then parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--parts", action=argparse.BooleanOptionalAction, default=True, help="time the parts too")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    options = parser.parse_args()
    shape, ids = SHAPES[options.shape], random_tokens(SHAPES[options.shape], options.windows, options.length, device())
    numbers: dict[str, Any] = {}
    lines = by_method(options, shape, ids, numbers)
    if options.parts:
        lines += ["", *by_part(shape, ids.device, numbers)]
    write(
        f"oneshot_{options.shape}",
        f"One-shot methods, a block of shape {options.shape}",
        f"{options.windows} windows of {options.length} tokens, 50 %, {options.repeat} repeats, median (range).",
        lines,
        numbers,
    )


def by_method(options: argparse.Namespace, shape: Shape, ids: Tensor, numbers: dict[str, Any]) -> list[str]:
    """A row for each method."""
    tasks = {name: Task(options.repeat, work_of(name), ids) for name in options.methods}
    sides = measure(shape, False, tasks)
    errors = errors_of(options.shape, ids, sides)
    first = options.methods[0]
    lines = [f"| method | seconds a block | × {first} | first run, more | peak GiB | error |", "|---" * 6 + "|"]
    for name, side in sides.items():
        lines.append(_row(name, side, sides[first], errors[name] / errors[first]))
        numbers[name] = {"seconds": side.seconds, "first": side.first, "peak": side.peak, "error": errors[name]}
    return lines


def _row(name: str, side: Side, first: Side, error: float) -> str:
    ratio = statistics.median(side.seconds) / statistics.median(first.seconds)
    cells = (name, spread(side.seconds), f"{ratio:.2f}", f"{side.first:.1f} s", gib(side.peak), f"{error:.4f}")
    return "| " + " | ".join(cells) + " |"


def work_of(name: str) -> Work:
    """The work of a method on a model, by its name as the command line has it."""
    catalogue.discover()
    named, _, ways = name.partition(":")
    plain, *settings = named.split(",")
    given = {key: json.loads(text) for key, text in (setting.split("=", 1) for setting in settings)}
    method = catalogue.build("method", {"name": plain} | given)
    prune = ours(method, exact=False)

    def work(model: Any, ids: Tensor) -> None:
        with arithmetic(ways):
            prune(model, ids)

    return work


@contextmanager
def arithmetic(ways: str) -> Iterator[None]:
    """Let solvers iterate by a `<way>/<rounding>`; nothing changes for an empty one."""
    before = dict(scaled.ARITHMETIC)
    if ways:
        way, steps = ways.split("/")
        if way not in get_args(Way) or steps not in get_args(Rounding):
            raise SystemExit(f"'{ways}' is no way and rounding: {get_args(Way)}, {get_args(Rounding)}")
        products = "float32" if steps == "float32" else "split"
        scaled.ARITHMETIC.update(dict.fromkeys(before, Arithmetic(products, steps, way)))  # type: ignore[arg-type]
    try:
        yield
    finally:
        scaled.ARITHMETIC.update(before)


def by_part(shape: Shape, where: torch.device, numbers: dict[str, Any]) -> list[str]:
    """Seconds of an inverse and of a product at the widths of the shape; what `first` took comes once for a matrix."""
    lines = ["| part | " + " | ".join(f"{width} inputs" for width in _widths(shape)) + " |", "|---|---|---|"]
    rows: dict[str, list[str]] = {}
    for width in _widths(shape):
        matrix = _unit(width, where)
        for way in get_args(Way):
            resolvent = Resolvent(matrix, way)
            first, again = (timed(partial(resolvent, rho))[0] for rho in (RHO, RHO * 1.1))
            if way not in SLOW:  # the first call of all pays for a library's start
                first = timed(partial(Resolvent(matrix, way), RHO))[0]
            rows.setdefault(f"inverse, {way}", []).append(f"{first:.4f} s, then {again:.4f} s")
            numbers[f"{way} {width}"] = [first, again]
            del resolvent
        for rounding in get_args(Rounding):
            seconds = _seconds(partial(Multiplier(matrix, rounding), matrix))
            rows.setdefault(f"product, {rounding}", []).append(f"{seconds:.4f} s, {2e-12 * width**3 / seconds:.1f} T/s")
            numbers[f"{rounding} {width}"] = seconds
    return lines + [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows.items()]


def _widths(shape: Shape) -> tuple[int, int]:
    return shape.hidden, shape.wide


def _unit(width: int, where: torch.device) -> Tensor:
    """A matrix (I, I) with a unit diagonal and a decaying spectrum, as those of inputs have."""
    generator = torch.Generator(where).manual_seed(0)
    tokens = torch.randn(2 * width, width, device=where, generator=generator)
    tokens.mul_(torch.linspace(0.1, 1, width, device=where)).add_(tokens[:, :1])
    matrix = tokens.T @ tokens
    scale = matrix.diagonal().sqrt()
    return matrix / scale / scale[:, None]


def _seconds(work: Callable[[], Tensor]) -> float:
    work()
    return statistics.median(timed(work)[0] for _ in range(3))


if __name__ == "__main__":
    main()
