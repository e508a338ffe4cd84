"""A hub that does not answer: said at once, waited for within bounds, and its libraries look at the disk instead."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants

from harness.data.corpora import CORPORA, _read_hub
from harness.models.checkpoint import ModelChoice, find_checkpoint
from harness.runtime import hub
from harness.runtime.errors import UserError
from harness.runtime.hub import answers, asking, why_nothing


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes every connection and never says a word."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """A port at which nobody listens."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(params=["silent", "closed"])
def dead(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A hub that does not answer, and the patience of a test."""
    endpoint: str = request.getfixturevalue(request.param)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    answers.cache_clear()
    yield endpoint
    answers.cache_clear()


def test_a_model_of_a_hub_that_does_not_answer(dead: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as caught:
        find_checkpoint(ModelChoice("opt-125m", "facebook/opt-125m", None))
    assert str(caught.value) == (
        f"the model facebook/opt-125m is neither a local folder nor to be had from the hub ({dead} does not answer); "
        "on a machine with a network run: python -m harness prefetch model=opt-125m"
    )
    assert capfd.readouterr().err.startswith("asking the hub for the model facebook/opt-125m …\n")


@pytest.mark.parametrize("name", ["c4", "ptb"])
def test_a_corpus_of_a_hub_that_does_not_answer(name: str, dead: str, capfd: pytest.CaptureFixture[str]) -> None:
    part = CORPORA[name].splits["train"]
    assert part.hub
    with pytest.raises(UserError, match=rf"to be had from the hub \({dead} does not answer\); on a machine with a net"):
        _read_hub(name, "train", part, part.hub)
    assert f"asking the hub for the corpus {name} ({part.hub.repository}) …" in capfd.readouterr().err


def test_a_hub_that_does_not_answer_is_asked_once(dead: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside, its libraries are offline; behind, as they were."""
    datasets = SimpleNamespace(config=SimpleNamespace(HF_HUB_OFFLINE=False))
    monkeypatch.setitem(sys.modules, "datasets", datasets)  # type: ignore[arg-type]
    with asking("something"):
        assert constants.HF_HUB_OFFLINE and datasets.config.HF_HUB_OFFLINE
    assert not constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: asked.append(1))
    with asking("something else"):
        pass
    assert not asked and why_nothing(ValueError()) == f"{dead} does not answer"


def test_a_hub_that_answers_is_asked_by_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr(hub, "answers", lambda endpoint: True)
    with asking("something"):
        assert not constants.HF_HUB_OFFLINE
    assert why_nothing(ValueError("x")) == "ValueError"


def test_offline_nobody_is_asked(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with asking("something"):
        pass
    assert capfd.readouterr().err == ""
