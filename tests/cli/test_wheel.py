"""The built package: everything it needs is in it, and it works from any folder outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest

from harness.cli import words
from harness.core.places import CONF, REPORTED, ROOT


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the wheel was unpacked; built from a copy, for building leaves files in its source."""
    pytest.importorskip("setuptools", minversion="77")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("installed")
    for name in ("harness", "conf", "benchmarks/reported"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(folder)], cwd=source, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    wheel.unlink()
    return folder


def test_files(installed: Path) -> None:
    def below(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    assert below(installed / "harness" / "conf") == below(CONF)
    assert below(installed / "harness" / "reported") >= {name for name in below(REPORTED) if name.endswith(".csv")}
    own = {name for name in below(installed / "harness") if not name.startswith(("conf/", "reported/"))}
    assert own == below(ROOT / "harness")


def test_commands(installed: Path) -> None:
    (info,) = installed.glob("*.dist-info")
    scripts = {point.name: point.value for point in PathDistribution(info).entry_points}
    assert scripts == dict.fromkeys(("harness", "pruning-harness"), "harness.__main__:console")


def test_it_works_in_another_folder(installed: Path, tmp_path: Path) -> None:
    def typed(*arguments: str) -> list[str]:
        call = f"import sys; sys.path[0] = {str(installed)!r}; from harness.__main__ import console; console()"
        variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", call, *arguments], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert [line.split()[0] for line in typed("list", "models")] == words.files("model")
    last = typed("method=none", "evaluation=[embedded-a]", "evaluation_limit=1")[-1]
    (record,) = (tmp_path / "results" / "records").glob("*.json")
    assert last == f"record: {record.relative_to(tmp_path)}" and '"commit": null' in record.read_text()
    assert any("reported 5.68" in line for line in typed("compare", "study=wanda_table3", "scale=paper"))
