"""Steps of a run between pruning and evaluation: its recovery, trained by the harness or healing on its own.

Shapes: O outputs, I inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor

from harness.core.recoveries import Adapter, Scored
from harness.core.rng import rng
from harness.models.decoder import Decoder
from harness.models.placement import placement_of
from harness.models.updates import add_updates
from harness.runtime.errors import Failure, Refusal
from harness.runtime.plain import plain
from harness.training.adapted import Adapted, start, tensors_of
from harness.training.checkpoints import Checkpoints
from harness.training.costs import recomputes
from harness.training.loop import Text, train
from harness.training.scores import Scores


@dataclass(frozen=True)
class View:
    """The pruned model as a recovery or a conversion sees it, see `RecoveryView` and `ConversionView`."""

    decoder: Decoder
    tokenizer: Any
    kept: Mapping[str, Tensor]
    windows: Sequence[Tensor]
    scope: Sequence[int]
    generator: Random
    logged: dict[str, Any] = field(default_factory=dict)
    trains: Callable[[Mapping[str, Adapter]], Mapping[str, Any]] | None = None

    def updates(self, rank: int) -> dict[str, Tensor]:
        """Put a low-rank map, zero as yet, in every place where something is gone; its tensors by name.

        Raises:
            Refusal: there is no such place.
        """
        generator = torch.Generator().manual_seed(self.generator.randrange(2**63))
        found = add_updates(self.decoder, rank, generator)
        placement_of(self.decoder).restructured()
        return found

    def train(self, adapters: Mapping[str, Adapter]) -> None:
        """Train adapters of tensors of the model, by their names, and merge them; what came of it is logged."""
        assert self.trains is not None, "the recovery has no text to train on"
        self.log(**self.trains(adapters))

    def log(self, **facts: Any) -> None:
        """Facts for the record."""
        self.logged.update(plain(facts))


def nonzeros(decoder: Decoder, scope: Sequence[int]) -> dict[str, Tensor]:
    """The masks (O, I) of a model that was pruned elsewhere, or not at all: True where a weight is not zero."""
    return {site: linear.weight.data != 0 for index in scope for site, linear in decoder.linears(index).items()}


def trained(
    name: str, recovery: Any, view: View, text: Text, seed: int, checkpoints: Callable[[Sequence[Any]], Checkpoints]
) -> dict[str, Any]:
    """Train the adapters of a recovery and merge them into the model.

    Args:
        checkpoints: given what the trained parts begin with, the place where training keeps its state.

    Returns:
        For the record: trained parameters, tokens, losses, the share of adapted weights that moved, and the share of
        pruned ones that merging filled.

    Raises:
        Refusal: nothing is left to train.
        Failure: training diverged, or memory ran out; or an adapter does not begin with the pruned model.
    """
    tensors = {site: one.data for index in view.scope for site, one in tensors_of(view.decoder, index).items()}
    kept = {site: mask.to(tensors[site].device) for site, mask in view.kept.items()}
    weights = {site: tensors[site] for site in kept}
    if not weights:
        raise Refusal(f"recovery={name} finds no matrix in scope to train.")
    device = next(iter(weights.values())).device
    recompute = recomputes(recovery, cuda=device.type == "cuda")
    masks: Mapping[str, Tensor] = kept
    if isinstance(recovery, Scored):
        supports = recovery.supports(Scores(view.decoder, weights, kept, text.windows, seed, recompute))
        masks = {site: supports[site].to(device) for site in kept}
    if recovery.vectors:
        others = {site: one for site, one in tensors.items() if one.dim() == 1}
        masks = {**masks, **{site: torch.ones_like(one, dtype=torch.bool) for site, one in others.items()}}
    found = ((site, _adapter(recovery, site, tensors[site], mask, seed)) for site, mask in masks.items())
    adapters = {site: adapter for site, adapter in found if adapter is not None}
    begins = [[site, _digest(tensors[site]), int(mask.sum())] for site, mask in masks.items()]
    facts = train_adapters(name, recovery, view.decoder, adapters, text, seed, checkpoints(begins))
    gone = sum(int((~mask).sum()) for mask in kept.values())
    filled = sum(int(((weights[site] != 0) & ~mask).sum()) for site, mask in kept.items())
    return {**facts, "filled": filled / gone if gone else 0.0}


def train_adapters(
    name: str, recovery: Any, decoder: Decoder, adapters: Mapping[str, Adapter], text: Text, seed: int,
    checkpoints: Checkpoints,
) -> dict[str, Any]:  # fmt: skip
    """Train adapters of some tensors of a decoder and merge them.

    Returns:
        For the record: trained parameters, tokens, losses, the share of adapted weights that moved.

    Raises:
        Failure: as `trained`.
    """
    found = (tensors_of(decoder, index) for index in decoder.indices)
    tensors = {site: one.data for here in found for site, one in here.items() if site in adapters}
    device = next(iter(tensors.values())).device
    parts = {part: tensor.to(device) for part, tensor in start(adapters).items()}
    adapted = Adapted(decoder, adapters, parts, recomputes(recovery, cuda=device.type == "cuda"))
    _check_start(name, tensors, adapted)
    facts = train(name, recovery, adapted, text, seed, checkpoints)
    total, moved = adapted.merge()
    placement_of(decoder).outdated()
    return {
        "trained": sum(part.numel() for part in parts.values()),
        **facts,
        "moved": moved / total if total else 0.0,
    }


def _adapter(recovery: Any, site: str, weight: Tensor, kept: Tensor, seed: int) -> Adapter | None:
    """The adapter of a matrix, with random numbers of its own: another site more or less moves no other's."""
    generator = torch.Generator().manual_seed(rng(seed, f"recovery of {site}").randrange(2**63))
    adapter: Adapter | None = recovery.adapter(weight, kept, generator)
    return adapter


@torch.no_grad()
def _check_start(name: str, weights: Mapping[str, Tensor], adapted: Adapted) -> None:
    """See that training begins with the pruned model.

    Raises:
        Failure: an adapter adds something from the start, or something of another shape.
    """
    for site, adapter in adapted.adapters.items():
        parts = {part: adapted.parts[f"{site}/{part}"] for part in adapter.parts}
        delta = adapter.delta(weights[site], parts)
        if delta.shape != weights[site].shape or bool((delta != 0).any()):
            raise Failure(
                f"the recovery '{name}' adds {list(delta.shape)} to {site} before it is trained, where zeros of the "
                f"shape {list(weights[site].shape)} are due."
            )


def _digest(weight: Tensor) -> float:
    """A number that another weight hardly has: to know a checkpoint of another pruned model."""
    return float(weight.double().square().sum() + 3 * weight.double().sum())
