"""Taylor scores against autograd on the whole model, and the weights that go with a sub-layer against surgery."""

from __future__ import annotations

import pytest
from helpers import TINY, tiny, windows

from harness.calibration.views.structure import DecoderView
from harness.core.structure import Cut, Plan, Unit
from harness.models.decoder import decoder_of
from harness.models.surgery import operate
from harness.planners.taylor import Taylor
from tests.calibration.views.test_structure_view import losses

TOKENS = windows(3)


def scores(asked: DecoderView, planner: Taylor) -> dict[Unit, float]:
    planner.plan(asked)
    return {Unit(one["part"], one["block"]): one["score"] for one in asked.diagnostics["scores"]}


@pytest.mark.parametrize("score", ["gradient", "weight"])
@pytest.mark.parametrize("name", ["llama", "qwen3", "opt", "phi", "gpt_neox", "gemma2"])
def test_blocks(name: str, score: str) -> None:
    decoder = decoder_of(tiny(name))
    asked = DecoderView(decoder, [TOKENS], decoder.indices)
    found = scores(asked, Taylor(keep_first=0, keep_last=0, score=score))
    for parameter in decoder.model.parameters():
        parameter.requires_grad_(True)
    losses(decoder.model, TOKENS).mean().backward()
    for index in decoder.indices:
        own = [(key, one) for key, one in decoder.block(index).named_parameters() if key.endswith(".weight")]
        terms = [(one * one.grad if score == "gradient" else one).detach() for _, one in own]
        expected = sum(float(term.abs().double().sum()) for term in terms)
        assert found[Unit("block", index)] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_sublayers(name: str) -> None:
    """The weights that a model loses with a sub-layer, biases left out, are those that its magnitude sums."""
    decoder = decoder_of(tiny(name))
    asked = DecoderView(decoder, [TOKENS], decoder.indices)
    found = scores(asked, Taylor(keep_first=0, keep_last=0, score="weight", part="sublayer"))
    for part in ("attention", "mlp"):
        smaller = operate(decoder_of(tiny(name)), Plan(Cut(frozenset({Unit(part, 1)}))))
        left = set(dict(smaller.model.named_parameters()))
        gone = [one for key, one in decoder.model.named_parameters() if key not in left and key.endswith(".weight")]
        expected = sum(float(one.detach().abs().double().sum()) for one in gone)
        assert gone and found[Unit(part, 1)] == pytest.approx(expected, rel=1e-5)
