"""The examples of docs/extending.md run as they stand there, by the commands below them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import GraniteConfig, GraniteForCausalLM

from harness.catalogue import KINDS
from harness.core.places import ROOT
from harness.data.corpora import EMBEDDED
from harness.models import anatomy
from harness.models.anatomy import FAMILIES
from tests.commands import but

PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
EXAMPLES = {
    file: (code, command)
    for file, code, command in re.findall(
        r"```python\n# (\w+\.py)\n(.*?)```\n\n```bash\npython -m harness (.*?)\n```", PAGE, re.S
    )
}


def test_every_kind_has_an_example() -> None:
    assert set(EXAMPLES) == {f"my_{kind}.py" for kind in (*KINDS, "family")}
    assert len(EXAMPLES) == PAGE.count("```python")


@pytest.fixture
def run(typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run an example in a folder of its own; the options of a small run give way to those that it types."""

    def example(file: str) -> dict:
        code, command = EXAMPLES[file]
        (tmp_path / file).write_text(code, encoding="utf-8")
        monkeypatch.chdir(tmp_path)
        ran = typed(*but(options, *shlex.split(command)))
        assert ran.status == 0, ran.err
        return ran.record

    return example


def test_the_method(run: Callable) -> None:
    record = run("my_method.py")
    assert record["sparsity"]["achieved"] == 0.5
    assert {site["pattern"] for site in record["sites"].values()} == {"2of4"}


def test_the_allocator(run: Callable) -> None:
    record = run("my_allocator.py")
    asked = [site["asked"] for site in record["sites"].values()]
    assert max(asked) > 0.6 > min(asked)
    assert abs(record["sparsity"]["achieved"] - 0.6) < 0.02  # rows of 32 and 48 weights
    assert len(record["allocation"]["score"]) == 2


def test_the_planner(run: Callable) -> None:
    record = run("my_planner.py")
    scores = record["plan"]["scores"]
    assert record["plan"]["edit"] == {"block": [int(min(scores, key=scores.get))]}
    assert record["parameters"]["model"] < record["parameters"]["dense"]


def test_the_recovery(run: Callable) -> None:
    record = run("my_recovery.py")
    assert record["recovery"]["tokens"] >= 512
    assert record["sparsity"]["achieved"] == 0.5


def test_the_conversion_computes_the_same(run: Callable, typed: Callable, options: list[str]) -> None:
    record = run("my_conversion.py")
    (measure,) = record["measures"]
    (dense,) = typed(*options, "method=none").record["measures"]
    assert measure["value"] == pytest.approx(dense["value"], rel=1e-5)


def test_the_evaluator(run: Callable) -> None:
    measures = {measure["metric"]: measure for measure in run("my_evaluator.py")["measures"]}
    assert set(measures) == {"perplexity", "dead_outputs"}
    assert measures["dead_outputs"]["value"] == 0  # Wanda compares the weights of one output
    assert measures["dead_outputs"]["samples"] == 2 * (4 * 32 + 2 * 48 + 32)


def test_the_family(run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(anatomy._KNOWN, "granite", FAMILIES["llama"])  # goes again with the test
    torch.manual_seed(0)
    config = GraniteConfig(
        vocab_size=976, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    GraniteForCausalLM(config).save_pretrained(tmp_path / "my-granite")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "my-granite" / name).write_bytes((EMBEDDED / "embedded-llama" / name).read_bytes())
    del anatomy._KNOWN["granite"]
    record = run("my_family.py")
    assert record["sparsity"]["achieved"] == 0.5
    assert len(record["sites"]) == 14
