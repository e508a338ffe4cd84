"""The policy-gradient update against enumeration and against the projection solved another way."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from harness.core.policy import Policy, Rule, ascending, drawn, gradient, projected, rate, reaching, sigmap, updated


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_gradient_is_that_of_the_expected_loss() -> None:
    """Over all masks with their probabilities: √(s (1 − s)) ∂E[L]/∂s, whatever the baseline."""
    scores, loss = (uniform(1, 5) * 0.8 + 0.1).double(), uniform(2**5, seed=1).double()
    masks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=5)), dtype=torch.float64)[:, None]  # (K, 1, U)

    def expected(at: Tensor) -> Tensor:
        return ((masks * at + (1 - masks) * (1 - at)).prod(dim=2)[:, 0] * loss).sum()

    wanted = torch.autograd.functional.jacobian(expected, scores) * (scores * (1 - scores)).sqrt()
    chances = (masks * scores + (1 - masks) * (1 - scores)).prod(dim=2)[:, 0]
    for baseline in (0.0, 3.0):
        found = gradient(scores, masks, chances * (loss - baseline), samples=2)
        assert torch.allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("keep", [0.1, 0.25, 0.4])
def test_a_projection_meets_the_budget_and_keeps_the_order(keep: float) -> None:
    """Solved by sorting: Σ clamp(s − v, 0, 1) is linear between its corners, at the scores and at the scores less 1."""
    scores = 1.2 * uniform(6, 40, seed=2) - 0.1
    corners = torch.cat([scores.flatten(), scores.flatten() - 1]).double().sort().values
    sums = (scores.flatten().double() - corners[:, None]).clamp(0, 1).sum(1)  # falls from corner to corner
    place = int((sums > keep * scores.numel()).sum())
    low, high, over, under = corners[place - 1], corners[place], sums[place - 1], sums[place]
    exact = low + (over - keep * scores.numel()) / (over - under) * (high - low)
    assert exact > 0
    assert torch.allclose(projected(scores, keep).double(), (scores.double() - exact).clamp(0, 1), atol=1e-4)


def test_a_projection_never_adds() -> None:
    scores = uniform(3, 8) * 0.5
    assert torch.equal(projected(scores, 0.9), scores)
    assert torch.equal(projected(scores + 0.6, 1.0), (scores + 0.6).clamp(0, 1))


def test_samples_that_are_not_finite_are_left_out_and_counted() -> None:
    scores = {"channel": uniform(2, 6) * 0.5}
    masks = drawn(scores, 3, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    rule = Rule(0.9, 10, 0.1, 3, 5)
    losses = torch.tensor([4.0, math.nan, 3.0])
    found = updated(Policy(scores), masks, losses, rule)  # type: ignore[arg-type]
    step = 0.1 * gradient(scores["channel"], masks["channel"][[0, 2]], torch.tensor([0.5, -0.5]), samples=3)
    assert torch.allclose(found.scores["channel"], (scores["channel"] - step).clamp(0, 1))
    assert found.baseline == 3.5
    nothing = updated(found, masks, torch.full((3,), math.nan), rule)
    assert nothing is found


def test_a_lucky_unit_becomes_likelier() -> None:
    """One channel is worth a lot: after some steps it stays and the others share what is left."""
    policy, rule = Policy({"channel": torch.full((1, 10), 0.5)}), Rule(0.5, 200, 0.1, 4, 5)
    for step in range(200):
        masks = drawn(policy.scores, 4, torch.Generator().manual_seed(step))
        policy = updated(policy, masks, 5.0 - masks["channel"][:, 0, 3].float(), rule)
    assert policy.scores["channel"][0, 3] > 0.95
    assert float(policy.scores["channel"].sum()) <= 5.0 + 1e-3
    assert ascending(policy.scores["channel"])[-1] == (0, 3)


def test_the_schedule_is_half_a_cosine() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for update in range(40):
        assert rate(update, 40, 0.02) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


def test_scores_of_a_metric_have_the_mean_that_is_kept() -> None:
    metric = uniform(4, 50, seed=3)
    scores = sigmap(metric, 0.5)
    assert torch.allclose(scores.mean(dim=1), torch.full((4,), 0.5), atol=1e-6)
    assert torch.equal(scores.argsort(dim=1, stable=True), metric.argsort(dim=1, stable=True))
    assert torch.allclose(sigmap(100 * metric, 0.5), scores, atol=1e-5)
    assert sigmap(metric[:, :1], 0.7).flatten().tolist() == pytest.approx([0.7] * 4)  # a single key/value group


def test_ties_with_the_threshold_stay() -> None:
    scores = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    assert int(reaching(scores, 0.5).sum()) == 5  # 4 were asked for
    assert ascending(scores)[:3] == [(0, 0), (1, 0), (1, 1)]
