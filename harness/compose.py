"""From overrides to a frozen RunConfig: the one file that knows Hydra.

Facts and combinations are YAML below `conf/`; the settings of components are the fields of their dataclasses, which
are stored here as the choices of the groups `method`, `allocator`, `planner` and `recovery`.
"""

from __future__ import annotations

import itertools
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness import catalogue
from harness.config import RunConfig, Scope
from harness.core.allocation import Budget
from harness.core.errors import UserError, unknown
from harness.core.pattern import parse_pattern
from harness.values import (
    amount,
    boolean,
    calibration,
    evaluators,
    folder,
    integer,
    model_choice,
    offload,
    one_of,
    positive,
    tracker,
    window,
)

CONF = Path(__file__).parent.parent / "conf"
COMPONENT_GROUPS = ("method", "allocator", "planner", "recovery")
SCALES = ("embedded", "proxy", "real", "paper")
THIS_MACHINE = ("local", "joblib", "gpus")
"""The clusters whose points run on this machine."""
OmegaConf.register_new_resolver("gpus_here", lambda: int(torch.cuda.is_available()), replace=True)
FILE_GROUPS = ("model", "calibration", "evaluation", "tracker", "cluster")
DELETION = re.compile(r"~(?!hydra\b|cluster\.|evaluation\.[^.=]+(?:=|$))([^=@]*)")
"""What takes an option away, or a setting of a group; one text or task of `evaluation` may go."""
INSTEAD = {
    "method": "method=none leaves a model dense",
    "evaluation": "evaluation=[] evaluates nothing",
    "study": "leave study= out for a single run",
    "cluster": "cluster=local runs points here, one after the other",
}


def register(plugins: Sequence[str] = ()) -> None:
    """Make every component, those of plugins included, a choice of its Hydra group."""
    catalogue.discover()
    for plugin in plugins:
        catalogue.load_plugin(plugin)
    store = ConfigStore.instance()
    for group in (*COMPONENT_GROUPS, "evaluator"):
        for name in catalogue.names(group):
            store.store(group=group, name=name, node=catalogue.defaults(group, name))
    store.store(group="method", name="none", node={"name": "none"})


def plugins_in(overrides: Sequence[str]) -> list[str]:
    """The value of a `plugins=` override, which has to be known before anything is composed."""
    given = [match[1] for text in overrides if (match := re.fullmatch(r"\+?plugins=(.*)", text))]
    items = given[-1].strip("[]").split(",") if given else []  # as Hydra does, the last one counts
    return [item.strip(" '\"") for item in items if item.strip(" '\"")]


@contextmanager
def _hydra() -> Iterator[None]:
    here = GlobalHydra.instance()
    outer, here.hydra = here.hydra, None  # inside a job of Hydra's there is one already
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
            yield
    finally:
        here.hydra = outer


def points(overrides: Sequence[str]) -> list[list[str]]:
    """The override lists of a sweep, one per point, in Hydra's own order.

    Raises:
        UserError: an override that cannot be parsed.
    """
    with _hydra():
        loader = GlobalHydra.instance().config_loader()
        try:
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(overrides))
            lists = []
            for override in parsed:
                key = override.get_key_element()
                if override.is_sweep_override():
                    lists.append([f"{key}={value}" for value in override.sweep_string_iterator()])
                else:
                    lists.append([override.input_line or ""])
        except HydraException as error:
            raise _explained(error, overrides) from error
    return [list(point) for point in itertools.product(*lists)]


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
    for text in overrides:
        if match := DELETION.match(text):
            instead = INSTEAD.get(match[1], f"write {match[1]}=<value>")
            raise UserError(f"~{match[1]} takes away what a command needs; {instead}.")
    with _hydra():
        try:
            config = compose("config", overrides=_meant(overrides))
        except (HydraException, OmegaConfBaseException, ValueError, TypeError) as error:
            raise _explained(error, overrides) from error
    return plain(config, resolve=resolved)


def _meant(texts: Sequence[str]) -> list[str]:
    """Every `evaluation={}` as `evaluation=[]`: none at all, where Hydra would merge nothing into the default ones."""
    return [re.sub(r"^\+{0,2}(evaluation=(?:.*[,(])?\s*)\{\s*\}", r"\1[]", text) for text in texts]


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
        file = CONF / group / f"{choice}.yaml"
        if file.is_file() and not re.search(
            r"^(defaults:|# *@package)", text := file.read_text(encoding="utf-8"), re.MULTILINE
        ):
            return plain(OmegaConf.create({group: OmegaConf.create(text)}), resolve=False)[group]
    return compose_plain([*fixed, f"{group}={choice}"], resolved=False)[group]


def cluster_of(name: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a file of `conf/cluster` says: its own settings (`cluster.jobs`), and those of its launcher.

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
            raise _explained(error, overrides) from error
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

    Raises:
        UserError: Hydra is asked to show what cannot be (`--cfg`, `--info`, `--help`).
    """
    arguments = _meant(arguments)
    asked = get_args_parser().parse_args(arguments)
    if asked.resolve and not (asked.cfg or asked.help):
        raise UserError("--resolve needs --cfg or --help beside it.")
    if asked.hydra_help:
        arguments = ["--hydra-help"]  # Hydra would apply overrides to a configuration that has none of our options
    elif asked.cfg or asked.info or asked.help:
        _check_shown(asked.overrides, resolved=asked.resolve)
    sys.argv = ["harness", *arguments]
    decorated = hydra.main(version_base="1.3", config_path=str(folder or CONF), config_name=name)(job)
    try:
        decorated()
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:  # what Hydra lets through depends on whether it thinks that it is being debugged
        traceback.print_exc()
        return 1
    return 0


def _check_shown(overrides: Sequence[str], *, resolved: bool) -> None:
    if study := next((text for text in overrides if re.fullmatch(r"study=(?!null$).+", text)), None):
        raise UserError(
            f"{study}: the flags of Hydra show one run, not a study; python -m harness plan {study} lists its points."
        )
    compose_plain(overrides, resolved=resolved)


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
    if extra := set() if frozen else set(composed) - set(_known_options()):
        raise unknown("option", extra.pop(), _known_options())
    integer(composed, "seed")
    one_of(composed, "scale", SCALES)
    if made is None:
        made = partial(_made, composed)
    pattern = made(parse_pattern, "sparsity")
    allocator = made(_allocator, "allocator")
    Budget.of_pattern(pattern).narrowed(getattr(allocator, "levels", ()))  # refuses levels that cannot be
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
        device=str(composed["device"]),
        dtype=one_of(composed, "dtype", ("auto", "float32", "bfloat16", "float16")),
        numerics=one_of(composed, "numerics", ("fast", "exact")),
        offload=offload(composed),
        tracker=made(tracker, "tracker", "study"),
        records=made(_records, "records"),
        cache=made(_cache, "cache"),
        cache_gib=amount(composed, "cache_gib"),
        checkpoint_every=amount(composed, "checkpoint_every"),
        save=folder("save", composed["save"]) if composed["save"] else None,
        force=boolean(composed, "force"),
        share=boolean(composed, "share"),
        inputs="dense" if one_of(composed, "inputs", ("pruned", "dense")) == "dense" else "pruned",
        composed=composed,
    )


def typed_here(composed: dict[str, Any]) -> RunConfig:
    """The typed form, in this process, of what another one composed and typed; its plugins are registered first."""
    register(plugins_in([f"plugins={composed['plugins']}"]))
    return typed(composed, frozen=True)


def _made(composed: Mapping[str, Any], make: Callable[..., Any], *options: str) -> Any:
    return make(*(composed[option] for option in options))


def _method(settings: Mapping[str, Any]) -> Any:
    return None if settings["name"] == "none" else catalogue.build("method", settings)


_allocator, _planner, _recovery = (partial(catalogue.build, kind) for kind in ("allocator", "planner", "recovery"))


def _scope(text: Any) -> Scope:
    return Scope(str(text))


_records, _cache = partial(folder, "records"), partial(folder, "cache")


@lru_cache(maxsize=1)
def _known_options() -> list[str]:
    main = OmegaConf.load(CONF / "config.yaml")
    assert isinstance(main, DictConfig)
    plain = [str(key) for key in main if key not in ("defaults", "hydra")]
    return [*plain, *COMPONENT_GROUPS, "model", "calibration", "evaluation", "tracker"]


def choices(group: str) -> list[str]:
    """The names one can choose in a group, from files and from the catalogue."""
    if group in COMPONENT_GROUPS:
        return sorted({*catalogue.names(group), "none"} if group == "method" else catalogue.names(group))
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def _explained(error: Exception, overrides: Sequence[str]) -> UserError:
    """Hydra's exception as one sentence with the nearest names."""
    text = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"Could not (?:find|load) 'hydra/launcher/([^']+)'", text):
        return UserError(f"the launcher {match[1]} is not installed: pip install -e '.[cluster]'.")
    if match := re.search(r"Could not (?:find|load) '([\w-]+)/([^']+)'", text):
        return unknown(match[1], match[2], choices(match[1]))
    if study := next((text for text in overrides if re.fullmatch(r"study=(null)?", text)), None):
        return UserError(f"{study} names no study: leave it out for a single run, or take study=sparsellm_table2.")
    for pattern in (r"full_key: (\S+)", r"Could not (?:override|append|delete)[^']*'([^']+)'"):
        if match := re.search(pattern, text):
            parent, _, leaf = match[1].split("@")[0].rpartition(".")
            if leaf not in (known := _settings_of(parent, overrides)):
                return unknown(f"setting of {parent}:" if parent else "option", leaf, known)
    if wrong := _no_names(overrides):
        group = wrong[0].partition("=")[0].lstrip("+")
        instead = INSTEAD.get(group) or f"known: {', '.join(choices(group))}"
        return UserError(f"{', '.join(wrong)}: a choice has to be a name; {instead}.")
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return UserError(f"these overrides cannot be read: {first.rstrip('.')}.")


def _no_names(overrides: Sequence[str]) -> list[str]:
    """The overrides that choose by something else than a name or a list of names, which Hydra does not tell apart."""
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException:
        return []
    chosen = [item for item in parsed if item.key_or_group in (*COMPONENT_GROUPS, *FILE_GROUPS)]
    named = [(item, value if isinstance(value := item.value(), list) else [value]) for item in chosen]
    return [item.input_line or "" for item, names in named if not all(isinstance(name, str | dict) for name in names)]


def _settings_of(parent: str, overrides: Sequence[str]) -> list[str]:
    """The names that exist below `parent`, for the choice these overrides make."""
    if not parent:
        return [*_known_options(), "cluster"]
    group, _, item = parent.partition(".")
    if group == "evaluation" and item in choices(group):
        return [key for key in compose_plain([f"evaluation=[{item}]"])[group][item] if key != "name"]
    if group == "evaluation" and not item:
        return choices(group)
    names = [text.split("=", 1)[1] for text in overrides if re.match(rf"{group}=[^{{]", text)]
    chosen = names[-1] if names else _default_choice(group)
    settings: Any = {}
    if group in COMPONENT_GROUPS:
        settings = catalogue.defaults(group, chosen) if chosen in catalogue.names(group) else {}
    elif (file := CONF / group / f"{chosen}.yaml").is_file():
        settings = OmegaConf.load(file)
    for name in item.split(".") if item else ():
        settings = settings.get(name) if isinstance(settings.get(name), Mapping | DictConfig) else {}
    return [str(key) for key in settings if key != "name"]


def _default_choice(group: str) -> str:
    main = OmegaConf.load(CONF / "config.yaml")
    return next((str(entry[group]) for entry in main.defaults if isinstance(entry, DictConfig) and group in entry), "")
