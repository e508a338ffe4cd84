"""A tiny checkpoint on disk, and a way to type commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.__main__ import main
from harness.data.corpora import EMBEDDED

SMALL = ["calibration.windows=2", "calibration.length=32", "evaluation=[embedded-a]", "evaluation_limit=2"]


class Typed(NamedTuple):
    """What a command printed and how it ended."""

    status: int
    out: str
    err: str

    @property
    def record(self) -> dict[str, Any]:
        last = self.out.strip().splitlines()[-1]
        assert last.startswith("record: ")
        return json.loads(Path(last.removeprefix("record: ")).read_text())


@pytest.fixture
def typed(capfd: pytest.CaptureFixture[str]) -> Callable[..., Typed]:
    def run(*arguments: object) -> Typed:
        status = main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return Typed(status, captured.out, captured.err)

    return run


def save_tiny(folder: Path, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = LlamaConfig(
        **{
            "vocab_size": 976,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }
        | changes
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(EMBEDDED / "embedded-llama" / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-block LLaMA of random weights with the embedded tokenizer."""
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def options(tiny: Path, tmp_path: Path) -> list[str]:
    """A run of a second: the tiny model, two calibration and two evaluation windows."""
    return ["model=hf", f"model.path={tiny}", "model.window=32", f"records={tmp_path / 'records'}", *SMALL]
