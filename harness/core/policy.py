"""Learning which units stay by policy gradient: masks are drawn from probabilities, and only losses are looked at.

Gao et al. 2025 (arXiv 2406.10576) in the order of their released `pgpruning.py`: masks, losses, baseline, gradient,
projection. Units of each part (heads, channels) have probabilities and a budget of their own. Shapes: K samples, B
blocks, U units of a block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from harness.core.structure import Part

EPSILON = 1e-7
"""Added to a probability and to its complement under the root."""
TOLERANCE, HALVINGS = 1e-3, 21
"""Units by which a projection may miss the budget, and how often it halves its interval at most."""
FLAT = 1e-8
"""Added to the standard deviation of a metric."""


class Policy(NamedTuple):
    """The probability of each unit to stay (B, U), by part; the moving average of the loss, None before the first
    update; how many updates were made."""

    scores: Mapping[Part, Tensor]
    baseline: float | None = None
    updates: int = 0


class Rule(NamedTuple):
    """The settings of an update: the share of units that stays, the steps and the first rate of the schedule, masks
    drawn a step, and the window of the moving average."""

    keep: float
    steps: int
    lr: float
    samples: int
    window: int


def drawn(scores: Mapping[Part, Tensor], samples: int, generator: torch.Generator) -> dict[Part, Tensor]:
    """Masks (K, B, U), True with the probability of each unit, all independently."""
    return {
        part: torch.rand(samples, *one.shape, generator=generator, device=one.device) < one
        for part, one in scores.items()
    }


def updated(policy: Policy, masks: Mapping[Part, Tensor], losses: Tensor, rule: Rule) -> Policy:
    """The policy behind one step.

    Samples whose loss is not finite are left out, but still counted by the K − 1 that the gradient is divided by; if
    none is finite, nothing changes.

    Args:
        masks: (K, B, U) by part, as they were drawn.
        losses: (K,), of the model under each of them.
    """
    valid = losses.isfinite()
    if not valid.any():
        return policy
    found = losses[valid].float()
    mean = found.mean()
    before = mean if policy.baseline is None else mean.new_tensor(policy.baseline)
    weight = mean.new_tensor(1.0 / rule.window)
    baseline = before * (1.0 - weight) + mean * weight
    lr = rate(policy.updates, rule.steps, rule.lr)
    scores = {
        part: projected(one - lr * gradient(one, masks[part][valid], found - baseline, rule.samples), rule.keep)
        for part, one in policy.scores.items()
    }
    return Policy(scores, float(baseline), policy.updates + 1)


def gradient(scores: Tensor, masks: Tensor, advantages: Tensor, samples: int) -> Tensor:
    """Estimate (B, U) of the gradient of the expected loss: Σ_k (L_k − δ) (m_k − s) / √(s (1 − s)) / (K − 1).

    The released code has the root where the score function of a Bernoulli variable, (m − s) / (s (1 − s)), has none:
    units near 0 and 1 move less.

    Args:
        advantages: (K,), how much more than the baseline each sample lost.
        samples: how many were drawn.
    """
    directions = (masks.float() - scores) / torch.sqrt((scores + EPSILON) * (1 - scores + EPSILON))
    weights = advantages.to(scores.device)[:, None, None]
    return (weights * directions).sum(dim=0) / (samples - 1)


def projected(scores: Tensor, keep: float) -> Tensor:
    """Scores lowered by one number, none where their sum is within the budget already, and clamped to [0, 1].

    It is found by bisection: Σ clamp(s − v, 0, 1) = `keep` · units, over all blocks together.
    """
    budget = scores.numel() * keep

    def beyond(lowered: Tensor | float) -> float:
        return float((scores - lowered).clamp(0, 1).flatten().sum() - budget)  # in float32, as it decides where to stop

    if beyond(0.0) < 0:
        return scores.clamp(0, 1)
    low, high = scores.new_zeros(()), scores.max()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        excess = beyond(middle)
        if abs(excess) < TOLERANCE:
            break
        low, high = (low, middle) if excess < 0 else (middle, high)
    return (scores - middle).clamp(0, 1)


def rate(update: int, steps: int, first: float) -> float:
    """The learning rate of an update, counted from 0: half a cosine from the first one to 0."""
    return first * (1 + math.cos(math.pi * update / steps)) / 2


def sigmap(metric: Tensor, keep: float) -> Tensor:
    """Scores (B, U) of a metric: the sigmoid of its z-scores in each block, shifted to the mean `keep`, in [0, 1]."""
    centred = metric - metric.mean(dim=1, keepdim=True)
    spread = metric.std(dim=1, keepdim=True) if metric.shape[1] > 1 else torch.zeros_like(metric)
    flat = torch.sigmoid(centred / (spread + FLAT))
    return (flat + (keep - flat.mean(dim=1, keepdim=True))).clamp(0, 1)


def reaching(scores: Tensor, keep: float) -> Tensor:
    """True where a score is at least the one that stands at ⌊(1 − `keep`) · units⌋ of all, ascending.

    Ties stay, so that more may be left than `keep` says: the released final mask, and of a row that of its start.
    """
    ordered = scores.flatten().sort().values
    return scores >= ordered[min(int(scores.numel() * (1 - keep)), scores.numel() - 1)]


def ascending(scores: Tensor) -> list[tuple[int, int]]:
    """The units, as block and index among the rows and columns, of the lowest score first; ties as they stand."""
    order = scores.flatten().cpu().argsort(stable=True)
    return [divmod(place, scores.shape[1]) for place in order.tolist()]
