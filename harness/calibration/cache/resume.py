"""Finished blocks of a run that is being pruned, kept so that the same run, killed and started again, goes on there.

One safetensors file a block, named by the sha256 of its content, below the cache: the weights, the masks where they are
asked for and not simply the weights' nonzeros, and what was said. A block's result depends on all blocks in front of
it, so that only those from the first one on without a gap are taken up; the stream runs through them and arrives bit
for bit where it was.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.calibration.cache.values import write_within
from harness.core.allocation import Allocation
from harness.core.interfaces import Pruned
from harness.core.places import PACKAGE
from harness.runtime.files import LOCK, taken
from harness.runtime.warn import warn

SHARE = 0.1
"""Writing takes at most so much of the time that pruning takes."""
PRUNES = ("core", "runtime", "methods", "calibration", "models")
"""The packages whose code decides what a pruned block is."""


class Block(NamedTuple):
    """The result for a block: site → weight (O, I), mask, warning; what the method told about it; what was counted."""

    pruned: Mapping[str, Pruned]
    diagnostics: Mapping[str, Any]
    counted: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class CheckpointPolicy:
    """Where finished blocks go and how often; without a folder nowhere.

    Args:
        folder: of one run alone, see `folder_of`.
        cache_key: what the results depend on; blocks of anything else are not taken up.
        every: seconds of pruning between two times of writing, more where writing is slow; 0: after every block,
            whatever it costs; None: never.
        gib: what the whole cache may take.
    """

    folder: Path | None = None
    cache_key: str = ""
    every: float | None = None
    gib: float | None = None


def folder_of(cache: Path | None, fingerprint: str) -> Path | None:
    """Where the finished blocks of a run lie; nowhere without a cache."""
    return cache / f"blocks_{fingerprint}" if cache else None


def forget(cache: Path | None, fingerprint: str) -> None:
    """Remove the finished blocks of a run whose record is written."""
    if folder := folder_of(cache, fingerprint):
        shutil.rmtree(folder, ignore_errors=True)


def cache_key_of(identity: Mapping[str, Any], method: Mapping[str, Any], seed: int, allocation: Allocation) -> str:
    """Hash of all that pruned weights depend on: the run's identity, its allocation, the code and torch's version."""
    asked = {site: [type(pattern).__name__, asdict(pattern)] for site, pattern in allocation.items()}
    parts = [dict(identity), dict(method), seed, asked, source_hash(), torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@lru_cache(maxsize=2)
def source_hash(packages: tuple[str, ...] = PRUNES) -> str:
    """Of the code in some packages and of `compress.py`."""
    digest = hashlib.sha256((PACKAGE / "compress.py").read_bytes())
    for path in sorted(path for package in packages for path in (PACKAGE / package).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class FinishedBlocks:
    """The blocks of one run: what an earlier attempt left of them is loaded, and new ones are kept.

    Args:
        weights: the index of a block → its weights (O, I) by site, as they are in the model now.
    """

    def __init__(self, policy: CheckpointPolicy, weights: Callable[[int], Mapping[str, Tensor]]) -> None:
        self._policy, self._weights = policy, weights
        self._folder = policy.folder if policy.every is not None else None
        self._waiting: dict[int, Block] = {}
        self._lock: IO[bytes] | None = None
        self._earlier = True  # whether the blocks so far all came from an earlier attempt
        self._writing = self._working = 0.0
        self._since = time.perf_counter()
        self.loaded = 0
        if self._folder is not None and self._folder.is_dir():
            self._lock = taken(self._folder / LOCK)

    def load(self, index: int) -> Block | None:
        """A block as an earlier attempt left it; None where it did not get there, and for all blocks behind."""
        found = self._read(index) if self._folder is not None and self._earlier else None
        self._earlier = found is not None
        self._since = time.perf_counter()
        self.loaded += self._earlier
        return found

    def add(self, index: int, block: Block) -> None:
        """A block that is pruned and written into the model; it is kept when enough work has been done.

        Until then it waits as it is given: its weights need not be there, nor masks that nobody asks for.
        """
        if self._folder is None:
            return
        self._waiting[index] = block
        now = time.perf_counter()
        work = now - self._since
        every = self._policy.every or 0.0
        if every and (work < every or self._writing > SHARE * (self._working + work)):
            return
        self._write()
        self._since = time.perf_counter()
        self._writing, self._working = self._writing + self._since - now, self._working + work

    def _write(self) -> None:
        """Write all blocks that wait; where that fails, the run goes on and no further ones are kept."""
        assert self._folder is not None
        for index, block in self._waiting.items():
            content = self._packed(index, block)
            name = f"{index}_{hashlib.sha256(content).hexdigest()}.safetensors"
            try:
                write_within(self._folder / name, content, self._policy.gib)
            except OSError as error:
                warn(f"blocks from {index} on are not kept for a restart: {self._folder.parent}: {error.strerror}")
                self._folder = None
                break
            self._lock = self._lock or taken(self._folder / LOCK)
        self._waiting.clear()

    def _packed(self, index: int, block: Block) -> bytes:
        weights = self._weights(index)
        tensors = {f"weight/{site}": weights[site] for site in block.pruned}
        asked = {site: one.kept for site, one in block.pruned.items() if one.kept.numel()}
        nonzeros = {site: (weights[site] != 0).to(kept.device) for site, kept in asked.items()}
        masks = {site: kept for site, kept in asked.items() if not torch.equal(kept, nonzeros[site])}
        tensors |= {f"kept/{site}": kept for site, kept in masks.items()}
        orders = {site: one.order for site, one in block.pruned.items() if one.order is not None}
        tensors |= {f"order/{site}": order for site, order in orders.items()}
        facts: dict[str, Any] = {
            "notes": {site: one.note for site, one in block.pruned.items()},
            "told": block.diagnostics,
        }
        facts["counted"] = {site: numbers.tolist() for site, numbers in block.counted.items()}
        about = {"belongs": self._policy.cache_key, "facts": json.dumps(facts)}
        return safetensors.torch.save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, about)

    def _read(self, index: int) -> Block | None:
        assert self._folder is not None
        for path in self._folder.glob(f"{index}_*.safetensors"):
            try:
                with path.open("rb") as file:
                    whole = hashlib.file_digest(file, "sha256").hexdigest() == path.stem.partition("_")[2]
                block = self._open(path, index) if whole else None
            except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError):
                block = None
            if block is not None:
                with suppress(OSError):
                    os.utime(path)
                return block
            warn(f"{path} is damaged or of another run; block {index} is pruned again")
            with suppress(OSError):
                path.unlink()
        return None

    def _open(self, path: Path, index: int) -> Block | None:
        weights = self._weights(index)
        with safe_open(path, "pt") as file:
            about = file.metadata()
            names = set(file.keys())
            if about.get("belongs") != self._policy.cache_key:
                return None
            facts = json.loads(about["facts"])
            pruned = {}
            for site, note in facts["notes"].items():
                weight = file.get_tensor(f"weight/{site}").to(weights[site].device)
                if (weight.shape, weight.dtype) != (weights[site].shape, weights[site].dtype):
                    return None
                masked = f"kept/{site}" in names
                kept = file.get_tensor(f"kept/{site}").to(weight.device) if masked else weight != 0
                order = file.get_tensor(f"order/{site}") if f"order/{site}" in names else None
                pruned[site] = Pruned(weight, kept, note, order=order)
        counted = {site: torch.tensor(numbers, dtype=torch.float64) for site, numbers in facts["counted"].items()}
        return Block(pruned, facts["told"], counted)
