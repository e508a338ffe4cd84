"""Types of what is known of a family beside where its matrices are: names of norms and sizes, biases, positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Order = Literal["separate", "parts", "groups"]
"""How the rows of queries, keys and values lie: in three matrices; in one, all queries, then all keys, then all values;
in one, group by group, each the query heads that read a key and value head, then these two."""


class Keys(NamedTuple):
    """Names of sizes in a configuration; None where the class computes them from others, so that they cannot change."""

    wide: str | None = "intermediate_size"
    groups: str | None = "num_key_value_heads"
    head: str | None = "head_dim"
    attention_bias: str | None = None
    mlp_bias: str | None = None


class Norms(NamedTuple):
    """The norms of a block by the sub-layer that they go with, in front of it or behind.

    A block has those of them that its configuration asks for. Where one sub-layer has none of its own, both read the
    other's, which then goes with neither.
    """

    attention: tuple[str, ...] = ("input_layernorm",)
    mlp: tuple[str, ...] = ("post_attention_layernorm",)


KEYS, NORMS = Keys(), Norms()


class Flag(NamedTuple):
    """A yes or no of the family, or of the key of its configuration with what holds where that is not there."""

    default: bool
    key: str = ""

    def of(self, config: Mapping[str, Any]) -> bool:
        """Its value for a configuration."""
        return bool(config.get(self.key, self.default)) if self.key else self.default


NO, YES = Flag(False), Flag(True)


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


FACTS = Facts()
"""Those of a family with no biases and a norm in front of each part."""
