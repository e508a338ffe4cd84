"""Values of a configuration, single ones and those of groups, checked: each a sentence where it cannot be."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness import catalogue
from harness.config import Tracker
from harness.data.corpora import EMBEDDED, assets
from harness.data.windows import Calibration
from harness.models.checkpoint import ASSETS, ModelChoice
from harness.runtime.errors import UserError, unknown
from harness.runtime.files import at_home

MODEL_SETTINGS = ("name", "path", "revision", "trust_remote_code", "window", "geometry")


def offload(composed: Mapping[str, Any]) -> str:
    """Where blocks wait; on and off are true and false to YAML.

    Raises:
        UserError: it is not.
    """
    value = composed["offload"]
    named = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return one_of({"offload": named}, "offload", ("auto", "on", "off"))


def folder(key: str, value: Any) -> Path:
    """A path from a folder's option.

    Raises:
        UserError: it is not.
    """
    if not isinstance(value, str) or not value:
        raise UserError(f"{key}={shown(value)} has to be a folder's name (within quotes if it is a number).")
    return at_home(value)


def folder_or_none(key: str, value: Any) -> Path | None:
    """A path from a folder's option, or None.

    Raises:
        UserError: it is neither.
    """
    return None if value is None else folder(key, value)


def shown(value: Any) -> str:
    """A value as one types it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def integer(composed: Mapping[str, Any], key: str) -> int:
    """A whole number.

    Raises:
        UserError: it is not.
    """
    value = composed[key]
    if not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63:
        raise UserError(f"{key}={shown(value)} has to be a whole number of at most 64 bits.")
    return value


def boolean(values: Mapping[str, Any], key: str) -> bool:
    """True or false.

    Raises:
        UserError: it is not.
    """
    if not isinstance(values[key], bool):
        raise UserError(f"{key}={shown(values[key])} has to be true or false.")
    return values[key]


def positive(composed: Mapping[str, Any], key: str, least: int) -> int | None:
    """A whole number of at least `least`, or None.

    Raises:
        UserError: it is not.
    """
    if composed[key] is None:
        return None
    value = integer(composed, key)
    if value < least:
        raise UserError(f"{key}={value} has to be at least {least}.")
    return value


def amount(composed: Mapping[str, Any], key: str) -> float | None:
    """A number of at least 0, or None.

    Raises:
        UserError: it is not.
    """
    value = composed[key]
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf
    ):
        raise UserError(f"{key}={shown(value)} has to be a number, at least 0, or null.")
    return value


def one_of(composed: Mapping[str, Any], key: str, options: tuple[str, ...]) -> str:
    """One of these options as text.

    Raises:
        UserError: it is not.
    """
    value = shown(composed[key])
    if value not in options:
        raise unknown(f"value of {key}:", value, options)
    return value


def text_or_none(group: str, settings: Mapping[str, Any], key: str) -> str | None:
    """A text, or None.

    Raises:
        UserError: it is not.
    """
    value = settings.get(key)
    if value is not None and not isinstance(value, str):
        quoted = f"\"{group}.{key}='1'\""
        raise UserError(f"{group}.{key}={value} has to be a text (a number within quotes, as in {quoted}) or null.")
    return value


def known_settings(group: str, settings: Any, known: Iterable[str]) -> dict[str, Any]:
    """The settings of a group, none of which was added (`++group.key=`).

    Raises:
        UserError: one was, or they are no settings.
    """
    known = list(known)
    if not isinstance(settings, Mapping):
        raise UserError(f"{group}={settings} has to be settings: {', '.join(known)}.")
    for key in settings:
        if key not in known:
            raise unknown(f"setting of {group}:", key, known)
    return dict(settings)


def model_choice(model: Mapping[str, Any]) -> ModelChoice:
    """Choice of a checkpoint in the group `model`.

    Raises:
        UserError: an unknown setting, or a value that cannot be.
    """
    model = known_settings("model", model, MODEL_SETTINGS)
    name = text_or_none("model", model, "name")
    if name is None or not re.fullmatch(
        r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]{0,95}", name
    ):  # save='out/${model.name}'
        raise UserError(
            f"model.name={str(model['name'])[:96]!r} becomes part of file names: one line of at most 96 characters, "
            "without a slash and no dot in front."
        )
    path = str(model["path"] or "")
    if path.startswith("embedded:"):
        path = str(EMBEDDED / path.removeprefix("embedded:"))
    if path.startswith(ASSETS) and (folder := assets()):
        path = str(folder / path.removeprefix(ASSETS))  # without the folder it stays as it is, for a plan needs none
    try:
        Path(path).exists()
    except OSError as error:  # longer than a name can be, or in a folder that is closed to us
        raise UserError(f"model.path={path[:96]} cannot be looked at: {error.strerror}.") from error
    if not isinstance(model.get("geometry") or {}, Mapping):
        raise UserError(f"model.geometry={model['geometry']} has to be settings or null.")
    revision = text_or_none("model", model, "revision")
    return ModelChoice(model["name"], path, revision, boolean(model, "trust_remote_code"))


def window(model: Mapping[str, Any]) -> int | str | None:
    """The window of the group `model`.

    Raises:
        UserError: it is none.
    """
    value = model["window"]
    if value not in (None, "context") and (not isinstance(value, int) or value < 2):
        raise UserError(f"model.window={value} has to be a number of tokens, or context for all the model takes.")
    return value


def calibration(chosen: Mapping[str, Any], seed: int) -> Calibration:
    """The group `calibration`, its seed the run's where it has none.

    Raises:
        UserError: an unknown setting, or a value that cannot be.
    """
    settings = known_settings("calibration", chosen, ["name", *_fields(Calibration)])
    settings.pop("name")
    settings["seed"] = seed if settings.get("seed") is None else settings["seed"]
    named = {f"calibration.{key}": value for key, value in settings.items()}
    for key in ("windows", "length", "seed"):
        if key != "length" or settings[key] is not None:
            integer(named, f"calibration.{key}")
    return Calibration(**{**settings, "corpus": str(settings["corpus"]), "split": str(settings["split"])})


def evaluators(chosen: Mapping[str, Any] | None) -> dict[str, Any]:
    """The evaluators of the group `evaluation`.

    Raises:
        UserError: one that cannot be.
    """
    return {
        name: catalogue.build("evaluator", settings, f"evaluation.{name}") for name, settings in (chosen or {}).items()
    }


def tracker(chosen: Mapping[str, Any], study: Any) -> Tracker:
    """The group `tracker`, its group the study where it has none.

    Raises:
        UserError: an unknown tracker or setting, a value that is no text, or a whole study for its name.
    """
    if study is not None and not isinstance(study, str):
        raise UserError("study= has to be a name, without + in front: study=sparsellm_table2.")
    settings = known_settings("tracker", chosen, _fields(Tracker))
    for key in settings:
        text_or_none("tracker", settings, key)
    return Tracker(**(settings | {"group": settings.get("group") or study}))


def _fields(kind: type) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]
