"""A record: one JSON file per run, written once and atomically; the only thing that tables are made from.

Those of a published study are one compressed file.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from harness.record.dense import BESIDE, changes, is_pruned, names_of
from harness.record.diagnostics import check_diagnostics, check_number
from harness.runtime.errors import UserError
from harness.runtime.files import atomically, write_atomically
from harness.runtime.warn import warn

SCHEMA = 1
PACKED = "records.jsonl.gz"
"""The records of a published study, a line each."""
LATER = ("plan", "parameters", "recovery")
"""Fields that records from before structure and recovery do not have."""
Status = Literal["ok", "skipped", "failed"]
FINISHED = ("ok", "skipped")
DENSE_INPUTS = ",inputs=dense"
"""In the protocol of what was measured of a model whose blocks were all calibrated on the dense one's activations."""
NAMES, NUMBERS = ("task", "metric", "protocol"), ("value", "stderr", "samples")
"""Of a measure: what is text, and what is a number or unknown."""
LONGEST = 96
"""Characters of a slug: file systems take 255 bytes, W&B 128 with the fingerprint and the attempt."""
_SITES, _AFTER_SITES = b'\n "sites": {\n', b'\n },\n "measures": ['


@dataclass(frozen=True)
class Record:
    """One run. `sites` and `measures` are plain dicts with the keys that the contract names.

    `blocks` holds what a method told about blocks, by their index (SparseLLM: the loss of every epoch), `allocation`
    what the allocator told (scores, sensitivities, the trajectory of a search), `plan` the planner's edit and what it
    told (scores, an order), `recovery` what a recovery did (tokens, trained parameters, losses). `parameters` counts
    those of the `dense` model, of the `model` as it is now, those that one token meets (`active`) and those of a
    `saved` folder; beside them are the multiplications for 64 tokens (`macs`, see `core/cost.py`), the bytes that a
    cache holds for each token (`kv_bytes`) and those of the weights in the run's dtype (`disk_bytes`). `edit` is what
    records from before `plan` have.
    """

    status: Status
    reason: str
    fingerprint: str
    config: Mapping[str, Any]
    sparsity: Mapping[str, float | None] = field(default_factory=dict)
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    measures: tuple[Mapping[str, Any], ...] = ()
    stages: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    edit: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    blocks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    allocation: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, int | None] = field(default_factory=dict)
    recovery: Mapping[str, Any] = field(default_factory=dict)
    attempt: int = 1
    schema: int = SCHEMA

    @property
    def slug(self) -> str:
        """A readable name: model, method, allocator, sparsity, what else changes the model, scope, seed."""
        config, names = self.config, names_of(self.config)
        parts = [config["model"]["name"], config["method"]["name"]]
        if is_pruned(names):
            parts += [config["allocator"]["name"], config["sparsity"]]
        parts += [names[kind] for kind in BESIDE if changes(names, kind)]
        parts += [config["scope"], f"s{config['seed']}"]
        return "_".join(re.sub(r"[^A-Za-z0-9.]+", "-", str(part)) for part in parts)[:LONGEST].lstrip(".")

    @property
    def name(self) -> str:
        """The slug with the fingerprint: no two different runs share it."""
        return f"{self.slug}_{self.fingerprint}"

    def path(self, folder: Path) -> Path:
        """Where the record of this name lives."""
        return folder / f"{self.name}.json"


def on_dense_inputs(protocol: str) -> str:
    """The id of a protocol where it measures that other experiment."""
    return protocol.replace("#", f"{DENSE_INPUTS}#", 1)


def write(record: Record, folder: Path) -> Path:
    """Write atomically: a reader sees the whole record or none.

    Raises:
        UserError: the folder cannot be written.
    """
    path = record.path(folder)
    text = json.dumps(asdict(record), indent=1, allow_nan=False, ensure_ascii=False)
    try:
        write_atomically(path, text + "\n")
    except OSError as error:
        raise UserError(f"the record cannot be written to {folder}: {error.strerror}.") from error
    return path


def read(path: Path, *, sites: bool = True) -> Record:
    """A record from its file.

    Args:
        sites: whether to read what it tells of every matrix, which is most of a large model's record.

    Raises:
        UserError: the file is not a record of this schema.
    """
    try:
        if not path.is_file():  # a pipe would be waited for
            raise FileNotFoundError("there is no such file")
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} is not a record ({type(error).__name__}: {error}); remove it.") from error
    return _parsed(path, text if sites else _without_sites(text))


def _parsed(path: Path, text: bytes) -> Record:
    try:
        content = json.loads(text)
        content["measures"] = tuple(content["measures"])
        content["notes"] = tuple(content.get("notes", ()))
        record = Record(**content)
        _check(record)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise UserError(f"{path} is not a record ({type(error).__name__}: {error}); remove it.") from error
    if record.schema != SCHEMA:
        raise UserError(f"{path} has schema {record.schema}; this version reads {SCHEMA}.")
    return record


def pack(records: Iterable[Record], path: Path) -> None:
    """Write records into one compressed file, a line each; equal records give equal bytes.

    What came to records later is left out where it is empty, so that files from before it stay what they are.
    """
    lines = sorted(json.dumps(_without_empty(asdict(record)), sort_keys=True, allow_nan=False) for record in records)
    with atomically(path) as file:
        file.write(gzip.compress("".join(f"{line}\n" for line in lines).encode(), mtime=0))


def _without_empty(plain: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if value or name not in LATER}


def unpack(path: Path) -> Iterator[Record]:
    """The records of a file that `pack` wrote.

    Raises:
        UserError: it is damaged, or a line of it is no record.
    """
    try:
        content = path.read_bytes()
        if not content:
            raise EOFError("it is empty")
        lines = gzip.decompress(content).splitlines()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} holds no packed records ({error}).") from error
    yield from (_parsed(path, line) for line in lines)


def _check(record: Record) -> None:
    """Check that no file, whoever wrote it, breaks a table, or leads out of a folder when it becomes a name.

    Raises:
        ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError: it is no record.
    """
    if record.status not in get_args(Status):
        raise ValueError(f"status {record.status!r}")
    if not isinstance(record.fingerprint, str) or not re.fullmatch(r"[A-Za-z0-9]{1,64}", record.fingerprint):
        raise ValueError(f"fingerprint {str(record.fingerprint)[:80]!r}")
    logged = ("edit", "blocks", "allocation", "plan", "parameters", "recovery")
    for name in ("config", "sparsity", "sites", "stages", "provenance", *logged):
        if not isinstance(getattr(record, name), dict):
            raise TypeError(f"{name} is no object")
    if not isinstance(record.reason, str) or type(record.attempt) is not int:
        raise TypeError("reason is no text, or attempt no number")
    for part in ("sparsity", "parameters"):
        for name, value in getattr(record, part).items():
            if value is not None:
                check_number(f"{part}.{name}", value)
    if not all(isinstance(note, str) for note in record.notes):
        raise TypeError("a note is no text")
    for measure in record.measures:
        _check_measure(measure)
    check_diagnostics(record.blocks, record.allocation)
    for stage in record.stages.values():
        check_number("seconds", stage["seconds"])
    if record.stages:
        hardware_name(record.provenance["hardware"])
    shown = [record.reason, record.config, record.measures, record.provenance.get("hardware")]
    shown += [record.allocation, record.plan, record.recovery]
    json.dumps(shown, ensure_ascii=False).encode()  # there is text that no file can hold
    record.name  # noqa: B018 (names the parts of the configuration that it needs)


def _check_measure(measure: Mapping[str, Any]) -> None:
    for name in NAMES:
        if not isinstance(measure[name], str):
            raise TypeError(f"{name} of a measure is no text")
    for name in NUMBERS:
        if measure[name] is not None:
            check_number(name, measure[name])


def _without_sites(text: bytes) -> bytes:
    """The text of a record whose `sites` are empty.

    Strings hold no line breaks, so in what `write` writes a line that begins with one space is of the outermost level.
    """
    start, end = text.find(_SITES), text.rfind(_AFTER_SITES)
    return text if start < 0 or end < start else text[: start + len(_SITES)] + text[end:]


def find(
    folder: Path, fingerprint: str, prefers: Callable[[Record], bool] = lambda record: False
) -> tuple[Path, Record] | None:
    """The record of a fingerprint, a finished one before a failed one, then one that is preferred.

    A file that cannot be read, or whose record is of another fingerprint, counts as none.
    """
    ending = f"_{fingerprint}.json"
    names = [name for name in os.listdir(folder) if name.endswith(ending)] if folder.is_dir() else []
    found = []
    for name in sorted(names):
        try:
            record = read(folder / name)
        except UserError as error:
            warn(f"passed over: {error}")
            continue
        if record.fingerprint == fingerprint:
            found.append((folder / name, record))
    return max(found, key=lambda item: (item[1].status in FINISHED, prefers(item[1])), default=None)


def read_all(folder: Path) -> Iterator[tuple[Path, Record]]:
    """Every readable record of a folder, by name, without its sites; each file is read once. Others are named.

    Those of a packed file (`PACKED`) have its path and keep their sites.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            yield path, read(path, sites=False)
        except UserError as error:
            warn(f"passed over: {error}")
    if (packed := folder / PACKED).is_file():
        try:
            yield from ((packed, record) for record in unpack(packed))
        except UserError as error:
            warn(f"passed over: {error}")


def hardware_name(hardware: Mapping[str, Any]) -> str:
    """The machine in `provenance`, as tables print it: the GPU, or the number of CPU threads."""
    return str(hardware.get("gpu") or f"{hardware['threads']} CPU threads")


def check_writable(option: str, folder: Path) -> None:
    """Fail before the work starts if the folder of an option cannot be written.

    Raises:
        UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise UserError(f"{option}={folder} is not a folder; choose another.") from error
    except OSError as error:
        raise UserError(f"{option}={folder} cannot be written: {error.strerror}.") from error
