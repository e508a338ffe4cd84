"""Where training stands, kept in the cache so that the same run, killed and started again, goes on there to the bit.

One safetensors file beside the finished blocks of the run (`calibration/cache/resume.py`), named by the sha256 of its
content; a newer one takes the place of the last.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from harness.calibration.cache.resume import SHARE, CheckpointPolicy
from harness.calibration.cache.values import write_within
from harness.runtime.files import LOCK, taken
from harness.runtime.warn import warn


@dataclass
class State:
    """The learning rate that trains (by its index), its finished steps, and everything that the next one depends on.

    `tensors` are the trained parts (`part/…`), AdamW's moments (`first/…`, `second/…`, `count/…`) and the best parts of
    earlier learning rates (`best/…`). `loss` is the sum of the training losses since the last check, of `since` steps.
    """

    rate: int = 0
    step: int = 0
    selection: Any = None
    scale: float = 1.0
    loss: float = 0.0
    since: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    finished: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def named(self, kind: str) -> dict[str, Tensor]:
        """The tensors of a kind by the names of the parts."""
        return {name.partition("/")[2]: one for name, one in self.tensors.items() if name.startswith(f"{kind}/")}


class Checkpoints:
    """The checkpoints of one training.

    Args:
        cache_key: what training depends on beside what `keeping` says; a file of anything else is not taken up.
    """

    def __init__(self, keeping: CheckpointPolicy, cache_key: Sequence[Any]) -> None:
        parts = [keeping.cache_key, *cache_key]
        self._belongs = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
        self._checkpoint_policy = keeping
        self._folder = keeping.folder if keeping.every is not None else None
        self._lock: IO[bytes] | None = None
        self._writing = self._working = 0.0
        self._since = time.perf_counter()

    def load(self) -> State | None:
        """Where an earlier attempt was; None where there is none, or what it left is damaged or of another run."""
        if self._folder is None:
            return None
        for path in self._folder.glob("training_*.safetensors"):
            state = self._read(path)
            if state is not None:
                self._lock = taken(self._folder / LOCK)
                self._since = time.perf_counter()
                return state
            warn(f"{path} is damaged or of another run; training begins anew")
            with suppress(OSError):
                path.unlink()
        return None

    def due(self) -> bool:
        """Return whether enough work has been done since the last one, and writing takes little of the time."""
        if self._folder is None:
            return False
        work = time.perf_counter() - self._since
        every = self._checkpoint_policy.every or 0.0
        return not every or (work >= every and self._writing <= SHARE * (self._working + work))

    def write(self, state: State) -> None:
        """Keep a state in the place of the last; where that fails, training goes on and no further one is kept."""
        if self._folder is None:
            return
        begun = time.perf_counter()
        content = self._packed(state)
        name = f"training_{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            write_within(self._folder / name, content, self._checkpoint_policy.gib)
            for path in self._folder.glob("training_*.safetensors"):
                if path.name != name:
                    path.unlink()
        except OSError as error:
            warn(f"training is not kept for a restart: {self._folder.parent}: {error.strerror}")
            self._folder = None
            return
        self._lock = self._lock or taken(self._folder / LOCK)
        now = time.perf_counter()
        self._writing, self._working = self._writing + now - begun, self._working + begun - self._since
        self._since = now

    def _packed(self, state: State) -> bytes:
        facts = {key: value for key, value in vars(state).items() if key != "tensors"}
        about = {"belongs": self._belongs, "facts": json.dumps(facts)}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
        return safetensors.torch.save(tensors, about)

    def _read(self, path: Path) -> State | None:
        try:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != path.stem.partition("_")[2]:
                    return None
            with safe_open(path, "pt") as file:
                about: Mapping[str, str] = file.metadata()
                if about.get("belongs") != self._belongs:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return State(**json.loads(about["facts"]), tensors=tensors)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError):
            return None
