"""Values that cost much and belong to a model and its calibration: traces, searches. One JSON file each."""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import write_atomically


@dataclass(frozen=True)
class Cache:
    """The cached values of one identity (model, calibration, scope), in a folder, or in memory where there is none."""

    folder: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    _kept: dict[str, Any] = field(default_factory=dict, repr=False)

    def entry(self, purpose: str, settings: Mapping[str, Any]) -> CachedValue:
        """The value of a purpose under these settings."""
        belongs = {"purpose": purpose, "identity": dict(self.identity), "settings": dict(settings)}
        return CachedValue(self, purpose, json.loads(json.dumps(belongs, sort_keys=True)))


@dataclass(frozen=True)
class CachedValue:
    """One value: an `Entry`. Its file says what it belongs to."""

    cache: Cache
    purpose: str
    belongs: Mapping[str, Any]

    @property
    def key(self) -> str:
        """A file name that no other value has."""
        canonical = json.dumps(self.belongs, sort_keys=True, separators=(",", ":"))
        return f"{self.purpose}_{hashlib.sha256(canonical.encode()).hexdigest()[:16]}"

    def read(self) -> Any | None:
        """What was written last, or None.

        Raises:
            UserError: the file belongs to another model, calibration or setting.
        """
        if self.cache.folder is None:
            return self.cache._kept.get(self.key)
        path = self.cache.folder / f"{self.key}.json"
        try:
            content = json.loads(path.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = f"{path} cannot be read ({type(error).__name__}); remove it to compute it again."
            raise UserError(reason) from error
        if not isinstance(content, dict) or "value" not in content or content.get("belongs") != self.belongs:
            raise UserError(f"{path} belongs to another model or other settings; remove it to compute it again.")
        return content["value"]

    @contextmanager
    def held(self) -> Iterator[None]:
        """While inside, other processes that want this value wait; where files cannot be locked, nobody does."""
        if self.cache.folder is None:
            yield
            return
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            file = (self.cache.folder / f".{self.key}.lock").open("w")
        except OSError as error:
            raise UserError(f"cache={self.cache.folder} cannot be written: {error.strerror}.") from error
        with file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def write(self, value: Any) -> None:
        """Keep a value, atomically.

        Raises:
            UserError: the folder cannot be written.
        """
        if self.cache.folder is None:
            self.cache._kept[self.key] = value
            return
        text = json.dumps({"belongs": self.belongs, "value": value}, allow_nan=True)
        try:
            write_atomically(self.cache.folder / f"{self.key}.json", text + "\n")
        except OSError as error:
            raise UserError(f"cache={self.cache.folder} cannot be written: {error.strerror}.") from error
