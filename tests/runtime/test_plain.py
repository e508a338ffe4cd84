"""What components tell, as JSON has it."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from harness.runtime.plain import plain


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (None, None),
        (True, True),
        (10**400, 10**400),
        (1.5, 1.5),
        (math.nan, None),
        (-math.inf, None),
        ("é\ud800", "é?"),
        ((1, [2.0, math.inf]), [1, [2.0, None]]),
        ({1: {"a": (2,)}, "b": {3}}, {"1": {"a": [2]}, "b": [3]}),
        (torch.tensor(0.5), 0.5),
        (torch.tensor([[1, 2]]), [[1, 2]]),
        (torch.tensor([True, False]), [True, False]),
        (np.float32(0.25), 0.25),
        (np.array([1.0, math.nan]), [1.0, None]),
        (object, "<class 'object'>"),
    ],
    ids=repr,
)
def test_a_value_as_json_has_it(value: Any, wanted: Any) -> None:
    made = plain(value)
    assert made == wanted and type(made) is type(wanted)
    assert json.loads(json.dumps(made, allow_nan=False, ensure_ascii=False)) == wanted
