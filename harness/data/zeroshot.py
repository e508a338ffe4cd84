"""The multiple-choice tasks that are there as local files, and how their rows become rows of the hub's schema.

The hub's schema is what lm-eval's installed templates read; the files keep the fields of the repositories they came
from (the README of the assets folder). Where a file's text is not the hub's, `departure` says so and is part of the
protocol.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.data.corpora import Local, read_known

Row = dict[str, Any]


@dataclass(frozen=True)
class LocalTask:
    """A task with local files: the splits by the hub's names, the one that is evaluated, the mapping of a row."""

    files: dict[str, Local]
    evaluated: str
    to_hub: Callable[[Row], Row]
    template: str | None = None
    departure: str = ""


def _as_is(row: Row) -> Row:
    return row


def _boolq(row: Row) -> Row:
    return {"question": row["question"], "passage": row["passage"], "label": int(row["answer"])}


def _hellaswag(row: Row) -> Row:
    """`query_lmeval` is lm-eval's "activity: ctx_a Ctx_b" already; from an empty ctx_b lm-eval makes the same again."""
    context = row["query_lmeval"].removeprefix(f"{row['activity_label']}: ")
    return {
        "activity_label": row["activity_label"],
        "ctx_a": context,
        "ctx_b": "",
        "endings": row["endings"],
        "label": str(row["label"]),
    }


def _lettered(question: str) -> Callable[[Row], Row]:
    """ARC and OpenBookQA: the hub has the choices with letters and the answer's letter, the files its index."""

    def to_hub(row: Row) -> Row:
        letters = [chr(ord("A") + index) for index in range(len(row["choices"]))]
        return {
            "id": row["id"],
            question: row["question"],
            "choices": {"text": row["choices"], "label": letters},
            "answerKey": letters[row["label"]],
        }

    return to_hub


def _arc(name: str, test: str, train: str) -> LocalTask:
    files = {"test": Local(f"zeroshot/{name}.test.jsonl", test), "train": Local(f"zeroshot/{name}.train.jsonl", train)}
    return LocalTask(files, "test", _lettered("question"), f"arc/{name}.yaml")


def _validation(file: str, sha256: str) -> dict[str, Local]:
    return {"validation": Local(f"zeroshot/{file}", sha256)}


def _embedded(name: str) -> LocalTask:
    return LocalTask({"test": Local(f"tasks/{name}.jsonl", None, embedded=True)}, "test", _as_is)


TASKS = {
    "boolq": LocalTask(
        _validation("boolq.validation.jsonl.gz", "dbad2984e58eaa2184b6d0acfe2e94a73b9868381046255d6be6c3bed9088b68"),
        "validation",
        _boolq,
        "super_glue/boolq/default.yaml",
        "BoolQ's own passages, without the title ('Ethanol fuel -- ') that SuperGLUE's copy puts before each",
    ),
    "rte": LocalTask(
        _validation("rte.validation.jsonl", "aabcfc66a9822029cf4b38ff3e6d0d78f7e0fecd5232ca008f338e6c4f657eb1"),
        "validation",
        _as_is,
        "glue/rte/default.yaml",
    ),
    "hellaswag": LocalTask(
        _validation(
            "hellaswag.validation.jsonl.gz", "777feb21e7b56c48554f9509e6fb379ed2c17a71ddc3b72d358c503704513b9c"
        ),
        "validation",
        _hellaswag,
        "hellaswag/hellaswag.yaml",
        "endings without the blank that lm-eval leaves where WikiHow markup such as [substeps] began one",
    ),
    "winogrande": LocalTask(
        _validation(
            "winogrande_xl.validation.jsonl", "69f3d7f3a900d775339b04c7de672609c40fca573e50f594f2ae66d8782505be"
        ),
        "validation",
        _as_is,
        "winogrande/default.yaml",
    ),
    "arc_easy": _arc(
        "arc_easy",
        "83a8602b410eeb0aaf1d1a511d32a74da24f4dadd043822b5a119b16e661966d",
        "ff2bab5b79d68cc846606e34e86077b8e28e7fc8b56b956ce181ab2671052f7d",
    ),
    "arc_challenge": _arc(
        "arc_challenge",
        "60619285301b96db8d8bcd06c990af42ecd49cd0e25fd4e58db46ae5ac76ba9b",
        "b0c42f2902ec79e55f4044ed323ec83e1416d6162f6289e0b3bf5a02936d4782",
    ),
    "openbookqa": LocalTask(
        {
            "test": Local(
                "zeroshot/openbookqa.test.jsonl", "4cab25ce1e63f9501bf9e2de788d2ac301e14b78164cecea78a0ac840e8cbae1"
            ),
            "train": Local(
                "zeroshot/openbookqa.train.jsonl", "165042fa8d49b65209672ca8f5a70d153e01afff53cf50b218b1443e47979a46"
            ),
        },
        "test",
        _lettered("question_stem"),
        "openbookqa/openbookqa.yaml",
    ),
    "piqa": LocalTask(
        _validation("piqa.validation.jsonl", "61533005e22f175534909b1ec8eacb6da03c233933558d1bafb15787453b1f55"),
        "validation",
        _as_is,
        "piqa/piqa.yaml",
    ),
    "embedded-cloze": _embedded("embedded-cloze"),
    "embedded-facts": _embedded("embedded-facts"),
}


def hub_rows(name: str, split: str, path: Path) -> list[Row]:
    """The rows of a task's local file in the hub's schema."""
    task = TASKS[name]
    data, _ = read_known(name, task.files[split], path)
    return [task.to_hub(json.loads(line)) for line in data.decode().split("\n") if line]
