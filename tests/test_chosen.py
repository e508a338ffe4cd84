"""A component within another, chosen by name: it has its own defaults, and its own settings, wherever it is typed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import catalogue, chosen, compose, groups
from harness.methods.ria import RIA
from harness.methods.sparsegpt import SparseGPT
from harness.runtime.errors import UserError
from harness.study import grid
from harness.study.choices import Choices


@pytest.fixture(autouse=True)
def _registered() -> None:
    groups.register()


NESTED = [
    (kind, name, setting, inner)
    for kind, name, setting, inner in [
        ("method", "dsnot", "inner", "ria"),
        ("method", "dsnot", "inner", "magnitude"),
        ("method", "swaps", "inner", "sparsegpt"),
        ("method", "sparsellm", "inner", "magnitude"),
        ("method", "sparsellm", "inner", "dsnot"),
        ("method", "asymmetric", "inner", "sparsegpt"),
        ("allocator", "msp", "pruner", "wanda"),
        ("allocator", "evopress", "pruner", "ria"),
    ]
]


@pytest.mark.parametrize(("kind", "name", "setting", "inner"), NESTED)
@pytest.mark.parametrize("form", ["{}={}", "++{}={}", "+{}={}", "{}.name={}", "{}={{name:{}}}", "{}='{}'"])
def test_it_has_its_own_defaults_however_it_is_named(kind: str, name: str, setting: str, inner: str, form: str) -> None:
    overrides = [f"{kind}={name}", form.format(f"{kind}.{setting}", inner)]
    part = compose.compose_plain(overrides)[kind]
    assert part[setting] == catalogue.defaults("method", inner)
    assert part | {setting: None} == catalogue.defaults(kind, name) | {setting: None}
    assert list(part) == list(catalogue.defaults(kind, name))


@pytest.mark.parametrize(
    "overrides",
    [
        "method=dsnot method.inner=ria method.inner.reallocation=true method.inner.a=0.4",
        "method.inner.a=0.4 method.inner.reallocation=true method.inner=ria method=dsnot",  # in any order
        "method=dsnot method.inner.name=ria +method.inner.reallocation=true ++method.inner.a=0.4",
        "method=dsnot method.inner={name:ria,reallocation:true,a:0.4}",
        "method=dsnot method.inner={name:ria,a:0.1} method.inner.a=0.4 method.inner.reallocation=true",
        "method=dsnot method.inner=wanda method.inner=ria method.inner.a=0.4 method.inner.reallocation=true",
        "++method.name=dsnot method.inner=ria method.inner.a=0.4 method.inner.reallocation=true",
    ],
)
def test_its_settings_are_those_of_the_one_chosen(overrides: str) -> None:
    assert compose.compose_run(overrides.split()).method.inner == RIA(a=0.4, reallocation=True)


def test_one_within_one_within_one() -> None:
    chain = ["method=sparsellm", "method.inner=dsnot", "method.inner.inner=ria", "method.inner.inner.a=0.4"]
    assert compose.compose_run(chain).method.inner.inner == RIA(a=0.4)
    msp = ["allocator=msp", "allocator.pruner=asymmetric", "allocator.pruner.inner=sparsegpt"]
    pruner = compose.compose_run([*msp, "allocator.pruner.inner.damping=0.05"]).allocator.pruner
    assert pruner.inner == SparseGPT(damping=0.05)


def test_none_at_all() -> None:
    assert compose.compose_run(["allocator=msp", "allocator.pruner=null"]).allocator.pruner is None
    assert compose.compose_run(["allocator=msp", "allocator.pruner.damping=0.05"]).allocator.pruner.damping == 0.05


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("method=dsnot method.inner=ria method.inner.realocation=1", "method.inner: 'realocation'; did you mean reall"),
        ("method=dsnot method.inner=ria method.inner.refit=true", "unknown setting of method.inner: 'refit'"),
        ("method=dsnot method.inner=ria ++method.inner.refit=true", "unknown setting of method.inner: 'refit'"),
        ("method=dsnot method.inner={name:ria,refit:true}", "unknown setting of method.inner: 'refit'"),
        ("method=dsnot method.inner.a=0.4", "unknown setting of method.inner: 'a'; known: group, refit"),
        ("method=sparsellm method.inner=dsnot method.inner.inner.b=1", "unknown setting of method.inner.inner: 'b'"),
        ("method=dsnot method.inner=rya", "unknown method 'rya'; did you mean ria?"),
        ("method=dsnot method.inner.name=rya", "unknown method 'rya'; did you mean ria?"),
        ("method=dsnot method.inner=none", "unknown method 'none'"),
        ("method=dsnot method.inner=[ria]", "method.inner=[ria]: method.inner is one method, given by its name: admm,"),
        ("method=dsnot method.inner=3", "method.inner is one method, given by its name"),
        ("method=wanda method.inner=ria", "unknown setting of method: 'inner'; known: group, refit"),
        ("allocator.pruner=wanda", "unknown setting of allocator: 'pruner'"),
        ("allocator=msp allocator.pruner=wanda allocator.pruner.damping=1", "setting of allocator.pruner: 'damping'"),
    ],
)
def test_a_mistake_is_one_sentence(overrides: str, says: str) -> None:
    with pytest.raises(UserError) as caught:
        compose.compose_run(overrides.split())
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_what_hydra_shows_is_what_runs(typed: Callable) -> None:
    shown = typed("--cfg=job", "--package=method", "method=dsnot", "method.inner.name=ria", "method.inner.a=0.4")
    assert shown.status == 0, shown.err
    assert yaml.safe_load(shown.out)["inner"] == catalogue.defaults("method", "ria") | {"a": 0.4}


def test_of_a_component_named_in_two_ways_the_last_counts_and_is_said(typed: Callable) -> None:
    shown = typed("--cfg=job", "--package=method", "method=dsnot", "method.inner=wanda", "method.inner.name=ria")
    assert yaml.safe_load(shown.out)["inner"]["name"] == "ria"
    assert chosen.by_path("++method.inner.name=ria") == "method.inner=ria"
    assert chosen.by_path("model.name=x") == "model.name=x"


def test_a_default_with_settings_of_its_own_keeps_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plugin may hold a component that is not as it comes; named by a user it is."""
    monkeypatch.setitem(catalogue._registry, "method", dict(catalogue._registry["method"]))

    @catalogue.component("method", "holding")
    @dataclass(frozen=True)
    class Holding:
        inner: Any = field(default_factory=lambda: SparseGPT(damping=0.5), metadata={"component": "method"})
        statistic = None

    groups.register()
    assert catalogue.defaults("method", "holding")["inner"]["damping"] == 0.5
    assert compose.compose_run(["method=holding"]).method == Holding()
    assert compose.compose_run(["method=holding", "method.inner.blocksize=8"]).method.inner == SparseGPT(0.5, 8)
    assert compose.compose_run(["method=holding", "method.inner=sparsegpt"]).method.inner == SparseGPT()


def test_what_a_plugin_puts_in_the_place_of_a_default_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for table in ("_registry", "_replaced"):
        known = getattr(catalogue, table)
        monkeypatch.setitem(known, "method", dict(known["method"]))

    @catalogue.component("method", "wanda", replaces=True)
    @dataclass(frozen=True)
    class Mine:
        power: float = 2.0
        statistic = None

        def prune(self, weight: Any, seen: Any, wanted: Any) -> Any:
            raise NotImplementedError

    groups.register()
    for named in ([], ["method.inner=wanda"], ["method.inner.name=wanda"]):
        assert compose.compose_run(["method=dsnot", *named, "method.inner.power=3"]).method.inner == Mine(3.0)


def test_a_sweep_over_it(typed: Callable, options: list[str], tmp_path: Path) -> None:
    """Each point with its own defaults, and its record says so."""
    ran = typed("-m", *options, "method=dsnot", "method.inner=wanda,ria", "method.max_cycles=2")
    assert ran.status == 0, ran.err
    paths = [Path(line.removeprefix("record: ")) for line in ran.out.splitlines() if line.startswith("record: ")]
    inner = [yaml.safe_load(path.read_text())["config"]["method"]["inner"] for path in paths]
    assert [one["name"] for one in inner] == ["wanda", "ria"]
    assert ["a" in one for one in inner] == [False, True]
    refused = typed("-m", *options, "method=dsnot", "method.inner=wanda,magnitude", "method.inner.a=0.4")
    assert refused.status == 2 and "method.inner=wanda" in refused.err and "setting of method.inner: 'a'" in refused.err


STUDY: dict[str, Any] = {
    "title": "A study of a test",
    "table": {"columns": "task", "rows": ["method", "method.inner"]},
    "grids": [{"method": ["dsnot", "swaps"], "method.inner": ["wanda", "ria"]}],
    "scales": {"embedded": {"axes": {"model": ["embedded-llama"]}}},
}


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """The methods of a study's points, by changes to it and overrides."""
    shutil.copytree(groups.CONF, tmp_path / "conf")
    for module in (groups, grid, chosen):
        monkeypatch.setattr(module, "CONF", tmp_path / "conf")

    def methods(changes: dict[str, Any], *extra: str) -> list[Any]:
        (tmp_path / "conf" / "study" / "test_chosen.yaml").write_text(yaml.safe_dump(STUDY | changes))
        return [point.cfg.method for point in grid.load_study("test_chosen", "embedded", extra).points]

    return methods


def test_an_axis_of_a_study(study: Callable[..., list[Any]]) -> None:
    assert [catalogue.name_of(method.inner) for method in study({})] == ["wanda", "ria"] * 2
    fixed = {"embedded": {"axes": {}, "fixed": {"method": "dsnot"}}}
    table = {"columns": "task", "rows": ["method.inner"]}
    alone = {"grids": [{"method.inner": ["wanda", "ria"]}], "scales": fixed, "table": table}
    assert [method.inner for method in study(alone)][1] == RIA()
    assert [method.inner for method in study(alone, "method.inner=ria", "method.inner.a=0.4")] == [RIA(a=0.4)]
    mapping = {"grids": [{"method": ["dsnot"], "method.inner": [{"name": "ria", "a": 0.3}, "wanda"]}]}
    assert study(mapping)[0].inner == RIA(a=0.3)
    settings = {"grids": [{"method": ["dsnot"], "method.inner.a": [0.3, 0.4], "method.inner": ["ria"]}]}
    assert [method.inner for method in study(settings | {"table": table})] == [RIA(a=0.3), RIA(a=0.4)]


def test_overrides_of_a_study(study: Callable[..., list[Any]]) -> None:
    assert [method.inner for method in study({}, "method.inner=ria", "method.inner.a=0.4")] == [RIA(a=0.4)] * 2
    with pytest.raises(UserError, match=r"with method=dsnot method.inner=wanda: unknown setting of method.inner: 'a'"):
        study({}, "method.inner.a=0.4")
    plain = {"grids": [{"method": ["dsnot", "swaps"]}], "table": {"columns": "task", "rows": ["method"]}}
    chosen_for_all = study(plain, "method.inner=ria", "method.inner.a=0.4")
    assert [method.inner for method in chosen_for_all] == [RIA(a=0.4)] * 2


@pytest.mark.parametrize(
    ("axes", "typed"),
    [
        ({"method": "dsnot", "method.inner": "ria"}, "method=dsnot method.inner=ria"),
        ({"method.inner.name": "ria", "method": "dsnot"}, "method=dsnot method.inner=ria"),
        ({"method": "sparsellm", "method.inner": {"name": "dsnot", "inner": {"name": "ria", "a": 0.4}}},
         "method=sparsellm method.inner=dsnot method.inner.inner=ria method.inner.inner.a=0.4"),
        ({"method": "wanda", "allocator": "msp", "allocator.pruner": None}, "allocator=msp allocator.pruner=null"),
        ({"allocator": "msp", "allocator.pruner": {"damping": 0.05}}, "allocator=msp allocator.pruner.damping=0.05"),
    ],
)  # fmt: skip
def test_a_point_is_what_composing_it_gives(axes: dict[str, Any], typed: str) -> None:
    assert Choices([]).point(axes) == compose.compose_run(typed.split())
