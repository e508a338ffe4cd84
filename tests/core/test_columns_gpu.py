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
@pytest.mark.parametrize(("outputs", "width"), [(37, 40), (1000, 128), (5, 8)])
def test_one_kernel_walks_as_the_loop_does(outputs: int, width: int, asked: str) -> None:
    seen = inputs(4 * width, width).cuda()
    factor = torch.linalg.cholesky(torch.linalg.inv(seen.T @ seen), upper=True)
    weight, wanted = normal(outputs, width).cuda(), pattern(asked)
    diagonal = factor.diagonal().clone()
    chosen = None
    if isinstance(wanted, Unstructured):
        chosen = keep(weight**2 / diagonal**2, wanted, "matrix", quota="threshold")
    slow = columns._walk(weight, factor, diagonal, chosen, wanted)
    for ours, theirs in zip(columns.prune_columns(weight, factor, wanted), slow, strict=True):
        assert torch.equal(ours, theirs)
