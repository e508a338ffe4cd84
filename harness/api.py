"""The front door for notebooks and scripts: a model and its tokenizer in memory are pruned and scored where they are.

What is computed, and what a record says of it, is what `python -m harness` computes of the same weights: both are
`run.compute`, here with a session that was handed its model. `docs/python.md` shows all of it at work.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness import catalogue
from harness.borrowed import borrowed, checkpoint_of, decoder_in_memory, dtype_name
from harness.calibration.walk.checks import self_check
from harness.compose import choice_settings, compose_plain, typed
from harness.config import RunConfig
from harness.data.corpora import held, read_text
from harness.groups import COMPONENT_GROUPS, choices, register
from harness.models.checkpoint import Checkpoint, ModelChoice
from harness.models.decoder import Decoder
from harness.models.machine import register_reclaimable
from harness.prepare import Run, look_at, prepare
from harness.record import schema
from harness.record.schema import Record
from harness.run import compute
from harness.runtime.errors import UserError, unknown
from harness.save import check_targets
from harness.session import Session, check_texts

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Component = Any
"""A component by its name; by its settings with a name, as a record has them; its class; or an instance of it."""
Texts = Iterable[str] | Tensor
"""Documents, or windows (N, L) of token ids."""
WINDOWS = 128


@dataclass(frozen=True)
class Result:
    """Result of `prune`: the model, which is the one it was given, and the record that a run would have written."""

    model: PreTrainedModel
    record: Record

    @property
    def sites(self) -> Mapping[str, Mapping[str, Any]]:
        """Full name of each matrix in scope → its zeros asked and achieved, its parameters and its pattern."""
        return self.record.sites

    @property
    def achieved(self) -> float:
        """The fraction of zeros in the matrices in scope, counted from the weights."""
        return float(self.record.sparsity["achieved"] or 0.0)

    @property
    def measures(self) -> list[dict[str, Any]]:
        """Measures of the pruned model, as `evaluate` gives them; empty unless `prune` was given `on`."""
        return [dict(measure) for measure in self.record.measures]

    def write(self, records: str | Path) -> Path:
        """Write the record into a folder of records, for `python -m harness tables records=<folder>`.

        Raises:
            UserError: the folder cannot be written.
        """
        return schema.write(self.record, Path(records))


def prune(
    model: PreTrainedModel, tokenizer: Any = None, method: Component = "wanda", sparsity: float | str = 0.5, *,
    allocator: Component = "uniform", planner: Component = None, recovery: Component = None,
    calibration: str | Texts = "c4", windows: int | None = None, length: int | None = None, scope: str = "all",
    seed: int = 0, inputs: str = "pruned", numerics: str = "fast", layer_error: bool = False,
    on: str | Iterable[str] | Mapping[str, Texts] = (), window: int | None = None, limit: int | None = None,
    save: str | Path | None = None, cache: str | Path | None = None,
) -> Result:  # fmt: skip
    """Prune a model in memory, in place: `result.model is model`. Where it fails, some blocks may be pruned already.

    Args:
        model: a decoder of a known family on one device, in float32, bfloat16 or float16. All but its weights and,
            with a planner, its structure is as it was afterwards: training mode, `requires_grad`, attention,
            configuration.
        tokenizer: of the model; not needed where everything is given as windows of tokens.
        method: which weights stay; None for none, where a planner alone is to act.
        sparsity: the fraction of zeros, or `"2of4"`: 2 kept of every 4 along the input dimension.
        allocator: how much is removed where.
        planner: which structures go.
        recovery: what heals the pruned model.
        calibration: the name of a corpus, documents of which windows are drawn as the papers do, or windows (N, L).
        windows: how many are drawn (128), or are taken of the given ones (all).
        length: tokens of a window drawn; 2048, or the model's context where that is shorter.
        scope: which blocks, `all`, `first_half` or `<first>-<last>`.
        seed: of the windows, and of everything else that is drawn.
        inputs: what a block is calibrated on: what the pruned blocks before it give, or the `dense` ones.
        numerics: `exact` takes one window at a time, in the order of the released codes.
        layer_error: whether the relative error of every matrix is measured, for the record's `blocks`.
        on: what to measure of the pruned model for the record, with `window` and `limit`: see `evaluate`.
        save: a folder for the pruned model and its tokenizer, whose zeros are counted again from the files.
        cache: a folder that keeps what searches and traces found, for other calls; in memory without one.

    Raises:
        UserError: a mistake in what was given, in one sentence.
        Refusal: a component cannot do this.
        Failure: memory runs out, or a component gave something that cannot be.
    """
    register()
    asked = {"method": method, "allocator": allocator, "planner": planner, "recovery": recovery}
    options = {
        "sparsity": sparsity, "scope": scope, "seed": seed, "inputs": inputs, "numerics": numerics,
        "layer_error": layer_error, "evaluation_window": window, "evaluation_limit": limit,
        "save": None if save is None else str(save), "cache": None if cache is None else str(cache),
    }  # fmt: skip
    calibrated = (calibration, windows, length)
    with (
        decoder_in_memory(model) as decoder,
        _composed(model, tokenizer, options, asked, on, calibrated) as (cfg, checkpoint),
    ):
        record = _computed(cfg, checkpoint, decoder, tokenizer)
    return Result(model, record)


def evaluate(
    model: PreTrainedModel,
    tokenizer: Any = None,
    on: str | Iterable[str] | Mapping[str, Texts] = "wikitext2",
    *,
    window: int | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Measure a model in memory, which is as it was afterwards, by the protocols of a run.

    Args:
        on: names of texts (perplexity) and tasks (accuracy, by lm-eval); or name → documents, which are joined, or
            windows (N, L) of token ids, for the perplexity of a text of one's own.
        window: tokens of a window; 2048, or the model's context where that is shorter.
        limit: of windows of each text and of items of each task; None: all.
        seed: of the examples that tasks with shots show.

    Returns:
        As a record has them: a dict each of `task`, `metric`, `value`, `stderr`, `protocol`, `samples`, `note`.

    Raises:
        UserError, Failure: as `prune`.
    """
    register()
    asked = dict.fromkeys(COMPONENT_GROUPS)
    options = {"seed": seed, "evaluation_window": window, "evaluation_limit": limit}
    with (
        decoder_in_memory(model) as decoder,
        _composed(model, tokenizer, options, asked, on, None) as (cfg, checkpoint),
    ):
        return [dict(measure) for measure in _computed(cfg, checkpoint, decoder, tokenizer).measures]


class _Lent(Session):
    """A session of one point whose model a caller lent it."""

    def __init__(self, decoder: Decoder, tokenizer: Any) -> None:
        super().__init__()
        self._decoder, self._given = decoder, tokenizer
        register_reclaimable(self)

    def reclaimable(self, device: torch.device) -> int:
        """Bytes of the model, which is there and which a forecast of memory counts among what is to come."""
        parameters = self._decoder.model.parameters()
        return sum(parameter.nbytes for parameter in parameters if parameter.device.type == device.type)

    def load(self, run: Run) -> tuple[Decoder, Any]:
        """The model that was lent.

        Raises:
            UserError: see `check_texts` and `self_check`.
        """
        check_texts(run, self._given, int(self._decoder.config.get_text_config().vocab_size))
        self_check(self._decoder)
        return self._decoder, self._given


def _computed(cfg: RunConfig, checkpoint: Checkpoint, decoder: Decoder, tokenizer: Any) -> Record:
    """The record of a run on a model that is lent.

    Raises:
        UserError: no room beside the model, or the folder to save to is none.
    """
    session = _Lent(decoder, tokenizer)
    found = look_at(cfg, checkpoint)
    if tokenizer is None and (texts := _texts(cfg, calibrated=found.needs_calibration)):
        raise UserError(f"{texts[0]} needs the model's tokenizer; give it, or windows of tokens.")
    run = prepare(cfg, found)
    if run.offload.blocks:
        raise UserError(
            f"{run.device} has no room for this beside the model; take fewer or shorter calibration windows, or let "
            "the command line bring block after block there: python -m harness model=hf model.path=…"
        )
    run = replace(run, facts=run.facts | {"weights_from": "memory"})
    if cfg.save is not None:
        if tokenizer is None:
            raise UserError("save needs the tokenizer, which goes beside the model; or call model.save_pretrained.")
        check_targets([(cfg.save, Path(decoder.config._name_or_path or "/"))])
        schema.check_writable("save", cfg.save)
    with borrowed(decoder), torch.enable_grad():  # as a process of its own has it
        record = compute(run, session)
    if record.status == "failed":  # the model is pruned, but was not saved
        raise UserError(record.reason)
    return record


def _texts(cfg: RunConfig, *, calibrated: bool) -> list[str]:
    """Texts a tokenizer has to split: corpora, but for windows of tokens, and tasks."""
    named: dict[str, Any] = {}
    for name, judge in cfg.evaluators.items():
        named |= {f"the task {name}": None} if judge.corpus is None else {f"the text {name}": judge}
    named |= {f"the calibration text {cfg.calibration.corpus}": cfg.calibration} if calibrated else {}
    return [name for name, one in named.items() if one is None or read_text(one.corpus, one.split).windows is None]


@contextmanager
def _composed(
    model: PreTrainedModel,
    tokenizer: Any,
    options: Mapping[str, Any],
    asked: Mapping[str, Component],
    on: str | Iterable[str] | Mapping[str, Texts],
    calibrated: tuple[str | Texts, int | None, int | None] | None,
) -> Iterator[tuple[RunConfig, Checkpoint]]:
    """The typed configuration of a call, and what stands for the model's files; texts are held while inside.

    Args:
        calibrated: text, number and length of the calibration windows.
    """
    given: dict[str, Any] = {kind: _component(kind, one) for kind, one in asked.items() if not _is_none(one)}
    with ExitStack() as stack:
        hold = partial(_hold, stack)
        composed = compose_plain([f"evaluation=[{','.join(_names(on))}]"]) | dict(options)
        if isinstance(on, Mapping):
            perplexity = catalogue.defaults("evaluator", "perplexity") | {"split": "test"}
            corpora = [hold(name, "on", texts) for name, texts in on.items()]
            composed["evaluation"] = {corpus: perplexity | {"corpus": corpus} for corpus in corpora}
        if calibrated is not None:
            composed["calibration"] = _calibration(hold, *calibrated)
        for kind in asked:
            nothing = {"name": "uniform" if kind == "allocator" else "none"}
            composed[kind] = catalogue.settings_of(given[kind]) if kind in given else nothing
        name = _name_of(model)
        revision = getattr(model.config, "_commit_hash", None)
        composed["model"] |= {"name": name, "path": None, "revision": revision, "window": None, "geometry": None}
        composed |= {"device": str(model.device), "dtype": dtype_name(model), "checkpoint_every": None}
        given["model"] = ModelChoice(name, "memory", revision)
        if options.get("cache") is None:
            given["cache"] = composed["cache"] = composed["cache_gib"] = None
        cfg = typed(composed, partial(_made, composed, given))
        yield cfg, checkpoint_of(model, tokenizer, hashed=calibrated is not None)


def _made(composed: Mapping[str, Any], given: Mapping[str, Any], make: Callable[..., Any], *options: str) -> Any:
    """Given value of an option, or what is made of its values."""
    return given[options[0]] if options[0] in given else make(*(composed[option] for option in options))


def _is_none(asked: Component) -> bool:
    return asked is None or (isinstance(asked, str) and asked == "none")


def _component(kind: str, asked: Component) -> Any:
    """A component from its name, its settings with a name, its class, or as it is; it need not be registered.

    Raises:
        UserError: no such component or settings; or it lacks what its kind has to have.
    """
    if isinstance(asked, str | Mapping):
        return catalogue.build(kind, {"name": asked} if isinstance(asked, str) else asked)
    if isinstance(asked, bool | int | float | list | tuple):
        raise UserError(f"{kind}={asked!r} is neither a name ({', '.join(catalogue.names(kind))}) nor a {kind}.")
    try:
        instance = asked() if isinstance(asked, type) else asked
    except TypeError as error:
        raise UserError(
            f"{kind}={asked.__name__} cannot be made without settings ({error}); give an instance."
        ) from error
    if lacking := catalogue.adopted(kind, instance):
        raise UserError(
            f"{kind}={type(instance).__name__} is neither a name ({', '.join(catalogue.names(kind))}) nor a {kind}: it "
            f"lacks {' and '.join(lacking)}."
        )
    return instance


def _names(on: str | Iterable[str] | Mapping[str, Texts]) -> list[str]:
    """The named evaluations.

    Raises:
        UserError: one has no such name.
    """
    if not isinstance(on, Iterable):
        raise UserError(f"on={on!r} is neither a name, a list of names, nor texts by their names.")
    names = [] if isinstance(on, Mapping) else [on] if isinstance(on, str) else list(on)
    for name in names:
        if not isinstance(name, str) or name not in choices("evaluation"):
            error = unknown("evaluation", str(name)[:48], choices("evaluation"))
            raise UserError(f'{error} Texts of your own have a name: on={{"mine": texts}}.')
    return names


def _calibration(
    hold: Callable[..., str], text: str | Texts, windows: int | None, length: int | None
) -> dict[str, Any]:
    """The group `calibration`.

    Raises:
        UserError: no such corpus, or neither documents nor windows of tokens.
    """
    if isinstance(text, str):
        if text not in choices("calibration"):
            error = unknown("calibration", text[:48], choices("calibration"))
            raise UserError(f"{error} Documents of your own are a list: calibration=[text, …].")
        settings = choice_settings("calibration", text, ())
        return settings | {"windows": WINDOWS if windows is None else windows, "length": length}
    if isinstance(text, Tensor):
        corpus = hold("windows", "calibration", text)
        count = len(text) if windows is None else windows
        if (isinstance(count, int) and count > len(text)) or length not in (None, text.shape[1]):
            raise UserError(
                f"windows and length ask for more, or another cut, than the {list(text.shape)} tokens given."
            )
        length = text.shape[1]
    else:
        corpus, count = hold("texts", "calibration", text), WINDOWS if windows is None else windows
    return {"name": corpus, "corpus": corpus, "split": "train", "windows": count, "length": length, "seed": None}


def _hold(stack: ExitStack, name: str, option: str, texts: Texts) -> str:
    """The name of a corpus that holds these texts.

    Raises:
        UserError: they are none.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}", str(name)):
        raise UserError(f"{str(name)[:48]!r} is no name for a text: letters, digits, and - _ . within.")
    if isinstance(texts, Tensor):
        if texts.dim() != 2 or texts.is_floating_point() or not texts.numel() or texts.shape[1] < 2:
            raise UserError(
                f"{option}: windows of tokens are whole numbers (N, L), not {texts.dtype} {list(texts.shape)}."
            )
        return stack.enter_context(held(name, texts.detach().to("cpu", torch.long)))
    rows = None if isinstance(texts, str | Mapping) or not isinstance(texts, Iterable) else list(texts)
    if not rows or not all(isinstance(row, str) for row in rows):
        raise UserError(
            f"{option}: {name} is neither a list of documents nor a tensor (N, L) of token ids (input_ids)."
        )
    return stack.enter_context(held(name, rows))


def _name_of(model: PreTrainedModel) -> str:
    """The model's name in a record: the last part of where it came from, or its class."""
    came = Path(str(model.config._name_or_path or "")).name or type(model).__name__
    return re.sub(r"[^A-Za-z0-9._-]+", "-", came).lstrip(".")[:96] or type(model).__name__
