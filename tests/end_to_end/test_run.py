"""One run and one sweep, from the command line to the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open

from harness.execute import INTERRUPTED

KEYS = {"schema", "status", "reason", "fingerprint", "config", "sparsity", "sites", "measures", "stages", "provenance"}


def test_a_run_writes_the_record_that_the_contract_describes(typed: Callable, options: list[str]) -> None:
    done = typed(*options, "method=sparsegpt", "sparsity=2of4")
    record = done.record
    assert done.status == 0
    assert record.keys() >= KEYS
    assert (record["schema"], record["status"]) == (1, "ok")
    assert record["sparsity"] == {"asked": 0.5, "achieved": 0.5, "model": 0.5}
    assert len(record["sites"]) == 14
    for site in record["sites"].values():
        assert site.keys() == {"asked", "achieved", "parameters", "pattern"}
        assert (site["achieved"], site["pattern"]) == (0.5, "2of4")
    (measure,) = record["measures"]
    assert measure.keys() == {"task", "metric", "value", "stderr", "protocol", "samples", "note"}
    assert (measure["task"], measure["metric"], measure["samples"]) == ("embedded-a", "perplexity", 2)
    assert measure["protocol"].startswith("embedded-a-test@32,limit=2#")
    assert list(record["stages"]) == ["load", "calibrate", "plan", "allocate", "prune", "recover", "evaluate"]
    assert all(stage.keys() == {"seconds", "peak_bytes"} for stage in record["stages"].values())
    assert record["provenance"]["data"].keys() == {"calibration", "embedded-a"}
    assert len(record["provenance"]["weights_sha256"]) == 64


def test_the_same_command_finds_its_record(typed: Callable, options: list[str]) -> None:
    first = typed(*options)
    again = typed(*options)
    assert again.out == first.out
    assert "found ok record" in again.err
    forced = typed(*options, "force=true")
    assert "found" not in forced.err
    assert forced.record["measures"] == first.record["measures"]


def test_paths_tracker_and_cluster_are_outside_identity(typed: Callable, options: list[str], tmp_path: Path) -> None:
    first = typed(*options).record
    elsewhere = [text for text in options if not text.startswith("records=")]
    moved = typed(*elsewhere, f"records={tmp_path / 'other'}", "cluster=local", "scale=proxy").record
    assert moved["fingerprint"] == first["fingerprint"]
    for change in (
        "seed=1",
        "sparsity=0.6",
        "dtype=bfloat16",
        "calibration.windows=3",
        "scope=0-0",
        "method.group=matrix",
    ):
        assert typed(*options, change).record["fingerprint"] != first["fingerprint"], change


def test_a_dense_run_ignores_what_pruning_would_use(typed: Callable, options: list[str]) -> None:
    dense = typed(*options, "method=none", "sparsity=0.7", "allocator=owl").record
    same = typed(*options, "method=none", "calibration.windows=7")
    assert dense["sparsity"] == {"asked": 0.0, "achieved": 0.0, "model": 0.0}
    assert same.record["fingerprint"] == dense["fingerprint"]
    assert "found" in same.err


def test_scope_prunes_some_blocks_only(typed: Callable, options: list[str]) -> None:
    record = typed(*options, "scope=first_half", "method=magnitude").record
    assert {site.split(".")[2] for site in record["sites"]} == {"0"}
    assert record["sparsity"]["model"] == pytest.approx(record["sparsity"]["achieved"] / 2)


def test_a_sweep_records_every_point_and_skips_what_is_refused(typed: Callable, options: list[str]) -> None:
    swept = typed("-m", *options, "method=wanda,magnitude", "sparsity=0.5,3of5")
    lines = [line for line in swept.out.splitlines() if line.startswith("record: ")]
    records = [json.loads(Path(line.removeprefix("record: ")).read_text()) for line in lines]
    assert swept.status == 0
    assert [record["status"] for record in records] == ["ok", "skipped", "ok", "skipped"]
    assert "not divisible by 5" in records[1]["reason"]
    again = typed("-m", *options, "method=wanda,magnitude", "sparsity=0.5,3of5")
    assert again.err.count("found") == 4


def test_points_in_worker_processes(typed: Callable, options: list[str], tmp_path: Path) -> None:
    """Workers start with an empty catalogue and share nothing but the files."""
    swept = typed("-m", *options, "method=wanda,magnitude", "sparsity=0.5,3of5", "cluster=joblib")
    assert swept.status == 0, swept.err
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert sorted(record["status"] for record in records) == ["ok", "ok", "skipped", "skipped"]


def test_the_saved_model_has_the_zeros_and_scores_the_same(typed: Callable, options: list[str], tmp_path: Path) -> None:
    pruned = typed(*options, "sparsity=2of4", f"save={tmp_path / 'kept'}").record
    with safe_open(tmp_path / "kept" / "model.safetensors", "pt") as file:
        weight = file.get_tensor("model.layers.1.mlp.down_proj.weight")
    assert float((weight == 0).float().mean()) == 0.5
    others = [text for text in options if not text.startswith("model.path")]
    rescored = typed(*others, f"model.path={tmp_path / 'kept'}", "method=none").record
    assert rescored["sparsity"]["achieved"] == 0.5
    assert rescored["measures"][0]["value"] == pytest.approx(pruned["measures"][0]["value"], rel=1e-6)
    (tmp_path / "kept" / "model.safetensors").unlink()
    assert "found" not in typed(*options, "sparsity=2of4", f"save={tmp_path / 'kept'}").err


def test_owl_and_mixed_levels_meet_the_budget(typed: Callable, options: list[str]) -> None:
    free = typed(*options, "allocator=owl", "sparsity=0.7").record
    weights = [site["parameters"] for site in free["sites"].values()]
    asked = [site["asked"] for site in free["sites"].values()]
    assert sum(a * w for a, w in zip(asked, weights, strict=True)) / sum(weights) == pytest.approx(0.7, abs=1e-9)
    assert len(set(asked)) == 2
    mixed = typed(*options, "allocator=owl", "sparsity=2of4", "allocator.levels=[1,2,3]", "allocator.spread=0.2").record
    assert mixed["sparsity"]["achieved"] == pytest.approx(0.5)
    assert {site["pattern"] for site in mixed["sites"].values()} <= {"1of4", "2of4", "3of4"}


def test_an_interrupt_leaves_a_failed_record_that_runs_again(
    typed: Callable, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("harness.compress.prune", interrupted)
        stopped = typed(*options)
    assert stopped.status == 1
    assert (stopped.record["status"], stopped.record["reason"]) == ("failed", INTERRUPTED)
    assert typed(*options).record["attempt"] == 2


def test_an_unexpected_failure_is_recorded_and_the_sweep_goes_on(
    typed: Callable, options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.methods.wanda import Wanda

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Wanda, "prune", broken)
    swept = typed("-m", *options, "method=wanda,magnitude")
    assert swept.status == 1
    assert swept.out.count("record: ") == 2
    assert swept.record["status"] == "ok"
    assert "RuntimeError: a bug" in typed(*options).record["reason"]


def test_a_plugin_method_runs_and_its_source_is_part_of_identity(
    typed: Callable, options: list[str], tmp_path: Path
) -> None:
    source = (Path(__file__).parent / "keep_left.py").read_text()
    plugin = tmp_path / "mine.py"
    plugin.write_text(source)
    ran = typed(*options, f"plugins={plugin}", "method=keep-left", "sparsity=0.5")
    assert ran.status == 0, ran.err
    assert ran.record["sparsity"]["achieved"] == 0.5
    assert typed(*options, f"plugins=[{plugin}]", "method=keep-left").record["fingerprint"] == ran.record["fingerprint"]


def test_hydra_prints_the_configuration(typed: Callable) -> None:
    shown = typed("--cfg", "job", "sparsity=0.6")
    assert shown.status == 0
    assert "sparsity: 0.6" in shown.out
    assert typed("--help").status == typed("--info", "config").status == typed("--hydra-help", "seed=1").status == 0
    assert "embedded-b" not in typed("--cfg", "job", "evaluation={}").out


@pytest.mark.parametrize("nothing", ["evaluation=[]", "evaluation={}", "+evaluation={ }", "~evaluation.embedded-a"])
def test_nothing_is_evaluated(nothing: str, typed: Callable, options: list[str]) -> None:
    ran = typed(*options, nothing)
    assert ran.status == 0, ran.err
    assert ran.record["measures"] == []
