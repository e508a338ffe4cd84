"""The stages between loading and evaluation: calibrate → plan → convert → allocate → prune → recover."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import catalogue
from harness.calibration.cache.resume import Block, CheckpointPolicy, FinishedBlocks, cache_key_of, folder_of
from harness.calibration.cache.reuse import ReuseCache
from harness.calibration.cache.values import Cache
from harness.calibration.views.structure import DecoderView
from harness.calibration.walk.batches import batched, calibration_tokens
from harness.calibration.walk.blocks import stream
from harness.calibration.walk.devices import ReplicatedBlock
from harness.calibration.walk.layer_error import WithLayerErrors
from harness.calibration.walk.reference import is_beside_dense, walk_for
from harness.calibration.walk.stream import StreamedBlock
from harness.catalogue import name_of
from harness.config import RunConfig
from harness.core import causes, checked
from harness.core.allocation import Allocation, Budget
from harness.core.interfaces import Pruned, WrittenView, behind
from harness.core.pattern import Pattern, misfit
from harness.core.rng import rng
from harness.data.corpora import read_text
from harness.data.packed import training_windows
from harness.data.windows import calibration_windows
from harness.evaluation.parameters import count_parameters, sizes_of
from harness.methods.each import as_block_method
from harness.models.decoder import Decoder
from harness.models.surgery import operate
from harness.prepare import Run, within
from harness.record.stages import Stages
from harness.recovered import converted, recovered
from harness.runtime.errors import Refusal
from harness.runtime.warn import warn
from harness.save import check_form
from harness.session import Session


@dataclass
class Pruning:
    """Result of pruning: the pattern asked of each site, and what the method gave, counted and said.

    `of_allocation` is what the allocator logged, `blocks` what the method logged of each block, by its index; `counts`
    are the zeros in every matrix.
    """

    allocation: Allocation = field(default_factory=dict)
    of_allocation: Mapping[str, Any] = field(default_factory=dict)
    pruned: dict[str, Pruned] = field(default_factory=dict)
    blocks: dict[str, dict[str, Any]] = field(default_factory=dict)
    counts: dict[str, causes.Counts] = field(default_factory=dict)

    @property
    def orders(self) -> dict[str, Tensor]:
        """Site → the inputs (I,) in the order in which its pattern holds, where that is not their own."""
        return {site: one.order for site, one in self.pruned.items() if one.order is not None}

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes that a reader of the record needs."""
        notes = [f"{site}: {one.note}" for site, one in self.pruned.items() if one.note]
        if back := sum(bool(facts.get("fallback")) for facts in self.blocks.values()):
            notes.append(f"{back} of {len(self.blocks)} blocks fell back")
        return tuple(notes)


@dataclass(frozen=True)
class Compressed:
    """A decoder behind all stages, the blocks in scope that it has left, and what the stages say of what they did."""

    decoder: Decoder
    scope: Sequence[int]
    plan: Mapping[str, Any]
    parameters: Mapping[str, int | None]
    pruning: Pruning
    recovery: Mapping[str, Any]


def compress(run: Run, session: Session, stages: Stages, decoder: Decoder, tokenizer: Any) -> Compressed:
    """Take a loaded decoder through the stages of a run; its model is changed in place.

    Raises:
        Refusal: a component cannot do this.
        Failure: one gave something that cannot be, or memory ran out.
    """
    cfg, pruning = run.cfg, Pruning()
    scope: Sequence[int] = cfg.scope.blocks(decoder.dense_blocks)
    with stages.time("calibrate"):
        batches = _calibrated(run, tokenizer)
    with stages.time("plan"):
        view = _view(run, decoder, tokenizer, batches, scope, planning=True)
        decoder, plan, parameters = _planned(cfg, view, decoder)
        scope = [index for index in scope if index in decoder.indices] if decoder.cut else scope
    if cfg.conversion is not None:
        with stages.time("convert"):
            decoder = converted(cfg, decoder, tokenizer, batches, scope)
    if cfg.method is not None:
        reuse = session.reuse(cfg, batches, edited=bool(plan) or cfg.conversion is not None)
        with stages.time("allocate"):
            view = _view(run, decoder, tokenizer, batches, scope, reuse)
            pruning.allocation, pruning.of_allocation = _allocated(cfg, view), view.diagnostics
            del view  # with the hidden states that it keeps
        with stages.time("prune"):
            method, walk = _method_and_walk(cfg, reuse, pruning.allocation)
            errors = WithLayerErrors(as_block_method(method)) if cfg.layer_error else None
            policy = _checkpoint_policy(run, decoder, pruning.allocation)
            pruning.pruned = prune(
                decoder, batches, scope, errors or method, pruning.allocation, pruning.blocks, walk,
                FinishedBlocks(policy, partial(_weights, decoder)), pruning.counts,
                masks=name_of(cfg.recovery) != "none",
            )  # fmt: skip
        if errors:
            stages.move(errors.seconds, "prune", "layer_error")
    with stages.time("recover"):
        kept = {site: one.kept for site, one in pruning.pruned.items()}
        recovery = recovered(run, decoder, tokenizer, batches, scope, kept)
    return Compressed(decoder, scope, plan, parameters, pruning, recovery)


def _calibrated(run: Run, tokenizer: Any) -> list[Tensor]:
    """The calibration windows in batches (B, L); none where nobody looks at them."""
    if not run.inputs.needs_calibration:
        return []
    windows = calibration_windows(run.cfg.calibration, tokenizer, run.inputs.calibration_length)
    at_once = calibration_tokens(run.dtype.itemsize, run.device.type == "cuda", exact=run.cfg.numerics == "exact")
    return batched(windows.to(run.device), at_once)


def _planned(cfg: RunConfig, view: DecoderView, decoder: Decoder) -> tuple[Decoder, dict[str, Any], dict[str, int]]:
    """The decoder behind its planner's plan, what there is to say of the plan, and the parameters before and after."""
    plan = checked.plan(name_of(cfg.planner), cfg.planner.plan(view), view.geometry)
    logged = {"edit": plan.edit.json(), **view.diagnostics} if plan.edit or plan.tensors or view.diagnostics else {}
    dense = count_parameters(decoder)
    if plan.edit or plan.tensors or plan.shifts:
        decoder = operate(decoder, plan)
        if cfg.save is not None:
            check_form(decoder, cfg.save_form)
    return decoder, logged, {"dense": dense, **sizes_of(decoder, view.geometry)}


def _allocated(cfg: RunConfig, view: DecoderView) -> Allocation:
    """The pattern of every site; whether the method takes them is asked before a search takes an hour, and after."""
    check_fit(cfg.method, dict.fromkeys(view.shapes, cfg.pattern), view.shapes)
    answer = cfg.allocator.allocate(view, Budget.of_pattern(cfg.pattern))
    allocation = checked.allocation(name_of(cfg.allocator), answer, view.shapes)
    check_fit(cfg.method, allocation, view.shapes)
    return allocation


def _method_and_walk(
    cfg: RunConfig, reuse: ReuseCache | None, allocation: Allocation
) -> tuple[Any, Callable[..., Iterator[Any]]]:
    """The method, and the walk over the blocks that it wants, both with what other points left where they take it."""
    exact = cfg.numerics == "exact"
    if is_beside_dense(cfg.method):
        if cfg.inputs == "dense":
            raise Refusal(f"method={name_of(cfg.method)} compares pruned with dense inputs; it needs inputs=pruned.")
        return cfg.method, partial(walk_for(cfg.method), exact=exact)
    method = reuse.method(cfg.method, allocation) if reuse else cfg.method
    return method, partial(reuse.walk if reuse else stream, exact=exact)


def _view(
    run: Run, decoder: Decoder, tokenizer: Any, batches: list[Tensor], scope: Sequence[int],
    reuse: ReuseCache | None = None, *, planning: bool = False,
) -> DecoderView:  # fmt: skip
    """The view for planner and allocator. Further windows of the calibration text have a seed of their own.

    Args:
        planning: values that it keeps belong to the dense model, whatever the planner makes of them.
    """
    calibration, own = run.cfg.calibration, run.inputs.calibration_length

    def draw(count: int, length: int = own) -> Tensor:
        seed = rng(calibration.seed, "windows of a search").randrange(2**32)
        further = replace(calibration, windows=count, seed=seed)
        within("the length of further windows", length, run.inputs.checkpoint)
        return calibration_windows(further, tokenizer, length)[:, :length].to(run.device)

    def pack(count: int, length: int) -> Tensor:
        within("the length of packed windows", length, run.inputs.checkpoint)
        where = (calibration.corpus, calibration.split)
        if read_text(*where).windows is not None:  # tokens that were given have no documents
            return draw(count, length)
        return training_windows(*where, tokenizer, length, count * length, calibration.seed).to(run.device)

    return DecoderView(
        decoder, batches, scope, method=run.cfg.method, seed=run.cfg.seed, draw=draw, pack=pack,
        cache=Cache(run.cfg.cache, _belongs(run, decoder, planning=planning), run.cfg.cache_gib),
        weights_sha256=run.facts["weights_sha256"],
        devices=() if run.offload.blocks else run.others, exact=run.cfg.numerics == "exact", reuse=reuse,
    )  # fmt: skip


def _belongs(run: Run, decoder: Decoder, *, planning: bool = False) -> Mapping[str, Any]:
    """The key of cached values: behind a plan, also what is cut, and who gave it tensors; in front of it, neither."""
    if planning:
        return {key: value for key, value in run.cache_identity.items() if key not in ("planner", "conversion")}
    if not decoder.cut:
        return run.cache_identity
    return {**run.cache_identity, "cut": decoder.cut.json(), "planner": catalogue.describe(run.cfg.planner)}


def _checkpoint_policy(run: Run, decoder: Decoder, allocation: Allocation) -> CheckpointPolicy:
    """Where finished blocks of this run go, and what they depend on."""
    cache_key = cache_key_of(_belongs(run, decoder), catalogue.describe(run.cfg.method), run.cfg.seed, allocation)
    every = run.cfg.checkpoint_every
    if run.offload.blocks and every is not None:
        every = 0.0  # while a block is on the device
    if run.cfg.inputs == "dense":
        every = None  # each block alone, which is soon done again
    return CheckpointPolicy(folder_of(run.cfg.cache, run.fingerprint), cache_key, every, run.cfg.cache_gib)


def _weights(decoder: Decoder, index: int) -> dict[str, Tensor]:
    return {site: linear.weight.data for site, linear in decoder.linears(index).items()}


def check_fit(method: Any, allocation: Allocation, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Ask before the first weight is touched whether every matrix can carry its pattern.

    Raises:
        Refusal: one cannot, or the method says no.
    """
    for site, pattern in allocation.items():
        if why := misfit(pattern, shapes[site]) or method.refuses(pattern, shapes[site]):
            raise Refusal(f"{site} cannot be pruned: {why}.")


@torch.no_grad()
def prune(
    decoder: Decoder, batches: list[Tensor], scope: Sequence[int], method: Any, allocation: Allocation,
    logged: dict[str, dict[str, Any]] | None = None,
    walk: Callable[..., Iterator[StreamedBlock | ReplicatedBlock]] | None = None,
    finished: FinishedBlocks | None = None, counts: dict[str, causes.Counts] | None = None, *, masks: bool = True,
) -> dict[str, Pruned]:  # fmt: skip
    """Block by block, the next one seeing what was done to this one.

    Args:
        finished: blocks that an earlier attempt left are taken from it, and new ones are kept there.
        masks: whether to give the masks, which take half as much memory as the weights in 16 bits.

    Returns:
        Site → what the method gave; what it told about blocks is added to `logged`, by index, and the zeros counted in
        every matrix to `counts`.

    Raises:
        Failure: the method gave something that cannot be a pruned weight.
    """
    done: dict[str, Pruned] = {}
    seen: dict[str, Tensor] = {}
    walk = walk or walk_for(method)
    block_method, who = as_block_method(method), name_of(behind(method))
    try:
        for block in walk(decoder, batches, scope, edited=True, label="prune"):
            made = finished.load(block.index) if finished else None
            is_new = made is None
            if made is None:
                patterns = {site: allocation[site] for site in block.weights}
                made = _counted(block, block_method.prune_block(block, patterns), patterns)
            seen |= made.counted
            done |= (left := _put(block, made.pruned, masks=masks))
            if logged is not None and made.diagnostics:
                logged[str(block.index)] = dict(made.diagnostics)
            if finished and is_new:
                finished.add(block.index, made._replace(pruned=left))
    except Exception:
        checked.counts(who, causes.read(seen, allocation))  # a later block stumbles over what an earlier one became
        raise
    found = causes.read(seen, allocation)
    checked.counts(who, found)
    if counts is not None:
        counts |= found
    if finished and finished.loaded:
        warn(f"resumed: {finished.loaded} of {len(scope)} blocks are those that an earlier attempt finished")
    return done


def _put(block: StreamedBlock | ReplicatedBlock, pruned: Mapping[str, Pruned], *, masks: bool) -> dict[str, Pruned]:
    """Write pruned weights into a block; what is left to say of them no longer holds them."""
    for site, one in pruned.items():
        block.write(site, one.weight)
    nothing = torch.empty(0)
    return {
        site: Pruned(nothing, one.kept if masks else nothing.bool(), one.note, order=one.order)
        for site, one in pruned.items()
    }


def _counted(
    block: StreamedBlock | ReplicatedBlock, pruned: Mapping[str, Pruned], patterns: Mapping[str, Pattern]
) -> Block:
    """Result of a method on a block, with the zeros that are counted in it."""
    weights = block.dense if isinstance(block, WrittenView) else block.weights
    counted = {
        site: causes.counted(weights[site], one.weight, one.kept, patterns[site], one.unseen)
        for site, one in pruned.items()
    }
    return Block(pruned, block.diagnostics, counted)
