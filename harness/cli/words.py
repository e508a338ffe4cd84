"""Words to type: commands, kinds of things to list, the options of a run with their defaults."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from harness.core.kinds import KINDS
from harness.core.places import CONF

OF_STUDIES = {
    "plan": "the points of a study: done, to do, skipped and why, with time and memory",
    "status": "how far a study is, from its files",
    "retry": "run the failed and lost points again",
    "tables": "table and figure of a study, or of any runs: tables records=<folder> rows=… columns=…",
    "compare": "every cell beside the reported number, with verdict and reason",
    "publish": "pack records, table and figure of a study into results/published",
    "prefetch": "download models and texts of a study, or of one run, so that runs work offline",
}
OTHERS = {
    "list": "list methods, allocators, models, families, studies, …",
    "describe": "what a component, model, family, study, text or task is, and its settings",
    "allocation": "what a record or a saved allocation asks of every matrix",
    "completion": "a script that completes this command: completion bash, completion zsh",
}
COMMANDS = {**OF_STUDIES, **OTHERS}
FILES = {"model": "model", "study": "study", "calibration": "calibration", "evaluation": "evaluation"}
"""Kinds of things that are files of `conf/`, and their folders."""
IRREGULAR = {"family": "families", "recovery": "recoveries", "study": "studies"}
FLAGS = ("-m", "--help", "--version", "--cfg=job", "--info=defaults", "--hydra-help")
SCALES = ("embedded", "proxy", "real", "paper")


class Option(NamedTuple):
    """An option of a run: its default as the file has it, and what is said of it there."""

    name: str
    default: str
    meaning: str

    @property
    def values(self) -> tuple[str, ...]:
        """The values between which its meaning has a bar: `auto | on | off: …`."""
        listed = re.match(r"[\w<>:-]+(?: \| [\w<>:-]+)+", self.meaning)
        return tuple(text.rstrip(":") for text in listed[0].split(" | ") if "<" not in text) if listed else ()


ALIASES = {"texts": "evaluation", "text": "evaluation", "tasks": "evaluation", "task": "evaluation"}
"""Other words for what `list` shows: texts and tasks are evaluations."""
FAMILY = "family"
"""The kind of the layouts of model families, which are neither components nor files."""


def plural(kind: str) -> str:
    return IRREGULAR.get(kind, f"{kind}s")


def kinds() -> dict[str, str]:
    """The kinds of things there are by their plurals: `methods` → `method`."""
    return {plural(kind): kind for kind in (*KINDS, *FILES, FAMILY)}


@lru_cache(maxsize=1)
def options() -> tuple[Option, ...]:
    """The options of a run, groups first, in the order of `conf/config.yaml`."""
    groups, plain = [], []
    for line in (CONF / "config.yaml").read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"  - ([a-z]+): (.+)", line):
            groups.append(Option(match[1], match[2], ""))
        elif match := re.fullmatch(r"(?!defaults)([a-z_]+): *(.*?)(?: +# (.*))?", line):
            plain.append(Option(match[1], match[2], match[3] or ""))
    return (*groups, *plain)


def files(kind: str) -> list[str]:
    """The names of a kind that is a folder of `conf/`."""
    return sorted(path.stem for path in (CONF / kind).glob("*.yaml"))
