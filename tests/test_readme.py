"""README and docs are true: their numbers stand in the published tables, their files exist, their examples run."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest

from harness import catalogue, groups
from harness import overrides as overrides_of
from harness.cli import files, index, methods, words
from harness.compose import compose_run
from harness.core.places import ROOT
from harness.study.grid import study_names

PAGES = {path: path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
MADE = {"methods.md", "files.md"}
README = PAGES[ROOT / "README.md"]
PUBLISHED = ROOT / "results/published"
MODELS = ("| proxy-", "| embedded-", "| smollm2-")


@pytest.fixture(autouse=True)
def _components_are_known() -> None:
    catalogue.discover()


def lines_of(*paths: str) -> set[str]:
    return {line for path in paths for line in (PUBLISHED / path).read_text(encoding="utf-8").splitlines()}


def rows(page: str, *starts: str) -> list[str]:
    return [line for line in PAGES[ROOT / page].splitlines() if line.startswith(starts)]


def test_the_rows_of_models_are_published() -> None:
    found = rows("README.md", "| proxy-")
    assert len(found) == 6
    assert set(found) <= lines_of("sparsellm_table2/proxy/table.md")
    found = rows("docs/results.md", "| proxy-")
    tables = ("sparsellm_table2/proxy/table.md", "harness_sparsellm/proxy/table.md", "msp_figure1/proxy/ratios.md")
    assert len(found) == 49
    assert set(found) <= lines_of(*tables)


def test_the_worth_of_the_embedded_default_is_the_published_table() -> None:
    page = PAGES[ROOT / "docs/results.md"]
    lines = page.split("make reproduce PAPER=harness ITEM=embedded")[1].split("On `embedded-b`")[0].splitlines()
    found = [line for line in lines if line.startswith("| embedded-")]
    assert len(found) == 6
    assert set(found) <= lines_of("harness_embedded/embedded/table.md")


def test_the_rows_of_the_one_shot_page_are_published() -> None:
    found = rows("docs/one-shot.md", "| ")
    scales = ("real", "proxy", "embedded")
    names = [f"harness_oneshot/{scale}/{name}" for scale in scales for name in ("table.md", "ranking.md")]
    assert len(found) == 3 * 13 + 24 and set(found) <= lines_of(*names)


def test_rows_of_models_stand_where_they_are_looked_at() -> None:
    """A page that comes later and shows results gets a test of them."""
    showing = {path.name for path, text in PAGES.items() if any(line.startswith(MODELS) for line in text.splitlines())}
    assert showing == {"README.md", "results.md", "one-shot.md"}


def test_the_first_output_is_that_of_the_published_tables() -> None:
    """The sweep of the README beside tables of its points: one text of all runs, three of those without a seed."""

    def cells(line: str) -> list[str]:
        return [cell.strip().split(" ± ")[0] for cell in line.strip("|").split("|")]

    shown = {(row[0], row[2]): row[3:] for row in map(cells, README.split("```text\n")[1].split("```")[0].splitlines())}
    one = [cells(line) for line in lines_of("wanda_table3/embedded/table.md") if line.startswith("| ")]
    three = [cells(line) for line in lines_of("harness_embedded/embedded/table.md") if line.startswith("| embedded-l")]
    kinds = {(row[0], row[2]): row[3] for row in one if row[0] in ("0", "0.5", "2of4")}
    assert len(kinds) == 7 and {kind: texts[0] for kind, texts in shown.items() if kind in kinds} == kinds
    for row in three:
        if row[1] != "sparsegpt":  # which is the mean over seeds there
            assert shown["0" if row[1] == "none" else "0.5", row[1]] == row[3:]


@pytest.mark.parametrize("page", ["performance.md", "clusters.md"])
def test_measured_times_and_sizes_are_those_of_the_tables_beside_them(page: str) -> None:
    """Seconds, GiB and rates of a chapter, as rounded there, occur in the benchmark tables to which it links."""
    looked_at = 0
    for chapter in PAGES[ROOT / "docs" / page].split("\n## "):
        links = re.findall(r"\]\(\.\./(results/bench/[\w/-]+\.md)\)", chapter)
        tables = " ".join((ROOT / link).read_text(encoding="utf-8") for link in links)
        known = [float(text) for text in re.findall(r"\d+(?:\.\d+)?", tables)]
        for text in re.findall(r"(?<!min )\b(\d[\d,]*\.?\d*) (?:s\b|GiB|TFLOP/s|\([A-Za-z])", chapter) if links else ():
            shown, digits = float(text.replace(",", "")), len(text.partition(".")[2])
            assert any(round(value, digits) == shown or abs(value - shown) < 0.5 * 10**-digits for value in known), text
            looked_at += 1
    assert looked_at >= {"performance.md": 25, "clusters.md": 3}[page]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_files_anchors_and_targets_exist(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", PAGES[path]):
        name, _, anchor = link.partition("#")
        target = (path.parent / unquote(name)).resolve() if name else path
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, link
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make ([a-z][a-z0-9-]*)(?=[ `\n])", code_of(PAGES[path])):
        assert re.search(
            rf"^({target}|reproduce-%):" if target.startswith("reproduce-") else rf"^{target}:", makefile, re.M
        ), target


def code_of(page: str) -> str:
    """What a page shows as code."""
    return "\n".join(re.findall(r"```\w*\n(.*?)```", page, re.DOTALL) + re.findall(r"`([^`\n]+)`", page)) + "\n"


@pytest.mark.parametrize("path", [path for path in PAGES if path.name not in MADE], ids=lambda path: path.name)
def test_commands_name_what_there_is(path: Path) -> None:
    code = code_of(PAGES[path])
    for paper, item in re.findall(r"PAPER=(\w+) +ITEM=(\w+)", code):
        assert f"{paper}_{item}" in study_names()
    for module in re.findall(r"python -m (benchmarks[.\w]*|harness\.[.\w]+)", code):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists() or (ROOT / module.replace(".", "/")).is_dir(), module
    for line in re.findall(r"python -m harness ([^\n)]*)", code):
        if "plugins=" not in line:
            check_typed(shlex.split(line, comments=True))


def check_typed(typed: list[str]) -> None:
    """A command that is there; or a run whose options, settings and choices are, all composed, its files aside."""
    if typed and "=" not in typed[0] and not typed[0].startswith("-"):
        assert typed[0] in words.COMMANDS, typed
        return
    overrides = [text for text in typed if text != "-m" and not text.startswith("--") and "…" not in text]
    groups.register()
    points = [compose_run(point) for point in overrides_of.points(overrides)[:2]]
    assert len(points) == 1 or "-m" in typed, typed


def test_the_trees_name_what_is_there() -> None:
    """The files of the harness are a page of their own, which is made; the rest is named by folder."""
    tree = PAGES[ROOT / "docs/architecture.md"].split("```text\n")[1].split("```")[0]
    there = {path.name for folder in ("harness", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"[a-z_]+\.py\b", tree)) <= there
    packages = {path.parent.name for path in (ROOT / "harness").glob("*/__init__.py")}
    assert {name for name in packages if f"{name}/" not in tree} == set()
    shown = PAGES[ROOT / "docs/files.md"]
    modules = [path.relative_to(ROOT).as_posix() for path in (ROOT / "harness").rglob("*.py")]
    assert [name for name in modules if not name.endswith("__init__.py") and f"(../{name})" not in shown] == []


def test_the_tour_is_short_and_names_what_is_there() -> None:
    tour = PAGES[ROOT / "docs/architecture.md"].split("## A tour")[1].split("\n## ")[0]
    stops = re.findall(r"^\| `(harness/[\w/]+\.py)` \| ([^|]+) \|", tour, re.MULTILINE)
    assert len(stops) >= 6
    lines = 0
    for path, names in stops:
        body = ast.parse((ROOT / path).read_text(encoding="utf-8")).body
        defined = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
        for name in re.findall(r"`(\w+)`", names):
            node = defined[name]
            lines += (node.end_lineno or 0) - node.lineno + 1
    assert 200 < lines <= 550, lines


@pytest.mark.parametrize("made", [methods, files], ids=["methods", "files"])
def test_made_pages_are_what_the_command_makes(made: object) -> None:
    name = made.__name__.rpartition(".")[2]  # type: ignore[attr-defined]
    assert PAGES[ROOT / f"docs/{name}.md"] == made.page(), "run: make docs"  # type: ignore[attr-defined]


def test_every_component_and_setting_has_its_place() -> None:
    page = PAGES[ROOT / "docs/methods.md"]
    for entry in index.entries():
        title = f"evaluator `{entry.name}`" if entry.kind == "evaluator" else f"`{entry.kind}={entry.name}`"
        chapter = page.split(f"### {title}\n")[1].split("\n### ")[0]
        assert [setting.name for setting in entry.settings] == re.findall(r"^\| `(\w+)` \|", chapter, re.MULTILINE)


def test_the_options_table_names_every_component() -> None:
    table = README.split("## Options")[1].split("\n## ")[0]
    for kind in ("method", "allocator"):
        assert {entry.name for entry in index.of_kind(kind) if f"`{entry.name}`" not in table} == set()


def test_the_plugin_of_the_readme_runs(typed: Callable, options: list[str], tmp_path: Path) -> None:
    code = README.split("```python\n")[1].split("```")[0]
    (tmp_path / "readme_method.py").write_text(code)
    ran = typed(*options, f"plugins={tmp_path / 'readme_method.py'}", "method=mine", "method.power=0.5")
    assert ran.status == 0, ran.err
    assert ran.record["sparsity"]["achieved"] == 0.5
