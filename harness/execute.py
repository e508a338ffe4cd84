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
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch

from harness import session
from harness.calibration import resume
from harness.config import RunConfig
from harness.prepare import Run, look_up, prepare
from harness.record import schema
from harness.record.lease import LOOK, LeaseTaken, Watch, leased
from harness.record.provenance import commit
from harness.record.request import matcher_of, matcher_of_record, request_key
from harness.record.schema import Record, check_writable
from harness.record.trackers import check_tracker, track
from harness.run import compute, without_numbers
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


def check_points(points: Sequence[tuple[str, RunConfig]], *, here: bool) -> list[Run]:
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
    uses_cache = cfg.planner.uses_cache or (cfg.method is not None and cfg.allocator.uses_cache)
    folders = {"records": cfg.records, "cache": cfg.cache if uses_cache else None, "save": cfg.save}
    for option, folder in folders.items():
        if folder is not None:
            made[:0] = [path for path in (folder, *folder.parents) if not path.exists()]
            check_writable(option, folder)


class Executed(NamedTuple):
    """The record of a point, where it lies, and whether it was made here and now."""

    path: Path
    record: Record
    is_new: bool


def execute(run: Run, *, in_sweep: bool, watch: Watch | None = None) -> Executed:
    """Compute a point unless its record is there, write the record, tell the tracker.

    In a sweep nothing but an interrupt stops: a refusal becomes a `skipped` record, a failure a `failed` one. A
    failure never replaces a finished record (`force=true` and then an interrupt, say).

    Args:
        watch: given, a point that another process is at raises `LeaseTaken`; otherwise that process is waited for.

    Raises:
        UserError: a user's mistake in a single run (no record is written), or the lease cannot be written.
        LeaseTaken: see `watch`.
    """
    commit()  # asked for once, before any work: a slow git delays a sweep, and costs no number
    if found := _earlier(run):
        return found
    with leased(run.cfg.records, run.fingerprint, matcher_of(run.config, run.facts["defaults"]), watch):
        if found := _earlier(run):  # of a process that was at it until now
            return found
        with _as_record(run, in_sweep) as outcome:
            outcome.record = compute(run, session.of_process() if in_sweep and run.cfg.share else None)
        assert outcome.record is not None
        return _written(run, outcome.record)


def announce(record: Record) -> None:
    """Say of a point that it was not run."""
    print(f"found {record.status} record of this run; force=true runs it again", file=sys.stderr)


def execute_each(points: Mapping[K, Run], label: Callable[[K], str]) -> Iterator[tuple[K, Executed]]:
    """Execute the points of a sweep; those that other processes are at come last, and are theirs unless they fail.

    What points keep for one another ends with them.

    Of a point that leaves no record (it cannot be written, say) the reason is said, under its label.

    Yields:
        The key of a point and its record.
    """
    try:
        for key, done in taken_last(points, lambda key, watch: execute(points[key], in_sweep=True, watch=watch)):
            if isinstance(done, str):
                print(f"error: at the point {label(key)}: {done}", file=sys.stderr, flush=True)
            else:
                yield key, done
    finally:
        session.end()


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


def _earlier(run: Run) -> Executed | None:
    """The finished record of a point, which counts as the last one from now on; None where there is none."""
    if not (found := finished(run)):
        return None
    path, record = _as_asked(run, *found)
    with suppress(OSError):
        os.utime(path)  # of records that answer one question, of other weights say, the last one counts
    resume.forget(run.cfg.cache, run.fingerprint)
    track(run.cfg.tracker, record, run.cfg.records)
    return Executed(path, record, is_new=False)


def _as_asked(run: Run, path: Path, record: Record) -> tuple[Path, Record]:
    """The record, or a copy under the question asked: its study looks for that, and the model had another name.

    Where both have one file name (another path to the same model), the record stays as it is.
    """
    asked = dataclasses.replace(record, config=run.config)
    if request_key(run.config) in matcher_of_record(record) or asked.path(run.cfg.records) == path:
        return path, record
    return schema.write(asked, run.cfg.records), asked


def _find(run: Run) -> tuple[Path, Record] | None:
    asked = request_key(run.config)
    return schema.find(run.cfg.records, run.fingerprint, lambda record: asked in matcher_of_record(record))


def _written(run: Run, record: Record) -> Executed:
    """Write a record down, unless it is of a failure and there is one of a finished attempt.

    Raises:
        KeyboardInterrupt: the attempt was interrupted; its record is written.
    """
    before = _find(run)
    record = dataclasses.replace(record, attempt=before[1].attempt + 1 if before else 1)
    if before and before[1].status in schema.FINISHED and record.status == "failed":
        path = before[0]
        print(f"the earlier {before[1].status} record stays", file=sys.stderr)
    else:
        path = schema.write(record, run.cfg.records)
        if record.status in schema.FINISHED:
            resume.forget(run.cfg.cache, run.fingerprint)
        track(run.cfg.tracker, record, run.cfg.records)
    if record.reason == INTERRUPTED:
        print(f"record: {path}", flush=True)
        raise KeyboardInterrupt
    return Executed(path, record, is_new=True)


def finished(run: Run) -> tuple[Path, Record] | None:
    """The record that makes running this point needless, if there is one."""
    found = None if run.cfg.force else _find(run)
    if found is None or found[1].status not in schema.FINISHED:
        return None
    return None if is_unsaved(run.cfg, found[1]) else found


def is_unsaved(cfg: RunConfig, record: Record) -> bool:
    """Return whether the model of a record is to be kept and does not lie in its folder."""
    return cfg.save is not None and record.status == "ok" and not is_saved(cfg.save, record.fingerprint, cfg.save_form)


@dataclass
class _Outcome:
    """An attempt's outcome."""

    record: Record | None = None


@contextmanager
def _as_record(run: Run, in_sweep: bool) -> Iterator[_Outcome]:
    """Inside, whatever stops the point becomes its record; a mistake in a single run becomes none.

    Raises:
        UserError: a mistake in a single run.
    """
    outcome = _Outcome()
    try:
        yield outcome
    except BaseException as error:
        outcome.record = _stopped(run, error, in_sweep)
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _stopped(run: Run, error: BaseException, in_sweep: bool) -> Record:
    """The record of a point that an error stopped.

    Raises:
        UserError: it is a mistake in a single run.
    """
    if isinstance(error, Exception) and (sentence := blamed(error)):
        error = UserError(sentence)
    if isinstance(error, UserError):
        if not in_sweep:
            raise error
        record = without_numbers(run, "skipped" if isinstance(error, Refusal) else "failed", str(error))
        print(f"{record.status}: {error}", file=sys.stderr)
        return record
    if isinstance(error, KeyboardInterrupt):
        return without_numbers(run, "failed", INTERRUPTED)
    record = without_numbers(run, "failed", _reason(error))
    print(f"failed: {record.reason}", file=sys.stderr)
    return record
