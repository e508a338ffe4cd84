"""The feed-forward part of one block over its calibration tokens: what both variants start from.

Shapes: L tokens of one window, D hidden size, F feed-forward size.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness.core.interfaces import FeedForward, LinearMethod, Pruned, Site
from harness.core.linalg import is_short_on_gpu
from harness.core.pattern import Pattern
from harness.core.statistic import ActivationStats, Gram
from harness.methods.each import prune_group, prune_one
from harness.methods.sparsellm.updates import Penalties
from harness.runtime.memory import OffloadableTensors

Weights = Mapping[Site, Tensor]


@dataclass
class Trace:
    """Mean squared errors by epoch: of the part's outputs (the paper's figure 3), and ‖y − W_down p‖² for its p.

    p is not computed after the last epoch, nor told by the released variant. `raised` are dampings that had to be
    raised, `ended` says why there were fewer epochs than asked for.
    """

    loss: list[float] = field(default_factory=list)
    coupling: list[float] = field(default_factory=list)
    raised: list[str] = field(default_factory=list)
    ended: str = ""

    def add(self, errors: Sequence[float]) -> None:
        """Add one epoch: the loss, and the coupling where there is one."""
        self.loss.append(errors[0])
        self.coupling.extend(errors[1:])

    @property
    def got_worse(self) -> bool:
        """True if the last weights of finite error are no better than the first epoch's, or are those."""
        finite = [value for value in self.loss if math.isfinite(value)]
        stuck = len(self.loss) > 1 and len(finite) == 1
        return stuck or not finite or finite[-1] > finite[0]

    @property
    def facts(self) -> dict[str, Any]:
        """For the record, in which a number that is not finite is null."""
        facts: dict[str, Any] = {
            name: [value if math.isfinite(value) else None for value in values]
            for name, values in (("loss", self.loss), ("coupling", self.coupling))
        }
        return facts | ({"raised": self.raised} if self.raised else {}) | ({"ended": self.ended} if self.ended else {})


class Problem(NamedTuple):
    """The problem to solve: the part's dense weights (O, I), what is asked of them, and its inputs.

    `x` are the inputs (L, D) window by window, `gram` is their Gram matrix, and `stats` what `inner` saw of them.
    """

    part: FeedForward
    dense: Weights
    patterns: Mapping[Site, Pattern]
    inner: LinearMethod
    penalties: Penalties
    x: OffloadableTensors
    gram: Gram
    stats: ActivationStats

    def prune(self, site: Site, weight: Tensor, stats: ActivationStats) -> Pruned:
        """The inner method's answer to a float32 weight, in the dtype of the model."""
        pruned = prune_one(self.inner, site, weight, stats, self.patterns[site])
        return pruned._replace(weight=pruned.weight.to(self.dense[site].dtype))

    def prune_together(
        self, sites: Sequence[Site], weights: Sequence[Tensor], stats: ActivationStats
    ) -> dict[Site, Pruned]:
        """The same for matrices that read the same inputs; `ok` may be left open."""
        pruned = prune_group(self.inner, sites, dict(zip(sites, weights, strict=True)), stats, self.patterns)
        return {site: one._replace(weight=one.weight.to(self.dense[site].dtype)) for site, one in pruned.items()}

    def before_activation(self, x: Tensor, weights: Weights) -> tuple[Tensor, Tensor | None]:
        """W_up x and W_gate x with their biases, (L, F) in float32; None where there is no gate."""
        outputs = []
        for site in self.part.readers:
            given = product(x, weights[site])
            outputs.append(given + self.part.biases[site] if site in self.part.biases else given)
        if not self.part.gated:
            return outputs[0], None
        gate, up = outputs if len(outputs) == 2 else outputs[0].chunk(2, dim=-1)
        return up, gate

    def by_reader(self, up: Tensor, gate: Tensor | None) -> dict[Site, Tensor]:
        """Quantities (L, F) of W_up x and W_gate x as those (L, O) of the matrices that read x."""
        outputs = [up] if gate is None else [gate, up]
        if len(outputs) > len(self.part.readers):
            outputs = [torch.cat(outputs, dim=-1)]
        return dict(zip(self.part.readers, outputs, strict=True))

    def hidden(self, up: Tensor, gate: Tensor | None) -> Tensor:
        """Input (L, F) of `down`: φ(gate) ⊙ up, or φ(up)."""
        return self.part.activation(up) if gate is None else self.part.activation(gate) * up

    def squared_error(self, up: Tensor, gate: Tensor | None, y: Tensor, down: Tensor) -> Tensor:
        """Σ of squares of what the outputs lack of y (L, D), for W_down (D, F) in float32."""
        return squared_sum(self.hidden(up, gate) @ down.T - y)

    def target(self, hidden: Tensor) -> Tensor:
        """The dense part's output y (L, D) without its bias, in the model's dtype, from what `down` reads (L, F)."""
        down = self.dense[self.part.down]
        return product(hidden.to(down.dtype), down).to(down.dtype)


def squared_sum(difference: Tensor) -> Tensor:
    """Σ of squares, summed in float64."""
    return difference.square().sum(dtype=torch.float64)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x Wᵀ in float32."""
    if is_short_on_gpu(x) and x.dtype == weight.dtype:
        return torch.mm(x, weight.T, out_dtype=torch.float32)
    return x.float() @ weight.float().T
