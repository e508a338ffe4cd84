"""Where a number came from: commit, versions, hardware."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("torch", "transformers", "hydra-core", "lm-eval", "datasets", "safetensors", "tokenizers")


@lru_cache(maxsize=1)
def commit() -> dict[str, Any]:
    """The commit of the code, and whether files outside `results/` differ from it; `None` where nobody can tell."""
    exported = os.environ.get("HARNESS_COMMIT")  # a copied tree has no history, or another one: its maker says which
    commit = None if exported else _git("rev-parse", "HEAD")
    if not commit:
        return {"commit": exported, "dirty": None}
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {"commit": commit, "dirty": bool(changed)}


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=30, check=False, encoding="utf-8"
        )
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _hardware(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "machine": platform.machine()}
    if device.type == "cuda":
        facts |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return facts


def provenance(device: torch.device, hashes: dict[str, Any]) -> dict[str, Any]:
    """Commit (and whether files outside `results/` differ from it), versions, hardware, data and weight hashes."""
    return {**commit(), "versions": _versions(), "hardware": _hardware(device), **hashes}
