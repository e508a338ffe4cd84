"""Preparations before any work starts: files found and hashed, sizes checked, the fingerprint known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from harness import catalogue
from harness.calibration.derivatives.curvature import REVISION as TRACES
from harness.config import RunConfig
from harness.core.training import Training
from harness.data.corpora import read_text
from harness.data.overlap import refuse_overlap
from harness.evaluation.protocol import Context
from harness.models.anatomy import revised_layout
from harness.models.checkpoint import Checkpoint, architecture, find_checkpoint, tokenizer_hashes, weights_hash
from harness.models.fitting import check_before_loading
from harness.models.geometry import of_config
from harness.models.loading import resolve_dtype
from harness.models.machine import other_gpus, resolve_device
from harness.needs import Need, Offload, check_memory, need_of, work_of
from harness.record.identity import fingerprint
from harness.record.schema import on_dense_inputs
from harness.runtime.errors import UserError
from harness.runtime.memory import GIB
from harness.training.loop import REVISION as LOOP

PIPELINE = 3
"""Raised when loading, streaming or sampling change their numbers on purpose; components have their own revision."""

CACHED_BY = (
    *(
        "pipeline",
        "weights",
        "architecture",
        "layout",
        "tokenizer",
        "dtype",
        "device",
        "scope",
        "planner",
        "conversion",
    ),
    *("calibration", "calibration_data", "numerics", "traces"),
)
"""The parts of an identity that traces and searches share with other runs."""


class TrainingText(NamedTuple):
    """The text that a recovery trains on, and the length of its windows."""

    corpus: str
    split: str
    length: int


@dataclass(frozen=True)
class Inputs:
    """A run whose files were looked at, on whatever machine: nothing is missing or too long."""

    checkpoint: Checkpoint
    default_window: int
    calibration_length: int
    evaluation_window: int
    needs_calibration: bool
    data: Mapping[str, Mapping[str, Any]]
    """The identity of the text or task behind every evaluation, `calibration` where it is needed, and `recovery`."""
    training: TrainingText | None = None


@dataclass(frozen=True)
class Run:
    """A run that can start on this machine: its configuration and inputs, where it computes, what it is known by."""

    cfg: RunConfig
    inputs: Inputs
    device: torch.device
    dtype: torch.dtype
    need: Need
    offload: Offload
    others: tuple[torch.device, ...]
    """Further GPUs that take a share of the windows."""
    facts: dict[str, Any]
    fingerprint: str
    cache_identity: Mapping[str, Any]
    """The key of cached values of this run's model and calibration, see `calibration/cache/values.py`."""
    config: Mapping[str, Any]
    """The configuration as the record keeps it: windows, seed, device and dtype as `null` and `auto` turned out."""

    @property
    def context(self) -> Context:
        """Arguments of every evaluator beside the model."""
        return _context(self.cfg, self.inputs, self.device)


def _context(cfg: RunConfig, inputs: Inputs, device: torch.device) -> Context:
    return Context(inputs.evaluation_window, cfg.evaluation_limit, cfg.seed, device, cfg.numerics == "exact")


def look_up(cfg: RunConfig) -> Inputs:
    """Find every file of a run, downloading what only the hub has; says nothing about this machine.

    Raises:
        UserError: a file is missing or not the one known, a window is longer than the context, …
    """
    checkpoint = find_checkpoint(cfg.model)
    check_before_loading(checkpoint, cfg.model)
    return look_at(cfg, checkpoint)


def look_at(cfg: RunConfig, checkpoint: Checkpoint) -> Inputs:
    """The same for a checkpoint that was found.

    Raises:
        UserError: as `look_up`.
    """
    if checkpoint.blocks is not None:
        cfg.scope.blocks(checkpoint.blocks)
    window = checkpoint.context if cfg.window == "context" else int(cfg.window or min(2048, checkpoint.context))
    length = within("calibration.length", cfg.calibration.length or window, checkpoint)
    evaluation_window = within("evaluation_window", cfg.evaluation_window or window, checkpoint)
    needed = uses_calibration(cfg)
    data = {name: _evaluator_facts(evaluator) for name, evaluator in cfg.evaluators.items()}
    pruning = (cfg.method, cfg.allocator) if cfg.method is not None else ()
    for part in (cfg.planner, cfg.recovery, *cfg.evaluators.values(), *pruning):
        part.check()
    if needed:
        for evaluator in cfg.evaluators.values():
            if evaluator.corpus is not None:
                refuse_overlap((cfg.calibration.corpus, cfg.calibration.split), (evaluator.corpus, evaluator.split))
        data["calibration"] = _text_facts(cfg.calibration.corpus, cfg.calibration.split)
    training = _training_text(cfg, length, checkpoint)
    if training:
        data["recovery"] = {"corpus": training.corpus, "split": training.split, **_text_facts(*training[:2])}
    return Inputs(checkpoint, window, length, evaluation_window, needed, data, training)


def _training_text(cfg: RunConfig, length: int, checkpoint: Checkpoint) -> TrainingText | None:
    """The text of a recovery that trains: its own, or the calibration's; no part of it may be evaluated.

    Raises:
        UserError: unknown text, a window that is longer than the context, or an evaluation text overlaps.
    """
    settings = cfg.recovery
    if not isinstance(settings, Training):
        return None
    own = settings.text is not None
    corpus, split = (settings.text, "train") if own else (cfg.calibration.corpus, cfg.calibration.split)
    for evaluator in cfg.evaluators.values():
        if evaluator.corpus is not None:
            evaluated = (evaluator.corpus, evaluator.split)
            refuse_overlap((str(corpus), split), evaluated, what="training", advice="train")
    return TrainingText(str(corpus), split, within("recovery.length", settings.length or length, checkpoint))


def prepare(cfg: RunConfig, inputs: Inputs | None = None) -> Run:
    """Look at everything that can be wrong before a model is loaded, on the machine that will load it.

    Args:
        inputs: what `look_up` found, if it was asked already.

    Raises:
        UserError: as `look_up`; or the device is not there, or memory is short.
    """
    _check_form(cfg)
    inputs = inputs or look_up(cfg)
    device = resolve_device(cfg.device)
    dtype = resolve_dtype(cfg.dtype, inputs.checkpoint, device)
    need = _need(cfg, inputs, dtype, device)
    _check_database(cfg, inputs, dtype, device)
    offload = check_memory(need, cfg.offload, device)
    if offload.blocks:
        _refuse_offload(cfg, inputs)
    alone = cfg.numerics == "exact" or cfg.inputs == "dense"
    others = () if alone else tuple(other_gpus(cfg.device, device))
    context = _context(cfg, inputs, device)
    protocols = {name: evaluator.protocol(context) for name, evaluator in cfg.evaluators.items()}
    described = {
        name: {"protocol": {"id": protocol_id(cfg, protocol), **protocol.settings}}
        for name, protocol in protocols.items()
    }
    data = {name: {**facts, **described.get(name, {})} for name, facts in inputs.data.items()}
    facts: dict[str, Any] = {
        "weights_sha256": weights_hash(inputs.checkpoint),
        "model_revision": inputs.checkpoint.revision,
        "dtype": _name(dtype),
        "defaults": {"window": inputs.default_window, "dtype": _default_dtype(inputs, device)},
        "revisions": revisions(cfg),
        "data": data,
        "placement": {"offload": offload.blocks, "devices": 1 + len(others)},
    }
    identity = _identity(cfg, inputs, facts, device, context)
    cache_identity = {key: identity[key] for key in CACHED_BY if key in identity}
    resolved = _resolved(cfg, inputs, device, dtype)
    return Run(
        cfg, inputs, device, dtype, need, offload, others, facts, fingerprint(identity), cache_identity, resolved
    )  # fmt: skip


def _refuse_offload(cfg: RunConfig, inputs: Inputs) -> None:
    """Refuse what needs a model that stays on its device.

    Raises:
        UserError: the run has it.
    """
    if cfg.inputs == "dense":
        raise UserError("inputs=dense needs a model that stays on its device; this one would be offloaded.")
    kinds = [kind for kind, wanted in (("recovery", inputs.training), ("conversion", cfg.conversion)) if wanted]
    needing = [f"{kind}={catalogue.name_of(getattr(cfg, kind))}" for kind in kinds]
    needing += [f"evaluation={name}" for name, evaluator in cfg.evaluators.items() if evaluator.needs_resident]
    if needing:
        raise UserError(
            f"{needing[0]} needs a model that stays on its device; with offload its weights would wait in host memory."
        )


def protocol_id(cfg: RunConfig, protocol: object) -> str:
    """The id under which a run's measures of a protocol are recorded."""
    is_other = cfg.method is not None and cfg.inputs == "dense"
    return on_dense_inputs(str(protocol)) if is_other else str(protocol)


def revisions(cfg: RunConfig) -> dict[str, Any]:
    """The revision of everything that decides the numbers; a record of others is of an earlier version."""
    parts = {"method": cfg.method, "allocator": cfg.allocator} if cfg.method else {}
    parts |= {"planner": cfg.planner, "recovery": cfg.recovery, **cfg.evaluators}
    if cfg.conversion is not None:
        parts["conversion"] = cfg.conversion
    layout = revised_layout(str((cfg.composed["model"].get("geometry") or {}).get("family")))
    revised = {"layout": layout} if layout else {}
    return {"pipeline": PIPELINE, **revised} | {name: catalogue.revision(part) for name, part in parts.items()}


def _resolved(cfg: RunConfig, inputs: Inputs, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    calibration = {"length": inputs.calibration_length, "seed": cfg.calibration.seed}
    return {
        **cfg.composed,
        "calibration": {**cfg.composed["calibration"], **calibration},
        "evaluation_window": inputs.evaluation_window,
        "device": str(device),
        "dtype": _name(dtype),
    }


def _default_dtype(inputs: Inputs, device: torch.device) -> str | None:
    try:
        return _name(resolve_dtype("auto", inputs.checkpoint, device))
    except UserError:  # stored in a dtype that nobody computes in: one has to be chosen
        return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def within(option: str, length: int, checkpoint: Checkpoint) -> int:
    """A length in tokens that the model's context holds.

    Raises:
        UserError: it is longer.
    """
    if length > checkpoint.context:
        raise UserError(f"{option}={length} is longer than the model's context of {checkpoint.context} tokens.")
    return length


def uses_calibration(cfg: RunConfig) -> bool:
    """Return whether any component asks the model about inputs."""
    if cfg.planner.needs_calibration or cfg.recovery.needs_calibration:
        return True
    if cfg.conversion is not None and cfg.conversion.needs_calibration:
        return True
    if cfg.method is None:
        return False
    return cfg.layer_error or cfg.allocator.needs_calibration or cfg.method.statistic is not None


def _is(kind: str, name: str, instance: object) -> bool:
    return type(instance) is catalogue.lookup(kind, name)


def _need(cfg: RunConfig, inputs: Inputs, dtype: torch.dtype, device: torch.device) -> Need:
    """The memory of a run, with the weights as large as their files are."""
    stored = 4 if inputs.checkpoint.stored_dtype == "float32" else 2
    return need_of(
        cfg, of_config(inputs.checkpoint.config), length=inputs.calibration_length, window=inputs.evaluation_window,
        itemsize=dtype.itemsize, weights=inputs.checkpoint.size * dtype.itemsize / stored,
        calibrated=inputs.needs_calibration, cuda=device.type == "cuda",
    )  # fmt: skip


def _check_form(cfg: RunConfig) -> None:
    """Refuse to save as a plain checkpoint what none holds.

    Raises:
        UserError: the recovery leaves such a model.
    """
    if cfg.save is not None and cfg.save_form == "padded" and not cfg.recovery.leaves_plain:
        raise UserError(
            f"recovery={catalogue.name_of(cfg.recovery)} leaves maps in the model that no plain checkpoint holds; take "
            "save_form=sliced."
        )


def _check_database(cfg: RunConfig, inputs: Inputs, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse a level database that the cache may not hold before the model is loaded.

    Raises:
        UserError: it may not.
    """
    if cfg.method is None or cfg.cache_gib is None:
        return
    geometry, cuda = of_config(inputs.checkpoint.config), device.type == "cuda"
    work = work_of(cfg, geometry, inputs.calibration_length, inputs.evaluation_window, dtype.itemsize, cuda=cuda)
    needed = cfg.allocator.cost(geometry, work).stored_bytes / GIB
    if needed > cfg.cache_gib:
        raise UserError(
            f"the level database needs {needed:.3g} GiB in {cfg.cache}, cache_gib={cfg.cache_gib:g} allows less; take "
            "fewer levels (allocator.step, allocator.reach, allocator.levels), allocator.database=memory or a higher "
            "limit."
        )


def _text_facts(corpus: str, split: str) -> dict[str, Any]:
    text = read_text(corpus, split)
    return {"sha256": text.sha256, "source": text.source, "revision": text.revision, "rows": len(text.rows)}


def _evaluator_facts(evaluator: Any) -> dict[str, Any]:
    if evaluator.corpus is not None:
        return _text_facts(evaluator.corpus, evaluator.split)
    return {"sha256": evaluator.data_hash()}


def _identity(
    cfg: RunConfig, inputs: Inputs, facts: Mapping[str, Any], device: torch.device, context: Context
) -> dict[str, Any]:
    """Everything that decides the numbers; where and in how many batches it was computed is not in it."""
    identity: dict[str, Any] = {
        "pipeline": PIPELINE,
        "weights": facts["weights_sha256"],
        "architecture": architecture(inputs.checkpoint),
        "tokenizer": tokenizer_hashes(inputs.checkpoint),
        "dtype": facts["dtype"],
        "device": device.type,
        "scope": cfg.scope.text,
        "planner": catalogue.describe(cfg.planner),
        "recovery": _recovery_identity(cfg, inputs, facts),
        "evaluation": {
            name: [str(evaluator.protocol(context)), catalogue.describe(evaluator), facts["data"][name]["sha256"]]
            for name, evaluator in cfg.evaluators.items()
        },
    }
    if layout := revised_layout(str(inputs.checkpoint.config.get("model_type"))):
        identity["layout"] = layout
    if cfg.conversion is not None:
        identity |= {"conversion": catalogue.describe(cfg.conversion), "seed": cfg.seed}
    if cfg.numerics == "exact":
        identity["numerics"] = "exact"
    if cfg.method is not None:
        identity |= {
            "method": catalogue.describe(cfg.method),
            "allocator": catalogue.describe(cfg.allocator),
            "sparsity": str(cfg.pattern),
            "fraction": cfg.pattern.sparsity,
        }
        if cfg.inputs != "pruned":
            identity["inputs"] = cfg.inputs
        if cfg.layer_error:
            identity["layer_error"] = True
        if cfg.allocator.asks_for_traces and facts["dtype"] != "float32":
            identity["traces"] = TRACES  # in float32 all revisions are one
    if cfg.method is not None or inputs.needs_calibration or not _is("recovery", "none", cfg.recovery):
        calibration = dataclasses.replace(cfg.calibration, length=inputs.calibration_length)
        identity |= {
            "calibration": dataclasses.asdict(calibration),
            "calibration_data": facts["data"].get("calibration", {}).get("sha256"),
            "seed": cfg.seed,
        }
    return identity


def _recovery_identity(cfg: RunConfig, inputs: Inputs, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The settings behind a recovery's numbers: its own, its text where it has one, the revision of the loop."""
    described = catalogue.describe(cfg.recovery)
    if inputs.training is None:
        return described
    text = inputs.training._asdict() | {"sha256": facts["data"]["recovery"]["sha256"]}
    return {key: value for key, value in described.items() if key not in ("text", "length")} | {
        "training": text | {"loop": LOOP}
    }
