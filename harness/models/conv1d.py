"""Linears that a family keeps transposed (GPT-2's `Conv1D`): ordinary ones in memory, as published on disk."""

from __future__ import annotations

import torch
from torch import nn

MADE = "_is_hf_initialized"
"""The mark of a module that transformers has given its numbers, and gives none again."""


def transposes(model: nn.Module) -> bool:
    """Return whether a model has a `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    return any(isinstance(module, Conv1D) for module in model.modules())


def to_linears(model: nn.Module) -> None:
    """Put an `nn.Linear` with the transposed weight in the place of every `Conv1D`."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            with torch.device("meta"):
                linear = nn.Linear(inputs, outputs)
            _take(linear, module)
            model.set_submodule(name, linear)


def to_conv1d(model: nn.Module, blocks: str) -> None:
    """Put a `Conv1D` with the transposed weight in the place of every linear of the blocks, whose path is given."""
    from transformers.pytorch_utils import Conv1D

    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and name.startswith(f"{blocks}."):
            with torch.device("meta"):
                module = Conv1D(linear.out_features, linear.in_features)
            _take(module, linear)
            model.set_submodule(name, module)


def _take(target: nn.Module, source: nn.Module) -> None:
    """Give a module the parameters of another one, the weight and its gradient transposed: they stay who they were."""
    weight, bias = source.weight, source.bias
    assert isinstance(weight, nn.Parameter) and isinstance(bias, nn.Parameter)
    gradient, weight.grad = weight.grad, None  # which has to have the shape of the data
    weight.data = weight.data.T.contiguous()
    weight.grad = None if gradient is None else gradient.T.contiguous()
    target.weight, target.bias = weight, bias
    target.train(source.training)
    if hasattr(source, MADE):
        setattr(target, MADE, getattr(source, MADE))
