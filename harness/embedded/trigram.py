"""An interpolated Kneser-Ney trigram model: what local statistics alone can predict of the embedded language."""

from __future__ import annotations

import numpy as np


def _count(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.unique(keys, return_counts=True)


def _lookup(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Values at the wanted keys; 0 where a key was never seen."""
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0).astype(np.float64)


def _discount(counts: np.ndarray) -> float:
    ones, twos = int((counts == 1).sum()), int((counts == 2).sum())
    return ones / (ones + 2 * twos) if ones else 0.5


class Trigram:
    """Trained once on a stream of token ids; answers probabilities of (u, v, w) triples."""

    def __init__(self, text: np.ndarray, vocabulary: int) -> None:
        self.size = vocabulary
        ids = text.astype(np.int64)
        self.keys3, self.counts3 = _count((ids[:-2] * vocabulary + ids[1:-1]) * vocabulary + ids[2:])
        self.d3 = _discount(self.counts3)
        history = self.keys3 // vocabulary
        self.history, first, self.kinds = np.unique(history, return_index=True, return_counts=True)
        self.totals = np.add.reduceat(self.counts3, first)
        # Lower orders count in how many contexts a word was seen, not how often.
        self.keys2, self.counts2 = _count(self.keys3 % (vocabulary * vocabulary))
        self.d2 = _discount(self.counts2)
        self.middle, first, self.kinds2 = np.unique(self.keys2 // vocabulary, return_index=True, return_counts=True)
        self.totals2 = np.add.reduceat(self.counts2, first)
        unigram = np.bincount(self.keys2 % vocabulary, minlength=vocabulary) + 0.5
        self.unigram = unigram / unigram.sum()

    def probabilities(self, text: np.ndarray) -> np.ndarray:
        """The probability of each token from the third on, given the two before it."""
        ids = text.astype(np.int64)
        u, v, w = ids[:-2], ids[1:-1], ids[2:]
        total2 = _lookup(self.middle, self.totals2, v)
        seen2 = np.maximum(_lookup(self.keys2, self.counts2, v * self.size + w) - self.d2, 0)
        spare2 = self.d2 * _lookup(self.middle, self.kinds2, v)
        low = np.where(total2 > 0, (seen2 + spare2 * self.unigram[w]) / np.maximum(total2, 1), self.unigram[w])
        history = u * self.size + v
        total3 = _lookup(self.history, self.totals, history)
        seen3 = np.maximum(_lookup(self.keys3, self.counts3, history * self.size + w) - self.d3, 0)
        spare3 = self.d3 * _lookup(self.history, self.kinds, history)
        return np.where(total3 > 0, (seen3 + spare3 * low) / np.maximum(total3, 1), low)
