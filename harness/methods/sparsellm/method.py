"""The component: its settings, what it observes, and the choice between what the epochs gave."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from harness.catalogue import component
from harness.core.costs import Cost, Work, observing
from harness.core.geometry import Geometry
from harness.core.interfaces import BlockView, FeedForward, LinearMethod, Pruned, Site
from harness.core.pattern import Pattern
from harness.core.statistic import ActivationStats, Statistic, gram, together
from harness.methods.each import EachLinear, as_block_method
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm.alternating import alternate
from harness.methods.sparsellm.chunks import windows_at_once
from harness.methods.sparsellm.problem import Problem
from harness.methods.sparsellm.released import released_epochs, replay
from harness.methods.sparsellm.updates import Penalties
from harness.runtime.errors import Refusal, UserError
from harness.runtime.memory import OffloadableTensors, joined

WINDOW_TENSORS = 10
"""About so many tensors as large as p, in float32, while the variables of one window, or of a chunk, move."""
UPDATES = 3
"""Times the launches of a forward that the updates of a window take, or of a chunk of windows."""


@component("method", "sparsellm")
@dataclass(frozen=True)
class SparseLLM:
    """Bai et al. 2024 (arXiv 2402.17946), algorithm 1: W, p, z (and s) in turn, for `epochs` rounds.

    Attention and the first epoch are the inner method's alone, so `epochs=1` is the inner method. From then on every
    matrix of the feed-forward part becomes argmin ‖t − W x‖² + λ ‖W − W¹‖² (t its auxiliary output, W¹ its weights so
    far, λ `damping` times the mean diagonal of the Gram matrix) and is pruned from there. A block whose outputs are
    further from the dense ones than after the first epoch keeps the weights of the first, unless `fallback` is off.

    `variant=released` is the authors' code (BaiTheBest/SparseLLM, 27fe26a), see `released.py`. `alpha`, `beta`, `gamma`
    weigh the constraints of the pre-activations, of the output and of the activation; null is 1 for each, for
    `released` what its code has (5 with a gate, 0.1 without).
    """

    inner: Any = field(default_factory=SparseGPT, metadata={"component": "method"})
    """The method that prunes attention, and each matrix in every epoch."""
    variant: Literal["default", "released"] = "default"
    """`released`: what the authors' code does where it differs."""
    epochs: int = 4
    """Rounds over the feed-forward part; 1 is the inner method alone."""
    alpha: float | None = None
    """α: weight of the pre-activations' constraint; null: 1, or the released code's."""
    beta: float | None = None
    """β: weight of the output's constraint; null: 1, or the released code's."""
    gamma: float | None = None
    """γ: weight of the activation's constraint; null: 1, or the released code's."""
    damping: float = 0.01
    """λ in units of the mean diagonal of the Gram matrix."""
    fallback: bool = True
    """Take the first epoch's weights where the outputs got worse."""

    statistic = gram

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise UserError(f"method.epochs={self.epochs} has to be at least 1.")
        if any(value is not None and value <= 0 for value in (self.alpha, self.beta, self.gamma, self.damping)):
            raise UserError("method.alpha, method.beta, method.gamma and method.damping have to be above 0.")
        if not isinstance(self.inner, LinearMethod):
            raise UserError("method.inner has to prune one matrix at a time, not a whole block; take another one.")
        if self.variant == "released" and not isinstance(self.inner, SparseGPT):
            raise UserError("method.variant=released is the authors' code, which prunes with method.inner=sparsegpt.")

    def refuses(self, pattern: Pattern, shape: tuple[int, int]) -> str | None:
        return self.inner.refuses(pattern, shape)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """That of a method that sees Gram matrices, and of the epochs after the first: updates, then the columns again.

        Of the feed-forward part's inputs p, the Gram matrix alone is wide² a token.
        """
        hidden, wide, later = geometry.hidden, geometry.wide, self.epochs - 1
        updates = 2 * work.tokens * (wide**2 + (2 * geometry.readers + 3) * hidden * wide) * work.blocks
        together = self._together(geometry, work)
        stats = replace(
            observing(self.statistic, geometry, work),
            column_walks=self.epochs,
            operations=later * updates,
            launches=later * UPDATES * math.ceil(work.windows / together) * work.blocks,
            kept_bytes=work.tokens * self._kept(geometry, work.itemsize),
            working_bytes=self._passing(geometry, together * work.length) if later else 0,
        )
        return stats + self.inner.cost(geometry, work).arithmetic(self.epochs)

    def _together(self, geometry: Geometry, work: Work) -> int:
        """Windows that move at once."""
        if self.variant == "released" or not work.fast:
            return 1
        return min(work.windows, windows_at_once(work.length, geometry.wide))

    def _kept(self, geometry: Geometry, itemsize: int) -> int:
        """Bytes of a token between epochs, on the GPU or in host memory: x and y in the model's dtype, z and s in
        float32.

        There is no s without a gate. The released variant keeps p too, and all in the model's dtype.
        """
        variables = geometry.readers * geometry.wide * 4
        if self.variant == "released":
            variables = (geometry.readers + 1) * geometry.wide * itemsize
        return 2 * geometry.hidden * itemsize + variables

    def _passing(self, geometry: Geometry, length: int) -> int:
        """Bytes beside a pass over the tokens: sums for the next weights, `down` in float64, p of so many tokens."""
        hidden, wide = geometry.hidden, geometry.wide
        sums = 4 * ((geometry.readers + 1) * hidden * wide + wide**2)
        return sums + (4 + 8) * hidden * wide + WINDOW_TENSORS * 4 * length * wide

    @torch.no_grad()
    def prune_block(self, block: BlockView, patterns: Mapping[Site, Pattern]) -> dict[Site, Pruned]:
        part = block.feed_forward
        if not part.sites:  # a planner took it; attention is the inner method's
            return dict(as_block_method(self.inner).prune_block(block, patterns))
        if self.variant == "released" and not part.gated and not isinstance(part.activation, nn.ReLU):
            raise Refusal("method.variant=released knows gated feed-forward parts and those with ReLU only.")
        stats, state = self._observe(block, part)
        first = first_epoch(self.inner, block, patterns, stats)
        penalties = self._penalties(part)
        dense = {site: block.weights[site] for site in part.sites}
        problem = Problem(
            part, dense, patterns, self.inner, penalties, state["x"], state["gram"], stats.get(part.readers[0])
        )
        mine = {site: first[site] for site in part.sites}
        del stats, state  # the first epoch's Gram matrices and their inverses, but for those in the problem
        if self.variant == "released":
            later, trace = replay(problem, mine, released_epochs(self.epochs, part, block.index))
            back = False
        else:
            later, trace = alternate(problem, mine, self.epochs, self.damping)
            back = self.fallback and self.epochs > 1 and trace.got_worse
        block.log(**penalties._asdict(), **trace.facts, fallback=back)
        if back:
            note = f"kept the first epoch's weights: its loss was {trace.loss[0]:.4g}, the last {trace.loss[-1]:.4g}"
            notes = filter(None, (first[part.down].note, note))
            later = {part.down: first[part.down]._replace(note="; ".join(notes))}
        return first | later

    def _penalties(self, part: FeedForward) -> Penalties:
        usual = 1.0 if self.variant == "default" else 5.0 if part.gated else 0.1
        given = (self.alpha, self.beta, self.gamma)
        return Penalties(*(usual if value is None else value for value in given))

    def _observe(
        self, block: BlockView, part: FeedForward
    ) -> tuple[dict[Site, ActivationStats], dict[str, ActivationStats]]:
        """One pass over the dense block → what the inner method sees of every linear; inputs x and their Gram."""
        statistic = self.inner.statistic
        keeping = {
            "gram": gram,
            "x": Statistic(lambda width, device: OffloadableTensors(device), OffloadableTensors.append, merge=joined),
        }
        if statistic not in (None, gram):
            keeping["inner"] = statistic
        mine = dict.fromkeys(part.readers, together(keeping))
        stats = dict(block.observe({site: statistic for site in block.weights if statistic} | mine))
        state = stats[part.readers[0]]
        return stats | dict.fromkeys(part.readers, state.get("inner", state["gram"])), state


def first_epoch(
    inner: Any, block: BlockView, patterns: Mapping[Site, Pattern], stats: Mapping[Site, ActivationStats]
) -> dict[Site, Pruned]:
    """Every matrix pruned by the inner method alone, from what was seen of its inputs."""
    return EachLinear(inner).prune_block(block, patterns, stats)
