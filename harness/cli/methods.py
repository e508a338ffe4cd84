"""`python -m harness.cli.methods > docs/methods.md`: every component with its settings, from docstrings and fields."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from harness import catalogue
from harness.cli import index, words
from harness.cli.listing import OF_DENSE, type_text
from harness.core.kinds import DENSE
from harness.core.places import PACKAGE

HEAD = """# Methods, allocators and other components

Made from docstrings by `make docs`; do not edit. `python -m harness describe NAME` prints one of these entries, and
`python -m harness list methods` the names. A setting stands below its group on the command line:
`method.blocksize=64`, `allocator.spread=0.1`. Which one-shot method to take when: [one-shot.md](one-shot.md).
"""
OF_EVALUATORS = """Texts and tasks are files of `conf/evaluation`; an evaluator is what they are made with. Settings
stand below the name of the file: `evaluation.boolq.fewshot=5`."""
ARGUMENT = re.compile(r"^(\w+(?:, \w+)*): (.*)")


def page() -> str:
    """The page in Markdown: a chapter for each kind, its components by name."""
    chapters = "\n".join(f"\n## {words.plural(kind).capitalize()}\n\n{_chapter(kind)}" for kind in catalogue.KINDS)
    return f"{HEAD}{chapters}"


def _chapter(kind: str) -> str:
    entries = {entry.name: _entry(entry) for entry in index.of_kind(kind)}
    if kind == DENSE[0]:
        entries[DENSE[1]] = f"### `{kind}=none`\n\n{OF_DENSE}\n"
    before = [f"{OF_EVALUATORS}\n"] if kind == "evaluator" else []
    return "\n".join([*before, *(entries[name] for name in sorted(entries))])


def _entry(entry: index.Entry) -> str:
    importlib.import_module(entry.module)
    cls = catalogue.lookup(entry.kind, entry.name)
    where = entry.path.relative_to(PACKAGE.parent).as_posix()
    title = f"### {f'evaluator `{entry.name}`' if entry.kind == 'evaluator' else f'`{entry.kind}={entry.name}`'}"
    meanings = _meanings(cls) | {setting.name: setting.meaning for setting in entry.settings if setting.meaning}
    text, _ = _split(inspect.getdoc(cls) or "")
    return "\n".join([title, "", text, "", f"[{where}](../{where})", "", *_table(cls, meanings)])


def _table(cls: type, meanings: Mapping[str, str]) -> Iterator[str]:
    if not dataclasses.fields(cls):
        return
    hints = typing.get_type_hints(cls)
    yield from ("| setting | default | takes | meaning |", "|---|---|---|---|")
    for field in dataclasses.fields(cls):
        nested = field.metadata.get("component")
        takes = f"a {nested}" if nested else type_text(hints[field.name])
        cells = [f"`{field.name}`", _default(field), takes, meanings.get(field.name, "")]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
    yield ""


def _default(field: dataclasses.Field[Any]) -> str:
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if value is dataclasses.MISSING:
        return "has to be given"
    if value is None or isinstance(value, bool):
        return {None: "`null`", True: "`true`", False: "`false`"}[value]
    if isinstance(value, tuple | list):
        return f"`[{','.join(map(str, value))}]`"
    return f"`{catalogue.name_of(value) if dataclasses.is_dataclass(value) else value}`"


def _meanings(cls: type) -> dict[str, str]:
    """The meanings of settings by the `Args:` of a class and its bases, the class's own last."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__[:-1]):
        names: list[str] = []
        for line in _split(inspect.cleandoc(base.__doc__ or ""))[1].splitlines():
            if match := ARGUMENT.match(line):
                names = match[1].split(", ")
                found |= dict.fromkeys(names, match[2])
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text[:1].upper() + text[1:] for name, text in found.items()}


def _split(doc: str) -> tuple[str, str]:
    """A docstring without its `Args:`, and these without their margin."""
    text, _, rest = doc.partition("\nArgs:\n")
    return text.strip(), textwrap.dedent(rest)


if __name__ == "__main__":
    print(page(), end="")
