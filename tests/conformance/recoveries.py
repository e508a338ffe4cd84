"""Recoveries of a few lines that the harness does not have: that its seam carries them too is tested with its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.core.component import completed
from harness.core.recoveries import Adapter, ScoreView, Trial
from harness.core.training import Training
from harness.recovery.kept_weights import KeptWeights
from harness.recovery.lora import Lora

hooked = partial(completed, "recovery")
"""As a run does with a recovery that nobody announced; what builds on an announced one has the hooks from there."""


@dataclass(frozen=True)
class MaskedLora(Lora):
    """MaskLoRA (Zimmer et al. 2023, arXiv 2312.15230): W + s M ⊙ (B A), M the mask."""

    keeps_zeros = True

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter:
        plain = super().adapter(weight, kept, generator)
        return Adapter(plain.parts, lambda weight, parts: plain.delta(weight, parts) * kept)


@dataclass(frozen=True)
class LoraThenMask(Lora):
    """LoRA-prune of the same paper: trained without the mask, merged with it."""

    keeps_zeros = True

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter:
        plain = super().adapter(weight, kept, generator)
        return plain._replace(merges=lambda weight, parts: plain.delta(weight, parts) * kept)


@dataclass(frozen=True)
class Sensitive(KeptWeights):
    """SPEFT (arXiv 2412.13488) with SNIP's score |w g|, the same share of every matrix: zeros score 0."""

    share: float = 0.125

    def supports(self, view: ScoreView) -> Mapping[str, Tensor]:
        scores = {site: (view.weights[site] * one).abs().flatten() for site, one in view.gradients(4).items()}
        best = {site: one.topk(round(self.share * one.numel())).indices for site, one in scores.items()}
        return {
            site: torch.zeros(one.shape, dtype=torch.bool).index_fill(0, best[site], True).view_as(view.weights[site])
            for site, one in scores.items()
        }

    def trained(self, outputs: int, inputs: int, kept: float) -> float:
        return round(self.share * outputs * inputs)


@hooked
@dataclass(frozen=True)
class NormsAndBiases(Training):
    """The cheapest retraining of PERP (arXiv 2312.15230): no matrix."""

    keeps_zeros, vectors = True, True

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter | None:
        if weight.dim() == 2:
            return None
        return Adapter({"added": torch.zeros(len(weight))}, lambda weight, parts: parts["added"])

    def trained(self, outputs: int, inputs: int, kept: float) -> float:
        return 0


@hooked
@dataclass(frozen=True)
class GroupedScales(Training):
    """SPP (Lu et al. 2024, arXiv 2405.16057): W ⊙ (1 + s R(A) ⊙ b), rows of A (m, I) repeated over the outputs."""

    rows: int = 4
    keeps_zeros = True

    def adapter(self, weight: Tensor, kept: Tensor, generator: torch.Generator) -> Adapter:
        outputs, inputs = weight.shape
        a = torch.empty(self.rows, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator)

        def delta(weight: Tensor, parts: Mapping[str, Tensor]) -> Tensor:
            repeated = parts["A"].repeat_interleave(outputs // self.rows, dim=0)
            return 2 * repeated * parts["b"] * weight.float()

        return Adapter({"A": a, "b": torch.zeros(outputs, 1)}, delta)

    def trained(self, outputs: int, inputs: int, kept: float) -> float:
        return self.rows * inputs + outputs


@dataclass(frozen=True)
class Importance(MaskedLora):
    """IST (Yao et al. 2024, arXiv 2410.11772, released `ist.py`): blocks drawn by an importance that is learned."""

    every: int = 2
    candidates: int = 3
    seen: list[Any] = field(default_factory=list, compare=False)

    def select(self, step: int, state: Any, trial: Trial) -> tuple[Collection[int], Any]:
        scores = dict(zip(trial.blocks, state or [0.0] * len(trial.blocks), strict=True))
        if step and step % self.every == 0:
            drawn = [trial.generator.sample(trial.blocks, len(trial.blocks) // 2) for _ in range(self.candidates)]
            losses = torch.tensor(trial.losses([dict.fromkeys(one, 0.25) for one in drawn]))
            rewards = (-losses).exp() - (-losses).exp().mean()
            p = {index: float(torch.sigmoid(torch.tensor(score))) for index, score in scores.items()}
            for one, reward in zip(drawn, rewards.tolist(), strict=True):
                for index in one:
                    scores[index] += 10 * reward * p[index] * (1 - p[index])
        chosen = trial.generator.choices(
            trial.blocks, [float(torch.sigmoid(-torch.tensor(s))) for s in scores.values()]
        )
        self.seen.append((step, chosen))
        return chosen, list(scores.values())
