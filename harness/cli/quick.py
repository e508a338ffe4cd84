"""The questions that are answered without torch; a run, a sweep, a study are not among them."""

from __future__ import annotations


def dispatch(arguments: list[str]) -> int | None:
    """Answer a question; returns the exit status, or None where the arguments ask for something else."""
    if arguments[:1] == ["tables"] and not any(text.startswith("study=") for text in arguments):
        from harness.cli.tables import tables

        return tables(arguments[1:])
    return None
