"""A database of pruned matrices by site and level: on the device, in host memory, or in files."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.calibration.cache.values import is_working_folder, make_room
from harness.core.pattern import Pattern
from harness.runtime.errors import Failure, UserError
from harness.runtime.files import LOCK, in_use, taken
from harness.runtime.memory import GIB, OffloadableTensors


class LevelDatabase:
    """Levels as tensors (O, I) of their model's dtype; with a `folder` they are files, read when they are needed.

    Files are mapped as long as the database lives, so that nobody who deletes them is in its way. They are removed with
    it; those of a killed process by the next one that makes a database there.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self._folder: Path | None = None
        self._lock: IO[bytes] | None = None
        self._offloaded = OffloadableTensors(device)
        self._places: dict[tuple[str, Pattern], int] = {}
        self._files: dict[str, Any] = {}
        self._checksums: dict[tuple[str, Pattern], str] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _remove_orphans(folder)
                self._folder = Path(tempfile.mkdtemp(prefix="levels_", dir=folder))
            except OSError as error:
                raise UserError(f"the level database cannot be written to {folder}: {error.strerror}.") from error
            self._lock = taken(self._folder / LOCK)

    def put(self, site: str, levels: Mapping[Pattern, Tensor]) -> None:
        """Keep the levels of one site."""
        if self._folder is None:
            for pattern, weight in levels.items():
                self._places[site, pattern] = len(self._offloaded)
                self._offloaded.append(weight)
            return
        named = {_name(pattern): weight.detach().cpu().contiguous() for pattern, weight in levels.items()}
        path = self._folder / f"{site}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            save_file(named, path)
            self._files[site] = safe_open(path, "pt")
        except (OSError, SafetensorError) as error:
            raise UserError(f"the level database cannot be written to {self._folder}: {error}.") from error
        self._checksums |= {(site, pattern): _checksum(named[_name(pattern)]) for pattern in levels}

    def get(self, site: str, pattern: Pattern) -> Tensor:
        """One level on the device, its checksum compared when it is read first.

        Raises:
            Failure: it is not what was written.
        """
        if self._folder is None:
            return self._offloaded[self._places[site, pattern]]
        level = self._files[site].get_tensor(_name(pattern))
        expected = self._checksums.pop((site, pattern), None)
        if expected is not None and _checksum(level) != expected:
            raise Failure(
                f"the level database in {self._folder} is damaged: {site} at {pattern} does not match its checksum; "
                "run it again, it goes on from its last generation."
            )
        return level.to(self._offloaded.device)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._files.clear()
            shutil.rmtree(self._folder, ignore_errors=True)
            if self._lock is not None:
                self._lock.close()

    def __del__(self) -> None:
        self.close()


def _remove_orphans(folder: Path) -> None:
    """Databases that no process holds any more; an empty folder may be one that is being made."""
    for left in filter(is_working_folder, folder.glob("levels_*")):
        with suppress(OSError):
            if any(left.iterdir()) and not in_use(left / LOCK):
                shutil.rmtree(left, ignore_errors=True)


def _checksum(level: Tensor) -> str:
    return hashlib.sha256(level.view(torch.uint8).numpy().data).hexdigest()


def _name(pattern: Pattern) -> str:
    return f"{pattern}/{pattern.sparsity:.9f}"


def check_size(
    sizes: Mapping[str, int], levels: Mapping[str, Sequence[Pattern]], item: int, limit: float | None
) -> int:
    """The bytes that a database will take; the dense matrices are there anyway.

    Raises:
        UserError: more than the limit (GiB).
    """
    counts = {site: sum(pattern.sparsity > 0 for pattern in patterns) for site, patterns in levels.items()}
    needed = sum(sizes[site] * item * count for site, count in counts.items())
    if limit is not None and needed > limit * GIB:
        raise UserError(
            f"the level database needs {needed / GIB:.3g} GiB, allocator.database_gib={limit:g} allows less; take "
            "fewer levels (a larger allocator.step, a smaller allocator.reach, allocator.levels) or a higher limit."
        )
    return needed


def find_room(folder: Path, gib: float | None, needed: int) -> None:
    """Make room in a cache for a database of so many bytes.

    Raises:
        UserError: others hold what is in the way.
    """
    if not make_room(folder, gib, needed):
        raise UserError(
            f"the level database needs {needed / GIB:.3g} GiB in {folder}, where other runs hold so much that "
            f"cache_gib={gib:g} allows less; wait for them, or take a higher limit."
        )
