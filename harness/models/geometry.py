"""The geometry of a checkpoint, from its `config.json` or from `conf/model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.core.geometry import Geometry
from harness.models.anatomy import FAMILIES
from harness.models.facts import FACTS, Facts


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
    layout = FAMILIES.get(family)
    facts = layout.facts if layout else FACTS
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
