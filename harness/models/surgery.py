"""Applying structural edits to a model: blocks, sub-layers, heads and channels leave it for good.

What is left is a model of its own family that runs, generates with its cache and has its own numbers in its
configuration, as far as the configuration can say them (`describe`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.structure import SUBLAYERS, Cut, Plan
from harness.models.decoder import Decoder, remember_cut
from harness.models.placement import placement_of
from harness.models.shifts import add_shift
from harness.models.skipped import Skipped, SkippedAttention, SkippedLinear
from harness.models.units import Lines, changed, channel_lines, channels, head_lines, heads, norms_of, settled
from harness.runtime.errors import Refusal


@torch.no_grad()
def operate(decoder: Decoder, plan: Plan) -> Decoder:
    """Cut what the plan's edit names, put its tensors in place, and bring the configuration up to date.

    The model is changed; the decoder that is given says nothing true of it any more. A skipped sub-layer is the
    identity of the residual stream and its norm goes with it; a tensor that is the bias of its last linear is added to
    the stream in its place, and so is a shift.

    Raises:
        Refusal: the model cannot take the cut (`units.settled`), or has no place for a tensor.
    """
    total = settled(decoder, plan.edit)
    placement = placement_of(decoder)
    placement.settle()
    for index in decoder.indices:
        if index not in total.blocks:
            _narrow(decoder, total, index)
            _skip(decoder, total, index)
    _leave_out(decoder, set(total.blocks) - set(decoder.cut.blocks))
    result = Decoder(decoder.model, decoder.anatomy, total)
    for name, tensor in plan.tensors.items():
        _put(result, name, tensor)
    for unit, shift in plan.shifts.items():
        add_shift(result, unit, shift)
    describe(result)
    remember_cut(result)
    placement.restructured()
    return result


def _narrow(decoder: Decoder, total: Cut, index: int) -> None:
    """Cut heads and channels out of the matrices of a block."""
    block = decoder.block(index)
    if not total.gone("attention", index) and (kept := changed(decoder, total, index, "head")) is not None:
        before = heads(decoder, index)
        _select(block, head_lines(decoder, index, kept))
        attention = block.get_submodule(decoder.anatomy.parts[0])
        _count_heads(attention, len(kept), before.queries, before.size)
        if decoder.anatomy.slopes:
            _keep_slopes(attention, kept, before.groups * before.queries, before.queries)
    if not total.gone("mlp", index) and (kept := changed(decoder, total, index, "channel")) is not None:
        _select(block, channel_lines(decoder, index, kept))


def _select(block: nn.Module, lines: Iterator[Lines]) -> None:
    for name, rows, columns in list(lines):
        linear = block.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        weight = linear.weight.data
        if rows is not None:
            linear.weight.data = weight[rows.to(weight.device)]
            if linear.bias is not None:
                linear.bias.data = linear.bias.data[rows.to(linear.bias.device)]
        elif columns is not None:
            linear.weight.data = weight[:, columns.to(weight.device)].contiguous()
        linear.out_features, linear.in_features = linear.weight.shape


def _count_heads(attention: Any, groups: int, queries: int, size: int) -> None:
    """Tell an attention module how many heads it has, by the names under which families keep that."""
    counts = {
        "num_heads": groups * queries,
        "num_kv_heads": groups,
        "num_key_value_heads": groups,
        "split_size": groups * queries * size,
    }
    for name, count in counts.items():
        if hasattr(attention, name):
            setattr(attention, name, count)
    if hasattr(attention, "config"):  # some look there when they run
        attention.config = _Counting(attention.config, num_attention_heads=groups * queries)


class _Counting:
    """The configuration of a model as one attention module sees it, with counts of its own."""

    def __init__(self, config: Any, **counts: int) -> None:
        vars(self).update(_config=config, **counts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_config" not in vars(self):  # while it is copied
            raise AttributeError(name)
        return getattr(vars(self)["_config"], name)


def _keep_slopes(attention: Any, kept: Tensor, count: int, queries: int) -> None:
    """Let attention go on with the slopes of its kept heads out of those of all."""
    mine = getattr(attention, "slopes_of_heads", None)
    if mine is None:
        attention.slopes_of_heads = mine = tuple(range(count))
        attention.dense_heads = count
        attention.register_forward_pre_hook(_own_slopes, with_kwargs=True)
    attention.slopes_of_heads = tuple(
        head for group in kept.tolist() for head in mine[group * queries : (group + 1) * queries]
    )


def _own_slopes(attention: Any, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Of slopes (B·H, 1, K) or (B, H, 1, K), and of a mask that they are part of, the heads that are left."""
    alibi, mask, left = named.get("alibi"), named.get("attention_mask"), list(attention.slopes_of_heads)
    if alibi is None:
        return None
    if alibi.dim() == 3:
        alibi = alibi.unflatten(0, (-1, attention.dense_heads))[:, left].flatten(0, 1)
    else:
        alibi = alibi[:, left]
        mask = mask if mask is None or mask.shape[1] == 1 else mask[:, left]
    return positional, {**named, "alibi": alibi, "attention_mask": mask}


def _skip(decoder: Decoder, total: Cut, index: int) -> None:
    """Put something that adds nothing in the place of each sub-layer that goes, and nothing in that of its norm."""
    block, layout = decoder.block(index), decoder.anatomy
    for sublayer, part in zip(SUBLAYERS, layout.parts, strict=True):
        if not total.gone(sublayer, index) or decoder.cut.gone(sublayer, index):
            continue
        for norm in norms_of(decoder, index, sublayer):
            block.set_submodule(norm, nn.Identity())
        if sublayer == "attention":
            own: Any = block.get_submodule(part)
            last = layout.attention_output.removeprefix(f"{part}.")
            stub: Skipped = SkippedAttention(last, getattr(own, "layer_idx", index))
            block.set_submodule(part, stub)
        elif part:
            block.set_submodule(part, Skipped(layout.mlp_output.removeprefix(f"{part}.")))
        else:
            for name in layout.mlp[0]:
                block.set_submodule(name, nn.Identity())
            block.set_submodule(layout.mlp_output, SkippedLinear())


def _leave_out(decoder: Decoder, gone: set[int]) -> None:
    """Take blocks out of the list; those that are left are numbered anew where they fill a cache."""
    blocks = decoder.modules
    kinds = getattr(decoder.config, "layer_types", None)  # some families give each block its own mask, by position
    for position in sorted((decoder.position(index) for index in gone), reverse=True):
        del blocks[position]
        if kinds:
            del kinds[position]
    for position, block in enumerate(blocks):
        for module in block.modules():
            if getattr(module, "layer_idx", None) is not None:
                module.layer_idx = position  # type: ignore[assignment]


def _put(decoder: Decoder, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place that its dense name says.

    Raises:
        Refusal: there is no such place, or one of another shape.
    """
    prefix = f"{decoder.anatomy.blocks}."
    path, _, leaf = name.rpartition(".")
    number, _, inside = path.removeprefix(prefix).partition(".")
    try:
        if name.startswith(prefix):
            owner: Any = _owner(decoder, int(number), inside)
        else:
            owner = decoder.model.get_submodule(path)
    except (AttributeError, KeyError, ValueError):
        raise Refusal(f"the model has no place for {name} behind this cut.") from None
    like = next(decoder.model.parameters())
    there = getattr(owner, leaf, None)
    if isinstance(owner, Skipped):
        owner.add(tensor.to(like.device, like.dtype, copy=True))
    elif isinstance(there, Tensor) and there.shape == tensor.shape:
        there.data = tensor.to(there.device, there.dtype, copy=True)
    elif there is None and leaf == "bias" and isinstance(owner, nn.Linear) and tensor.shape == (owner.out_features,):
        owner.bias = nn.Parameter(tensor.to(like.device, like.dtype, copy=True), requires_grad=False)
    else:
        raise Refusal(f"the model has no place for {name} of shape {tuple(tensor.shape)} behind this cut.")


def _owner(decoder: Decoder, index: int, inside: str) -> nn.Module:
    """The module of a block that has a tensor; of a sub-layer that is gone, the one that stands for it."""
    block = decoder.block(index)
    outputs = dict(zip(SUBLAYERS, (decoder.anatomy.attention_output, decoder.anatomy.mlp_output), strict=True))
    for sublayer, part in zip(SUBLAYERS, decoder.anatomy.parts, strict=True):
        if inside == outputs[sublayer] and decoder.cut.gone(sublayer, index):
            return block.get_submodule(part or inside)
    return block.get_submodule(inside)


def describe(decoder: Decoder) -> None:
    """Bring the configuration up to date: the number of blocks, and widths where all blocks have the same."""
    decoder.config.num_hidden_layers = len(decoder.modules)
    for name, value in even_sizes(decoder).items():
        setattr(decoder.config, name, value)


def even_sizes(decoder: Decoder) -> Mapping[str, int]:
    """Sizes by their names in the configuration, of those widths that are the same in all blocks that have them."""
    keys, sizes = decoder.anatomy.keys, dict[str, int]()
    if not decoder.cut:
        return sizes
    of_part: dict[str, Callable[[Decoder, int], Any]] = {"attention": heads, "mlp": channels}
    found = {
        part: {of(decoder, index) for index in decoder.indices if not decoder.cut.gone(part, index)}  # type: ignore[arg-type]
        for part, of in of_part.items()
    }
    if keys.wide and len(found["mlp"]) == 1:
        sizes[keys.wide] = next(iter(found["mlp"]))
    if keys.head and keys.groups and len(found["attention"]) == 1:
        groups, queries, size = next(iter(found["attention"]))
        if decoder.config.hidden_size % (groups * queries):  # which the classes of some families do not take
            return sizes
        sizes |= {"num_attention_heads": groups * queries, keys.groups: groups, keys.head: size}
    return sizes
