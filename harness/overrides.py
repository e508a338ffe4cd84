"""Words of the command line, in Hydra's grammar: refused where nothing could be meant, and cut into points.

This is the one place that composes sweeps, whoever runs their points: a process, a launcher, or nobody (a plan).
"""

from __future__ import annotations

import itertools
import math
import random
import re
import sys
from collections.abc import Iterator, Sequence
from decimal import Decimal

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep
from hydra.errors import HydraException

from harness.chosen import by_path, settings_of
from harness.groups import GROUPS, choices
from harness.runtime.errors import UserError, unknown

UNREADABLE = (HydraException, ValueError, TypeError, AttributeError, AssertionError, RecursionError, OverflowError)
"""Errors of Hydra's parser for texts that it cannot read."""
POINTS = 100_000
"""The most points of a sweep; more are a slip of the fingers, and would fill the memory before the first one runs."""
ONE_EACH = ("study", "scale", "cluster", "plugins")
"""The options of a whole command: its points cannot differ in them."""
DELETION = re.compile(r"~(?!cluster\.|evaluation\.[^.=]+(?:=|$))([^=@]*)")
"""Deletion of an option, or of a setting of a group; one text or task of `evaluation` may go."""
NUMBER = re.compile(r"(?<![\w.'\"/+-])[+-]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:[eE][+-]?\d+)?(?![\w.'\"/-])")
HOW_TO_WRITE = "write <option>=<value>"
PLAIN = re.compile(r"[A-Za-z0-9_./+*%@?$|:\\ -]*")
"""Characters of a value outside quotes, where it is neither a list, a mapping nor a function."""
LONGEST_EXAMPLE = 100
LONGEST_NAME = 200
"""Characters of an option; Hydra looks for a file of its name."""
INSTEAD = {
    "method": "method=none leaves a model dense",
    "evaluation": "evaluation=[] evaluates nothing",
    "study": "leave study= out for a single run",
    "cluster": "cluster=local runs points here, one after the other",
}


def read(texts: Sequence[str]) -> list[Override]:
    """The overrides, parsed.

    Raises:
        UserError: one that cannot be parsed or cannot mean anything, or an option that is both set and added.
    """
    overrides = [_read(text) for text in texts]
    given: dict[str, tuple[str, str]] = {}
    for text, override in zip(texts, overrides, strict=True):
        key = override.get_key_element()
        before, earlier = given.setdefault(key.lstrip("+~"), (key, text))
        if before != key and override.key_or_group != "evaluation":  # +evaluation= adds to what is evaluated
            raise UserError(f"{earlier} and {text} set one option twice; leave one of them out.")
    return overrides


def last_of(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides that count, the last of each option as in Hydra, and sentences on those that they replace."""
    last = {by_path(text).partition("=")[0]: text for text in texts}
    kept = list(dict.fromkeys(by_path(text) for text in texts if text in last.values()))
    replaced = [(text, last[by_path(text).partition("=")[0]]) for text in texts if text not in last.values()]
    said = [f"{_shortened(text)} is replaced by {_shortened(later)}, the last one counts" for text, later in replaced]
    return kept, said


def say(replaced: Sequence[str]) -> None:
    """Say of overrides that they do not count, once nothing is left to be refused."""
    for sentence in replaced:
        print(f"note: {sentence}", file=sys.stderr)


def _read(text: str) -> Override:
    _check_numbers(text)
    try:
        (override,) = OverridesParser.create().parse_overrides([text])
    except UNREADABLE as error:
        why = _reason(error) if "while evaluating" in str(error) else _how_to_write(text)
        shown = _shortened(text if text and text == text.strip() else repr(text))
        raise UserError(f"{shown} cannot be read: {why}.") from error
    if not override.key_or_group or len(override.key_or_group) > LONGEST_NAME:
        raise UserError(f"{_shortened(text)!r} names no option; write <option>=<value>.")
    _check_hydra(text, override.key_or_group)
    if match := DELETION.match(text):
        raise UserError(
            f"~{match[1]} takes away what a command needs; {INSTEAD.get(match[1], f'write {match[1]}=<value>')}."
        )
    if override.is_sweep_override() and override.key_or_group in ONE_EACH:
        raise UserError(f"{text}: {override.key_or_group} is one for all points of a command.")
    if override.key_or_group == "cluster" and text.startswith("+"):
        raise UserError(f"{text}: write {text.lstrip('+')}.")
    _check_choice(text, override)
    return override


def _check_hydra(text: str, key: str) -> None:
    """Points are neither launched nor logged by Hydra here, so of its settings only those of a launcher mean anything.

    Raises:
        UserError: another one.
    """
    if not re.match(r"hydra\b", key):
        return
    if re.match(r"hydra/(launcher|sweeper)\b", key):
        raise UserError(f"{text}: how points are run is chosen by cluster={', '.join(choices('cluster'))}.")
    if not re.match(r"hydra\.launcher\.[A-Za-z]", key):
        raise UserError(
            f"{text}: of Hydra's own settings only those of a launcher, hydra.launcher.<name>, can be changed, beside "
            "cluster=<name>; sweeps are typed as -m seed=0,1, and records lie in records=."
        )


def _check_numbers(text: str) -> None:
    """Refuse numbers that would be read as others.

    Raises:
        UserError: a whole number of more than 64 bits, or a fraction that is taken for zero.
    """
    for match in NUMBER.finditer(text.partition("=")[2]):
        digits = match[1].replace("_", "")
        is_whole = match[0].lstrip("+-") == match[1] and "." not in digits
        if is_whole and (len(digits.lstrip("0")) > 19 or int(digits) >= 2**63):
            raise UserError(f"{_shortened(text)}: whole numbers go up to {2**63 - 1}.")
        if not is_whole and re.search("[1-9]", digits) and float(match[0]) == 0:
            raise UserError(f"{_shortened(text)}: {_shortened(match[0])} is too small a number; the next one is 0.")


def _check_choice(text: str, override: Override) -> None:
    """A group takes one name, `evaluation` a list of them, which Hydra does not tell apart from other values.

    Raises:
        UserError: something else.
    """
    group = override.key_or_group
    if group not in GROUPS or override.is_delete():
        return
    values = [override.value()]
    if override.is_sweep_override():
        values = [] if not override.is_choice_sweep() else getattr(override.value(), "list", [])
    several = [value for value in values if isinstance(value, list)]
    if several and group != "evaluation" and not several[0]:
        raise UserError(f"{text}: {group} takes one choice, not an empty list; known: {', '.join(choices(group))}.")
    if several and group != "evaluation":
        raise UserError(f"{text}: {group} takes one choice; -m {group}={','.join(map(str, several[0]))} makes a sweep.")
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    if group == "evaluation" and names == [None]:  # the same as []
        return
    if not all(isinstance(name, str | dict) or hasattr(name, "text") for name in names):
        instead = INSTEAD.get(group) or f"known: {', '.join(choices(group))}"
        raise UserError(f"{text}: a choice has to be a name; {instead}.")


def value_of(texts: Sequence[str], key: str) -> str | None:
    """Value of an option as text; None where it is not given, or is empty or null."""
    found = [text.split("=", 1)[1] for text in texts if text.startswith(f"{key}=")]
    return found[-1] if found and found[-1] not in ("", "null") else None


def plugins_in(texts: Sequence[str]) -> list[str]:
    """The value of a `plugins=` override, which has to be known before anything is composed.

    Raises:
        UserError: it is neither a text nor a list of them.
    """
    given = [text for text in texts if re.match(r"\+{0,2}plugins=", text)]
    if not given:
        return []
    return plugin_names(_read(given[-1]).value())


def plugin_names(value: object) -> list[str]:
    """The plugins that the option says.

    Raises:
        UserError: it is neither a text nor a list of them.
    """
    items = value if isinstance(value, list) else [value] if value else []
    if not all(isinstance(item, str) and item for item in items):
        raise UserError(f"plugins={value} has to be modules or .py files, as in plugins=[mine.py,theirs.methods].")
    return [str(item) for item in items]


def points(texts: Sequence[str]) -> list[list[str]]:
    """The override lists of a sweep, one per point, in Hydra's own order: the last option changes fastest.

    Raises:
        UserError: see `read`; or a sweep of nothing, of too much, or one that cannot be listed.
    """
    lists = []
    for text, override in zip(texts, read(texts), strict=True):
        if override.is_sweep_override():
            lists.append([f"{override.get_key_element()}={value}" for value in _values(text, override)])
        else:
            lists.append([text])
    if math.prod(map(len, lists)) > POINTS:
        raise UserError(f"these overrides make {math.prod(map(len, lists))} points; a sweep takes at most {POINTS}.")
    return [list(point) for point in itertools.product(*lists)]


def _values(text: str, override: Override) -> list[str]:
    value = override.value()
    if override.is_interval_sweep():
        raise UserError(f"{text}: an interval has no values to go through; write a range or a list, as seed=0,1,2.")
    if isinstance(value, RangeSweep):
        return list(_range(text, value))
    if isinstance(value, Glob):
        return _globbed(text, override.key_or_group, value)
    return list(override.sweep_string_iterator())


def _range(text: str, sweep: RangeSweep) -> Iterator[str]:
    """The numbers of a range as one would type them: 0.8, 0.7, where sums of binary fractions give 0.7000000000000001.

    Raises:
        UserError: it holds none, or too many.
    """
    bounds = (sweep.start, sweep.stop, sweep.step)
    if not all(isinstance(bound, int | float) and math.isfinite(bound) for bound in bounds):
        raise UserError(f"{text}: a range goes from a number to a number.")
    start, stop, step = (Decimal(str(bound)) for bound in bounds)
    count = math.ceil((stop - start) / step) if step else 0
    if count <= 0:
        why = "its step is 0" if not step else "its step leads away from its end" if start != stop else "it is empty"
        raise UserError(f"{text} has no value: {why}; ranges are range(<first>,<end, left out>,<step>).")
    if count > POINTS:
        raise UserError(f"{text} has {count} values; a sweep takes at most {POINTS} points.")
    numbers = [start + step * at for at in range(count)]
    if sweep.shuffle:
        random.shuffle(numbers)
    is_whole = all(isinstance(bound, int) for bound in bounds)
    yield from (str(int(number)) if is_whole else str(float(number)) for number in numbers)


def _globbed(text: str, group: str, pattern: Glob) -> list[str]:
    if group not in GROUPS:
        raise UserError(f"{text}: glob chooses among the names of a group, {', '.join(GROUPS)}.")
    if names := pattern.filter(choices(group)):
        return names
    raise UserError(f"{text} fits no {group}; known: {', '.join(choices(group))}.")


def explained(error: Exception, texts: Sequence[str]) -> UserError:
    """Hydra's exception as one sentence with the nearest names."""
    text = f"{error}\n{error.__cause__ or ''}"
    if match := re.search(r"Could not (?:find|load) 'hydra/launcher/([^']+)'", text):
        return UserError(f"the launcher {match[1]} is not installed: pip install -e '.[cluster]'.")
    if match := re.search(r"Could not (?:find|load) '([\w-]+)/([^']+)'", text):
        return unknown(match[1], match[2], choices(match[1]))
    if study := next((text for text in texts if re.fullmatch(r"study=(null)?", text)), None):
        return UserError(f"{study} names no study: leave it out for a single run, or take study=sparsellm_table2.")
    if match := re.search(r"evaluator@evaluation\.(\S+) appears more than once", text):
        return UserError(f"evaluation names {match[1]} twice; name it once.")
    for pattern in (r"full_key: (\S+)", r"Could not (?:override|append|delete)[^']*'([^']+)'"):
        if match := re.search(pattern, text):
            parent, _, leaf = match[1].split("@")[0].rpartition(".")
            if leaf not in (known := settings_of(parent, texts)):
                return unknown(f"setting of {parent}:" if parent else "option", leaf, known)
            if parent.startswith("evaluation."):
                item = parent.removeprefix("evaluation.")
                return UserError(f"{match[1]} is set, and evaluation does not name {item}; add it, or leave this out.")
    return UserError(f"these overrides cannot be read: {_reason(error)}.")


def _how_to_write(text: str) -> str:
    """The spelling to type instead: quotes of the grammar, and those of the shell around them."""
    key, equals, value = text.partition("=")
    if not equals or PLAIN.fullmatch(value):
        return HOW_TO_WRITE
    if any(value.count(opens) != value.count(closes) for opens, closes in ("[]", "{}", "()")):
        return f"{HOW_TO_WRITE}, with every bracket closed; a text with brackets, in two pairs of quotes"
    odd = "".join(dict.fromkeys(PLAIN.sub("", value)))
    return f"{HOW_TO_WRITE}, a value with {_shortened(odd)} in two pairs of quotes, {_quoted(key, value)}"


def _quoted(key: str, value: str) -> str:
    """An override whose value is a text, whatever stands in it, as a shell takes it."""
    if "'" in value or "\\" in value or len(value) > LONGEST_EXAMPLE:
        return f"{_shortened(key)}='\"…\"'"
    return f"""{_shortened(key)}='"{value}"'""" if '"' not in value else f"{_shortened(key)}='\"…\"'"


def _reason(error: Exception) -> str:
    """The first line of an exception, or of the one behind it, that says something."""
    lines = [line.strip() for line in f"{error}\n{error.__cause__ or ''}".splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Error parsing override", "See https://"))]
    return _shortened(telling[0] if telling else type(error).__name__).rstrip(".:")


def _shortened(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:140]}…{text[-10:]}"
