"""Variables that a library cannot read are found behind its exception."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest

from harness.runtime.environment import blamed

LIBRARY = """
import os

def as_number(value):
    return int(value)

def start():
    return as_number(os.environ.get("SOME_TIMEOUT")) + len(os.environ["SOME_NAME"])
"""


def raised(tmp_path: Path) -> BaseException:
    (tmp_path / "library.py").write_text(LIBRARY)
    module = types.ModuleType("library")
    exec(compile(LIBRARY, str(tmp_path / "library.py"), "exec"), module.__dict__)
    with pytest.raises(ValueError, match="invalid literal") as caught:
        module.start()
    return caught.value


def test_the_one_whose_value_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TIMEOUT", "soon")
    monkeypatch.setenv("SOME_NAME", "n")
    said = blamed(raised(tmp_path))
    assert said == (
        "a library cannot read SOME_TIMEOUT=soon of the environment: invalid literal for int() with base 10: 'soon'."
    )


def test_nothing_is_blamed_that_is_not_named_there() -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("soon")
    assert blamed(caught.value) is None


@pytest.mark.parametrize("name", ["HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"])
def test_a_run_says_it_in_one_sentence(name: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    call = [sys.executable, "-m", "harness", "method=none", "evaluation=[]", f"records={tmp_path / 'records'}"]
    done = subprocess.run(["env", f"{name}=soon", *call], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: a library cannot read {name}=soon of the environment: ")
    assert done.stderr.count("\n") == 1 and not list((tmp_path / "records").glob("*.json"))
