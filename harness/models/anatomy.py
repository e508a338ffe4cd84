"""Where the prunable matrices of a decoder live, as data: one entry per model family."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from harness.core.errors import UserError
from harness.core.structure import Cut

COVERAGE = 0.99
"""The share of a block's matrix weights that a layout has to name."""


@dataclass(frozen=True)
class Anatomy:
    """The layout of one family.

    `blocks` is the path of the block list; `attention` and `mlp` name the linears of a block, those that read the same
    input in one tuple, a gate before what it gates. `activation` is the path of the module between the two groups of
    the mlp, `gated` says whether it is applied to the first half of what they give.
    """

    blocks: str
    attention: tuple[tuple[str, ...], ...]
    mlp: tuple[tuple[str, ...], ...]
    activation: str
    gated: bool = True

    @property
    def linears(self) -> tuple[str, ...]:
        """All linear names of a block, in the order in which it runs them."""
        return tuple(name for group in self.attention + self.mlp for name in group)

    def linears_left(self, cut: Cut, block: int) -> tuple[str, ...]:
        """The linear names of a block of which a sub-layer may be gone, in the order in which it runs them."""
        attention = () if cut.gone("attention", block) else self.attention
        mlp = () if cut.gone("mlp", block) else self.mlp
        return tuple(name for group in attention + mlp for name in group)

    @property
    def inputs(self) -> tuple[tuple[str, ...], ...]:
        """The linears grouped by the input they share."""
        return self.attention + self.mlp


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
_LLAMA = Anatomy("model.layers", (_QKV, ("self_attn.o_proj",)), _GATED, "mlp.act_fn")

FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "gemma": _LLAMA,
    "gemma2": _LLAMA,
    "gemma3_text": _LLAMA,
    "opt": Anatomy(
        "model.decoder.layers", (_QKV, ("self_attn.out_proj",)), (("fc1",), ("fc2",)), "activation_fn", False
    ),
    "phi": Anatomy(
        "model.layers", (_QKV, ("self_attn.dense",)), (("mlp.fc1",), ("mlp.fc2",)), "mlp.activation_fn", False
    ),
    "gpt_neox": Anatomy(
        "gpt_neox.layers",
        (("attention.query_key_value",), ("attention.dense",)),
        (("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",)),
        "mlp.act",
        False,
    ),
    "phi3": Anatomy(
        "model.layers",
        (("self_attn.qkv_proj",), ("self_attn.o_proj",)),
        (("mlp.gate_up_proj",), ("mlp.down_proj",)),
        "mlp.activation_fn",
    ),
}
"""`model_type` of the Hugging Face configuration → layout."""

_FIRST_LLAMA = "308bacc610f15a42"
FIRST_LAYOUTS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text"), _FIRST_LLAMA),
    "opt": "2d9ed2476df399a3",
    "phi": "e5ed4df7bc089895",
    "phi3": "4c2e132650feee2f",
}
"""The digests of the layouts that records were made with before they said so; never changed when a layout is."""


def revised_layout(family: str) -> str | None:
    """The digest of a family's layout, None while it is the first one: it is part of what a record is of."""
    if family not in FAMILIES:
        return None
    canonical = json.dumps(asdict(FAMILIES[family]), sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    return None if digest == FIRST_LAYOUTS.get(family) else digest


def no_layout(family: str) -> UserError:
    """The error for a family that the harness does not know."""
    return UserError(f"the model family '{family}' has no layout; known: {', '.join(sorted(FAMILIES))}.")
