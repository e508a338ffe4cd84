"""Many points: planned as composing each alone would plan it, from things made once; each file read once."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import compose, groups
from harness.record import schema
from harness.runtime.errors import UserError
from harness.study import choices, grid
from harness.study.choices import Choices
from harness.study.plan import progress_of
from tests.record.test_schema import make

OPEN = ["save=out/${method.name}_${sparsity}", "cache=kept/${seed}${records}", "seed=0"]


def _defined() -> list[tuple[str, str]]:
    return [
        (path.stem, scale)
        for path in sorted((groups.CONF / "study").glob("*.yaml"))
        for scale in yaml.safe_load(path.read_text())["scales"]
    ]


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HARNESS_ASSETS", raising=False)
    compose.register()


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], Counter[str]]:
    """Counts the calls of a function of a module, by the text of their arguments."""

    def count(module: Any, name: str) -> Counter[str]:
        calls: Counter[str] = Counter()
        function = getattr(module, name)

        def counting(*arguments: Any, **more: Any) -> Any:
            calls[repr(arguments)] += 1
            return function(*arguments, **more)

        monkeypatch.setattr(module, name, counting)
        return calls

    return count


def _override(key: str, value: Any) -> str:
    text = json.dumps(value) if value is None or isinstance(value, bool) else str(value)
    if isinstance(value, dict | list):
        text = json.dumps(value).replace('"', "")
    return f"{key}={text}"


@pytest.mark.parametrize(("name", "scale"), _defined())
def test_points_are_what_composing_each_of_them_gives(name: str, scale: str) -> None:
    """One point of each study and scale, another place in each; what it is composed of is Hydra's alone."""
    study = grid.load_study(name, scale, OPEN)
    points = [point for point in study.points if point.cfg]
    point = points[len(name) * 7 % len(points)]
    fixed = [f"{key}={value}" for key, value in (study.content["scales"][scale].get("fixed") or {}).items()]
    axes = [_override(key, value) for key, value in point.axes.items()]
    whole = compose.compose_plain([*fixed, f"scale={scale}", *OPEN, *axes])
    expected = compose.typed({**whole, "study": name})
    assert point.cfg == expected
    assert repr(point.cfg) == repr(expected)  # 1 is not 1.0, and the options have their order


def test_what_points_share_is_composed_and_built_once(counted: Callable[[Any, str], Counter[str]]) -> None:
    composed = counted(choices, "compose_plain")
    chosen = counted(choices, "choice_settings")
    axes = [
        {"model": model, "method": method, "sparsity": sparsity, "allocator": allocator, "seed": seed}
        for model in ("opt-125m", "llama2-7b")
        for method in ("wanda", "sparsegpt")
        for sparsity in (0.5, 0.6, 0.7)
        for allocator in ("uniform", "owl")
        for seed in range(20)
    ]
    made = Choices(["evaluation=[embedded-a]", "save=out/${method.name}"])
    points = [made.point(one) for one in axes]
    assert len(points) == 480
    assert composed.total() == 1
    assert sorted(chosen.values()) == [1] * 6  # two models, two methods, two allocators
    parts = ("model", "method", "allocator", "planner", "recovery", "evaluators", "calibration", "pattern")
    built = {part: len({id(getattr(point, part)) for point in points}) for part in parts}
    assert built == dict(zip(parts, (2, 2, 2, 1, 1, 1, 20, 3), strict=True))
    assert {str(point.save) for point in points} == {"out/wanda", "out/sparsegpt"}
    assert [point.seed for point in points[:3]] == [0, 1, 2]
    assert [point.calibration.seed for point in points[:3]] == [0, 1, 2]


def test_settings_that_every_point_has_are_checked_against_every_choice() -> None:
    made = Choices(["method.damping=0.1", "method=sparsegpt"])
    assert made.point({"method": "sparsegpt"}).method.damping == 0.1
    with pytest.raises(UserError, match="unknown setting of method: 'damping'"):
        made.point({"method": "wanda"})
    with pytest.raises(UserError, match=r"unknown option 'method\.dampin'"):
        made.point({"method": "sparsegpt", "method.dampin": 1})
    with pytest.raises(UserError, match="unknown method 'wnda'; did you mean wanda"):
        made.point({"method": "wnda"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("save=${method.nam}", "Interpolation key 'method.nam' not found"),
        ("save=${metod.name}", "Interpolation key 'metod.name' not found"),
        ("save=${save}", "Recursive|recursion|cannot be resolved"),
        ("save=???", "Missing mandatory value: save"),
    ],
)
def test_interpolations_that_cannot_be_resolved_are_one_sentence(given: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Choices([given]).point({"method": "wanda"})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "saved"),
    [
        ("save=${records}/${model.name}", "results/records/opt-125m"),
        ("save=${cache}", "results/records/.cache"),  # through another interpolation
        ("save=a/${oc.env:NOWHERE,b}", "a/b"),
        ("save=${oc.select:method.name}", "wanda"),
    ],
)
def test_interpolations_follow_the_point(given: str, saved: str) -> None:
    point = Choices([given]).point({"method": "wanda", "model": "opt-125m"})
    assert str(point.save) == saved == point.composed["save"]


def test_every_record_is_read_once_and_found_by_its_question(
    tmp_path: Path, counted: Callable[[Any, str], Counter[str]]
) -> None:
    study = grid.load_study("wanda_table3", "paper", [f"records={tmp_path}"])
    device, window = {"device": "cuda", "dtype": "float16"}, 2048
    answered = [point.cfg for point in study.points[::2] if point.cfg]
    for number, cfg in enumerate(answered):
        calibration = {**cfg.composed["calibration"], "length": window, "seed": cfg.seed}
        config = {**cfg.composed, **device, "evaluation_window": window, "calibration": calibration}
        facts = {"defaults": {"window": window, "dtype": "float16"}, "revisions": {}}
        sites = {"q_proj": {"asked": 0.5}} if number % 2 else {}
        schema.write(make(fingerprint=f"{number:016x}", config=config, provenance=facts, sites=sites), tmp_path)
    read = counted(schema, "read")
    items = progress_of(study)
    assert [item.state for item in items] == ["stale", "to do"] * (len(items) // 2)
    assert (len(read), max(read.values())) == (len(answered), 1)


def test_a_record_without_its_sites_is_the_record_all_the_same(tmp_path: Path) -> None:
    sly = {'\n },\n "measures": [': {"pattern": '\n "sites": {\n'}}
    for sites in ({}, {"a.q": {"asked": 0.5, "parameters": 3}, "a.k": {}}, sly):
        measures = (dict.fromkeys(schema.NAMES, "x") | dict.fromkeys(schema.NUMBERS, 3),)
        record = make(sites=sites, measures=measures, notes=("\n },", '"sites": {'), allocation={"sites": {}})
        path = schema.write(record, tmp_path)
        assert schema.read(path) == record
        assert schema.read(path, sites=False) in (record, dataclasses.replace(record, sites={}))
        path.write_text(json.dumps(json.loads(path.read_text())))  # as another program may lay it out
        assert schema.read(path, sites=False) == record
    assert schema.read(schema.write(record, tmp_path), sites=False).sites == {}
