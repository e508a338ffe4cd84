"""SparseLLM on one LLaMA block: ours, and the authors' code beside it where it is.

    python -m benchmarks.speed.sparsellm --shape 7b --windows 32,128 --authors <clone>     # an H200
    python -m benchmarks.speed.sparsellm --shape 135m --windows 128 --blocks 30     # SmolLM2's shape
    python -m benchmarks.speed.sparsellm --shape 11m --windows 32 --length 512 --authors <clone>     # two CPU cores

The clone is BaiTheBest/SparseLLM at commit 27fe26a.

Both sides prune the same random block to 70 % on the same tokens: attention by SparseGPT, the feed-forward part by
SparseLLM, four epochs. The clock runs from the first calibration forward to the last weight written. Quality before
speed: the mean squared error of the part's outputs, and of y − W_down p for each side's own p (ours from a run with one
epoch more, not timed). On a CPU the authors' half-precision casts are lifted to float32 in memory. Prints a Markdown
table and writes it to `results/bench/sparsellm_<shape>.md`.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.speed.common import SHAPES, Shape, device, gib, give_positions, random_tokens, timed, write
from benchmarks.speed.steps import stepwise
from harness.calibration.walk.batches import batched, calibration_tokens
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.stream import StreamedBlock
from harness.compress import prune
from harness.core.pattern import Unstructured
from harness.core.statistic import Gram
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM, alternating, chunks, method, moves
from harness.methods.sparsellm.problem import Problem
from harness.methods.sparsellm.sums import Sums
from harness.models.decoder import decoder_of
from harness.models.fused import fused

SPARSITY = 0.7


class Side(NamedTuple):
    """Results of one side: seconds of each repeat, peak bytes, and the two errors."""

    seconds: list[float]
    peak: int
    loss: float
    coupling: float


def main() -> None:
    """Time ours for every number of windows, and the authors' code for the first of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", default="32,128")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--numerics", default="fast,exact", help="fast, exact, or both with a comma")
    parser.add_argument("--authors", type=Path)
    options = parser.parse_args()
    where, shape = device(), SHAPES[options.shape]
    lines = [
        "| side | windows | seconds (median, min–max) | peak GiB | output error | ‖y − W p‖² / n |",
        "|---|---|---|---|---|---|",
    ]
    counts = [int(count) for count in options.windows.split(",")]
    for count in counts:
        ids = random_tokens(shape, count, options.length, where)
        for numerics in options.numerics.split(","):
            exact = numerics == "exact"
            side = ours(shape, ids, 0 if exact else options.repeat, options.blocks, exact=exact)
            lines.append(row(f"ours, {numerics}", count, side))
            print(lines[-1], flush=True)
        seconds, peak = inner_alone(shape, ids, options.repeat, options.blocks)
        lines.append(row("SparseGPT", count, Side(seconds, peak, math.nan, math.nan)))
        print(lines[-1], flush=True)
        lines += ["", *by_step(shape, ids, options.blocks), "", *lines[:2]]
    if options.authors:
        side = theirs(options.authors, shape, random_tokens(shape, counts[0], options.length, where))
        lines.append(row("authors' code", counts[0], side))
        print(lines[-1], flush=True)
    about = f"windows of {options.length} tokens, {SPARSITY:.0%}."
    write(
        f"sparsellm_{options.shape}", f"SparseLLM on {options.blocks} block(s) of shape {options.shape}", about, lines
    )


def block_model(shape: Shape, device: torch.device, blocks: int = 1) -> LlamaForCausalLM:
    """Random blocks whose inputs differ in scale from channel to channel, as real ones do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.wide, num_hidden_layers=blocks,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
        max_position_embeddings=4096, use_cache=False,
    )  # fmt: skip
    attention = "sdpa" if device.type == "cuda" else "eager"
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, shape.hidden**-0.5)
        scales = torch.exp(torch.randn(shape.hidden))
        model.model.embed_tokens.weight.mul_(scales * shape.hidden**0.5)
        for block in model.model.layers:
            block.mlp.gate_proj.weight.mul_(2)
    model.requires_grad_(False)
    return model.to(device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32).eval()


def ours(shape: Shape, ids: Tensor, repeat: int, blocks: int = 1, *, exact: bool = False) -> Side:
    """Our side; the first run warms up (kernels are compiled in it) and is not counted, unless it is the only one."""
    seconds: list[float] = []
    for _ in range(repeat + 1):
        model = block_model(shape, ids.device, blocks)
        taken, peak, told = timed(partial(run_ours, model, ids, SparseLLM(), exact=exact))
        seconds.append(taken)
    more = run_ours(block_model(shape, ids.device), ids, SparseLLM(epochs=5), exact=exact)["0"]
    assert not told["0"]["fallback"], "the errors told would not be those of the weights that stay"
    return Side(seconds[1:] or seconds, peak, told["0"]["loss"][-1], more["coupling"][3])


def inner_alone(shape: Shape, ids: Tensor, repeat: int, blocks: int) -> tuple[list[float], int]:
    """Seconds of SparseGPT alone after a first run, and its peak."""
    runs = [
        timed(partial(run_ours, block_model(shape, ids.device, blocks), ids, SparseGPT())) for _ in range(repeat + 1)
    ]
    return [taken for taken, _, _ in runs[1:] or runs], runs[-1][1]


def run_ours(model: LlamaForCausalLM, ids: Tensor, how: Any, *, exact: bool = False) -> dict[str, dict[str, Any]]:
    """Prune the blocks, in batches as a run has them; returns what the method told about each."""
    told: dict[str, dict[str, Any]] = {}
    decoder = decoder_of(model)
    blocks = range(len(decoder.modules))
    allocation = {site: Unstructured(SPARSITY) for index in blocks for site in decoder.linears(index)}
    batches = batched(ids, calibration_tokens(model.dtype.itemsize, ids.is_cuda, exact=exact))
    with fused(decoder, wanted=ids.is_cuda and not exact):
        prune(decoder, batches, blocks, how, allocation, told, partial(stream, exact=exact))
    return told


STEPS: dict[str, list[tuple[Any, str]]] = {
    "observe (forward and Gram matrices)": [(StreamedBlock, "observe")],
    "first epoch": [(method, "first_epoch")],
    "forward behind the block": [(StreamedBlock, "advance")],
    "dense variables": [(chunks.Chunks, "__init__")],
    "passes: rest": [(chunks.Chunks, "sweep")],
    "passes: inverse of W Wᵀ": [(chunks, "Coupling")],
    "passes: products": [(chunks, "product")],
    "passes: elementwise kernels": [(moves.Moves, "hidden"), (moves.Moves, "move")],
    "passes: sums and Gram matrix of p": [(Sums, "add_many")],
    "later epochs: factors": [(Gram, "prepare"), (Gram, "unchecked_factor"), (Gram, "damped_inverse")],
    "later epochs: refit": [(alternating, "_refit_by")],
    "later epochs: pruning": [(Problem, "prune_together"), (Problem, "prune")],
}
"""Steps of the fast way, by what runs them. Factors are made beside others' time, on a stream of their own."""


def by_step(shape: Shape, ids: Tensor, blocks: int) -> list[str]:
    """A table of the seconds of each step, and one of the longest kernels with the number of launches."""
    with stepwise(STEPS) as seconds:
        run_ours(block_model(shape, ids.device, blocks), ids, SparseLLM())
    lines = ["| step | seconds |", "|---|---|"]
    lines += [f"| {name} | {taken:.3f} |" for name, taken in sorted(seconds.items(), key=lambda item: -item[1])]
    if not ids.is_cuda:
        return lines
    model = block_model(shape, ids.device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run_ours(model, ids, SparseLLM())
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    launches, busy = sum(event.count for event in events), sum(event.self_device_time_total for event in events)
    lines += ["", f"One block: {launches} kernels and copies, {busy / 1e6:.3f} s of GPU time.", ""]
    lines += ["| kernel | times | seconds |", "|---|---|---|"]
    return lines + [f"| {e.key[:70]} | {e.count} | {e.self_device_time_total / 1e6:.4f} |" for e in events[:20]]


def theirs(folder: Path, shape: Shape, ids: Tensor) -> Side:
    """The authors' side, once: their `llama_sparsellm` as it is, given our tokens and a shim for newer transformers."""
    module = load_authors(folder, ids.device)
    model = block_model(shape, ids.device)
    model.seqlen = ids.shape[1]  # type: ignore[assignment]
    caught: dict[str, Any] = {}

    def mse_loss(ours: Tensor, y: Tensor) -> Tensor:
        """Theirs ends every epoch with this loss; what is measured here is taken from where it stands then.

        It runs on their clock: four products, some 0.5 s of 74 s at the 7b shape.
        """
        frame = sys._getframe(1).f_locals
        error = frame["Y"].float() - frame["subset"]["mlp.down_proj"].weight.float() @ frame["p"].float()
        caught["loss"] = float((ours.float() - y.float()).square().mean())
        caught["coupling"] = float(error.square().mean())
        return original(ours, y)

    original = torch.nn.functional.mse_loss
    arguments = types.SimpleNamespace(
        nsamples=len(ids), true_sequential=False, minlayer=-1, maxlayer=1000, prune_only="", invert=False, wbits=16,
        sparsity=SPARSITY, prunen=0, prunem=0, percdamp=0.01, blocksize=128,
    )  # fmt: skip
    loader = [(window[None],) for window in ids]
    torch.nn.functional.mse_loss = mse_loss  # type: ignore[assignment]
    try:
        taken, peak, _ = timed(lambda: module.llama_sparsellm(model, loader, ids.device, arguments))
    finally:
        torch.nn.functional.mse_loss = original
    return Side([taken], peak, caught["loss"], caught["coupling"])


def load_authors(folder: Path, device: torch.device) -> types.ModuleType:
    """Their modules, read from the clone; without a GPU its calls are no-ops and half precision is float32."""
    for name in ("quant", "pruning_utils", "model_utils"):
        source = (folder / f"{name}.py").read_text(encoding="utf-8")
        if device.type == "cpu":
            source = source.replace(".half()", ".float()").replace("torch.float16", "torch.float32")
            source = source.replace("torch.cuda.synchronize()", "None").replace("torch.cuda.empty_cache()", "None")
        module = types.ModuleType(name)
        sys.modules[name] = module
        exec(compile(source, str(folder / f"{name}.py"), "exec"), module.__dict__)
    give_positions()
    return sys.modules["model_utils"]


def row(name: str, count: int, side: Side) -> str:
    """One line of the table."""
    seconds = f"{statistics.median(side.seconds):.2f} ({min(side.seconds):.2f}–{max(side.seconds):.2f})"
    return f"| {name} | {count} | {seconds} | {gib(side.peak)} | {side.loss:.5g} | {side.coupling:.5g} |"


if __name__ == "__main__":
    main()
