"""What is settled before any work starts: files found and hashed, sizes checked, the fingerprint known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from harness import catalogue
from harness.config import RunConfig
from harness.core.errors import UserError
from harness.core.statistic import norms
from harness.data.corpora import read_text
from harness.evaluation.perplexity import LOGIT_BYTES, TOKENS_PER_BATCH
from harness.evaluation.protocol import Context
from harness.models.loading import (
    Checkpoint,
    check_memory,
    file_hash,
    find_checkpoint,
    resolve_device,
    resolve_dtype,
    weights_hash,
)
from harness.record.identity import fingerprint

PIPELINE = 3
"""Raised when loading, streaming or sampling change their numbers on purpose; components have their own revision."""


LONGEST_PROMPT = 1024
"""Tokens that the longest zero-shot prompt (BoolQ's) may take."""


@dataclass(frozen=True)
class Prepared:
    """A run whose inputs were looked at: nothing is missing, too long or too large."""

    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    calibration_length: int
    evaluation_window: int
    needs_calibration: bool
    facts: dict[str, Any]
    fingerprint: str


def prepare(cfg: RunConfig) -> Prepared:
    """Look at everything that can be wrong before a model is loaded.

    Raises:
        UserError: a file is missing or not the one known, a window is longer than the context, memory is short, …
    """
    checkpoint = find_checkpoint(cfg.model)
    cfg.scope.blocks(int(checkpoint.config.get("num_hidden_layers", 1)))
    device = resolve_device(cfg.device)
    dtype = resolve_dtype(cfg.dtype, checkpoint, device)
    window = checkpoint.context if cfg.window == "context" else int(cfg.window or min(2048, checkpoint.context))
    length = _within("calibration.length", cfg.calibration.length or window, checkpoint)
    evaluation_window = _within("evaluation_window", cfg.evaluation_window or window, checkpoint)
    needed = cfg.method is not None and _uses_calibration(cfg)
    check_memory(
        checkpoint, dtype, device, _activation_bytes(cfg, checkpoint, dtype, length, evaluation_window, needed)
    )
    context = Context(evaluation_window, cfg.evaluation_limit, cfg.seed, device)
    data = {name: _evaluator_facts(evaluator, context) for name, evaluator in cfg.evaluators.items()}
    if needed:
        data["calibration"] = _text_facts(cfg.calibration.corpus, cfg.calibration.split)
    facts: dict[str, Any] = {
        "weights_sha256": weights_hash(checkpoint),
        "model_revision": checkpoint.revision,
        "dtype": str(dtype).removeprefix("torch."),
        "data": data,
    }
    identity = _identity(cfg, checkpoint, facts, device, context, length)
    return Prepared(checkpoint, device, dtype, length, evaluation_window, needed, facts, fingerprint(identity))


def _within(option: str, length: int, checkpoint: Checkpoint) -> int:
    if length > checkpoint.context:
        raise UserError(f"{option}={length} is longer than the model's context of {checkpoint.context} tokens.")
    return length


def _uses_calibration(cfg: RunConfig) -> bool:
    """Whether any component asks the model about inputs; magnitude with uniform does not."""
    method_asks = getattr(cfg.method, "statistic", norms) is not None
    return method_asks or not _is("allocator", "uniform", cfg.allocator) or not _is("planner", "none", cfg.planner)


def _is(kind: str, name: str, instance: object) -> bool:
    return type(instance) is catalogue.lookup(kind, name)


def _activation_bytes(
    cfg: RunConfig, checkpoint: Checkpoint, dtype: torch.dtype, length: int, window: int, needed: bool
) -> int:
    """Memory beside the weights: two copies of the hidden states, the largest Gram matrices, one batch of logits."""
    config = checkpoint.config
    hidden, vocabulary = int(config.get("hidden_size", 0)), int(config.get("vocab_size", 0))
    wide = int(config.get("intermediate_size") or config.get("ffn_dim") or 4 * hidden)
    calibration = 2 * cfg.calibration.windows * length * hidden * dtype.itemsize + 4 * (wide**2 + 3 * hidden**2) * 3
    logits = 3 * max(min(LOGIT_BYTES, TOKENS_PER_BATCH * vocabulary * 4), window * vocabulary * 4)
    rows = max((getattr(evaluator, "batch_size", 0) for evaluator in cfg.evaluators.values()), default=0)
    logits = max(logits, rows * min(checkpoint.context, LONGEST_PROMPT) * vocabulary * (4 + dtype.itemsize))
    return (calibration if needed else 0) + (logits if cfg.evaluators else 0)


def _text_facts(corpus: str, split: str) -> dict[str, Any]:
    text = read_text(corpus, split)
    return {"sha256": text.sha256, "source": text.source, "revision": text.revision, "rows": len(text.rows)}


def _evaluator_facts(evaluator: Any, context: Context) -> dict[str, Any]:
    if hasattr(evaluator, "corpus"):
        return _text_facts(evaluator.corpus, evaluator.split)
    return {"sha256": evaluator.data_hash(), "protocol": str(evaluator.protocol(context))}


def _identity(
    cfg: RunConfig,
    checkpoint: Checkpoint,
    facts: Mapping[str, Any],
    device: torch.device,
    context: Context,
    length: int,
) -> dict[str, Any]:
    """Everything that decides the numbers; paths, tracker, cluster and perplexity's batch size are not in it."""
    identity: dict[str, Any] = {
        "pipeline": PIPELINE,
        "weights": facts["weights_sha256"],
        "tokenizer": [file_hash(path) for path in sorted(checkpoint.folder.glob("tokenizer*")) if path.is_file()],
        "dtype": facts["dtype"],
        "device": device.type,
        "scope": cfg.scope.text,
        "evaluation": {
            name: [str(evaluator.protocol(context)), _settings(evaluator), facts["data"][name]["sha256"]]
            for name, evaluator in cfg.evaluators.items()
        },
    }
    if cfg.method is None:
        return identity
    return identity | {
        "method": _settings(cfg.method),
        "allocator": _settings(cfg.allocator),
        "planner": _settings(cfg.planner),
        "recovery": _settings(cfg.recovery),
        "sparsity": str(cfg.pattern),
        "fraction": cfg.pattern.sparsity,
        "calibration": dataclasses.asdict(dataclasses.replace(cfg.calibration, length=length)),
        "calibration_data": facts["data"].get("calibration", {}).get("sha256"),
        "seed": cfg.seed,
    }


def _settings(instance: Any) -> dict[str, Any]:
    """A component as plain values, with its name and revision and those of the components it holds."""
    plain: dict[str, Any] = {"name": catalogue.name_of(instance), "revision": catalogue.revision(instance)}
    for field in dataclasses.fields(instance):
        value = getattr(instance, field.name)
        plain[field.name] = _settings(value) if field.metadata.get("component") else value
    return plain
