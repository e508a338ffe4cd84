"""Text from records and configurations becomes names of files and of W&B runs: none leads out, none reaches a shell."""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from harness.config import Tracker
from harness.record import schema
from harness.record.schema import Record
from harness.record.trackers import track
from harness.runtime.errors import UserError
from tests.record.test_trackers import CONFIG

ROOT = Path(__file__).parents[2]
HOSTILE = [
    *("../../x", "..", "/etc/passwd", "a;rm -rf ~", "$(touch x)", "`touch x`", "two\nlines", "nul\0byte"),
    *("x" * 400, "é" * 200, "模型/量", "-rf", ".hidden", "a b\tc", "CON", ""),
]


def record(name: str, **changes: Any) -> Record:
    config = {**CONFIG, "model": {"name": name}, "sparsity": name, "scope": name, "seed": name}
    return replace(Record("ok", "", "f" * 16, config), **changes)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_record_lies_in_its_folder_whatever_its_configuration_says(name: str, tmp_path: Path) -> None:
    path = schema.write(record(name), tmp_path / "records")
    assert [found.name for found in tmp_path.iterdir()] == ["records"]
    assert list((tmp_path / "records").iterdir()) == [path]
    assert re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*_f{16}\.json", path.name) and len(path.name.encode()) <= 128
    assert schema.find(tmp_path / "records", "f" * 16) == (path, schema.read(path))


@pytest.mark.parametrize("name", HOSTILE)
def test_wandb_is_given_an_id_that_it_takes(name: str, wandb_log: list[Any], tmp_path: Path) -> None:
    track(Tracker("wandb"), record(name, attempt=12345), tmp_path)
    identifier = wandb_log[0][1]["id"]
    assert len(identifier) <= 128 and not set(identifier) & set("/\\#?%: \n\0")


def test_names_as_they_were_stay() -> None:
    """Names of files from before published records were packed: study and scale, name."""
    names = (Path(__file__).parent / "published_names.txt").read_text(encoding="utf-8").splitlines()
    assert len(names) == 21
    for place, name in map(str.split, names):
        packed = ROOT / "results" / "published" / place / schema.PACKED
        assert name in {record.name for record in schema.unpack(packed)}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("fingerprint", text) for text in ("../../x", "a/b", "", "f" * 65, "ff\n", "*", None, 3)),
        *(("status", text) for text in ("done", None, ["ok"])),
        *(("config", value) for value in ([], None, {}, {"model": "tiny"})),
        *(("measures", value) for value in ([1], [{}], 3, None)),
        *(("sites", []), ("provenance", "x"), ("schema", 99), ("unknown", 1)),
    ],
)
def test_what_is_no_record_is_left_out(entry: str, value: Any, tmp_path: Path) -> None:
    good = schema.write(record("tiny"), tmp_path)
    content = json.loads(json.dumps(asdict(record("tiny")))) | {entry: value}
    (tmp_path / "bad.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"bad\.json"):
        schema.read(tmp_path / "bad.json")
    assert [path for path, _ in schema.read_all(tmp_path)] == [good]


@pytest.mark.parametrize("name", ["../../x", "..", "/etc", "a\\b", "two\nlines", "x" * 200, ".x"])
def test_a_model_may_not_be_named_like_a_path(name: str, typed: Callable, options: list[str], tmp_path: Path) -> None:
    quoted = "'" + name.replace("\\", "\\\\") + "'"
    refused = typed(*options, f"model.name={quoted}", f"save='{tmp_path / 'out'}/${{model.name}}'")
    assert refused.status == 2 and "model.name=" in refused.err and refused.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../harness_embedded", "../../x", "a;b", "x" * 300, ".", "kills\nx"])
@pytest.mark.parametrize("option", ["study", "model", "method", "allocator", "calibration", "cluster", "scale"])
def test_choices_are_names_of_what_is_there(option: str, name: str, typed: Callable) -> None:
    command = ["plan"] if option in ("cluster", "scale") else []
    more = ["study=harness_embedded"] if command else []
    refused = typed(*command, *more, f"{option}='{name}'" if option not in ("study", "scale") else f"{option}={name}")
    assert refused.status == 2, refused
    assert refused.err.startswith("error: ") and "Traceback" not in refused.err


def test_nothing_is_given_to_a_shell_and_nothing_unpickled() -> None:
    """Every call in harness/ that could do either; the cluster launchers pickle in their own packages."""
    unpickling = {
        "torch.load",
        "pickle.load",
        "pickle.loads",
        "joblib.load",
        "dill.load",
        "marshal.loads",
        "shelve.open",
    }
    shells = {"os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "yaml.unsafe_load"}
    for path in (ROOT / "harness").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not modules & {"pickle", "joblib", "dill", "marshal", "shelve", "cloudpickle"}, path
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in unpickling | shells | {"eval", "exec"}, (path, called)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert "shell" not in given and given.get("allow_pickle", "False") == "False", (path, called)
            assert called != "yaml.load" or given.get("Loader", "Loader") == "Loader", path  # a SafeLoader of its own
            assert not re.fullmatch(r"subprocess\.\w+", called) or isinstance(node.args[0], ast.List), (path, called)


@pytest.mark.parametrize("hostile", ["`touch stolen`", "$(shell touch stolen)", '"; touch stolen; "', "a b"])
def test_make_gives_names_of_files_to_no_shell(hostile: str, tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\nprintf "%s|" "$@" > given\n')
    python.chmod(0o755)
    (tmp_path / ".venv" / ".ready").touch()
    environment = {"PATH": "/usr/bin:/bin", "RECORD": hostile, "OUT": hostile}
    subprocess.run(["make", "allocation"], cwd=tmp_path, env=environment, check=True, capture_output=True)
    assert not (tmp_path / "stolen").exists()
    assert (tmp_path / "given").read_text() == f"-m|harness|allocation|{hostile}|{hostile}|"
    (tmp_path / "given").unlink()
    named = [f"RECORD={hostile}", f"OUT={hostile}"]
    subprocess.run(["make", "allocation", *named], cwd=tmp_path, check=True, capture_output=True)
    assert not (tmp_path / "stolen").exists()
    assert (tmp_path / "given").read_text() == f"-m|harness|allocation|{hostile}|{hostile}|"
