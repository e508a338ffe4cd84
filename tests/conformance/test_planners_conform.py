"""Promises of every planner, for every planner there is: found by enumeration."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from helpers import components, quick, tiny, windows

from harness.calibration.views.structure import DecoderView
from harness.core import checked
from harness.core.cost import removed
from harness.core.structure import Cut
from harness.models.decoder import decoder_of
from harness.models.gates import gated
from harness.models.surgery import operate
from harness.session import _form

PLANNERS = {name: quick(planner) for name, planner in components("planner").items()}
BLOCKS = 4
TOKENS = windows(4)
ENDS = {"keep_first", "keep_last"}
FAMILIES = ("llama", "opt", "gpt_neox")


def variants(name: str) -> dict[str, Any]:
    """A planner as it is and with amounts of every kind that it takes, blocks that stay, and means of what goes.

    No more than a block stays at each end, as there are few.
    """
    planner = PLANNERS[name]
    has = {field.name for field in fields(planner)}
    planner = replace(planner, **{end: min(1, getattr(planner, end) or 0) for end in ENDS & has})
    found = {name: planner}
    if {"amount", "of"} <= has:
        for of, amount in (("linears", 0.3), ("parameters", 0.1)):
            found[f"{name} of {of}"] = replace(planner, amount=amount, of=of)
    if "part" in has:
        found |= {f"{label} by sub-layers": replace(one, part="sublayer") for label, one in found.items()}
        found |= {f"{name} of {part}": replace(planner, part=part) for part in ("attention", "mlp")}
    if has >= ENDS | {"update"}:
        means = {"update": "mean", "keep_first": 1}
        with_means = {label: one for label, one in found.items() if one.of is None}
        found |= {f"{label} with means": replace(one, **means) for label, one in with_means.items()}
    if has >= ENDS:
        without_means = {label: one for label, one in found.items() if not label.endswith("with means")}
        found |= {f"{label} with ends": replace(one, keep_first=1, keep_last=1) for label, one in without_means.items()}
    return found


VARIANTS = {label: one for name in PLANNERS for label, one in variants(name).items()}


def drawn(count: int, length: int | None = None) -> torch.Tensor:
    return windows(count, seed=1)[:, :length]


def view(family: str = "llama", seed: int = 0) -> DecoderView:
    decoder = decoder_of(tiny(family, num_hidden_layers=BLOCKS))
    return DecoderView(decoder, list(TOKENS.split(2)), decoder.indices, seed=seed, draw=drawn)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("label", VARIANTS)
def test_a_plan_fits_and_the_model_stays_as_it_was(label: str, family: str) -> None:
    """Units that the model has; what was told can be written; nothing is changed, hooked or set aside."""
    asked = view(family)
    model = asked._decoder.model
    form, before = _form(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    plan = VARIANTS[label].plan(asked)
    assert checked.plan(label, plan, asked.geometry) is plan
    assert Cut.from_json(json.loads(json.dumps(plan.edit.json()))) == plan.edit
    json.dumps(asked.diagnostics, allow_nan=False)
    assert _form(model) == form
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("label", VARIANTS)
def test_the_same_seed_gives_the_same_plan(label: str) -> None:
    first, again = (VARIANTS[label].plan(view(seed=3)) for _ in range(2))
    assert first.edit == again.edit and first.tensors.keys() == again.tensors.keys()
    assert all(torch.equal(tensor, again.tensors[name]) for name, tensor in first.tensors.items())


@pytest.mark.parametrize("label", [label for label, one in VARIANTS.items() if hasattr(one, "amount")])
def test_an_amount_is_met_to_one_unit(label: str) -> None:
    """No less than was asked for, and one unit fewer would be less."""
    planner, asked = VARIANTS[label], view()
    of = planner.of or ("blocks" if planner.part == "block" else "sublayers")
    units = planner.plan(asked).edit.units
    assert units and removed(Cut(units), asked.geometry, of) >= planner.amount
    assert min(removed(Cut(units - {unit}), asked.geometry, of) for unit in units) < planner.amount


@pytest.mark.parametrize("label", [label for label in VARIANTS if label.endswith("with ends")])
def test_the_ends_stay(label: str) -> None:
    edit = VARIANTS[label].plan(view()).edit
    assert edit and {unit.block for unit in edit.units} <= set(range(1, BLOCKS - 1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("label", VARIANTS)
def test_trying_a_plan_is_doing_it(label: str, family: str) -> None:
    """Gates and surgery agree to the bit where a plan brings no tensors of its own; constants are added elsewhere."""
    asked = view(family)
    plan = VARIANTS[label].plan(asked)
    if plan.tensors:
        return
    with torch.no_grad():
        with gated(asked._decoder, plan.edit, plan.shifts):
            tried = asked._decoder.model(TOKENS, use_cache=False).logits
        done = operate(asked._decoder, plan).model(TOKENS, use_cache=False).logits
    if plan.shifts:
        torch.testing.assert_close(done, tried, rtol=1e-4, atol=1e-4)
    else:
        assert torch.equal(tried, done)
