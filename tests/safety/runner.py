"""A small study in a process of its own, which may be killed from outside or at a named place of its own code.

Processes are forked from a server that has imported everything and computed nothing, so that one costs what its points
cost. Only here is anything patched; the harness knows nothing of it. Figures are not drawn, which takes longer than a
point.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
import tqdm
import transformers.models.llama.modeling_llama  # noqa: F401  (what a run would import)

import harness.evaluation.zeroshot
import harness.report.outputs
import harness.run
import harness.runtime.files as files
import harness.study.commands
import harness.study.grid
from harness import catalogue
from harness.__main__ import main

STUDY = "kills"
CONTENT = """
title: A study to be killed
table: {columns: task, rows: [model, sparsity, method, allocator]}
grids:
  - {method: [none]}
  - {method: [wanda, sparsegpt], sparsity: [0.5]}
  - method: [wanda]
    sparsity: [0.6]
    allocator: [evopress]
    allocator.generations: [3]
    allocator.offspring: [4]
    allocator.stages: [[1, 2]]
    allocator.survivors: [[2, 1]]
    allocator.held_out: [0]
    allocator.step: [0.1]
    allocator.granularity: [block]
    allocator.pruner: [null]
scales:
  embedded:
    axes: {model: [embedded-llama]}
    fixed: {calibration: embedded-a, calibration.windows: 2, calibration.length: 48, evaluation: "[embedded-a]",
            evaluation_window: 64, evaluation_limit: 2, checkpoint_every: 0}
"""

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.safety.runner"])


def started(folder: Path, place: str | None = None) -> BaseProcess:
    """The study, its records in `folder`, killed by its own hand at a `place` (`replace:3`: before the third one)."""
    process = _context.Process(target=_run, args=(folder, place))
    process.start()
    return process


def _run(folder: Path, place: str | None) -> None:
    if place == "nowhere":
        return
    os.setsid()
    folder.mkdir(parents=True, exist_ok=True)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = sys.__stdout__ = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)
    study = folder / "conf" / "study"
    study.mkdir(parents=True, exist_ok=True)
    (study / f"{STUDY}.yaml").write_text(CONTENT)
    harness.study.grid.CONF = folder / "conf"
    harness.report.outputs.draw = lambda *arguments: (arguments[4] / "figure.png").write_text("drawn")
    calls = _watched(place)
    status = main([f"study={STUDY}", f"records={folder / 'records'}"])
    (folder / "calls.json").write_text(json.dumps(calls))
    sys.stdout.flush()
    os._exit(status)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _watched(place: str | None) -> Counter[str]:
    """Count what writes and removes files, and die there: before or behind a renaming, in a text, before a removal."""
    calls: Counter[str] = Counter()

    def reached(where: str) -> bool:
        calls[where] += 1
        return place == f"{where}:{calls[where]}"

    replace, unlink, open_temporary = os.replace, os.unlink, files._locked_temporary

    def replaced(*arguments: Any, **named: Any) -> None:
        if reached("replace"):
            _die()
        replace(*arguments, **named)
        if reached("replaced"):
            _die()

    def unlinked(*arguments: Any, **named: Any) -> None:
        if reached("unlink"):
            _die()
        unlink(*arguments, **named)

    def opened(parent: Path) -> tuple[Any, Path]:
        file, path = open_temporary(parent)
        return (_Half(file) if reached("half") else file), path

    os.replace, os.unlink = replaced, unlinked
    files._locked_temporary = opened  # type: ignore[assignment]
    return calls


class _Half:
    """A file of whose first text only the first half arrives."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, content: bytes) -> None:
        self._file.write(content[: len(content) // 2])
        self._file.flush()
        _die()

    def __enter__(self) -> _Half:
        return self

    def __exit__(self, *_: object) -> None: ...


catalogue.discover()
tqdm.tqdm.set_lock(threading.RLock())  # its own one is a semaphore that outlives a killed process
gc.freeze()  # a run collects garbage after each point, not what the server imported
