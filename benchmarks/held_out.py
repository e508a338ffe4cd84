"""Methods judged on calibration text that they did not see, for choosing settings: evaluation text plays no part.

    HARNESS_ASSETS=<folder> python -m benchmarks.held_out [--model proxy-llama-11m] [--calibration c4-sample] \
        [--windows 128] [--held 64] [--sparsity 0.7] [--part 0/1] "method=alps" "method=asymmetric method.alpha=1" …

Every setting prunes the model anew, all blocks, uniform; the windows that judge are drawn from the same text with
another seed, and those that share 16 tokens in a row with a calibration window are dropped. Prints a line of JSON a
setting (perplexity on held-out and on calibration windows, zeros, seconds) and, with `--out FILE`, adds it to a file.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness import compose
from harness.calibration.walk.batches import batched, calibration_tokens
from harness.compress import prune
from harness.config import RunConfig
from harness.data.windows import calibration_windows
from harness.evaluation.zeros import fraction_of_zeros
from harness.models.attention import in_pieces
from harness.prepare import Run, prepare
from harness.session import Session

SEED = 4711
"""Of the windows that judge; calibration seeds are small."""
COMMON = 16
"""Tokens in a row that a held-out window may not share with a calibration window."""


def main() -> None:
    """Every setting, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="proxy-llama-11m")
    parser.add_argument("--calibration", default="c4-sample")
    parser.add_argument("--windows", type=int, default=128)
    parser.add_argument("--held", type=int, default=64, help="windows that judge")
    parser.add_argument("--sparsity", nargs="+", default=["0.7"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", default="0/1", help="which share of the settings, 0/4 to 3/4 say")
    parser.add_argument("--out", type=Path)
    parser.add_argument("settings", nargs="+", help="overrides of the method")
    asked = parser.parse_args()
    part, parts = map(int, asked.part.split("/"))
    points = [(sparsity, setting) for sparsity in asked.sparsity for setting in asked.settings]
    compose.register()
    session = Session(keeps=True)
    for sparsity, setting in points[part::parts]:
        cfg = compose.compose_run(
            [f"model={asked.model}", f"calibration={asked.calibration}", f"calibration.windows={asked.windows}",
             f"seed={asked.seed}", f"sparsity={sparsity}", "evaluation=[]", *setting.split()]
        )  # fmt: skip
        line = json.dumps({"model": asked.model, "sparsity": sparsity, "setting": setting, "seed": asked.seed}
                          | judged(prepare(cfg), session, asked.held))  # fmt: skip
        print(line, flush=True)
        if asked.out:
            with asked.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


@torch.no_grad()
def judged(run: Run, session: Session, count: int) -> dict[str, Any]:
    """Prune a model by a configuration, and score it."""
    with session.point():
        decoder, tokenizer = session.load(run)
        length = run.inputs.calibration_length
        calibration = calibration_windows(run.cfg.calibration, tokenizer, length)
        held = held_out(run.cfg, tokenizer, length, calibration, count)
        batches = batched(
            calibration.to(run.device),
            calibration_tokens(run.dtype.itemsize, run.device.type == "cuda", exact=run.cfg.numerics == "exact"),
        )
        scope = range(len(decoder.modules))
        sites = [site for index in scope for site in decoder.linears(index)]
        start = time.perf_counter()
        with in_pieces(decoder.model):
            if run.cfg.method is not None:
                prune(decoder, batches, scope, run.cfg.method, dict.fromkeys(sites, run.cfg.pattern))
            seconds = time.perf_counter() - start
            return {
                "held-out": perplexity(decoder.model, held.to(run.device)),
                "calibration": perplexity(decoder.model, calibration.to(run.device)),
                "windows": len(held),
                "achieved": fraction_of_zeros(decoder, scope),
                "seconds": round(seconds, 1),
            }


def held_out(cfg: RunConfig, tokenizer: Any, length: int, calibration: Tensor, count: int) -> Tensor:
    """At most `count` windows (N, L) of the calibration text that share no run of tokens with its windows."""
    used = {run for window in calibration.tolist() for run in _runs(window)}
    drawn = calibration_windows(replace(cfg.calibration, windows=4 * count, seed=SEED), tokenizer, length)
    fresh = [window for window in drawn.unique(dim=0).tolist() if not used.intersection(_runs(window))]
    return torch.tensor(fresh[:count])


def _runs(window: list[int]) -> set[tuple[int, ...]]:
    return {tuple(window[start : start + COMMON]) for start in range(len(window) - COMMON + 1)}


def perplexity(model: Any, windows: Tensor) -> float:
    """Of windows (N, L), each from its own first token on."""
    total = count = 0.0
    for window in windows.split(8):
        logits = model(window, use_cache=False).logits[:, :-1].float()
        total += float(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum")
        )
        count += window[:, 1:].numel()
    return math.exp(total / count)


if __name__ == "__main__":
    main()
