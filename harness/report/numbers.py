"""How numbers are printed, in tables and in the line that a run ends with."""

from __future__ import annotations

from harness.record.schema import Record
from harness.runtime.memory import GIB

MOST = 12
"""Measures that a line shows."""


def number(value: float, metric: str) -> str:
    """A perplexity with two decimals, or none above a thousand; an accuracy in percent; others as they are.

    Peaks of memory are in GiB.
    """
    if metric == "peak_bytes":
        return f"{value / GIB:.3f}"
    if metric == "decode_tokens_per_s":
        return f"{value:.1f}"
    if metric in ("seconds", "prefill_ms"):
        return f"{value:.2f}"
    if metric == "loss":
        return f"{value:.3g}"
    if metric in ("fitness", "spearman"):
        return f"{value:.3f}"
    if metric != "perplexity":
        return f"{100 * value:.2f}"
    return f"{value:.2f}" if value < 1000 else f"{value:.0f}" if value < 1e5 else f"{value:.2e}"


def line(record: Record) -> str:
    """Result of a run, in a line: its measures by metric and the zeros that were counted; or why none."""
    if record.status != "ok":
        return f"{record.status}: {record.reason}"
    by_metric: dict[str, list[str]] = {}
    for measure in record.measures[:MOST]:
        value = measure["value"]
        text = "not finite" if value is None else number(value, measure["metric"])
        by_metric.setdefault(measure["metric"], []).append(f"{measure['task']} {text}")
    parts = [f"{metric} {', '.join(values)}" for metric, values in by_metric.items()]
    if len(record.measures) > MOST:
        parts.append(f"{len(record.measures) - MOST} more measures")
    if (achieved := record.sparsity.get("achieved")) is not None:
        parts.append(f"sparsity {achieved:.4f}")
    if cut := _cut(record):
        parts.append(cut)
    return "; ".join(parts)


def _cut(record: Record) -> str:
    """What a planner took away, and the parameters that are left; empty where nothing went."""
    edit = record.plan.get("edit") or {}
    dense, left = record.parameters.get("dense"), record.parameters.get("model")
    counted = {
        part: len(gone) if isinstance(gone, list) else sum(map(len, gone.values())) for part, gone in edit.items()
    }
    gone = ", ".join(f"{count} {part}{'s' if count > 1 else ''}" for part, count in counted.items())
    cut = [f"cut {gone}"] if gone else []
    if dense and left and left != dense:
        cut.append(f"{left:,} of {dense:,} parameters left ({left / dense:.1%})")
    return ", ".join(cut)


def seconds(record: Record) -> float:
    """The seconds of all stages of a run."""
    return sum(stage["seconds"] for stage in record.stages.values())


def duration(seconds: float) -> str:
    """Seconds as one reads them: `90 s`, `15 min`, `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
