"""One run, top to bottom: load → calibrate → plan → allocate → prune → recover → evaluate → record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness import catalogue
from harness.calibration.batches import batched
from harness.calibration.cache import Cache
from harness.calibration.devices import ReplicatedBlock
from harness.calibration.layer_error import WithLayerErrors
from harness.calibration.reference import is_beside_dense, walk_for
from harness.calibration.resume import Block, CheckpointPolicy, FinishedBlocks, cache_key_of, folder_of
from harness.calibration.reuse import ReuseCache
from harness.calibration.stream import StreamedBlock
from harness.calibration.structure_view import DecoderView
from harness.calibration.walk import stream
from harness.catalogue import name_of
from harness.config import RunConfig
from harness.core import causes, checked
from harness.core.allocation import Allocation, Budget
from harness.core.interfaces import Pruned
from harness.core.pattern import misfit
from harness.core.rng import rng
from harness.data.windows import calibration_windows
from harness.evaluation.parameters import count_parameters, sizes_of
from harness.evaluation.protocol import Context, measured
from harness.evaluation.zeros import achieved_sites, fraction_of_zeros
from harness.methods.each import as_block_method
from harness.models.attention import in_pieces
from harness.models.checkpoint import weights_hash
from harness.models.decoder import Decoder
from harness.models.fused import fused
from harness.models.loading import fuse_attention
from harness.models.surgery import operate
from harness.needs import is_fast, tokens_at_once
from harness.prepare import Prepared, protocol_id
from harness.record.dense import is_dense, names_of
from harness.record.provenance import provenance
from harness.record.schema import Record
from harness.record.stages import Stages
from harness.recovered import converted, recovered
from harness.runtime.errors import Refusal, UserError
from harness.runtime.warn import collected_warnings, warn
from harness.save import check_form, save_model
from harness.session import Session


@dataclass(frozen=True)
class Compressed:
    """What was done: the pattern asked of each site, the blocks in scope, what was left out, warnings, what was told,
    and what pruning left of each site.

    `recovery` is what the recovery logged. `orders` holds the inputs (I,) of a matrix in the order in which its pattern
    holds, where that is not their own.
    """

    decoder: Decoder
    allocation: Allocation
    scope: Sequence[int]
    plan: Mapping[str, Any]
    parameters: Mapping[str, int | None]
    notes: tuple[str, ...]
    blocks: Mapping[str, Mapping[str, Any]]
    diagnostics: Mapping[str, Any]
    orders: Mapping[str, Tensor]
    counts: Mapping[str, causes.Counts]
    recovery: Mapping[str, Any]


def run(cfg: RunConfig, ready: Prepared, session: Session | None = None) -> Record:
    """Prune and score one model.

    Args:
        session: what earlier points of this process left; None is a run of its own.

    Raises:
        UserError: what a user can get wrong and only shows with the model in memory.
        Refusal: a component cannot do this point.
        Failure: memory runs out however small the batches are.
    """
    session = session or Session()
    with session.point(), collected_warnings() as notes:
        record = _run(cfg, ready, session)
    return replace(record, notes=(*record.notes, *notes))


def _run(cfg: RunConfig, ready: Prepared, session: Session) -> Record:
    stages = Stages(ready.device)
    with stages.time("load"):
        decoder, tokenizer = session.load(cfg, ready)
    if weights_hash(ready.inputs.checkpoint) != ready.facts["weights_sha256"]:
        raise UserError(f"the weights in {ready.inputs.checkpoint.folder} changed since they were hashed; run again.")
    fast = is_fast(cfg, ready.dtype.itemsize, ready.device.type == "cuda")
    with fused(decoder, wanted=fast), in_pieces(decoder.model):
        compressed = _compress(cfg, ready, session, stages, decoder, tokenizer)
        decoder = compressed.decoder
        fuse_attention(decoder.model)
        with stages.time("evaluate"):
            context = Context(ready.inputs.evaluation_window, cfg.evaluation_limit, cfg.seed, ready.device)
            if is_dense(names_of(ready.config)):
                measures = session.dense_measures(cfg, ready, decoder, tokenizer, context)
            else:
                judges = cfg.evaluators.values()
                measures = [one for judge in judges for one in measured(judge, decoder, tokenizer, context)]
            measures = [one | {"protocol": protocol_id(cfg, one["protocol"])} for one in measures]
    sites = achieved_sites(decoder, compressed.scope, compressed.allocation, compressed.orders)
    achieved = fraction_of_zeros(decoder, compressed.scope)
    _warn_about(cfg, achieved, compressed.counts)
    reason = ""
    if cfg.save is not None:
        try:
            about = _about(cfg, measures)
            save_model(
                decoder,
                tokenizer,
                cfg.save,
                sites,
                ready.fingerprint,
                compressed.orders,
                form=cfg.save_form,
                about=about,
            )
        except UserError as error:  # the numbers are there and are worth keeping
            reason = str(error)
            warn(reason)
    return Record(
        status="failed" if reason else "ok",
        reason=reason,
        fingerprint=ready.fingerprint,
        config=ready.config,
        sparsity={"asked": cfg.asked, "achieved": achieved, "model": fraction_of_zeros(decoder, None)},
        sites=sites,
        measures=tuple(measures),
        stages=stages.finished,
        provenance=provenance(ready.device, ready.facts | ({"session": session.facts} if session.keeps else {})),
        notes=compressed.notes,
        blocks=compressed.blocks,
        allocation=compressed.diagnostics,
        plan=compressed.plan,
        parameters={
            **compressed.parameters,
            "saved": None if reason or not cfg.save else compressed.parameters["model"],
        },
        recovery=compressed.recovery,
    )


def _about(cfg: RunConfig, measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What a saved model says of the run that made it."""
    parts = {"planner": cfg.planner, "recovery": cfg.recovery}
    if cfg.method is not None:
        parts |= {"method": cfg.method, "allocator": cfg.allocator}
    done = {kind: catalogue.describe(part) for kind, part in parts.items() if name_of(part) != "none"}
    calibration = {"calibration": asdict(cfg.calibration)} if cfg.method is not None else {}
    asked = {"sparsity": str(cfg.pattern)} if cfg.method is not None else {}
    return {"model": cfg.model.name, **done, **asked, **calibration, "seed": cfg.seed, "measures": list(measures)}


def _warn_about(cfg: RunConfig, achieved: float, counts: Mapping[str, causes.Counts]) -> None:
    """Say why zeros achieved and asked differ, where they do."""
    names = {"method": name_of(cfg.method), "allocator": name_of(cfg.allocator), "recovery": name_of(cfg.recovery)}
    if why := causes.difference(cfg.asked, achieved, counts, **names):
        warn(why)


def _compress(
    cfg: RunConfig, ready: Prepared, session: Session, stages: Stages, decoder: Decoder, tokenizer: Any
) -> Compressed:  # fmt: skip
    """Everything between loading and evaluation; the model is changed in place."""
    scope: Sequence[int] = cfg.scope.blocks(decoder.dense_blocks)
    with stages.time("calibrate"):
        batches = []
        if ready.inputs.needs_calibration:
            windows = calibration_windows(cfg.calibration, tokenizer, ready.inputs.calibration_length)
            at_once = tokens_at_once(cfg, ready.dtype.itemsize, ready.device.type == "cuda")
            batches = batched(windows.to(ready.device), at_once)
    with stages.time("plan"):
        view = _view(cfg, ready, decoder, tokenizer, batches, scope)
        decoder, told_of_plan, sizes = _planned(cfg, view, decoder)
        if decoder.cut:
            scope = [index for index in scope if index in decoder.indices]
    if cfg.conversion is not None:
        with stages.time("convert"):
            decoder = converted(cfg, decoder, tokenizer, batches, scope)
    reuse = session.reuse(cfg, batches, edited=bool(told_of_plan) or cfg.conversion is not None)
    allocation: Allocation = {}
    pruned: dict[str, Pruned] = {}
    logged: dict[str, dict[str, Any]] = {}
    counts: dict[str, causes.Counts] = {}
    logged_of_allocation: dict[str, Any] = {}
    if cfg.method is not None:
        with stages.time("allocate"):
            view = _view(cfg, ready, decoder, tokenizer, batches, scope, reuse)
            allocation, logged_of_allocation = _allocated(cfg, view), view.diagnostics
            del view  # with the hidden states that it keeps
        with stages.time("prune"):
            method, walk = _method_and_walk(cfg, reuse, allocation)
            errors = WithLayerErrors(as_block_method(method)) if cfg.layer_error else None
            finished = FinishedBlocks(_checkpoint_policy(cfg, ready, decoder, allocation), partial(_weights, decoder))
            masks = name_of(cfg.recovery) != "none"
            pruned = prune(
                decoder, batches, scope, errors or method, allocation, logged, walk, finished, counts, masks=masks
            )
        if errors:
            stages.move(errors.seconds, "prune", "layer_error")
    with stages.time("recover"):
        kept = {site: result.kept for site, result in pruned.items()}
        recovery = recovered(cfg, ready, decoder, tokenizer, batches, scope, kept)
    notes = [f"{site}: {result.note}" for site, result in pruned.items() if result.note]
    if back := sum(bool(facts.get("fallback")) for facts in logged.values()):
        notes.append(f"{back} of {len(logged)} blocks fell back")
    orders = {site: result.order for site, result in pruned.items() if result.order is not None}
    return Compressed(
        decoder,
        allocation,
        scope,
        told_of_plan,
        sizes,
        tuple(notes),
        logged,
        logged_of_allocation,
        orders,
        counts,
        recovery,
    )


def _planned(cfg: RunConfig, view: DecoderView, decoder: Decoder) -> tuple[Decoder, dict[str, Any], dict[str, int]]:
    """The decoder behind its planner's plan, what there is to say of the plan, and the parameters before and after."""
    plan = checked.plan(name_of(cfg.planner), cfg.planner.plan(view), view.geometry)
    logged = {"edit": plan.edit.json(), **view.diagnostics} if plan.edit or plan.tensors or view.diagnostics else {}
    dense = count_parameters(decoder)
    if plan.edit or plan.tensors:
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
    cfg: RunConfig, ready: Prepared, decoder: Decoder, tokenizer: Any, batches: list[Tensor], scope: Sequence[int],
    reuse: ReuseCache | None = None,
) -> DecoderView:  # fmt: skip
    """What planner and allocator may ask. Further windows of the calibration text have a seed of their own."""

    def draw(count: int) -> Tensor:
        seed = rng(cfg.calibration.seed, "windows of a search").randrange(2**32)
        further = replace(cfg.calibration, windows=count, seed=seed)
        return calibration_windows(further, tokenizer, ready.inputs.calibration_length).to(ready.device)

    return DecoderView(
        decoder, batches, scope, method=cfg.method, seed=cfg.seed, draw=draw,
        cache=Cache(cfg.cache, _belongs(cfg, ready, decoder), cfg.cache_gib),
        weights_sha256=ready.facts["weights_sha256"],
        devices=() if ready.offload.blocks else ready.others, exact=cfg.numerics == "exact", reuse=reuse,
    )  # fmt: skip


def _belongs(cfg: RunConfig, ready: Prepared, decoder: Decoder) -> Mapping[str, Any]:
    """What cached values depend on; behind a plan, on what is cut, and on who gave it tensors."""
    if not decoder.cut:
        return ready.cache_identity
    return {**ready.cache_identity, "cut": decoder.cut.json(), "planner": catalogue.describe(cfg.planner)}


def _checkpoint_policy(cfg: RunConfig, ready: Prepared, decoder: Decoder, allocation: Allocation) -> CheckpointPolicy:
    """Where finished blocks of this run go, and what they depend on."""
    cache_key = cache_key_of(_belongs(cfg, ready, decoder), catalogue.describe(cfg.method), cfg.seed, allocation)
    every = cfg.checkpoint_every
    if ready.offload.blocks and every is not None:
        every = 0.0  # while a block is on the device
    if cfg.inputs == "dense":
        every = None  # each block alone, which is soon done again
    return CheckpointPolicy(folder_of(cfg.cache, ready.fingerprint), cache_key, every, cfg.cache_gib)


def _weights(decoder: Decoder, index: int) -> dict[str, Tensor]:
    return {site: linear.weight.data for site, linear in decoder.linears(index).items()}


def check_fit(method: Any, allocation: Allocation, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Ask before the first weight is touched whether every matrix can carry its pattern.

    Raises:
        Refusal: one cannot, or the method says no.
    """
    refuses = getattr(method, "refuses", lambda pattern, shape: None)
    for site, pattern in allocation.items():
        if why := misfit(pattern, shapes[site]) or refuses(pattern, shapes[site]):
            raise Refusal(f"{site} cannot be pruned: {why}.")


@torch.no_grad()
def prune(
    decoder: Decoder,
    batches: list[Tensor],
    scope: Sequence[int],
    method: Any,
    allocation: Allocation,
    logged: dict[str, dict[str, Any]] | None = None,
    walk: Callable[..., Iterator[StreamedBlock | ReplicatedBlock]] | None = None,
    finished: FinishedBlocks | None = None,
    counts: dict[str, causes.Counts] | None = None,
    *,
    masks: bool = True,
) -> dict[str, Pruned]:
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
    block_method, who = as_block_method(method), name_of(getattr(method, "behind", method))
    try:
        for block in walk(decoder, batches, scope, edited=True, label="prune"):
            earlier = finished.load(block.index) if finished else None
            pruned, facts, counted = earlier or _pruned_block(block, block_method, allocation)
            seen |= counted
            for site, one in pruned.items():
                block.write(site, one.weight)
                kept = one.kept if masks else torch.empty(0, dtype=torch.bool)
                done[site] = Pruned(torch.empty(0), kept, one.note, order=one.order)  # the weight is in the model
            if logged is not None and facts:
                logged[str(block.index)] = dict(facts)
            if finished and earlier is None:
                finished.add(block.index, Block({site: done[site] for site in pruned}, facts, counted))
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


def _pruned_block(block: StreamedBlock | ReplicatedBlock, method: Any, allocation: Allocation) -> Block:
    """What a method makes of a block, and the zeros that are counted in it."""
    patterns = {site: allocation[site] for site in block.weights}
    pruned = method.prune_block(block, patterns)
    weights = getattr(block, "dense", block.weights)  # a method that writes as it goes leaves them there
    counted = {
        site: causes.counted(weights[site], one.weight, one.kept, patterns[site], one.unseen)
        for site, one in pruned.items()
    }
    return Block(pruned, block.diagnostics, counted)


def without_numbers(cfg: RunConfig, ready: Prepared, status: Any, reason: str) -> Record:
    """The record of a run that was skipped or failed."""
    sparsity = {"asked": cfg.asked, "achieved": None, "model": None}
    facts = provenance(ready.device, ready.facts)
    return Record(status, reason, ready.fingerprint, ready.config, sparsity=sparsity, provenance=facts)
