"""Policy gradient on a model: what it learns, its budget, its text, and that a killed run goes on to the bit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny, windows
from omegaconf import OmegaConf
from torch import Tensor

from harness.calibration.cache.values import Cache
from harness.calibration.views.structure import DecoderView
from harness.core.allocation import Budget
from harness.core.cost import removed
from harness.core.costs import Work
from harness.core.structure import Cut
from harness.groups import CONF
from harness.models.decoder import decoder_of
from harness.models.geometry import of_facts
from harness.planners.policy_gradient import PolicyGradient
from harness.runtime.errors import Refusal, UserError

SHORT = PolicyGradient(steps=6, batch=2, length=8, held_out=2)


def view(cache: Cache | None = None, **more: Any) -> DecoderView:
    decoder = decoder_of(tiny("llama", num_hidden_layers=4))

    def draw(count: int, length: int = 24) -> Tensor:
        return windows(count, seed=1)[:, :length]

    scope = more.pop("scope", decoder.indices)
    return DecoderView(decoder, list(windows(4).split(2)), scope, draw=draw, cache=cache, **more)


def test_the_masks_get_better() -> None:
    """Where one block's heads matter by far the most: they stay, though the start is the same for all."""
    asked = view()
    matters = asked._decoder.block(2).self_attn.o_proj.weight
    with torch.no_grad():
        matters.mul_(30)
    planner = PolicyGradient(amount=0.4, start="even", steps=60, samples=6, batch=2, length=16, lr=0.2, held_out=8)
    edit = planner.plan(asked).edit
    facts = asked.diagnostics["policy"]
    assert facts["held_out"]["end"] < facts["held_out"]["start"]
    assert [point["step"] for point in facts["trajectory"]] == list(range(1, 61))
    assert removed(edit, asked.geometry, "linears") >= 0.4


def test_a_mask_that_is_drawn_is_the_cut_that_it_stands_for() -> None:
    """Without a step the plan is the start's, and out of scope nothing goes."""
    asked = view(scope=(1, 2))
    edit = replace(SHORT, steps=0, amount=0.2).plan(asked).edit
    assert edit and {unit.block for unit in edit.units} <= {1, 2}
    assert asked.diagnostics["policy"]["trajectory"] == []


def test_without_steps_and_windows_to_judge_by_no_text_is_read() -> None:
    def none(*_: int) -> Tensor:
        raise AssertionError

    asked = view(pack=none)
    asked._draw = none
    for variant in ("default", "released"):
        assert replace(SHORT, steps=0, held_out=0, variant=variant).plan(asked).edit
    assert asked.diagnostics["policy"]["held_out"] == {}


def test_released_ties_stay() -> None:
    """All probabilities are equal, so all stay: the released threshold keeps what is equal to it."""
    released = replace(SHORT, steps=0, start="even", variant="released")
    assert released.plan(view()).edit == Cut()
    exact = replace(released, variant="default").plan(view()).edit
    assert removed(exact, view().geometry, "linears") >= 0.3


def test_released_text_is_packed() -> None:
    asked: list[tuple[int, int]] = []

    def pack(count: int, length: int) -> Tensor:
        asked.append((count, length))
        return windows(3, seed=2)[:, :length]  # a short text: it comes again

    replace(SHORT, variant="released", held_out=1).plan(view(pack=pack))
    assert asked == [(13, 8)]


def test_a_kept_state_is_gone_on_with_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planner = replace(SHORT, keep_every=0.0)
    whole = view(Cache(tmp_path / "whole"))
    plan = planner.plan(whole)
    losses, calls = DecoderView.masked_losses, []

    class Killed(BaseException):
        """The end of a process."""

    def dying(self: DecoderView, *given: Any) -> Tensor:
        calls.append(given)
        if len(calls) == 4:
            raise Killed
        return losses(self, *given)

    monkeypatch.setattr(DecoderView, "masked_losses", dying)
    with pytest.raises(Killed):
        planner.plan(view(Cache(tmp_path / "cut")))
    resumed = view(Cache(tmp_path / "cut"))
    assert planner.plan(resumed) == plan
    assert len(calls) == 4 + 3  # three steps were kept
    for asked in (whole, resumed):
        del asked.diagnostics["policy"]["seconds"]
    assert resumed.diagnostics == whole.diagnostics
    planner.plan(view(Cache(tmp_path / "cut")))
    assert len(calls) == 7  # what is finished is taken as it is


def test_a_run_that_is_killed_goes_on(typed: Callable[..., Any], tmp_path: Path) -> None:
    """SIGKILL in the middle of a run; the plan and the measures are those of a run that nobody killed."""
    command = [
        *("planner=policy_gradient", "planner.amount=0.3", "planner.steps=60", "planner.samples=2", "planner.batch=2"),
        *("planner.length=32", "planner.lr=0.05", "planner.keep_every=0", "planner.held_out=2", "method=none"),
        *("calibration.windows=2", "calibration.length=64", "evaluation=[embedded-a]", "evaluation_limit=2"),
    ]
    records = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "harness", *command, f"records={records}"],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline and steps_kept(records) < 5:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = steps_kept(records)
    assert process.returncode == -signal.SIGKILL and 5 <= kept < 60
    resumed = typed(*command, f"records={records}").record
    whole = typed(*command, f"records={tmp_path / 'whole'}").record
    assert whole["status"] == "ok" and resumed["fingerprint"] == whole["fingerprint"]
    for record in (resumed, whole):
        del record["plan"]["policy"]["seconds"]
    assert resumed["plan"] == whole["plan"] and resumed["measures"] == whole["measures"]


def steps_kept(records: Path) -> int:
    """How many steps the state in the cache has behind it."""
    for path in records.rglob("policy*gradient_*.json"):
        try:
            return len(json.loads(path.read_text())["value"]["losses"])
        except (OSError, ValueError):
            return 0
    return 0


def test_the_schedule_of_the_paper_is_foreseen() -> None:
    """30.7 million tokens, and as many in fewer and larger forwards; the dense weights wait for the metric."""
    geometry = of_facts(OmegaConf.load(CONF / "model/llama2-7b.yaml").geometry)
    work = Work(32, 128, 1024, 16384, 2048, 2, True, True, Budget(0.5))
    paper, larger = PolicyGradient(), PolicyGradient(samples=16, steps=1875, lr=0.016)
    metric, judged = 2 * 128 * 1024, 2 * 32 * 128
    for planner in (paper, larger):
        assert planner.steps * planner.samples == 30_000
        assert planner.cost(geometry, work).forwards == 15_000 * 2 * 8 * 128 + metric + judged
        assert planner.cost(geometry, work).kept_bytes == 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert replace(paper, start="even").cost(geometry, work).kept_bytes == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": 1}, "planner.samples has to be at least 2"),
        ({"amount": 1.0}, "planner.amount=1 has to be a fraction"),
        ({"lr": 0.0}, "planner.lr has to be above 0"),
        ({"length": 1}, "planner.length at least 2"),
    ],
)
def test_mistakes_are_sentences(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        PolicyGradient(**settings)


def test_more_than_all_units_is_refused() -> None:
    with pytest.raises(Refusal, match="cannot go"):
        replace(SHORT, amount=0.9, keep_first=3).plan(view())
