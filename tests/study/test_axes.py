"""Axes that are settings of components: composed after what they belong to, narrowed, run, laid out; their cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import compose, groups
from harness.config import RunConfig
from harness.runtime.errors import UserError
from harness.study import grid
from harness.study.estimate import SPEEDS, estimate

STUDY: dict[str, Any] = {
    "title": "A study of a test",
    "table": {
        "columns": "method.damping",
        "rows": ["task", "calibration.windows"],
        "figure": {"kind": "lines", "x": "calibration.windows", "lines": "method.damping"},
    },
    "grids": [
        {"method": ["none"]},
        {"method": ["wanda"], "sparsity": [0.5]},
        {"calibration.windows": [1, 2], "method.damping": [0.01, 1], "method": ["sparsegpt"], "sparsity": [0.5]},
    ],
    "scales": {
        "embedded": {"axes": {"model": ["hf"]}},
        "proxy": {"axes": {"model": ["hf"]}, "grids": [{"method": ["wanda"], "calibration.windows": [4]}]},
    },
}

RANKED: dict[str, Any] = {"rows": ["model"]}
RANKING: dict[str, Any] = {"of": "method", "over": ["model", "method.damping", "calibration.windows"]}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Puts a study `test_axes` into a copy of conf/, with changes."""
    compose.register()
    shutil.copytree(groups.CONF, tmp_path / "conf")
    monkeypatch.setattr(groups, "CONF", tmp_path / "conf")
    monkeypatch.setattr(grid, "CONF", tmp_path / "conf")

    def put(**changes: Any) -> None:
        (tmp_path / "conf" / "study" / "test_axes.yaml").write_text(yaml.safe_dump(STUDY | changes))

    put()
    return put


def configs(scale: str = "embedded", *extra: str) -> list[RunConfig]:
    points = grid.load_study("test_axes", scale, ["model.path=/none", *extra]).points
    return [point.cfg for point in points if point.cfg]


def test_settings_are_composed_after_their_choice(write: Callable[..., None]) -> None:
    dense, wanda, *pruned = configs()
    assert dense.method is None
    assert wanda.calibration.windows == 128
    assert [(cfg.calibration.windows, cfg.method.damping) for cfg in pruned] == [(1, 0.01), (1, 1), (2, 0.01), (2, 1)]
    write(grids=[{"calibration.windows": [3], "calibration": ["embedded-b"]}], table={"rows": ["model"]})
    (cfg,) = configs()
    assert (cfg.calibration.corpus, cfg.calibration.windows) == ("embedded-b", 3)


def test_a_scale_may_have_grids_of_its_own(write: Callable[..., None]) -> None:
    (cfg,) = configs("proxy")
    assert (cfg.composed["method"]["name"], cfg.calibration.windows) == ("wanda", 4)
    with pytest.raises(UserError, match=r"unknown calibration\.windows of study test_axes: '2'"):
        configs("proxy", "calibration.windows=2")


def test_narrowing_a_setting_keeps_the_points_that_lack_it(write: Callable[..., None]) -> None:
    chosen = configs("embedded", "method.damping=1.0", "calibration.windows=2")
    assert [cfg.composed["method"]["name"] for cfg in chosen] == ["none", "wanda", "sparsegpt"]
    assert chosen[-1].method.damping == 1
    (only,) = configs("embedded", "method=sparsegpt", "method.damping=1", "calibration.windows=2", "method.blocksize=8")
    assert (only.method.damping, only.method.blocksize) == (1, 8)
    with pytest.raises(UserError, match=r"unknown method\.damping of study test_axes: '2'"):
        configs("embedded", "method.damping=2")
    write(grids=[{"method": ["wanda"], "calibration.length": [None, 16]}], table={"rows": ["model"]})
    assert [cfg.calibration.length for cfg in configs("embedded", "calibration.length=null")] == [None]


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"rows": ["model", "method.dampin"]}, "'method.dampin'; did you mean method.damping"),
        ({"rows": ["model"], "figure": {"kind": "lines", "x": "seeed", "lines": "method"}}, "did you mean seed"),
        ({"rows": ["model"], "figure": "bar"}, "'bar'; did you mean bars"),
        ({"rows": ["model"], "figure": {"kind": "lines"}}, "needs x and lines"),
        ({"columns": "task"}, "a table needs rows"),
        (RANKED | {"ranking": {"of": "method"}}, "a ranking needs `of`, the axis that is ranked, and `over`"),
        (RANKED | {"ranking": {"of": "method", "over": ["modl"]}}, "'modl'; did you mean model"),
        (RANKED | {"ranking": {"of": "method", "over": ["model"]}}, r"calibration\.windows has several values; add it"),
        (RANKED | {"ranking": RANKING | {"against": "wnda"}}, "'wnda'; did you mean wanda"),
        (RANKED | {"ranking": RANKING | {"among": ["wanda", "sparsgpt"]}}, "'sparsgpt'; did you mean sparsegpt"),
    ],
)
def test_a_mistaken_layout_is_said_before_anything_runs(
    table: dict[str, Any], said: str, write: Callable[..., None]
) -> None:
    write(table=table)
    with pytest.raises(UserError, match=said):
        configs()


def test_a_study_over_settings_runs_and_shows_them(
    typed: Callable, options: list[str], write: Callable[..., None], tmp_path: Path
) -> None:
    mine = [text for text in options if not text.startswith("calibration.windows")]
    ran = typed("study=test_axes", *mine)
    assert ran.status == 0, ran.err
    head = next(line for line in ran.out.splitlines() if line.startswith("| task"))
    assert " ".join(head.split()) == "| task | calibration.windows | achieved | dense | wanda | 0.01 | 1 |"
    assert "6 done" in typed("status", "study=test_axes", *mine).out
    folder = tmp_path / "tables" / "test_axes" / "embedded"
    assert {path.suffix for path in folder.iterdir()} == {".csv", ".md", ".tex", ".svg", ".png"}
    part = typed("tables", "study=test_axes", *mine, "method=none,wanda")
    assert part.status == 0, part.err
    assert "calibration.windows" in part.out


def _cost(method: str, epochs: int, device: str, model: str) -> float:
    compose.register()
    more = [f"method.epochs={epochs}"] if epochs else []
    guess = estimate(compose.compose_run([f"model={model}", f"method={method}", "evaluation=[]", *more]), device)
    assert guess is not None
    return guess.seconds


@pytest.mark.parametrize("model", ["llama2-7b", "opt-13b"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_sparsellm_costs_sparsegpt_and_as_much_again_for_every_further_epoch(device: str, model: str) -> None:
    first = _cost("sparsegpt", 0, device, model)
    one, two, five = (_cost("sparsellm", epochs, device, model) for epochs in (1, 2, 5))
    assert one == first
    assert five - one == pytest.approx(4 * (two - one))
    assert two > 1.2 * first


def test_blocks_out_of_scope_cost_nothing() -> None:
    compose.register()
    command = ["model=llama2-7b", "method=sparsegpt", "evaluation=[]"]
    scopes = ("all", "0-15", "0-7")
    whole, half, quarter = (estimate(compose.compose_run([*command, f"scope={scope}"]), "cuda") for scope in scopes)
    assert whole.seconds - half.seconds == pytest.approx(2 * (half.seconds - quarter.seconds))


def test_launches_hide_behind_products_on_a_gpu_and_add_to_them_on_a_cpu() -> None:
    gpu, cpu = SPEEDS["cuda", 2], SPEEDS["cpu", 4]
    assert gpu.forward(gpu.rate, 1) == gpu.forward(gpu.rate, 0) == 1
    assert gpu.forward(1, 2 / gpu.launch) == pytest.approx(2)
    assert cpu.forward(cpu.rate, 2 / cpu.launch) == pytest.approx(3)
