"""`python -m harness.cli.files > docs/files.md`: every file of the package with the first sentence of its docstring."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from harness.cli.index import first_sentence
from harness.core.places import PACKAGE

HEAD = """# The files

Made from docstrings by `make docs`; do not edit. Which folder is for what: [architecture.md](architecture.md).
"""


def page() -> str:
    """The page in Markdown: a chapter for each package, a line for each of its files."""
    folders = [PACKAGE, *sorted({path.parent for path in PACKAGE.rglob("*.py")} - {PACKAGE})]
    return "\n".join([HEAD, *(line for folder in folders for line in _chapter(folder))])


def _chapter(folder: Path) -> Iterator[str]:
    name = folder.relative_to(PACKAGE.parent).as_posix()
    paths = sorted(folder.glob("*.py"))
    about = next((_title(path) for path in paths if path.name == "__init__.py"), "")
    yield from (f"## `{name}/`", "", *([about, ""] if about else []))
    for path in paths:
        if path.name != "__init__.py":
            yield f"* [`{path.name}`](../{name}/{path.name}): {_title(path)}"
    yield ""


def _title(path: Path) -> str:
    return first_sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


if __name__ == "__main__":
    print(page(), end="")
