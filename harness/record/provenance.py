"""Where a number came from: commit, versions, hardware. What cannot be told is left out; it costs no number."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch

from harness.core.places import IS_INSTALLED, ROOT

PACKAGES = ("torch", "transformers", "hydra-core", "lm-eval", "datasets", "safetensors", "tokenizers")
OTHER = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_NAMESPACE")
"""Variables that turn git to a repository other than this folder's, as inside a hook."""
WAIT = 10.0
"""Seconds that git has for an answer."""


@lru_cache(maxsize=1)
def commit() -> dict[str, Any]:
    """The commit of the code, and whether files outside `results/` differ from it; `None` where nobody can tell.

    It is asked for once in a process, so it has to be asked before the work of which a slow git would take the end.
    """
    exported = os.environ.get("HARNESS_COMMIT")  # a copied tree has no history, or another one: its maker says which
    commit = None if exported or IS_INSTALLED else _git("rev-parse", "HEAD")
    if not commit:
        return {"commit": exported, "dirty": None}
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(*arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if name not in OTHER}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, capture_output=True,
            text=True, encoding="utf-8", errors="replace", timeout=WAIT, check=False,
        )  # fmt: skip
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except Exception:  # not installed, or what pip wrote of it cannot be read
            continue
    return found


def _hardware(device: torch.device) -> dict[str, Any]:
    facts: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads(), "machine": platform.machine()}
    if device.type == "cuda":
        facts |= {"gpu": _gpu(device), "cuda": torch.version.cuda}
    return facts


def _gpu(device: torch.device) -> str | None:
    try:
        return torch.cuda.get_device_name(device)
    except Exception:  # a device that failed says no name, and the record of that failure is wanted
        return None


def provenance(device: torch.device, hashes: dict[str, Any]) -> dict[str, Any]:
    """Commit (and whether files outside `results/` differ from it), versions, hardware, data and weight hashes."""
    return {**commit(), "versions": _versions(), "hardware": _hardware(device), **hashes}
