"""Depth planners as they are run: stand-ins saved and read again, scans that are killed and go on, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from harness.__main__ import main
from harness.calibration.views.structure import DecoderView
from tests.commands import but

DYING = """
import os, signal, sys
from harness.__main__ import main
from harness.calibration.views.structure import DecoderView
ask, left = DecoderView.losses, [None] * int(sys.argv[1])
DecoderView.losses = lambda *asked: ask(*asked) if left and not left.pop() else os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[2:])
"""
"""A process that is killed when it asks for losses once more than so often."""


def only(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("form", ["padded", "sliced"])
@pytest.mark.parametrize("part", ["block", "sublayer"])
def test_means_are_saved_and_read(
    typed: Callable[..., Any], options: list[str], tmp_path: Path, part: str, form: str
) -> None:
    folder = tmp_path / "saved"
    done = typed(
        *options, "planner=block_influence", f"planner.part={part}", "planner.keep_first=1", "planner.update=mean",
        "method=none", f"save={folder}", f"save_form={form}",
    )  # fmt: skip
    assert done.status == 0, done.err
    (update,) = done.record["plan"]["updates"]
    assert update["norm"] > 0 and update["block"] == 1
    without = typed(*options, "planner=block_influence", f"planner.part={part}", "planner.keep_first=1", "method=none")
    assert without.record["plan"]["edit"] == done.record["plan"]["edit"]
    assert without.record["measures"][0]["value"] != done.record["measures"][0]["value"]
    again = typed(*but(options, f"records={tmp_path / 'again'}"), f"model.path={folder}", "method=none")
    assert again.status == 0, again.err
    assert [one["value"] for one in again.record["measures"]] == pytest.approx(
        [one["value"] for one in done.record["measures"]], rel=1e-5
    )
    if form == "padded":
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model.generate(torch.arange(6)[None] + 5, max_new_tokens=4, do_sample=False).shape == (1, 10)


SCANS = {
    "halves": ["planner=shapley", "planner.networks=halves", "planner.part=sublayer"],
    "blockpruner": ["planner=blockpruner", "planner.amount=4", "planner.update=mean", "planner.keep_first=1"],
}


@pytest.mark.parametrize("scan", SCANS)
def test_a_killed_scan_goes_on(scan: str, tmp_path: Path) -> None:
    """To the bit, behind a process that is really killed; fewer losses are asked for than without one."""
    arguments = [
        *SCANS[scan], "method=none", "calibration.windows=4", "calibration.length=64", "evaluation=[embedded-a]",
        "evaluation_limit=2",
    ]  # fmt: skip

    whole, going_on = tmp_path / "whole", tmp_path / "killed"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", DYING, "2", *arguments, f"records={going_on}"]
    killed = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not list(going_on.glob("*.json"))
    assert asked_in([*arguments, f"records={whole}"]) == 4 > asked_in([*arguments, f"records={going_on}"])
    records = [only(folder) for folder in (whole, going_on)]
    for part in ("plan", "measures", "fingerprint", "parameters"):
        assert records[0][part] == records[1][part], part


def asked_in(*runs: list[str]) -> int:
    """How often runs ask for losses."""
    asked, ask = [], DecoderView.losses

    def counted(*questions: Any) -> torch.Tensor:
        asked.append(None)
        return ask(*questions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DecoderView, "losses", counted)
        assert [main(arguments) for arguments in runs] == [0] * len(runs)
    return len(asked)


def test_another_amount_asks_for_nothing_again(tmp_path: Path) -> None:
    """What is kept belongs to the dense model: another amount, or other ends of the model, is an order of the same."""
    arguments = [
        "planner=shapley", "method=none", "calibration.windows=2", "calibration.length=64", "evaluation=[]",
        f"records={tmp_path}",
    ]  # fmt: skip
    assert asked_in(arguments) > 0 == asked_in([*arguments, "planner.amount=2"], [*arguments, "planner.keep_first=2"])
    plans = [json.loads(path.read_text())["plan"] for path in tmp_path.glob("*.json")]
    assert len(plans) == 3 and all(plan["scores"] == plans[0]["scores"] for plan in plans)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["planner=sleb", "planner.amount=1"], "1 of the blocks cannot go"),
        (["planner=perplexity"], "as the first 4 and the last 2 blocks stay."),
        (
            ["planner=taylor", "planner.part=mlp", "planner.of=blocks"],
            "with planner.part=mlp take planner.of=sublayers",
        ),
        (["planner=shapley", "planner.halves=0"], "have to be at least 1"),
        (["planner=block_influence", "planner.update=mean", "planner.amount=1", "planner.keep_last=1"], "for block 0"),
        (["planner=blockpruner", "planner.windows=0"], "planner.windows has to be at least 1"),
    ],
)
def test_what_cannot_be_is_one_sentence(
    typed: Callable[..., Any], options: list[str], overrides: list[str], said: str
) -> None:
    done = typed(*options, "method=none", *overrides)
    assert done.status == 2 and said in done.err and "Traceback" not in done.err
