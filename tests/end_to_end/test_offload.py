"""A run whose blocks wait in host memory is the same run: numbers, fingerprint, saved model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from harness.study import commands
from harness.study.estimate import GPU, estimate
from harness.study.grid import load_study


def test_offload_changes_no_number(typed: Callable, options: list[str], tmp_path: Path) -> None:
    mine = [*options, "method=sparsegpt", "allocator=alphapruning", "evaluation=[embedded-a,embedded-cloze]"]
    records, weights = [], []
    for offload in ("off", "on"):
        folder = tmp_path / offload
        ran = typed(*mine, f"offload={offload}", f"records={folder / 'records'}", f"save={folder / 'model'}")
        assert ran.status == 0, ran.err
        records.append(ran.record)
        weights.append(load_file(folder / "model" / "model.safetensors"))
    resident, waiting = records
    for same in ("fingerprint", "measures", "sites", "sparsity", "allocation"):
        assert waiting[same] == resident[same]
    assert [record["provenance"]["placement"]["offload"] for record in records] == [False, True]
    assert all(record["provenance"]["placement"]["devices"] == 1 for record in records)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_offload_is_a_choice_of_three(typed: Callable, options: list[str]) -> None:
    wrong = typed(*options, "offload=of")
    assert wrong.status == 2 and "unknown value of offload: 'of'; did you mean off" in wrong.err


@pytest.mark.parametrize(
    ("model", "told"),
    [("llama2-7b", "GiB"), ("llama2-70b", "GiB with offload"), ("opt-66b", "GiB with offload")],
)
def test_a_plan_says_what_fits(model: str, told: str, tmp_path: Path) -> None:
    commands.compose.register()
    cfg = commands.compose.compose_run([f"model={model}", "calibration=c4", "evaluation=[wikitext2]"])
    guess = estimate(cfg, "cuda")
    assert guess is not None and told in guess.fits(GPU) and ("offload" in guess.fits(GPU)) == ("offload" in told)
    assert guess.fits(4 * 2**30).startswith("does not fit 4 GiB, it needs ")
    assert guess.fits(500 * 2**30) == f"{guess.peak_bytes / 2**30:.1f} GiB"


def test_the_plan_of_a_study_on_a_gpu_says_what_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = load_study("wanda_table3", "paper", [f"records={tmp_path}", "model=llama2-70b,llama2-7b", "method=wanda"])
    commands.plan(study)
    lines = capsys.readouterr().out.splitlines()
    assert any("model=llama2-70b" in line and "GiB with offload, " in line for line in lines)
    assert not any("model=llama2-7b" in line and "offload" in line for line in lines)
