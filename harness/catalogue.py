"""`@component(kind, name)`: a dataclass announces itself, and configuration finds it here.

A component's fields are its settings; their types and defaults are checked here, not in the component.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import pkgutil
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

from harness.core.component import completed
from harness.core.kinds import DENSE as DENSE
from harness.core.kinds import KINDS as KINDS
from harness.core.settings import SETTINGS, coerced, is_setting
from harness.runtime.errors import UserError, reason, unknown
from harness.runtime.files import at_home
from harness.runtime.plain import plain

ASKED: dict[str, tuple[tuple[str, ...], ...]] = {
    "method": (("prune", "statistic"), ("prune_block",)),
    "allocator": (("allocate",),),
    "planner": (("plan",),),
    "conversion": (("convert",),),
    "recovery": (("heal",), ("adapter", "trained", "keeps_zeros", "tokens", "lr")),
    "evaluator": (("__call__", "protocol"),),
}
"""What a component of each kind has to have: all names of one of these."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,47}")
T = TypeVar("T")
_registry: dict[str, dict[str, type]] = {kind: {} for kind in KINDS}
_own: dict[type, set[str]] = {}
"""The names that a class has of its own, before it was completed."""
_replaced: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
"""The names that plugins took over with `replaces=True`, and what stands for them now."""
_plugin_sources: dict[str, str] = {}
_plugin_names: dict[str, str] = {}
"""Module → the plugin as its user named it."""


def component(kind: str, name: str, *, replaces: bool = False) -> Callable[[type[T]], type[T]]:
    """Register a frozen dataclass under a kind (method, allocator, planner, conversion, recovery, evaluator) and a
    name.

    Args:
        replaces: the component stands for the one that has this name; records then call it `<name>+<plugin>`.

    Raises:
        UserError: there is no such kind, the class is no frozen dataclass (`@component` stands above `@dataclass`), or
            the name is taken, or none.
    """
    if kind not in KINDS:
        raise UserError(f"components are of the kinds {', '.join(KINDS)}, not '{kind}'.")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UserError(f"{str(name)[:48]!r} is no name for a {kind}: letters, digits, and - _ . within.")

    def register(cls: type[T]) -> type[T]:
        who = _plugin_names.get(cls.__module__, cls.__module__)
        if not dataclasses.is_dataclass(cls):
            raise UserError(f"{who}: {cls.__name__} is no dataclass; write @component above @dataclass(frozen=True).")
        if not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise UserError(f"{who}: {cls.__name__} can be changed; write @dataclass(frozen=True).")
        before = _registry[kind].get(_replaced[kind].get(name, name))
        if (kind, name) == DENSE or (before is not None and not _is_again(before, cls)):
            owner = _plugin_names.get(before.__module__, "the harness") if before else "the harness"
            if before is not None and before.__module__ == cls.__module__:
                raise UserError(f"{who} announces the {kind} '{name}' twice; call one of them otherwise.")
            owner = f"another {owner}" if owner == who else owner
            mend = ", or register it with replaces=True" if before and owner == "the harness" else ""
            if not replaces or not mend:
                raise UserError(f"{who} announces the {kind} '{name}', which {owner} has; call it otherwise{mend}.")
        shown = f"{name}+{Path(who).stem.rpartition('.')[2]}" if replaces and before is not None else name
        if shown != name:
            _replaced[kind][name] = shown
        _registry[kind][shown] = _completed(kind, cls)
        return cls

    return register


def _completed(kind: str, cls: type[T]) -> type[T]:
    """The class with the default hooks of its kind; what it has of its own is remembered."""
    if cls not in _own:
        fields = {field.name for field in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
        _own[cls] = fields | {one for base in cls.__mro__[:-1] for one in vars(base)}
    return completed(kind, cls)


def _lacking(kind: str, own: Collection[str]) -> list[str]:
    """What has to be there of a kind and is not; nothing if one way to be of the kind is whole."""
    missing = sorted(([one for one in asked if one not in own] for asked in ASKED[kind]), key=len)
    return missing[0] if all(missing) else []


def adopted(kind: str, instance: Any) -> list[str]:
    """Give the class of a component that nobody registered the default hooks of its kind, and those it holds theirs.

    Returns:
        What it lacks of what its kind has to have; empty if it is whole.
    """
    _completed(kind, type(instance))
    for field in dataclasses.fields(instance) if dataclasses.is_dataclass(instance) else ():
        inner = getattr(instance, field.name)
        if (nested := field.metadata.get("component")) and inner is not None and not isinstance(inner, str):
            adopted(nested, inner)
    return _lacking(kind, _own[type(instance)] | set(vars(instance)))


def _is_again(before: type, cls: type) -> bool:
    """Return whether a class is the same one, defined once more."""
    return (before.__module__, before.__qualname__) == (cls.__module__, cls.__qualname__)


def discover() -> None:
    """Import every module that may hold components of the harness."""
    for package in KINDS.values():
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")


def load_plugin(where: str) -> None:
    """Import a module or a `.py` file that registers components from outside the repository.

    Raises:
        UserError: there is no such module or file, or importing it fails.
    """
    name = ""
    try:
        if where.endswith(".py"):
            path = at_home(where)
            if not path.is_file():
                raise UserError(f"plugins={where}: there is no such file.")
            name = "plugin_" + hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
            if name not in sys.modules:
                spec = importlib.util.spec_from_file_location(name, path)
                assert spec and spec.loader
                module = importlib.util.module_from_spec(spec)
                sys.modules[name] = module
                _plugin_names[name] = path.name
                try:
                    spec.loader.exec_module(module)
                except BaseException:
                    del sys.modules[name]
                    raise
        else:
            if "/" in where or "\\" in where:
                raise UserError(f"plugins={where} names neither a .py file nor a module, as in plugins=[mine.py].")
            name = where
            _plugin_names.setdefault(name, where)
            importlib.import_module(where)
        _check_plugin(name)
    except UserError:
        _forget(name)
        raise
    except (Exception, SystemExit) as error:
        _forget(name)
        raise UserError(f"plugins={where} cannot be imported: {type(error).__name__}: {error}.") from error
    source = getattr(sys.modules[name], "__file__", None)
    if source:
        _plugin_sources[name] = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16]


def _forget(module: str) -> None:
    """Take back what a module registered that cannot be used."""
    for kind, known in _registry.items():
        for name in [name for name, cls in known.items() if module and cls.__module__ == module]:
            del known[name]
            _replaced[kind] = {old: new for old, new in _replaced[kind].items() if new != name}


def _check_plugin(module: str) -> None:
    """Look at the components of a plugin before they are used.

    Raises:
        UserError: one lacks what its kind has to have, or has a setting that no command line can give.
    """
    who = _plugin_names[module]
    for kind, known in _registry.items():
        for name, cls in known.items():
            if cls.__module__ != module:
                continue
            if lacking := _lacking(kind, _own[cls]):
                raise UserError(f"{who}: the {kind} '{name}' ({cls.__name__}) lacks {' and '.join(lacking)}.")
            _check_fields(f"{who}: the {kind} '{name}'", cls)


def _check_fields(who: str, cls: type) -> None:
    try:
        hints = typing.get_type_hints(cls)
    except Exception as error:
        raise UserError(f"{who} has a setting whose type cannot be found out ({error}).") from error
    for field in dataclasses.fields(cls):
        if field.name == "name":
            raise UserError(
                f"{who} has a setting called name, which stands for the component's own; call it otherwise."
            )
        if not field.metadata.get("component") and not is_setting(hints[field.name]):
            hint = getattr(hints[field.name], "__name__", hints[field.name])
            raise UserError(f"{who} has the setting {field.name} of type {hint}; settings are {SETTINGS}.")
        if field.default_factory is not dataclasses.MISSING:
            try:
                field.default_factory()
            except Exception as error:
                raise UserError(f"{who} cannot make the default of {field.name}: {error}.") from error


def names(kind: str) -> list[str]:
    """The names of a kind that can be asked for; one that was replaced stands for what replaces it."""
    return sorted({*_registry[kind], *_replaced[kind]})


def lookup(kind: str, name: str) -> type:
    """The dataclass behind a name.

    Raises:
        UserError: no such component; the sentence names the nearest ones.
    """
    if name not in _registry[kind]:
        raise unknown(kind, name, names(kind))
    return _registry[kind][_shown(kind, name)]


def _shown(kind: str, name: str) -> str:
    """The name that records show for one that is asked for."""
    return _replaced[kind].get(name, name)


def defaults(kind: str, name: str) -> dict[str, Any]:
    """The settings of a component with their default values, nested components as dicts with a `name`."""
    settings: dict[str, Any] = {"name": _shown(kind, name)}
    for field in dataclasses.fields(lookup(kind, name)):
        value = field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        settings[field.name] = None if value is dataclasses.MISSING else _plain(field, value)
    return settings


def settings_of(instance: Any) -> dict[str, Any]:
    """The settings of a component as `defaults` gives them, with the values that it has."""
    if not _is_registered(instance):
        return {"name": name_of(instance), **plain(_fields_of(instance))}
    values = {field.name: _plain(field, getattr(instance, field.name)) for field in dataclasses.fields(instance)}
    return {"name": name_of(instance), **values}


def _fields_of(instance: Any) -> dict[str, Any]:
    """What an object of any class holds."""
    if dataclasses.is_dataclass(instance):
        return {field.name: getattr(instance, field.name) for field in dataclasses.fields(instance)}
    return dict(getattr(instance, "__dict__", {}))


def components(kind: str, name: str) -> dict[str, str]:
    """The settings of a component that are components themselves, and the kind of each."""
    fields = dataclasses.fields(lookup(kind, name))
    return {field.name: nested for field in fields if (nested := field.metadata.get("component"))}


def build(kind: str, settings: Any, where: str | None = None) -> Any:
    """An instance of the component `settings['name']` with the other entries as its fields.

    Args:
        where: the option that holds the settings, if it is not called as the kind is.

    Raises:
        UserError: no settings, unknown component or setting, a value of the wrong type, or one the component refuses.
    """
    where = where or kind
    if not isinstance(settings, Mapping) or not isinstance(settings.get("name"), str):
        raise UserError(f"{where}={settings} has to be settings with a name, which is one of {', '.join(names(kind))}.")
    cls = lookup(kind, settings["name"])
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    values = {}
    for key, value in settings.items():
        if key == "name":
            continue
        if key not in fields:
            raise unknown(f"setting of {kind} '{settings['name']}'", key, fields)
        if nested := fields[key].metadata.get("component"):
            named = {"name": value} if isinstance(value, str) else value
            values[key] = None if value is None else build(nested, named, f"{where}.{key}")
        else:
            values[key] = coerced(f"{where}.{key}", value, hints[key])
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}={settings} lacks {key}: give it by {where}.{key}=<value>.")
    try:
        return cls(**values)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a plugin's own check of its settings
        raise UserError(f"{where}={settings['name']} refuses its settings ({reason(error)}).") from error


def _is_registered(instance: object) -> bool:
    return any(type(instance) in known.values() for known in _registry.values())


def _code_of(cls: type) -> str:
    """A hash of the functions of a class that nobody registered; a notebook's cell has no file to read them from."""
    digest = hashlib.sha256()
    for base in cls.__mro__[:-1]:
        for name, value in sorted(vars(base).items()):
            function = getattr(value, "__func__", None) or getattr(value, "fget", value)
            if isinstance(function, types.FunctionType) and function.__module__ != completed.__module__:
                digest.update(f"{name} {_text_of(function.__code__)}".encode())
    return digest.hexdigest()[:16]


def _text_of(code: types.CodeType) -> str:
    """What a function does, wherever it is written, in one version of Python."""
    consts = [
        _text_of(one)
        if isinstance(one, types.CodeType)
        else repr(sorted(map(repr, one)) if isinstance(one, frozenset) else one)
        for one in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {code.co_freevars} {consts}"


def revision(instance: Any) -> str:
    """What identifies the code of a component: its `revision`, and a hash of its code where it is not ours."""
    cls = type(instance)
    source = _plugin_sources.get(cls.__module__) if _is_registered(instance) else _code_of(cls)
    number = str(instance.revision)
    return f"{number}+{source}" if source else number


def name_of(instance: object) -> str:
    """The registered name of a component instance."""
    for registered in _registry.values():
        for name, cls in registered.items():
            if type(instance) is cls:
                return name
    return type(instance).__name__


def describe(instance: Any) -> dict[str, Any]:
    """A component as plain values: its name, revision and settings, and those of the components it holds.

    Fields with the metadata `identity: False` (where something is kept) are left out, those with `unless default` (an
    option that came later, which changes nothing while it is off) as long as they have their default; and a component
    may say by `identity()` which values stand for some of its fields (a file's content for its path).
    """
    described: dict[str, Any] = {"name": name_of(instance), "revision": revision(instance)}
    if not _is_registered(instance):
        return described | plain(_fields_of(instance))
    for field in dataclasses.fields(instance):
        counts, value = field.metadata.get("identity", True), getattr(instance, field.name)
        if not counts or (counts == "unless default" and value == field.default):
            continue
        described[field.name] = describe(value) if field.metadata.get("component") and value is not None else value
    return described | dict(instance.identity())


def _plain(field: dataclasses.Field[Any], value: Any) -> Any:
    if nested := field.metadata.get("component"):
        if value is None:
            return None
        name = value if isinstance(value, str) else name_of(value)
        return settings_of(value) if type(value) is lookup(nested, name) else defaults(nested, name)  # else replaced
    return list(value) if isinstance(value, tuple) else value
