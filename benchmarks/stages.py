"""`make bench`: seconds and peak memory of every stage of a run, by method, in one process on this machine.

Prints a Markdown table, and writes it to `results/bench/stages.md` with what it was measured on.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from harness import compose
from harness.core.places import ROOT
from harness.prepare import prepare
from harness.record.provenance import provenance
from harness.record.schema import hardware_name
from harness.run import compute

METHODS = ("none", "magnitude", "wanda", "sparsegpt")
STAGES = ("load", "calibrate", "allocate", "prune", "evaluate")


def main() -> None:
    """Time every method `--repeat` times and report medians; the first run of the process warms up and is dropped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("overrides", nargs="*", help="overrides of the runs, for example model=proxy-llama-11m")
    options = parser.parse_args()
    compose.register()
    _measure("magnitude", options.overrides, 1)
    lines = [_row(name, _measure(name, options.overrides, options.repeat)) for name in METHODS]
    table = "\n".join(
        [_heading(options.overrides), "", _cells(["method", *STAGES, "peak"]), "|---" * 7 + "|", *lines, ""]
    )
    print(table)
    folder = ROOT / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stages.md").write_text(table, encoding="utf-8")


def _measure(method: str, overrides: list[str], repeat: int) -> list[dict[str, dict[str, float]]]:
    cfg = compose.compose_run([f"method={method}", *overrides])
    run = prepare(cfg)
    return [dict(compute(run).stages) for _ in range(repeat)]  # type: ignore[arg-type]


def _row(method: str, runs: list[dict[str, dict[str, float]]]) -> str:
    seconds = [
        f"{statistics.median(stages[name]['seconds'] for stages in runs):.2f} s" if name in runs[0] else "–"
        for name in STAGES
    ]
    peak = max(stage["peak_bytes"] for stages in runs for stage in stages.values())
    return _cells([method, *seconds, f"{peak / 2**20:.0f} MiB"])


def _heading(overrides: list[str]) -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    facts = provenance(device, {})
    where = hardware_name(facts["hardware"])
    return f"Median stage times, {' '.join(overrides) or 'default run'}, {where}, torch {facts['versions']['torch']}."


def _cells(values: list[str]) -> str:
    return "| " + " | ".join(values) + " |"


if __name__ == "__main__":
    main()
