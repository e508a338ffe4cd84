"""Every allocator against the uniform one, by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.report.ratios import ratios, to_markdown


def row(allocator: str, seed: int, task: str, value: float, method: str = "wanda") -> dict:
    return {
        "model": "m", "method": method, "allocator": allocator, "sparsity": 0.75, "pattern": "unstructured",
        "seed": seed, "task": task, "metric": "perplexity", "value": value, "fingerprint": f"{allocator}{seed}",
        "achieved": 0.7492 if allocator == "owl" and seed == 1 else 0.75,
    }  # fmt: skip


MEASURED = pd.DataFrame(
    [
        row("uniform", 0, "a", 100.0), row("uniform", 0, "b", 10.0), row("uniform", 1, "a", 200.0),
        row("owl", 0, "a", 50.0), row("owl", 0, "b", 20.0), row("owl", 1, "a", 50.0), row("owl", 2, "a", 1.0),
        row("uniform", 0, "a", 5.0, method="none"),
    ]
)  # fmt: skip


def test_ratios_are_paired_by_seed_and_text() -> None:
    """Seed 0: √(0.5 · 2) = 1; seed 1: 0.25; seed 2 has no uniform beside it."""
    (found,) = ratios(MEASURED, []).to_dict("records")
    assert found["ratio"] == pytest.approx(0.5) and (found["least"], found["most"]) == pytest.approx((0.25, 1.0))
    assert found["seeds"] == 2 and found["below"] == "2 of 3" and found["allocator"] == "owl"
    text = to_markdown(ratios(MEASURED, []), "Title", "proxy")
    assert "| m     | 0.75     | 0.7497 : 0.7500‡ | wanda  | owl       | 0.500 ± 0.530 | 0.250–1.000 | 2 of 3 |" in text


def test_nothing_without_a_uniform_one() -> None:
    assert ratios(MEASURED[MEASURED["allocator"] == "owl"], []).empty
