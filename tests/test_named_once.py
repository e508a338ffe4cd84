"""No component and no family is named outside its own file, and no hook is asked for that no protocol names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness import catalogue
from harness.core.component import HOOKS, completed, hooks
from harness.core.costs import Cost
from harness.models.anatomy import FAMILIES
from harness.record.dense import NONE
from harness.record.provenance import ROOT

HARNESS = ROOT / "harness"
WORDS = {"bloom", "falcon", "file", "magnitude", "opt", "owl", "perplexity", "phi", "swaps", "uniform", "zeroshot"}
"""Names that are words too: in a sentence they need not mean a component, but `allocator=owl` does."""
ALLOWED = {
    ("allocators/candidates.py", "sparsegpt"): "the default of a setting: allocators know methods by name only",
    ("allocators/candidates.py", "uniform"): "a field of published records: the even candidate's held-out loss",
    (
        "methods/sparsellm/method.py",
        "sparsegpt",
    ): "the released variant is the authors' code, which has that one inside",
    ("api.py", "wanda"): "a default of `prune`, which its signature shows",
    ("api.py", "uniform"): "a default of `prune`, which its signature shows",
    ("api.py", "perplexity"): "what a caller's own text is measured by",
    ("cli/help.py", "wanda"): "an example that a user types",
    ("cli/help.py", "sparsegpt"): "an example that a user types",
    ("cli/listing.py", "perplexity"): "what a file of conf/evaluation without a comment measures",
    ("cli/listing.py", "zeroshot"): "what a file of conf/evaluation without a comment measures",
    ("report/layout.py", "perplexity"): "the metric of records",
    ("report/numbers.py", "perplexity"): "the metric of records",
    ("report/sweep.py", "perplexity"): "the metric of records",
    ("report/ratios.py", "perplexity"): "the metric of records",
    ("embedded/train.py", "llama"): "the two models that the project trains",
    ("embedded/train.py", "opt"): "the two models that the project trains",
    ("embedded/__main__.py", "llama"): "the two models that the project trains",
    ("embedded/__main__.py", "opt"): "the two models that the project trains",
}
FAMILY_FILES = {"models/anatomy.py"}
"""Where a family lives."""


@pytest.fixture(scope="module", autouse=True)
def _discovered() -> None:
    catalogue.discover()


def literals(path: Path) -> Iterator[str]:
    """The text literals of a file, without its docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone:
            yield node.value


def homes() -> dict[str, set[str]]:
    """Name → the files that may name it, below `harness`."""
    found: dict[str, set[str]] = {family: set(FAMILY_FILES) for family in FAMILIES}
    for kind in catalogue.KINDS:
        for name in catalogue.names(kind):
            module = catalogue.lookup(kind, name).__module__
            if name != NONE and module.startswith("harness."):
                found.setdefault(name, set()).add(module.removeprefix("harness.").replace(".", "/") + ".py")
    return found


def mentions(text: str, name: str) -> bool:
    """Return whether a literal is the name, or a sentence that has it."""
    before = "=" if name in WORDS else r"(?<![\w.-])"
    return text == name or re.search(rf"{before}{re.escape(name)}(?![\w-])", text) is not None


def test_no_name_stands_outside_its_own_file() -> None:
    known, found = homes(), set()
    assert {"wanda", "msp", "block_influence", "zeroshot", "llama"} <= set(known)
    for path in sorted(HARNESS.rglob("*.py")):
        where = str(path.relative_to(HARNESS))
        texts = set(literals(path))
        found |= {
            (where, name) for name in known for text in texts if where not in known[name] and mentions(text, name)
        }
    assert found == set(ALLOWED)


def test_no_hook_is_asked_for_by_name() -> None:
    """A hook is an attribute, which `@component` gives to those that leave it out."""
    names = {name for kind in HOOKS for name in hooks(kind)} | {"score", "behind", "dense", "inner", "heal"}
    asked = re.compile(r"\b(?:get|has)attr\([^()]*(?:\([^()]*\)[^()]*)*,\s*[\"'](\w+)[\"']")
    for path in HARNESS.rglob("*.py"):
        assert not names & set(asked.findall(path.read_text(encoding="utf-8"))), path


def test_every_component_has_all_hooks_of_its_kind() -> None:
    for kind in catalogue.KINDS:
        for name in catalogue.names(kind):
            cls = catalogue.lookup(kind, name)
            settings = set(cls.__dataclass_fields__)  # type: ignore[attr-defined]
            assert [hook for hook in hooks(kind) if not hasattr(cls, hook) and hook not in settings] == [], name


def test_a_class_from_elsewhere_is_completed() -> None:
    """It keeps what it says, settings among them, and gets the rest."""

    @dataclass(frozen=True)
    class Mine:
        levels: tuple[int, ...]
        needs_calibration = False

    mine = completed("allocator", Mine)((1, 2))
    assert (mine.levels, mine.needs_calibration, mine.uses_cache, mine.revision) == ((1, 2), False, False, 1)  # type: ignore[attr-defined]
    assert mine.identity() == {} and mine.check() is None and mine.cost(None, None) == Cost()  # type: ignore[attr-defined]
