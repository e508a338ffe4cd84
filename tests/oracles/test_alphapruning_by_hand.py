"""AlphaPruning: the exponent against loops and known tails, its mapping against the numbers of the authors' files."""

from __future__ import annotations

import math

import pytest
import torch
from helpers import FakeBlock, FakeView, normal
from torch import Tensor

from harness.allocators.alphapruning import AlphaPruning, scaled_to_budget
from harness.core import spectrum
from harness.core.allocation import Budget
from harness.core.spectrum import power_law_exponent


def numbers(text: str) -> list[float]:
    return [float(word) for word in text.split()]


# haiquanlu/AlphaPruning@5f0e984: the mean of a block's seven exponents in data/<model>/alpha_peak.npy, and what their
# formula makes of them at 70 %, to four digits
LLAMA2_7B = numbers(
    "2.1356 2.7064 3.1232 3.1237 3.1422 3.1333 3.0126 3.0720 2.8081 2.9100 2.7136 2.6760 2.8438 3.0128 3.0516 3.1215 "
    "3.4387 3.6877 3.9758 3.8045 4.3339 4.2743 4.1969 4.1206 4.1948 4.0930 3.6989 4.2438 4.1579 4.0851 4.2777 3.4835"
)
LLAMA2_7B_SPARSITIES = numbers(
    ".4619 .5647 .6397 .6398 .6431 .6415 .6198 .6305 .5830 .6013 .5660 .5592 .5894 .6198 .6268 .6394 "
    ".6965 .7414 .7933 .7624 .8578 .8470 .8331 .8193 .8327 .8144 .7434 .8415 .8261 .8130 .8476 .7046"
)
LLAMA_7B = numbers(
    "2.6222 2.8899 2.9690 2.9645 3.0900 3.0638 2.9606 2.7456 2.7752 2.6086 2.7167 2.7297 2.7843 2.8517 2.8966 3.1767 "
    "3.1230 3.4461 3.8715 3.6060 3.8945 4.0660 3.7551 3.7146 3.9941 4.2204 4.1024 4.1604 3.8508 4.0934 4.1601 3.5374"
)
LLAMA_7B_SPARSITIES = numbers(
    ".5704 .6176 .6315 .6307 .6529 .6482 .6301 .5922 .5974 .5680 .5871 .5894 .5990 .6109 .6188 .6681 "
    ".6587 .7156 .7906 .7438 .7946 .8248 .7701 .7629 .8122 .8521 .8313 .8415 .7869 .8297 .8414 .7317"
)


@pytest.mark.parametrize(
    ("exponents", "epsilon", "sparsities"),
    [(LLAMA2_7B, 0.3, LLAMA2_7B_SPARSITIES), (LLAMA_7B, 0.2, LLAMA_7B_SPARSITIES)],
    ids=["llama2-7b", "llama-7b"],
)
def test_the_mapping_gives_the_authors_numbers(exponents: list[float], epsilon: float, sparsities: list[float]) -> None:
    scores = {str(block): exponent for block, exponent in enumerate(exponents)}
    found = scaled_to_budget(scores, dict.fromkeys(scores, 1), 0.7, epsilon)
    assert list(found.values()) == pytest.approx(sparsities, abs=1e-4)


def test_the_mapping_by_hand() -> None:
    """1, 2, 3 → 0.5, 1, 1.5; sizes 1, 1, 2 make Σ n / Σ n r = 4 / 4.5, so 0.45 becomes 0.2, 0.4, 0.6."""
    found = scaled_to_budget({"a": 1.0, "b": 2.0, "c": 3.0}, {"a": 1, "b": 1, "c": 2}, 0.45, 0.5)
    assert found == pytest.approx({"a": 0.2, "b": 0.4, "c": 0.6})
    assert scaled_to_budget({"a": 2.0, "b": 2.0}, {"a": 1, "b": 3}, 0.6, 0.5) == pytest.approx({"a": 0.6, "b": 0.6})


def power_law(exponent: float, count: int = 400) -> Tensor:
    """A matrix whose squared singular values are the quantiles of a power law from 1 on."""
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return torch.diag((1 - quantiles) ** (-0.5 / (exponent - 1))).float()


@pytest.mark.parametrize("exponent", [1.8, 2.5, 3.5, 6.0])
def test_a_power_law_gives_its_exponent(exponent: float) -> None:
    assert power_law_exponent(power_law(exponent)) == pytest.approx(exponent, rel=0.01)


def slow_exponent(weight: Tensor) -> float:
    """Every eigenvalue in turn, every distance in turn."""
    values = [float(value) ** 2 for value in torch.linalg.svdvals(weight.double()).flip(0)]
    logs = [math.log10(value) for value in values]
    width = (logs[-1] - logs[0]) / 100
    counts = [0] * 100
    for log in logs:
        counts[min(int((log - logs[0]) / width), 99)] += 1
    peak = 10 ** (logs[0] + counts.index(max(counts)) * width)
    best, answer = math.inf, 0.0
    for i, start in enumerate(values[:-1]):
        if not math.log10(0.95 * peak) <= start <= 1.5 * peak:
            continue
        tail = values[i:]
        alpha = 1 + len(tail) / sum(math.log(value / start) for value in tail)
        gaps = [abs(1 - (value / start) ** (1 - alpha) - j / len(tail)) for j, value in enumerate(tail)]
        if max(gaps) < best:
            best, answer = max(gaps), alpha
    return answer


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 10.0])
@pytest.mark.parametrize("shape", [(40, 64), (96, 32), (2, 5)])
@pytest.mark.parametrize("heavy", [False, True])
def test_the_exponent_is_that_of_the_loops(
    shape: tuple[int, int], heavy: bool, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small weights let all small eigenvalues begin a tail, large ones only those near the peak."""
    weight = normal(*shape, seed=shape[0])
    weight = scale * (weight * normal(*shape, seed=1).exp() if heavy else weight)
    expected = pytest.approx(slow_exponent(weight), rel=1e-6)
    assert power_law_exponent(weight) == expected
    monkeypatch.setattr(spectrum, "CHUNK", 100)
    assert power_law_exponent(weight) == expected
    assert power_law_exponent(weight.T) == expected


def test_matrices_without_a_tail() -> None:
    assert math.isnan(power_law_exponent(torch.ones(1, 7)))
    assert math.isnan(power_law_exponent(torch.zeros(4, 4)))
    assert power_law_exponent(torch.diag(torch.tensor([1.0, 2.0, 0.0]))) == pytest.approx(1 + 2 / math.log(4))


def probe_of(*blocks: list[Tensor]) -> FakeView:
    content = []
    for index, matrices in enumerate(blocks):
        weights = {f"{index}.{name}": matrix for name, matrix in enumerate(matrices)}
        content.append(FakeBlock(index, weights, {}))
    return FakeView(content)


def test_blocks_lose_by_the_mean_of_their_exponents_or_matrices_by_their_own() -> None:
    matrices = [power_law(exponent, 40) for exponent in (2.0, 4.0, 2.5, 2.5)]
    alphas = [power_law_exponent(matrix) for matrix in matrices]
    view, budget = probe_of(matrices[:2], matrices[2:]), Budget(0.5)
    by_block = AlphaPruning().allocate(view, budget)
    assert [pattern.sparsity for pattern in by_block.values()] == pytest.approx([0.65, 0.65, 0.35, 0.35])
    by_matrix = AlphaPruning(granularity="matrix").allocate(view, budget)
    relative = [0.7, 1.3, *[0.7 + 0.6 * (alphas[2] - alphas[0]) / (alphas[1] - alphas[0])] * 2]
    expected = [0.5 * 4 * value / sum(relative) for value in relative]
    assert [pattern.sparsity for pattern in by_matrix.values()] == pytest.approx(expected)


def test_what_would_exceed_one_is_clipped_and_the_others_shifted() -> None:
    """Theirs: 0.9 · 1.3 and 0.9 · 0.7; the budget is met all the same."""
    view = probe_of([power_law(4.0, 40)], [power_law(2.0, 40)])
    assert [pattern.sparsity for pattern in AlphaPruning().allocate(view, Budget(0.9)).values()] == [
        1.0,
        pytest.approx(0.8),
    ]
