"""The README is true: its numbers stand in the published tables, its files exist, its plugin runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_excerpt_is_the_published_table() -> None:
    rows = [line for line in README.splitlines() if line.startswith("| proxy-")]
    published = (ROOT / "results/published/sparsellm_table2/proxy/table.md").read_text().splitlines()
    assert len(rows) == 49
    published += (ROOT / "results/published/harness_sparsellm/proxy/table.md").read_text().splitlines()
    published += (ROOT / "results/published/msp_figure1/proxy/ratios.md").read_text().splitlines()
    assert set(rows) <= set(published)


def test_the_worth_of_the_embedded_default_is_the_published_table() -> None:
    lines = README.split("make reproduce PAPER=harness ITEM=embedded")[1].split("On `embedded-b`")[0].splitlines()
    rows = [line for line in lines if line.startswith("| embedded-")]
    published = (ROOT / "results/published/harness_embedded/embedded/table.md").read_text().splitlines()
    assert len(rows) == 6
    assert set(rows) <= set(published)


def test_the_rows_of_the_one_shot_page_are_published() -> None:
    rows = [line for line in (ROOT / "docs/one-shot.md").read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    folder = ROOT / "results/published/harness_oneshot"
    files = [folder / scale / name for scale in ("real", "proxy", "embedded") for name in ("table.md", "ranking.md")]
    published = {line for path in files for line in path.read_text(encoding="utf-8").splitlines()}
    assert len(rows) == 3 * 13 + 24 and set(rows) <= published


def test_files_and_targets_exist() -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / link).exists(), link
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z][a-z-]*)", README):
        assert re.search(rf"^{target}:|^reproduce-%:", makefile, re.MULTILINE), target


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("```text\n")[1].split("```")[0]
    there = {path.name for folder in ("harness", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")}
    assert set(re.findall(r"[a-z_]+\.py\b", tree)) <= there
    modules = {path.name for path in (ROOT / "harness").glob("*.py")} - {"__init__.py"}
    assert {name for name in modules if name not in tree} == set()


def test_the_plugin_of_the_readme_runs(typed: Callable, options: list[str], tmp_path: Path) -> None:
    code = README.split("```python\n")[1].split("```")[0]
    (tmp_path / "readme_method.py").write_text(code)
    ran = typed(*options, f"plugins={tmp_path / 'readme_method.py'}", "method=mine", "method.power=0.5")
    assert ran.status == 0, ran.err
    assert ran.record["sparsity"]["achieved"] == 0.5
