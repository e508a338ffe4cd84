"""`python -m harness`: Hydra in, run out. Exit status 0 ok or skipped, 2 a user's mistake, 1 anything else."""

from __future__ import annotations

import gc
import os
import re
import sys
from collections.abc import Sequence

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


OTHER_CONFIGURATION = re.compile(r"(--config-\w*|-c[npd]|--e[a-z-]*)(=.*)?", re.DOTALL)
"""Hydra's flags, abbreviated too, that read a configuration from elsewhere, which nothing here would check."""


def main(arguments: Sequence[str]) -> int:
    """Dispatch a command line; every user's mistake ends here as one sentence."""
    for name, value in {**QUIET, **SHARED_MACHINE}.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from harness.core import streams

    with streams.plain():
        return _dispatched(arguments)


def _dispatched(arguments: Sequence[str]) -> int:
    from harness.core.errors import UserError

    gc.disable()  # imports leave no garbage, and looking for it takes an eighth of their time
    try:
        from harness import command
    finally:
        gc.enable()

    try:
        if other := next(filter(OTHER_CONFIGURATION.fullmatch, arguments), None):
            raise UserError(
                f"{other}: the configuration is the harness's own, in conf/; change it by overrides such as seed=1, "
                "and look at it by --cfg=job."
            )
        return command.dispatch(list(arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    gc.freeze()  # what is left goes with the process; looking through it for garbage first took a second
    sys.exit(status)
