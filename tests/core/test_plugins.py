"""Plugins are looked at when they are loaded; a name belongs to one component."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness import catalogue
from harness.methods.magnitude import Magnitude
from harness.runtime.errors import UserError

HEAD = """
from dataclasses import dataclass, field
from harness.catalogue import component
from harness.core.interfaces import Pruned
from harness.core.pattern import keep
"""
METHOD = """
@component("method", {name})
@dataclass(frozen=True)
class Mine:
    {fields}
    statistic = None
    def prune(self, weight, seen, pattern):
        kept = keep(-weight.abs(), pattern, "row")
        return Pruned(weight * kept, kept)
"""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    catalogue.discover()
    monkeypatch.setattr(catalogue, "_registry", {kind: dict(known) for kind, known in catalogue._registry.items()})
    monkeypatch.setattr(catalogue, "_replaced", {kind: dict(known) for kind, known in catalogue._replaced.items()})


def plugin(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text(HEAD + text)
    return str(folder / name)


def method(name: str = '"mine"', fields: str = "power: float = 1.0") -> str:
    return METHOD.format(name=name, fields=fields)


def refused(where: str) -> str:
    with pytest.raises(UserError) as caught:
        catalogue.load_plugin(where)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("method", "magnitude"),
        ("allocator", "owl"),
        ("planner", "none"),
        ("recovery", "none"),
        ("evaluator", "perplexity"),
    ],
)
def test_a_built_in_name_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    before = catalogue.lookup(kind, name)
    text = method(f'"{name}"').replace('component("method"', f'component("{kind}"')
    assert refused(plugin(tmp_path, text)) == (
        f"mine.py announces the {kind} '{name}', which the harness has; "
        "call it otherwise, or register it with replaces=True."
    )
    assert catalogue.lookup(kind, name) is before


def test_none_is_a_method_too(tmp_path: Path) -> None:
    assert "announces the method 'none', which the harness has" in refused(plugin(tmp_path, method('"none"')))


def test_what_replaces_is_seen_by_name(tmp_path: Path) -> None:
    where = plugin(tmp_path, method('"magnitude", replaces=True'))
    catalogue.load_plugin(where)
    catalogue.load_plugin(where)  # a second point of the sweep
    settings = catalogue.defaults("method", "magnitude")
    assert settings == {"name": "magnitude+mine", "power": 1.0}
    built = catalogue.build("method", settings)
    assert catalogue.name_of(built) == "magnitude+mine" and not isinstance(built, Magnitude)
    assert catalogue.describe(built)["name"] == "magnitude+mine" and "+" in catalogue.describe(built)["revision"]
    assert catalogue.name_of(Magnitude()) == "magnitude", "the harness's own, held by another component"


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    catalogue.load_plugin(plugin(tmp_path, method(), "first.py"))
    for text in (method(), method('"mine", replaces=True')):
        said = refused(plugin(tmp_path, text, f"second{len(text)}.py"))
        assert "announces the method 'mine', which first.py has; call it otherwise." in said


def test_a_plugin_that_was_refused_can_be_mended(tmp_path: Path) -> None:
    where = plugin(tmp_path, method() + "\nnothing_of_this_name\n")
    assert "NameError" in refused(where)
    with pytest.raises(UserError, match="unknown method"):
        catalogue.lookup("method", "mine")
    catalogue.load_plugin(plugin(tmp_path, method()))
    assert catalogue.build("method", {"name": "mine"}).power == 1.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (method().replace("(frozen=True)", ""), "mine.py: Mine can be changed; write @dataclass(frozen=True)."),
        (method().replace("@dataclass(frozen=True)", ""), "mine.py: Mine is no dataclass; write @component above"),
        (method(fields="power: dict = field(default_factory=dict)"), "setting power of type dict; settings are bool,"),
        (method(fields="power: object = 1"), "setting power of type object"),
        (method(fields="power: tuple[int, str] = (1, 'a')"), "setting power of type tuple"),
        (method(fields="power: list = field(default_factory=list)"), "setting power of type list"),
        (method(fields="name: str = 'a'"), "has a setting called name, which stands for the component's own; call it"),
        (
            method() + method().replace("Mine", "Other"),
            "mine.py announces the method 'mine' twice; call one of them otherwise.",
        ),
        (method(fields="power: 'Unknown' = 1"), "setting whose type cannot be found out"),
        (method().replace("def prune", "def shrink"), "the method 'mine' (Mine) lacks prune"),
        (method().replace("statistic = None", ""), "the method 'mine' (Mine) lacks statistic."),
        (method().replace('"method"', '"metod"'), "components are of the kinds method, allocator"),
        (method('"a b"'), "'a b' is no name for a method"),
        (method('"\\x1b[31m"'), "is no name for a method"),
        (method("3"), "'3' is no name for a method"),
        (method().replace('"method"', '"recovery"'), "the recovery 'mine' (Mine) lacks heal."),
        (method().replace('"method"', '"planner"'), "the planner 'mine' (Mine) lacks plan."),
        (method().replace('"method"', '"allocator"'), "the allocator 'mine' (Mine) lacks allocate."),
        (method().replace('"method"', '"evaluator"'), "the evaluator 'mine' (Mine) lacks __call__ and protocol."),
    ],
)
def test_a_component_that_cannot_be_used_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    assert says in refused(plugin(tmp_path, text))


@pytest.mark.parametrize(
    "hint", ["float | None", "tuple[int, ...]", "list[str]", "bool", "int | str", "list[float | None]"]
)
def test_settings_that_can_be_given(hint: str, tmp_path: Path) -> None:
    catalogue.load_plugin(plugin(tmp_path, method(fields=f"power: {hint} = None")))


@pytest.mark.parametrize("how", ["raise ValueError('power of two')", "raise SystemExit(3)", "import not_there"])
def test_settings_that_a_plugin_refuses_in_its_own_way(how: str, tmp_path: Path) -> None:
    catalogue.load_plugin(plugin(tmp_path, method(fields=f"power: float = 1.0\n    def __post_init__(self): {how}")))
    with pytest.raises(UserError, match=r"^method=mine refuses its settings \((ValueError|SystemEx|ModuleNot).*\)\.$"):
        catalogue.build("method", {"name": "mine"})


@pytest.mark.parametrize("where", ["/tmp", "mine", "./mine", "folder\\mine"])
def test_what_is_neither_a_file_nor_a_module(where: str) -> None:
    said = refused(where)
    assert "No module named" in said if where == "mine" else "names neither a .py file nor a module" in said
