"""Perplexity of a text of WikiText-2's length, beside a large product and the authors' loop.

    python -m benchmarks.speed.evaluation --shape 7b --authors <clone>     # an H200
    python -m benchmarks.speed.evaluation --shape 11m --windows 8 --length 512     # two CPU cores

A random model of the shape scores random windows, head and loss included: with the harness's fused steps (`fast`), and
with the model's own (`exact`). The clone is locuslab/wanda at 8e8fc87, whose `eval_ppl_wikitext` is the third side.
Sides take turns with an 8192³ product in the model's dtype; the first round warms up and is told apart. The rate
counts the products of blocks and head (two operations a weight and token); attention's are told beside it and not
counted. No rate is printed unless the sides agree on the loss. Prints a Markdown table and writes it to
`results/bench/evaluation_<shape>.md`, its numbers beside it as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import statistics
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from benchmarks.speed.common import (
    SHAPES,
    Shape,
    device,
    gib,
    load_wanda,
    random_model,
    random_tokens,
    spread,
    timed,
    write,
)  # fmt: skip
from harness.evaluation.perplexity import mean_nll
from harness.models.decoder import decoder_of
from harness.models.fused import fused

PRODUCT = {"cuda": 8192, "cpu": 1024}
"""The width of the square product whose rate stands for the machine's."""
PRODUCTS = 20
AGREE = 2e-3
"""The largest relative difference of two sides' losses: in 16 bits a batch moves the third digit of a random model."""
Work = Callable[[], float]


def main() -> None:
    """Time all sides for a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", type=int, default=166, help="WikiText-2's test split has so many of 2048 tokens")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--authors", type=Path)
    options = parser.parse_args()
    shape, where = SHAPES[options.shape], device()
    model = random_model(shape, shape.blocks, where, options.length)
    windows = random_tokens(shape, options.windows, options.length, torch.device("cpu"))
    sides: dict[str, Work] = {name: partial(ours, model, windows, name == "fast") for name in ("fast", "exact")}
    if options.authors:
        load_wanda(options.authors)
        sides["authors"] = partial(theirs, model, windows)
    rate = product_rate(where, model.dtype)
    rates, seconds, peaks, losses = [], {name: list[float]() for name in sides}, dict.fromkeys(sides, 0), {}
    for _ in range(options.repeat + 1):
        rates.append(rate())
        for name, work in sides.items():
            taken, peaks[name], losses[name] = timed(work)
            seconds[name].append(taken)
    gate(losses)
    report(options, shape, windows, rates[1:], seconds, peaks, losses)


def ours(model: LlamaForCausalLM, windows: Tensor, fast: bool) -> float:
    """The mean negative log-likelihood as a run computes it."""
    with fused(decoder_of(model), wanted=fast and model.device.type == "cuda"):
        return mean_nll(decoder_of(model), windows, model.device)


def theirs(model: LlamaForCausalLM, windows: Tensor) -> float:
    """The same by `lib/eval.py` as it is, its printing swallowed."""
    import lib.eval as module

    model.seqlen = windows.shape[1]  # type: ignore[assignment]
    encoded = types.SimpleNamespace(input_ids=windows.reshape(1, -1))
    with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        return math.log(module.eval_ppl_wikitext(model, encoded, 1, model.device))


def product_rate(where: torch.device, dtype: torch.dtype) -> Callable[[], float]:
    """A function that measures the operations a second of one large product of random numbers."""
    width = PRODUCT[where.type]
    left, right = (torch.randn(width, width, device=where, dtype=dtype) for _ in range(2))

    def multiply() -> None:
        for _ in range(PRODUCTS):
            left @ right

    return lambda: 2 * width**3 * PRODUCTS / timed(multiply)[0]


def gate(losses: dict[str, float]) -> None:
    """Stop unless every side computed the same loss.

    Raises:
        SystemExit: one did not.
    """
    for name, loss in losses.items():
        if not abs(loss - losses["exact"]) <= AGREE * losses["exact"]:
            raise SystemExit(f"{name}: the loss is {loss}, of exact {losses['exact']}: no rate is printed")


def report(
    options: argparse.Namespace, shape: Shape, windows: Tensor, rates: list[float], seconds: dict[str, list[float]],
    peaks: dict[str, int], losses: dict[str, float],
) -> None:  # fmt: skip
    """The table, with the rates that follow from the counts."""
    weights = shape.blocks * (4 * shape.hidden**2 + 3 * shape.hidden * shape.wide) + shape.vocabulary * shape.hidden
    products = 2 * weights * windows.numel()
    attention = 2 * shape.blocks * shape.hidden * options.length * windows.numel()  # half of the scores are causal
    reached = statistics.median(rates)
    lines = [
        "| side | seconds (median, min–max) | TFLOP/s | of the product | first run, more | peak GiB | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, taken in seconds.items():
        middle = statistics.median(taken[1:])
        lines.append(
            f"| {name} | {spread(taken[1:])} | {products / middle / 1e12:.1f} | {products / middle / reached:.1%} "
            f"| {taken[0] - middle:.1f} s | {gib(peaks[name])} | {losses[name]:.5f} |"
        )
    write(
        f"evaluation_{options.shape}",
        f"Perplexity of {options.windows} windows of {options.length} tokens, shape {options.shape}",
        f"the product reaches {reached / 1e12:.1f} TFLOP/s ({min(rates) / 1e12:.1f}–{max(rates) / 1e12:.1f}). Counted "
        f"are {products / 1e12:.1f} TFLOP of products, not {attention / 1e12:.1f} of attention.",
        lines,
        {"seconds": {name: taken[1:] for name, taken in seconds.items()}, "peaks": peaks, "product": rates},
    )


if __name__ == "__main__":
    main()
