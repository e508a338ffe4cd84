"""A family's layout against a model that it is said to be of: where they do not fit, a sentence says what to write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from harness.models.anatomy import Anatomy, is_ours
from harness.runtime.errors import UserError

if TYPE_CHECKING:
    from harness.models.checkpoint import Checkpoint, ModelChoice
    from harness.models.decoder import Decoder

MOST = 6
"""Names that a sentence lists."""


def check_lists(model: nn.Module, family: str, layout: Anatomy) -> None:
    """See that the blocks are where the layout says.

    Raises:
        UserError: they are not.
    """
    if not isinstance(_at(model, layout.blocks), nn.ModuleList):
        lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
        raise _wrong(family, f"blocks='{layout.blocks}' is no list of blocks of this model; it has {_listed(lists)}")


def check_linears(decoder: Decoder, family: str) -> None:
    """See that the matrices of every block are there.

    Raises:
        UserError: one is not, or is no linear.
    """
    for index in decoder.indices:
        for name in decoder.anatomy.linears_left(decoder.cut, index):
            _check_linear(decoder.block(index), family, f"block {index}", name)


def check_layout(decoder: Decoder, family: str) -> None:
    """See that parts, order, activation, gate and norms of every block are as the layout says.

    A sub-layer that was cut is not looked for.

    Raises:
        UserError: the first thing that is not.
    """
    for index in decoder.indices:
        gone = {sublayer for sublayer in ("attention", "mlp") if decoder.cut.gone(sublayer, index)}
        for why in _differences(decoder.block(index), decoder.anatomy, gone):
            raise _wrong(family, f"{why} (in block {index})")


def check_before_loading(checkpoint: Checkpoint, choice: ModelChoice) -> None:
    """Look at the layout of a family from a plugin on a model without weights, before anything is loaded.

    Raises:
        UserError: they do not fit.
    """
    if not is_ours(str(checkpoint.config.get("model_type"))):
        _check_on_meta(checkpoint, choice)


def _check_on_meta(checkpoint: Checkpoint, choice: ModelChoice) -> None:
    from transformers import AutoModelForCausalLM

    from harness.models.decoder import decoder_of
    from harness.models.loading import load_config

    config = load_config(checkpoint, choice)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=choice.trust_remote_code)
    except Exception:  # loading says why
        return
    decoder_of(model)


def _check_linear(block: nn.Module, family: str, here: str, name: str) -> None:
    linear = _at(block, name)
    if linear is None:
        known = [path for path, module in block.named_modules() if getattr(module, "weight", torch.empty(0)).dim() == 2]
        raise _wrong(family, f"does not fit {here}: it has no matrix '{name}'; its matrices are {_listed(known)}")
    if not isinstance(linear, nn.Linear):
        kind = type(linear).__name__
        mend = "; such linears are transposed: set conv1d=True" if kind == "Conv1D" else ", no linear"
        raise _wrong(family, f"does not fit {here}: {name} is a {kind}{mend}")


def _differences(block: nn.Module, layout: Anatomy, gone: Iterable[str]) -> Iterator[str]:
    """What is not as the layout says, each with what to write instead."""
    parts = dict(zip(("attention", "mlp"), layout.parts, strict=True))
    for (sublayer, part), groups in zip(parts.items(), (layout.attention, layout.mlp), strict=True):
        if sublayer in gone:
            continue
        first = groups[0][0]
        if part and (
            _at(block, part) is None or not all(name.startswith(f"{part}.") for one in groups for name in one)
        ):
            yield f"parts={layout.parts} says that '{part}' is the {sublayer}, and it holds no {first}{_instead(first)}"
    if "attention" not in gone:
        yield from _of_order(layout)
    if "mlp" not in gone:
        yield from _of_activation(block, layout)
        yield from _of_gate(block, layout)
    named = (*layout.norms.attention, *layout.norms.mlp)
    norms = [name for name, module in block.named_children() if "norm" in type(module).__name__.lower()]
    if not gone and norms and not set(named) & set(norms):
        yield f"norms={tuple(layout.norms)} names none of the norms of this block, which are {_listed(norms)}"


def _instead(first: str) -> str:
    part = first.rpartition(".")[0]
    return f"; write '{part}'" if part else "; write '', as the block runs it itself"


def _of_order(layout: Anatomy) -> Iterator[str]:
    readers = len(layout.attention[0])
    if readers == 1 and layout.order == "separate":
        yield "order='separate' needs three matrices that attention reads by; one is order='parts' or order='groups'"
    if readers == 3 and layout.order != "separate":
        yield f"order='{layout.order}' is of one matrix that attention reads by; three are order='separate'"


def _of_activation(block: nn.Module, layout: Anatomy) -> Iterator[str]:
    if layout.plain_activation is None and _at(block, layout.activation) is None:
        kept = {name for group in layout.inputs for name in group}
        plain = [name for name, module in block.named_modules() if name and not any(module.children())]
        others = _listed([name for name in plain if name not in kept and "norm" not in name.lower()])
        yield f"activation='{layout.activation}' is no module of this block; beside matrices and norms it has {others}"


def _of_gate(block: nn.Module, layout: Anatomy) -> Iterator[str]:
    """With a gate, twice as much is given in front of the activation as is read behind it."""
    readers = [block.get_submodule(name) for name in layout.mlp[0]]
    given = sum(module.out_features for module in readers if isinstance(module, nn.Linear))
    down = block.get_submodule(layout.mlp_output)
    read = down.in_features if isinstance(down, nn.Linear) else 0
    if given != (2 if layout.gated else 1) * read:
        mend = f"; set gated={given == 2 * read}" if given in (read, 2 * read) else ""
        gives = f"{' and '.join(layout.mlp[0])} give {given} features"
        yield f"gated={layout.gated} does not fit: {gives} and {layout.mlp_output} reads {read}{mend}"


def _at(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path) if path else None
    except AttributeError:
        return None


def _listed(names: list[str]) -> str:
    more = f", … ({len(names)} in all)" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + more if names else "none"


def _wrong(family: str, why: str) -> UserError:
    return UserError(f"the layout of family '{family}': {why}.")
