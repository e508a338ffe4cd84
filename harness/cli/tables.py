"""`tables records=<folder>`: the table and figure of any runs.

rows=model,sparsity   axes that tell rows apart: options, as they are typed for a run, or `task`. Further ones in
                      which the runs differ are added; without `rows` these are all
columns=method        the axis whose values are columns; the tasks without it
metric=perplexity     what is shown
figure=bars           or curves, or lines with x=<an axis of numbers>
title=…  out=<folder>
<option>=<value>      takes the runs with that value, or one of several (method=none,wanda); a dense run, whatever
                      its value, where that is of no use to it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.record import schema
from harness.record.schema import Record
from harness.report.axes import options_of
from harness.report.outputs import write_outputs
from harness.report.sweep import Wish, cells_of, check_axes, reasons, subject_of
from harness.report.tidy import UNUSED_BY_DENSE
from harness.runtime.errors import UserError, unknown
from harness.runtime.files import at_home

OWN = ("records", "rows", "columns", "metric", "figure", "x", "title", "out")
"""The options of this command; every other one chooses among the runs."""
OF_NO_USE_TO_DENSE = (*UNUSED_BY_DENSE, "sparsity", "scope", "seed")


def tables(arguments: Sequence[str]) -> int:
    """Write and print the table of the runs in a folder. Returns 1 if one of them failed, else 0.

    Raises:
        UserError: no folder of records is named, none of them is wanted, or what is asked of the table cannot be.
    """
    given = options(arguments)
    folder = at_home(given["records"])
    if not folder.is_dir():
        raise UserError(f"records={given['records']} is not a folder.")
    found = [record for _, record in sorted(schema.read_all(folder), key=lambda item: item[0].stat().st_mtime)]
    if not found:
        raise UserError(f"{folder} holds no records.")
    records = chosen(found, {key: value.split(",") for key, value in given.items() if key not in OWN})
    _check_axes_typed(given)
    wish = Wish(
        tuple(filter(None, given.get("rows", "").split(","))),
        *(given.get(name, "") for name in ("columns", "metric", "figure", "x")),
    )
    named = [axis for axis in (*wish.rows, wish.columns, wish.x) if axis]
    check_axes(named, [options_of(record.config) for record in records])
    cells = cells_of(records, [axis for axis in named if axis != "task"])
    outputs = write_outputs(
        subject_of(cells, wish, given.get("title") or f"Runs in {folder}"),
        cells,
        at_home(given["out"]) if "out" in given else folder / "tables",
    )
    print(outputs.markdown)
    for line in reasons(cells):
        print(line)
    if len(cells) < len(records):
        print(f"{len(records) - len(cells)} runs have the options of a later one, which counts")
    print(f"table and figure: {outputs.folder}")
    return int(any(cell.state == "failed" for cell in cells))


def _check_axes_typed(given: Mapping[str, str]) -> None:
    """See that every axis has a name and one place.

    Raises:
        UserError: one is empty, or is named twice.
    """
    for option in ("rows", "columns", "x"):
        if option in given and not all(name.strip() for name in given[option].split(",")):
            raise UserError(f"{option}={given[option]} has an empty entry; name an option, as in {option}=method.")
    if "," in given.get("columns", ""):
        raise UserError(f"columns={given['columns']}: one axis makes the columns; further ones go to rows.")
    rows = given.get("rows", "").split(",") if given.get("rows") else []
    if twice := [name for name in rows if rows.count(name) > 1]:
        raise UserError(f"rows={given['rows']} names {twice[0]} twice; name it once.")
    if given.get("columns") in rows:
        raise UserError(f"{given['columns']} is among rows and is columns too; it can be one of them.")


def options(arguments: Sequence[str]) -> dict[str, str]:
    """The options as they were typed, `[a,b]` and quotes being as in a run's.

    Raises:
        UserError: an argument is no option, or no folder of records is among them.
    """
    given = {}
    for text in arguments:
        key, equals, value = text.partition("=")
        if not equals or not key or key.startswith(("-", "+", "~")):
            raise UserError(f"{text}: tables takes <option>=<value>, as in tables records=results/records rows=model.")
        given[key] = value.strip("[]\"' ")
    if not given.get("records"):
        raise UserError("name a study, study=sparsellm_table2, or a folder of records, records=results/records.")
    return given


def chosen(records: Iterable[Record], wanted: Mapping[str, Sequence[str]]) -> list[Record]:
    """The records whose options have one of the wanted values.

    Raises:
        UserError: no record has the option, or none has the values.
    """
    left = list(records)
    for key, values in wanted.items():
        runs = [options_of(record.config) for record in left]
        if not any(key in options for options in runs):
            raise unknown("option", key, dict.fromkeys([*OWN, *(name for options in runs for name in options)]))
        known = dict.fromkeys(_text(options[key]) for options in runs if key in options)
        if missing := [value for value in values if _text(value) not in known]:
            raise unknown(f"{key} among these records:", missing[0], known)
        left = [
            record for record, options in zip(left, runs, strict=True) if _fits(options, key, list(map(_text, values)))
        ]
    return left


def _fits(options: Mapping[str, Any], key: str, values: Sequence[str]) -> bool:
    if options["method"] == "none" and key != "method" and key.partition(".")[0] in OF_NO_USE_TO_DENSE:
        return True
    return key in options and _text(options[key]) in values


def _text(value: Any) -> str:
    """A value as text, equal for equal numbers (`.5`, `0.50`), as a user writes it (`null`, `true`)."""
    if value is None or isinstance(value, bool | list):
        return json.dumps(value, separators=(",", ":"))
    try:
        return f"{float(value):g}"
    except ValueError:
        return str(value)
