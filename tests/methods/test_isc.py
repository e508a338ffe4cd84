"""ISC beside SparseGPT: where the two agree, what the variants differ in, and what is said about settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import normal, pattern, seen_by
from torch import Tensor

from harness import catalogue
from harness.core.interfaces import Pruned
from harness.core.statistic import Gram, gram
from harness.methods.isc import ISC
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.runtime.errors import UserError

PATTERNS = ["0.3", "0.5", "0.8", "2of4", "1of4"]
every_pattern = pytest.mark.parametrize("asked", PATTERNS)


def related() -> Tensor:
    """Inputs (T, I) that repeat one another, so that H_mm and 1/[H⁻¹]_mm are far apart."""
    return normal(200, 8, seed=1) @ normal(8, 48, seed=2) + 0.3 * normal(200, 48, seed=3)


def pruned(method: Any, asked: str, matrix: Tensor | None = None) -> Pruned:
    weight = normal(32, 48)
    seen = seen_by(gram, related()) if matrix is None else Gram(matrix, 1)
    return method.prune(weight, seen, pattern(asked))


def same(one: Pruned, other: Pruned) -> bool:
    return torch.equal(one.weight, other.weight) and torch.equal(one.kept, other.kept)


@every_pattern
@pytest.mark.parametrize("dead", [0, 24])
def test_unrelated_inputs_make_it_sparsegpt(dead: int, asked: str) -> None:
    """A diagonal H has 1/[H⁻¹]_mm = H_mm: eq. 4 is twice the score of SparseGPT, dead inputs at one in both terms."""
    matrix = torch.diag(torch.logspace(-4, 0, 48) * (torch.arange(48) >= dead))
    assert same(pruned(ISC(), asked, matrix), pruned(SparseGPT(), asked, matrix))


@every_pattern
def test_related_inputs_do_not(asked: str) -> None:
    assert not torch.equal(pruned(ISC(), asked).kept, pruned(SparseGPT(), asked).kept)


@pytest.mark.parametrize("asked", ["2of4", "1of4", "4of8"])
def test_n_of_m_of_the_authors_is_sparsegpt(asked: str) -> None:
    assert same(pruned(ISC(variant="released"), asked), pruned(SparseGPT(), asked))


@every_pattern
def test_the_unit_of_the_inputs_is_none_of_its_concern(asked: str) -> None:
    """Inputs 1024 times as large change no bit, since that is a power of two."""
    matrix = seen_by(gram, related()).matrix
    assert same(pruned(ISC(), asked, matrix * 2.0**20), pruned(ISC(), asked, matrix))


def test_but_the_authors_add_what_has_different_units() -> None:
    """H_mm + 1/U_mm is H + √H where inputs are unrelated, so their unit moves the mask."""
    matrix, released = seen_by(gram, related()).matrix, ISC(variant="released")
    large, small = (pruned(released, "0.5", matrix * unit).kept for unit in (2.0**20, 2.0**-20))
    assert not torch.equal(large, small)


@pytest.mark.parametrize("variant", ["default", "released"])
@pytest.mark.parametrize("asked", ["0", "4of4"])
def test_without_sparsity_the_matrix_is_not_looked_at(asked: str, variant: Any) -> None:
    result = pruned(ISC(variant=variant), asked, torch.full((48, 48), torch.nan))
    assert torch.equal(result.weight, normal(32, 48)) and result.kept.all()


def test_the_damping_that_was_needed_is_that_of_the_score() -> None:
    """An eigenvalue of −0.05 of the mean diagonal: λ is 0.1 of it, and H_mm + 1/[H⁻¹]_mm = 2 (H_mm + λ)."""
    matrix = torch.diag(torch.tensor([1.0, 1.0, 1.0, -0.05]))
    left = 1.0 + 0.1 * 2.95 / 4, -0.05 + 0.1 * 2.95 / 4
    factor = (left[0] / left[1]) ** 0.5  # a weight in the last column that is this much larger is worth the same
    weight = torch.tensor([[1.0, 0.1, 0.1, 0.99 * factor], [1.0, 0.1, 0.1, 1.01 * factor]])
    result = ISC().prune(weight, Gram(matrix, 1), pattern("1of4"))
    assert result.kept.nonzero()[:, 1].tolist() == [0, 3] and result.note == "damping 0.1"


def test_settings_of_isc() -> None:
    assert catalogue.build("method", {"name": "isc", "variant": "released"}) == ISC(variant="released")
    with pytest.raises(UserError, match=r"method\.variant"):
        catalogue.build("method", {"name": "isc", "variant": "origin"})
    for wrong in ({"damping": 0.0}, {"blocksize": 0}):
        with pytest.raises(UserError, match=r"method.damping has to be above 0"):
            ISC(**wrong)
    assert "blocksize=6 is not divisible by 4" in str(ISC(blocksize=6).refuses(pattern("2of4"), (4, 12)))
    assert ISC(blocksize=6).refuses(pattern("0.5"), (4, 12)) is None


def test_sparsellm_takes_it_for_its_own_variant_only() -> None:
    assert SparseLLM(inner=ISC()).refuses(pattern("2of4"), (4, 12)) is None
    with pytest.raises(UserError, match=r"prunes with method\.inner=sparsegpt"):
        SparseLLM(inner=ISC(), variant="released")
