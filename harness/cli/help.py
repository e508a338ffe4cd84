"""`--help` and `--version`."""

from __future__ import annotations

from harness.cli import words
from harness.core.places import IS_INSTALLED
from harness.core.version import __version__

TEXT = """\
Prunes language models and scores them: model × method × sparsity × allocator, one record a run.

  {run} method=sparsegpt sparsity=2of4           one run
  {run} -m method=wanda,sparsegpt seed=0,1,2     a sweep
  {run} study=wanda_table3 scale=embedded        a published table: what it lacks is run
  {run} tables records=results/records           the table of what was run

commands:
{commands}

options of a run, with their defaults; {run} list methods, allocators, models, … shows the choices:
{options}

A component's settings stand below its group (method.blocksize=64); describe shows them. --cfg=job prints the
configuration of a run, --hydra-help the flags of Hydra. README.md and docs/ say more."""


def show_help() -> int:
    """Print what the command is, its commands, the options of a run, and where to look."""
    width = 24  # longer defaults push their meaning to the right
    commands = [f"  {name:11} {meaning}" for name, meaning in words.COMMANDS.items()]
    options = [
        f"  {f'{option.name}={option.default}':{width}}  {option.meaning}".rstrip() for option in words.options()
    ]
    run = "harness" if IS_INSTALLED else "python -m harness"
    print(TEXT.format(run=run, commands="\n".join(commands), options="\n".join(options)))
    return 0


def show_version() -> int:
    """Print the version of the harness."""
    print(f"pruning-harness {__version__}")
    return 0
