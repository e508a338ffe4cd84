"""The geometry of a checkpoint, from its `config.json` or from `conf/model`: family facts that no layout holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from harness.core.geometry import Geometry
from harness.models.anatomy import FAMILIES


class Flag(NamedTuple):
    """A yes or no of the family, or of the key of its configuration with what holds where that is not there."""

    default: bool
    key: str = ""

    def of(self, config: Mapping[str, Any]) -> bool:
        """Its value for a configuration."""
        return bool(config.get(self.key, self.default)) if self.key else self.default


NO, YES = Flag(False), Flag(True)
_ATTENTION = Flag(False, "attention_bias")


class Facts(NamedTuple):
    """Facts of a family's blocks beside their matrices; the fields of `Geometry` say more.

    `norms` are counted as there, or follow from the configuration. `layer_norm`: norms have a bias beside their weight;
    `embedding_norm`: one stands behind the embedding; `norms_span`: those of heads span all of them. `rotated` is the
    share of a head that is turned, `positions` how many learned positions there are beside those of the context, None
    where they are not learned.
    """

    biases: tuple[Flag, Flag, Flag] = (NO, NO, NO)
    norms: tuple[int, int, int] | Callable[[Mapping[str, Any]], tuple[int, int, int]] = (1, 1, 0)
    layer_norm: bool = False
    embedding_norm: bool = False
    head_norms: Flag = NO
    norms_span: bool = False
    rotated: float = 1.0
    positions: int | None = None
    head_bias: bool = False
    parallel: Flag = NO


_OPT_BIAS = Flag(True, "enable_bias")
_NEOX_BIAS = Flag(True, "attention_bias")
_GEMMA = Facts(biases=(_ATTENTION, _ATTENTION, NO))


def _norms_of_falcon(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """One that both parts read in the first decoder, where they run beside each other; else each its own."""
    new = config.get("new_decoder_architecture", False)
    own = config.get("num_ln_in_parallel_attn") != 1 if new else not config.get("parallel_attn", True)
    return (1, 1, 0) if own else (0, 0, 1)


FACTS = {
    "llama": Facts(biases=(_ATTENTION, _ATTENTION, Flag(False, "mlp_bias"))),
    "qwen2": Facts(biases=(YES, NO, NO)),
    "qwen3": Facts(biases=(_ATTENTION, _ATTENTION, NO), head_norms=YES),
    "gemma": _GEMMA,
    "gemma2": _GEMMA._replace(norms=(2, 2, 0)),
    "gemma3_text": _GEMMA._replace(norms=(2, 2, 0), head_norms=YES),
    "opt": Facts(biases=(_OPT_BIAS,) * 3, layer_norm=True, rotated=0.0, positions=2),
    "phi": Facts(
        biases=(YES, YES, YES), norms=(0, 0, 1), layer_norm=True, head_norms=Flag(False, "qk_layernorm"), rotated=0.5,
        head_bias=True, parallel=YES,
    ),
    "gpt_neox": Facts(
        biases=(_NEOX_BIAS, _NEOX_BIAS, YES), layer_norm=True, rotated=0.25,
        parallel=Flag(True, "use_parallel_residual"),
    ),
    "gpt2": Facts(biases=(YES, YES, YES), layer_norm=True, rotated=0.0, positions=0),
    "bloom": Facts(biases=(YES, YES, YES), layer_norm=True, embedding_norm=True, rotated=0.0),
    "falcon": Facts(
        biases=(Flag(False, "bias"),) * 3, norms=_norms_of_falcon, layer_norm=True, parallel=Flag(True, "parallel_attn")
    ),
    "olmo2": Facts(biases=(_ATTENTION, _ATTENTION, NO), head_norms=YES, norms_span=True),
}  # fmt: skip
"""`model_type` → facts; a family that is not named has no biases and a norm in front of each part."""


def of_facts(facts: Mapping[str, Any]) -> Geometry:
    """The geometry that `conf/model` holds; `head_dim` is there where it is not the hidden size over the heads."""
    names = {
        "family": "model_type", "blocks": "num_hidden_layers", "hidden": "hidden_size",
        "intermediate": "intermediate_size", "heads": "num_attention_heads", "kv_heads": "num_key_value_heads",
        "head_dim": "head_dim", "vocabulary": "vocab_size", "context": "max_position_embeddings",
        "tied": "tie_word_embeddings",
    }  # fmt: skip
    return of_config({names[name]: value for name, value in facts.items() if name in names})


def of_config(config: Mapping[str, Any]) -> Geometry:
    """The geometry that a checkpoint's `config.json` describes; what it leaves out is as small as it can be."""
    family = str(config.get("model_type"))
    facts, layout = FACTS.get(family, Facts()), FAMILIES.get(family)
    config = layout.standard(config) if layout else config
    hidden, heads = int(config.get("hidden_size") or 1), int(config.get("num_attention_heads") or 1)
    head = int(config.get("head_dim") or hidden // heads or 1)
    vectors = 2 if facts.layer_norm else 1
    context = int(config.get("max_position_embeddings") or 0)
    return Geometry(
        blocks=int(config.get("num_hidden_layers") or 1),
        hidden=hidden,
        wide=int(config.get("intermediate_size") or config.get("ffn_dim") or 4 * hidden),
        query=head * heads,
        key_value=head * int(config.get("num_key_value_heads") or heads),
        heads=heads,
        vocabulary=int(config.get("vocab_size") or 1),
        gated=layout is None or layout.gated,
        tied=bool(config.get("tie_word_embeddings", layout is not None and layout.tied)),
        biases=tuple(flag.of(config) for flag in facts.biases),  # type: ignore[arg-type]
        norms=facts.norms(config) if callable(facts.norms) else facts.norms,
        head_norms=2 if facts.head_norms.of(config) else 0,
        norms_span=facts.norms_span,
        norm_vectors=vectors,
        positions=0 if facts.positions is None else context + facts.positions,
        rotated=int(head * _rotated(config, facts)),
        embedding=config.get("word_embed_proj_dim"),
        embedding_norm=facts.embedding_norm,
        head_bias=facts.head_bias,
        parallel=facts.parallel.of(config),
        norm_first=bool(config.get("do_layer_norm_before", True)),
    )


def _rotated(config: Mapping[str, Any], facts: Facts) -> float:
    """The share of a head that is turned."""
    if config.get("alibi"):
        return 0.0
    rope = config.get("rope_parameters") or {}
    for told in (config.get("partial_rotary_factor"), rope.get("partial_rotary_factor"), config.get("rotary_pct")):
        if told is not None:
            return float(told)
    return facts.rotated
