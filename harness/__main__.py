"""`python -m harness`: arguments in, run out. Exit status 0 ok or skipped, 2 a user's mistake, 1 anything else.

What becomes of the standard streams changes none of these (`runtime/streams.py`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import NoReturn

QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_SILENT": "true",
    "RAY_DEDUP_LOGS": "0",
}

SHARED_MACHINE = {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "20000"}
"""Waiting threads spin briefly, then sleep. Endless spinning was measured five times slower beside another busy
process, no spinning a third slower on an idle machine."""

FILES_ONLY = {"MPLBACKEND": "Agg"}
"""Figures are files, whatever a notebook around says of its display."""


def main(arguments: Sequence[str]) -> int:
    """Dispatch a command line; every user's mistake ends here as one sentence."""
    for name, value in {**QUIET, **SHARED_MACHINE}.items():
        os.environ.setdefault(name, value)
    os.environ.update(FILES_ONLY)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from harness.runtime import streams
    from harness.runtime.environment import blamed
    from harness.runtime.errors import UserError

    with streams.plain():
        try:
            return _read(arguments)()
        except UserError as error:
            return _mistake(str(error))
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 1
        except Exception as error:
            if sentence := blamed(error):
                return _mistake(sentence)
            raise


def _read(arguments: Sequence[str]) -> Callable[[], int]:
    """The checked action of a command line; doing it gives the exit status."""
    gc.disable()  # imports leave no garbage, and looking for it takes an eighth of their time
    try:
        from harness.cli import quick

        if (status := quick.dispatch(list(arguments))) is not None:
            return partial(int, status)
        from harness import command
    finally:
        gc.enable()
    return command.asked_for(list(arguments))


def _mistake(sentence: str) -> int:
    line = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in sentence)
    print(f"error: {line}", file=sys.stderr)
    return 2


def console() -> NoReturn:
    """The whole process: `python -m harness`, or the command `harness` of an installed package."""
    from harness.runtime import streams

    streams.secure()
    status = main(sys.argv[1:])
    gc.freeze()  # what is left goes with the process; looking through it for garbage first took a second
    sys.exit(status)


if __name__ == "__main__":
    console()
