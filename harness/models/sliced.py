"""A cut model on disk in its true widths, which the harness reads and no other program does.

Its `config.json` is that of the blocks that are left, as wide as the dense model's, with the entry `sliced`: the
family, what else is gone, by the numbers of these blocks, and the biases and low-rank maps that came in. Its
`model_type` is one that transformers does not know, so that nobody fills what is gone with random numbers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.core.structure import Cut, Plan, Unit
from harness.models.anatomy import FAMILIES
from harness.models.conv1d import to_linears
from harness.models.decoder import Decoder
from harness.models.surgery import operate
from harness.models.updates import put_again, ranks_of
from harness.models.written import dense_sizes
from harness.runtime.errors import UserError

SLICED = "sliced"
"""The entry of `config.json`, and what opens its model type."""


def slice_config(decoder: Decoder, path: Path) -> None:
    """Make the configuration that lies there that of the sliced model."""
    config = json.loads(path.read_text(encoding="utf-8"))
    family = config["model_type"]
    attribute_map = decoder.config.attribute_map
    sizes = {attribute_map.get(name, name): size for name, size in dense_sizes(decoder).items()}
    left = frozenset(
        Unit(unit.part, decoder.position(unit.block), unit.index) for unit in decoder.cut.units if unit.part != "block"
    )
    about = {"model_type": family, "cut": Cut(left).json(), "biases": _new_biases(decoder)}
    if ranks := ranks_of(decoder.model):
        about["updates"] = ranks
    config |= {**sizes, "model_type": f"{SLICED}_{family}", SLICED: about}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _new_biases(decoder: Decoder) -> list[str]:
    """The biases of linears that write to the residual stream, by the names that they have in the file."""
    layout, tensors = decoder.anatomy, decoder.model.state_dict()
    outputs = (layout.attention_output, layout.mlp_output)
    names = (f"{layout.blocks}.{at}.{name}.bias" for at in range(len(decoder.modules)) for name in outputs)
    return [name for name in names if name in tensors]


def unsliced(config: dict[str, Any], where: Path) -> dict[str, Any]:
    """The entries of `config.json` under the family's own name.

    Raises:
        UserError: the entry `sliced` is not what a run saved.
    """
    about = config.get(SLICED)
    if about is None:
        return config
    try:
        Cut.from_json(about["cut"])
        return {**config, "model_type": str(about["model_type"])}
    except (AssertionError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where} has an entry {SLICED} that no run saved there.") from error


def self_slicing(kind: Any, about: Mapping[str, Any]) -> type:
    """The class of a family whose models cut themselves when they are made, before their weights are loaded."""

    def make(self: Any, config: Any) -> None:
        kind.__init__(self, config)
        layout = FAMILIES[str(about["model_type"])]
        if layout.conv1d:
            to_linears(self)
        width = config.get_text_config().hidden_size
        biases = {name: torch.zeros(width) for name in about["biases"]}
        put_again(operate(Decoder(self, layout), Plan(Cut.from_json(about["cut"]), biases)), about.get("updates", {}))

    made = {"__init__": make, "__module__": kind.__module__, "__qualname__": kind.__qualname__, "cuts_itself": True}
    return type(kind.__name__, (kind,), made)
