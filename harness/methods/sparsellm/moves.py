"""The elementwise updates of many windows at once: one kernel on a GPU, the functions of `updates.py` elsewhere.

Shapes: T tokens, F feed-forward size; R·F columns hold the gate's and the up matrix's side by side, or those of the
one there is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from harness.core.interfaces import FeedForward
from harness.methods.sparsellm.updates import Activation, Penalties, gated_z, inside, relu_z

KINDS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
}
"""The activations that the kernels know."""


@dataclass(frozen=True)
class Moves:
    """The updates of one feed-forward part, whose results that only products read have the type `short`."""

    part: FeedForward
    penalties: Penalties
    short: torch.dtype
    kind: str | None
    """The kernels' name of the activation; None: they do not know it, or there is no GPU."""

    @classmethod
    def of(cls, part: FeedForward, penalties: Penalties, short: torch.dtype, device: torch.device) -> Moves:
        return cls(part, penalties, short, kind_of(part.activation) if device.type == "cuda" else None)

    def hidden(self, wide: Tensor, state: Tensor | None) -> Tensor:
        """Inputs of `down` (1 or 2, T, F): from W_gate x and W_up x (T, R·F), and from the variables s and z."""
        if self.kind:
            from harness.methods.sparsellm import moves_gpu  # Triton comes with torch's CUDA builds only

            return moves_gpu.hidden(wide, state, self.kind, self.short, gated=self.part.gated)
        given = [wide] if state is None else [wide, state]
        return torch.stack([self._opened(one).to(self.short) for one in given])

    def move(self, wide: Tensor, state: Tensor, lift: Tensor) -> tuple[Tensor, Tensor]:
        """p (T, F) and what the variables (T, R·F), set anew in place, are beyond `wide`.

        Args:
            wide: W_gate x and W_up x (T, R·F).
            lift: W_downᵀ (y − W_down p) (T, F); p is φ(s) ⊙ z and β/γ times this.
        """
        if self.kind:
            from harness.methods.sparsellm import moves_gpu

            return moves_gpu.move(wide, state, lift, self.kind, self.penalties, self.short, gated=self.part.gated)
        alpha, beta, gamma = self.penalties
        phi = self.part.activation
        p = torch.add(self._opened(state), lift, alpha=beta / gamma)
        if not self.part.gated:
            relu = isinstance(phi, nn.ReLU)
            state.copy_(relu_z(wide, p, alpha, gamma) if relu else inside(state, wide, p, None, phi, alpha, gamma))
        else:
            (s, z), (gate, up) = state.chunk(2, dim=1), wide.chunk(2, dim=1)
            z.copy_(gated_z(up, phi(s), p, alpha, gamma))
            s.copy_(inside(s, gate, p, z, phi, alpha, gamma))
        return p.to(self.short), (state - wide).to(self.short)

    def _opened(self, wide: Tensor) -> Tensor:
        phi = self.part.activation
        if not self.part.gated:
            return phi(wide)
        gate, up = wide.chunk(2, dim=1)
        return phi(gate) * up


def kind_of(phi: Activation) -> str | None:
    """The kernels' name of an activation, found by running it; None for others."""
    sample = torch.linspace(-6, 6, 97)
    try:
        given = phi(sample)
    except (RuntimeError, TypeError):  # with parameters, which lie elsewhere
        return None
    return next((kind for kind, one in KINDS.items() if torch.allclose(given, one(sample), rtol=0, atol=1e-6)), None)
