"""SparseLLM on one LLaMA block: ours, and the authors' code beside it where it is.

    python -m benchmarks.speed.sparsellm --shape 7b --windows 32,128 --authors <clone>     # an H200
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
from harness.calibration.walk.batches import batched
from harness.compress import prune
from harness.core.pattern import Unstructured
from harness.methods.sparsellm import SparseLLM
from harness.models.decoder import decoder_of

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
    parser.add_argument("--authors", type=Path)
    options = parser.parse_args()
    where, shape = device(), SHAPES[options.shape]
    lines = [
        "| side | windows | seconds (median, min–max) | peak GiB | output error | ‖y − W p‖² / n |",
        "|---|---|---|---|---|---|",
    ]
    counts = [int(count) for count in options.windows.split(",")]
    for count in counts:
        side = ours(shape, random_tokens(shape, count, options.length, where), options.repeat)
        lines.append(row("ours", count, side))
        print(lines[-1], flush=True)
    if options.authors:
        side = theirs(options.authors, shape, random_tokens(shape, counts[0], options.length, where))
        lines.append(row("authors' code", counts[0], side))
        print(lines[-1], flush=True)
    about = f"windows of {options.length} tokens, {SPARSITY:.0%}."
    write(f"sparsellm_{options.shape}", f"SparseLLM on one block of shape {options.shape}", about, lines)


def block_model(shape: Shape, device: torch.device) -> LlamaForCausalLM:
    """One random block whose inputs differ in scale from channel to channel, as real ones do."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.wide, num_hidden_layers=1, num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads, vocab_size=shape.vocabulary, max_position_embeddings=4096, use_cache=False,
    )  # fmt: skip
    attention = "sdpa" if device.type == "cuda" else "eager"
    model = LlamaForCausalLM._from_config(config, attn_implementation=attention, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, shape.hidden**-0.5)
        scales = torch.exp(torch.randn(shape.hidden))
        model.model.embed_tokens.weight.mul_(scales * shape.hidden**0.5)
        model.model.layers[0].mlp.gate_proj.weight.mul_(2)
    model.requires_grad_(False)
    return model.to(device=device, dtype=torch.float16 if device.type == "cuda" else torch.float32).eval()


def ours(shape: Shape, ids: Tensor, repeat: int) -> Side:
    """Our side; the first run warms up (kernels are compiled in it) and is not counted."""
    seconds: list[float] = []
    for _ in range(repeat + 1):
        model = block_model(shape, ids.device)
        taken, peak, told = timed(partial(run_ours, model, ids, SparseLLM()))
        seconds.append(taken)
    more = run_ours(block_model(shape, ids.device), ids, SparseLLM(epochs=5))
    assert not told["fallback"], "the errors told would not be those of the weights that stay"
    return Side(seconds[1:], peak, told["loss"][-1], more["coupling"][3])


def run_ours(model: LlamaForCausalLM, ids: Tensor, method: SparseLLM) -> dict[str, Any]:
    """Prune the block; returns what the method told about it."""
    told: dict[str, dict[str, Any]] = {}
    decoder = decoder_of(model)
    allocation = dict.fromkeys(decoder.linears(0), Unstructured(SPARSITY))
    prune(decoder, batched(ids), range(1), method, allocation, told)
    return told["0"]


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
