"""What tests of checkpoints share: a tiny one on disk, edited; and the one sentence that refuses it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.models.checkpoint import ModelChoice, find_checkpoint
from harness.models.loading import load_model
from harness.models.placement import Where
from harness.runtime.errors import UserError


def choice(path: Path | str, **changes: Any) -> ModelChoice:
    settings: dict[str, Any] = {"name": "hf", "path": str(path), "revision": None}
    return ModelChoice(**(settings | changes))


def load(path: Path, dtype: torch.dtype = torch.float32) -> Any:
    return load_model(find_checkpoint(choice(path)), choice(path), dtype, Where(torch.device("cpu")))


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def sentence(call: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", ")"))
    return str(caught.value)
