"""Zero-shot tasks behind shared contexts beside lm-eval's own loop: seconds, and log-likelihoods item by item.

    python -m benchmarks.speed.zeroshot --shape 7b                          # an H200: seconds of a random model
    python -m benchmarks.speed.zeroshot --folder <checkpoint> --theirs 1 16
    python -m benchmarks.speed.zeroshot --folder <checkpoint> --tasks piqa arc_easy --limit 200 --theirs 1 16

Every task of HARNESS_ASSETS is scored by the harness twice, the first time with its requests and tokens to be made, and
by lm-eval's HFLM in batches of the sizes asked for, the steps of the model fused alike. The smallest batches are what
the others are held against: the largest relative difference of a log-likelihood, accuracies, and items whose choice
differs (flips). An 8192³ product in the model's dtype stands beside. Prints a Markdown table and writes it to
`results/bench/zeroshot_<name>.md`, its numbers beside it as JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.speed.common import SHAPES, device, gib, random_model, timed, tokenizer_folder, write
from benchmarks.speed.evaluation import product_rate
from harness.evaluation import zeroshot_lm
from harness.evaluation.prepared import PreparedTask
from harness.evaluation.zeroshot import ZeroShot
from harness.models.decoder import Decoder, decoder_of
from harness.models.fused import fused
from harness.models.placement import Where, place

TASKS = ("boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa", "piqa")


class Scored(NamedTuple):
    """One task by one way of scoring: seconds, peak bytes, log-likelihoods by request, accuracies, chosen answers."""

    seconds: float
    peak: int
    values: list[float]
    scores: dict[str, float]
    chosen: list[int]


def main() -> None:
    """Score all tasks in all ways."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a checkpoint with its tokenizer")
    parser.add_argument("--shape", choices=SHAPES, help="a random model instead")
    parser.add_argument("--name", help="of the table; the folder's or the shape's otherwise")
    parser.add_argument("--dtype", default="float16" if torch.cuda.is_available() else "float32")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--theirs", nargs="*", type=int, default=[], help="batch sizes of lm-eval's own loop")
    parser.add_argument("--offload", action="store_true", help="blocks wait in host memory")
    options = parser.parse_args()
    decoder, tokenizer = loaded(options)
    rate = product_rate(device(), decoder.model.dtype)
    rate()
    found: dict[str, dict[str, Scored]] = {}
    with fused(decoder, wanted=device().type == "cuda"):
        for task in options.tasks:
            found[task] = ways(decoder, tokenizer, task, options)
            print(task, {way: f"{one.seconds:.2f} s" for way, one in found[task].items()}, flush=True)
    report(options, decoder, found, rate())


def loaded(options: argparse.Namespace) -> tuple[Decoder, Any]:
    """The model where it computes, and a tokenizer."""
    where = Where(device(), offload=options.offload)
    if options.shape:
        shape = SHAPES[options.shape]
        model: Any = random_model(shape, shape.blocks, device(), 4096)
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder())
    else:
        dtype = getattr(torch, options.dtype)
        model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=dtype, attn_implementation="sdpa").eval()
        tokenizer = AutoTokenizer.from_pretrained(options.folder)
    decoder = decoder_of(model)
    place(decoder, where)
    return decoder, tokenizer


def ways(decoder: Decoder, tokenizer: Any, name: str, options: argparse.Namespace) -> dict[str, Scored]:
    """One task by the harness, made ready first and then again, and by lm-eval's loop."""
    made: list[PreparedTask] = []

    def prepare() -> None:
        made.append(PreparedTask(zeroshot_lm.with_examples(ZeroShot(name).load(), 0)))

    with zeroshot_lm.own_randomness(), zeroshot_lm.quiet():
        loading, _, _ = timed(prepare)
        score = partial(scored, decoder, tokenizer, made[0], options.limit)
        first = score(None)
        found = {"first": first._replace(seconds=first.seconds + loading), "again": score(None)}
        return found | {f"lm-eval, {size} at a time": score(size) for size in options.theirs}


def scored(decoder: Decoder, tokenizer: Any, task: PreparedTask, limit: int | None, batch: int | None) -> Scored:
    """The task by the harness (`batch` None) or by lm-eval's own loop."""
    lm = zeroshot_lm.language_model(decoder, tokenizer, task, False, batch)
    seconds, peak, scores = timed(lambda: zeroshot_lm.evaluate(lm, task.task, limit))
    instances = task.task.instances
    answers: dict[int, list[float]] = {}
    for instance in instances:
        answers.setdefault(instance.doc_id, []).append(instance.resps[0][0])
    return Scored(
        seconds,
        peak,
        [instance.resps[0][0] for instance in instances],
        {metric: score.value for metric, score in scores.items()},
        [values.index(max(values)) for values in answers.values()],
    )


def report(
    options: argparse.Namespace, decoder: Decoder, found: Mapping[str, Mapping[str, Scored]], rate: float
) -> None:
    """The table and the raw numbers."""
    ways_of = list(next(iter(found.values())))
    lines = [f"| task | {' | '.join(ways_of)} | acc |", "|" + "---|" * (len(ways_of) + 2)]
    for task, by in found.items():
        scores = ", ".join(f"{metric} {100 * value:.2f}" for metric, value in by["again"].scores.items())
        lines.append(f"| {task} | {' | '.join(f'{one.seconds:.2f} s' for one in by.values())} | {scores} |")
    totals = [sum(by[way].seconds for by in found.values()) for way in ways_of]
    lines += [f"| all | {' | '.join(f'{total:.1f} s' for total in totals)} | |", ""]
    if options.theirs:
        base = f"lm-eval, {min(options.theirs)} at a time"
        lines += agreement(found, base, [way for way in ways_of if way not in ("first", base)])
    peak = max(one.peak for by in found.values() for one in by.values())
    about = (
        f"{options.shape or options.folder.name}, {str(decoder.model.dtype).removeprefix('torch.')}"
        f"{', blocks in host memory' if options.offload else ''}{f', limit {options.limit}' if options.limit else ''}; "
        f"a large product runs at {rate / 1e12:.1f} TFLOP/s; peak {gib(peak)} GiB. `first`: with requests and tokens "
        "to be made."
    )
    raw = {
        task: {way: one._asdict() | {"values": None, "chosen": None} for way, one in by.items()}
        for task, by in found.items()
    }
    name = options.name or options.shape or options.folder.name
    write(f"zeroshot_{name}", "Zero-shot tasks behind shared contexts", about, lines, {"tasks": raw})


def agreement(found: Mapping[str, Mapping[str, Scored]], base: str, ways_of: Sequence[str]) -> list[str]:
    """Rows that hold each way of scoring against lm-eval's own in its smallest batches."""
    lines = [f"| task | against {base} | largest difference | accuracy | flips |", "|---|---|---|---|---|"]
    for task, by in found.items():
        one = by[base]
        for way in ways_of:
            other = by[way]
            moved = max(abs(a - b) / max(1.0, abs(b)) for a, b in zip(other.values, one.values, strict=True))
            apart = max(abs(other.scores[metric] - value) for metric, value in one.scores.items())
            flips = sum(a != b for a, b in zip(other.chosen, one.chosen, strict=True))
            lines.append(f"| {task} | {way} | {moved:.1e} | {100 * apart:.2f} | {flips} of {len(one.chosen)} |")
    return lines


if __name__ == "__main__":
    main()
