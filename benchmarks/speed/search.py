"""What one candidate of a search costs beside the bare forward pass on its tokens.

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
from transformers import LlamaConfig, LlamaForCausalLM

from harness.calibration.probe import ModelProbe
from harness.core.allocation import Budget
from harness.core.interfaces import Database
from harness.core.pattern import NofM
from harness.core.proposals import sizes
from harness.core.search import Ladder, Space
from harness.methods.magnitude import Magnitude
from harness.models.anatomy import anatomy_of
from harness.record.provenance import ROOT, provenance
from harness.record.schema import hardware_name

SHAPES = {"7b": (4096, 11008, 32, 32, 32000), "1b": (2048, 5504, 24, 16, 32000), "11m": (256, 704, 8, 4, 16384)}
"""Hidden size, feed-forward size, blocks, heads, vocabulary."""
CHILDREN = 16


def main() -> None:
    """Time the three for a shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = random_model(options.shape, device)
    generator = torch.Generator().manual_seed(1)
    windows = torch.randint(SHAPES[options.shape][-1], (options.windows, options.length), generator=generator).to(
        device
    )
    probe = ModelProbe(model, anatomy_of(model), [windows[:1]], range(SHAPES[options.shape][2]), draw=lambda _: windows)
    space = Space(probe.blocks, sizes(probe), Budget.of_pattern(NofM(1, 4)), Ladder(), "matrix")
    started = time.perf_counter()
    assembler = probe.assembler(
        Magnitude(), {site: list(space.rungs.values()) for site in probe.shapes},
        inputs=None, windows=options.windows, objective="nll", database=Database(),
    )  # fmt: skip
    synchronise(device)
    built = time.perf_counter() - started
    draw = Random(0)
    parent = space.mutated(space.uniform, 0.5, draw)

    def alone() -> None:
        assembler.losses([space.candidate(space.mutated(parent, 0.5, draw))])

    def generation() -> None:
        assembler.losses([space.candidate(space.mutated(parent, 0.02, draw)) for _ in range(CHILDREN)])

    seconds = interleaved([lambda: bare(model, windows), alone, generation], options.repeat, device)
    rows = zip(("bare forward", "one candidate", f"{CHILDREN} mutants, each"), seconds, (1, 1, CHILDREN), strict=True)
    lines = ["| | seconds (median, min–max) | × bare forward |", "|---|---|---|"]
    middle = statistics.median(seconds[0])
    for name, taken, share in rows:
        each = [one / share for one in taken]
        median = statistics.median(each)
        lines.append(f"| {name} | {median:.4f}, {min(each):.4f}–{max(each):.4f} | {median / middle:.3f} |")
    write(options, device, lines, built, assembler.facts["bytes"])


def random_model(shape: str, device: torch.device) -> LlamaForCausalLM:
    """16 bit on a GPU, made where it stays."""
    hidden, wide, blocks, heads, vocabulary = SHAPES[shape]
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=blocks, num_attention_heads=heads,
        num_key_value_heads=heads, vocab_size=vocabulary, max_position_embeddings=4096, use_cache=False,
    )  # fmt: skip
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    torch.manual_seed(0)
    with device:
        model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype)
    return model.requires_grad_(False).eval()


@torch.no_grad()
def bare(model: LlamaForCausalLM, windows: Tensor) -> None:
    """The logits of all windows, as many at once as evaluation takes."""
    for part in windows.split(max(1, 4096 // windows.shape[1])):
        model(part, use_cache=False).logits  # noqa: B018


def interleaved(works: list[Callable[[], None]], repeat: int, device: torch.device) -> list[list[float]]:
    """Seconds of every repeat of every work, in turn; the first round warms up and is not counted."""
    seconds: list[list[float]] = [[] for _ in works]
    for number in range(repeat + 1):
        for work, taken in zip(works, seconds, strict=True):
            synchronise(device)
            started = time.perf_counter()
            work()
            synchronise(device)
            if number:
                taken.append(time.perf_counter() - started)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write(options: argparse.Namespace, device: torch.device, lines: list[str], built: float, size: int) -> None:
    """The table with what it was measured on."""
    facts = provenance(device, {})
    head = [
        f"# One candidate's evaluation, shape {options.shape}",
        "",
        f"{hardware_name(facts['hardware'])}, torch {facts['versions']['torch']}, commit {facts['commit']}; "
        f"{options.windows} windows of {options.length} tokens, {options.repeat} repeats in turn. "
        f"The database: {size / 2**30:.1f} GiB, made in {built:.1f} s.",
        "",
    ]
    text = "\n".join([*head, *lines, ""])
    print(text)
    folder = ROOT / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"search_{options.shape}.md").write_text(text)


if __name__ == "__main__":
    main()
