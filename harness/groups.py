"""The options of a run and the groups among them: what can be chosen, from files of `conf/` and from the catalogue."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from harness import catalogue
from harness.core.places import CONF

COMPONENT_GROUPS = ("method", "allocator", "planner", "conversion", "recovery")
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
            store.store(group=group, name=name, node=_node(group, name))
    store.store(group="method", name="none", node={"name": "none"})


def _node(kind: str, name: str) -> dict[str, Any]:
    """The settings of a component for Hydra; each component within it is a choice, with the settings of that one."""
    settings = catalogue.defaults(kind, name)
    within: list[Any] = []
    for field, inner in catalogue.components(kind, name).items():
        default, settings[field] = settings[field], None
        chosen = default and default["name"]
        if default and default != catalogue.defaults(inner, chosen):  # an instance with settings of its own
            chosen = f"{chosen} of {name}"
            ConfigStore.instance().store(group=inner, name=chosen, node=default)
        within.append({f"/{inner}@{field}": chosen})
    return {"defaults": ["_self_", *within], **settings} if within else settings


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


def default_choice(group: str) -> str:
    """The choice in a group that no override names."""
    defaults = _main().defaults
    return next((str(entry[group]) for entry in defaults if isinstance(entry, DictConfig) and group in entry), "")
