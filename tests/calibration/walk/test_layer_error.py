"""Layer errors, against outputs computed token by token."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import inputs, normal, seen_by

from harness.calibration.walk.layer_error import layer_error
from harness.core.statistic import gram


def test_it_is_the_share_of_the_outputs_square_that_is_lost() -> None:
    x, weight = inputs(80, 12), normal(5, 12)
    pruned = weight * (normal(5, 12, seed=3) > 0)
    wanted = (x @ (weight - pruned).T).square().sum() / (x @ weight.T).square().sum()
    assert float(layer_error(weight, pruned, seen_by(gram, x))) == pytest.approx(float(wanted), rel=1e-5)


@pytest.mark.parametrize("method", ["magnitude", "sparsegpt", "asymmetric"])
def test_a_record_has_that_of_every_matrix_and_its_seconds_apart(typed: Callable, tmp_path: Path, method: str) -> None:
    base = [f"method={method}", "calibration.windows=4", "evaluation=[]", f"records={tmp_path}"]
    plain, told = typed(*base).record, typed(*base, "layer_error=true").record
    assert plain["fingerprint"] != told["fingerprint"] and "layer_error" not in plain["stages"]
    errors = {site: error for block in told["blocks"].values() for site, error in block["layer_error"].items()}
    assert errors.keys() == told["sites"].keys() and all(0 < error < 1 for error in errors.values())
    assert told["stages"]["layer_error"]["seconds"] > 0 and told["sparsity"] == plain["sparsity"]
    assert json.dumps(told)  # no number that JSON lacks


def test_none_where_nothing_is_pruned() -> None:
    weight = normal(5, 12)
    assert float(layer_error(weight, weight.clone(), seen_by(gram, inputs(80, 12)))) == 0
    assert torch.equal(weight, normal(5, 12))
