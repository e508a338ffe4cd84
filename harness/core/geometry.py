"""The sizes of a decoder, from which memory, time and the cost of structural edits are counted without a model.

Shapes are written as in the rest of the harness: D hidden size, F feed-forward size, V vocabulary. A key/value group is
a key and a value head with the query heads that read them.
"""

from __future__ import annotations

from dataclasses import dataclass

from harness.core.structure import Part


@dataclass(frozen=True)
class Geometry:
    """The sizes of a decoder: what `conf/model` says of it before there is a checkpoint, or its `config.json`.

    `query` and `key_value` are the widths of all query heads and of all key heads together. With `experts` the
    feed-forward part is that many, `wide` each, of which a token passes through `chosen`. `biases` says which linears
    have one: those of queries, keys and values, that of attention's output, those of the feed-forward part. `norms`
    counts the norms of attention, of the feed-forward part, and those that both read; `head_norms` those over a head,
    or over all heads with `norms_span`. `embedding_norm` is one behind the embedding. A norm has `norm_vectors`
    parameters an element. `positions` are learned ones, `rotated` the dimensions of a head that a rotary embedding
    turns. `embedding` is the width of the embedding where projections lead to D and back. `parallel` says that both
    parts of a block read its input, `norm_first` that they do so through their norms.
    """

    blocks: int
    hidden: int
    wide: int
    query: int
    key_value: int
    heads: int
    vocabulary: int
    gated: bool
    tied: bool
    experts: int = 0
    chosen: int = 0
    biases: tuple[bool, bool, bool] = (False, False, False)
    norms: tuple[int, int, int] = (1, 1, 0)
    head_norms: int = 0
    norms_span: bool = False
    norm_vectors: int = 1
    positions: int = 0
    rotated: int = 0
    embedding: int | None = None
    embedding_norm: bool = False
    head_bias: bool = False
    parallel: bool = False
    norm_first: bool = True

    @property
    def head(self) -> int:
        """The width of one head."""
        return self.query // self.heads

    @property
    def groups(self) -> int:
        """Key/value groups of a block, the units of its attention."""
        return self.key_value // self.head

    @property
    def readers(self) -> int:
        """The matrices of a feed-forward part that read its input."""
        return 2 if self.gated else 1

    @property
    def block_parameters(self) -> int:
        """Weights of the matrices of a block."""
        attention = 2 * self.hidden * (self.query + self.key_value)
        feed_forward = (self.readers + 1) * self.hidden * self.wide
        return attention + feed_forward * max(1, self.experts) + self.experts * self.hidden

    @property
    def outside_parameters(self) -> int:
        """Embedding and head, with the positions, projections and the last norm."""
        width = self.embedding or self.hidden
        words = self.vocabulary * width * (1 if self.tied else 2) + (self.vocabulary if self.head_bias else 0)
        projections = 2 * width * self.hidden if width != self.hidden else 0
        last = self.norm_vectors * self.hidden * (int(self.norm_first) + int(self.embedding_norm))
        return words + projections + self.positions * self.hidden + last

    @property
    def widths(self) -> tuple[int, ...]:
        """Input widths of the matrices of one block."""
        return (self.hidden,) * (5 if self.gated else 4) + (self.query, self.wide)

    @property
    def gram_elements(self) -> int:
        """Of the Gram matrices of a block's distinct inputs: those of attention, of its output, of the part behind."""
        return 2 * self.hidden**2 + self.query**2 + self.wide**2

    @property
    def input_cubes(self) -> int:
        """Σ n³ over the distinct inputs of a block, of n channels each."""
        return 2 * self.hidden**3 + self.query**3 + self.wide**3

    @property
    def solver_elements(self) -> int:
        """Multiplications of one product of each matrix (O, I) of a block with a matrix (I, I) of its inputs."""
        attention = self.hidden**2 * (2 * self.hidden + 2 * self.key_value)
        return attention + self.hidden * self.wide * (self.hidden * self.readers + self.wide)

    @property
    def group_elements(self) -> int:
        """Weights of the largest group of matrices that read the same inputs."""
        readers = self.hidden * self.wide * self.readers
        return max(readers, self.hidden * (self.hidden + 2 * self.key_value))

    def count(self, part: Part) -> int:
        """Units of a part that one block has."""
        counts = {"head": self.groups, "channel": 0 if self.experts else self.wide, "expert": self.experts}
        return counts.get(part, 1)
