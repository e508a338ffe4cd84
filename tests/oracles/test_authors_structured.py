"""Planners' questions on a real model and real text against what the authors' own codes give there."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.calibration.structure_view import DecoderView
from harness.core.structure import Cut
from harness.data.windows import Calibration, calibration_windows
from harness.models.decoder import decoder_of
from harness.planners.block_influence import BlockInfluence

MODEL = "proxy-llama-11m"


@lru_cache
def authors(method: str) -> dict[str, Any]:
    """What the code named in the file gave for 32 windows of 512 tokens, in float32."""
    lines = (Path(os.environ["HARNESS_ASSETS"]) / "reported/authors_code_structured.jsonl").read_text().splitlines()
    return next(row for row in map(json.loads, lines) if (row["method"], row["model"]) == (method, MODEL))


@lru_cache
def view() -> DecoderView:
    return view_of(32)


def view_of(windows: int) -> DecoderView:
    """The model over so many windows of 512 tokens."""
    path = Path(os.environ["HARNESS_ASSETS"]) / "models" / MODEL
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().requires_grad_(False)
    tokens = calibration_windows(Calibration("c4-sample", windows, 512, 0), AutoTokenizer.from_pretrained(path), 512)
    decoder = decoder_of(model)
    return DecoderView(decoder, list(tokens.split(2)), decoder.indices)


@pytest.mark.assets
@pytest.mark.parametrize(("metric", "method"), [("cosine", "cosine influence"), ("relative_l1", "relative L1 update")])
def test_influence(metric: Any, method: str) -> None:
    scores = BlockInfluence(metric=metric)._scores(view())
    assert list(scores.values()) == pytest.approx(authors(method)["scores"], rel=1e-5)


@pytest.mark.assets
def test_gradients() -> None:
    """Σ |w · g| by block (shortened-llm) and by head and channel (LLM-Pruner, element-wise), from one pass."""
    taylor, heads, channels = ({} for _ in range(3))
    for block in view().gradients(view().windows):
        products = {site: (weight * block.gradients[site]).abs() for site, weight in block.weights.items()}
        taylor[block.index] = float(sum(product.sum() for product in products.values()))
        heads[block.index] = sum(block.by_unit("head", products).values()).tolist()
        channels[block.index] = torch.stack(list(block.by_unit("channel", products).values())).sum(0)
    known = authors("llm-pruner taylor param_first block-wise local")
    assert [taylor[index] for index in range(8)] == pytest.approx(
        authors("block Taylor (shortened-llm)")["scores"], rel=1e-4
    )
    for index in range(8):
        assert heads[index] == pytest.approx(known["head_scores"][index], rel=1e-3)
    assert channels[1][:8].tolist() == pytest.approx(known["channel_scores_block1_first8"], rel=1e-4)


@pytest.mark.assets
def test_distances_without_a_block() -> None:
    """Logit distance of the model without each block, 16 windows: what leave-one-out Shapley values are made of."""
    found = view().losses([Cut.of_blocks([block]) for block in range(8)], view().windows[:16], "distance").mean(1)
    assert found.tolist() == pytest.approx(authors("logit Shapley, leave-one-out")["absent_mean"], rel=1e-5)
