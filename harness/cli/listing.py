"""`list KIND` and `describe NAME`."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from harness.cli import index, words
from harness.core.kinds import DENSE, KINDS
from harness.core.places import CONF, PACKAGE
from harness.runtime.errors import UserError, unknown

WIDTH = 100
OF_DENSE = "The dense model: nothing is pruned."


def show_list(arguments: Sequence[str]) -> int:
    """Print the names of a kind, each with what it is.

    Raises:
        UserError: no kind is named, or one that there is not.
    """
    names = [text for text in arguments if not text.startswith("plugins=")]
    if not names:
        raise UserError(f"name what to list: {', '.join(words.kinds())}.")
    if len(names) > 1:
        raise UserError(f"list {' '.join(names)}: list takes one kind; describe NAME says what one of them is.")
    kind = words.kinds().get(names[0]) or words.ALIASES.get(names[0], names[0])
    if kind not in words.kinds().values():
        raise unknown("kind", names[0], words.kinds())
    rows = _rows(kind, _plugins(arguments))
    if names[0] in words.ALIASES:
        wanted = "zero-shot" if names[0].startswith("task") else "perplexity"
        rows = {name: title for name, title in rows.items() if _kind_of_evaluation(name) == wanted}
    width = max(map(len, rows), default=0)
    for name, title in rows.items():
        print(f"{name:{width}}  {title}".rstrip())
    return 0


def _rows(kind: str, plugins: Sequence[str]) -> dict[str, str]:
    if kind == words.FAMILY:
        return {name: _title_of_family(layout) for name, layout in sorted(_families(plugins).items())}
    return _of_files(kind) if kind in words.FILES else _of_components(kind, plugins)


def _kind_of_evaluation(name: str) -> str:
    text = (CONF / "evaluation" / f"{name}.yaml").read_text(encoding="utf-8")
    return "perplexity" if "perplexity" in text else "zero-shot"


def _families(plugins: Sequence[str]) -> Mapping[str, Any]:
    from harness import catalogue  # which imports torch
    from harness.models.anatomy import FAMILIES

    for plugin in plugins:
        catalogue.load_plugin(plugin)
    return FAMILIES


def _title_of_family(layout: Any) -> str:
    gate = "with a gate" if layout.gated else "without a gate"
    return f"blocks in {layout.blocks}, {len(layout.linears)} matrices a block, {gate}"


def _family(name: str, layout: Any) -> str:
    rows = [f"  {field.name} = {_shown_of_layout(getattr(layout, field.name))}" for field in dataclasses.fields(layout)]
    head = f"family={name}  (the layout of models whose config.json has model_type={name})"
    return "\n".join([head, "", *rows, "", "docs/extending.md says what each field means and how to bring a family."])


def _shown_of_layout(value: Any) -> str:
    return f"<{value.__qualname__.partition('.')[0].strip('_')}>" if inspect.isfunction(value) else repr(value)


def _plugins(arguments: Sequence[str]) -> list[str]:
    given = [text.partition("=")[2].strip("[]\"'") for text in arguments if text.startswith("plugins=")]
    return [name.strip() for text in given for name in text.split(",") if name.strip()]


def _of_components(kind: str, plugins: Sequence[str]) -> dict[str, str]:
    rows = {entry.name: entry.title for entry in index.of_kind(kind)}
    if kind == DENSE[0]:
        rows[DENSE[1]] = OF_DENSE
    if plugins:
        from harness import catalogue  # which imports torch

        catalogue.discover()
        for plugin in plugins:
            catalogue.load_plugin(plugin)
        new = {name: catalogue.lookup(kind, name) for name in catalogue.names(kind) if name not in rows}
        rows |= {name: index.first_sentence(inspect.getdoc(cls) or "") for name, cls in new.items()}
    return dict(sorted(rows.items()))


def _of_files(kind: str) -> dict[str, str]:
    return {name: _title(kind, name) for name in words.files(kind)}


def _title(kind: str, name: str) -> str:
    """Title of a file of `conf/`, in a line."""
    text = (CONF / kind / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    if kind == "study":
        return f"{content['title']} [{', '.join(content['scales'])}]"
    if kind == "model":
        size = content["geometry"]
        if not size:
            return "any checkpoint of the hub or a folder: model.path=<hub id or folder>"
        return f"{size['family']}, {size['blocks']} blocks of width {size['hidden']}, {content['path']}"
    if kind == "calibration":
        return f"{content['corpus']}, {content['split']}, {content['windows']} windows"
    if comment := re.match(r"# (.*)", text):
        return comment[1]
    kind_of_task = "zero-shot task" if "zeroshot" in text else "perplexity"
    inner = [f"{key} {value}" for key, value in content[name].items() if value not in (None, name)]
    return ", ".join([kind_of_task, *inner])


def describe(arguments: Sequence[str]) -> int:
    """Print what a name stands for: a component with its settings, or a file of `conf/`; all of that name.

    Args:
        arguments: a name, or a kind and a name where several kinds have it (`method=isc`).

    Raises:
        UserError: no name is given, or nothing is called so.
    """
    names = [text for text in arguments if not text.startswith("plugins=")]
    if len(names) == 2 and (words.kinds().get(names[0]) or names[0]) in words.kinds().values():
        names = [f"{words.kinds().get(names[0]) or names[0]}={names[1]}"]  # describe planner none
    if not names:
        raise UserError("name what to describe: describe NAME, or describe KIND=NAME where two kinds have that name.")
    if len(names) > 1:
        raise UserError(f"describe {' '.join(names)}: describe takes one name, or KIND=NAME.")
    wanted, _, name = names[0].rpartition("=")
    if wanted and wanted not in words.kinds().values():
        raise unknown("kind", wanted, words.kinds().values())
    plugins = _plugins(arguments)
    known = {kind: [*_of_components(kind, plugins)] for kind in KINDS}
    known |= {kind: words.files(kind) for kind in words.FILES}
    found = [kind for kind, names in known.items() if name in names and wanted in ("", kind)]
    if not found and wanted in ("", words.FAMILY):  # asked last, as it imports torch
        layouts = _families(plugins)
        if name in layouts:
            print(_family(name, layouts[name]))
            return 0
        known[words.FAMILY] = [*layouts]
    if not found:
        among = [one for kind, names in known.items() if wanted in ("", kind) for one in names]
        raise unknown(wanted or "name", name, dict.fromkeys(among))
    print("\n\n".join(_file(kind, name) if kind in words.FILES else _component(kind, name) for kind in found))
    return 0


def _file(kind: str, name: str) -> str:
    path = CONF / kind / f"{name}.yaml"
    return f"{kind}={name}  (conf/{kind}/{name}.yaml)\n\n{path.read_text(encoding='utf-8').rstrip()}"


def _component(kind: str, name: str) -> str:
    if (kind, name) == DENSE:
        return f"{kind}={name}\n\n{OF_DENSE}"
    from harness import catalogue

    entry = next((entry for entry in index.of_kind(kind) if entry.name == name), None)
    if entry:
        importlib.import_module(entry.module)
    cls: Any = catalogue.lookup(kind, name)
    where = f"{entry.path.relative_to(PACKAGE.parent)}:{entry.line}" if entry else inspect.getsourcefile(cls)
    meanings = {setting.name: setting.meaning for setting in entry.settings} if entry else {}
    head = f"{kind}={name}  ({where}, {cls.__name__}, revision {cls.revision})"
    settings = [_setting(kind, field, hint, meanings.get(field.name, "")) for field, hint in _fields(cls)]
    return "\n".join([head, "", inspect.getdoc(cls) or "", *(["", "settings:", *settings] if settings else [])])


def _fields(cls: type) -> list[tuple[dataclasses.Field[Any], Any]]:
    hints = typing.get_type_hints(cls)
    return [(field, hints[field.name]) for field in dataclasses.fields(cls)]


def _setting(kind: str, field: dataclasses.Field[Any], hint: Any, meaning: str) -> str:
    nested = field.metadata.get("component")
    value = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    default = "" if value is dataclasses.MISSING else f" = {_shown(value, nested)}"
    where = f"{'evaluation.<name>' if kind == 'evaluator' else kind}.{field.name}"
    line = f"  {where}{default}    ({f'a {nested}' if nested else type_text(hint)})"
    return "\n".join([line, *textwrap.wrap(meaning, WIDTH, initial_indent="      ", subsequent_indent="      ")])


def _shown(value: Any, nested: str | None) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, tuple | list):
        return f"[{','.join(map(str, value))}]"
    from harness import catalogue

    return catalogue.name_of(value) if nested and not isinstance(value, str) else str(value)


def type_text(hint: Any) -> str:
    """A type as a user needs it: `matrix | row`, `float or null`, `list of int`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return " | ".join(map(str, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join("null" if one is type(None) else type_text(one) for one in arguments)
    if origin in (tuple, list):
        return f"list of {type_text(arguments[0])}"
    return "anything" if hint is Any else {"str": "text", "bool": "true | false"}.get(hint.__name__, hint.__name__)
