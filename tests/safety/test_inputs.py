"""Whatever is typed: one sentence and exit status 2, or a run and its record. `make test-inputs` tries thousands."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness import execute, groups
from harness.prepare import Run
from harness.record.schema import Record
from harness.study import commands
from tests.commands import SMALL, Typed
from tests.safety.inputs import Input, inputs

COUNT = int(os.environ.get("HARNESS_INPUTS", "60"))
WANDB_CORE = re.compile(r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d [A-Z]+ ")
"""How W&B's own process opens the lines that it logs when an earlier command's run ends."""
SENTENCE = re.compile(r"error: \S.*([^.?][.?]|\bpython -m harness \S.*)")
"""It ends in a full stop, in a question (did you mean …?), or in a command to be copied."""
FIRST = int(os.environ.get("HARNESS_FIRST_INPUT", "0"))
CHEAP = ["model=hf", "model.window=32", *SMALL, "method=none"]


def test_there_are_enough() -> None:
    groups.register()
    made = inputs()
    assert len(made) == len(set(made)) >= 1500
    assert made == inputs()


def test_one_sentence_or_a_clean_run(
    typed: Callable[..., Typed], tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups.register()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # .. lies within what is looked at
    monkeypatch.setenv("HOME", "/proc/nowhere")
    monkeypatch.setattr(commands, "ROOT", tmp_path)  # published results stay as they are
    monkeypatch.setattr(execute, "compute", _compute_or_pretend)
    for name in ("HARNESS_ASSETS", "WANDB_API_KEY", "NOPE"):
        monkeypatch.delenv(name, raising=False)
    wrong = {}
    for one in inputs()[FIRST : FIRST + COUNT]:
        _Pretend.dry = one.dry
        arguments = _completed(one, tiny)
        try:
            fault = _fault(typed(*arguments), one, tmp_path)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            fault = f"{type(error).__name__}: {error}"
        if fault:
            wrong[str(one)] = fault
        for left in [path for path in (*tmp_path.iterdir(), *Path().iterdir()) if path.name != "here"]:
            shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    assert not wrong, "\n".join(f"{typed}\n    {fault}" for typed, fault in wrong.items())


class _Pretend:
    dry = False


_compute = execute.compute


def _compute_or_pretend(run: Run, session: Any = None) -> Record:
    if _Pretend.dry:
        return Record("ok", "", run.fingerprint, run.config)
    return _compute(run, session)


def _completed(one: Input, tiny: Path) -> list[str]:
    """The input with what makes a run cheap: options that it does not give itself."""
    arguments = [word for text in one.arguments for word in _words(text)]
    if not _is_run(arguments):
        return arguments
    given = {re.split(r"[=@/:. ]", text.lstrip("+~ "))[0] for text in arguments}
    rest = [*CHEAP, f"model.path={tiny}"]
    if "model" in given:
        rest = ["model.window=32", f"model.path={tiny}", *SMALL, "method=none"]
    if "planner=policy_gradient" in arguments and not any(text.startswith("planner.steps") for text in arguments):
        arguments.append("planner.steps=2")
    return [*arguments, *(text for text in rest if text.partition("=")[0].partition(".")[0] not in given)]


def _words(text: str) -> list[str]:
    """A text of several overrides (`method=isc method.damping=1`), which none of the values alone is."""
    return re.split(r" (?=[a-z.]+(?:\.[\w-]+)*=)", text)


def _is_run(arguments: list[str]) -> bool:
    first = next((text for text in arguments if text != "-m"), "")
    return (
        not first.startswith("--")
        and ("=" in first or first.startswith(("~", "-", "+")))
        and not any(text.startswith("study=") for text in arguments)
    )


def _fault(done: Typed, one: Input, folder: Path) -> str:
    """What is wrong with an answer; empty if nothing is."""
    lines = [line for line in done.err.splitlines() if not WANDB_CORE.match(line)]
    if "Traceback" in done.err:
        return f"traceback: {lines[-1]}"
    if done.status == 2:
        if len(lines) != 1 or not SENTENCE.fullmatch(lines[0]):
            return f"not one sentence: {lines}"
        left = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "here"]
        return f"printed {done.out!r}" if done.out else f"left {left}" if left else ""
    if done.status != 0:
        return f"status {done.status}: {done.err!r}"
    missing = [path for path in re.findall(r"^record: (.*)$", done.out, re.MULTILINE) if not Path(path).is_file()]
    return f"no record at {missing}" if missing else "" if done.out else "nothing was printed"
