"""Low-rank maps in place of what is cut: where they act, what trains, how they are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY, tiny, windows
from torch import Tensor

from harness.calibration.cache.resume import CheckpointPolicy
from harness.core.rng import rng
from harness.core.structure import Cut, Plan, Unit
from harness.models.decoder import Decoder, decoder_of
from harness.models.surgery import operate
from harness.models.updates import add_updates
from harness.recovery.low_rank_update import LowRankUpdate
from harness.runtime.errors import Refusal
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Text
from harness.training.recover import View, train_adapters
from tests.commands import but

CUT = Cut(frozenset({Unit("attention", 1), Unit("block", 2), Unit("mlp", 3)}))
LENGTH = 24


def cut(name: str) -> Decoder:
    types = {"layer_types": ["full_attention"] * 4} if "layer_types" in TINY[name] else {}
    return operate(decoder_of(tiny(name, num_hidden_layers=4, **types)), Plan(CUT))


def logits(decoder: Decoder, tokens: Tensor) -> Tensor:
    return decoder.model(tokens, use_cache=False).logits


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_a_map_begins_with_nothing_and_acts_where_something_was(name: str) -> None:
    """Against hooks that add B A h: to what the stand-in of attention gives, and to what a block gives."""
    decoder, plain, tokens = cut(name), cut(name), windows(2)
    tensors = add_updates(decoder, 3, torch.Generator().manual_seed(0))
    assert torch.equal(logits(decoder, tokens), logits(plain, tokens))
    for place, tensor in tensors.items():
        if place.endswith(".B"):
            tensor.normal_(generator=torch.Generator().manual_seed(1))
    attention = decoder.anatomy.parts[0]
    a = {index: decoder.site(index, "update") for index in (1, 3)} | {0: decoder.site(1, f"{attention}.update")}
    assert set(tensors) == {f"{prefix}.{part}" for prefix in a.values() for part in "AB"}

    def added(place: int) -> Any:
        matrix = tensors[f"{a[place]}.B"] @ tensors[f"{a[place]}.A"]

        def hook(_: Any, positional: Any, named: Any, output: Any) -> Any:
            hidden = output[0] if isinstance(output, tuple) else output
            seen = hidden if place else (positional[0] if positional else named["hidden_states"])
            return (hidden + seen @ matrix.T, *output[1:]) if isinstance(output, tuple) else hidden + seen @ matrix.T

        return hook

    plain.block(1).get_submodule(attention).register_forward_hook(added(0), with_kwargs=True)
    for index in (1, 3):
        plain.block(index).register_forward_hook(added(index), with_kwargs=True)
    torch.testing.assert_close(logits(decoder, tokens), logits(plain, tokens), rtol=1e-4, atol=1e-4)
    told = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    ahead = [decoder.model.generate(tokens[:, :10], use_cache=cached, **told) for cached in (True, False)]
    assert torch.equal(*ahead)
    assert decoder_of(decoder.model).cut == decoder.cut


@pytest.mark.parametrize("name", ["llama", "opt", "gemma2"])
def test_only_the_maps_train(name: str) -> None:
    decoder = cut(name)
    before = {key: one.clone() for key, one in decoder.model.state_dict().items()}
    text = Text(windows(8, LENGTH), windows(3, LENGTH, seed=1))
    recovery = LowRankUpdate(tokens=30 * 4 * LENGTH, batch=4, length=LENGTH, lr=3e-2, checks=1, rank=4)

    def trains(adapters: Any) -> Any:
        return train_adapters("it", recovery, decoder, adapters, text, 0, Checkpoints(CheckpointPolicy(), []))

    view = View(decoder, None, {}, [], decoder.indices, rng(0, "recovery"), trains=trains)
    recovery.heal(view)
    after = decoder.model.state_dict()
    assert all(torch.equal(one, after[key]) for key, one in before.items())
    new = set(after) - set(before)
    assert len(new) == 6 and all(key.rpartition(".")[2] in "AB" for key in new)
    assert view.logged["trained"] == sum(after[key].numel() for key in new) == 3 * 2 * 4 * 32
    assert view.logged["runs"][0]["curve"][-1]["train"] < view.logged["loss"]["before"]
    assert not any(parameter.requires_grad for parameter in decoder.model.parameters())


def test_nothing_to_stand_in_for() -> None:
    with pytest.raises(Refusal, match="no block and no sub-layer is gone"):
        add_updates(decoder_of(tiny("llama")), 2, torch.Generator())


def test_a_run_keeps_its_maps(typed: Callable[..., Any], options: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    asked = [
        *options, "planner=block_influence", "planner.keep_first=1", "method=none", "recovery=low_rank_update",
        "recovery.tokens=256", "recovery.batch=2", "recovery.length=32", "recovery.rank=2", f"save={folder}",
    ]  # fmt: skip
    refused = typed(*asked)
    assert refused.status == 2 and "save_form=sliced" in refused.err
    done = typed(*asked, "save_form=sliced")
    assert done.status == 0, done.err
    assert done.record["recovery"]["trained"] == 2 * 2 * 32 and done.record["recovery"]["moved"] > 0
    counts = done.record["parameters"]
    assert counts["saved"] > 0
    again = typed(*but(options, f"records={tmp_path / 'again'}"), f"model.path={folder}", "method=none")
    assert again.status == 0, again.err
    assert [one["value"] for one in again.record["measures"]] == pytest.approx(
        [one["value"] for one in done.record["measures"]], rel=1e-5
    )
