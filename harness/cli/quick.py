"""The questions that are answered without torch; a run, a sweep, a study are not among them."""

from __future__ import annotations


def dispatch(arguments: list[str]) -> int | None:
    """Answer a question; returns the exit status, or None where the arguments ask for something else."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if {"--help", "-h"} & set(arguments):
        from harness.cli.help import show_help

        return show_help()
    match command:
        case "--version":
            from harness.cli.help import show_version

            return show_version()
        case "list":
            from harness.cli.listing import show_list

            return show_list(rest)
        case "describe":
            from harness.cli.listing import describe

            return describe(rest)
        case "completion":
            from harness.cli.completion import script

            return script(rest)
        case "complete":
            from harness.cli.completion import complete

            return complete(rest)
        case "tables" if not any(text.startswith("study=") for text in rest):
            from harness.cli.tables import tables

            return tables(rest)
    return None
