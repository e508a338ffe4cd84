"""Candidates judged without being written: their losses are those of the model with their weights in it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import METHODS, TINY, given_tokens, tiny, windows
from torch import Tensor, nn

from harness.calibration.levels import assembler as assembling
from harness.calibration.levels.assembler import LevelAssembler, build_assembler
from harness.calibration.walk.checks import self_check
from harness.core.pattern import NofM, Pattern, Unstructured
from harness.models.decoder import decoder_of
from harness.runtime.errors import UserError

RUNGS: list[Pattern] = [Unstructured(0.75), Unstructured(0.5), Unstructured(0.0)]


def assembled(model: nn.Module, scope: range = range(2), **changes: Any) -> LevelAssembler:
    decoder = decoder_of(model)
    sites = [site for index in scope for site in decoder.linears(index)]
    settings: dict[str, Any] = {
        "inputs": None, "windows": windows(3, seed=5), "objective": "nll", "limit": None, "folder": None, "gib": None,
    } | changes  # fmt: skip
    method = settings.pop("method", METHODS["wanda"])
    ladder = settings.pop("ladder", RUNGS)
    return build_assembler(decoder, [windows(3)], scope, method, {site: list(ladder) for site in sites}, **settings)


def drawn(model: nn.Module, scope: range, count: int, ladder: list[Pattern] = RUNGS) -> list[dict[str, Pattern]]:
    """Random candidates, some of which agree in their first block."""
    draw, decoder = random.Random(0), decoder_of(model)
    found: list[dict[str, Pattern]] = []
    for number in range(count):
        candidate = {s: draw.choice(ladder) for i in scope for s in decoder.linears(i)}
        if number % 2:
            candidate |= {s: found[-1][s] for s in decoder.linears(scope[0])}
        found.append(candidate)
    return found


def written(model: nn.Module, method: Any, candidate: dict[str, Pattern], scope: range) -> list[Tensor]:
    """The dense weights, after the candidate's have been put into the model, pruned with dense inputs."""
    decoder, kept = decoder_of(model), []
    from harness.calibration.walk.blocks import stream

    pruned = {}
    for block in stream(decoder, [windows(3)], scope, edited=False, label=""):
        seen = block.observe(method.statistic)
        pruned |= {s: method.prune(w, seen[s], candidate[s]).weight for s, w in block.weights.items()}
    for index in scope:
        for site, linear in decoder.linears(index).items():
            kept.append(linear.weight.data.clone())
            linear.weight.data.copy_(pruned[site])
    return kept


def mean_nll(model: Any, tokens: Tensor) -> float:
    logits = model(tokens, use_cache=False).logits[:, :-1].double()
    return float(nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()))


@pytest.mark.parametrize(("family", "method"), [*((name, "wanda") for name in TINY), ("llama", "sparsegpt")])
def test_a_loss_is_that_of_the_model_with_these_weights(family: str, method: str) -> None:
    model, scope = tiny(family), range(2)
    decoder_of(model)  # which makes ordinary linears of transposed ones
    before = {name: value.clone() for name, value in model.state_dict().items()}
    candidates = drawn(model, scope, 4)
    losses = assembled(model, method=METHODS[method]).losses(candidates)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for candidate, loss in zip(candidates, losses, strict=True):
        other = tiny(family)
        written(other, METHODS[method], candidate, scope)
        assert loss == pytest.approx(mean_nll(other, windows(3, seed=5)), rel=1e-5)


@pytest.mark.parametrize("tokens", [24, 100, 10_000])
@pytest.mark.parametrize("stacked", [False, True])
def test_batches_change_nothing(tokens: int, stacked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one window, of several, of all candidates at once; multiplied one by one or as one product."""
    model = tiny("llama")
    candidates = drawn(model, range(2), 6)
    expected = assembled(model).losses(candidates)
    monkeypatch.setitem(assembling.CANDIDATE_TOKENS, "cpu", tokens)
    if stacked:
        monkeypatch.setattr(assembling, "_stacks", lambda inputs, weight: True)
    assert assembled(model).losses(candidates) == pytest.approx(expected, rel=1e-6)


def test_a_candidate_of_a_model_whose_arguments_follow_from_tokens() -> None:
    """Its loss is that of the model with the candidate's levels written into it, window by window."""
    model = given_tokens(tiny("llama"), 0, 1)
    self_check(decoder_of(model))
    candidates = drawn(model, range(2), 3)
    for candidate, loss in zip(candidates, assembled(model).losses(candidates), strict=True):
        other = given_tokens(tiny("llama"), 0, 1)
        self_check(decoder_of(other))
        written(other, METHODS["wanda"], candidate, range(2))
        assert loss == pytest.approx(mean_nll(other, windows(3, seed=5)), rel=1e-5)


def test_equal_prefixes_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny("llama")
    made, runs = assembled(model), []
    run = made._stream.run_block

    def counted(index: int, hidden: Tensor, tokens: Tensor) -> Tensor:
        runs.append((index, len(hidden)))
        return run(index, hidden, tokens)

    monkeypatch.setattr(made._stream, "run_block", counted)
    same = drawn(model, range(2), 2)  # they agree in the first block
    made.losses([*same, dict(same[0])])
    windows_run = {index: sum(count for i, count in runs if i == index) for index in (0, 1)}
    assert windows_run == {0: 3, 1: 6}


def test_some_windows_and_part_of_the_blocks() -> None:
    model, scope = tiny("opt"), range(1, 2)
    candidate = drawn(model, scope, 1)[0]
    (loss,) = assembled(model, scope).losses([candidate], slice(1, 3))
    other = tiny("opt")
    written(other, METHODS["wanda"], candidate, scope)
    assert loss == pytest.approx(mean_nll(other, windows(3, seed=5)[1:]), rel=1e-5)


def test_divergence_from_the_dense_model() -> None:
    model = tiny("llama")
    dense, candidate = dict.fromkeys(drawn(model, range(2), 1)[0], RUNGS[-1]), drawn(model, range(2), 1)[0]
    zero, loss = assembled(model, objective="kl").losses([dense, candidate])
    tokens = windows(3, seed=5)
    wanted = model(tokens).logits[:, :-1].double().log_softmax(-1)
    written(model, METHODS["wanda"], candidate, range(2))
    given = model(tokens).logits[:, :-1].double().log_softmax(-1)
    expected = float((wanted.exp() * (wanted - given)).sum(-1).mean())
    assert zero == pytest.approx(0, abs=1e-6) and loss == pytest.approx(expected, rel=1e-5)


def test_levels_behind_pruned_blocks_are_those_of_a_run() -> None:
    """With `inputs`, the candidate that equals them is the model that pruning block by block gives."""
    from harness.compress import prune

    model = tiny("llama")
    even = dict.fromkeys(drawn(model, range(2), 1)[0], Unstructured(0.5))
    (loss,) = assembled(model, method=METHODS["sparsegpt"], inputs=even).losses([even])
    prune(decoder_of(model), [windows(3)], range(2), METHODS["sparsegpt"], even)
    assert loss == pytest.approx(mean_nll(model, windows(3, seed=5)), rel=1e-5)


def test_a_block_method_makes_levels_too() -> None:
    model = tiny("llama")
    even = dict.fromkeys(drawn(model, range(2), 1)[0], NofM(1, 4))
    made = assembled(model, method=METHODS["sparsellm"], ladder=[NofM(1, 4), NofM(4, 4)], inputs=even)
    before = model.model.layers[0].mlp.up_proj.weight.clone()
    (loss,) = made.losses([even])
    from harness.compress import prune

    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
    prune(decoder_of(model), [windows(3)], range(2), METHODS["sparsellm"], even)
    assert loss == pytest.approx(mean_nll(model, windows(3, seed=5)), rel=1e-4)


def test_files_are_as_good_as_memory(tmp_path: Path) -> None:
    model = tiny("llama")
    candidates = drawn(model, range(2), 3)
    in_memory = assembled(model).losses(candidates)
    in_files = assembled(model, folder=tmp_path)
    assert len(list(tmp_path.glob("levels_*/*.safetensors"))) == 14
    assert in_files.losses(candidates) == in_memory
    del in_files
    assert not list(tmp_path.iterdir())


def test_a_database_beyond_its_limit_is_refused() -> None:
    with pytest.raises(UserError, match=r"the level database needs 0.000126 GiB, allocator.database_gib=1e-06 allows"):
        assembled(tiny("llama"), limit=1e-6)
