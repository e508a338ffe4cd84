"""No network, two threads, no test on real assets where there are none; and the fixtures of more than one folder."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")  # as in harness.__main__, before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers and datasets are imported
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch

from harness import catalogue
from harness.__main__ import main
from harness.data import corpora
from harness.record import trackers
from tests.commands import SMALL, Typed, save_tiny

torch.set_num_threads(1)  # two processes share two cores (pytest -n 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = os.environ.get("HARNESS_ASSETS")
    if folder and Path(folder).is_dir():
        return
    for item in items:
        if item.get_closest_marker("assets"):
            item.add_marker(pytest.mark.skip(reason="HARNESS_ASSETS is not set, or no folder"))


@pytest.fixture(autouse=True)
def _nothing_is_remembered() -> Iterator[None]:
    """Neither what one test reads below its own HARNESS_ASSETS, nor that W&B's host did not answer it."""
    yield
    corpora.read_text.cache_clear()
    trackers._out_of_reach.clear()


@pytest.fixture(autouse=True)
def _plugins_are_those_of_one_test() -> Iterator[None]:
    """Files of two tests may announce one name; for two plugins of one process that is a mistake."""
    before = set(catalogue._plugin_names)
    yield
    for module in set(catalogue._plugin_names) - before:
        catalogue._forget(module)
        del catalogue._plugin_names[module]
        catalogue._plugin_sources.pop(module, None)
        sys.modules.pop(module, None)


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    def run(*arguments: object) -> Typed:
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Typed(status, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block LLaMA of random weights with the embedded tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def options(tiny: Path, tmp_path: Path) -> list[str]:
    """A run of a second: the tiny model, two calibration and two evaluation windows."""
    return ["model=hf", f"model.path={tiny}", "model.window=32", f"records={tmp_path / 'records'}", *SMALL]


class FakeRun:
    """A W&B run that writes down what it is told."""

    def __init__(self, log: list[Any]) -> None:
        self.summary: dict[str, Any] = {}
        self._log = log

    def __enter__(self) -> FakeRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.append(("summary", dict(self.summary)))

    def log(self, values: dict[str, Any]) -> None:
        self._log.append(("log", list(values)))

    def finish(self, exit_code: int = 0) -> None:
        self._log.append(("finish", exit_code))


@pytest.fixture
def wandb_log(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    log: list[Any] = []

    def init(**settings: Any) -> FakeRun:
        log.append(("init", settings))
        return FakeRun(log)

    fake = types.SimpleNamespace(
        init=init, Settings=dict, Table=lambda **given: given, Image=str, login=lambda prompt: False
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)  # type: ignore[arg-type]
    return log
