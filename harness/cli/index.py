"""The components of the harness as its source announces them, read without importing any of it.

`@component(kind, name)` above a dataclass is all that is looked for; a text below a field says what the field means.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from harness.core.kinds import KINDS
from harness.core.places import PACKAGE

GIVEN = re.compile(r"Give a method the setting `(\w+)`: (.*)", re.DOTALL)


@dataclass(frozen=True)
class Setting:
    """A field of a component: its name, its type and default as the source has them, and what it means."""

    name: str
    annotation: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Entry:
    """A component: where it is announced, the first sentence of its docstring, its settings."""

    kind: str
    name: str
    path: Path
    line: int
    cls: str
    title: str
    settings: tuple[Setting, ...]

    @property
    def module(self) -> str:
        return ".".join(self.path.relative_to(PACKAGE.parent).with_suffix("").parts)


@lru_cache(maxsize=1)
def entries() -> tuple[Entry, ...]:
    """Every component of the harness, by kind and name."""
    found = [entry for package in KINDS.values() for path in _files(package) for entry in _announced(path)]
    return tuple(sorted(found, key=lambda entry: (list(KINDS).index(entry.kind), entry.name)))


def of_kind(kind: str) -> list[Entry]:
    """The components of one kind."""
    return [entry for entry in entries() if entry.kind == kind]


def _files(package: str) -> Iterator[Path]:
    yield from sorted((PACKAGE.parent / package.replace(".", "/")).rglob("*.py"))


def _announced(path: Path) -> Iterator[Entry]:
    if "@component(" not in (source := path.read_text(encoding="utf-8")):
        return
    tree = ast.parse(source)
    for node in tree.body:
        for call in node.decorator_list if isinstance(node, ast.ClassDef) else ():
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "component":
                assert isinstance(node, ast.ClassDef)
                kind, name = (ast.literal_eval(argument) for argument in call.args)
                title = first_sentence(ast.get_docstring(node) or "")
                settings = tuple(_settings(node, tree).values())
                yield Entry(kind, name, path, node.lineno, node.name, title, settings)


def _settings(node: ast.ClassDef, tree: ast.Module) -> dict[str, Setting]:
    """The fields of a class in a dataclass's order: those of its bases first, in their places if they are repeated.

    A decorator's own stand last, named by its docstring: "Give a method the setting `refit`: …".
    """
    found: dict[str, Setting] = {}
    for base in reversed(node.bases):
        cls, module = _defined(base.id, tree) if isinstance(base, ast.Name) else (None, tree)
        if isinstance(cls, ast.ClassDef):
            found |= _settings(cls, module)
    for field, following in zip(node.body, [*node.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
            name, before = field.target.id, found.get(field.target.id)
            default = ast.unparse(field.value) if field.value else ""
            meaning = _text(following) or (before.meaning if before else "")
            found[name] = Setting(name, _annotation(field.annotation, tree), default, meaning)
    for decorator in node.decorator_list:
        made = _defined(decorator.id, tree)[0] if isinstance(decorator, ast.Name) else None
        if isinstance(made, ast.FunctionDef) and (match := GIVEN.match(ast.get_docstring(made) or "")):
            found[match[1]] = Setting(match[1], "bool", "False", first_sentence(match[2]).capitalize())
    return found


def _annotation(node: ast.expr, tree: ast.Module) -> str:
    """An annotation as text; a name that stands for a `Literal` as what it stands for."""
    meant = _defined(node.id, tree)[0] if isinstance(node, ast.Name) else None
    return ast.unparse(meant.value if isinstance(meant, ast.Assign) else node)


Defined = tuple[ast.ClassDef | ast.FunctionDef | ast.Assign | None, ast.Module]


def _defined(name: str, tree: ast.Module) -> Defined:
    """The definition of a name in a module, its own or one that it imports from the harness; and that module."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return node, tree
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [name]:
            return node, tree
        if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
            path = (PACKAGE.parent / (node.module or "").replace(".", "/")).with_suffix(".py")
            return _defined(name, _tree(path)) if path.is_file() else (None, tree)
    return None, tree


@lru_cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _text(node: ast.stmt | None) -> str:
    """The text that stands alone below a field."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, in one line; an abbreviation (`al.`, `eq.`) ends none."""
    line = " ".join(text.split("\n\n")[0].split())
    for at, character in enumerate(line):
        if character == "." and line[at + 1 : at + 2] in ("", " ") and not _abbreviates(line[:at]):
            return line[: at + 1]
    return line


def _abbreviates(before: str) -> bool:
    return before.rpartition(" ")[2].lstrip("(").lower() in ("al", "eq", "eqs", "fig", "sec", "e.g", "i.e", "vs", "cf")
