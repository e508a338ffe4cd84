"""Many points over the same fixed overrides: what points have in common is composed, resolved and built once.

A configuration falls into parts, its top-level options and groups. A part is taken whole from one composition, changed
by the settings among a point's axes, resolved, and turned into typed values, each once for equal values: points share
the results, which nothing changes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from harness.chosen import by_path, within
from harness.compose import choice_settings, compose_plain, resolve, typed
from harness.config import RunConfig
from harness.groups import GROUPS
from harness.runtime.errors import UserError, unknown

T = TypeVar("T")


class Choices:
    """Typed points over fixed overrides, see above.

    Args:
        own: settings whose group or component is chosen by a point's axes (`method.damping=0.02`): every choice needs
            them.
    """

    def __init__(self, fixed: Sequence[str], own: Sequence[str] = ()) -> None:
        self._fixed = list(fixed)
        self._own = {group: [text for text in own if _group_of(text) == group] for group in map(_group_of, own)}
        self._known: dict[tuple[Any, ...], Any] = {}
        composed = compose_plain(self._fixed, resolved=False)  # save='out/${method.name}' means each point's own
        self._base = {option: self._part(value) for option, value in composed.items()}

    def point(self, axes: Mapping[str, Any]) -> RunConfig:
        """The typed point with these group choices and values on top of the fixed overrides.

        Raises:
            UserError: a choice, an option or a value that cannot be.
        """
        unnamed = [group for group in self._own if group not in axes]  # in a grid of the study without this axis
        changes: dict[str, list[tuple[str, Any]]] = {
            group: [(group, self._base[group].value["name"])] for group in unnamed
        }
        for key, value in axes.items():
            changes.setdefault(key.partition(".")[0], []).append((key, value))
        parts = dict(self._base)
        for option, changed in changes.items():
            parts[option] = self._once(self._changed, (option, repr(changed)), option, changed)
        unresolved = [option for option, part in parts.items() if part.refers != ()]
        for option in unresolved:
            parts[option] = self._resolved(option, parts)
        return typed({option: part.value for option, part in parts.items()}, partial(self._made, parts))

    def _once(self, make: Callable[..., T], key: tuple[Any, ...], *arguments: Any) -> T:
        if (make, *key) not in self._known:
            self._known[(make, *key)] = make(*arguments)
        answer: T = self._known[(make, *key)]
        return answer

    def _made(self, parts: Mapping[str, _Part], make: Callable[..., T], *options: str) -> T:
        """Result of `make` for the values of these options."""
        key = (make, *[parts[option] for option in options])
        if key not in self._known:
            self._known[key] = make(*(parts[option].value for option in options))
        answer: T = self._known[key]
        return answer

    def _part(self, value: Any) -> _Part:
        """The one part of all equal values."""
        return self._once(_Part, (text := repr(value),), value, text)

    def _changed(self, option: str, changes: Sequence[tuple[str, Any]]) -> _Part:
        """A part after these changes, in their order: another choice of a group, or other settings."""
        config = {name: part.value for name, part in self._base.items()}
        chosen, settings = self._split(option, changes)
        if chosen:
            config[option] = self._once(self._choice, (option, *chosen), option, chosen)
        for key, value in settings:
            *parents, leaf = key.split(".")
            config[option] = copy.deepcopy(config.get(option))
            target = config
            for parent in parents:
                target = target.get(parent) or {}
            if leaf not in target:
                raise unknown("option", key, config)
            target[leaf] = value
        return self._part(config[option])

    def _split(self, option: str, changes: Sequence[tuple[str, Any]]) -> tuple[list[str], list[tuple[str, Any]]]:
        """The changes that choose the group or a component within it, as overrides, and those that set something."""
        chosen: list[str] = []
        settings = []
        todo = sorted(changes, key=lambda change: change[0].count("."))  # what is chosen before its settings
        for key, value in todo:
            if key in GROUPS:
                chosen.append(f"{key}={value}")
                continue
            at = by_path(f"{key}=").rstrip("=")
            if "." not in at or at not in within([*self._fixed, *self._own.get(option, []), *chosen]):
                settings.append((key, value))
            elif isinstance(value, Mapping):
                todo += [(at if name == "name" else f"{at}.{name}", one) for name, one in value.items()]
            else:
                chosen.append(f"{at}={'null' if value is None else value}")
        return chosen, settings

    def _choice(self, group: str, chosen: Sequence[str]) -> Any:
        """Content of a group after these choices in it, the fixed settings of the group among it."""
        own = self._own.get(group, [])
        named = [text for text in chosen if text.startswith(f"{group}=")]
        choice = named[-1].partition("=")[2] if named else self._base[group].value["name"]
        inner = [text for text in chosen if text not in named]
        try:
            return choice_settings(group, choice, [*self._fixed, *own, *inner])
        except UserError as error:
            raise UserError(f"with {' '.join([f'{group}={choice}', *inner])}: {error}") if own else error from error

    def _resolved(self, option: str, parts: Mapping[str, _Part]) -> _Part:
        """A part without interpolations."""
        needed = {name: parts[name] for name in _needed(option, parts)}
        values = {name: part.value for name, part in needed.items()}
        return self._part(self._once(resolve, tuple(needed.items()), values)[option])


def _group_of(override: str) -> str:
    """The group that a setting belongs to, empty for anything else."""
    return match[1] if (match := re.match(r"\+{0,2}(\w+)\.", override)) and match[1] in GROUPS else ""


class _Part:
    """The value of an option or a group, and the options that its interpolations name.

    `refers` is None where these are not plain names, or where a value is missing.
    """

    def __init__(self, value: Any, text: str) -> None:
        self.value = value
        named = re.findall(r"\$\{([^}]*)", text)
        legible = "???" not in text and all(re.fullmatch(r"[A-Za-z_][\w.]*", name) for name in named)
        self.refers = tuple(name.partition(".")[0] for name in named) if legible else None


def _needed(option: str, parts: Mapping[str, _Part]) -> list[str]:
    """The options that resolving this one may look at, itself first; all where that cannot be told."""
    needed = [option]
    for name in needed:
        refers = parts[name].refers
        if refers is None:
            return list(parts)
        needed += [other for other in dict.fromkeys(refers) if other in parts and other not in needed]
    return needed
