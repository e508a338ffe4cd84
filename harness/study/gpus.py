"""Points over the GPUs of one host: a process on each of them, which sees no other and runs one point after the other.

A process that dies loses the point it was at; another one takes its place. What a process is told is one line of JSON
a point, its resolved configuration; what it answers, one line, the path of the record.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from threading import Lock
from typing import IO, Any

import torch

from harness import compose
from harness.config import RunConfig
from harness.execute import execute
from harness.prepare import prepare
from harness.runtime import streams
from harness.runtime.errors import UserError

Point = tuple[str, RunConfig]
"""A point's label and configuration."""


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them.

    Raises:
        UserError: there are none.
    """
    count = torch.cuda.device_count()
    if count == 0:
        raise UserError("cluster=gpus needs GPUs and this machine has none; take cluster=local or cluster=joblib.")
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return named[:count] or [str(index) for index in range(count)]


def run_points(points: Sequence[Point], gpus: Sequence[str] | None = None) -> list[str | None]:
    """Run every point on one of the GPUs, the next one on the first that is idle.

    A process goes on with points of the model that it ran last while there are any.

    Returns:
        The path of each point's record, or None where it has none: a user's mistake, or a process that died.

    Raises:
        UserError: this machine has no GPU; or a point chooses its device itself.
    """
    gpus = visible_gpus() if gpus is None else gpus
    for label, cfg in points:
        if cfg.device.startswith("cuda:"):
            raise UserError(f"at the point {label}: cluster=gpus chooses the GPU; leave out device={cfg.device}.")
    queue = _Queue(list(enumerate(points)))
    workers = min(len(gpus), len(points))
    with ThreadPoolExecutor(max(1, workers)) as pool:
        try:
            list(pool.map(lambda gpu: _serve(queue, gpu, workers), gpus[:workers]))
        except BaseException:
            queue.stop()
            raise
    return [queue.records.get(number) for number in range(len(points))]


@dataclass
class _Queue:
    """The points that no process has taken yet, and the records of those that are done."""

    waiting: list[tuple[int, Point]]
    records: dict[int, str] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def take(self, model: str | None) -> tuple[int, Point] | None:
        """The next point, of this model if there is one, else of the model that most points wait for."""
        with self._lock:
            names = [cfg.model.name for _, (_, cfg) in self.waiting]
            if not names:
                return None
            wanted = model if model in names else max(names, key=names.count)
            return self.waiting.pop(names.index(wanted))

    def stop(self) -> None:
        """Nothing more is taken."""
        with self._lock:
            self.waiting.clear()


def _serve(queue: _Queue, gpu: str, workers: int) -> None:
    """Keep one GPU busy until no point waits."""
    model, worker = None, None
    with ExitStack() as stack:
        while taken := queue.take(model):
            number, (label, cfg) = taken
            worker = worker or stack.enter_context(_Worker(gpu, workers))
            answer = worker.run(label, cfg)
            if answer is None:
                print(
                    f"lost: the process of GPU {gpu or 'none'} died at the point {label}", file=sys.stderr, flush=True
                )
                model, worker = None, None
            else:
                model = cfg.model.name
                if answer:
                    queue.records[number] = answer


class _Worker:
    """A process that sees one GPU."""

    def __init__(self, gpu: str, workers: int) -> None:
        answers, theirs = os.pipe()
        threads = str(max(1, (os.cpu_count() or 1) // workers))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.study.gpus", str(theirs)],
            stdin=subprocess.PIPE,
            text=True,
            pass_fds=(theirs,),
            env={"OMP_NUM_THREADS": threads} | os.environ | {"CUDA_VISIBLE_DEVICES": gpu},
            encoding="utf-8",
        )
        os.close(theirs)  # its end of the pipe closes with it
        self._answers = os.fdopen(answers, encoding="utf-8")

    def __enter__(self) -> _Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()  # it ends when it has nothing more to read
        except BrokenPipeError:
            pass
        self._answers.close()
        self._process.wait()

    def run(self, label: str, cfg: RunConfig) -> str | None:
        """The path of the point's record, empty where it has none; None if the process died."""
        stdin: Any = self._process.stdin
        try:
            stdin.write(json.dumps({"label": label, "config": dict(cfg.composed)}) + "\n")
            stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._answers.readline()
        return json.loads(answer)["record"] if answer.endswith("\n") else None


def serve(lines: IO[str], answers: IO[str]) -> None:
    """Serve points: one for every line, an answer to each."""
    for line in lines:
        task = json.loads(line)
        answers.write(json.dumps({"record": _run(task["label"], task["config"])}) + "\n")
        answers.flush()


def _run(label: str, composed: Mapping[str, Any]) -> str:
    try:
        cfg = compose.typed_here(dict(composed))
        done = execute(prepare(cfg), in_sweep=True)
    except UserError as error:
        print(f"error: at the point {label}: {error}", file=sys.stderr, flush=True)
        return ""
    print(f"record: {done.path}", flush=True)
    return str(done.path)


if __name__ == "__main__":
    streams.secure()
    with os.fdopen(int(sys.argv[1]), "w", encoding="utf-8") as channel:
        serve(sys.stdin, channel)
