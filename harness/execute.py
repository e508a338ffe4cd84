"""Around one run: an earlier record is reused, a failure becomes a record, the tracker is told."""

from __future__ import annotations

import dataclasses
import gc
import sys
import traceback
from pathlib import Path

import torch

from harness.config import RunConfig
from harness.core.errors import Refusal, UserError
from harness.prepare import Prepared
from harness.record import schema
from harness.record.schema import Record
from harness.record.trackers import track
from harness.run import run, without_numbers
from harness.save import is_saved

INTERRUPTED = "interrupted"


def execute(cfg: RunConfig, ready: Prepared, *, in_sweep: bool, announce: bool = True) -> tuple[Path, Record]:
    """Run a prepared point unless its record is there, write the record, tell the tracker.

    In a sweep nothing but an interrupt stops: a refusal becomes a `skipped` record, a failure a `failed` one.

    Raises:
        UserError: a user's mistake in a single run (no record is written).
    """
    found = finished(cfg, ready)
    if found:
        path, record = found
        if announce:
            print(f"found {record.status} record of this run; force=true runs it again", file=sys.stderr)
        track(cfg.tracker, record, cfg.records)
        return path, record
    record = _attempt(cfg, ready, in_sweep)
    path = schema.write(record, cfg.records)
    track(cfg.tracker, record, cfg.records)
    if record.reason == INTERRUPTED:
        print(f"record: {path}", flush=True)
        raise KeyboardInterrupt
    return path, record


def finished(cfg: RunConfig, ready: Prepared) -> tuple[Path, Record] | None:
    """The record that makes running this point needless, if there is one."""
    found = None if cfg.force else schema.find(cfg.records, ready.fingerprint)
    if found is None or found[1].status not in schema.FINISHED:
        return None
    if cfg.save is not None and found[1].status == "ok" and not is_saved(cfg.save):
        return None
    return found


def _attempt(cfg: RunConfig, ready: Prepared, in_sweep: bool) -> Record:
    before = schema.find(cfg.records, ready.fingerprint)
    attempt = before[1].attempt + 1 if before else 1
    try:
        record = run(cfg, ready)
    except UserError as error:
        if not in_sweep:
            raise
        record = without_numbers(
            cfg, ready.fingerprint, "skipped" if isinstance(error, Refusal) else "failed", str(error)
        )
        print(f"{record.status}: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        record = without_numbers(cfg, ready.fingerprint, "failed", INTERRUPTED)
    except Exception as error:
        traceback.print_exc()
        record = without_numbers(cfg, ready.fingerprint, "failed", f"{type(error).__name__}: {error}")
    finally:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return dataclasses.replace(record, attempt=attempt)
