"""What tests of commands share: what a typed one gave, a tiny checkpoint on disk, the settings of a run of a second."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM

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


def but(options: Iterable[str], *changes: str) -> list[str]:
    """The options with these in the place of their like."""
    changed = {text.partition("=")[0] for text in changes}
    return [*(text for text in options if text.partition("=")[0] not in changed), *changes]


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
