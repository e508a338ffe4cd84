"""The inverse of one matrix for many shifts, each way, against a solution in float64."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from helpers import inputs, seen_by

from harness.core import linalg
from harness.core.linalg import inverse_of_lower, square_of_lower
from harness.core.resolvent import Resolvent, Way
from harness.core.scaled import Scaled
from harness.core.statistic import gram

BOUNDS = {"nodes": 2e-3}


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("rho", [1e-3, 0.02, 0.1, 0.117, 1.0, 3.3, 1e3])
def test_every_way_is_the_inverse(way: Way, rho: float) -> None:
    """Relative to what it is applied to, eigenvalue by eigenvalue."""
    matrix = Scaled(seen_by(gram, inputs(300, 48)), 0.01, "ridge first").matrix
    values, vectors = torch.linalg.eigh(matrix.double())
    given = Resolvent(matrix, way)(rho)
    assert given.dtype == torch.float32
    through = (vectors.T @ given.double() @ vectors).diagonal() * (values + rho)
    assert float((through - 1).abs().max()) < BOUNDS.get(way, 1e-4)


@pytest.mark.parametrize("way", get_args(Way))
@pytest.mark.parametrize("rho", [0.02, 0.1, 0.117, 1.0, 3.3])
def test_halves_are_right_to_a_share_of_the_norm(way: Way, rho: float) -> None:
    matrix = Scaled(seen_by(gram, inputs(300, 48)), 0.01, "ridge first").matrix
    exact = rho * torch.linalg.inv(matrix.double() + rho * torch.eye(48))
    lacks = torch.linalg.matrix_norm(Resolvent(matrix, way).halves(rho).double() - exact, ord=2)
    assert float(lacks) < 1e-3 and Resolvent(matrix, way).halves(rho).dtype == torch.float16


def test_nodes_stay() -> None:
    """A ρ between the same nodes costs no factor."""
    matrix = Scaled(seen_by(gram, inputs(300, 48)), 0.01, "ridge first").matrix
    resolvent = Resolvent(matrix, "nodes")
    resolvent(0.3)
    there = set(resolvent._at)
    resolvent(0.4)
    assert set(resolvent._at) == there
    resolvent(1.1)
    assert len(resolvent._at) == len(there) + 1


@pytest.mark.parametrize("width", [7, 8, 29])
def test_triangles_by_halves(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linalg, "HALVED_FROM", 4)
    lower = torch.linalg.cholesky(torch.eye(width, dtype=torch.float64) + 0.1)
    torch.testing.assert_close(square_of_lower(lower), lower.T @ lower)
    torch.testing.assert_close(inverse_of_lower(lower) @ lower, torch.eye(width, dtype=torch.float64))
