"""A model that a caller has in memory: what it is known by, and its use, which leaves all but its weights as it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.anatomy import FAMILIES
from harness.models.checkpoint import Checkpoint, InMemory, tokenizer_files
from harness.models.conv1d import to_conv1d, transposes
from harness.models.decoder import Decoder, decoder_of
from harness.models.loading import DTYPES, SAYS, attention_for, first_not_finite, still
from harness.models.pieces import FOLLOW_TOKENS
from harness.models.placement import placement_of
from harness.runtime.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checkpoint_of(model: PreTrainedModel, tokenizer: Any, *, hashed: bool = True) -> Checkpoint:
    """Stand-in for the files of a model in memory.

    Args:
        hashed: whether its weights and its tokenizer have to be known by what they are.
    """
    size = sum(parameter.nbytes for parameter in model.parameters())
    known = InMemory(size, tensors_hash(model), tokenizer_hashes(tokenizer)) if hashed else InMemory(size, "", {})
    config = model.config.to_dict() | {"dtype": dtype_name(model)}
    return Checkpoint(Path(), config, (), getattr(model.config, "_commit_hash", None), memory=known)


def dtype_name(model: nn.Module) -> str:
    """The dtype that a model computes in, as the harness names it."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def tensors_hash(model: nn.Module) -> str:
    """sha256 of the parameters: of the sha256 of the name, dtype, shape and bytes of each, in order of name."""
    named = sorted(model.named_parameters())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda item: _digest(*item), named)
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def _digest(name: str, tensor: Tensor) -> str:
    digest = hashlib.sha256(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hashes(tokenizer: Any) -> dict[str, str]:
    """File name → sha256 of the files that a tokenizer writes; empty without one."""
    if tokenizer is None:
        return {}
    if not hasattr(tokenizer, "save_pretrained"):
        raise UserError(
            f"tokenizer is a {type(tokenizer).__name__}, where one of AutoTokenizer.from_pretrained is due."
        )
    with TemporaryDirectory() as folder:
        try:
            tokenizer.save_pretrained(folder)
        except Exception as error:
            raise UserError(
                f"the tokenizer cannot be written down, so nothing is known by it ({reason(error)})."
            ) from error
        return tokenizer_files(Path(folder))


@contextmanager
def decoder_in_memory(model: Any) -> Iterator[Decoder]:
    """A model in memory with its layout, that can be pruned where it is; a matrix that its class keeps transposed is an
    ordinary one while inside.

    Raises:
        UserError: it is no causal language model of transformers, of a known family, whole on one device, in a dtype
            that the harness computes in, with finite weights.
    """
    _check_lent(model)
    layout = FAMILIES.get(model.config.model_type)
    conv1d = bool(layout and layout.conv1d) and transposes(model)
    try:
        decoder = decoder_of(model)
        if (name := first_not_finite(decoder, placement_of(decoder))) is not None:
            raise UserError(f"the weight {name} of the model is not finite (NaN or infinity).")
        yield decoder
    finally:
        if layout and conv1d:
            to_conv1d(model, layout.blocks)


def _check_lent(model: Any) -> None:
    """Refuse what is no model that can be pruned in memory, before it is looked at closer."""
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        hint = "; merge its adapter first: model.merge_and_unload()" if hasattr(model, "peft_config") else ""
        raise UserError(
            f"model is a {type(model).__name__}, where one of AutoModelForCausalLM.from_pretrained is due{hint}."
        )
    if getattr(model.config, "quantization_config", None):
        raise UserError(
            "model is quantized; quantized weights are not pruned: load it in float32, bfloat16 or float16."
        )
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) > 1 or "meta" in devices:
        raise UserError(
            f"the model lies on {', '.join(sorted(devices))}; load it on one device (without device_map), or let the "
            "command line load it, which brings block after block to a GPU: python -m harness model=hf model.path=…"
        )
    if (dtype := dtype_name(model)) not in DTYPES:
        raise UserError(f"the model is in {dtype}; the harness computes in {', '.join(DTYPES)}: model.float(), say.")
    if model.get_output_embeddings() is None:
        raise UserError(f"{type(model).__name__} has no language-model head; load it by AutoModelForCausalLM.")


@contextmanager
def borrowed(decoder: Decoder) -> Iterator[None]:
    """While inside, a model is as `load_model` leaves one. Afterwards it is its owner's again, but for its weights.

    Its modules' training mode, its parameters' gradients and whether they have some, its attention, and what its
    configuration says of how it is to be run are what they were.
    """
    model = decoder.model
    training = [(module, module.training) for module in model.modules()]
    graded = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    config, blocks = model.config, decoder.modules
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))]
    said = [(part, name, getattr(part, name, None)) for part in parts if part is not None for name in SAYS]
    attention, cached = config._attn_implementation, getattr(config, "use_cache", None)
    marked = hasattr(blocks, FOLLOW_TOKENS)
    try:
        for part, name, _ in said:
            setattr(part, name, SAYS[name])
        _attend(model, attention_for(config.to_dict(), model.dtype))
        still(model)
        yield
    finally:
        _attend(model, attention)
        for part, name, value in said:
            setattr(part, name, value)
        config.use_cache = cached
        for module, mode in training:
            module.training = mode
        for parameter, wants, gradient in graded:
            parameter.requires_grad_(wants).grad = gradient
        if not marked and hasattr(blocks, FOLLOW_TOKENS):
            delattr(blocks, FOLLOW_TOKENS)


def _attend(model: PreTrainedModel, attention: str | None) -> None:
    if attention is not None and model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
