"""One run, top to bottom: load → compress → evaluate → record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from harness import catalogue
from harness.catalogue import name_of
from harness.compress import Compressed, compress
from harness.config import RunConfig
from harness.core import causes
from harness.evaluation.protocol import measured
from harness.evaluation.zeros import achieved_sites, fraction_of_zeros
from harness.models.attention import in_pieces
from harness.models.checkpoint import weights_hash
from harness.models.decoder import Decoder
from harness.models.fused import fused
from harness.models.loading import fuse_attention
from harness.needs import is_fast
from harness.prepare import Run, protocol_id
from harness.record.dense import is_dense, names_of
from harness.record.provenance import provenance
from harness.record.schema import Record
from harness.record.stages import Stages
from harness.runtime.errors import UserError
from harness.runtime.warn import collected_warnings, warn
from harness.save import save_model
from harness.session import Session


def compute(run: Run, session: Session | None = None) -> Record:
    """Prune and score one model.

    Args:
        session: what earlier points of this process left; None is a run of its own.

    Raises:
        UserError: what a user can get wrong and only shows with the model in memory.
        Refusal: a component cannot do this point.
        Failure: memory runs out however small the batches are.
    """
    session, stages = session or Session(), Stages(run.device)
    with session.point(), collected_warnings() as notes:
        with stages.time("load"):
            decoder, tokenizer = session.load(run)
        checkpoint = run.inputs.checkpoint
        if weights_hash(checkpoint) != run.facts["weights_sha256"]:
            raise UserError(f"the weights in {checkpoint.folder} changed since they were hashed; run again.")
        fast = is_fast(run.cfg, run.dtype.itemsize, run.device.type == "cuda")
        with fused(decoder, wanted=fast), in_pieces(decoder.model):
            done = compress(run, session, stages, decoder, tokenizer)
            fuse_attention(done.decoder.model)
            with stages.time("evaluate"):
                measures = _measures(run, session, done.decoder, tokenizer)
        record = _record(run, session, stages, tokenizer, done, measures)
    return replace(record, notes=(*record.notes, *notes))


def _measures(run: Run, session: Session, decoder: Decoder, tokenizer: Any) -> list[dict[str, Any]]:
    """Measures of the evaluators; of a dense model each evaluation is made once a process."""
    if is_dense(names_of(run.config)):
        measures = session.dense_measures(run, decoder, tokenizer, run.context)
    else:
        judges = run.cfg.evaluators.values()
        measures = [one for judge in judges for one in measured(judge, decoder, tokenizer, run.context)]
    return [one | {"protocol": protocol_id(run.cfg, one["protocol"])} for one in measures]


def _record(
    run: Run, session: Session, stages: Stages, tokenizer: Any, done: Compressed, measures: list[dict[str, Any]]
) -> Record:
    """The record of a run, behind saving the model where that is asked for."""
    cfg, decoder, pruning = run.cfg, done.decoder, done.pruning
    sites = achieved_sites(decoder, done.scope, pruning.allocation, pruning.orders)
    achieved = fraction_of_zeros(decoder, done.scope)
    _warn_about(cfg, achieved, pruning.counts)
    reason, saved = "", None
    if cfg.save is not None:
        try:
            saved = save_model(
                decoder, tokenizer, cfg.save, sites, run.fingerprint, pruning.orders, form=cfg.save_form,
                about=_about(cfg, measures),
            )  # fmt: skip
        except UserError as error:  # the numbers are there and are worth keeping
            reason = str(error)
            warn(reason)
    facts = run.facts | ({"session": session.facts} if session.keeps else {})
    return Record(
        status="failed" if reason else "ok",
        reason=reason,
        fingerprint=run.fingerprint,
        config=run.config,
        sparsity={"asked": cfg.asked, "achieved": achieved, "model": fraction_of_zeros(decoder, None)},
        sites=sites,
        measures=tuple(measures),
        stages=stages.finished,
        provenance=provenance(run.device, facts),
        notes=pruning.notes,
        blocks=pruning.blocks,
        allocation=pruning.of_allocation,
        plan=done.plan,
        parameters={**done.parameters, "saved": saved},
        recovery=done.recovery,
    )


def _about(cfg: RunConfig, measures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A saved model's facts on the run that made it."""
    parts = {"planner": cfg.planner, "recovery": cfg.recovery}
    if cfg.conversion is not None:
        parts["conversion"] = cfg.conversion
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


def without_numbers(run: Run, status: Any, reason: str) -> Record:
    """The record of a run that was skipped or failed."""
    sparsity = {"asked": run.cfg.asked, "achieved": None, "model": None}
    facts = provenance(run.device, run.facts)
    return Record(status, reason, run.fingerprint, run.config, sparsity=sparsity, provenance=facts)
