"""DSnoT against its algorithm written out for one row at a time, in plain Python."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import FakeBlock, inputs, normal, seen_by
from torch import Tensor

from harness.core.interfaces import FeedForward
from harness.core.moments import moments
from harness.core.pattern import NofM, Pattern, parse_pattern, satisfies
from harness.methods.dsnot import DSnoT
from harness.methods.each import EachLinear
from harness.methods.magnitude import Magnitude
from harness.methods.ria import RIA
from harness.methods.sparsegpt import SparseGPT
from harness.methods.wanda import Wanda
from harness.runtime.errors import UserError


def windows(width: int, count: int = 3, length: int = 20) -> list[Tensor]:
    """Inputs whose means are not zero."""
    return [inputs(length, width, seed=seed) + normal(1, width, seed=9) for seed in range(count)]


def slow_row(
    weight: list[float], total: list[float], variance: list[float], score: list[float], kept: list[bool], of: int,
    cycles: int, threshold: float, same_sign: bool,
) -> list[bool]:  # fmt: skip
    """Algorithm 1 for one row, candidates looked for anew at every cycle among those that have not moved."""
    kept, width = list(kept), len(weight)
    worth = [w * t for w, t in zip(weight, total, strict=True)]
    pruned, fresh = {i for i in range(width) if not kept[i]}, {i for i in range(width) if kept[i]}
    error = first = sum(worth[i] for i in pruned)
    for _ in range(cycles):
        sign = 1 if error > 0 else -1
        back = [i for i in pruned if worth[i] * sign > 0 and variance[i] > 0]
        if abs(error) <= threshold or not back:
            break
        comes = max(back, key=lambda i: worth[i] * sign / variance[i])
        going = [j for j in fresh if j // of == comes // of] if of else [j for j in fresh if worth[j] * sign < 0]
        if not going:
            break
        goes = min(going, key=lambda j: score[j])
        after = error + worth[goes] - worth[comes]
        if same_sign and after * first <= 0:
            break
        kept[comes], kept[goes], error = True, False, after
        pruned.remove(comes)
        fresh.remove(goes)
    return kept


def slow(method: DSnoT, weight: Tensor, seen: dict[str, Any], pattern: Pattern, score: Tensor) -> Tensor:
    start = DSnoT(inner=method.inner, max_cycles=0).prune(weight, seen, pattern).kept
    total, variance = (part.double().tolist() for part in (seen["moments"].total, seen["moments"].variance))
    of = pattern.of if isinstance(pattern, NofM) else 0
    same = bool(of) if method.same_sign is None else method.same_sign
    return torch.tensor([
        slow_row(w, total, variance, s, k, of, method.max_cycles, method.update_threshold, same)
        for w, s, k in zip(weight.double().tolist(), score.double().tolist(), start.tolist(), strict=True)
    ])  # fmt: skip


@pytest.mark.parametrize("asked", ["0.5", "0.3", "0.7", "0.9", "2of4", "1of4", "3of4", "4of8"])
@pytest.mark.parametrize("cycles", [1, 5, 50])
@pytest.mark.parametrize("threshold", [0.1, 5.0])
def test_the_algorithm(asked: str, cycles: int, threshold: float) -> None:
    weight, wanted = normal(12, 40), parse_pattern(asked)
    method = DSnoT(max_cycles=cycles, update_threshold=threshold)
    seen = seen_by(method.statistic, *windows(40))
    kept = method.prune(weight, seen, wanted).kept
    assert torch.equal(kept, slow(method, weight, seen, wanted, Wanda().score(weight, seen["squared_norms"])))
    start = DSnoT(max_cycles=0).prune(weight, seen, wanted).kept
    assert not torch.equal(kept, start) and torch.equal(kept.sum(dim=1), start.sum(dim=1))


@pytest.mark.parametrize("same_sign", [True, False])
@pytest.mark.parametrize("inner", [Magnitude(), RIA()], ids=["magnitude", "ria"])
@pytest.mark.parametrize("asked", ["0.6", "2of4"])
def test_other_scores_and_the_sign(asked: str, inner: Any, same_sign: bool) -> None:
    weight, wanted = normal(10, 32), parse_pattern(asked)
    method = DSnoT(inner=inner, same_sign=same_sign)
    seen = seen_by(method.statistic, *windows(32))
    own = (
        inner.score(weight, seen.get("inner"))
        if isinstance(wanted, NofM)
        else Wanda().score(weight, seen["squared_norms"])
    )
    pruned = method.prune(weight, seen, wanted)
    assert torch.equal(pruned.kept, slow(method, weight, seen, wanted, own))
    assert ((~pruned.kept).sum(dim=1) == (16 if isinstance(wanted, NofM) else int(32 * 0.6))).all(), "rows, exactly"


def test_what_the_statistic_is() -> None:
    """Sums per window and variances within each; whatever way the windows come."""
    seen = windows(6, count=4)
    state = seen_by(moments, *seen)
    torch.testing.assert_close(state.total, torch.stack([w.sum(dim=0) for w in seen]).mean(dim=0))
    torch.testing.assert_close(state.variance, torch.stack([w.var(dim=0, correction=0) for w in seen]).mean(dim=0))
    assert moments.add and moments.merge
    whole = moments.add(moments.init(6, torch.device("cpu")), torch.stack(seen))
    halves = moments.merge([seen_by(moments, *seen[:1]), seen_by(moments, *seen[1:])])
    for other in (whole, halves):
        assert other.windows == 4
        torch.testing.assert_close(other.total, state.total)
        torch.testing.assert_close(other.variance, state.variance)


def test_the_expected_error_falls() -> None:
    weight, wanted, method = normal(30, 128), parse_pattern("0.5"), DSnoT()
    seen = seen_by(method.statistic, *windows(128))

    def error(kept: Tensor) -> float:
        return float(((weight * ~kept) @ seen["moments"].total).abs().mean())

    start = DSnoT(max_cycles=0).prune(weight, seen, wanted).kept
    assert error(method.prune(weight, seen, wanted).kept) < error(start)


@pytest.mark.parametrize("asked", ["0.5", "2of4", "1of4"])
@pytest.mark.parametrize(
    "inner", [SparseGPT(), RIA(reallocation=True), Magnitude()], ids=["sparsegpt", "permuted", "magnitude"]
)
def test_any_mask_keeps_its_counts_and_its_order(inner: Any, asked: str) -> None:
    weight, wanted = normal(16, 64), parse_pattern(asked)
    method = DSnoT(inner=inner)
    seen = seen_by(method.statistic, *windows(64))
    start, pruned = DSnoT(inner=inner, max_cycles=0).prune(weight, seen, wanted), method.prune(weight, seen, wanted)
    assert torch.equal(start.kept.sum(dim=1), pruned.kept.sum(dim=1)) and not torch.equal(start.kept, pruned.kept)
    assert satisfies(pruned.weight, wanted, pruned.order)
    assert torch.equal(pruned.weight, weight * pruned.kept), "the mask alone"


def test_dead_inputs_are_never_grown_but_by_accident() -> None:
    """The released code divides zero by zero and takes those first."""
    seen_windows = windows(24)
    for window in seen_windows:
        window[:, :4] = 0
    weight, counts = normal(8, 24), {}
    for variant in ("default", "released"):
        method = DSnoT(variant=variant, max_cycles=4)  # type: ignore[arg-type]
        counts[variant] = int(
            method.prune(weight, seen_by(method.statistic, *seen_windows), parse_pattern("0.5")).kept[:, :4].sum()
        )
    assert counts["default"] == 0 < counts["released"]


def test_the_released_code_drifts_where_candidates_end() -> None:
    weight, wanted = normal(40, 24), parse_pattern("0.7")
    zeros = {}
    for variant in ("default", "released"):
        method = DSnoT(variant=variant)  # type: ignore[arg-type]
        zeros[variant] = (~method.prune(weight, seen_by(method.statistic, *windows(24)), wanted).kept).sum(dim=1)
    assert (zeros["default"] == int(24 * 0.7)).all() and not (zeros["released"] == int(24 * 0.7)).all()


class Block(FakeBlock):
    """`up` is the feed-forward part."""

    @property
    def feed_forward(self) -> FeedForward:
        return FeedForward(("up",), "down", gated=False, activation=torch.relu, biases={})


@pytest.mark.parametrize(("skip", "refined"), [("mlp", {"q"}), ("attention", {"up"}), ("none", {"q", "up"})])
def test_parts_are_skipped(skip: str, refined: set[str]) -> None:
    """Even where both parts read the same inputs, as in Phi."""
    tokens, weights = windows(32)[0], {"q": normal(8, 32), "up": normal(8, 32, seed=1)}
    block = Block(0, weights, dict.fromkeys(weights, tokens))
    patterns = dict.fromkeys(weights, parse_pattern("0.5"))
    pruned = EachLinear(DSnoT(skip=skip)).prune_block(block, patterns)  # type: ignore[arg-type]
    plain = EachLinear(Wanda()).prune_block(block, patterns)
    assert {site for site in weights if not torch.equal(pruned[site].kept, plain[site].kept)} == refined


def test_settings_out_of_range() -> None:
    with pytest.raises(UserError, match=r"method.max_cycles"):
        DSnoT(max_cycles=-1)
    with pytest.raises(UserError, match=r"method.inner has to prune one matrix"):
        DSnoT(inner=3)
