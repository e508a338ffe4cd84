"""Two stages of a run around pruning: the conversion before it, and the recovery behind it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import catalogue
from harness.calibration.cache.resume import CheckpointPolicy, folder_of, source_hash
from harness.catalogue import name_of
from harness.config import RunConfig
from harness.core import checked
from harness.core.recoveries import Adapter, WholeRecovery
from harness.core.rng import rng
from harness.data.packed import held_out_windows, training_windows
from harness.evaluation.zeros import check_healed
from harness.models.decoder import Decoder
from harness.prepare import Run
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Text
from harness.training.recover import View, nonzeros, train_adapters, trained

CODE = ("core", "models", "data", "recovery", "training")
"""The packages whose code decides what is trained."""


def converted(cfg: RunConfig, decoder: Decoder, tokenizer: Any, batches: list[Tensor], scope: Sequence[int]) -> Decoder:
    """The decoder that the conversion makes of this one, maybe of another class.

    Raises:
        Failure: it gave something else.
    """
    view = View(decoder, tokenizer, {}, batches, scope, rng(cfg.seed, "conversion"))
    return checked.decoder(name_of(cfg.conversion), cfg.conversion.convert(decoder, view), Decoder)


def recovered(
    run: Run, decoder: Decoder, tokenizer: Any, batches: list[Tensor], scope: Sequence[int],
    kept: Mapping[str, Tensor],
) -> dict[str, Any]:  # fmt: skip
    """Run the recovery, which changes the model in place; where none is asked for, nothing.

    Args:
        kept: the mask (O, I) of every pruned matrix; those of a model that no method pruned are its nonzeros.

    Returns:
        For the record: what the recovery logged.

    Raises:
        Failure: training diverged or memory ran out; or weights are not finite, or zeros that have to stay are gone.
    """
    name, recovery = name_of(run.cfg.recovery), run.cfg.recovery
    if name == "none":
        return {}
    kept = kept or nonzeros(decoder, scope)
    view = View(decoder, tokenizer, kept, batches, scope, rng(run.cfg.seed, "recovery"))
    text = None
    if run.inputs.training:
        corpus, split, length = run.inputs.training
        text = Text(
            training_windows(corpus, split, tokenizer, length, recovery.tokens, run.cfg.seed),
            held_out_windows(corpus, split, tokenizer, length),
        )
        view.log(text=corpus, split=split, sha256=run.facts["data"]["recovery"]["sha256"], length=length)
    if isinstance(recovery, WholeRecovery):
        trains = partial(_train, run, decoder, text) if text else None
        recovery.heal(replace(view, trains=trains))
    else:
        assert text
        view.log(**trained(name, recovery, view, text, run.cfg.seed, partial(_checkpoints, run)))
    check_healed(name, decoder, scope, kept if recovery.keeps_zeros else {})
    return view.logged


def _train(run: Run, decoder: Decoder, text: Text, adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """Train adapters that a recovery made itself, as the shared loop does."""
    checkpoints = _checkpoints(run, [[site, sorted(one.parts)] for site, one in adapters.items()])
    cfg = run.cfg
    return train_adapters(name_of(cfg.recovery), cfg.recovery, decoder, adapters, text, cfg.seed, checkpoints)


def _checkpoints(run: Run, begins: Sequence[Any]) -> Checkpoints:
    """Where training keeps its state: with the finished blocks of this run."""
    cache_key = json.dumps(
        [run.fingerprint, catalogue.describe(run.cfg.recovery), source_hash(CODE), torch.__version__]
    )
    folder = folder_of(run.cfg.cache, run.fingerprint)
    return Checkpoints(CheckpointPolicy(folder, cache_key, run.cfg.checkpoint_every, run.cfg.cache_gib), begins)
