"""From the overrides of one point to a frozen RunConfig.

Facts and combinations are YAML below `conf/`; the settings of components are the fields of their dataclasses, which
are the choices of the groups `method`, `allocator`, `planner`, `conversion` and `recovery`
(`groups.py`).
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import catalogue, groups
from harness.chosen import as_choices
from harness.config import RunConfig, Scope
from harness.core.allocation import Budget
from harness.core.pattern import parse_pattern
from harness.groups import COMPONENT_GROUPS, SCALES, choices, register
from harness.overrides import explained, plugin_names
from harness.runtime.errors import UserError, unknown
from harness.values import (
    amount,
    boolean,
    calibration,
    evaluators,
    folder,
    folder_or_none,
    integer,
    model_choice,
    offload,
    one_of,
    positive,
    shown,
    tracker,
    window,
)

THIS_MACHINE = ("local", "joblib", "gpus")
"""The clusters whose points run on this machine."""
OmegaConf.register_new_resolver("gpus_here", lambda: int(torch.cuda.is_available()), replace=True)


@contextmanager
def _hydra() -> Iterator[None]:
    here = GlobalHydra.instance()
    outer, here.hydra = here.hydra, None  # inside a job of Hydra's there is one already
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(groups.CONF)):
            yield
    finally:
        here.hydra = outer


def compose_run(overrides: Sequence[str]) -> RunConfig:
    """Compose one point and turn it into typed values.

    Raises:
        UserError: anything that a user can get wrong in the overrides.
    """
    return typed(compose_plain(overrides))


def compose_plain(overrides: Sequence[str], *, resolved: bool = True) -> dict[str, Any]:
    """Compose one point into plain values; its interpolations stay if it is not to be resolved.

    Raises:
        UserError: anything that Hydra refuses in the overrides.
    """
    with _hydra():
        try:
            config = compose("config", overrides=_meant(overrides))
        except (HydraException, OmegaConfBaseException, ValueError, TypeError, AssertionError) as error:
            raise explained(error, overrides) from error
    return plain(config, resolve=resolved)


def _meant(texts: Sequence[str]) -> list[str]:
    """The overrides as Hydra has to read them.

    Every `evaluation={}` is `evaluation=[]`: none at all, where Hydra would merge nothing into the default ones; for
    components within others see `chosen.as_choices`.
    """
    none = [re.sub(r"^\+{0,2}(evaluation=(?:.*[,(])?\s*)\{\s*\}", r"\1[]", text) for text in texts]
    return as_choices(none)


def choice_settings(group: str, choice: str, fixed: Sequence[str]) -> Any:
    """The part of a group in the composition of the fixed overrides with this choice, its interpolations left in.

    Where no fixed override reaches into the group, that is what the choice says of itself, and nothing is composed.

    Raises:
        UserError: an unknown choice, or a fixed setting that it does not have.
    """
    if choice not in choices(group):
        raise unknown(group, choice, choices(group))
    within = re.compile(rf"[+~]+{group}\b|{group}[.@/]")
    if group != "evaluation" and not any(within.match(text) for text in fixed):
        known = catalogue.names(group) if group in COMPONENT_GROUPS else ()
        if choice in known:
            return catalogue.defaults(group, choice)
        file = groups.CONF / group / f"{choice}.yaml"
        if file.is_file() and not re.search(
            r"^(defaults:|# *@package)", text := file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            return plain(OmegaConf.create({group: OmegaConf.create(text)}), resolve=False)[group]
    return compose_plain([*fixed, f"{group}={choice}"], resolved=False)[group]


def cluster_of(name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in a file of `conf/cluster`: its own (`cluster.jobs`), and those of its launcher.

    Args:
        overrides: those of the launcher (`hydra.launcher.…`) and of the cluster (`cluster.…`).

    Raises:
        UserError: an override that cannot be, or the launcher is not installed.
    """
    overrides = [f"cluster={name}", *overrides]
    with _hydra():
        try:
            config = compose("config", overrides=overrides, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise explained(error, overrides) from error
    own = OmegaConf.to_container(config.get("cluster") or OmegaConf.create())
    launcher = OmegaConf.to_container(config.hydra.launcher)
    assert isinstance(own, dict) and isinstance(launcher, dict)
    return {str(key): value for key, value in own.items()}, {str(key): value for key, value in launcher.items()}


def through_hydra(
    arguments: Sequence[str], job: Callable[[DictConfig], object], folder: Path | None = None, name: str = "config"
) -> int:
    """Let Hydra launch the job, once or for every point of a sweep. Returns 1 where it or a job broke, else 0.

    Args:
        folder: where the configuration of this name lies, if not in `conf/`.
    """
    sys.argv = ["harness", *_meant(arguments)]
    decorated = hydra.main(version_base="1.3", config_path=str(folder or groups.CONF), config_name=name)(job)
    try:
        decorated()
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:  # what Hydra lets through depends on whether it thinks that it is being debugged
        traceback.print_exc()
        return 1
    return 0


def plain(config: DictConfig, *, resolve: bool = True) -> dict[str, Any]:
    """A composed configuration as plain values, without what launches it; interpolations stay if not resolved.

    Raises:
        UserError: an interpolation that cannot be resolved.
    """
    try:
        values = OmegaConf.to_container(config, resolve=resolve, throw_on_missing=resolve)
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {str(error).splitlines()[0]}.") from error
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items() if key not in ("hydra", "cluster")}


def resolve(values: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values without the interpolations among them.

    Raises:
        UserError: an interpolation that cannot be resolved.
    """
    return plain(OmegaConf.create(dict(values)))


def typed(composed: dict[str, Any], made: Callable[..., Any] | None = None, *, frozen: bool = False) -> RunConfig:
    """The typed form of a composed configuration.

    Args:
        made: called as `made(make, *options)` for what `make` makes of the values of these options; where many points
            are typed, it may give the same object for equal values.
        frozen: it was typed before, so `conf/`, which may have changed since, is not asked which options there are.

    Raises:
        UserError: an unknown option, or a value that cannot be.
    """
    _check_options(composed, () if frozen else groups.options())
    made = made or partial(_made, composed)
    pattern = made(parse_pattern, "sparsity")
    allocator = made(_allocator, "allocator")
    Budget.of_pattern(pattern).narrowed(allocator.levels)  # refuses levels that cannot be
    return RunConfig(
        model=made(model_choice, "model"),
        window=window(composed["model"]),
        method=made(_method, "method"),
        allocator=allocator,
        planner=made(_planner, "planner"),
        recovery=made(_recovery, "recovery"),
        pattern=pattern,
        scope=made(_scope, "scope"),
        calibration=made(calibration, "calibration", "seed"),
        evaluators=made(evaluators, "evaluation") if "evaluation" in composed else {},
        evaluation_window=positive(composed, "evaluation_window", 2),
        evaluation_limit=positive(composed, "evaluation_limit", 1),
        seed=integer(composed, "seed"),
        device=shown(composed["device"]),
        dtype=one_of(composed, "dtype", ("auto", "float32", "bfloat16", "float16")),
        numerics=one_of(composed, "numerics", ("fast", "exact")),
        offload=offload(composed),
        tracker=made(tracker, "tracker", "study"),
        records=made(_records, "records"),
        cache=made(_cache, "cache"),
        cache_gib=amount(composed, "cache_gib"),
        checkpoint_every=amount(composed, "checkpoint_every"),
        save=folder_or_none("save", composed["save"]),
        force=boolean(composed, "force"),
        share=boolean(composed, "share"),
        layer_error=boolean(composed, "layer_error"),
        save_form="sliced" if one_of(composed, "save_form", ("padded", "sliced")) == "sliced" else "padded",
        inputs="dense" if one_of(composed, "inputs", ("pruned", "dense")) == "dense" else "pruned",
        conversion=made(_conversion, "conversion") if "conversion" in composed else None,
        composed=composed,
    )


def _check_options(composed: Mapping[str, Any], known: Collection[str]) -> None:
    """Look at options that no component takes.

    Args:
        known: the options that there are; empty: they were looked at before.

    Raises:
        UserError: an unknown option, or a value that cannot be.
    """
    if extra := set(composed) - set(known) if known else set():
        raise unknown("option", extra.pop(), known)
    integer(composed, "seed")
    one_of(composed, "scale", SCALES)
    if composed["save_form"] == "sliced" and composed["save"] is None:
        raise UserError("save_form=sliced says how a model is saved, and none is: add save=<folder>, or leave it out.")


def typed_here(composed: dict[str, Any]) -> RunConfig:
    """The typed form, in this process, of what another one composed and typed; its plugins are registered first."""
    register(plugin_names(composed["plugins"]))
    return typed(composed, frozen=True)


def _made(composed: Mapping[str, Any], make: Callable[..., Any], *options: str) -> Any:
    return make(*(composed[option] for option in options))


def _method(settings: Mapping[str, Any]) -> Any:
    return None if settings["name"] == "none" else catalogue.build("method", settings)


_allocator, _planner, _recovery = (partial(catalogue.build, kind) for kind in ("allocator", "planner", "recovery"))


def _conversion(settings: Mapping[str, Any]) -> Any:
    return None if settings["name"] == "none" else catalogue.build("conversion", settings)


def _scope(text: Any) -> Scope:
    return Scope(shown(text))


_records, _cache = partial(folder, "records"), partial(folder, "cache")
