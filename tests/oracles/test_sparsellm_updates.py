"""Every update of SparseLLM against an explicit solve, a grid, or the gradient of what it minimises.

Shapes: T tokens, D hidden size, F feed-forward size.
"""

from __future__ import annotations

import pytest
import torch
from helpers import inputs, normal, seen_by
from torch import Tensor, nn

from harness.core.statistic import gram
from harness.methods.sparsellm.alternating import refit
from harness.methods.sparsellm.updates import Coupling, gated_z, inside, relu_z

PENALTIES = [(1.0, 1.0), (5.0, 0.1), (0.01, 100.0)]
T, D, F = 40, 6, 15


@pytest.mark.parametrize(("beta", "gamma"), PENALTIES)
def test_p_is_the_solution_of_its_normal_equations(beta: float, gamma: float) -> None:
    down, a, y = normal(D, F), normal(T, F, seed=1), normal(T, D, seed=2)
    p, left = Coupling(down, beta, gamma)(a, y)
    wide = down.double()
    system = beta * wide.T @ wide + gamma * torch.eye(F, dtype=torch.float64)
    expected = torch.linalg.solve(system, (beta * y.double() @ wide + gamma * a.double()).T).T
    torch.testing.assert_close(p.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(left, y - p @ down.T, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("alpha", "gamma"), PENALTIES)
def test_a_gated_z_has_no_slope_left(alpha: float, gamma: float) -> None:
    m, gate, p = (normal(T, F, seed=seed) for seed in range(3))
    z = gated_z(m, gate, p, alpha, gamma).double().requires_grad_()
    (alpha * (z - m) ** 2 + gamma * (p - gate * z) ** 2).sum().backward()
    assert z.grad is not None and z.grad.abs().max() < 1e-4 * max(alpha, gamma)


@pytest.mark.parametrize(("alpha", "gamma"), PENALTIES)
def test_z_before_relu_is_the_best_of_a_grid(alpha: float, gamma: float) -> None:
    m, p = 2 * normal(500), 2 * normal(500, seed=1)
    grid = torch.linspace(-10, 10, 20_001)[:, None]
    best = (alpha * (grid - m) ** 2 + gamma * (p - grid.relu()) ** 2).min(dim=0).values
    z = relu_z(m, p, alpha, gamma)
    ours = alpha * (z - m) ** 2 + gamma * (p - z.relu()) ** 2
    assert (ours <= best + 1e-5).all() and (best - ours <= (alpha + gamma) * 1e-2).all()


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("phi", [nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh")], ids=["silu", "gelu", "tanh"])
@pytest.mark.parametrize(("alpha", "gamma"), PENALTIES)
def test_a_variable_inside_the_activation_only_improves(
    alpha: float, gamma: float, phi: nn.Module, gated: bool
) -> None:
    """Never worse than before in any element; with equal penalties, soon at a local minimum in nearly all.

    Where the activation's penalty is 10,000 times the other and p cannot be reached, Gauss-Newton steps are short.
    """
    s, t, p = (2 * normal(2000, seed=seed) for seed in range(3))
    scale = 3 * normal(2000, seed=3) if gated else None

    def cost(at: Tensor) -> Tensor:
        return alpha * (at - t) ** 2 + gamma * (p - (1 if scale is None else scale) * phi(at)) ** 2

    once = inside(s, t, p, scale, phi, alpha, gamma)
    assert (cost(once) <= cost(s) + 1e-6 * cost(s).max()).all()
    assert cost(once).sum() < 0.7 * cost(s).sum()
    if alpha != gamma:
        return
    for _ in range(8):
        once = inside(once, t, p, scale, phi, alpha, gamma)
    still = once.clone().requires_grad_()
    cost(still).sum().backward()
    assert still.grad is not None
    assert (still.grad.abs() < 1e-2 * (alpha + gamma * p.abs().max())).float().mean() > 0.95


@pytest.mark.parametrize("tokens", [5, 60])
def test_new_weights_solve_the_damped_least_squares(tokens: int) -> None:
    """As one plain least-squares problem, the damping as further rows; with fewer tokens than inputs too."""
    x, weight, target = inputs(tokens, F), normal(D, F), normal(tokens, D, seed=5)
    seen = seen_by(gram, x)
    cross = 2 * (target - x @ weight.T).T @ x
    new = refit(weight, cross, seen, 0.01)
    ridge = 0.01 * seen.matrix.double().diagonal().mean() / 2
    rows = torch.cat([x.double(), ridge.sqrt() * torch.eye(F, dtype=torch.float64)])
    right = torch.cat([target.double(), ridge.sqrt() * weight.double().T])
    expected = torch.linalg.lstsq(rows, right).solution.T
    torch.testing.assert_close(new.double(), expected, rtol=1e-3, atol=1e-3)
    assert ((target - x @ new.T) ** 2).sum() < ((target - x @ weight.T) ** 2).sum()


def test_weights_whose_target_is_met_do_not_move() -> None:
    x, weight = inputs(60, F), normal(D, F)
    assert torch.equal(refit(weight, torch.zeros(D, F), seen_by(gram, x), 0.01), weight)
