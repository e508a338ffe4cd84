"""MRP's formula written out: the whole model run from the tokens at every turn, nothing kept, nothing shared."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny, windows
from torch import Tensor, nn

from harness.allocators.mrp import Mrp
from harness.calibration.views.model import LiveModelView
from harness.core.allocation import Budget
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of


def input_norms(model: nn.Module, tokens: Tensor, linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """The norm (I,) of what every linear reads, with the model as it is, by hooks on the model's own forward."""
    squares: dict[str, Tensor] = {}
    handles = [
        linear.register_forward_pre_hook(
            lambda _, given, site=site: squares.update({site: given[0].double().square().flatten(0, 1).sum(dim=0)})
        )
        for site, linear in linears.items()
    ]
    with torch.no_grad():
        model(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    return {site: square.sqrt() for site, square in squares.items()}


def scores(model: nn.Module, tokens: Tensor, linears: dict[str, nn.Linear]) -> dict[str, Tensor]:
    """|W| ‖x‖ of every linear (O, I), in the model as it is."""
    found = input_norms(model, tokens, linears)
    return {site: linear.weight.double().abs() * found[site] for site, linear in linears.items()}


def prune_by_wanda(model: nn.Module, tokens: Tensor, blocks: list[dict[str, nn.Linear]], zeros: list[float]) -> None:
    """Block by block, each on what the pruned blocks in front of it give: ⌊I s⌋ of every row."""
    for block, fraction in zip(blocks, zeros, strict=True):
        for site, score in scores(model, tokens, block).items():
            weight = block[site].weight
            gone = score.sort(dim=1, stable=True).indices[:, : int(weight.shape[1] * fraction)]
            weight.data.scatter_(1, gone, 0.0)


def by_hand(model: nn.Module, tokens: Tensor, blocks: list[dict[str, nn.Linear]], asked: float) -> list[float]:
    """Zeros of every block: the steps of papers/allocators-structured.md, section 2, with s_init = S − 0.15, s_max =
    S + 0.15, steps of 0.05 of which the last is cut to the budget, and M = 5; blocks are of one size."""
    everything = {site: linear for block in blocks for site, linear in block.items()}
    dense = {site: linear.weight.data.clone() for site, linear in everything.items()}
    score = scores(model, tokens, everything)
    together = [torch.cat([score[site].flatten() for site in block]) for block in blocks]
    limits = [5 * float(one.mean()) for one in together]
    zeros = [asked - 0.15] * len(blocks)
    while sum(zeros) < asked * len(blocks) - 1e-6:
        prune_by_wanda(model, tokens, blocks, zeros)
        score = scores(model, tokens, everything)
        for site, linear in everything.items():
            linear.weight.data.copy_(dense[site])
        shares = []
        for block, limit, fraction in zip(blocks, limits, zeros, strict=True):
            beyond = sum(int((score[site] > limit).sum()) for site in block)
            shares.append(beyond / (sum(score[site].numel() for site in block) * (1 - fraction)))
        open_ = [index for index, fraction in enumerate(zeros) if fraction < asked + 0.15 - 1e-9]
        lowest = min(open_, key=lambda index: shares[index])
        zeros[lowest] += min(0.05, asked + 0.15 - zeros[lowest], asked * len(blocks) - sum(zeros))
    return zeros


@pytest.mark.parametrize(("asked", "seed"), [(0.5, 0), (0.7, 0), (0.7, 3)])
def test_mrp_is_its_formula(asked: float, seed: int) -> None:
    model = tiny("llama", seed=seed, num_hidden_layers=5)
    with torch.no_grad():  # blocks that differ in their tails
        for index, block in enumerate(model.model.layers):
            block.mlp.down_proj.weight[:, : 2 * index + 1] *= 6
    decoder, tokens = decoder_of(model), windows(4)
    blocks = [decoder.linears(index) for index in range(5)]
    expected = by_hand(model, tokens, blocks, asked)
    view = LiveModelView(decoder, list(tokens.split(1)), range(5), method=Wanda())
    found = Mrp().allocate(view, Budget(asked))
    assert [found[next(iter(block))].sparsity for block in blocks] == pytest.approx(expected, abs=1e-6)
    assert len({round(zeros, 6) for zeros in expected}) > 1
