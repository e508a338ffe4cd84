"""Numbers that papers print, and the two small tables that say when they may be set beside ours.

The data lie in `benchmarks/reported`; its README says what each column means. Here they only become frames.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from harness.core.places import REPORTED

SCHEMA = (
    "paper", "arxiv", "table", "model", "method", "allocator", "scope", "sparsity", "pattern", "task", "metric",
    "value", "protocol", "seed", "digits", "source", "confidence", "note",
)  # fmt: skip
PAIR = (
    "reported_protocol", "our_protocol", "our_id", "task", "metric", "model", "method", "pattern", "min_sparsity",
    "max_sparsity", "kind", "tolerance", "reason",
)  # fmt: skip
DENSE = ("model", "task", "metric", "our_protocol", "our_id", "value", "tolerance", "source")
NOT_REPORTED = ("pairs.csv", "dense.csv", "authors_code_owl.csv")
"""Tables in the folder that are not of the reported schema."""

ACCURACIES = ("acc", "acc_norm", "acc-or-acc_norm")
"""Fractions; the last is what a source prints that does not say which of the two it is."""

FLAGS = ("misprint:", "not comparable:")
"""A note that begins so says why its number may not be compared."""


def load_reported(folder: Path = REPORTED) -> pd.DataFrame:
    """Every reported number, verified ones first, then `secondary/`.

    Raises:
        ValueError: a file has other columns, an accuracy is not a fraction, or a confidence is unknown.
    """
    paths = [path for path in sorted(folder.glob("*.csv")) if path.name not in NOT_REPORTED]
    paths += sorted((folder / "secondary").glob("*.csv"))
    reported = _read(paths, SCHEMA, ("sparsity", "value", "seed", "digits"))
    percent = reported[reported["metric"].isin(ACCURACIES)]["value"] > 1
    if percent.any():
        raise ValueError(f"{int(percent.sum())} reported accuracies are above 1; accuracies are fractions.")
    return reported


def load_pairs(folder: Path = REPORTED) -> pd.DataFrame:
    """Which reported protocol may meet which of ours, in file order: the first row that fits decides."""
    return _read([folder / "pairs.csv"], PAIR, ("min_sparsity", "max_sparsity", "tolerance"))


def load_dense(folder: Path = REPORTED) -> pd.DataFrame:
    """Known values of dense models under our protocols, with an absolute tolerance."""
    return _read([folder / "dense.csv"], DENSE, ("value", "tolerance"))


def _read(paths: Iterable[Path], columns: tuple[str, ...], numbers: Iterable[str]) -> pd.DataFrame:
    """Files of the same columns as one frame, texts as they are and numbers as numbers."""
    rows: list[list[str]] = []
    for path in paths:
        with path.open(newline="", encoding="utf-8") as file:
            head, *lines = csv.reader(file)
        if tuple(head) != columns:
            raise ValueError(f"{path} has the columns {', '.join(head)}; expected {', '.join(columns)}.")
        rows += (line for line in lines if line)
    frame = pd.DataFrame(rows, columns=list(columns), dtype=str)
    return frame.assign(**{name: pd.to_numeric(frame[name].replace("", None)) for name in numbers})


def of_tables(reported: pd.DataFrame, paper: str, tables: Iterable[str] = ()) -> pd.DataFrame:
    """The rows that a paper prints, in some of its tables or in all; a row may stand in two (`Table 2; Table 22`)."""
    wanted = set(tables)
    inside = reported["table"].map(lambda printed: not wanted or bool(wanted & set(printed.split("; "))))
    return reported[(reported["paper"] == paper) & inside]


def flagged(row: Mapping[str, Any]) -> str:
    """Why a reported number may not be compared, or nothing."""
    note = str(row["note"])
    return note.split("; ")[0] if note.startswith(FLAGS) else ""


@dataclass(frozen=True)
class Pair:
    """Row of `pairs.csv` for a reported protocol and one of ours; `refused` with a reason, or a tolerance."""

    kind: Literal["relative", "absolute", "z", "refused"]
    tolerance: float
    reason: str


def pair_of(pairs: Iterable[Mapping[str, Any]], cell: Mapping[str, Any], row: Mapping[str, Any]) -> Pair | None:
    """The first pair that fits our cell and a reported row; None where none does, and then they may not meet."""
    name, _, digest = str(cell["protocol"]).partition("#")
    for pair in pairs:
        if (
            fnmatchcase(row["protocol"], pair["reported_protocol"])
            and fnmatchcase(name, pair["our_protocol"])
            and (not pair["our_id"] or pair["our_id"] == f"{name}#{digest}")
            and fnmatchcase(cell["task"], pair["task"])
            and (pair["kind"] == "refused" or cell["metric"] == row["metric"])
            and all(fnmatchcase(row[key], pair[key]) for key in ("metric", "model", "method", "pattern"))
            and pair["min_sparsity"] - 1e-9 <= cell["sparsity"] <= pair["max_sparsity"] + 1e-9
        ):
            return Pair(pair["kind"], pair["tolerance"], pair["reason"])
    return None
