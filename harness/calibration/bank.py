"""A database of pruned matrices by site and level: on the device, in host memory, or in files."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.core.errors import UserError
from harness.core.memory import Parked
from harness.core.pattern import Pattern

GIB = 2**30


class Bank:
    """Levels as tensors (O, I) of their model's dtype; with a `folder` they are files, read when they are needed.

    Files are removed with the database; those of a killed process by the next one that makes a database there.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, device: torch.device, folder: Path | None = None) -> None:
        self._folder: Path | None = None
        self._parked = Parked(device)
        self._places: dict[tuple[str, Pattern], int] = {}
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                _remove_orphans(folder)
                self._folder = Path(tempfile.mkdtemp(prefix=f"levels_{_MACHINE}_{os.getpid()}_", dir=folder))
            except OSError as error:
                raise UserError(f"the level database cannot be written to {folder}: {error.strerror}.") from error

    def put(self, site: str, levels: Mapping[Pattern, Tensor]) -> None:
        """Keep the levels of one site."""
        if self._folder is None:
            for pattern, weight in levels.items():
                self._places[site, pattern] = len(self._parked)
                self._parked.append(weight)
            return
        named = {_name(pattern): weight.detach().cpu().contiguous() for pattern, weight in levels.items()}
        try:
            save_file(named, self._folder / f"{site}.safetensors")
        except (OSError, SafetensorError) as error:
            raise UserError(f"the level database cannot be written to {self._folder}: {error}.") from error

    def get(self, site: str, pattern: Pattern) -> Tensor:
        """One level on the device."""
        if self._folder is None:
            return self._parked[self._places[site, pattern]]
        with safe_open(self._folder / f"{site}.safetensors", "pt") as file:
            return file.get_tensor(_name(pattern)).to(self._parked.device)

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def __del__(self) -> None:
        self.close()


_MACHINE = "".join(character for character in platform.node() if character.isalnum()) or "here"


def _remove_orphans(folder: Path) -> None:
    """Databases of processes of this machine that are no more."""
    for left in folder.glob(f"levels_{_MACHINE}_*"):
        process = left.name.split("_")[2]
        if process.isdigit() and not Path(f"/proc/{process}").exists() and Path("/proc/self").exists():
            shutil.rmtree(left, ignore_errors=True)


def _name(pattern: Pattern) -> str:
    return f"{pattern}/{pattern.sparsity:.9f}"


def check_size(
    sizes: Mapping[str, int], ladders: Mapping[str, Sequence[Pattern]], item: int, limit: float | None
) -> int:
    """The bytes that a database will take; the dense matrices are there anyway.

    Raises:
        UserError: more than the limit (GiB).
    """
    levels = {site: sum(pattern.sparsity > 0 for pattern in ladder) for site, ladder in ladders.items()}
    needed = sum(sizes[site] * item * count for site, count in levels.items())
    if limit is not None and needed > limit * GIB:
        raise UserError(
            f"the level database needs {needed / GIB:.3g} GiB, allocator.database_gib={limit:g} allows less; take "
            "fewer levels (a larger allocator.step, a smaller allocator.reach, allocator.levels) or a higher limit."
        )
    return needed
