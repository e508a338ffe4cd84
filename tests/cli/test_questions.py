"""What is answered without a run: lists, descriptions, help, completion; quickly, and as the catalogue has it."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import PLUGIN

from harness import catalogue, groups
from harness.cli import index, words
from harness.cli.completion import FIGURES, candidates
from harness.core.places import ROOT
from harness.report.layout import KINDS as KINDS_OF_FIGURES
from harness.study import commands
from harness.study.grid import study_names

QUICK = [
    "list methods",
    "list studies",
    "--help",
    "--version",
    "completion bash",
    "complete python -m harness method=w",
]


@pytest.mark.parametrize("kind", catalogue.KINDS)
def test_the_index_is_the_catalogue(kind: str) -> None:
    ours = {
        name: catalogue.lookup(kind, name)
        for name in catalogue.names(kind)
        if catalogue.lookup(kind, name).__module__.startswith("harness.")
    }
    found = {entry.name: entry for entry in index.of_kind(kind)}
    assert found.keys() == ours.keys()
    for name, cls in ours.items():
        assert (found[name].module, found[name].cls) == (cls.__module__, cls.__name__)
        assert [setting.name for setting in found[name].settings] == [field.name for field in dataclasses.fields(cls)]


@pytest.mark.parametrize("entry", index.entries(), ids=lambda entry: f"{entry.kind}-{entry.name}")
def test_every_component_says_what_it_is_and_what_its_settings_mean(entry: index.Entry) -> None:
    assert entry.title, f"{entry.cls} has no docstring"
    silent = [setting.name for setting in entry.settings if not setting.meaning]
    assert not silent, f"{entry.path.name}: write below each of these fields what it means: {', '.join(silent)}"


def test_words_are_those_of_the_commands_and_options() -> None:
    assert words.OF_STUDIES.keys() == commands.COMMANDS.keys()
    assert {option.name for option in words.options()} == {*groups.options(), "cluster"}
    assert words.SCALES == groups.SCALES
    for kind in words.FILES:
        assert words.files(kind) == (study_names() if kind == "study" else groups.choices(kind))
    by_name = {option.name: option for option in words.options()}
    assert by_name["dtype"].values == ("auto", "float32", "bfloat16", "float16")
    assert by_name["scope"].values == ("all", "first_half") and by_name["seed"].default == "0"


@pytest.mark.parametrize("arguments", QUICK)
def test_an_answer_needs_no_torch_and_a_second(arguments: str) -> None:
    code = "import sys; from harness.__main__ import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code, *arguments.split()], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout, done.stderr
    assert time.monotonic() - began < 5  # 0.2 s on an idle machine; others may be at work on this one


def test_lists(typed: Callable) -> None:
    for plural, kind in words.kinds().items():
        if kind == words.FAMILY:  # which are neither files nor components
            continue
        done = typed("list", plural)
        names = [line.split()[0] for line in done.out.splitlines()]
        known = words.files(kind) if kind in words.FILES else [entry.name for entry in index.of_kind(kind)]
        assert done.status == 0 and names == sorted([*known, *(["none"] if kind == "method" else [])])
        assert all(len(line.split()) > 1 for line in done.out.splitlines()), plural
    assert "plugged" in typed("list", "methods", f"plugins=[{PLUGIN}]").out


def test_descriptions(typed: Callable) -> None:
    shown = typed("describe", "wanda").out
    assert shown.startswith("method=wanda  (harness/methods/wanda.py:") and "Sun et al. 2024" in shown
    assert "  method.group = row    (matrix | row)" in shown.replace("row | matrix", "matrix | row")
    both = typed("describe", "isc").out
    assert "method=isc" in both and "allocator=isc" in both
    assert "method=isc" not in typed("describe", "allocator=isc").out
    assert "method.inner = wanda    (a method)" in typed("describe", "dsnot").out
    assert "geometry:" in typed("describe", "llama-7b").out
    assert "reproduces:" in typed("describe", "wanda_table2").out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["list"], "name what to list: methods, allocators"),
        (["list", "metods"], "did you mean methods"),
        (["describe"], "name what to describe"),
        (["describe", "wandaa"], "did you mean wanda"),
        (["describe", "metod=wanda"], "unknown kind 'metod'; did you mean method"),
        (["completion"], "name a shell"),
        (["completion", "fish"], "unknown shell 'fish'"),
        (["lst"], "unknown command 'lst'; did you mean list"),
    ],
)
def test_mistakes_are_one_sentence(arguments: list[str], expected: str, typed: Callable) -> None:
    done = typed(*arguments)
    assert (done.status, done.out) == (2, "") and done.err.count("\n") == 1 and expected in done.err, done.err


@pytest.mark.parametrize(
    ("before", "word", "expected"),
    [
        ("", "li", {"list"}),
        ("", "metho", {"method="}),
        ("", "method=spars", {"method=sparsegpt", "method=sparsellm"}),
        ("", "evaluation=[wikitext2,pt", {"evaluation=[wikitext2,ptb"}),
        ("-m", "method=wanda,magn", {"method=wanda,magnitude"}),
        ("method=sparsegpt", "method.bl", {"method.blocksize="}),
        ("method=dsnot", "method.inner=ri", {"method.inner=ria"}),
        ("method=dsnot", "method.skip=m", {"method.skip=mlp"}),
        ("", "method.group=", {"method.group=matrix", "method.group=row"}),
        ("", "dtype=fl", {"dtype=float16", "dtype=float32"}),
        ("", "force=", {"force=true", "force=false"}),
        ("plan", "study=wanda_", {"study=wanda_table2", "study=wanda_table3"}),
        ("plan study=wanda_table2", "scale=p", {"scale=paper", "scale=proxy"}),
        ("list", "meth", {"methods"}),
        ("describe", "alphap", {"alphapruning"}),
        ("tables", "rec", {"records=", "recovery="}),
        ("tables", "rows=model,spars", {"rows=model,sparsity"}),
        ("", "--ver", {"--version"}),
        ("completion", "b", {"bash"}),
    ],
)
def test_candidates(before: str, word: str, expected: set[str]) -> None:
    assert set(candidates(before.split(), word)) == expected


def in_bash(line: str, command: str, folder: Path) -> list[str]:
    """What bash has after Tab behind a line: the script's function is called as readline calls it."""
    text = f"""
eval "$({command} completion bash)"
COMP_LINE={line!r}; COMP_POINT=${{#COMP_LINE}}; COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
read -ra COMP_WORDS <<< "$COMP_LINE"; COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); compopt() {{ :; }}
$(complete -p "${{COMP_WORDS[0]}}" | sed 's/.*-F \\([^ ]*\\).*/\\1/') "${{COMP_WORDS[0]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    variables = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", text], env=variables, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("command", ["harness", "python -m harness"])
def test_bash_completes(command: str, tmp_path: Path) -> None:
    for name, tail in (("harness", "-m harness "), ("python", "")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {tail}"$@"\n')
        program.chmod(0o755)
    assert in_bash(f"{command} method=spa", command, tmp_path) == ["sparsegpt", "sparsellm"]  # behind the =
    assert in_bash(f"{command} descr", command, tmp_path) == ["describe"]
    assert in_bash(f"{command} list all", command, tmp_path) == ["allocators"]


def test_families_and_other_words(typed: Callable, tmp_path: Path) -> None:
    listed = typed("list", "families")
    assert listed.status == 0 and "without a gate" in listed.out and listed.out == typed("list", "family").out
    described = typed("describe", "family=phi")
    assert described.status == 0 and "blocks = 'model.layers'" in described.out and "gated = False" in described.out
    texts, tasks = (set(typed("list", kind).out.split("\n")) - {""} for kind in ("texts", "tasks"))
    both = set(typed("list", "evaluations").out.split("\n")) - {""}
    assert {line.split()[0] for line in texts | tasks} == {line.split()[0] for line in both} and not texts & tasks
    assert any(line.startswith("boolq") for line in tasks) and any(line.startswith("ptb") for line in texts)
    assert typed("describe", "planner", "none").out == typed("describe", "planner=none").out != ""
    for asked, expected in {"list methods extra": "takes one kind", "describe a b": "takes one name"}.items():
        done = typed(*asked.split())
        assert done.status == 2 and expected in done.err and done.err.count("\n") == 1
    lost = typed("describe", "family=phj")
    assert lost.status == 2 and "did you mean" in lost.err


def test_a_family_of_a_plugin_is_listed(typed: Callable, tmp_path: Path) -> None:
    from harness.models import anatomy

    (tmp_path / "mine.py").write_text(
        "from harness.models.anatomy import Anatomy, family\n"
        "family('mine', Anatomy('layers', (('q', 'k', 'v'), ('o',)), (('up',), ('down',)), 'act', gated=False))\n"
    )
    try:
        assert "mine" in typed("list", "families", f"plugins={tmp_path / 'mine.py'}").out
        assert "blocks = 'layers'" in typed("describe", "mine", f"plugins={tmp_path / 'mine.py'}").out
    finally:
        anatomy._KNOWN.pop("mine", None)


def test_values_are_completed() -> None:
    assert candidates(["method=wanda"], "save_form=") == ["save_form=padded", "save_form=sliced"]
    assert candidates(["tables"], "figure=l") == ["figure=lines", "figure=losses"]
    assert "families" in candidates(["list"], "fam") and set(FIGURES) == set(KINDS_OF_FIGURES)
