"""How soon the informed search is where the random one ends, from the published trajectories.

    python -m benchmarks.convergence [--scale proxy]

Reads `results/published/msp_start/<scale>/figure.csv`. Per model, sparsity and seed: the evaluations after which the
search from the Fisher-informed population has the random search's final loss, over all evaluations of the random one.
Prints a Markdown table and writes it to `results/bench/convergence_<scale>.md`.
"""

from __future__ import annotations

import argparse

import pandas as pd

from harness.core.places import ROOT
from harness.report.tables import markdown_lines


def main() -> None:
    """The table of a scale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", default="proxy")
    scale = parser.parse_args().scale
    steps = pd.read_csv(ROOT / "results" / "published" / "msp_start" / scale / "figure.csv")
    rows = [
        {"model": place[0], "sparsity": place[1], "seed": place[2], **_reached(mine)}
        for place, mine in steps.groupby(["model", "sparsity", "seed"], sort=False)
    ]
    early = sum(row["share"] <= "0.50" for row in rows)
    text = "\n".join(
        [
            f"# Evaluations until the informed search has the random search's final loss, scale {scale}",
            "",
            *markdown_lines(pd.DataFrame(rows)),
            "",
            f"At most half of the evaluations in {early} of {len(rows)} searches. "
            "`never`: the informed search ends above the random one.",
            "",
        ]
    )
    print(text)
    (ROOT / "results" / "bench" / f"convergence_{scale}.md").write_text(text, encoding="utf-8")


def _reached(mine: pd.DataFrame) -> dict[str, str]:
    informed, random = (mine[mine["allocator.start"] == start] for start in ("sensitivity", "random"))
    final, budget = random["best"].min(), random["evaluations"].max()
    there = informed[informed["best"] <= final]["evaluations"]
    return {
        "informed, final": f"{informed['best'].min():.4f}",
        "random, final": f"{final:.4f}",
        "evaluations": str(there.min()) if len(there) else "never",
        "of": str(budget),
        "share": f"{there.min() / budget:.2f}" if len(there) else "never",
    }


if __name__ == "__main__":
    main()
