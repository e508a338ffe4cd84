"""Measures that no record stores, for they follow from it: a mean over tasks, seconds, losses, what allocators told."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from harness.record.schema import Record, hardware_name
from harness.report.layout import losses_of, metric_of

WANDA_SEVEN = {"boolq", "rte", "hellaswag", "winogrande", "arc_easy", "arc_challenge", "openbookqa"}
"""The tasks behind the mean that Wanda prints (arXiv 2306.11695, table 2)."""

FIRST_TASK = {"seconds": "prune", "loss": "epoch 1", "fitness": "search", "spearman": "spearman"}
"""Derived metrics → the task that every point has which was run."""


def derived(record: Record, layout: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of a study's `table:` beside the record's own measures."""
    measures: list[dict[str, Any]] = []
    if layout.get("mean"):
        measures += _mean([measure for measure in record.measures if measure["metric"] == metric_of(layout)])
    if metric_of(layout) == "seconds":
        measures += _seconds(record)
    if metric_of(layout) == "fitness":
        measures += _fitness(record)
    if metric_of(layout) == "spearman":
        measures += _spearman(record)
    if block := losses_of(layout):
        measures += _losses(record, block)
    return measures


def mean_name(tasks: Iterable[str]) -> str:
    """The name of the mean over these tasks: `mean7` is that of Wanda's seven, for which numbers are reported."""
    known = set(tasks)
    return "mean7" if known == WANDA_SEVEN else f"mean of {len(known)}"


def _mean(measures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The unweighted mean of several accuracies as a measure of its own; its errors are taken as independent."""
    if len(measures) < 2 or any(measure["value"] is None for measure in measures):
        return []
    name = mean_name(measure["task"] for measure in measures)
    errors = [measure["stderr"] or 0.0 for measure in measures]
    mean = {
        "task": name,
        "value": fmean(measure["value"] for measure in measures),
        "stderr": math.hypot(*errors) / len(measures),
        "samples": None,
        "protocol": _mean_protocol(name, [measure["protocol"] for measure in measures]),
    }
    return [{**measures[0], **mean}]


def _mean_protocol(name: str, protocols: Sequence[str]) -> str:
    """`boolq@lm-eval-2.0,0-shot,no-bos#…` and its peers → `mean7@lm-eval-1.0+2.0,0-shot,no-bos#…`."""
    parts = [re.fullmatch(r"[^@]*@(lm-eval-)?([^,#]*)([^#]*)#.*", text) for text in protocols]
    versions = "+".join(sorted({part[2] for part in parts if part}))
    settings = "/".join(sorted({part[3] for part in parts if part}))
    digest = hashlib.sha256(" ".join(sorted(protocols)).encode()).hexdigest()[:8]
    return f"{name}@lm-eval-{versions}{settings}#{digest}"


def _seconds(record: Record) -> list[dict[str, Any]]:
    """The stage `prune`; its protocol is the hardware, so that times of two machines never stand side by side."""
    if "prune" not in record.stages:
        return []
    machine = hardware_name(record.provenance["hardware"])
    return [_measure("prune", "seconds", record.stages["prune"]["seconds"], machine)]


def _fitness(record: Record) -> list[dict[str, Any]]:
    """The best of the last generation; by its protocol never beside one of another objective."""
    if not (search := record.allocation.get("search")) or not search["generations"]:
        return []
    return [_measure("search", "fitness", search["generations"][-1]["best"], f"search by {search['objective']}")]


def _spearman(record: Record) -> list[dict[str, Any]]:
    """The rank correlation of the sensitivities with the losses of pruning each unit alone."""
    if not (verification := record.allocation.get("verification")):
        return []
    return [_measure("spearman", "spearman", verification["spearman"], "rank correlation of sensitivity and loss")]


def _losses(record: Record, block: str) -> list[dict[str, Any]]:
    """The loss after every epoch of a block; the first epoch is the inner method alone."""
    told = {index: facts["loss"] for index, facts in record.blocks.items() if facts.get("loss")}
    if block == "last":
        block = max(told, key=int, default="")
    protocol = f"training loss of block {block}"
    return [
        _measure(f"epoch {epoch}", "loss", value, protocol) for epoch, value in enumerate(told.get(block, ()), start=1)
    ]


def _measure(task: str, metric: str, value: float | None, protocol: str) -> dict[str, Any]:
    return {"task": task, "metric": metric, "value": value, "stderr": None, "protocol": protocol, "samples": None}
