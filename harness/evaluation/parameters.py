"""Parameters of a model, counted."""

from __future__ import annotations

from harness.core.cost import cost
from harness.core.geometry import Geometry
from harness.models.decoder import Decoder


def count_parameters(decoder: Decoder) -> int:
    """All parameters as the model has them now, those that are used twice once."""
    return sum(parameter.numel() for parameter in decoder.model.parameters())


def sizes_of(decoder: Decoder, dense: Geometry) -> dict[str, int]:
    """The parameters of a model, and those of them that one token meets; the multiplications that it takes for 64
    tokens, the bytes of its cache for each token and those of its weights on disk, in the dtype that it has.

    Args:
        dense: the geometry of the dense model.
    """
    itemsize = decoder.model.dtype.itemsize
    count, left = count_parameters(decoder), cost(decoder.cut, dense, itemsize=itemsize)
    return {
        "model": count,
        "active": count - (left.parameters - left.active),
        "macs": left.macs,
        "kv_bytes": left.kv_bytes,
        "disk_bytes": count * itemsize,
    }
