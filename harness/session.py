"""State of a process between the points of a sweep: one dense model, its tokens and measures, what points share.

Everything is keyed by content (hashes of weights and tokenizer, dtype, device, attention), never by a path alone. A
point is, bit for bit on a CPU, what it is in a process of its own.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.calibration.cache.reuse import ReuseCache, Store, digest
from harness.calibration.walk.checks import self_check
from harness.catalogue import describe
from harness.config import RunConfig
from harness.data.packed import held_out_windows, training_windows
from harness.data.vocabulary import check_tokens, tell_unknown
from harness.data.windows import calibration_windows
from harness.evaluation.protocol import Context, measured
from harness.models.checkpoint import architecture, tokenizer_hashes
from harness.models.decoder import Decoder, decoder_of
from harness.models.loading import load_config, load_model
from harness.models.machine import available, register_reclaimable
from harness.models.placement import Where
from harness.models.tokenizer import load_tokenizer
from harness.prepare import Run
from harness.runtime.errors import Refusal

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STATISTICS = 0.5
"""The share of the memory left beside the models and a point's own needs that statistics may take."""
PATHS = 0.125
"""The share that earlier points' decisions may take."""
TOKENIZERS = 2
"""Tokenizers that are kept, each with the windows cut by it."""
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass
class _Held:
    """A loaded model, what it is known by, what it looked like, and its dense tensors by name."""

    key: str
    decoder: Decoder
    attention: str
    form: Any
    master: Mapping[str, Tensor]
    statistics: Store
    paths: Store


class Session:
    """One model at a time, with what belongs to it; without `keeps` every point loads its own, and shares nothing."""

    def __init__(self, *, keeps: bool = False) -> None:
        self.keeps = keeps
        self.tally: Counter[str] = Counter()
        """How often the running point took something kept, by its kind."""
        self._points = 0
        self._held: _Held | None = None
        self._tokenizers: dict[str, Any] = {}
        self._measures: dict[str, list[dict[str, Any]]] = {}
        if keeps:
            register_reclaimable(self)

    @property
    def facts(self) -> dict[str, Any]:
        """For the record: which point of the process this was, and what it took from earlier ones."""
        return {"point": self._points, "taken": {kind: count for kind, count in self.tally.items() if count}}

    @contextmanager
    def point(self) -> Iterator[None]:
        """One point; if it fails, nothing of its model is trusted any more. A refusal is no failure."""
        self._points += 1
        self.tally = Counter()
        try:
            yield
        except Refusal:
            raise
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        """Let go of the model and of everything that belongs to it."""
        self._held = None

    def reclaimable(self, device: torch.device) -> int:
        """Bytes on the device that a point may count as free: it takes the model over, or another one its place."""
        held = self._held
        if held is None or held.decoder.model.device.type != device.type:
            return 0
        tensors = [*held.master.values(), *(tensor for _, tensor in _tensors(held.decoder.model))]
        kept = held.statistics.used() + held.paths.used()
        return kept + sum(tensor.nbytes for tensor in tensors if tensor.device.type == device.type)

    def load(self, run: Run) -> tuple[Decoder, Any]:
        """The dense model and its tokenizer: as the last point found it, or from disk.

        Raises:
            UserError: see `load_config`, `load_tokenizer`, `check_tokens`, `load_model` and `self_check`.
        """
        config = load_config(run.inputs.checkpoint, run.cfg.model)
        tokenizer = self._tokenizer(run, config)
        rows = int(config.get_text_config().vocab_size)
        check_texts(run, tokenizer, rows)
        key = _model_key(run)
        if self._held and self._held.key == key and _restored(self._held):
            self.tally["model"] += 1
        else:
            self.drop()
            where = Where(run.device, run.offload.blocks, run.offload.activations, run.others)
            model = load_model(run.inputs.checkpoint, run.cfg.model, run.dtype, where, config)
            decoder = decoder_of(model)
            self_check(decoder)
            if not self.keeps or run.offload.blocks or run.others:  # what lies in several places is not kept
                return decoder, tokenizer
            self._held = self._hold(key, decoder, run)
        held = self._held
        self._make_room(held, run)
        return held.decoder, tokenizer

    def reuse(self, cfg: RunConfig, batches: Sequence[Tensor], *, edited: bool) -> ReuseCache | None:
        """The cache of this point; empty once its structure was edited, None where there is nothing to it."""
        dense = cfg.inputs == "dense"
        held = None if edited or not self.keeps else self._held
        if held is None:
            return ReuseCache(*_nothing(batches), dense_inputs=dense) if dense else None
        held.statistics.point = held.paths.point = self._points
        windows = torch.cat(list(batches)) if batches else None
        cache_key = digest(windows, [len(batch) for batch in batches], held.attention, cfg.numerics)
        return ReuseCache(held.statistics, held.paths, cache_key, dense, self.tally)

    def dense_measures(self, run: Run, decoder: Decoder, tokenizer: Any, context: Context) -> list[dict[str, Any]]:
        """The measures of an untouched model, every evaluation made once."""
        found = []
        for name, evaluator in run.cfg.evaluators.items():
            asked = [
                *(_model_key(run), tokenizer_hashes(run.inputs.checkpoint)),
                *(describe(evaluator), str(evaluator.protocol(context)), run.facts["data"][name]["sha256"]),
                *(context.window, context.limit, context.seed, run.cfg.numerics),
            ]
            key = json.dumps(asked, sort_keys=True)
            known = key in self._measures and not evaluator.measures_anew
            self.tally["measures"] += known
            if not known:
                self._measures[key] = measured(evaluator, decoder, tokenizer, context)
            found += [dict(measure) for measure in self._measures[key]]
        return found

    def _tokenizer(self, run: Run, config: Any) -> Any:
        checkpoint = run.inputs.checkpoint
        key = json.dumps([tokenizer_hashes(checkpoint), _code(run)], sort_keys=True)
        tokenizer = self._tokenizers.pop(key, None) or load_tokenizer(checkpoint, run.cfg.model, config)
        self._tokenizers[key] = tokenizer  # the last one again
        for oldest in list(self._tokenizers)[:-TOKENIZERS]:
            del self._tokenizers[oldest]
        return tokenizer

    def _hold(self, key: str, decoder: Decoder, run: Run) -> _Held:
        """With a copy of every tensor: on the device if there is room, else in host memory, else on disk only."""
        model = decoder.model
        named = dict(_tensors(model))
        size = sum(tensor.nbytes for tensor in named.values())
        cpu = torch.device("cpu")
        master: dict[str, Tensor] = {}
        if size + run.need.beside_weights < available(run.device):
            master = {name: tensor.detach().clone() for name, tensor in named.items()}
        elif run.device.type != "cpu" and size < available(cpu):
            master = {name: tensor.detach().to(cpu) for name, tensor in named.items()}
        room = max(0, available(run.device) - run.need.beside_weights)
        host = 0 if run.device.type == "cpu" else int(PATHS * available(cpu))
        statistics = Store(run.device, int(STATISTICS * room), host)
        attention = model.config._attn_implementation
        paths = Store(run.device, int(PATHS * room))
        return _Held(key, decoder, attention, _form(model), master, statistics, paths)

    def _make_room(self, held: _Held, run: Run) -> None:
        """A point that needs more than is left takes what others left."""
        for store in (held.paths, held.statistics):
            if available(run.device) < run.need.beside_weights:
                store.clear()
        if available(run.device) < run.need.beside_weights:
            held.master = {}


def check_texts(run: Run, tokenizer: Any, rows: int) -> None:
    """Look at the tokens of all texts before a model is loaded; those of tasks are looked at when they are scored."""
    inputs = run.inputs
    texts = {}
    if inputs.needs_calibration:
        windows = calibration_windows(run.cfg.calibration, tokenizer, inputs.calibration_length)
        texts[f"calibration={run.cfg.calibration.corpus}"] = windows
    if training := inputs.training:
        corpus, split, length = training
        texts[f"recovery.text={corpus}"] = torch.cat(
            [
                training_windows(corpus, split, tokenizer, length, run.cfg.recovery.tokens, run.cfg.seed),
                held_out_windows(corpus, split, tokenizer, length),
            ]
        )
    context = run.context
    for name, evaluator in run.cfg.evaluators.items():
        if (windows := evaluator.tokens(tokenizer, context)) is not None:
            texts[f"evaluation={name}"] = windows
    for text, windows in texts.items():
        tell_unknown(check_tokens(windows, tokenizer, rows, text), text)


def _nothing(batches: Sequence[Tensor]) -> tuple[Store, Store]:
    """Stores that keep nothing."""
    device = batches[0].device if batches else torch.device("cpu")
    return Store(device), Store(device)


def _model_key(run: Run) -> str:
    content = [run.facts["weights_sha256"], architecture(run.inputs.checkpoint), str(run.dtype)]
    return json.dumps([*content, str(run.device), _code(run)], sort_keys=True)


def _code(run: Run) -> str | None:
    """Where code that no hash covers comes from."""
    return str(run.inputs.checkpoint.folder) if run.cfg.model.trust_remote_code else None


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return chain(model.named_parameters(), model.named_buffers())


def _form(model: PreTrainedModel) -> Any:
    """Everything about a model but the numbers in it."""
    modules = [
        (
            name,
            type(module),
            module.training,
            "forward" in vars(module),
            *(len(getattr(module, kind)) for kind in HOOKS),
        )
        for name, module in model.named_modules()
    ]
    tensors = [(name, one.shape, one.dtype, one.device, one.requires_grad) for name, one in _tensors(model)]
    return modules, tensors, json.dumps(model.config.to_dict(), sort_keys=True, default=str)


@torch.no_grad()
def _restored(held: _Held) -> bool:
    """Make the model what it was when it was loaded; False where that takes another load (its structure changed)."""
    if held.decoder.config._attn_implementation != held.attention:
        held.decoder.model.set_attn_implementation(held.attention)
    if not held.master or _form(held.decoder.model) != held.form:
        return False
    for name, tensor in _tensors(held.decoder.model):
        tensor.copy_(held.master[name], non_blocking=True)
        tensor.grad = None
    return True


_here: Session | None = None


def of_process() -> Session:
    """The session of this process, in which the points of a sweep run one after the other."""
    global _here
    _here = _here or Session(keeps=True)
    return _here


def end() -> None:
    """Let go of what this process kept."""
    global _here
    _here = None
