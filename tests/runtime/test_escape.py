"""Names and reasons that somebody else wrote: text in every medium, and never more."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pandas as pd
import pytest

from harness.report.files import write_csv
from harness.report.tables import markdown_lines
from harness.runtime import escape, streams


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07name", "name"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jgone", "gone"),
        ("\x1bcreset", "reset"),
        ("over\rwritten\x08", "overwritten"),
        ("evil\u202egpj.exe\u2066", "evilgpj.exe"),
        ("a\u200bb\ufeff", "ab"),
        ("half\ud800", "half"),
        ("line\nand\ttab", "line\nand\ttab"),
        ("LLaMA-7B · 0.5 × ±é 模型", "LLaMA-7B · 0.5 × ±é 模型"),
    ],
)
def test_a_terminal_shows_and_does_not_obey(text: str, shown: str) -> None:
    assert escape.terminal(text) == shown


@pytest.mark.parametrize("text", ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\x1b[0m=1", "＝1", "--"])
def test_a_spreadsheet_computes_nothing(text: str, tmp_path: Path) -> None:
    write_csv(pd.DataFrame({text: [text], "value": [-0.5]}), tmp_path / "t.csv")
    head, row = csv.reader(io.StringIO((tmp_path / "t.csv").read_text(encoding="utf-8")))
    assert head[0].startswith("'") and row[0].startswith("'") and row[1] == "-0.5"


@pytest.mark.parametrize("value", ["-0.5", "+3", "-1e-5", "wanda", "2of4", -0.5, None, "—", "0-3"])
def test_numbers_and_names_stay(value: object) -> None:
    assert escape.csv(value) == value


def test_markdown_is_inert() -> None:
    table = pd.DataFrame({"a|b": ["x|y", "<script>", "`code`", "![x](http://y)", "two\nlines", "first_half"]})
    lines = markdown_lines(table)
    assert len(lines) == 8 and all(line.replace(r"\|", "").count("|") == 2 for line in lines)
    text = "\n".join(lines)
    assert "<script>" not in text and "](" not in text and r"\`code\`" in text and "first_half" in text


def test_latex_takes_every_special() -> None:
    assert escape.latex("\\ { } $ & # ^ _ ~ %") == (
        r"\textbackslash{} \{ \} \$ \& \# \textasciicircum{} \_ \textasciitilde{} \%"
    )
    assert escape.latex(r"\input{/etc/passwd}") == r"\textbackslash{}input\{/etc/passwd\}"
    assert escape.latex("✓ é ‡ 模") == r"$\checkmark$ é \textdaggerdbl{} [U+6A21]"
    assert escape.latex("a\nb\x1b[1m") == "a b"


def test_matplotlib_draws_dollars() -> None:
    """With and without a pair; drawn as text, since a formula of this kind would raise an error."""
    from harness.report.style import Drawing

    figure, axis = Drawing().subplots(1, 1, figsize=(2, 2), layout="constrained")
    axis.set_title(escape.figure(r"$\frac{$ a_b $"))
    axis.set_xlabel(escape.figure("_x"))
    figure.savefig(io.BytesIO(), format="png")
    assert axis.get_xlabel() == " _x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_printing_never_fails(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with streams.plain():
        print("scale · 0.5 × ± ‡ 模 \x1b[31mred\r")
        sys.stdout.flush()
    shown = raw.getvalue().decode(encoding)
    if encoding == "ascii":
        assert shown == "scale - 0.5 x +/- ++ ? red\n"
    else:
        assert shown.startswith("scale · 0.5 × ± ") and shown.endswith(" red\n")


def test_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = sys.stdout, sys.stderr
    with streams.plain(), pytest.raises(RuntimeError):
        raise RuntimeError
    assert (sys.stdout, sys.stderr) == before
    monkeypatch.setattr(sys, "stderr", None)  # closed by a shell
    with streams.plain():
        print("fine")
    assert sys.stderr is None
