"""Prune language models and score them: `from harness import prune, evaluate`, or `python -m harness`.

Nothing heavy is imported before it is used: `docs/python.md` shows these names at work.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from harness.core.version import __version__ as __version__

if TYPE_CHECKING:
    from harness.api import Result as Result
    from harness.api import evaluate as evaluate
    from harness.api import prune as prune
    from harness.runtime.errors import Failure as Failure
    from harness.runtime.errors import Refusal as Refusal
    from harness.runtime.errors import UserError as UserError

_HOMES = {
    **dict.fromkeys(("Result", "evaluate", "prune"), "harness.api"),
    **dict.fromkeys(("Failure", "Refusal", "UserError"), "harness.runtime.errors"),
}
__all__ = ["Failure", "Refusal", "Result", "UserError", "evaluate", "prune"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'harness' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
