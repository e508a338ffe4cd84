"""The options of a run and the groups among them: what can be chosen, from files of `conf/` and from the catalogue."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from harness import catalogue

CONF = Path(__file__).parent.parent / "conf"
COMPONENT_GROUPS = ("method", "allocator", "planner", "recovery")
FILE_GROUPS = ("model", "calibration", "evaluation", "tracker", "cluster")
GROUPS = (*COMPONENT_GROUPS, *FILE_GROUPS)
SCALES = ("embedded", "proxy", "real", "paper")


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


def choices(group: str) -> list[str]:
    """The names one can choose in a group, from files and from the catalogue."""
    if group in COMPONENT_GROUPS:
        return sorted({*catalogue.names(group), "none"} if group == "method" else catalogue.names(group))
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@lru_cache(maxsize=1)
def _main() -> DictConfig:
    main = OmegaConf.load(CONF / "config.yaml")
    assert isinstance(main, DictConfig)
    return main


@lru_cache(maxsize=1)
def options() -> tuple[str, ...]:
    """The options of a run, its groups among them."""
    plain = [str(key) for key in _main() if key not in ("defaults", "hydra")]
    return (*plain, *COMPONENT_GROUPS, "model", "calibration", "evaluation", "tracker")


def settings_of(parent: str, overrides: Sequence[str]) -> list[str]:
    """The names that exist below `parent`, for the choice these overrides make."""
    if not parent:
        return [*options(), "cluster"]
    group, _, item = parent.partition(".")
    if group == "evaluation" and not item:
        return choices(group)
    names = [text.split("=", 1)[1] for text in overrides if re.match(rf"{group}=[^{{]", text)]
    chosen = names[-1] if names else _default_choice(group)
    settings: Any = {}
    if group == "evaluation" and item in choices(group):
        file = OmegaConf.load(CONF / group / f"{item}.yaml")
        kind = next((str(entry[f"/evaluator@{item}"]) for entry in file.defaults if isinstance(entry, DictConfig)), "")
        settings, item = (catalogue.defaults("evaluator", kind) if kind else {}), ""
    elif group in COMPONENT_GROUPS:
        settings = catalogue.defaults(group, chosen) if chosen in catalogue.names(group) else {}
    elif (path := CONF / group / f"{chosen}.yaml").is_file():
        settings = OmegaConf.load(path)
    for name in item.split(".") if item else ():
        settings = settings.get(name) if isinstance(settings.get(name), Mapping | DictConfig) else {}
    return [str(key) for key in settings if key != "name"]


def _default_choice(group: str) -> str:
    defaults = _main().defaults
    return next((str(entry[group]) for entry in defaults if isinstance(entry, DictConfig) and group in entry), "")
