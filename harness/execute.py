"""Around runs: all are checked before the first, an earlier record is reused, a failure becomes a record."""

from __future__ import annotations

import dataclasses
import gc
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from harness import session
from harness.calibration import resume
from harness.config import RunConfig
from harness.prepare import Prepared, look_up, prepare
from harness.record import schema
from harness.record.lease import LOOK, LeaseTaken, Watch, leased
from harness.record.provenance import commit
from harness.record.request import matcher_of, matcher_of_record, request_key
from harness.record.schema import Record, check_writable
from harness.record.trackers import check_tracker, track
from harness.run import run, without_numbers
from harness.runtime.environment import blamed
from harness.runtime.errors import Failure, Refusal, UserError
from harness.runtime.oom import is_out_of_memory
from harness.save import check_targets, is_saved

K = TypeVar("K")
Done = TypeVar("Done")
INTERRUPTED = "interrupted"
OUT_OF_MEMORY = (
    "memory ran out where no batch can be smaller; take fewer or shorter calibration windows, a smaller dtype, or a "
    "device with more memory."
)


def check_points(points: Sequence[tuple[str, RunConfig]], *, here: bool) -> list[Prepared]:
    """Look at every point, by its label, before the first runs.

    Args:
        here: whether they run on this machine; a login node needs neither their memory nor their device.

    Returns:
        The prepared points; none where they run elsewhere.

    Raises:
        UserError: the first mistake found, with the point it is in if there are several.
    """
    ready, targets = [], []
    for label, cfg in points:
        with _at(label if len(points) > 1 else ""):
            check_tracker(cfg.tracker, cfg.records)
            inputs = look_up(cfg)
            if cfg.save is not None:
                targets.append((cfg.save, inputs.checkpoint.folder))
                _check_apart(cfg.save, cfg)
            if here:
                ready.append(prepare(cfg, inputs))
    check_targets(targets)
    made: list[Path] = []
    try:
        for label, cfg in points:
            with _at(label if len(points) > 1 else ""):
                _check_folders(cfg, made)
    except UserError:  # a refused command leaves no folder
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise
    return ready


@contextmanager
def _at(label: str) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        if not label:
            raise
        raise UserError(f"at the point {label}: {error}") from error


def _check_apart(save: Path, cfg: RunConfig) -> None:
    """Refuse records or a cache inside the folder of a saved model: it would no longer be one that only saves fill.

    Raises:
        UserError: they lie there.
    """
    for option, folder in {"records": cfg.records, "cache": cfg.cache}.items():
        # realpath: a link to itself is said elsewhere
        if folder and Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(save)):
            raise UserError(f"{option}={folder} lies inside save={save}, a folder of its own; choose another.")


def _check_folders(cfg: RunConfig, made: list[Path]) -> None:
    """See that the folders of a run can be written; those that had to be made are put in front of `made`."""
    uses_cache = cfg.method is not None and getattr(cfg.allocator, "uses_cache", False)
    folders = {"records": cfg.records, "cache": cfg.cache if uses_cache else None, "save": cfg.save}
    for option, folder in folders.items():
        if folder is not None:
            made[:0] = [path for path in (folder, *folder.parents) if not path.exists()]
            check_writable(option, folder)


def execute(cfg: RunConfig, ready: Prepared, *, in_sweep: bool, watch: Watch | None = None) -> tuple[Path, Record]:
    """Run a prepared point unless its record is there, write the record, tell the tracker.

    In a sweep nothing but an interrupt stops: a refusal becomes a `skipped` record, a failure a `failed` one. A
    failure never replaces a finished record (`force=true` and then an interrupt, say).

    Args:
        watch: given, a point that another process is at raises `LeaseTaken`; otherwise that process is waited for.

    Raises:
        UserError: a user's mistake in a single run (no record is written), or the lease cannot be written.
        Busy: see `watch`.
    """
    path, record, is_new = _once(cfg, ready, in_sweep, watch)
    if not is_new:
        announce(record)
    return path, record


def announce(record: Record) -> None:
    """Say of a point that it was not run."""
    print(f"found {record.status} record of this run; force=true runs it again", file=sys.stderr)


def execute_each(
    points: Mapping[K, tuple[RunConfig, Prepared]], label: Callable[[K], str]
) -> Iterator[tuple[K, Path, Record, bool]]:
    """Execute the points of a sweep; those that other processes are at come last, and are theirs unless they fail.

    Of a point that leaves no record (it cannot be written, say) the reason is said, under its label.

    Yields:
        The key of a point, its record's path, the record, and whether it was run here.
    """
    for key, done in taken_last(points, lambda key, watch: _once(*points[key], True, watch)):
        if isinstance(done, str):
            print(f"error: at the point {label(key)}: {done}", file=sys.stderr, flush=True)
        else:
            yield key, *done


def taken_last(keys: Iterable[K], attempt: Callable[[K, Watch], Done]) -> Iterator[tuple[K, Done | str]]:
    """Attempt every point, by its key; one whose attempt raises `LeaseTaken` waits until all others are done.

    Yields:
        The key of a point and what its attempt gave, as they end, or why it gave nothing.
    """
    watch = Watch()
    left = list(keys)
    is_first_pass = True
    while left:
        busy: list[K] = []
        for key in left:
            done: Done | str
            try:
                done = attempt(key, watch)
            except LeaseTaken as error:
                if not busy and is_first_pass:
                    print(f"{error}; it comes last", file=sys.stderr, flush=True)
                busy.append(key)
                continue
            except UserError as error:
                done = str(error)
            except (KeyboardInterrupt, SystemExit):  # a point's own exit is its record's reason by now
                raise
            except BaseException as error:
                done = _reason(error)
            yield key, done
        is_first_pass = False
        if len(busy) == len(left):
            time.sleep(LOOK)
        left = busy


def _reason(error: BaseException) -> str:
    """Why a point stopped, in one sentence; a traceback is shown of what nobody foresaw.

    Nothing stops a sweep but Ctrl-C, neither a panic of a library below Python nor a plugin that exits. A launcher's
    exit is none of the point's: SLURM's signal has had the job queued again by then.

    Raises:
        BaseException: the error itself, where it is one that ends the process.
    """
    names = [str(frame.f_globals.get("__name__")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    # not the innermost frame alone: W&B puts a function of its own in the place of sys.exit
    is_launchers = isinstance(error, SystemExit) and any(name.startswith("submitit.") for name in names)
    if isinstance(error, KeyboardInterrupt) or is_launchers:
        raise error
    if is_out_of_memory(error):
        return OUT_OF_MEMORY
    if isinstance(error, Failure):
        return str(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}"


def _once(cfg: RunConfig, ready: Prepared, in_sweep: bool, watch: Watch | None) -> tuple[Path, Record, bool]:
    """The record of a point, found or made here, and whether it was made."""
    commit()  # asked for once, before any work: a slow git delays a sweep, and costs no number
    found = finished(cfg, ready)
    if not found:
        with leased(cfg.records, ready.fingerprint, matcher_of(ready.config, ready.facts["defaults"]), watch):
            found = finished(cfg, ready)  # of a process that was at it until now
            if not found:
                return *_run(cfg, ready, in_sweep), True
    found = _as_asked(cfg, ready, *found)
    with suppress(OSError):
        os.utime(found[0])  # of records that answer one question, of other weights say, the last one counts
    resume.forget(cfg.cache, ready.fingerprint)
    track(cfg.tracker, found[1], cfg.records)
    return *found, False


def _as_asked(cfg: RunConfig, ready: Prepared, path: Path, record: Record) -> tuple[Path, Record]:
    """The record, or a copy under the question asked: its study looks for that, and the model had another name.

    Where both have one file name (another path to the same model), the record stays as it is.
    """
    asked = dataclasses.replace(record, config=ready.config)
    if request_key(ready.config) in matcher_of_record(record) or asked.path(cfg.records) == path:
        return path, record
    return schema.write(asked, cfg.records), asked


def _find(cfg: RunConfig, ready: Prepared) -> tuple[Path, Record] | None:
    asked = request_key(ready.config)
    return schema.find(cfg.records, ready.fingerprint, lambda record: asked in matcher_of_record(record))


def _run(cfg: RunConfig, ready: Prepared, in_sweep: bool) -> tuple[Path, Record]:
    before = _find(cfg, ready)
    record = _attempt(cfg, ready, in_sweep, attempt=before[1].attempt + 1 if before else 1)
    if before and before[1].status in schema.FINISHED and record.status == "failed":
        path = before[0]
        print(f"the earlier {before[1].status} record stays", file=sys.stderr)
    else:
        path = schema.write(record, cfg.records)
        if record.status in schema.FINISHED:
            resume.forget(cfg.cache, ready.fingerprint)
        track(cfg.tracker, record, cfg.records)
    if record.reason == INTERRUPTED:
        print(f"record: {path}", flush=True)
        raise KeyboardInterrupt
    return path, record


def finished(cfg: RunConfig, ready: Prepared) -> tuple[Path, Record] | None:
    """The record that makes running this point needless, if there is one."""
    found = None if cfg.force else _find(cfg, ready)
    if found is None or found[1].status not in schema.FINISHED:
        return None
    return None if is_unsaved(cfg, found[1]) else found


def is_unsaved(cfg: RunConfig, record: Record) -> bool:
    """Return whether the model of a record is to be kept and does not lie in its folder."""
    return cfg.save is not None and record.status == "ok" and not is_saved(cfg.save, record.fingerprint, cfg.save_form)


def _attempt(cfg: RunConfig, ready: Prepared, in_sweep: bool, attempt: int) -> Record:
    try:
        record = _computed(cfg, ready, in_sweep)
    except UserError as error:
        if not in_sweep:
            raise
        record = without_numbers(cfg, ready, "skipped" if isinstance(error, Refusal) else "failed", str(error))
        print(f"{record.status}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        record = without_numbers(cfg, ready, "failed", INTERRUPTED)
    except BaseException as error:
        record = without_numbers(cfg, ready, "failed", _reason(error))
        print(f"failed: {record.reason}", file=sys.stderr)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return dataclasses.replace(record, attempt=attempt)


def _computed(cfg: RunConfig, ready: Prepared, in_sweep: bool) -> Record:
    try:
        return run(cfg, ready, session.of_process() if in_sweep and cfg.share else None)
    except Exception as error:
        if sentence := blamed(error):
            raise UserError(sentence) from error
        raise
