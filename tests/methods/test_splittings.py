"""ALPS and ADMM beside SparseGPT on the embedded model: the same blocks, the same inputs, matrix by matrix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import pattern
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.calibration.walk.blocks import stream
from harness.core.statistic import Gram, gram
from harness.data.corpora import EMBEDDED
from harness.data.windows import Calibration, calibration_windows
from harness.methods.admm import ADMM
from harness.methods.alps import ALPS
from harness.methods.sparsegpt import SparseGPT
from harness.models.decoder import decoder_of


@pytest.fixture(scope="module")
def matrices() -> list[tuple[torch.Tensor, Gram]]:
    """Every weight (O, I) of the embedded model with its inputs' Gram matrix, of the dense model."""
    folder = EMBEDDED / "embedded-llama"
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = calibration_windows(Calibration("embedded-a", windows=16), tokenizer, 128)
    blocks = range(model.config.num_hidden_layers)
    found = []
    with torch.no_grad():
        for block in stream(decoder_of(model), [tokens], blocks, edited=False, label=""):
            seen = block.observe(gram)
            found += [(weight.clone(), seen[site]) for site, weight in block.weights.items()]
    return found


def squared_error(method: Any, asked: str, weight: torch.Tensor, seen: Gram) -> float:
    change = (method.prune(weight, seen, pattern(asked)).weight - weight).double()
    return float((change @ seen.matrix.double() * change).sum())


@pytest.mark.parametrize("asked", ["0.5", "0.7", "2of4"])
@pytest.mark.parametrize("method", [ALPS(), ADMM()], ids=["alps", "admm"])
def test_no_matrix_has_a_larger_error_than_by_sparsegpt(
    method: Any, asked: str, matrices: list[tuple[torch.Tensor, Gram]]
) -> None:
    ratios = [
        squared_error(method, asked, weight, seen) / squared_error(SparseGPT(), asked, weight, seen)
        for weight, seen in matrices
    ]
    assert len(ratios) >= 7 and max(ratios) <= 1, sorted(ratios)[-3:]
