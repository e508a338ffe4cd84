"""Forecasts of `make plan`, beside what the same points take.

    python -m benchmarks.plan     # a GPU: random checkpoints of these geometries, WikiText-2 (HARNESS_ASSETS)
    python -m benchmarks.plan --models proxy-llama-11m     # a model that is there
    python -m benchmarks.plan --models opt-6.7b --points method=none,method=wanda     # some points
    python -m benchmarks.plan --again     # the measurements in results/bench/plan.json, by today's estimate

Every point runs alone (`share=false`), its seconds are those of all its stages, its memory is the highest peak of one.
A short point of every model runs first, which does not count: kernels are compiled in it. Points that were measured
before stay until they are measured again, those of a run beside this one too, and a run that is stopped keeps what it
measured. Prints a Markdown table and writes it to `results/bench/plan.md`, the measurements beside it as JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, OPTConfig

from benchmarks.speed.common import copy_tokenizer, device, gib, measured_on, write, write_raw
from harness import compose
from harness.core.places import ROOT
from harness.prepare import prepare
from harness.run import compute
from harness.study.estimate import estimate

MODELS = ("opt-125m", "opt-1.3b", "llama2-7b")
PLAIN = (
    "method=wanda",
    "method=sparsegpt",
    "method=none",
    "method=magnitude",
    "method=sparsegpt sparsity=2of4",
    "method=wanda calibration.windows=32",
    "method=wanda allocator=owl",
    "method=sparsellm calibration.windows=32",
)
MORE = (
    "method=sparsegpt numerics=exact calibration.windows=32",
    "method=magnitude allocator=alphapruning",
    "method=wanda allocator=msp sparsity=1of4",
    "method=wanda allocator=mrp calibration.windows=32",
)
"""For models of at most `SMALL` weights: these take minutes at larger ones."""
SHORT = "method=sparsegpt calibration.windows=8 evaluation_limit=4"
SMALL = 3e8
TEXT = ("calibration=wikitext2-sample", "evaluation=[wikitext2]")
KEPT = ROOT / "results" / "bench" / "plan.json"
FAR = 0.25
"""The share by which a forecast may miss."""


def main() -> None:
    """Measure, or read what was measured; then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--points", help="some of a model's points, not all")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("overrides", nargs="*", help="of every point, behind its own")
    options = parser.parse_intermixed_args()
    compose.register()
    if not options.again:
        only = options.points.split(",") if options.points else None
        if unknown := [text for text in only or () if text not in (*PLAIN, *MORE)]:
            parser.error(f"no point is {unknown[0]!r}; known: {', '.join((*PLAIN, *MORE))}")
        for name in options.models.split(","):
            for point in measured(name, options.overrides, only):
                print(json.dumps(point), flush=True)
                write_raw("plan", {"device": device().type, "points": [*kept_beside(point), point]})
    kept = json.loads(KEPT.read_text(encoding="utf-8"))
    report(kept["points"], kept["device"])


def kept_beside(point: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The other points that the file holds now."""
    kept = json.loads(KEPT.read_text(encoding="utf-8"))["points"] if KEPT.exists() else []
    return [other for other in kept if other["overrides"] != point["overrides"]]


def measured(name: str, overrides: Sequence[str], only: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """The points of one model, or some: the overrides of each, seconds of its stages, peaks in bytes, and where."""
    with tempfile.TemporaryDirectory() as folder:
        geometry = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))["geometry"]
        where = []
        if name.startswith(("opt", "llama")):
            save_random(geometry, Path(folder))
            where = [f"model.path={folder}"]
        small = geometry["blocks"] * geometry["hidden"] * geometry["intermediate"] < SMALL / 4
        texts = [*PLAIN, *(MORE if small else ())]
        for number, text in enumerate([SHORT, *(text for text in texts if only is None or text in only)]):
            asked = [f"model={name}", *TEXT, *text.split(), *overrides]
            cfg = compose.compose_run([*asked, *where, f"records={folder}/records", "share=false"])
            torch.cuda.empty_cache()
            stages: Any = compute(prepare(cfg)).stages
            if number:
                yield {
                    "overrides": asked,
                    "stages": {key: stage["seconds"] for key, stage in stages.items()},
                    "peak": max(stage["peak_bytes"] for stage in stages.values()),
                    "peaks": {key: stage["peak_bytes"] for key, stage in stages.items()},
                    "where": measured_on(),
                }


def save_random(geometry: Mapping[str, Any], folder: Path) -> None:
    """A checkpoint of random weights in 16 bits; the tokenizer of a proxy where there is one, which fits real text."""
    sizes = {
        "hidden_size": geometry["hidden"],
        "num_hidden_layers": geometry["blocks"],
        "num_attention_heads": geometry["heads"],
        "vocab_size": geometry["vocabulary"],
        "max_position_embeddings": geometry["context"],
    }
    config: Any
    if geometry["family"] == "opt":
        config = OPTConfig(**sizes, ffn_dim=geometry["intermediate"], word_embed_proj_dim=geometry["hidden"])
    else:
        wide, heads = geometry["intermediate"], geometry["kv_heads"]
        config = LlamaConfig(**sizes, intermediate_size=wide, num_key_value_heads=heads)
    torch.manual_seed(0)
    with device():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    model.save_pretrained(folder)
    copy_tokenizer(folder)


def report(points: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Forecast for a kind of device beside measurement, and how many forecasts are near enough."""
    lines = [
        "| model | point | seconds | foreseen | × | GiB | foreseen | × | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    near = [0, 0]
    for point in points:
        model, text = point["overrides"][0], " ".join(point["overrides"][1 + len(TEXT) :])
        guess = estimate(compose.compose_run(point["overrides"]), kind)
        assert guess is not None
        seconds = sum(point["stages"].values())
        times, sizes = guess.seconds / seconds, guess.peak_bytes / point["peak"]
        near = [near[0] + is_near(times), near[1] + is_near(sizes)]
        lines.append(
            f"| {model.removeprefix('model=')} | {text} | {seconds:.1f} | {guess.seconds:.1f} | {times:.2f} "
            f"| {gib(point['peak'])} | {gib(int(guess.peak_bytes))} | {sizes:.2f} | {commit(point)[:7]} |"
        )
    machines = {point["where"].removesuffix(f", commit {commit(point)}"): None for point in points}
    about = f"within {FAR:.0%}: {near[0]} of {len(points)} times, {near[1]} of {len(points)} peaks."
    write("plan", "Points as `make plan` foresees them", about, lines, where="; ".join(machines))


def commit(point: Mapping[str, Any]) -> str:
    """The code that a point was measured with."""
    return str(point["where"].rpartition(" ")[2])


def is_near(ratio: float) -> bool:
    """Return whether a forecast is at most `FAR` beside what was measured."""
    return abs(ratio - 1) <= FAR


if __name__ == "__main__":
    main()
