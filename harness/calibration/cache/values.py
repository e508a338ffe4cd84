"""Values that cost much and belong to a model and its calibration: traces, searches. One JSON file each.

The folder may be deleted at any time, also while runs use it. Nothing in it is trusted without its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.runtime.files import LOCK, atomically, held, in_use, write_atomically
from harness.runtime.memory import GIB
from harness.runtime.warn import warn

BEGINNING = b'{"belongs":'
"""Of the file of a value."""


@dataclass(frozen=True)
class Cache:
    """The cached values of one identity (model, calibration, scope), in a folder, or in memory where there is none.

    Args:
        gib: how much the folder may take, whoever wrote it; None: no limit.
    """

    folder: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    gib: float | None = None
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def entry(self, purpose: str, settings: Mapping[str, Any]) -> CachedValue:
        """The value of a purpose under these settings."""
        depends_on = {"purpose": purpose, "identity": dict(self.identity), "settings": dict(settings)}
        return CachedValue(self, purpose, json.loads(json.dumps(depends_on, sort_keys=True)))


@dataclass(frozen=True)
class CachedValue:
    """One value: an `Entry`. Its file says what it belongs to."""

    cache: Cache
    purpose: str
    depends_on: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A file name that no other value has."""
        return f"{re.sub(r'[^A-Za-z0-9-]+', '-', self.purpose)[:64]}_{_digest(self.depends_on)[:16]}"

    def read(self) -> Any | None:
        """Value written last, or None; so it is, with a warning, where the file is damaged or belongs elsewhere."""
        if self.cache.folder is None or self.key in self.cache._kept:
            return self.cache._kept.get(self.key)
        path = self.cache.folder / f"{self.key}.json"
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            warn(f"{path} cannot be read ({type(error).__name__}); it is computed again")
            return None
        if not isinstance(content, dict) or content.get("sha256") != _checksum(content):
            warn(f"{path} does not match its checksum; it is computed again")
            return None
        if content.get("belongs") != self.depends_on or "value" not in content:
            warn(f"{path} belongs to another model or other settings; it is computed again")
            return None
        with suppress(OSError):
            os.utime(path)  # used last
        return content["value"]

    @contextmanager
    def held(self) -> Iterator[None]:
        """While inside, other processes that want this value wait; where files cannot be locked, nobody does."""
        if self.cache.folder is None:
            yield
            return
        with held(self.cache.folder / f".{self.key}{LOCK}"):
            yield

    def write(self, value: Any) -> None:
        """Keep a value, atomically; in memory, with a warning, where the folder cannot take it."""
        folder = self.cache.folder
        if folder is None:
            self.cache._kept[self.key] = value
            return
        content = {"belongs": self.depends_on, "value": value}
        text = json.dumps(content | {"sha256": _checksum(content)}, allow_nan=True) + "\n"
        try:
            if not make_room(folder, self.cache.gib, len(text), folder / f"{self.key}.json"):
                raise OSError(0, f"cache_gib={self.cache.gib:g} allows no more")
            write_atomically(folder / f"{self.key}.json", text)
            self.cache._kept.pop(self.key, None)
        except OSError as error:
            warn(f"cache={folder} cannot be written ({error.strerror}); {self.purpose} is not kept for other runs")
            self.cache._kept[self.key] = json.loads(text)["value"]


def write_within(path: Path, content: bytes, gib: float | None) -> None:
    """Write a file of an entry atomically, for which others of the cache make room.

    Args:
        path: the file, in the folder of its entry.
        gib: what the cache may take; None: no limit.

    Raises:
        OSError: the cache may not take it, or the file cannot be written.
    """
    if not make_room(path.parent.parent, gib, len(content)):
        raise OSError(0, f"cache_gib={gib:g} allows no more")
    with atomically(path) as file:
        file.write(content)


def make_room(folder: Path, gib: float | None, needed: int, keep: Path | None = None) -> bool:
    """Remove entries of a cache, those used least recently first, until `needed` more bytes fit into `gib`.

    Nothing is removed where that cannot make them fit. An entry that a process holds stays. Times decide the order
    only: a clock that jumps costs an entry, not a value.

    Args:
        keep: the entry that the bytes are for; its own file will be replaced.

    Returns:
        Whether they fit.
    """
    if gib is None:
        return True
    entries = sorted(filter(None, map(_look_at, _entries(folder))), key=lambda entry: entry[0])
    entries = [entry for entry in entries if entry[2] != keep]
    left = sum(size for _, size, _ in entries) + needed
    if left <= gib * GIB:
        return True
    removable = [entry for entry in entries if not in_use(_lock_of(entry[2]))]
    if left - sum(size for _, size, _ in removable) > gib * GIB:
        return False
    for _, size, path in removable:
        if left <= gib * GIB:
            break
        if in_use(_lock_of(path)):  # by now
            continue
        with suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            left -= size
    return left <= gib * GIB


def _entries(folder: Path) -> list[Path]:
    """Values, and the folders of finished blocks and of levels; anything else is somebody else's and stays."""
    return [path for path in folder.glob("*_*") if _is_value(path) or is_working_folder(path)]


def _is_value(path: Path) -> bool:
    """Return whether it was written here: a record's name ends as a value's does, so its beginning is looked at too."""
    if not re.fullmatch(r"[A-Za-z0-9-]+_[0-9a-f]{16}\.json", path.name) or path.is_symlink() or not path.is_file():
        return False
    with suppress(OSError), path.open("rb") as file:
        return file.read(len(BEGINNING)) == BEGINNING
    return False


def is_working_folder(path: Path) -> bool:
    """Return whether it is a folder of finished blocks or of levels, by its name and by what lies in it."""
    if not re.fullmatch(r"blocks_[0-9a-f]+|levels_\w{8}", path.name) or path.is_symlink() or not path.is_dir():
        return False
    with suppress(OSError):
        return all(one.name.startswith(".") or one.suffix == ".safetensors" for one in path.iterdir())
    return False


def _lock_of(entry: Path) -> Path:
    return entry / LOCK if entry.is_dir() else entry.with_name(f".{entry.stem}{LOCK}")


def _look_at(entry: Path) -> tuple[float, int, Path] | None:
    """When it was used last, its bytes, its path; None if it has gone meanwhile."""
    try:
        if not entry.is_dir():
            status = entry.stat()
            return status.st_mtime, status.st_size, entry
        files = [path.stat() for path in entry.iterdir()]
        return max((file.st_mtime for file in files), default=0.0), sum(file.st_size for file in files), entry
    except OSError:
        return None


def _checksum(content: Mapping[str, Any]) -> str:
    return _digest([content.get("belongs"), content.get("value")])


def _digest(plain: Any) -> str:
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
