"""Clean the numbers that papers print into one schema: `HARNESS_ASSETS=<folder> python benchmarks/clean_reported.py`.

Reads `$HARNESS_ASSETS/reported/*.csv`, writes `benchmarks/reported/` (one file per source, verified apart from
secondary). Decisions are data: names, protocols and misprints stand in `benchmarks/reported/cleaning/*.csv`; this file
applies them, the same way every time. What a column means is said in `benchmarks/reported/README.md`.
"""

from __future__ import annotations

import csv
import os
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path

OUTPUT = Path(__file__).parent / "reported"
COLUMNS = (
    "paper", "arxiv", "table", "model", "method", "allocator", "scope", "sparsity", "pattern", "task", "metric",
    "value", "protocol", "seed", "digits", "source", "confidence", "note",
)  # fmt: skip
BY_HAND = ("pairs.csv", "dense.csv", "authors_code_*.csv", "smollm2_*.csv")
OVERLAPPING = "msp-isc-sparsellm_baselines_verified.csv"
"""The one file that repeats cells of the others; it is read last, so that the primary source of a cell stays."""


@dataclass(frozen=True)
class Row:
    """One reported number in our schema, all text but `value`, which is exact."""

    paper: str
    arxiv: str
    table: str
    model: str
    method: str
    allocator: str
    scope: str
    sparsity: str
    pattern: str
    task: str
    metric: str
    value: Decimal | None
    protocol: str
    seed: str
    digits: int | None
    source: str
    confidence: str
    note: str
    file: str

    @property
    def cell(self) -> tuple[str, ...]:
        """The key of the number: equal numbers of one cell in one paper are one number."""
        return (
            self.paper, self.model, self.method, self.allocator, self.scope, self.sparsity, self.pattern, self.task,
            self.metric, self.protocol,
        )  # fmt: skip


Printed = dict[str, str]
"""One row as the input has it."""


def main() -> None:
    rules = Rules.read(OUTPUT / "cleaning")
    printed = list(read(_input_folder()))
    rows = [row for line in printed if (row := clean(line, rules))]
    kept = list(without_repeats(rows))
    write(kept, OUTPUT)
    confidence = Counter(row.confidence for row in kept)
    print(f"{len(printed)} rows read, {len(printed) - len(rows)} without a number, {len(rows) - len(kept)} repeats")
    print(f"{len(kept)} rows written: {', '.join(f'{count} {name}' for name, count in sorted(confidence.items()))}")


def _input_folder() -> Path:
    folder = Path(os.environ.get("HARNESS_ASSETS", ""), "reported")
    if "HARNESS_ASSETS" not in os.environ or not folder.is_dir():
        sys.exit("set HARNESS_ASSETS to the folder that holds reported/*.csv.")
    return folder


def read(folder: Path) -> Iterable[Printed]:
    """Every printed row, primary files first."""
    for path in sorted(folder.glob("*.csv"), key=lambda path: (path.name == OVERLAPPING, path.name)):
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                yield {**row, "file": path.name}


@dataclass(frozen=True)
class Rules:
    """The three tables of `cleaning/`, in file order; the first row that fits decides."""

    names: list[Printed]
    protocols: list[Printed]
    flags: list[Printed]

    @staticmethod
    def read(folder: Path) -> Rules:
        def table(name: str) -> list[Printed]:
            with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as file:
                return list(csv.DictReader(file))

        return Rules(table("names"), table("protocols"), table("flags"))

    def name(self, column: str, paper: str, printed: str) -> tuple[str, str]:
        """Our name for a printed one, and a note; without a rule papers and tables keep theirs, others are slugs."""
        for rule in self.names:
            if rule["column"] == column and rule["printed"] == printed and rule["paper"] in ("", paper):
                return rule["clean"], rule["note"]
        return (printed if column in ("paper", "table") else slug(printed)), ""

    def protocol(self, paper: str, metric: str, task: str, model: str) -> tuple[str, str, str]:
        """Metric, unit and protocol of a printed metric."""
        printed = {"paper": paper, "printed_metric": metric, "task": task, "model": model}
        rule = next(rule for rule in self.protocols if _fits(rule, printed))
        return rule["metric"] or slug(metric), rule["unit"], rule["protocol"]

    def flag(self, row: Row) -> str:
        """Objection to a row, or nothing."""
        value = "" if row.value is None else format(row.value, "f")
        printed = {name: getattr(row, name) for name in ("paper", "table", "model", "method", "allocator", "task")}
        return "; ".join(rule["flag"] for rule in self.flags if _fits(rule, {**printed, "value": value}))


def _fits(rule: Printed, printed: Printed) -> bool:
    return all(fnmatchcase(value, rule[name]) for name, value in printed.items())


def slug(text: str) -> str:
    """Lower case, words joined by `-`; `+`, `.` and `_` stay, because names of ours contain them."""
    return re.sub(r"-*\+-*", "+", re.sub(r"[^a-z0-9.+_]+", "-", text.lower())).strip("-")


def clean(printed: Printed, rules: Rules) -> Row | None:
    """One printed row in our schema, or None where it holds no number at all."""
    number = Number.read(printed["value"])
    if number is None:
        return None
    paper, table, about = _paper(printed, rules)
    model, model_note = rules.name("model", paper, printed["model"])
    method, method_note = rules.name("method", paper, printed["method"])
    allocator, allocator_note = rules.name("allocator", paper, printed["allocator"])
    task, task_note = rules.name("task", paper, printed["dataset_or_task"])
    metric, unit, protocol = rules.protocol(paper, printed["metric"], task, model)
    number = number.percent() if unit == "percent" else number
    amount = Amount.read(printed["sparsity"], printed["allocator"])
    pattern = _pattern(rules.name("pattern", paper, printed["pattern"])[0], method)
    if printed["pattern"].endswith("+channel-permutation"):
        method += "+channel-permutation"
    if amount.sparsity == "0" and not method.startswith(("dense-", "gptq")):
        method = "none"
    if method == "none":
        allocator, pattern, amount = "uniform", "dense", replace(amount, sparsity="0", scope="all")
    notes = (about, model_note, method_note, allocator_note, task_note, amount.note, number.note)
    row = Row(
        paper, _arxiv(paper, printed["arxiv"]), table, model, method, allocator, amount.scope, amount.sparsity, pattern,
        task, metric, number.value, protocol, "", number.digits, _source(printed["source"]),
        _confidence(printed), "", printed["file"],
    )  # fmt: skip
    return replace(row, note="; ".join(note for note in (rules.flag(row), *notes) if note))


def _paper(printed: Printed, rules: Rules) -> tuple[str, str, str]:
    """Paper, table and a note; what users report in issues is not the paper's, and gets a label of its own."""
    paper, note = rules.name("paper", "", printed["paper"])
    table, table_note = rules.name("table", paper, printed["table"])
    note = "; ".join(part for part in (note, table_note) if part)
    issue = re.search(r"issue #\d+", table if table.startswith("issue #") else printed["source"])
    if printed["paper"] == "issue reports":
        owner = re.search(r"github \S+/(\S+) issue", printed["source"])
        named = {"wanda": "Wanda", "LLM-Pruner": "LLM-Pruner", "sparsegpt": "SparseGPT"}
        paper = f"{named.get(owner[1], 'lm-eval') if owner else 'unknown'} rerun"
        return paper, issue[0] if issue else table, note
    if issue and paper in ("DSnoT", "OWL", "SparseGPT") and table.startswith("issue #") and "log" not in table:
        return f"{paper} rerun", issue[0], "run by a user"
    return paper, table, note


def _arxiv(paper: str, printed: str) -> str:
    """The paper's arXiv number, or `openreview <id>`; a rerun has none."""
    known = re.fullmatch(r"\d{4}\.\d{4,5}|openreview \S+", printed)
    return printed if known and "rerun" not in paper else ""


def _source(printed: str) -> str:
    """The source as given, without the scars of its transcription."""
    return re.sub(r"\s+([);,])", r"\1", printed.replace("find_string , ", "")).strip(" ;,")


def _confidence(printed: Printed) -> str:
    """`verified` of the input means read by the compiler of it; where the source says second-hand, so do we."""
    return "secondary" if "secondary" in printed["source"].lower() else printed["confidence"]


def _pattern(pattern: str, method: str) -> str:
    """Two tables print one pattern for sparse and for sparse + low-rank methods together; the method tells which."""
    if "low-rank" in pattern and pattern != "low-rank":
        return "unstructured" if method in ("sparsegpt", "wanda", "unstated") else "sparse+low-rank"
    return pattern


@dataclass(frozen=True)
class Number:
    """A printed number: its exact value, and to how many decimals it is printed (`1.7e4` has −3)."""

    value: Decimal | None
    digits: int | None
    note: str

    @staticmethod
    def read(printed: str) -> Number | None:
        """None where nothing numeric is printed; a range or `nan` keeps its text and has no value."""
        text = printed.strip()
        match = re.fullmatch(r"(?:about |up to )?(\d+(?:\.\d+)?(?:e\d+)?)(.*)", text)
        if not match or re.match(r"-\d", match[2]):
            return Number(None, None, f"printed: {text}") if re.search(r"\d|^nan$", text) else None
        value, rest = Decimal(match[1]), match[2]
        note = "" if text == match[1] else f"printed: {text}"
        if rest.startswith("±"):
            note = f"mean of 5 calibration seeds, standard deviation {rest[1:]}"
        exponent = value.as_tuple().exponent
        return Number(value, -int(exponent), note)

    def percent(self) -> Number:
        """The same number as a fraction."""
        if self.value is None or self.digits is None:
            return self
        return Number(self.value / 100, self.digits + 2, self.note)


@dataclass(frozen=True)
class Amount:
    """How much is removed, and of which blocks."""

    sparsity: str
    scope: str
    note: str

    @staticmethod
    def read(printed: str, allocator: str) -> Amount:
        """The fraction of zeros in scope, empty where none is printed; SparseGPT's `first 1/2` is 2:4 on these."""
        scope = "first_half" if "first-half" in allocator else "all"
        if leading := re.fullmatch(r"first (\d)/(\d)", printed):
            half = leading.groups() == ("1", "2")
            return Amount("0.5", "first_half" if half else f"first-{leading[1]}-of-{leading[2]}", "")
        if printed in ("full", "dense", "none"):
            return Amount("0.5" if printed == "full" else "0", scope, "")
        if layers := re.fullmatch(r"(\d+) of (\d+) layers", printed):
            return Amount(str(float(Fraction(int(layers[1]), int(layers[2])))), scope, f"removes {printed}")
        if number := re.fullmatch(r"([\d.]+)(%?)(?: \((.*)\))?", printed):
            value = Decimal(number[1]) / (100 if number[2] else 1)
            return Amount(format(value.normalize(), "f"), scope, number[3] or "")
        return Amount("", scope, f"amount: {printed}" if printed not in ("", "n/a") else "")


def without_repeats(rows: Iterable[Row]) -> Iterable[Row]:
    """One row for a number that a paper prints in several tables, or that two input files hold."""
    cells: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.file == OVERLAPPING, row.confidence == "secondary")):
        kept = cells[row.cell]
        same = next((index for index, other in enumerate(kept) if _same(other, row)), None)
        if same is None:
            kept.append(row)
        elif row.file == kept[same].file and row.table not in kept[same].table.split("; "):
            kept[same] = replace(kept[same], table=f"{kept[same].table}; {row.table}")
    return [row for kept in cells.values() for row in kept]


def _same(one: Row, other: Row) -> bool:
    """Equal to the precision of the coarser of the two."""
    if one.value is None or other.value is None or one.digits is None or other.digits is None:
        return one.value is other.value and one.note == other.note
    return abs(one.value - other.value) <= Decimal(5).scaleb(-min(one.digits, other.digits) - 1)


def write(rows: Iterable[Row], folder: Path) -> None:
    """One file per source and confidence; files of an earlier cleaning that have no rows now are removed."""
    files: dict[Path, list[Row]] = defaultdict(list)
    arxiv: dict[str, str] = {}
    for row in rows:
        arxiv.setdefault(row.paper, row.arxiv if row.arxiv[:1].isdigit() else "")
    for row in rows:
        stem = "_".join(part for part in (slug(row.paper), arxiv[row.paper]) if part)
        files[folder / ("" if row.confidence == "verified" else row.confidence) / f"{stem}.csv"].append(row)
    for stale in {path for path in folder.rglob("*.csv") if _ours(path, folder)} - set(files):
        stale.unlink()
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            writer.writerows([_text(getattr(row, name)) for name in COLUMNS] for row in content)


def _ours(path: Path, folder: Path) -> bool:
    by_hand = path.parent == folder and any(fnmatchcase(path.name, pattern) for pattern in BY_HAND)
    return not by_hand and path.parent != folder / "cleaning"


def _text(value: str | int | Decimal | None) -> str:
    if value is None:
        return ""
    return format(value, "f") if isinstance(value, Decimal) else str(value)


if __name__ == "__main__":
    main()
