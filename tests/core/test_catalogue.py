"""Components announce themselves; their settings are checked where they are built."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import PLUGIN

from harness import catalogue
from harness.methods.magnitude import Magnitude
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch) -> type:
    """A method that holds another one, registered for one test."""
    monkeypatch.setitem(catalogue._registry, "method", dict(catalogue._registry["method"]))

    @catalogue.component("method", "holder")
    @dataclass(frozen=True)
    class Holder:
        inner: Any = field(default_factory=Wanda, metadata={"component": "method"})
        steps: tuple[int, ...] = (1, 2)
        limit: float | None = None
        anything: Any = None
        flag: bool = False

    return Holder


def test_defaults_build_what_the_class_builds(nested: type) -> None:
    for kind in ("method", "allocator", "planner", "conversion", "recovery"):
        for name in catalogue.names(kind):
            built = catalogue.build(kind, catalogue.defaults(kind, name))
            assert built == catalogue.lookup(kind, name)() and catalogue.name_of(built) == name
    assert catalogue.defaults("method", "holder")["inner"] == {"name": "wanda", "group": "row", "refit": False}


def test_nested_components(nested: type) -> None:
    built = catalogue.build("method", {"name": "holder", "inner": {"name": "sparsegpt", "blocksize": 8}})
    assert built.inner == SparseGPT(blocksize=8)
    assert catalogue.build("method", {"name": "holder", "inner": "sparsegpt"}).inner == SparseGPT()


def test_types_are_settled(nested: type) -> None:
    assert catalogue.build("method", {"name": "holder", "steps": [3], "limit": 2, "anything": {}}) == nested(
        steps=(3,), limit=2.0, anything={}
    )
    assert catalogue.build("method", {"name": "holder", "limit": None}).limit is None


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"name": "wandaa"}, "unknown method 'wandaa'; did you mean wanda"),
        ({"name": "wanda", "gruop": "row"}, "unknown setting of method 'wanda' 'gruop'; did you mean group"),
        ({"name": "wanda", "group": "column"}, "unknown value of method.group: 'column'"),
        ({"name": "sparsegpt", "blocksize": "many"}, "method.blocksize=many has to be of type int"),
        ({"name": "sparsegpt", "blocksize": True}, "method.blocksize=True has to be of type int"),
        ({"name": "sparsegpt", "damping": True}, "method.damping=True has to be of type float"),
        ({"name": "sparsegpt", "damping": "low"}, "method.damping=low has to be of type float"),
        ({"name": "sparsegpt", "blocksize": 1.5}, "method.blocksize=1.5 has to be of type int"),
        ({"name": "holder", "steps": 3}, "method.steps=3 has to be a list"),
        ({"name": "holder", "steps": ["a"]}, "method.steps=a has to be of type int"),
        ({"name": "holder", "limit": "x"}, "method.limit=x has to be of type float"),
        ({"name": "holder", "inner": "wnda"}, "unknown method 'wnda'"),
    ],
)
def test_wrong_settings_are_one_sentence(nested: type, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        catalogue.build("method", settings)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_plugins_by_file_and_by_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.load_plugin(str(PLUGIN))  # a second time changes nothing
    plugged = catalogue.build("method", {"name": "plugged"})
    assert catalogue.revision(plugged).startswith("1+") and len(catalogue.revision(plugged)) == 18
    assert catalogue.revision(Wanda()) == str(Wanda.revision) and catalogue.revision(Magnitude()) == "1"
    (tmp_path / "a_plugin_module.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    catalogue.load_plugin("a_plugin_module")
    assert catalogue.name_of(object()) == "object"


@pytest.mark.parametrize(
    ("where", "content", "says"),
    [
        ("there.py", None, "there is no such file"),
        ("broken.py", "import nothing_of_this_name\n", "cannot be imported: ModuleNotFoundError"),
        ("wrong.py", "def (:\n", "cannot be imported: SyntaxError"),
        ("no.such.module", None, "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_plugins_that_fail(tmp_path: Path, where: str, content: str | None, says: str) -> None:
    path = tmp_path / where
    if content:
        path.write_text(content)
    with pytest.raises(UserError) as caught:
        catalogue.load_plugin(str(path) if where.endswith(".py") else where)
    assert says in str(caught.value)


def test_an_option_that_came_later_is_no_other_computation_while_it_is_off() -> None:
    """Records of before it are still found."""
    off, on = (catalogue.build("method", {"name": "wanda", "refit": refit}) for refit in (False, True))
    assert catalogue.describe(off) == {"name": "wanda", "revision": "2", "group": "row"}
    assert catalogue.describe(on) == catalogue.describe(off) | {"refit": True}
