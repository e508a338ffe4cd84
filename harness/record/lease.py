"""Leases: a run says by a small file that it is at a point, so that no two processes compute one point at a time.

`<records>/.running/<fingerprint>.json` names its owner (host, process, since when), says which question is being
answered, and holds a counter that the owner raises every `HEARTBEAT` seconds. It is removed when the run ends, however
it ends: only a process that was killed, or lost its machine, leaves one behind, and the next one takes it over. Points
that were handed to a cluster are leased in the same way, many by one file, until they have ended.

Whether an owner lives is told without comparing clocks. On its own machine: by its process number and the time since
boot at which that process started, so that setting a clock changes nothing. From another machine: a lease is taken over
only after `Watch` has seen it unchanged for `SILENT` seconds of its own monotonic clock. `silence`, one look for
reports, sets the time of the last heartbeat against that of a file written just now beside it, both by the file
server's clock; while that clock is being set it may err, and nothing is decided by it. An owner that slept for longer
(a suspended machine) may find its point computed a second time: both write the same record, each whole, and one stays.
"""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from harness.record.request import LEFT_OPEN, RequestMatcher
from harness.runtime.errors import UserError

FOLDER = ".running"
HEARTBEAT = 15.0
SILENT = 90.0
"""Seconds without a heartbeat after which a process on another machine counts as lost."""
LOOK = 1.0
"""Seconds between two looks at a lease that is waited for."""
PROC = Path("/proc")
MOST_PROCESSES = 2**31 - 1
"""No process has a greater number."""
_HEAD = b'{"beat": "'
_held: set[str] = set()
"""The leases that this process holds, by their tokens."""


@dataclass(frozen=True)
class Lease:
    """A lease as it was read; `text` changes with every heartbeat. One that is being written has no owner yet."""

    path: Path
    text: bytes
    owner: Mapping[str, Any] = field(default_factory=dict)
    matchers: tuple[RequestMatcher, ...] = ()

    @property
    def is_here(self) -> bool:
        """True if its owner runs, or ran, on this machine since that was started."""
        return bool(self.owner) and self.owner["place"] == _place() != ""

    @property
    def is_submission(self) -> bool:
        """True if it is of points that wait for a cluster."""
        return bool(self.owner.get("submission"))

    @property
    def silence(self) -> float:
        """Seconds since its last heartbeat, by the clock of the file server; 0 where that cannot be asked or it is
        gone."""
        try:
            with tempfile.NamedTemporaryFile(dir=self.path.parent, prefix=".") as now:
                return os.fstat(now.fileno()).st_mtime - self.path.stat().st_mtime
        except OSError:
            return 0.0

    def is_lost(self) -> bool:
        """Return whether its owner ended, or seems to have ended, without removing it; one look."""
        return not _lives(self.owner) if self.is_here else self.silence > SILENT

    def __str__(self) -> str:
        if not self.owner:
            return "by an unknown process"
        return f"process {self.owner['pid']} on {self.owner['host']}, since {self.owner['since']}"


class LeaseTaken(Exception):
    """A living process is at the point."""


class Watch:
    """Tells which owners are dead, by looking at their leases again and again."""

    def __init__(self) -> None:
        self._seen: dict[Path, tuple[bytes, float]] = {}

    def is_dead(self, lease: Lease) -> bool:
        """Of an owner on this machine it is known at once, of another after `SILENT` seconds without a heartbeat."""
        if lease.is_here:
            return not _lives(lease.owner)
        if lease.path not in self._seen or self._seen[lease.path][0] != lease.text:
            self._seen[lease.path] = (lease.text, time.monotonic())
        return time.monotonic() - self._seen[lease.path][1] > SILENT


@contextmanager
def leased(folder: Path, fingerprint: str, matcher: RequestMatcher, watch: Watch | None = None) -> Iterator[None]:
    """Hold the lease of a run while it computes; that of a dead process is taken over.

    Args:
        folder: the records.
        watch: given, a point that a living process is at raises `LeaseTaken`; otherwise that process is waited for.

    Raises:
        Busy: see `watch`.
        UserError: the lease cannot be written.
    """
    held = _take(folder / FOLDER / f"{fingerprint}.json", [matcher], watch)
    try:
        yield
    finally:
        held.release()


def _take(path: Path, matchers: Sequence[RequestMatcher], watch: Watch | None) -> _Held:
    """The lease of a point, when no living process has it."""
    looks = watch or Watch()
    waited = False
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(path.parent):
                holder = read(path)
                if holder is None or looks.is_dead(holder):
                    path.unlink(missing_ok=True)
                    return _Held(path, matchers)
        except OSError as error:
            if not (isinstance(error, FileExistsError) and path.is_file()):  # another was quicker, without a lock
                where = f"the claim of a run cannot be written to {path.parent}"
                raise UserError(f"{where}: {error.strerror}.") from error
            continue
        if watch is not None:
            raise LeaseTaken(f"another process is at this point: {holder}")
        if not waited:
            print(f"waiting for another process that is at this point: {holder}", file=sys.stderr, flush=True)
        waited = True
        time.sleep(LOOK)


@contextmanager
def submitted(
    folder: Path, matchers: Sequence[RequestMatcher], ended: Callable[[], Collection[RequestMatcher]]
) -> Iterator[None]:
    """Hold one lease of all points of a submission while their jobs are waited for; it stays if some never ended.

    Args:
        folder: the records.
        ended: asked for the points that have ended, at the start and at the end.

    Raises:
        UserError: the lease cannot be written.
    """
    places = folder / FOLDER
    over = {*matchers, *ended()}
    try:
        places.mkdir(parents=True, exist_ok=True)
        for earlier in read_all(folder):
            if earlier.is_submission and over.issuperset(earlier.matchers) and earlier.is_lost():
                earlier.path.unlink(missing_ok=True)
        held = _Held(places / f"{uuid.uuid4().hex[:16]}.json", matchers, submission=True)
    except OSError as error:
        raise UserError(f"the claim of a submission cannot be written to {places}: {error.strerror}.") from error
    try:
        yield
    finally:
        held.release(keep=not set(ended()).issuperset(matchers))


class _Held:
    """A lease of this process, kept fresh by a thread until it is released.

    It is written through the file that was created: should another process have taken the lease over, that one's file
    stays as it is.
    """

    def __init__(self, path: Path, matchers: Sequence[RequestMatcher], **more: Any) -> None:
        self.path = path
        self._token = uuid.uuid4().hex
        since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        owner = {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "token": self._token}
        owner |= {"place": _place(), "start": _started(os.getpid()), **more}
        plain = [[matcher.what, matcher.accepted] for matcher in matchers]
        rest = json.dumps({"owner": owner, "answers": plain})
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(os.dup(self._file), "wb") as file:
                file.write(_HEAD + b'%012d", ' % 0 + rest[1:].encode())
            os.fsync(self._file)
        except BaseException:
            os.close(self._file)
            path.unlink(missing_ok=True)
            raise
        _held.add(self._token)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._heartbeat, name=f"claim {path.stem}", daemon=True)
        self._thread.start()

    def _heartbeat(self) -> None:
        heartbeat = 0
        while not self._ended.wait(HEARTBEAT):
            heartbeat += 1
            try:
                os.pwrite(self._file, b"%012d" % heartbeat, len(_HEAD))
                os.fsync(self._file)
            except OSError:  # a full disk, a server that is away: the next heartbeat may come through
                continue

    def release(self, *, keep: bool = False) -> None:
        """Let the lease go; its file is removed if it is still this process's, or kept to tell of what was lost."""
        self._ended.set()
        self._thread.join()
        _held.discard(self._token)
        os.close(self._file)
        if keep:
            return
        try:
            with _alone(self.path.parent):
                lease = read(self.path)
                if lease and lease.owner.get("token") == self._token:
                    self.path.unlink(missing_ok=True)
        except OSError:  # whoever finds it finds its owner dead, or without it
            pass


def read(path: Path) -> Lease | None:
    """The lease in a file, if there is one; that of a damaged file has no owner, as one that is being written.

    Raises:
        OSError: it cannot be read, or is no file.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise OSError(0, f"{path.name} is no file")
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        content = json.loads(text)
        matchers = tuple(RequestMatcher(what, tuple(map(tuple, accepted))) for what, accepted in content["answers"])
        _check(content["owner"], matchers)
        return Lease(path, text, content["owner"], matchers)
    except (ValueError, KeyError, TypeError, RecursionError):
        return Lease(path, text)


def _check(owner: Any, matchers: tuple[RequestMatcher, ...]) -> None:
    """Check that no lease, whoever wrote it, breaks a report, or the look for its process.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is no lease.
    """
    {key: owner[key] for key in ("host", "since", "place", "start")}
    if type(owner["pid"]) is not int or not 0 < owner["pid"] <= MOST_PROCESSES:
        raise ValueError("pid")
    if not isinstance(owner["token"], str):
        raise TypeError("token")
    if any(len(matcher.accepted) != len(LEFT_OPEN) for matcher in matchers):
        raise ValueError("answers")
    hash(matchers)
    json.dumps(owner, ensure_ascii=False).encode()  # there is text that cannot be printed


def read_all(folder: Path) -> Iterator[Lease]:
    """The leases on points of a folder of records; what has no owner (yet), or cannot be read, is passed over."""
    for path in sorted((folder / FOLDER).glob("*.json")):
        try:
            lease = read(path) if re.fullmatch(r"[0-9a-f]{16}", path.stem) else None
        except OSError:
            continue
        if lease and lease.owner:
            yield lease


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Looking at a lease and taking it over as one step among all processes.

    Where the file system has no locks, what is left is that only one process can create a file of a name.
    """
    lock = FileLock(folder / ".lock", timeout=10)
    try:
        lock.acquire()
    except OSError:
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            lock.release()


def _place() -> str:
    """This machine since it was started, as seen by this process: where its process numbers mean something."""
    try:
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {(PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def _lives(owner: Mapping[str, Any]) -> bool:
    """Return whether a process of this machine is still the one that made the lease, and still holds it."""
    if owner["pid"] == os.getpid() and owner["token"] not in _held:
        return False
    started = _started(owner["pid"])
    return started is not None and started in (owner["start"], "hidden")


def _started(pid: int) -> str | None:
    """Clock ticks from the start of the machine to that of a process; None if there is none (any more)."""
    try:
        state, *numbers = (PROC / str(pid) / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "hidden" if _exists(pid) else None
    except OSError:
        return "hidden"
    return None if state in "ZX" else numbers[18]


def _exists(pid: int) -> bool:
    """Return whether there is such a process, though `/proc` does not show it (another user's may be hidden)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
