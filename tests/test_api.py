"""The front door computes what a run computes, and leaves a model as it was but for its weights."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TINY
from helpers import tiny as tiny_family
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness import Failure, Refusal, Result, UserError, catalogue, evaluate, prune
from harness.borrowed import tensors_hash
from harness.core.allocation import Budget
from harness.core.interfaces import Pruned
from harness.core.pattern import Unstructured, keep
from harness.core.statistic import squared_norms
from harness.core.structure import Cut, Plan, Unit
from harness.data.corpora import EMBEDDED, read_text
from harness.data.windows import Calibration, calibration_windows, evaluation_windows
from harness.methods.wanda import Wanda
from harness.models.anatomy import FAMILIES
from harness.record import schema

ROOT = Path(__file__).parent.parent
LLAMA = EMBEDDED / "embedded-llama"


def loaded(folder: Path, dtype: torch.dtype = torch.float32) -> tuple[PreTrainedModel, Any]:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), AutoTokenizer.from_pretrained(folder)


def small(folder: Path, *given: Any, **named: Any) -> Result:
    """As `SMALL` has it on the command line."""
    asked = {"calibration": "embedded-a", "windows": 2, "length": 32, "on": ["embedded-a"], "window": 32, "limit": 2}
    return prune(*loaded(folder), *given, **asked | named)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def windows_for(model: PreTrainedModel, count: int = 4, length: int = 32) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(3, model.config.get_text_config().vocab_size, (count, length), generator=generator)


def test_importing_it_imports_nothing_heavy() -> None:
    code = "import sys, harness; print(dir(harness)); print({'torch', 'transformers', 'hydra'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[1] == "set()" and "prune" in told
    with pytest.raises(ImportError, match="prnue"):
        exec("from harness import prnue")


@pytest.mark.parametrize(
    ("method", "sparsity", "allocator", "on"),
    [
        ("wanda", 0.5, "uniform", ["embedded-a", "embedded-cloze"]),
        ("sparsegpt", "2of4", "uniform", ["embedded-a"]),
        ("wanda", 0.6, "owl", ["embedded-a"]),
    ],
)
def test_the_weights_are_those_of_a_run(
    typed: Callable, tmp_path: Path, method: str, sparsity: float | str, allocator: str, on: list[str]
) -> None:
    asked = [f"method={method}", f"sparsity={sparsity}", f"allocator={allocator}", "calibration.windows=4", "seed=3"]
    evaluated = [f"evaluation=[{','.join(on)}]", "evaluation_limit=4"]
    ran = typed(*asked, *evaluated, f"records={tmp_path / 'records'}", f"save={tmp_path / 'saved'}")
    assert ran.status == 0, ran.err
    model, tokenizer = loaded(LLAMA)
    named = {"calibration": "embedded-a", "windows": 4, "seed": 3, "on": on, "limit": 4}
    result = prune(model, tokenizer, method, sparsity, allocator=allocator, **named)
    assert result.model is model
    assert_same(weights_of(model), load_file(tmp_path / "saved" / "model.safetensors"))
    assert result.measures == ran.record["measures"]
    assert evaluate(model, tokenizer, on, limit=4, seed=3) == ran.record["measures"]
    record = json.loads(result.write(tmp_path / "mine").read_text())
    for same in ("sparsity", "sites", "notes", "allocation", "blocks"):
        assert record[same] == ran.record[same], same
    assert record.keys() == ran.record.keys() and record["stages"].keys() == ran.record["stages"].keys()
    differ = {key for key, value in record["config"].items() if value != ran.record["config"][key]}
    assert differ <= {"model", "records", "cache", "cache_gib", "checkpoint_every", "save"}


def test_what_was_saved_on_the_way_is_the_model(tiny: Path, tmp_path: Path) -> None:
    result = small(tiny, save=tmp_path / "saved")
    assert_same(weights_of(result.model), load_file(tmp_path / "saved" / "model.safetensors"))
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["use_cache"] is True


def test_the_perplexity_is_what_transformers_says(tiny: Path) -> None:
    """Labels in, loss out: its mean over equally long windows."""
    model, tokenizer = loaded(tiny)
    windows = windows_for(model, 6)
    with torch.no_grad():
        losses = [float(model(window[None], labels=window[None]).loss) for window in windows]
    (measure,) = evaluate(model, tokenizer, on={"mine": windows})
    assert measure["value"] == pytest.approx(torch.tensor(losses, dtype=torch.float64).mean().exp().item(), rel=1e-5)
    assert (measure["metric"], measure["samples"], measure["task"][:5]) == ("perplexity", 6, "mine-")


def test_texts_and_windows_are_a_corpus(tiny: Path) -> None:
    named = small(tiny, "sparsegpt")
    texts = small(tiny, "sparsegpt", calibration=list(read_text("embedded-a", "train").rows))
    _, tokenizer = loaded(tiny)
    drawn = calibration_windows(Calibration("embedded-a", 2, 32, 0), tokenizer, 32)
    tokens = small(tiny, "sparsegpt", calibration=drawn, length=None, windows=None)
    assert_same(weights_of(texts.model), weights_of(named.model))
    assert_same(weights_of(tokens.model), weights_of(named.model))
    assert texts.record.config["calibration"]["corpus"].startswith("texts-")
    assert len({one.record.fingerprint for one in (named, texts, tokens)}) == 3
    cut = evaluation_windows("embedded-a", "test", tokenizer, 32, documents=None, limit=2)
    (mine,) = evaluate(named.model, None, on={"mine": cut})
    assert mine["value"] == named.measures[0]["value"]


@pytest.mark.parametrize("family", sorted(TINY))
def test_every_family_in_memory(family: str) -> None:
    model = tiny_family(family)
    windows = windows_for(model)
    result = prune(model, None, "sparsegpt", "2of4", calibration=windows)
    assert result.achieved == 0.5
    assert {site["pattern"] for site in result.sites.values()} == {"2of4"}
    assert {name for name, parameter in model.named_parameters() if name.removesuffix(".weight") in result.sites}
    assert evaluate(model, None, on={"mine": windows})[0]["value"] > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_all_but_the_weights_is_as_it_was(family: str, dtype: torch.dtype, fails: bool) -> None:
    """Matrices that a class keeps transposed are so again: the same parameters, in other memory."""
    model = tiny_family(family).to(dtype)
    layout = FAMILIES[family]
    model.set_attn_implementation("sdpa")
    model.train().requires_grad_(True)
    model.get_submodule(layout.blocks)[0].eval()
    model.get_input_embeddings().requires_grad_(False)
    windows = windows_for(model)
    model(windows, labels=windows).loss.backward()
    model.config.use_cache, model.config.output_hidden_states = True, True

    def state() -> Any:
        modules = {name: (module.training, type(module), set(vars(module))) for name, module in model.named_modules()}
        tensors = {
            name: (id(p), p.requires_grad, p.dtype, p.shape, None if layout.conv1d else p.data_ptr())
            for name, p in model.named_parameters()
        }
        hooks = {name: len(module._forward_hooks) for name, module in model.named_modules()}
        return modules, tensors, hooks, model.config.to_dict(), model.config._attn_implementation

    before, gradients = state(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"), torch.no_grad():
            prune(model, None, Broken(), calibration=windows)
    else:
        prune(model, None, "sparsegpt", allocator="isc", calibration=windows)  # asks for traces
    assert state() == before
    assert_same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, gradients)


@torch.no_grad()
def test_a_lent_model_with_transposed_matrices_is_its_owners_to_save(tmp_path: Path) -> None:
    """Its class reads what its own `save_pretrained` writes of a cut model whose widths its configuration holds."""
    model = tiny_family("gpt2")
    tokens = windows_for(model)
    result = prune(model, None, "wanda", 0.5, planner=Narrower(), calibration=tokens)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")["transformer.h.1.mlp.c_fc.weight"]
    assert result.sites["transformer.h.1.mlp.c_fc"]["achieved"] == 0.5 and stored.shape == (32, 55)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=model.config._attn_implementation).eval()
    torch.testing.assert_close(again(tokens).logits, model(tokens).logits, rtol=1e-5, atol=1e-5)


@dataclass
class Narrower:
    """The first channel of every block goes."""

    def plan(self, view: Any) -> Plan:
        return Plan(Cut(frozenset(Unit("channel", index, 0) for index in range(len(view.blocks)))))


@dataclass(frozen=True)
class Broken:
    statistic = None

    def prune(self, weight: Tensor, seen: None, pattern: Any) -> Pruned:
        raise RuntimeError("on purpose")


@dataclass(frozen=True)
class Powered:
    """Wanda, with another power of the weight."""

    power: float = 1.0
    statistic = squared_norms

    def prune(self, weight: Tensor, seen: Any, pattern: Any) -> Pruned:
        kept = keep(weight.abs() ** self.power * seen.mean_sq.sqrt(), pattern, "row")
        return Pruned(weight * kept, kept)


CELL = "class Cell:\n    def plan(self, probe):\n        return [one * 0.5 for one in probe if one in {'a', 'b'}]"


def cell(code: str) -> Any:
    """An instance of the class that a notebook's cell defines: it has no file."""
    names: dict[str, Any] = {"__name__": "__main__"}
    exec(code, names)
    return names["Cell"]()


def revision_of(code: str) -> str:
    """The revision of a planner that a cell defines, once it was taken for one."""
    instance = cell(code)
    assert catalogue.adopted("planner", instance) == []
    return catalogue.revision(instance)


class Steps:
    """Neither a dataclass nor registered: the first block keeps more."""

    def allocate(self, view: Any, budget: Budget) -> dict[str, Any]:
        return {
            site: Unstructured(0.25 if index == 0 else 0.75)
            for index, block in enumerate(view.blocks)
            for site in block
        }


@dataclass
class DropLast:
    """The last block goes."""

    def plan(self, view: Any) -> Plan:
        return Plan(Cut.of_blocks([len(view.blocks) - 1]))


def test_components_of_a_notebook_need_no_registration(tiny: Path) -> None:
    named, mine = small(tiny, "wanda"), small(tiny, Powered())
    assert_same(weights_of(mine.model), weights_of(named.model))
    assert mine.record.config["method"] == {"name": "Powered", "power": 1.0}
    assert re.fullmatch(r"1\+[0-9a-f]{16}", mine.record.provenance["revisions"]["method"])
    assert mine.record.fingerprint != small(tiny, Powered(2.0)).record.fingerprint
    assert {revision_of(code) for code in (CELL, f"# a comment\n{CELL}")} == {revision_of(CELL)}
    assert revision_of(CELL) != revision_of(CELL.replace("0.5", "0.6"))
    stepped = small(tiny, Powered(), allocator=Steps())
    achieved = {site.split(".")[2]: facts["achieved"] for site, facts in stepped.sites.items()}
    assert achieved == {"0": pytest.approx(0.25, abs=0.02), "1": pytest.approx(0.75, abs=0.02)}
    planned = small(tiny, None, planner=DropLast())
    assert len(planned.model.model.layers) == planned.model.config.num_hidden_layers == 1
    schema._check(schema.Record(**{**vars(planned.record)}))


def test_settings_come_as_objects_or_as_records_have_them(tiny: Path) -> None:
    objects = small(tiny, Wanda(group="matrix"))
    settings = small(tiny, {"name": "wanda", "group": "matrix"})
    again = small(tiny, objects.record.config["method"], objects.record.config["sparsity"])
    assert objects.record.fingerprint == settings.record.fingerprint == again.record.fingerprint
    assert_same(weights_of(objects.model), weights_of(settings.model))
    assert objects.record.fingerprint != small(tiny, "wanda").record.fingerprint


def test_a_record_tells_where_the_weights_came_from(tiny: Path, tmp_path: Path) -> None:
    model, _ = loaded(tiny)
    dense = tensors_hash(model)
    result = small(tiny)
    assert result.record.provenance["weights_sha256"] == dense != tensors_hash(result.model)
    assert result.record.provenance["weights_from"] == "memory"
    assert schema.read(result.write(tmp_path)).measures == tuple(result.measures)
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted.lm_head.weight[0, 0] += 1
    assert tensors_hash(shifted) != dense


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"method": "wandaa"}, "did you mean wanda"),
    ({"method": DropLast()}, "lacks prune and statistic|lacks prune_block"),
    ({"method": {"name": "wanda", "grouping": "row"}}, "did you mean group"),
    ({"planner": Powered()}, "lacks plan"),
    ({"planner": Powered}, r"planner=Powered is a class; give an object of it, planner=Powered\(\)"),
    ({"planner": True}, "planner=True is neither a name"),
    ({"on": 3}, "on=3 is neither a name"),
    ({"sparsity": 1.5}, "sparsity=1.5"),
    ({"sparsity": "2of5"}, "not divisible by 5"),
    ({"scope": "0-9"}, "scope=0-9"),
    ({"calibration": "embeded-a"}, "did you mean embedded-a"),
    ({"calibration": []}, "neither a list of documents"),
    ({"calibration": [1, 2]}, "neither a list of documents"),
    ({"calibration": ["short"]}, "longer than 32 tokens"),
    ({"calibration": torch.zeros(2, 4), "length": None}, "whole numbers"),
    ({"calibration": torch.full((2, 32), 5000)}, "tokenizer and model do not belong together"),
    ({"calibration": torch.full((2, 32), 5), "windows": 3}, "ask for more"),
    ({"length": 4096}, "longer than the model's context"),
    ({"on": ["wikitext"]}, "did you mean wikitext2"),
    ({"on": {"a/b": ["text"]}}, "no name for a text"),
    ({"seed": 1.5}, "seed=1.5"),
    ({"numerics": "precise"}, "numerics"),
    ({"tokenizer": None}, "the calibration text embedded-a needs the model's tokenizer"),
    ({"tokenizer": None, "calibration": ["some text"]}, "needs the model's tokenizer"),
    ({"tokenizer": "wanda"}, "tokenizer is a str"),
    ({"calibration": {"input_ids": torch.full((2, 32), 5)}}, "neither a list of documents"),
]


@pytest.mark.parametrize(("asked", "sentence"), MISTAKES, ids=lambda one: str(one)[:40])
def test_a_mistake_is_one_sentence(tiny: Path, asked: dict[str, Any], sentence: str) -> None:
    model, tokenizer = loaded(tiny)
    before = weights_of(model)
    named = {"calibration": "embedded-a", "windows": 2, "length": 32, "limit": 2, "tokenizer": tokenizer} | asked
    with pytest.raises(UserError, match=sentence) as caught:
        prune(model, **named)
    assert "\n" not in str(caught.value)
    assert_same(weights_of(model), before)


def test_what_is_no_model_is_refused(tiny: Path) -> None:
    model, tokenizer = loaded(tiny)
    for wrong, sentence in (
        (nn.Linear(2, 2), "model is a Linear"),
        (model.model, "no language-model head"),
        (copy.deepcopy(model).double(), "float64"),
        (copy.deepcopy(model).to("meta"), "lies on meta"),
        (torch.compile(copy.deepcopy(model)), "OptimizedModule"),
    ):
        with pytest.raises(UserError, match=sentence):
            evaluate(wrong, tokenizer, on="embedded-a")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight of the model is not finite"):
        prune(model, tokenizer, calibration="embedded-a")
    assert issubclass(Refusal, UserError) and not issubclass(Failure, UserError)


def test_a_text_is_not_measured_that_calibration_saw(tiny: Path) -> None:
    rows = list(read_text("embedded-a", "train").rows[:40])
    with pytest.raises(UserError, match="overlaps the evaluation text mine-"):
        small(tiny, calibration=rows, on={"mine": rows[:20]})


def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (tmp_path / "harness").symlink_to(ROOT / "harness")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks:
        exec(block, names)
    first, second, third = capsys.readouterr().out.splitlines()[-3:]
    dense, pruned, achieved = map(float, first.split())
    assert 1 < dense < pruned < 10 and achieved == 0.5
    assert "'pattern': '2of4'" in second and third == "{'name': 'Mine', 'power': 0.5}"
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    assert float((kept.model.layers[0].mlp.up_proj.weight == 0).float().mean()) == 0.5
    assert sorted(os.listdir(tmp_path)) == ["harness", "pruned"]  # nothing else is written
