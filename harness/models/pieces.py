"""How a model calls its blocks: what with, what stands in for them, and the model's own code in front and behind.

Shapes: B windows, L tokens, D hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn


class Stop(Exception):
    """Ends a forward once what it was for has been caught."""


def first(output: Any) -> Tensor:
    """The hidden states of a block's output, which is a tensor or a tuple that opens with it."""
    hidden = output[0] if isinstance(output, tuple | list) else output
    assert isinstance(hidden, Tensor)
    return hidden


@contextmanager
def patched(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """While inside, modules run these in place of their own `forward`."""
    own = {module: vars(module).pop("forward", None) for module in forwards}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module, forward in own.items():
            del module.forward
            if forward is not None:
                module.forward = forward


@torch.no_grad()
def last_output(model: nn.Module, blocks: nn.ModuleList, batch: Tensor) -> Any:
    """Output of the last block for tokens (B, L), by the model's own forward: the head does not run."""
    caught: list[Any] = []

    def stop(_: nn.Module, __: Any, output: Any) -> None:
        caught.append(output)
        raise Stop

    handle = blocks[-1].register_forward_hook(stop)
    try:
        with suppress(Stop):
            model(batch, use_cache=False)
    finally:
        handle.remove()
    return caught[0]


def logits_behind(model: nn.Module, blocks: nn.ModuleList, hidden: Tensor, *, tuples: bool) -> Tensor:
    """The model's own head on hidden states (B, L, D): the blocks pass them through, nothing else runs.

    Args:
        tuples: whether the blocks give a tuple that opens with the hidden states.
    """

    def passing(*_: Any, **__: Any) -> Any:
        return (hidden,) if tuples else hidden

    tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
    with patched(dict.fromkeys(blocks, passing)):
        logits: Tensor = model(tokens, use_cache=False).logits
        return logits


def beside_hidden(block: nn.Module, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a block by name, but for the hidden states, which come first; those by place are by name too."""
    by_place = list(inspect.signature(type(block).forward).parameters)[1:] if len(positional) > 1 else []
    placed = dict(zip(by_place[1:], positional[1:], strict=False))
    assert len(placed) == max(0, len(positional) - 1), "blocks take what they name"
    return {key: value for key, value in (placed | dict(named)).items() if key != "hidden_states"}


def for_windows(arguments: dict[str, Any], count: int) -> dict[str, Any]:
    """The arguments of one window for several: the slopes of all heads, (H, 1, L) or (1, H, 1, L), are there for each
    window, one after the other; all else is broadcast."""
    alibi = arguments.get("alibi")
    return arguments if alibi is None else {**arguments, "alibi": alibi.repeat(count, *[1] * (alibi.dim() - 1))}


def same_arguments(one: Any, other: Any) -> bool:
    """Return whether what a block is called with is the same twice, tensors inside it value by value."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_arguments(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list) and isinstance(other, tuple | list):
        return len(one) == len(other) and all(map(same_arguments, one, other))
    if type(one) is not type(other) or isinstance(one, Tensor):
        return False
    return type(one).__eq__ is object.__eq__ or bool(one == other)


FOLLOW_TOKENS = "arguments_follow_tokens"
"""A flag of the blocks of a model, which its replicas copy."""


def follow_tokens(blocks: nn.ModuleList) -> bool:
    """Return whether blocks are known to be called with something that follows from the tokens (`checks.py` finds it
    out).

    The first block's arguments are looked at again for every batch.
    """
    return bool(getattr(blocks, FOLLOW_TOKENS, False))


@torch.no_grad()
def catch_arguments(model: nn.Module, blocks: nn.ModuleList, batch: Tensor) -> tuple[list[dict[str, Any]], bool]:
    """The arguments of every block beside the hidden states, and whether blocks give tuples.

    Blocks of one model may differ in it. Only the first one runs, to show what it gives; the others are called and pass
    it through, the head is not.
    """
    caught: list[dict[str, Any]] = []
    given: list[Any] = []

    def catch(block: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        caught.append(beside_hidden(block, positional, named))

    def look(_: nn.Module, __: Any, output: Any) -> None:
        given.append(isinstance(output, tuple | list))

    def passing(*positional: Any, **named: Any) -> Any:
        hidden = positional[0] if positional else named["hidden_states"]
        return (hidden,) if given[0] else hidden

    def stop(*_: Any, **__: Any) -> Any:
        raise Stop  # or the head would run, whose logits may be the largest tensor of all

    handles = [block.register_forward_pre_hook(catch, with_kwargs=True) for block in blocks]
    handles.append(blocks[0].register_forward_hook(look))
    handles.append(blocks[-1].register_forward_hook(stop))
    try:
        with suppress(Stop), patched(dict.fromkeys(blocks[1:], passing)):
            model(batch, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return caught, given[0]
