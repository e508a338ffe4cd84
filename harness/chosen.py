"""Choices in the overrides of one point: of every group, and of the components within a component.

A component within another is chosen by its name, `method.inner=ria` or `method.inner.name=ria`, and has its own
defaults then. Hydra knows it as the choice `method@method.inner=ria`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from harness import catalogue
from harness.groups import COMPONENT_GROUPS, CONF, choices, default_choice, options
from harness.runtime.errors import UserError, unknown

COMPONENT = re.compile(rf"\+{{0,2}}((?:{'|'.join(COMPONENT_GROUPS)})(?:\.\w+)*?)(\.name)?=")
"""An override that may choose a component: where it stands, and whether it is called by its name."""
SETTING = re.compile(rf"((?:{'|'.join(COMPONENT_GROUPS)})(?:\.\w+)*)\.(\w+)=")
"""An override that sets something in a component: where the component stands, and the name of the setting."""
_NO_NAME = object()


class Within(NamedTuple):
    """A component within another: its kind, its name, and the name it has where no override gives one."""

    kind: str
    name: str | None
    default: str | None


class Asked(NamedTuple):
    """A setting that a point asks for: its option, the choice that it is of, and whether that choice has it."""

    option: str
    choice: str
    has: bool


def by_path(text: str) -> str:
    """The override of a component's name as one of the component: `method.inner.name=ria` as `method.inner=ria`."""
    match = COMPONENT.match(text)
    return match[1] + text[match.end(2) :] if match and match[2] else text


def within(texts: Sequence[str]) -> dict[str, Within]:
    """The components within the chosen ones, by where they stand (`method.inner`)."""
    named = {path: name for path, name in map(_given, texts) if name is not _NO_NAME}
    found: dict[str, Within] = {}
    todo = [(group, group, named.get(group, default_choice(group))) for group in COMPONENT_GROUPS]
    for path, kind, name in todo:
        if name not in catalogue.names(kind):
            continue
        settings = catalogue.defaults(kind, name)
        for field, inner in catalogue.components(kind, name).items():
            at, default = f"{path}.{field}", settings[field]["name"] if settings[field] else None
            found[at] = Within(inner, named.get(at, default), default)
            todo.append((at, inner, found[at].name))
    return found


def as_choices(texts: Sequence[str]) -> list[str]:
    """The overrides with every choice of a component within another in Hydra's own form.

    Raises:
        UserError: no component has the name, or it is no name.
    """
    if not any(map(COMPONENT.match, texts)):
        return list(texts)  # a job of a launcher, which asks conf/ for nothing
    known = within(texts)
    given = [_given(text) for text in texts]
    last = {path: at for at, (path, name) in enumerate(given) if name is not _NO_NAME}
    meant = []
    for at, (text, (path, name)) in enumerate(zip(texts, given, strict=True)):
        if path not in known or name is _NO_NAME:
            is_inner = any(text.lstrip("+").startswith(f"{place}.") for place in known)
            meant.append(text.lstrip("+") if is_inner else by_path(text))  # set, whichever component was the default
        elif at == last[path]:
            meant += _as_choice(text, path, name, known[path])
    return meant


def _as_choice(text: str, path: str, name: Any, at: Within) -> list[str]:
    settings = [text.lstrip("+")] if "{" in text else []  # beside the name
    if name is None:  # Hydra's choices cannot be null, but can be left out
        return [f"~{at.kind}@{path}"] if at.default else []
    if not isinstance(name, str):
        raise UserError(f"{text}: {path} is one {at.kind}, given by its name: {', '.join(catalogue.names(at.kind))}.")
    if name not in catalogue.names(at.kind):
        raise unknown(at.kind, name, catalogue.names(at.kind))
    return [f"{at.kind}@{path}={name}", *settings]


def _given(text: str) -> tuple[str, Any]:
    """Where an override puts a component, and its name there, None for none at all; `_NO_NAME` if it gives no name."""
    if not (match := COMPONENT.match(text)):
        return "", _NO_NAME
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except HydraException:  # it is said where all overrides are read
        return match[1], _NO_NAME
    value = _NO_NAME if override.is_sweep_override() else override.value()
    if isinstance(value, Mapping):
        value = value.get("name", _NO_NAME)
    return match[1], _NO_NAME if isinstance(value, str) and "${" in value else value


def settings_of(parent: str, overrides: Sequence[str]) -> list[str]:
    """The names that exist below `parent`, for the choices these overrides make."""
    if not parent:
        return [*options(), "cluster"]
    group, _, item = parent.partition(".")
    if group == "evaluation" and not item:
        return choices(group)
    settings: Any = {}
    if group in COMPONENT_GROUPS:
        here = within(overrides).get(parent) or Within(group, None if item else _choice(group, overrides), None)
        settings = catalogue.defaults(here.kind, here.name) if here.name in catalogue.names(here.kind) else {}
    elif group == "evaluation" and item in choices(group):
        file = OmegaConf.load(CONF / group / f"{item}.yaml")
        kind = next((str(entry[f"/evaluator@{item}"]) for entry in file.defaults if isinstance(entry, DictConfig)), "")
        settings = catalogue.defaults("evaluator", kind) if kind else {}
    elif (path := CONF / group / f"{_choice(group, overrides)}.yaml").is_file():
        settings = OmegaConf.load(path)
        for name in item.split(".") if item else ():
            settings = settings.get(name) if isinstance(settings.get(name), Mapping | DictConfig) else {}
    return [str(key) for key in settings if key != "name"]


def apportioned(points: Sequence[Sequence[str]]) -> tuple[list[list[str]], list[str]]:
    """The points of a sweep, each with those settings of components alone that its own choices have.

    In `recovery=none,lora recovery.tokens=1000` the setting goes to the points with `lora`. Points that become the same
    one by that are one. What no choice of the sweep has stays, to be refused as in a single run.

    Returns:
        The points, and a sentence on each setting that goes to some of them alone.
    """
    asked = [_asked(point) for point in points]
    choices_of: dict[str, dict[str, bool]] = {}
    for one in (one for mine in asked for one in mine.values()):
        choices_of.setdefault(one.option, {})[one.choice] = one.has
    shared = {option: of for option, of in choices_of.items() if len(set(of.values())) > 1}
    found: list[list[str]] = []
    seen = set()
    for point, mine in zip(points, asked, strict=True):
        left = [text for text in point if text not in mine or mine[text].has or mine[text].option not in shared]
        if len(left) == len(point) or tuple(left) not in seen:
            found.append(left)
        seen.add(tuple(left))
    return found, [_said(option, of) for option, of in shared.items()]


def _asked(point: Sequence[str]) -> dict[str, Asked]:
    """The overrides of a point that set something in a component."""
    found = {}
    for text in point:
        if match := SETTING.match(text):
            path, name = match.groups()
            inner = within(point).get(path)
            choice = f"{path}={inner.name if inner else _choice(path.partition('.')[0], point)}"
            found[text] = Asked(f"{path}.{name}", choice, name in settings_of(path, point))
    return found


def _said(option: str, choices_of: Mapping[str, bool]) -> str:
    has, lacks = ([choice for choice, has in choices_of.items() if has is it] for it in (True, False))
    return f"{option} goes to {' and '.join(has)}, not to {' or '.join(lacks)}, which has no such setting"


def _choice(group: str, overrides: Sequence[str]) -> str:
    names = [by_path(text).split("=", 1)[1] for text in overrides if re.match(rf"{group}=[^{{]", by_path(text))]
    return names[-1] if names else default_choice(group)
