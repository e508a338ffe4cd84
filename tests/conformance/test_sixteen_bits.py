"""Every component in float16 and bfloat16 on a deep model of odd widths, by whole runs: finite, and of the asked zeros.

30 blocks of width 576 with 9 heads over 3 key-value heads, as the smallest SmolLM2 has them, and one channel of the
hidden states in the hundreds, as trained models have it. Two blocks near the end are pruned, so that what enters them
is the depth's. Components are found in the catalogue: a new one is tried here before its first own test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from helpers import ALLOCATORS, METHODS
from transformers import LlamaForCausalLM

from harness import catalogue
from tests.commands import save_tiny

ODD: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 64,
    "intermediate_size": 96, "initializer_range": 0.04, "tie_word_embeddings": True,
}  # fmt: skip
LEAN = [
    *("scope=27-28", "calibration.windows=4", "calibration.length=32", "evaluation=[embedded-a]"),
    *("evaluation_window=32", "evaluation_limit=2", "model.window=32"),
]
CHEAP = {
    "sensitivity_windows": 2, "generations": 1, "population": 4, "offspring": 4, "survivors": "[2,1]", "windows": 2,
    "stages": "[1,2]", "probes": 1, "held_out": 0, "step": 0.1, "reach": 0.1,
}  # fmt: skip
"""Settings under which a search ends soon, for the allocators that have them."""
FEW_STEPS = {"tokens": 256, "batch": 4, "steps": 2, "held_out": 1}
"""Of a recovery that trains, or a planner that learns."""
DTYPES = ["float16", "bfloat16"]


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_tiny(tmp_path_factory.mktemp("odd"), **ODD)
    model = LlamaForCausalLM.from_pretrained(folder)
    with torch.no_grad():  # a row of the second block's output makes the large channel
        model.model.layers[1].mlp.down_proj.weight[7] *= 3000
    model.to(torch.float16).save_pretrained(folder)
    return folder


@pytest.fixture
def options(odd: Path, tmp_path: Path) -> list[str]:
    return ["model=hf", f"model.path={odd}", f"records={tmp_path / 'records'}", *LEAN]


def numbers(content: Any) -> Iterator[float]:
    """Every number of a record, wherever it stands."""
    if isinstance(content, dict):
        content = list(content.values())
    if isinstance(content, list):
        for item in content:
            yield from numbers(item)
    elif isinstance(content, float):
        yield content


def check(record: dict[str, Any], sparsity: float) -> None:
    """Finite everywhere, and every matrix has what was asked of it, up to the rounding of its rows."""
    assert record["status"] == "ok", record["reason"]
    assert all(math.isfinite(measure["value"]) and measure["value"] > 1 for measure in record["measures"])
    assert all(math.isfinite(number) for number in numbers(record))
    assert len(record["sites"]) == 14
    assert record["sparsity"]["asked"] == pytest.approx(sparsity)
    for site, one in record["sites"].items():
        assert one["achieved"] == pytest.approx(one["asked"], abs=1 / 96), site
    sizes = {site: one["parameters"] for site, one in record["sites"].items()}
    mean = sum(record["sites"][site]["asked"] * size for site, size in sizes.items()) / sum(sizes.values())
    assert mean == pytest.approx(sparsity, abs=1e-6)


def test_the_large_channel_is_there(odd: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(odd, dtype=torch.float32)
    states = model(torch.randint(2, 976, (1, 32)), output_hidden_states=True).hidden_states
    assert 100 < float(states[27].abs().max()) < 65504


@pytest.mark.parametrize(("dtype", "sparsity"), [("float16", "0.7"), ("float16", "2of4"), ("bfloat16", "0.7")])
@pytest.mark.parametrize("name", [name for name in METHODS if "plugin" not in type(METHODS[name]).__module__])
def test_methods(name: str, dtype: str, sparsity: str, typed: Callable, options: list[str]) -> None:
    done = typed(*options, f"method={name}", f"dtype={dtype}", f"sparsity={sparsity}")
    assert done.status == 0, done.err
    check(done.record, 0.7 if sparsity == "0.7" else 0.5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALLOCATORS)
def test_allocators(name: str, dtype: str, typed: Callable, options: list[str]) -> None:
    known = catalogue.defaults("allocator", name)
    cheap = [f"allocator.{setting}={value}" for setting, value in CHEAP.items() if setting in known]
    if name == "mrp":
        cheap = []
    done = typed(*options, "method=wanda", f"allocator={name}", *cheap, f"dtype={dtype}", "sparsity=0.7")
    assert done.status == 0, done.err
    check(done.record, 0.7)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("planner", "conversion", "recovery") for name in catalogue.names(kind)]
)
def test_planners_and_recoveries(kind: str, name: str, dtype: str, typed: Callable, options: list[str]) -> None:
    """With whatever their defaults ask for, but for what is trained; a planner may take the pruned blocks away."""
    known, component = catalogue.defaults(kind, name), cast("Any", catalogue.lookup(kind, name))
    few = [f"{kind}.{setting}={value}" for setting, value in FEW_STEPS.items() if setting in known]
    few += ["planner.amount=0.02"] if known.get("of") == "linears" else []  # of all blocks, which two can give
    if kind == "recovery" and not component.leaves_plain:  # it is in place of what is gone
        few += ["planner=block_influence", "planner.keep_first=1"]
    done = typed(*options, "method=wanda", f"{kind}={name}", *few, f"dtype={dtype}")
    assert done.status == 0, done.err
    record = done.record
    assert record["status"] == "ok", record["reason"]
    assert all(math.isfinite(number) for number in numbers(record))
    if kind == "recovery" and component.keeps_zeros and not record["plan"]:
        check(record, 0.5)
