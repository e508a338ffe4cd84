"""Text from records, checkpoints and plugins, made harmless for where it goes: one function for each medium.

Whoever wrote a name or a reason, it stays text: no terminal obeys it, no spreadsheet computes it, no markup reads it.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

SEQUENCE = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # CSI: colours, the cursor
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f]).*?(?:\x07|\x1b\\|\x9c|$)"  # OSC and other strings: titles, links
    r"|\x9b[0-?]*[ -/]*[@-~]"
    r"|\x1b[ -/]*[0-~]",
    re.DOTALL,
)
"""Sequences a terminal obeys."""
INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
"""Control characters but for tab and line feed, what turns the direction of writing or shows nothing, lone halves."""
FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")
LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "✓": r"$\checkmark$", "✗": r"$\times$", "×": r"$\times$",
    "±": r"$\pm$", "·": r"\textperiodcentered{}", "–": "--", "—": "---", "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}", "≥": r"$\geq$", "≤": r"$\leq$", "ρ": r"$\rho$",
}  # fmt: skip
LAST_LETTER = "\u017f"
"""Of the letters that LaTeX knows without a package; what it does not know is written by its number."""
MARKDOWN = {"\\": r"\\", "|": r"\|", "`": r"\`", "<": "&lt;", "*": r"\*", "\n": " ", "\t": " "}
INSTEAD = {
    "·": "-", "×": "x", "±": "+/-", "—": "--", "–": "-", "†": "+", "‡": "++", "✓": "ok", "✗": "x", "≥": ">=",
    "≤": "<=", "ρ": "rho", "…": "...", "→": "->",
}  # fmt: skip
"""For terminals that have no other letters than those of English."""


def terminal(value: object) -> str:
    """Text that a terminal shows and does not obey; line feeds and tabs stay."""
    return INVISIBLE.sub("", SEQUENCE.sub("", str(value)))


def line(value: object) -> str:
    """The same in one line."""
    return " ".join(terminal(value).split())


def csv(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; numbers, negative ones too, are what they were."""
    if not isinstance(value, str):
        return value
    text = terminal(value).lstrip("\t")
    return f"'{text}" if text.startswith(FORMULA) and not _is_number(text) else text


def markdown(value: object) -> str:
    """A cell of a Markdown table, or a title."""
    text = "".join(MARKDOWN.get(character, character) for character in terminal(value))
    return text.replace("](", r"]\(")


def latex(value: object) -> str:
    """Text within a LaTeX document."""
    return "".join(map(_latex, line(value)))


def figure(value: object) -> str:
    """A label that matplotlib draws as it stands: no formula between dollars, none left out of a legend."""
    text = line(value).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _latex(character: str) -> str:
    if character in LATEX or character < "\x7f":
        return LATEX.get(character, character)
    known = unicodedata.category(character).startswith("L") and character <= LAST_LETTER
    return character if known else f"[U+{ord(character):04X}]"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
