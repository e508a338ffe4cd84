"""One place in the model for every tensor of a checkpoint, and one tensor for every place."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open

from harness.models.weights import Tensor, is_harmless
from harness.runtime.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from harness.models.checkpoint import Checkpoint

FREQUENCIES = ("rotary_emb.inv_freq", 1e-2)
"""A buffer that old checkpoints hold for every block, and how far rounding to 16 bits moves it."""


def account(model: PreTrainedModel, info: Mapping[str, Any], checkpoint: Checkpoint) -> dict[str, str]:
    """Find the place of every tensor.

    Args:
        info: what transformers says of the loading: missing, unexpected and mismatched keys.

    Returns:
        The model's name of a tensor → the checkpoint's.

    Raises:
        UserError: a tensor has no place, another shape than its place, or a place of another; a place has no tensor;
            or the head is to be the embedding and the files hold another one.
    """
    folder = checkpoint.folder
    if info["missing_keys"]:
        raise UserError(f"the weights of {folder} lack {min(info['missing_keys'])}; transformers would invent it.")
    for name, stored, wanted in sorted(info["mismatched_keys"], key=str):
        raise UserError(
            f"the tensor {name} of {folder} has the shape {_text(stored)}, its config.json asks for {_text(wanted)}."
        )
    tensors = {name: one for name, one in checkpoint.tensors.items() if not is_harmless(name, one)}
    places: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    own = {name: _own_name(name, places, model.base_model_prefix) for name in tensors}
    strange = [name for name, place in own.items() if place is None]
    if refused := sorted({name for name in strange if name in info["unexpected_keys"]} or _not_converted(
        strange, tensors, places
    )):  # fmt: skip
        raise UserError(_no_place(folder, refused))
    homes = _one_home_each(folder, own)
    filled = {id(places[place]) for place in homes}
    if not strange and (empty := sorted(place for place, one in places.items() if id(one) not in filled)):
        raise UserError(f"the weights of {folder} lack {empty[0]}; transformers would invent it.")
    _check_shapes(folder, homes, tensors, places)
    _check_head(model, folder, homes)
    _check_frequencies(model, checkpoint)
    return homes


def stored_tensor(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    """A tensor as the file has it."""
    path = checkpoint.folder / checkpoint.tensors[name].file
    with safe_open(path, "pt") as file:
        tensor: torch.Tensor = file.get_tensor(name)
    return tensor


def _own_name(name: str, places: Collection[str], inside: str) -> str | None:
    """The model's name for a tensor, with or without what stands in front of it there."""
    for candidate in (name, f"{inside}.{name}", name.removeprefix(f"{inside}.")):
        if candidate in places:
            return candidate
    return None


def _not_converted(
    strange: Iterable[str], tensors: Mapping[str, Tensor], places: Mapping[str, torch.Tensor]
) -> set[str]:
    """Tensors that transformers did not put together to others while loading: sizes would add up then."""
    strange = set(strange)
    stored = sum(one.size for one in tensors.values())
    taken = sum(one.numel() for one in {id(one): one for one in places.values()}.values())
    return strange if stored != taken else set()


def _one_home_each(folder: Any, own: Mapping[str, str | None]) -> dict[str, str]:
    homes: dict[str, str] = {}
    for name, place in own.items():
        if place in homes:
            raise UserError(f"{folder} holds {place} twice, as {homes[place]} and as {name}; delete one.")
        if place is not None:
            homes[place] = name
    return homes


def _no_place(folder: Any, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"the weights of {folder} hold {names[0]}{more}, for which the model of its config.json has no place; correct "
        "config.json, or delete these tensors if the model is meant to be without them."
    )


def _check_shapes(
    folder: Any, homes: Mapping[str, str], tensors: Mapping[str, Tensor], places: Mapping[str, torch.Tensor]
) -> None:
    for place, name in homes.items():
        if tensors[name].shape != tuple(places[place].shape):
            raise UserError(
                f"the tensor {name} of {folder} has the shape {_text(tensors[name].shape)}, its config.json asks for "
                f"{_text(places[place].shape)}."
            )


def _check_head(model: PreTrainedModel, folder: Any, homes: Mapping[str, str]) -> None:
    """A tied head of other values: some versions of transformers take it, others the embedding."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied and head is not None and head.weight is not embedding.weight:
        names = {id(one): name for name, one in model.named_parameters()}
        name = names.get(id(head.weight), "lm_head.weight")
        raise UserError(
            f"config.json of {folder} ties the head to the embedding, and the weights hold another "
            f"{homes.get(name, name)}; set tie_word_embeddings=false there, or delete that tensor."
        )


def _check_frequencies(model: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Stored rotary frequencies that are not those which the model makes from its configuration."""
    ending, rounding = FREQUENCIES
    stored = next((name for name in checkpoint.tensors if name.endswith(ending)), None)
    made = next((buffer for name, buffer in model.named_buffers() if name.endswith(ending)), None)
    rope = getattr(model.config, "rope_parameters", None)
    if stored is None or made is None or not isinstance(rope, Mapping) or rope.get("rope_type") != "default":
        return
    found = stored_tensor(checkpoint, stored).float()
    if found.shape != made.shape or not torch.allclose(found, made.float().cpu(), rtol=rounding, atol=1e-6):
        raise UserError(
            f"the weights of {checkpoint.folder} hold {stored}, whose values are not those that the rope settings of "
            "config.json give; correct them there, or delete that tensor."
        )


def _text(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "()"
