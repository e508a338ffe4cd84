"""What was asked is what was done, or the record says why not; a plugin's mistake is a failed point of one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import but
from transformers import AutoModelForCausalLM

from harness import catalogue
from harness.core.pattern import NofM, keep

PLUGIN = """
from dataclasses import dataclass
import torch
from harness.catalogue import component
from harness.core.structure import Cut, Plan
from harness.core.interfaces import Pruned
from harness.core.pattern import Unstructured, keep
from harness.evaluation.protocol import Measure, Protocol

@component("method", "odd")
@dataclass(frozen=True)
class Odd:
    how: str = "lazy"
    statistic = None
    def prune(self, weight, seen, pattern):
        all = torch.ones_like(weight, dtype=torch.bool)
        return {
            "lazy": lambda: Pruned(weight.clone(), all),
            "never": lambda: Pruned(weight * float("nan"), all),
            "above": lambda: Pruned(weight / 0, all),
            "bare": lambda: weight,
            "shape": lambda: Pruned(weight[:1], all[:1]),
            "dtype": lambda: Pruned(weight.double(), all),
            "mask": lambda: Pruned(weight.clone(), ~all),
            "numbers": lambda: Pruned(weight, all.float()),
            "ok": lambda: Pruned(weight, all, ok=True),
            "order": lambda: Pruned(weight, all, order=torch.zeros(weight.shape[1], dtype=torch.long)),
            "unseen": lambda: Pruned(weight, all, unseen=torch.zeros(3)),
        }[self.how]()

@component("method", "whole")
@dataclass(frozen=True)
class Whole:
    def prune_block(self, block, patterns):
        return {}

@component("method", "teller")
@dataclass(frozen=True)
class Teller:
    def prune_block(self, block, patterns):
        block.log(norm=torch.tensor([1.0, float("nan")]), best=float("inf"), text="\\ud800")
        block.log(where=object, pair={1: (2, 3)})
        kept = {site: keep(block.weights[site].abs(), pattern, "row") for site, pattern in patterns.items()}
        return {site: Pruned(block.weights[site] * one, one) for site, one in kept.items()}

@component("allocator", "tensors")
@dataclass(frozen=True)
class Tensors:
    def allocate(self, probe, budget):
        return {site: Unstructured(torch.tensor(0.5)) for site in probe.shapes}

@component("allocator", "even")
@dataclass(frozen=True)
class Even:
    asks: float = 0.5
    def allocate(self, probe, budget):
        return {site: Unstructured(self.asks) for site in probe.shapes} if self.asks < 1 else None

@component("planner", "none_at_all")
@dataclass(frozen=True)
class NoneAtAll:
    def plan(self, probe):
        return None

@component("recovery", "breaks")
@dataclass(frozen=True)
class Breaks:
    def heal(self, view):
        view.decoder.model.get_input_embeddings().weight.data[3] = float("nan")

@component("recovery", "fills")
@dataclass(frozen=True)
class Fills:
    by: float = 1.0
    def heal(self, view):
        view.log(by=self.by)
        view.decoder.model.get_submodule(next(iter(view.kept))).weight.data.add_(self.by)
"""


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    catalogue.discover()
    monkeypatch.setattr(catalogue, "_registry", {kind: dict(known) for kind, known in catalogue._registry.items()})
    (tmp_path / "odd.py").write_text(PLUGIN)
    return f"plugins=[{tmp_path / 'odd.py'}]"


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (
            ["method=odd", "method.how=never"],
            "the method 'odd' left 1024 of 1024 weights of ",
        ),
        (["method=odd", "method.how=above"], "not finite (NaN or infinite)"),
        (["method=odd", "method.how=bare"], "the method 'odd' returned a "),
        (["method=odd", "method.how=shape"], "as [1, 32], where the shape [32, 32] is due"),
        (["method=odd", "method.how=dtype"], "as float64, where float32 is due"),
        (["method=odd", "method.how=mask"], "other than zero where its mask says that they went"),
        (["method=odd", "method.how=numbers"], "as float32, where bool is due"),
        (
            ["method=odd", "method.how=ok"],
            "returned a bool as ok of model.layers.0.self_attn.q_proj, where None or",
        ),
        (["method=odd", "method.how=order"], "returned int64 [32] as order of model.layers.0.self_attn.q_proj, where"),
        (
            ["method=odd", "method.how=unseen"],
            "returned float32 [3] as unseen of model.layers.0.self_attn.q_proj, where",
        ),
        (["method=odd", "method.how=never", "layer_error=true"], "the method 'odd' left 1024 of 1024 weights of "),
        (["allocator=tensors"], "for model.layers.0.self_attn.q_proj, which is no fraction of zeros from 0 to 1."),
        (["recovery=breaks"], "the recovery 'breaks' left weights of model.embed_tokens.weight not finite."),
        (["method=whole"], "the method 'whole' gave nothing for model.layers.0.self_attn.q_proj,"),
        (["allocator=even", "allocator.asks=2"], "the allocator 'even' returned None"),
        (["planner=none_at_all"], "the planner 'none_at_all' returned None"),
        (["recovery=fills"], "the recovery 'fills' filled "),
    ],
    ids=str,
)
def test_a_plugins_mistake_is_a_failed_point(
    choice: list[str], says: str, odd: str, typed: Callable, options: list[str]
) -> None:
    done = typed(*options, odd, "evaluation=[]", *choice)
    assert "Traceback" not in done.err
    record = done.record
    assert (done.status, record["status"]) == (1, "failed")
    assert says in record["reason"] and "\n" not in record["reason"] and record["reason"] in done.err


def test_what_a_method_tells_costs_no_number(odd: str, typed: Callable, options: list[str]) -> None:
    done = typed(*options, odd, "method=teller")
    assert done.status == 0 and done.record["measures"][0]["value"] > 0
    assert done.record["blocks"]["0"] == {
        "norm": [1.0, None], "best": None, "where": "<class 'object'>", "text": "?", "pair": {"1": [2, 3]},
    }  # fmt: skip


def test_a_matrix_of_zeros_has_no_relative_error(
    tiny: Path, tmp_path: Path, typed: Callable, options: list[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    site = "model.layers.1.mlp.up_proj"
    model.get_submodule(site).weight.data.zero_()
    model.save_pretrained(tmp_path / "zeros")
    for path in tiny.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "zeros")
    done = typed(*but(options, f"model.path={tmp_path / 'zeros'}"), "method=wanda", "layer_error=true")
    errors = done.record["blocks"]["1"]["layer_error"]
    assert errors[site] is None and 0 < errors["model.layers.1.self_attn.q_proj"] < 1


def notes(done: object) -> list[str]:
    return [note for note in done.record["notes"] if note.startswith("achieved sparsity")]  # type: ignore[attr-defined]


def test_a_method_that_removes_nothing(odd: str, typed: Callable, options: list[str]) -> None:
    done = typed(*options, odd, "evaluation=[]", "method=odd")
    assert done.status == 0 and done.record["sparsity"]["achieved"] == 0
    assert notes(done) == [
        "achieved sparsity 0.0000 where 0.5 was asked: "
        "-0.5000 by the method 'odd' itself, for the weights show no other cause"
    ]
    assert notes(done)[0] in done.err


def test_an_allocator_that_asks_for_another_budget(odd: str, typed: Callable, options: list[str]) -> None:
    done = typed(*options, odd, "evaluation=[]", "method=wanda", "allocator=even", "allocator.asks=0.25")
    assert notes(done) == [
        "achieved sparsity 0.2500 where 0.5 was asked: -0.2500 by what the allocator 'even' asks of the matrices"
    ]


def test_rows_of_an_odd_width(typed: Callable, options: list[str]) -> None:
    """⌊32 · 0.7⌋ = 22 of 22.4, and ⌊48 · 0.7⌋ = 33 of 33.6."""
    (note,) = notes(typed(*options, "evaluation=[]", "method=wanda", "sparsity=0.7"))
    assert "by quotas in whole weights of a row or column (in 14 of 14 matrices)" in note and note.count("by") == 1


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt", "sparsellm"])
def test_a_sparse_checkpoint(method: str, tiny: Path, tmp_path: Path, typed: Callable, options: list[str]) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight *= keep(weight.abs(), NofM(2, 4))
    model.save_pretrained(tmp_path / "sparse")
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "sparse" / file).write_bytes((tiny / file).read_bytes())
    rest = [text for text in options if not text.startswith("model.path")]
    done = typed(*rest, f"model.path={tmp_path / 'sparse'}", "evaluation=[]", f"method={method}", "sparsity=0.3")
    (note,) = notes(done)
    assert (
        note.startswith("achieved sparsity 0.5") and "by weights that were zero before (in 14 of 14 matrices)" in note
    )


def test_nothing_is_said_where_it_is_met_or_not_asked(typed: Callable, options: list[str]) -> None:
    for choice in ("method=wanda", "method=none", "sparsity=2of4"):
        assert not notes(typed(*options, "evaluation=[]", choice))


def test_a_block_taken_from_an_earlier_point_counts_alike(typed: Callable, options: list[str]) -> None:
    """The second point of a sweep takes the first block over; its sentence is that of a run alone."""
    together = typed(*options, "-m", "evaluation=[]", "method=wanda", "sparsity=0.7", "scope=0-0,all")
    assert together.status == 0
    (note,) = notes(together)
    alone = notes(typed(*options, "evaluation=[]", "method=wanda", "sparsity=0.7", "share=false", "force=true"))
    assert [note] == alone
