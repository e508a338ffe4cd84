"""Requests of configurations, and the questions that a record answers: how a study finds its records.

A fingerprint needs the checkpoint and the texts; a question needs the configuration alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from harness.record.dense import changes, is_dense, is_pruned, names_of
from harness.record.identity import fingerprint

T = TypeVar("T")

NOT_ASKED = (
    *(
        "records",
        "cache",
        "cache_gib",
        "checkpoint_every",
        "save",
        "save_form",
        "force",
        "offload",
        "share",
        "tracker",
        "study",
    ),
    *("scale", "plugins"),
)
"""Options that say where and how, not what: two records that differ in them alone answer the same question."""

NOT_ASKED_OF = {"allocator": ("database", "database_gib"), "recovery": ("checkpointing",)}
"""Settings of a component that say where or how: what it keeps on a disk, what it computes twice."""

COMPONENTS = ("method", "allocator", "planner", "conversion", "recovery")
LATER_SETTINGS = {"dead": "prune", "refit": False}
"""Settings of methods that older records do not name, and what those records have."""

LEFT_OPEN = ("device", "dtype", "evaluation_window", "calibration.length", "calibration.seed")
"""Options that a question may leave open: `auto`, or nothing."""


class Kept(Protocol):
    """A record, as far as its question goes."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def provenance(self) -> Mapping[str, Any]: ...


class RequestKey(NamedTuple):
    """`what` is equal for questions that are equal but for the options of `LEFT_OPEN`, whose values are in `given`."""

    what: str
    given: tuple[Any, ...]


@dataclass(frozen=True)
class RequestMatcher:
    """The questions that one record answers: those of the same `what`, with one of these values for each `given`."""

    what: str
    accepted: tuple[tuple[Any, ...], ...]

    def __contains__(self, key: RequestKey) -> bool:
        return key.what == self.what and self.matches(key)

    def matches(self, key: RequestKey) -> bool:
        """Return whether it answers a question of the same `what`."""
        return all(value in values for value, values in zip(key.given, self.accepted, strict=True))


class RequestIndex(Generic[T]):
    """Things that answer questions, found by question in one look."""

    def __init__(self) -> None:
        self._matchers: dict[str, list[tuple[RequestMatcher, T]]] = defaultdict(list)

    def add(self, matcher: RequestMatcher, item: T) -> None:
        """Keep an item for every question of an answer."""
        self._matchers[matcher.what].append((matcher, item))

    def find(self, config: Mapping[str, Any]) -> list[T]:
        """The items for the question of a configuration, in the order in which they were added."""
        if not self._matchers:
            return []
        asked = request_key(config)
        return [item for matcher, item in self._matchers.get(asked.what, ()) if matcher.matches(asked)]


def request_key(config: Mapping[str, Any]) -> RequestKey:
    """Key of a configuration's request."""
    asked = {key: value for key, value in config.items() if key not in NOT_ASKED and key not in LEFT_OPEN}
    model = config["model"]
    revision = model.get("revision")
    asked["model"] = [model["name"], model["path"], model["window"], *([revision] if revision else [])]
    asked["evaluation"] = {
        name: {key: value for key, value in settings.items() if value is not None}
        for name, settings in (config.get("evaluation") or {}).items()
    }
    for kind, settings in NOT_ASKED_OF.items():
        if kind in config:
            asked[kind] = {key: value for key, value in config[kind].items() if key not in settings}
    asked |= {kind: _without_later(asked[kind]) for kind in COMPONENTS if isinstance(asked.get(kind), Mapping)}
    if not asked.get("layer_error"):  # what older records do not name; a dense model has none
        asked.pop("layer_error", None)
    asked["numerics"] = config.get("numerics", "fast")  # records from before the option have no other
    calibration = dict(config["calibration"])
    of_calibration = (calibration.pop("length"), calibration.pop("seed"))
    asked["calibration"] = calibration
    names = names_of(config)
    if not changes(names, "conversion"):  # what older records do not name
        asked.pop("conversion", None)
    pruned = is_pruned(names)
    if not pruned or config.get("inputs") != "dense":  # the default, which older records do not name
        asked.pop("inputs", None)
    if not pruned:
        ignored = ["sparsity", "allocator", "layer_error"]
        if is_dense(names):
            ignored += ["calibration", "seed"]
            of_calibration = (None, None)
        asked = {key: value for key, value in asked.items() if key not in ignored}
    device = str(config["device"]).partition(":")[0]
    given = (device, config["dtype"], config["evaluation_window"], *of_calibration)
    return RequestKey(fingerprint(asked), given)


def _without_later(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A component's settings, those of methods inside it too, without what older records do not name."""
    return {
        key: _without_later(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if key not in LATER_SETTINGS or value != LATER_SETTINGS[key]
    }


def only(asked: RequestKey) -> RequestMatcher:
    """The answer to one question and no other."""
    return RequestMatcher(asked.what, tuple((value,) for value in asked.given))


def matcher_of_record(record: Kept) -> RequestMatcher:
    """Every question that a record answers; one whose configuration lacks an option, of another version, none."""
    try:
        return matcher_of(record.config, record.provenance.get("defaults", {}))
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError):
        return RequestMatcher("", ())


def matcher_of(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> RequestMatcher:
    """Every question that a run answers.

    Its configuration has nothing open; a question that leaves an option open asks for the default, which was the run's
    if its value is the default of its model and machine. One that leaves the device open takes any.
    """
    window = defaults.get("window")
    asked = request_key(config)
    device, *given = asked.given
    default_values = (defaults.get("dtype"), window, window, config["seed"])
    accepted = [
        (value, left_open) if value in (default, left_open) else (value,)
        for value, default, left_open in zip(given, default_values, ("auto", None, None, None), strict=True)
    ]
    return RequestMatcher(asked.what, ((device, "auto"), *accepted))
