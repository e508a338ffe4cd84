"""The passes of the default variant over many windows at once, where sums may be taken in another order.

A product holds as many windows as fill a GPU, the elementwise updates between products are one kernel each, and what
products read has 16 bits where the model is in float16, whose bits are those of TF32. Shapes: L tokens of all windows
of a chunk, D hidden size, F feed-forward size; R·F columns hold the gate's and the up matrix's side by side.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.core.linalg import products_like
from harness.core.statistic import TOKENS_PER_PRODUCT
from harness.methods.sparsellm.moves import Moves
from harness.methods.sparsellm.problem import Problem, Trace, Weights, product
from harness.methods.sparsellm.sums import Sums
from harness.methods.sparsellm.updates import Coupling
from harness.runtime.memory import OffloadableTensors

ELEMENTS = 2**26
"""Elements of p at once, if a window has no more of them."""


class Chunks:
    """The variables that stay between epochs, by chunks: y (L, D), and z and s, or z alone, as one tensor (L, R·F)."""

    def __init__(self, problem: Problem) -> None:
        self.problem, part = problem, problem.part
        down = problem.dense[part.down]
        self._short = torch.float16 if down.dtype == torch.float16 else torch.float32
        self._moves = Moves.of(part, problem.penalties, self._short, down.device)
        self._length = len(problem.x[0])
        self._windows = windows_at_once(self._length, down.shape[1])
        self._bias = self._biases()
        self.y, self.state = OffloadableTensors(down.device), OffloadableTensors(down.device)
        dense = self._stacked(problem.dense)
        with products_like(down):
            for x in self._inputs():
                wide = self._before(x, dense)
                self.y.append(problem.target(self._moves.hidden(wide, None)[0]))
                self.state.append(wide)

    def sweep(self, weights: Weights, trace: Trace, *, last: bool) -> Sums | None:
        """One pass over the tokens: the loss of these weights and, unless it is the last, p, z and s anew."""
        problem, part = self.problem, self.problem.part
        sums = None if last else Sums(problem)
        coupling = None if last else Coupling(weights[part.down], problem.penalties.beta, problem.penalties.gamma)
        readers, down = self._stacked(weights), weights[part.down].to(self._short)
        error = torch.zeros(2, dtype=torch.float64, device=down.device)
        with products_like(weights[part.down]):
            for index, x in enumerate(self._inputs()):
                wide, y = self._before(x, readers), self.y[index]
                state = None if last else self.state[index]
                hidden = self._moves.hidden(wide, state)
                given = product(hidden.flatten(0, 1), down).unflatten(0, (-1, len(x)))
                error[0] += _squares(given[0] - y)
                if state is None or coupling is None or sums is None:
                    continue
                left = coupling.left(y - given[1])
                error[1] += _squares(left)
                left = left.to(self._short)
                p, residuals = self._moves.move(wide, state, product(left, down.T))
                self.state[index] = state
                sums.add_many(residuals, x, left, p, self._length)
        trace.add((error / problem.x.elements).tolist()[: 1 if last else 2])
        return sums

    def _inputs(self) -> Iterator[Tensor]:
        """The inputs x (L, D), chunk by chunk."""
        some: list[Tensor] = []
        for number, x in enumerate(self.problem.x, 1):
            some.append(x)
            if len(some) == self._windows or number == len(self.problem.x):
                yield torch.cat(some) if len(some) > 1 else x
                some = []

    def _before(self, x: Tensor, readers: Tensor) -> Tensor:
        """W_gate x and W_up x (L, R·F) with their biases, in float32."""
        wide = product(x, readers)
        return wide if self._bias is None else wide.add_(self._bias)

    def _stacked(self, weights: Weights) -> Tensor:
        """The matrices that read x, one above the other."""
        return torch.cat([weights[site] for site in self.problem.part.readers])

    def _biases(self) -> Tensor | None:
        part, dense = self.problem.part, self.problem.dense
        if not any(site in part.biases for site in part.readers):
            return None
        return torch.cat([part.biases.get(site, dense[site].new_zeros(len(dense[site]))) for site in part.readers])


def windows_at_once(length: int, width: int) -> int:
    """Windows of so many tokens in one chunk: full products of the readers' sums, where there are several of them."""
    windows = max(1, ELEMENTS // (length * width))
    together = max(1, TOKENS_PER_PRODUCT // length)
    return windows - windows % together if windows > together else windows


def _squares(values: Tensor) -> Tensor:
    """Σ of squares, summed in float64."""
    return torch.linalg.vector_norm(values, dtype=torch.float64).square()
