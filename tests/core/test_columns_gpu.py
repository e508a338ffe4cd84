"""The kernel against the loop, to the bit; needs a GPU."""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, normal, pattern

from harness.core import columns
from harness.core.pattern import Unstructured, keep


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("asked", ["0.5", "0.9", "2of4", "1of4", "4of8"])
@pytest.mark.parametrize("obs", [True, False], ids=["obs", "other"])
@pytest.mark.parametrize(("outputs", "width"), [(37, 40), (1000, 128), (5, 8)])
def test_one_kernel_walks_as_the_loop_does(outputs: int, width: int, obs: bool, asked: str) -> None:
    seen = inputs(4 * width, width).cuda()
    factor = torch.linalg.cholesky(torch.linalg.inv(seen.T @ seen), upper=True)
    weight, wanted = normal(outputs, width).cuda(), pattern(asked)
    divisor = factor.diagonal() ** 2 if obs else 1 / (seen.square().sum(dim=0) + 1 / factor.diagonal() ** 2)
    chosen = None
    if isinstance(wanted, Unstructured):
        chosen = keep(weight**2 / divisor, wanted, "matrix", quota="threshold")
    slow = columns._walk(weight, factor, divisor, chosen, wanted)
    for ours, theirs in zip(columns.prune_columns(weight, factor, divisor, wanted), slow, strict=True):
        assert torch.equal(ours, theirs)
