"""The plain model of a family that a cut one is written as: every block as wide as the widest, with zeros in between.

It has the cut model's logits: a head of zeros attends to nothing and is not read, a channel of zeros adds nothing, and
a sub-layer that is gone is one whose matrices are all zeros. Any program that knows the family reads it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from harness.core.structure import SUBLAYERS
from harness.models.conv1d import to_conv1d, to_linears
from harness.models.decoder import Decoder
from harness.models.skipped import Skipped
from harness.models.units import Lines, channel_lines, channels, dense_count, head_lines, head_size, heads
from harness.runtime.errors import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plain_config(decoder: Decoder) -> Any:
    """The configuration of the plain model, without a change to the decoder's own."""
    config, keys = copy.deepcopy(decoder.config), decoder.anatomy.keys
    config.num_hidden_layers = len(decoder.modules)
    wide = [channels(decoder, index) for index in _having(decoder, "mlp")]
    if keys.wide and wide:
        setattr(config, keys.wide, max(wide))
    groups_of = _having(decoder, "attention")
    groups = [heads(decoder, index) for index in groups_of]
    if keys.head and keys.groups and groups and not decoder.anatomy.slopes:
        most, queries, size = max(groups)
        while config.hidden_size % (most * queries) and most < dense_count(decoder, "head", groups_of[0]):
            most += 1  # the classes of some families take no other number of heads
        setattr(config, keys.head, size)
        setattr(config, keys.groups, most)
        config.num_attention_heads = most * queries
    for part, key in zip(SUBLAYERS, (keys.attention_bias, keys.mlp_bias), strict=True):
        if key and any(_has_bias(decoder, index, part) for index in decoder.indices):
            setattr(config, key, True)
    return config


def check_plain(decoder: Decoder) -> None:
    """Find out before the work whether a plain model of the family holds what is left of the decoder.

    Raises:
        Refusal: its class has no place for a tensor, or norms in its residual stream that a skipped part would meet.
    """
    _filled(decoder, _shell(decoder, plain_config(decoder)), move=False)


@torch.no_grad()
def plain(decoder: Decoder) -> PreTrainedModel:
    """The plain model with the decoder's logits; tensors that need no padding are the decoder's own.

    Buffers that are not written are not made. For what it refuses see `check_plain`.
    """
    config = plain_config(decoder)
    shell = _shell(decoder, config)
    tensors = _filled(decoder, shell, move=True)
    shell.model.load_state_dict(tensors, strict=True, assign=True)
    if decoder.anatomy.conv1d:
        to_conv1d(shell.model, decoder.anatomy.blocks)
    shell.model.tie_weights()
    shell.model.generation_config = copy.deepcopy(decoder.model.generation_config)
    return shell.model


def _shell(decoder: Decoder, config: Any) -> Decoder:
    """A plain model of the family without numbers."""
    kind: Any = _plain_class(type(decoder.model))
    with torch.device("meta"):
        model = kind(config)
    if decoder.anatomy.conv1d:
        to_linears(model)
    return Decoder(cast("PreTrainedModel", model), decoder.anatomy)


def _plain_class(kind: type) -> type:
    """The class of transformers behind one that cuts itself while it loads (`sliced.py`)."""
    return kind.__mro__[1] if getattr(kind, "cuts_itself", False) else kind


def _filled(decoder: Decoder, shell: Decoder, *, move: bool) -> dict[str, Tensor]:
    """The shell's tensors by name.

    Args:
        move: whether to make them; else only whether all have a place is looked at.
    """
    mine, wanted = decoder.model.state_dict(), shell.model.state_dict()
    if strange := sorted(set(mine) - set(wanted)):
        raise Refusal(
            f"no plain model of the family '{decoder.config.model_type}' has a place for {strange[0]}; take "
            "save_form=sliced."
        )
    _check_stream(decoder)
    if not move:
        return {}
    lines = dict(_lines(decoder, shell))
    return {name: _padded(name, mine.get(name), like, lines, decoder) for name, like in wanted.items()}


def _padded(name: str, own: Tensor | None, like: Tensor, lines: dict[str, Lines], decoder: Decoder) -> Tensor:
    """A tensor of the shell: the decoder's own, with zeros in the lines that it lacks."""
    if own is not None and own.shape == like.shape:
        return own
    reference = next(decoder.model.parameters())
    made = torch.zeros(like.shape, dtype=reference.dtype, device="cpu")
    linear, _, kind = name.rpartition(".")
    if own is None:
        is_norm = like.dim() == 1 and kind == "weight"
        return made.fill_(1.0) if is_norm else made
    found = lines[linear]
    if found.rows is not None:
        made[found.rows] = own.to("cpu")
    else:
        made[:, found.columns] = own.to("cpu")
    return made


def _lines(decoder: Decoder, shell: Decoder) -> Iterator[tuple[str, Lines]]:
    """The lines, by the full name of a linear of the shell, in which the decoder's own stand."""
    of: tuple[tuple[str, str, Callable[..., Iterator[Lines]]], ...] = (
        ("attention", "head", head_lines),
        ("mlp", "channel", channel_lines),
    )
    for position, index in enumerate(decoder.indices):
        for sublayer, part, lines in of:
            if decoder.cut.gone(sublayer, index):  # type: ignore[arg-type]
                continue
            count = heads(decoder, index).groups if part == "head" else channels(decoder, index)
            kept = torch.arange(count)
            if part == "head" and decoder.anatomy.slopes:  # which a head has by its number
                gone = set(decoder.cut.gone("head", index))
                kept = torch.tensor([one for one in range(dense_count(decoder, part, index)) if one not in gone])
            yield from ((shell.site(position, found.name), found) for found in lines(shell, position, kept))


def check_numbers(decoder: Decoder) -> None:
    """Refuse to write a model that computes something else where its blocks are numbered anew.

    Raises:
        Refusal: attention is scaled by the number of its block, which a file does not hold.
    """
    if decoder.cut.blocks and getattr(decoder.config, "scale_attn_by_inverse_layer_idx", False):
        raise Refusal("the blocks scale attention by their numbers, so that no file holds the model without some.")


def _check_stream(decoder: Decoder) -> None:
    """Refuse sub-layers that are gone where a plain model would norm the residual stream, or what is added to it."""
    layout, config = decoder.anatomy, decoder.config
    key, value = layout.norm_in_stream or ("", None)
    in_stream = bool(key) and getattr(config, key, None) == value
    for index in decoder.indices:
        for sublayer in SUBLAYERS:
            if not decoder.cut.gone(sublayer, index):
                continue
            if in_stream or (layout.norms_behind and _has_bias(decoder, index, sublayer)):
                raise Refusal(
                    f"no plain model of the family '{config.model_type}' leaves out the {sublayer} of block {index}, "
                    "whose norm stands behind it; take save_form=sliced."
                )


def _has_bias(decoder: Decoder, index: int, sublayer: str) -> bool:
    """Return whether a linear of a sub-layer has a bias, or what stands for it adds a constant."""
    layout = decoder.anatomy
    groups, part = (layout.attention, layout.parts[0]) if sublayer == "attention" else (layout.mlp, layout.parts[1])
    block = decoder.block(index)
    if decoder.cut.gone(sublayer, index):  # type: ignore[arg-type]
        stub = block.get_submodule(part or groups[-1][0])
        return isinstance(stub, Skipped) and any(True for _ in stub.parameters())
    linears: Any = [block.get_submodule(name) for group in groups for name in group]
    return any(linear.bias is not None for linear in linears)


def _having(decoder: Decoder, sublayer: str) -> list[int]:
    return [index for index in decoder.indices if not decoder.cut.gone(sublayer, index)]  # type: ignore[arg-type]


def dense_sizes(decoder: Decoder) -> dict[str, int]:
    """Sizes by their names in the configuration, as every block had them before anything was cut."""
    keys, sizes = decoder.anatomy.keys, dict[str, int]()
    if keys.wide and (having := _having(decoder, "mlp")):
        sizes[keys.wide] = dense_count(decoder, "channel", having[0])
    if keys.head and keys.groups and (having := _having(decoder, "attention")):
        groups, queries = dense_count(decoder, "head", having[0]), heads(decoder, having[0]).queries
        sizes |= {"num_attention_heads": groups * queries, keys.groups: groups, keys.head: head_size(decoder.config)}
    return sizes


def dense_config(decoder: Decoder) -> dict[str, int]:
    """Entries of the dense model's `config.json` that may have changed since; none where nothing was cut."""
    if not decoder.cut:
        return {}
    sizes = {"num_hidden_layers": decoder.dense_blocks, **dense_sizes(decoder)}
    return {decoder.config.attribute_map.get(name, name): size for name, size in sizes.items()}


def count(model: nn.Module) -> int:
    """The parameters of a model, each once."""
    return sum(parameter.numel() for parameter in {id(one): one for one in model.parameters()}.values())
