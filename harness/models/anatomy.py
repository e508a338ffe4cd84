"""Facts of the model families, as data: one entry each, where its matrices, heads and norms live."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from torch import Tensor

from harness.core.structure import Cut
from harness.models.facts import FACTS, KEYS, NO, NORMS, YES, Facts, Flag, Keys, Norms, Order
from harness.runtime.errors import UserError

COVERAGE = 0.99
"""The share of a block's matrix weights that a layout has to name."""


Reader = Callable[[Mapping[str, Any]], dict[str, Any]]


def _named(**names: str) -> Reader:
    """A reader of configurations that have other names for what most call so."""

    def read(config: Mapping[str, Any]) -> dict[str, Any]:
        return {**config, **{ours: config[its] for ours, its in names.items() if config.get(its) is not None}}

    return read


_AS_IT_IS = _named()


def _gelu_of_bloom() -> Callable[[Tensor], Tensor]:
    """The formula of a module that brings a gradient of its own."""
    from transformers.models.bloom.modeling_bloom import bloom_gelu_forward

    formula: Callable[[Tensor], Tensor] = bloom_gelu_forward
    return formula


def _falcon(config: Mapping[str, Any]) -> dict[str, Any]:
    """Falcon's key/value heads are counted where its new decoder is asked for, one or as many as query heads else."""
    read = _named(intermediate_size="ffn_hidden_size")(config)
    heads = config.get("num_attention_heads")
    new, one = config.get("new_decoder_architecture", False), config.get("multi_query", True)
    read["num_key_value_heads"] = (config.get("num_kv_heads") or heads) if new else 1 if one else heads
    return read


@dataclass(frozen=True)
class Anatomy:
    """The layout of one family.

    `blocks` is the path of the block list; `attention` and `mlp` name the linears of a block, those that read the same
    input in one tuple, a gate before what it gates. `activation` is the path of the module between the two groups of
    the mlp, `gated` says whether it is applied to the first half of what they give.

    The rest is what structural edits ask for. `parts` are the modules of attention and of the mlp, "" where the block
    runs the linears itself; `order` is that of the rows of queries, keys and values. `heads_alone` says that a head
    goes without moving others: no norm spans all of them. `slopes` says that every head has its own, by its number
    (ALiBi). `tuples` says that a block gives a tuple that opens with the hidden states. `tied` says whether the head is
    the embedding where the configuration does not. `norms_behind` says that a norm stands behind each sub-layer;
    `norm_in_stream` names an entry of the configuration and its value with which norms stand in the residual stream
    itself. `conv1d` says that the linears are transposed on disk. `sdpa` says that transformers has fused
    attention for it, `sdpa_only_with` names an entry of the configuration with which its plain attention is wrong.
    `plain_activation` gives the activation as a function of which derivatives of any kind can be taken, where the
    module is none. `standard` gives a `config.json` with the sizes by the names that most families have; `facts` are
    those that sizes and costs follow from.
    """

    blocks: str
    attention: tuple[tuple[str, ...], ...]
    mlp: tuple[tuple[str, ...], ...]
    activation: str
    gated: bool = True
    parts: tuple[str, str] = ("self_attn", "mlp")
    order: Order = "separate"
    norms: Norms = NORMS
    keys: Keys = KEYS
    heads_alone: bool = True
    slopes: bool = False
    tuples: bool = False
    tied: bool = False
    norms_behind: bool = False
    norm_in_stream: tuple[str, Any] | None = None
    conv1d: bool = False
    sdpa: bool = True
    sdpa_only_with: str | None = None
    plain_activation: Callable[[], Callable[[Tensor], Tensor]] | None = None
    standard: Reader = _AS_IT_IS
    facts: Facts = FACTS

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

    @property
    def attention_output(self) -> str:
        """The linear through which attention writes to the residual stream."""
        return self.attention[-1][0]

    @property
    def mlp_output(self) -> str:
        """The linear through which the feed-forward part writes to the residual stream."""
        return self.mlp[-1][0]

    @property
    def digest(self) -> str:
        """The digest of where the matrices that are pruned live: what records of pruned models depend on.

        What structural edits ask for is not in it: without an edit it decides nothing, and records of before it was
        known would be of another layout.
        """
        names = ("blocks", "attention", "mlp", "activation", "gated")
        canonical = json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATED = (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
_OF_ATTENTION = Keys(attention_bias="attention_bias")


def _like_llama(**changes: Any) -> Anatomy:
    return Anatomy("model.layers", (_QKV, ("self_attn.o_proj",)), _GATED, "mlp.act_fn", **changes)


_FOUR_NORMS = Norms(
    ("input_layernorm", "post_attention_layernorm"), ("pre_feedforward_layernorm", "post_feedforward_layernorm")
)
_OF_BIGSCIENCE = (("self_attention.query_key_value",), ("self_attention.dense",))
_MEGATRON = (("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",))

_BIAS = Flag(False, "attention_bias")
_LLAMA = Facts(biases=(_BIAS, _BIAS, Flag(False, "mlp_bias")))
_GEMMA = Facts(biases=(_BIAS, _BIAS, NO))
_ALL_BIASES = Facts(biases=(YES, YES, YES), layer_norm=True, rotated=0.0)


def _norms_of_falcon(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """One that both parts read in the first decoder, where they run beside each other; else each its own."""
    new = config.get("new_decoder_architecture", False)
    own = config.get("num_ln_in_parallel_attn") != 1 if new else not config.get("parallel_attn", True)
    return (1, 1, 0) if own else (0, 0, 1)


_KNOWN = {
    "llama": _like_llama(keys=Keys(attention_bias="attention_bias", mlp_bias="mlp_bias"), facts=_LLAMA),
    "mistral": _like_llama(),
    "qwen2": _like_llama(facts=Facts(biases=(YES, NO, NO))),
    "qwen3": _like_llama(keys=_OF_ATTENTION, facts=_GEMMA._replace(head_norms=YES)),
    "gemma": _like_llama(keys=_OF_ATTENTION, tied=True, facts=_GEMMA),
    "gemma2": _like_llama(
        keys=_OF_ATTENTION,
        tied=True,
        norms=_FOUR_NORMS,
        norms_behind=True,
        sdpa=False,
        facts=_GEMMA._replace(norms=(2, 2, 0)),
    ),
    "gemma3_text": _like_llama(
        keys=_OF_ATTENTION,
        tied=True,
        norms=_FOUR_NORMS,
        norms_behind=True,
        facts=_GEMMA._replace(norms=(2, 2, 0), head_norms=YES),
    ),
    "opt": Anatomy(
        "model.decoder.layers",
        (_QKV, ("self_attn.out_proj",)),
        (("fc1",), ("fc2",)),
        "activation_fn",
        gated=False,
        parts=("self_attn", ""),
        norms=Norms(("self_attn_layer_norm",), ("final_layer_norm",)),
        keys=Keys(wide="ffn_dim", groups=None, head=None),
        tied=True,
        norm_in_stream=("do_layer_norm_before", False),
        standard=_named(intermediate_size="ffn_dim"),
        facts=Facts(biases=(Flag(True, "enable_bias"),) * 3, layer_norm=True, rotated=0.0, positions=2),
    ),
    "phi": Anatomy(
        "model.layers",
        (_QKV, ("self_attn.dense",)),
        (("mlp.fc1",), ("mlp.fc2",)),
        "mlp.activation_fn",
        gated=False,
        norms=Norms(mlp=()),
        facts=Facts(
            biases=(YES, YES, YES),
            norms=(0, 0, 1),
            layer_norm=True,
            head_norms=Flag(False, "qk_layernorm"),
            rotated=0.5,
            head_bias=True,
            parallel=YES,
        ),
    ),
    "gpt_neox": Anatomy(
        "gpt_neox.layers",
        (("attention.query_key_value",), ("attention.dense",)),
        _MEGATRON,
        "mlp.act",
        gated=False,
        parts=("attention", "mlp"),
        order="groups",
        keys=Keys(groups=None, head=None),
        facts=Facts(
            biases=(Flag(True, "attention_bias"), Flag(True, "attention_bias"), YES),
            layer_norm=True,
            rotated=0.25,
            parallel=Flag(True, "use_parallel_residual"),
        ),
    ),
    "phi3": Anatomy(
        "model.layers",
        (("self_attn.qkv_proj",), ("self_attn.o_proj",)),
        (("mlp.gate_up_proj",), ("mlp.down_proj",)),
        "mlp.activation_fn",
        order="parts",
    ),
    "gpt2": Anatomy(
        "transformer.h",
        (("attn.c_attn",), ("attn.c_proj",)),
        (("mlp.c_fc",), ("mlp.c_proj",)),
        "mlp.act",
        gated=False,
        parts=("attn", "mlp"),
        order="parts",
        norms=Norms(("ln_1",), ("ln_2",)),
        keys=Keys(wide="n_inner", groups=None, head=None),
        tied=True,
        conv1d=True,
        standard=_named(
            num_hidden_layers="n_layer",
            hidden_size="n_embd",
            num_attention_heads="n_head",
            intermediate_size="n_inner",
            max_position_embeddings="n_positions",
        ),
        facts=_ALL_BIASES._replace(positions=0),
    ),
    "bloom": Anatomy(
        "transformer.h",
        _OF_BIGSCIENCE,
        _MEGATRON,
        "mlp.gelu_impl",
        gated=False,
        parts=("self_attention", "mlp"),
        order="groups",
        keys=Keys(wide=None, groups=None, head=None),
        slopes=True,
        tuples=True,
        tied=True,
        sdpa=False,
        plain_activation=_gelu_of_bloom,
        norm_in_stream=("apply_residual_connection_post_layernorm", True),
        standard=_named(
            num_hidden_layers="n_layer",
            hidden_size="n_embed",
            num_attention_heads="n_head",
            max_position_embeddings="seq_length",
        ),
        facts=_ALL_BIASES._replace(embedding_norm=True),
    ),
    "falcon": Anatomy(
        "transformer.h",
        _OF_BIGSCIENCE,
        _MEGATRON,
        "mlp.act",
        gated=False,
        parts=("self_attention", "mlp"),
        order="groups",
        norms=Norms(("input_layernorm", "ln_attn"), ("post_attention_layernorm", "ln_mlp")),
        keys=Keys(wide="ffn_hidden_size", groups=None, head=None),
        slopes=True,
        tuples=True,
        tied=True,
        sdpa_only_with="alibi",  # transformers 5.23 adds the slopes twice: to the scores, and in the mask
        standard=_falcon,
        facts=Facts(
            biases=(Flag(False, "bias"),) * 3,
            norms=_norms_of_falcon,
            layer_norm=True,
            parallel=Flag(True, "parallel_attn"),
        ),
    ),
    "olmo2": _like_llama(
        keys=_OF_ATTENTION,
        norms=Norms(("post_attention_layernorm",), ("post_feedforward_layernorm",)),
        heads_alone=False,
        norms_behind=True,
        facts=Facts(biases=(_BIAS, _BIAS, NO), head_norms=YES, norms_span=True),
    ),
}
FAMILIES: Mapping[str, Anatomy] = MappingProxyType(_KNOWN)
"""`model_type` of the Hugging Face configuration → layout; `family` adds one."""
_OURS = frozenset(_KNOWN)


def family(name: str, layout: Anatomy) -> Anatomy:
    """Register the layout of a family that the harness does not bring, from a file that `plugins=` names.

    It is checked against every model of the family, as ours are (`fitting.py`). One that was registered before is
    replaced, so that a notebook's cell can be mended and run again; ours cannot be.

    Raises:
        UserError: the name or the layout is none, or the harness has another layout for the family.
    """
    if not isinstance(name, str) or not name:
        raise UserError(f"family({name!r}, …): a family's name is the model_type of its config.json.")
    if not isinstance(layout, Anatomy):
        raise UserError(f"family('{name}', …) takes an Anatomy, not a {type(layout).__name__}.")
    if is_ours(name) and layout != FAMILIES[name]:
        raise UserError(f"the model family '{name}' has a layout; a plugin cannot bring another one.")
    _check_fields(name, layout)
    _KNOWN[name] = layout
    return layout


def is_ours(family: str) -> bool:
    """Return whether the harness brings the layout of a family."""
    return family in _OURS


def _check_fields(name: str, layout: Anatomy) -> None:
    """See that fields have the shape of their types: a group of one linear needs its comma.

    Raises:
        UserError: one has not.
    """
    who = f"the layout of family '{name}'"
    for field in ("attention", "mlp"):
        groups = getattr(layout, field)
        if not _is_texts(groups, least=2, of=lambda group: _is_texts(group)) or len(groups[-1]) != 1:
            raise UserError(
                f"{who}: {field}={groups!r} has to be tuples of linears, those that read one input together, the last "
                'of the one that writes to the residual stream, as in (("fc1",), ("fc2",)).'
            )
    if not (_is_texts(layout.parts, least=2) and len(layout.parts) == 2):
        raise UserError(f"{who}: parts={layout.parts!r} has to be two modules, attention's and that of the mlp.")
    if layout.order not in get_args(Order):
        raise UserError(f"{who}: order={layout.order!r} is none of {', '.join(get_args(Order))}.")


def _is_texts(value: Any, least: int = 1, of: Callable[[Any], bool] = lambda one: isinstance(one, str)) -> bool:
    return isinstance(value, tuple | list) and len(value) >= least and all(map(of, value))


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
    digest = FAMILIES[family].digest
    return None if digest == FIRST_LAYOUTS.get(family) else digest


def no_layout(family: str) -> UserError:
    """The error for a family that the harness does not know."""
    return UserError(f"the model family '{family}' has no layout; known: {', '.join(sorted(FAMILIES))}.")
