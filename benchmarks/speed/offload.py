"""The cost of keeping blocks in host memory, and the gain of a second GPU: calibration, pruning, evaluation.

    python -m benchmarks.speed.offload --shape 7b     # one H200, or two of one host
    python -m benchmarks.speed.offload --shape 11m --windows 8 --length 128 --text 8     # two CPU cores

A random LLaMA model of the shape, a few blocks of it. Each side prunes the same weights on the same tokens to 50 % and
scores the same text: `resident` has everything on one GPU, `offload` has blocks and activations in host memory, and
`2 GPUs` shares the windows out (on a CPU the second one is the same). Sides take turns, each on a model of its own; the
first round warms up and is not counted. No ratio is printed before the weights and the loss of `offload` equal those of
`resident` to the bit; `2 GPUs` may add sums in another order, so its share of other masks is told, which may be no more
than `NOISE` times that of `resident` with the halves of its windows exchanged, and its loss on the dense model has to
be equal. Placing is what loading costs more: copying blocks to page-locked memory, or the replica on the second GPU.
Prints a Markdown table and writes it to `results/bench/offload_<shape>.md`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.common import SHAPES, gib, random_model, random_tokens, timed, write
from harness.calibration.walk.batches import batched
from harness.compress import prune
from harness.core.pattern import Unstructured
from harness.evaluation.perplexity import mean_nll
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.models.placement import Where, place

METHODS: dict[str, Any] = {"wanda": Wanda(), "sparsegpt": SparseGPT()}
SPARSITY = 0.5
NOISE = 3
"""How many times the masks that the order of the windows decides on one GPU may differ on two."""


@dataclass
class Side:
    """One way to place the model, and what it gave.

    Seconds of each round, the highest peak in bytes, the last weights, and the loss before and after pruning.
    """

    where: Where
    placing: list[float] = field(default_factory=list)
    pruning: list[float] = field(default_factory=list)
    scoring: list[float] = field(default_factory=list)
    peak: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    losses: tuple[float, float] = (0.0, 0.0)


def main() -> None:
    """Time all sides for every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--text", type=int, default=64, help="windows to score")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--methods", default="wanda,sparsegpt")
    options = parser.parse_args()
    first = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    lines = [
        "| method | side | s a block (median, min–max) | × resident | scoring s | × resident | placing s | peak GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    remarks: list[str] = []
    for method in options.methods.split(","):
        sides = sides_on(first)
        for number in range(options.repeat + 1):
            for side in sides.values():
                run_round(side, METHODS[method], options, first, counts=number > 0)
            noise = Side(Where(first))
            run_round(noise, METHODS[method], options, first, counts=False, exchanged=True)
            told = gate(sides, noise)
        lines += rows(method, sides, options.blocks)
        remarks += [f"- {method}, {remark}" for remark in told]
        print("\n".join([*lines[-len(sides) :], *told]), flush=True)
    write(
        f"offload_{options.shape}",
        f"{options.blocks} blocks of shape {options.shape}, resident and offloaded",
        f"{options.windows} windows of {options.length} tokens calibrate, {options.text} are scored, {SPARSITY:.0%}.",
        [*lines, "", *remarks],
    )


def sides_on(device: torch.device) -> dict[str, Side]:
    """The placements that this machine can compare."""
    sides = {"resident": Side(Where(device)), "offload": Side(Where(device, offload=True))}
    if device.type == "cpu" or torch.cuda.device_count() > 1:
        second = torch.device("cuda", 1) if device.type == "cuda" else device
        sides["2 GPUs"] = Side(Where(device, others=[second]))
        sides["2 GPUs, offload"] = Side(Where(device, offload=True, others=[second]))
    return sides


def run_round(
    side: Side, method: Any, options: argparse.Namespace, device: torch.device, *, counts: bool, exchanged: bool = False
) -> None:
    """Make the model, place it, score it, prune it, with the halves of its windows exchanged or not, and score it."""
    shape = SHAPES[options.shape]
    model = random_model(shape, options.blocks, device)
    decoder = decoder_of(model)
    placing, _, _ = timed(lambda: place(decoder, side.where).replicas(decoder, len(side.where.others)))
    ids = random_tokens(shape, options.windows, options.length, device).roll(exchanged * options.windows // 2, 0)
    text = random_tokens(shape, options.text, options.length, torch.device("cpu"), seed=2)
    allocation = {site: Unstructured(SPARSITY) for index in range(options.blocks) for site in decoder.linears(index)}
    scoring, scored, dense = timed(lambda: mean_nll(decoder_of(model), text, device))
    blocks = range(options.blocks)
    pruning, pruned, _ = timed(lambda: prune(decoder, batched(ids), blocks, method, allocation, masks=False))
    side.peak = max(side.peak, scored, pruned)
    side.losses = (dense, mean_nll(decoder_of(model), text, device))
    side.weights = {
        site: linear.weight.data.cpu()
        for index in range(options.blocks)
        for site, linear in decoder.linears(index).items()
    }
    if counts:
        side.placing.append(placing)
        side.scoring.append(scoring)
        side.pruning.append(pruning)


def gate(sides: dict[str, Side], noise: Side) -> list[str]:
    """Stop unless every side computed what the resident one did. Returns what is told of those that may round.

    Args:
        noise: the resident side with its windows in another order.

    Raises:
        SystemExit: a side is wrong.
    """
    resident = sides["resident"]
    floor = other_masks(noise, resident)
    told = [f"resident, halves exchanged: {floor:.2e} of the masks are others, loss {noise.losses[1]:.6f}"]
    for name, side in sides.items():
        if side.losses[0] != resident.losses[0]:
            raise SystemExit(f"{name}: the dense model's loss is {side.losses[0]}, not {resident.losses[0]}")
        share = other_masks(side, resident)
        equal = all(torch.equal(weight, side.weights[site]) for site, weight in resident.weights.items())
        if not side.where.others and not (equal and side.losses == resident.losses):
            raise SystemExit(f"{name}: {share:.2%} of the masks are others, loss {side.losses[1]}")
        if share > NOISE * floor:
            raise SystemExit(f"{name}: {share:.2e} of the masks are others, by the order of windows alone {floor:.2e}")
        if side.where.others:
            loss = f"loss {side.losses[1]:.6f}, resident {resident.losses[1]:.6f}"
            told.append(f"{name}: {share:.2e} of the masks are others, {loss}")
    return told


def other_masks(side: Side, resident: Side) -> float:
    """The share of all masks that differ."""
    flipped = sum(int(((w == 0) != (side.weights[site] == 0)).sum()) for site, w in resident.weights.items())
    return flipped / sum(weight.numel() for weight in resident.weights.values())


def rows(method: str, sides: dict[str, Side], blocks: int) -> list[str]:
    """The lines of one method."""
    resident, lines = sides["resident"], []
    for name, side in sides.items():
        each = [seconds / blocks for seconds in side.pruning]
        pruning = f"{statistics.median(each):.3f}, {min(each):.3f}–{max(each):.3f}"
        lines.append(
            f"| {method} | {name} | {pruning} | {ratio(side.pruning, resident.pruning)} "
            f"| {statistics.median(side.scoring):.2f} | {ratio(side.scoring, resident.scoring)} "
            f"| {statistics.median(side.placing):.2f} | {gib(side.peak)} |"
        )
    return lines


def ratio(ours: Sequence[float], base: Sequence[float]) -> str:
    """Of medians."""
    return f"{statistics.median(ours) / statistics.median(base):.2f}"


if __name__ == "__main__":
    main()
