"""Files that other processes read meanwhile, and that a killed process leaves whole or not at all.

What is being written has a temporary name and is locked. The lock goes with its process, however that ends; so the
next process that writes there can tell what nobody writes any more, and removes it.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import IO

from harness.runtime.errors import UserError

LOCK = ".lock"
"""In a folder that is in use: a file that its user holds."""
DAY = 86400
_MACHINE = "".join(character for character in platform.node() if character.isalnum())[:32] or "here"
_PREFIX, _SUFFIX = f".{_MACHINE}-", ".tmp"


def at_home(path: str | Path) -> Path:
    """A path whose `~` is the home folder.

    Raises:
        UserError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"the home folder in {path} cannot be found; write the path without ~.") from None


def is_there(path: Path) -> bool:
    """Return whether a file is there to be read.

    Raises:
        UserError: there is something else of that name, from which reading might never end.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is not a file.")
    return True


def write_atomically(path: Path, text: str) -> None:
    """Write a text so that a reader sees all of it or none, and so that it survives a crash; its folder is made.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    with atomically(path) as file:
        file.write(text.encode())


@contextmanager
def atomically(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when everything is in it.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_once(path.parent)
    file, temporary = _locked_temporary(path.parent)
    with file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            _make_ordinary(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync(path.parent)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder whose files and folders take their places in `folder` once all are whole; a folder replaces another.

    Raises:
        OSError: the folder cannot be written; it stays as it was, unless the last step, renaming, is what fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned_once(folder)
    with ExitStack() as stack:
        stage = _locked_stage(folder, stack)
        stack.callback(shutil.rmtree, stage, ignore_errors=True)
        yield stage
        for path in sorted(stage.rglob("*")):
            if path.is_file():
                _make_ordinary(path)
        replaced = stage / "replaced"
        for path in sorted(stage.iterdir()):
            if path.name != LOCK:
                _put(path, folder / path.name, replaced)
    _sync(folder)


def _put(path: Path, target: Path, replaced: Path) -> None:
    """Rename a file or folder; where a folder is in the way or is what comes, what was there goes aside first."""
    if (target.is_dir() and not target.is_symlink()) or (path.is_dir() and target.exists()):
        replaced.mkdir(exist_ok=True)
        target.replace(replaced / target.name)
    path.replace(target)


def _make_ordinary(path: Path) -> None:
    """The mode that a file has which anybody else writes; some libraries and temporary files keep it to its owner."""
    mask = os.umask(0o077)
    os.umask(mask)
    with suppress(OSError):  # not every file system has modes
        path.chmod(0o666 & ~mask)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """While inside, other processes that want this lock wait; where nothing can be locked, nobody does."""
    with ExitStack() as stack:
        with suppress(OSError):
            file = stack.enter_context(_opened(path))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def taken(path: Path) -> IO[bytes] | None:
    """The lock, held for as long as the file is open; None where somebody else has it or nothing can be locked."""
    try:
        file = _opened(path)
    except OSError:
        return None
    if _lock(file):
        return file
    file.close()
    return None


def in_use(lock: Path) -> bool:
    """Return whether a process holds a lock, or may hold it where nothing can be locked; nobody holds what does not
    exist."""
    try:
        with lock.open("rb+") as file:
            return _lock(file) is not True
    except OSError:
        return False


def remove_abandoned(folder: Path) -> None:
    """Remove what killed writers left in a folder; what other machines left only once it is a day old.

    Ages are differences between two times of the folder's own file system, whatever this machine's clock says.
    """
    left = list(folder.glob(".*.tmp"))
    if not left:
        return
    with tempfile.TemporaryFile(dir=folder) as probe:
        now = os.fstat(probe.fileno()).st_mtime
    for path in left:
        with suppress(OSError):
            _remove_if_abandoned(path, now)


@lru_cache(maxsize=256)
def _remove_abandoned_once(folder: Path) -> None:
    with suppress(OSError):
        remove_abandoned(folder)


def _remove_if_abandoned(path: Path, now: float) -> None:
    """Remove it while its lock is held, so that whoever has just made it sees that it is gone and makes another."""
    status = path.lstat()
    old = now - status.st_mtime > DAY
    lock = path / LOCK if path.is_dir() else path
    if path.is_symlink() or not lock.exists():  # made this moment, or its maker was killed in it
        if old:
            _remove(path)
        return
    with lock.open("rb+") as file:
        free = _lock(file)
        if old if free is None else free and (old or path.name.startswith(_PREFIX)):
            _remove(path)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _locked_stage(folder: Path, stack: ExitStack) -> Path:
    while True:
        stage = Path(tempfile.mkdtemp(_SUFFIX, _PREFIX, folder))
        stack.enter_context(held(stage / LOCK))
        if stage.is_dir():
            return stage  # else another process took it for abandoned before it was locked


def _locked_temporary(folder: Path) -> tuple[IO[bytes], Path]:
    while True:
        descriptor, name = tempfile.mkstemp(_SUFFIX, _PREFIX, folder)
        file = os.fdopen(descriptor, "wb")
        if _lock(file) is not False and os.fstat(file.fileno()).st_nlink:
            return file, Path(name)
        file.close()  # another process took it for abandoned before it was locked


def _opened(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def _lock(file: IO[bytes]) -> bool | None:
    """Return whether the lock could be had at once; None where files cannot be locked."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _sync(folder: Path) -> None:
    """Let a rename survive a crash of the machine, where folders can be synchronised."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
