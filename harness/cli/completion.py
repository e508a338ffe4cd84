"""Completion in a shell: commands, options, the choices of groups, settings of components.

The script asks `harness complete <line>` at each Tab, which reads the source and imports neither torch nor Hydra.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from harness.cli import index, words
from harness.core.kinds import DENSE, KINDS
from harness.runtime.errors import UserError, unknown

BASH = """\
# eval "$(harness completion bash)", or python -m harness completion bash, in ~/.bashrc
_harness_words() {  # its arguments are the command; completes the word that the cursor is behind
    local line="${COMP_LINE:0:COMP_POINT}" IFS=$'\\n' word cut=""
    word="${line##* }"
    COMPREPLY=($("$@" complete "$line" 2>/dev/null))
    [[ $COMP_WORDBREAKS == *=* && $word == *=* ]] && cut="${word%"${word##*=}"}"
    COMPREPLY=("${COMPREPLY[@]#"$cut"}")
    [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
    return 0
}
_harness() { _harness_words "$1"; }
_harness_python() {
    if [[ ${COMP_WORDS[1]} == -m && ${COMP_WORDS[2]} == harness && COMP_CWORD -gt 2 ]]; then
        _harness_words "$1" -m harness
    else
        compopt -o default
    fi
}
complete -F _harness harness pruning-harness
for _harness_name in python python3 .venv/bin/python; do
    complete -p "$_harness_name" >/dev/null 2>&1 || complete -F _harness_python "$_harness_name"
done
unset _harness_name
"""
ZSH = """\
# eval "$(harness completion zsh)", or python -m harness completion zsh, in ~/.zshrc behind compinit
_harness_words() {  # its arguments are the command
    local -a found
    found=("${(@f)$("$@" complete "$LBUFFER" 2>/dev/null)}")
    compadd -S '' -- ${found:#}
}
_harness() { _harness_words "$words[1]"; }
_harness_python() {
    if [[ $words[2] == -m && $words[3] == harness && CURRENT -gt 3 ]]; then
        _harness_words "$words[1]" -m harness
    else
        _default
    fi
}
compdef _harness harness pruning-harness
compdef _harness_python python python3 .venv/bin/python
"""
SCRIPTS = {"bash": BASH, "zsh": ZSH}
OF_TABLES = ("records", "rows", "columns", "metric", "figure", "x", "title", "out")
FIGURES = ("bars", "curves", "lines", "losses", "trajectory", "scatter")
"""Kinds of figures, as `report/layout.py` has them, which is not imported here."""
OF_STUDIES = ("study", "scale", "cluster")


def script(arguments: Sequence[str]) -> int:
    """Print the script for a shell.

    Raises:
        UserError: no shell is named, or one that there is none for.
    """
    if len(arguments) != 1:
        raise UserError('name a shell: eval "$(python -m harness completion bash)", or zsh.')
    if arguments[0] not in SCRIPTS:
        raise unknown("shell", arguments[0], SCRIPTS)
    print(SCRIPTS[arguments[0]], end="")
    return 0


def complete(arguments: Sequence[str]) -> int:
    """Print the words that the last one of a line may become, a line each."""
    line = " ".join(arguments)
    *before, word = line.split(" ")
    typed = [text for text in before if text]
    start = typed.index("harness") + 1 if "harness" in typed and "-m" in typed else 1  # python -m harness, or harness
    for found in candidates(typed[start:], word):
        print(found)
    return 0


def candidates(before: Sequence[str], word: str) -> list[str]:
    """The words that `word` may become behind others."""
    command = before[0] if before and before[0] in words.COMMANDS else ""
    if word.startswith("-"):
        return _starting(word, () if command else words.FLAGS)
    if "=" in word:
        return _values(command, before, word)
    match command:
        case "list":
            return _starting(word, words.kinds())
        case "describe":
            return _starting(word, _everything())
        case "completion":
            return _starting(word, SCRIPTS)
        case "allocation":
            return _paths("", word)
    commands = words.COMMANDS if not before else ()
    return _starting(word, [*commands, *(f"{name}=" for name in _options(command, before, word))])


def _starting(word: str, among: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(text for text in among if text.startswith(word)))


def _everything() -> list[str]:
    return [entry.name for entry in index.entries()] + [name for kind in words.FILES for name in words.files(kind)]


def _options(command: str, before: Sequence[str], word: str) -> list[str]:
    """The options that may follow; settings of a group once its name and a dot are typed."""
    group, dot, _ = word.partition(".")
    if dot:
        return [f"{group}.{name}" for name in _settings(group, before)]
    own = OF_TABLES if command == "tables" else ()
    return [*own, *OF_STUDIES, *(option.name for option in words.options())]


def _settings(group: str, before: Sequence[str]) -> list[str]:
    """The settings of what is chosen in a group, by an earlier word or by default."""
    chosen = next((option.default for option in words.options() if option.name == group), "")
    chosen = next((text.partition("=")[2] for text in reversed(before) if text.startswith(f"{group}=")), chosen)
    if group in KINDS:
        names = chosen.split(",")
        return [s.name for entry in index.of_kind(group) if entry.name in names for s in entry.settings]
    known = {"model": ("path", "window", "revision", "name"), "calibration": ("windows", "length", "seed", "split")}
    return list(known.get(group, ()))


def _values(command: str, before: Sequence[str], word: str) -> list[str]:
    """The values of an option, each with all that was typed before it: `evaluation=[wikitext2,pt`."""
    key, _, value = word.partition("=")
    if key in ("records", "save", "cache", "out", "model.path"):
        return _paths(f"{key}=", value)
    known = _choices(command, key, before)
    opened = max(value.rfind(","), value.rfind("[")) + 1
    done = value[:opened].strip("[").split(",")
    return _starting(word, [f"{key}={value[:opened]}{name}" for name in known if name not in done])


def _choices(command: str, key: str, before: Sequence[str]) -> list[str]:
    if command == "tables" and key == "figure":
        return list(FIGURES)
    if command == "tables" and key in ("rows", "columns", "x"):
        return [option.name for option in words.options()] + ["task"]
    if key in KINDS:
        dense = [DENSE[1]] if key == DENSE[0] else []
        return [*(entry.name for entry in index.of_kind(key)), *dense]
    if key in (*words.FILES, "tracker", "cluster"):
        return words.files(key)
    if key == "scale":
        return list(words.SCALES)
    option = next((option for option in words.options() if option.name == key), None)
    if option:
        return ["true", "false"] if option.default in ("true", "false") else list(option.values)
    group, _, name = key.partition(".")
    if group in KINDS:
        return _of_setting(group, name)
    return []


def _of_setting(group: str, name: str) -> list[str]:
    """The values of a component's setting where its annotation lists them, or it is another component."""
    found = []
    for setting in (s for entry in index.of_kind(group) for s in entry.settings if s.name == name):
        if setting.annotation == "bool":
            found += ["true", "false"]
        elif setting.annotation.startswith("Literal["):
            found += [text.strip(" '\"") for text in setting.annotation[len("Literal[") : -1].split(",")]
        elif "'component'" in setting.default:
            found += [entry.name for entry in index.of_kind(group)]
    return list(dict.fromkeys(found))


def _paths(head: str, typed: str) -> list[str]:
    folder, _, start = typed.rpartition("/")
    try:
        with os.scandir(os.path.expanduser(f"{folder}/" if "/" in typed else ".")) as found:
            names = [f"{one.name}/" if one.is_dir() else one.name for one in found if one.name.startswith(start)]
    except OSError:
        return []
    place = f"{folder}/" if "/" in typed else ""
    return sorted(f"{head}{place}{name}" for name in names if start.startswith(".") or not name.startswith("."))
