"""The order of magnitudes against sorting."""

from __future__ import annotations

import pytest
import torch
from helpers import METHODS, normal

from harness.core.histogram import CLASSES, MagnitudeHistogram
from harness.core.pattern import Unstructured, keep


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_rank_is_that_of_sorting(dtype: torch.dtype) -> None:
    """With zeros, ties, numbers below the smallest normal one, and the largest."""
    weight = normal(12, 40, dtype=dtype)
    weight[0] = 0
    weight[1, :20] = weight[2, 0]
    weight[3] *= torch.finfo(dtype).tiny / 8
    weight[4, 0] = torch.finfo(dtype).max
    magnitudes, order = weight.abs(), MagnitudeHistogram()
    expected = magnitudes.flatten().sort().values
    for rank in range(1, magnitudes.numel() + 1):
        found = order.smallest(magnitudes, rank)
        assert found.shape == (1, 1) and found.dtype == dtype
        assert torch.equal(found.flatten()[0], expected[rank - 1]), rank
    assert order.up_to is not None and order.up_to.shape == (CLASSES,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.999, 1.0])
def test_magnitude_by_the_order_is_magnitude(dtype: torch.dtype, sparsity: float) -> None:
    weight, method = normal(16, 24, dtype=dtype), METHODS["magnitude"]
    one = method.prune(weight, MagnitudeHistogram(), Unstructured(sparsity))
    other = method.prune(weight, None, Unstructured(sparsity))
    assert torch.equal(one.weight, other.weight) and torch.equal(one.kept, other.kept)
    assert torch.equal(other.kept, keep(weight.abs(), Unstructured(sparsity), "matrix", "threshold"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpu_finds_the_same(dtype: torch.dtype) -> None:
    magnitudes, order = normal(512, 384, dtype=dtype).abs().cuda(), MagnitudeHistogram()
    expected = magnitudes.flatten().float().sort().values
    for rank in (1, 2, 98_304, 150_000, magnitudes.numel()):
        assert float(order.smallest(magnitudes, rank)) == float(expected[rank - 1])
