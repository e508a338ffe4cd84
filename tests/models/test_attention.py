"""Plain attention in pieces: the bits of the model's own, less memory, and nothing left behind."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from helpers import tiny, windows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.models import attention
from harness.models.anatomy import FAMILIES
from harness.models.attention import NAME, in_pieces, pieced

llama = pytest.importorskip("transformers.models.llama.modeling_llama")
OWN = llama.eager_attention_forward


def plain(family: str) -> Any:
    model = tiny(family)
    model.set_attn_implementation("eager")
    return model


def asked(heads: int, groups: int, length: int, *, masks: int = 1) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value and a causal mask of three windows."""
    generator = torch.Generator().manual_seed(0)
    sizes = (heads, heads // groups, heads // groups)
    query, key, value = (torch.randn(3, length, size, 64, generator=generator).transpose(1, 2) for size in sizes)
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)
    return query, key, value, mask[None, None].repeat(masks, 1, 1, 1)


class Module:
    def __init__(self, groups: int) -> None:
        self.num_key_value_groups, self.training = groups, False


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scores", [1, 1 << 22])
def test_a_model_gives_the_same_bits(family: str, scores: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(attention, "SCORE_BYTES", scores)
    monkeypatch.setattr(attention, "ROWS", (8, 256))
    model, tokens = plain(family), windows(3, 40)
    with torch.no_grad():
        before = model(tokens, use_cache=False).logits
        with in_pieces(model) as where:
            inside = model(tokens, use_cache=False).logits
    in_class = family in ("bloom", "falcon")  # their attention is no function that others could call
    assert len(where) == (0 if in_class else 1) and torch.equal(inside, before)
    assert not any("pieced" in str(vars(sys.modules[name])[NAME]) for name in where)


@pytest.mark.parametrize(("heads", "groups", "length", "masks"), [(4, 1, 509, 3), (8, 4, 512, 1), (2, 2, 1100, 3)])
def test_long_windows_give_the_same_bits(heads: int, groups: int, length: int, masks: int) -> None:
    given = asked(heads, groups, length, masks=masks)
    theirs, _ = OWN(Module(groups), *given, scaling=0.125)
    mine, probabilities = pieced(OWN)(Module(groups), *given, scaling=0.125)
    assert torch.equal(mine, theirs) and mine.is_contiguous() and probabilities is None
    nothing = (*given[:3], None)
    assert torch.equal(
        pieced(OWN)(Module(groups), *nothing, scaling=0.1)[0], OWN(Module(groups), *nothing, scaling=0.1)[0]
    )


def test_scores_of_a_piece_are_all_there_is() -> None:
    sizes: list[int] = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.shape[-1] == 1024:
                sizes.append(result.nbytes)
            return result

    with Sizes():
        pieced(OWN)(Module(1), *asked(8, 1, 1024), scaling=0.125)
    assert 0 < max(sizes[-50:]) <= attention.SCORE_BYTES


def test_gradients_are_left_to_the_models_own_code() -> None:
    query, key, value, mask = asked(4, 1, 512)
    query.requires_grad_()
    _, probabilities = pieced(OWN)(Module(1), query, key, value, mask, scaling=0.125)
    assert probabilities.shape == (3, 4, 512, 512)


def test_what_rounds_otherwise_is_left_alone(monkeypatch: Any) -> None:
    def other(module: Any, query: Tensor, *given: Any, **named: Any) -> Any:
        output, weights = OWN(module, query, *given, **named)
        return output * len(query[0, 0]), weights  # depends on the rows that come together

    monkeypatch.setattr(llama, NAME, other)
    with in_pieces(plain("llama")) as where:
        assert where == [] and llama.eager_attention_forward is other


def test_after_an_error_the_models_own_code_is_back() -> None:
    def fail() -> None:
        with in_pieces(plain("llama")) as where:
            assert where == [llama.__name__] and llama.eager_attention_forward is not OWN
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert llama.eager_attention_forward is OWN
