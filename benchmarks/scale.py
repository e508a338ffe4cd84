"""A study of ten thousand points: seconds to plan it, and to gather its records into tables.

    OMP_NUM_THREADS=1 python -m benchmarks.scale

The study is a product over twelve of the papers' models at scale `paper`; its records are synthetic ones of the real
shape (a site per matrix), written by the real writer. Each command is a process of its own, timed from its start to its
end, imports included; `tables` reads all records and writes table, comparison and figure. Prints a Markdown table and
writes it to `results/bench/scale.md`.
"""

from __future__ import annotations

import argparse
import math
import os
import resource
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from harness import compose, groups
from harness.config import RunConfig
from harness.core.places import ROOT
from harness.prepare import revisions
from harness.record import schema
from harness.record.identity import fingerprint
from harness.record.provenance import provenance
from harness.record.schema import Record
from harness.study import grid

NAME, SCALE = "bench_scale", "paper"
MODELS = [f"opt-{size}" for size in ("125m", "350m", "1.3b", "2.7b", "6.7b", "13b")]
MODELS += ["llama-7b", "llama-13b", "llama2-7b", "llama2-13b", "llama3-8b", "mistral-7b"]
STUDY: dict[str, Any] = {
    "title": "Twelve models, seven sparsities, four methods, three allocators, ten seeds",
    "table": {"columns": "task", "rows": ["model", "sparsity", "method", "allocator"], "figure": "curves"},
    "grids": [
        {
            "sparsity": [0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8],
            "method": ["magnitude", "wanda", "sparsegpt", "sparsellm"],
            "allocator": ["uniform", "owl", "alphapruning"],
            "seed": list(range(10)),
        }
    ],
    "scales": {
        SCALE: {
            "axes": {"model": MODELS},
            "fixed": {"calibration": "c4", "evaluation": "[wikitext2]", "dtype": "float16"},
        }
    },
}
WINDOW = 2048
CPU = torch.device("cpu")


def main() -> None:
    """Write the study and its records, time the commands, write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--run", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)  # conf folder, then a command
    options = parser.parse_args()
    if options.run:
        run(*options.run)
    with tempfile.TemporaryDirectory() as temporary:
        print(report(Path(temporary), options.repeat))


def run(conf: str, *arguments: str) -> None:
    """`python -m harness` with its configuration read from another folder; ends the process."""
    groups.CONF = grid.CONF = Path(conf)
    sys.argv = ["harness", *arguments]
    runpy.run_module("harness", run_name="__main__")


def report(folder: Path, repeat: int) -> str:
    """Time everything in a folder of its own and write the table."""
    conf, records = folder / "conf", folder / "results" / "records"
    shutil.copytree(groups.CONF, conf)
    (conf / "study" / f"{NAME}.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    groups.CONF = grid.CONF = conf
    compose.register()
    points = [point.cfg for point in grid.load_study(NAME, SCALE, [f"records={records}"]).points if point.cfg]
    rows = [row("plan", "no records", conf, records, repeat)]
    for number, cfg in enumerate(points):
        schema.write(record_of(cfg, number), records)
    rows += [row(command, "all records", conf, records, repeat) for command in ("plan", "status", "tables")]
    shown = (folder / "results" / "tables" / NAME / SCALE / "table.md").read_text(encoding="utf-8")
    assert shown.count("| opt-125m ") == len(points) // len(MODELS) // 10, "a row for all seeds of a point"
    size = sum(path.stat().st_size for path in records.glob("*.json"))
    lines = [
        f"{len(points)} points at scale {SCALE} ({STUDY['title'].lower()}), {size / 1e6:.0f} MB of records, "
        f"{os.cpu_count()} CPU cores, torch {torch.__version__}, commit {provenance(CPU, {})['commit']}. "
        "Whole processes; their CPU time beside it, for others may run on the machine.",
        "",
        "| `python -m harness …` | folder | seconds (median, min–max) | CPU seconds |",
        "|---|---|---|---|",
        *rows,
        "",
    ]
    text = "\n".join(lines)
    (ROOT / "results" / "bench" / "scale.md").write_text(text, encoding="utf-8")
    return text


def row(command: str, there: str, conf: Path, records: Path, repeat: int) -> str:
    """One command, run as often as is asked."""
    times = [seconds(conf, command, records) for _ in range(repeat)]
    wall, cpu = (sorted(column) for column in zip(*times, strict=True))
    line = f"| {command} | {there} | {wall[repeat // 2]:.1f} ({wall[0]:.1f}–{wall[-1]:.1f}) | {cpu[repeat // 2]:.1f} |"
    print(line, flush=True)
    return line


def seconds(conf: Path, command: str, records: Path) -> tuple[float, float]:
    """The wall time of one command as a process, and its CPU time."""
    call = [sys.executable, "-m", "benchmarks.scale", "--run", str(conf), command]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [*call, f"study={NAME}", f"scale={SCALE}", f"records={records}"], check=True, stdout=subprocess.DEVNULL
    )
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def record_of(cfg: RunConfig, number: int) -> Record:
    """The record of a run of this point, its numbers made up."""
    zeros = cfg.asked
    resolved = {
        "evaluation_window": WINDOW,
        "device": "cuda",
        "calibration": {**cfg.composed["calibration"], "length": WINDOW, "seed": cfg.calibration.seed},
    }
    measures = tuple(
        {
            "task": task,
            "metric": "perplexity",
            "value": 5 + 40 * zeros**4 + number % 97 / 100 + place,
            "stderr": None,
            "protocol": f"{task}@{WINDOW}",
            "samples": 300,
            "note": "",
        }
        for place, task in enumerate(cfg.evaluators)
    )
    facts = {"defaults": {"window": WINDOW, "dtype": "float16"}, "revisions": revisions(cfg)}
    return Record(
        status="ok",
        reason="",
        fingerprint=fingerprint({"point": number}),
        config={**cfg.composed, **resolved},
        sparsity={"asked": zeros, "achieved": zeros, "model": zeros},
        sites=dict(_sites(cfg, zeros)),
        measures=measures,
        stages={name: {"seconds": 1.0, "peak_bytes": 2**30} for name in ("load", "allocate", "prune", "evaluate")},
        provenance={**provenance(CPU, {}), **facts},
    )


def _sites(cfg: RunConfig, zeros: float) -> Iterator[tuple[str, dict[str, Any]]]:
    geometry = cfg.composed["model"]["geometry"]
    hidden, wide = geometry["hidden"], geometry["intermediate"]
    for block in range(geometry["blocks"]):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"):
            parameters = hidden * (hidden if name[0] in "qkvo" else wide)
            yield (
                f"model.layers.{block}.{name}",
                {
                    "asked": zeros,
                    "achieved": math.floor(zeros * parameters) / parameters,
                    "parameters": parameters,
                    "pattern": "unstructured",
                },
            )


if __name__ == "__main__":
    main()
