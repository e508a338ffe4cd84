"""From a checkpoint to a model in memory: every tensor in its place, computed as the harness decides."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import nn

from harness.models.account import account, stored_tensor
from harness.models.anatomy import FAMILIES
from harness.models.checkpoint import Checkpoint, ModelChoice
from harness.models.decoder import Decoder, decoder_of
from harness.models.placement import Placement, Where, place
from harness.models.sliced import SLICED, self_slicing
from harness.runtime.errors import UserError, reason

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SAYS = {"output_attentions": False, "output_hidden_states": False, "return_dict": True}
"""Outputs of a model, which are not for its checkpoint to say."""
OURS = "transformers."
"""The package whose code a model runs unless code of its own was asked for."""

_cached: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Model → True if its own configuration asks for a cache of keys and values."""


def resolve_dtype(wanted: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU and the model file's dtype on a GPU.

    Raises:
        UserError: the file's dtype is none that the harness computes in.
    """
    if wanted == "auto":
        wanted = "float32" if device.type == "cpu" else checkpoint.stored_dtype
    if wanted not in DTYPES:
        raise UserError(f"the checkpoint is stored as {wanted}; choose dtype={' or '.join(DTYPES)}.")
    return DTYPES[wanted]


def load_config(checkpoint: Checkpoint, choice: ModelChoice) -> PretrainedConfig:
    """The configuration as transformers reads it, without what it says of how the model is to be run.

    Raises:
        UserError: `config.json` describes no model that transformers can make.
    """
    from transformers import AutoConfig

    where = checkpoint.folder / "config.json"
    try:
        if SLICED in checkpoint.config:  # a model type that transformers does not know
            said = {name: value for name, value in checkpoint.config.items() if name != SLICED}
            config = AutoConfig.for_model(said.pop("model_type"), **said)
        else:
            config = AutoConfig.from_pretrained(
                checkpoint.folder, local_files_only=True, trust_remote_code=choice.trust_remote_code
            )
    except Exception as error:
        raise UserError(f"{where} describes no model that transformers can make ({reason(error)}).") from error
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if part is not None:
            part._attn_implementation = part._experts_implementation = None
            for name, value in SAYS.items():
                setattr(part, name, value)
    return config


def load_model(
    checkpoint: Checkpoint, choice: ModelChoice, dtype: torch.dtype, where: Where, config: Any = None
) -> PreTrainedModel:
    """The model in evaluation mode in its place (`placement.place`), every weight finite.

    Args:
        config: what `load_config` gave; asked for here if it was not.

    Raises:
        UserError: the files do not make a decoder model, a tensor of theirs has no place in it or not exactly one, or a
            weight is not finite.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    attention = attention_for(checkpoint.config, dtype)
    config = config or load_config(checkpoint, choice)
    try:
        kind: Any = AutoModelForCausalLM
        if about := checkpoint.config.get(SLICED):
            kind = self_slicing(kind._model_mapping[type(config)], about)
        loaded: Any = kind.from_pretrained(
            checkpoint.folder,
            config=config,
            output_loading_info=True,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # they are refused with all else
            trust_remote_code=choice.trust_remote_code,
            attn_implementation=attention,
        )
    except Exception as error:
        raise UserError(f"{choice.path} cannot be loaded as a language model ({reason(error)}).") from error
    model, info = loaded
    homes = account(model, info, checkpoint)
    _check_code(model, choice, attention)
    still(model)
    decoder = decoder_of(model)
    placement = place(decoder, where)
    if (name := first_not_finite(decoder, placement)) is not None:
        raise UserError(_why_not_finite(name, homes, checkpoint, dtype))
    return cast("PreTrainedModel", model)


def still(model: nn.Module) -> None:
    """Put a model in evaluation mode, without gradients and without a cache of keys and values."""
    config: Any = model.eval().requires_grad_(False).config
    _cached[model], config.use_cache = config.use_cache, False


@contextmanager
def as_published(model: nn.Module) -> Iterator[None]:
    """While inside, the configuration is as the checkpoint had it, with or without a cache."""
    config: Any = model.config
    before = config.use_cache
    config.use_cache = _cached.get(model, before)
    try:
        yield
    finally:
        config.use_cache = before


def _check_code(model: PreTrainedModel, choice: ModelChoice, attention: str) -> None:
    """Check that the harness's choice runs, whatever the checkpoint asks for.

    Raises:
        UserError: it is not.
    """
    configs = {id(one): one for one in (getattr(module, "config", None) for module in model.modules()) if one}
    for config in configs.values():
        runs = getattr(config, "_attn_implementation", attention)
        if runs != attention:
            raise UserError(f"{choice.path} would run {runs} attention in place of {attention}; that is not supported.")
    kind = type(model)
    if not choice.trust_remote_code and not kind.__module__.startswith(OURS):
        raise UserError(f"{choice.path} would run code of {kind.__module__}; add model.trust_remote_code=true.")


def _why_not_finite(name: str, homes: Mapping[str, str], checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    """A damaged file, or one whose numbers the dtype of the run does not hold."""
    kind = str(dtype).removeprefix("torch.")
    stored = stored_tensor(checkpoint, homes[name]) if name in homes else None
    if stored is None or not bool(torch.isfinite(stored).all()):
        return f"the weight {name} of {checkpoint.folder} is not finite (NaN or infinity)."
    advice = "take dtype=bfloat16 or dtype=float32" if dtype == torch.float16 else "no dtype of the harness holds it"
    return (
        f"the weight {name} of {checkpoint.folder} is finite in the file and overflows {kind} (largest magnitude "
        f"{float(stored.abs().max()):.3g}); {advice}."
    )


def first_not_finite(decoder: Decoder, placement: Placement) -> str | None:
    """The first weight that is not finite, looked for on the device."""
    for name, parameter in decoder.model.named_parameters():
        if not name.startswith(f"{decoder.anatomy.blocks}.") and not torch.isfinite(parameter).all():
            return name
    for index in decoder.indices:
        block = decoder.block(index)
        with placement.on_device(block):
            for name, parameter in block.named_parameters():
                if not torch.isfinite(parameter).all():
                    return decoder.site(index, name)
    return None


def attention_for(config: Mapping[str, Any], dtype: torch.dtype) -> str:
    """Plain attention in float32, the dtype of comparisons; fused attention in 16 bits.

    The released codes ran on a transformers that had plain attention only. SparseGPT is chaotic: with it, its masks on
    the proxies are the authors', bit for bit; with fused attention, tenths of a per cent of them are not by the second
    block. Some families have no fused form.
    """
    layout = FAMILIES.get(str(config.get("model_type")))
    if layout and layout.sdpa_only_with and config.get(layout.sdpa_only_with):
        return "sdpa"
    return "sdpa" if dtype != torch.float32 and _has_fused(config) else "eager"


def _has_fused(config: Mapping[str, Any]) -> bool:
    """Return whether transformers has fused attention for a model; soft-capped attention has none."""
    layout = FAMILIES.get(str(config.get("model_type")))
    return not config.get("attn_logit_softcapping") and (layout is None or layout.sdpa)


def fuse_attention(model: PreTrainedModel) -> None:
    """Fused attention for evaluation, where nothing is chaotic and it only rounds the seventh digit."""
    if _has_fused(model.config.to_dict()) and model._can_set_attn_implementation():
        model.set_attn_implementation("sdpa")
