"""Points that share a process: bit for bit what they are alone, and counted."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from harness import compose, session
from harness.calibration.walk.stream import Stream
from harness.config import RunConfig
from harness.data import windows
from harness.evaluation.perplexity import Perplexity
from harness.execute import execute
from harness.models.loading import load_model
from harness.models.placement import Where
from harness.prepare import prepare
from harness.record.request import matcher_of_record, request_key
from harness.record.schema import Record
from harness.report.outputs import refuse_unlike
from harness.run import compute
from harness.runtime.errors import Refusal, UserError
from harness.session import Session
from tests.commands import save_tiny
from tests.end_to_end.test_identity import DROP

OPTIONS = ["calibration.windows=3", "evaluation=[embedded-a]", "evaluation_limit=2"]
SEARCH = ["allocator.generations=1", "allocator.population=3", "allocator.windows=1", "allocator.held_out=0"]
SEARCH += ["allocator.sensitivity_windows=1", "allocator.pruner=magnitude"]


@pytest.fixture(autouse=True)
def _process_of_its_own() -> Iterator[None]:
    compose.register()
    session.end()
    yield
    session.end()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), num_hidden_layers=3)


@pytest.fixture
def options(tiny: Path, tmp_path: Path) -> list[str]:
    model = ["model=hf", f"model.path={tiny}", "model.window=32", "calibration.length=32"]
    return [*model, f"records={tmp_path}", *OPTIONS]


def config(options: Sequence[str], *overrides: str) -> RunConfig:
    return compose.compose_run([*options, *overrides])


class Numbers:
    """What a point came to: its record, and the weights that were evaluated."""

    def __init__(self, record: Record, weights: dict[str, Tensor]) -> None:
        self.record, self.weights = record, weights

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Numbers)
        names = ("measures", "sites", "sparsity", "blocks", "notes", "edit")
        assert self.weights.keys() == other.weights.keys()
        return all(getattr(self.record, name) == getattr(other.record, name) for name in names) and all(
            torch.equal(weight, other.weights[name]) for name, weight in self.weights.items()
        )


def numbers(cfg: RunConfig, monkeypatch: pytest.MonkeyPatch, here: Session | None) -> Numbers:
    caught: dict[str, Tensor] = {}

    def catch(model: Any) -> None:
        caught.update({name: weight.clone() for name, weight in model.named_parameters()})
        fuse(model)

    from harness.run import fuse_attention as fuse

    with monkeypatch.context() as patch:
        patch.setattr("harness.run.fuse_attention", catch)
        return Numbers(compute(prepare(cfg), here), caught)


def dense_tensors(cfg: RunConfig) -> dict[str, Tensor]:
    ready = prepare(cfg)
    model = load_model(ready.inputs.checkpoint, cfg.model, ready.dtype, Where(ready.device))
    return {name: tensor.detach().clone() for name, tensor in session._tensors(model)}


GRID = [
    ["method=none"],
    *[
        [f"method={method}", f"allocator={allocator}", f"seed={seed}", f"sparsity={0.5 + 0.1 * seed}"]
        + (SEARCH if allocator == "msp" else [])
        + (["method.epochs=2"] if method == "sparsellm" else [])
        for method in ("magnitude", "wanda", "sparsegpt", "sparsellm")
        for allocator in ("uniform", "owl", "msp")
        for seed in (0, 1)
    ],
]


@pytest.mark.parametrize(("model", "chosen"), [("embedded-llama", slice(None)), ("embedded-opt", slice(2, None, 5))])
def test_points_in_any_order_are_what_they_are_alone(
    model: str, chosen: slice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone: its own load and cache folder. Together: some of the points forwards, then all of them backwards."""
    options = [f"model={model}", "calibration.length=32", "evaluation_window=32", "scope=0-1", *OPTIONS]
    points = [config([*options, f"records={tmp_path}"], *overrides) for overrides in GRID[chosen]]
    alone = [numbers(replace(cfg, cache=tmp_path / "alone"), monkeypatch, None) for cfg in points]
    together = Session(keeps=True)
    order = [*range(0, len(points), 3), *reversed(range(len(points)))]
    for number in order:
        assert numbers(points[number], monkeypatch, together) == alone[number], GRID[chosen][number]
    assert together._points == len(order)


CHANGES = [
    *(["method=" + name] for name in ("magnitude", "wanda", "sparsegpt", "isc", "sparsellm")),
    ["method=sparsegpt", "sparsity=2of4"],
    ["method=none"],
    ["method=wanda", "allocator=mrp"],
    ["method=magnitude", "allocator=alphapruning"],
    ["method=none", "planner=drop", "planner.block=1"],
]


def test_the_model_is_dense_again_after_every_kind_of_point(options: list[str], tmp_path: Path) -> None:
    (tmp_path / "drop.py").write_text(DROP)
    compose.register([str(tmp_path / "drop.py")])
    options = [*options, f"plugins={tmp_path / 'drop.py'}"]
    here = Session(keeps=True)
    fresh = dense_tensors(config(options))
    for overrides in CHANGES:
        cfg = config(options, *overrides)
        compute(prepare(cfg), here)
        decoder, _ = here.load(prepare(cfg))
        found = dict(session._tensors(decoder.model))
        assert found.keys() == fresh.keys()
        assert all(torch.equal(tensor, fresh[name]) for name, tensor in found.items()), overrides
        assert decoder.config._attn_implementation == "eager"


def test_a_changed_structure_is_loaded_again(options: list[str]) -> None:
    here, cfg = Session(keeps=True), config(options)
    for change in (
        lambda model: model.model.layers[0].register_forward_hook(lambda *_: None),
        lambda model: model.train(),
        lambda model: setattr(model.model.layers[0], "forward", None),
        lambda model: model.model.layers[0].mlp.up_proj.register_parameter("scale", torch.nn.Parameter(torch.ones(1))),
        lambda model: setattr(model.config, "rms_norm_eps", 1.0),
    ):
        before, _ = here.load(prepare(cfg))
        change(before.model)
        after, _ = here.load(prepare(cfg))
        assert after is not before
        assert here.load(prepare(cfg))[0] is after


def test_another_model_dtype_or_failure_takes_the_place_of_what_was_kept(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, cfg = Session(keeps=True), config(options)
    compute(prepare(cfg), here)
    first = here._held
    half = config(options, "dtype=bfloat16")
    compute(prepare(half), here)
    assert here._held is not first
    kept = here._held
    with monkeypatch.context() as patch:
        patch.setattr("harness.compress.prune", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compute(prepare(half), here)
    assert kept is not None and here._held is None
    refused = config(options, "sparsity=3of5")
    compute(prepare(cfg), here)
    kept = here._held
    with pytest.raises(Refusal):
        compute(prepare(refused), here)
    assert here._held is kept


def test_a_single_run_keeps_nothing(options: list[str]) -> None:
    cfg = config(options)
    execute(prepare(cfg), in_sweep=False)
    assert session._here is None
    execute(prepare(config(options, "seed=1", "share=false")), in_sweep=True)
    assert session._here is None
    execute(prepare(config(options, "seed=2")), in_sweep=True)
    assert session.of_process()._held is not None


class Count(Counter[str]):
    """Loads, forwards of one block over one batch, updates of statistics, factorisations, evaluations."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self._wrap(patch, "harness.session.load_model", "loads")
        self._wrap(patch, "harness.core.statistic.damped_inverse", "factorisations")
        self._wrap(patch, "harness.allocators.alphapruning.power_law_exponent", "spectra")
        self._wrap(patch, "harness.allocators.owl.wanda_metric", "metrics of blocks")
        patch.setattr(windows, "encode", self._counted("encodings", windows.encode))
        patch.setattr(Stream, "run_piece", self._counted("forwards", Stream.run_piece))
        patch.setattr(Perplexity, "__call__", self._counted("evaluations", Perplexity.__call__))
        patch.setattr(torch, "bincount", self._counted("histograms", torch.bincount))

    def _counted(self, name: str, function: Any) -> Any:
        def counted(*arguments: Any, **named: Any) -> Any:
            self[name] += 1
            return function(*arguments, **named)

        return counted

    def _wrap(self, patch: pytest.MonkeyPatch, where: str, name: str) -> None:
        module, _, attribute = where.rpartition(".")
        patch.setattr(where, self._counted(name, getattr(importlib.import_module(module), attribute)))


SWEEP = [
    [f"method={method}", f"allocator={allocator}", f"sparsity={sparsity}"]
    for sparsity in (0.4, 0.5, 0.6, 0.65, 0.7, 0.75, 0.8)
    for method in ("magnitude", "wanda", "sparsegpt")
    for allocator in ("uniform", "owl", "alphapruning")
]


def test_a_sweep_of_63_points_does_once_what_is_the_same(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Three blocks, one batch; a sequential point has two forwards a block but for the last, whose output nobody needs.

    The dense pass (2 + 1 forwards) is OWL's, whose norms Wanda's first block has too; 21 Wanda points then leave out
    one forward each, and 20 of SparseGPT's, the first of which sees the Gram matrices.
    """
    here, count = Session(keeps=True), Count(monkeypatch)
    for overrides in (["method=none"], *SWEEP, ["method=none", "tracker=csv"]):
        cfg = config(options, *overrides)
        compute(prepare(cfg), here)
    assert (count["loads"], count["evaluations"]) == (1, 64)
    assert count["metrics of blocks"] == 3
    assert (count["spectra"], count["histograms"]) == (21, 21)
    self_check = 2 * 3  # two windows
    assert count["forwards"] == self_check + 3 + 42 * 5 - 21 - 20
    assert count["factorisations"] == 4 + 21 * 2 * 4


def test_dense_inputs_are_another_experiment(options: list[str], tmp_path: Path) -> None:
    """Another fingerprint, protocol and question; a dense model is the same one."""
    both = [config(options), config(options, "inputs=dense")]
    usual, other = (execute(prepare(cfg), in_sweep=True)[1] for cfg in both)
    assert usual.fingerprint != other.fingerprint
    assert usual.measures[0]["value"] != other.measures[0]["value"]
    protocols = [record.measures[0]["protocol"] for record in (usual, other)]
    assert protocols[1] == protocols[0].replace("#", ",inputs=dense#")
    assert other.provenance["data"]["embedded-a"]["protocol"]["id"] == protocols[1]
    assert request_key(other.config) not in matcher_of_record(usual)
    older = {key: value for key, value in usual.config.items() if key not in ("inputs", "share")}
    assert request_key(older) == request_key(usual.config)
    none = [prepare(config(options, "method=none", *more)) for more in ([], ["inputs=dense"])]
    assert none[0].fingerprint == none[1].fingerprint
    assert request_key(none[0].config) == request_key(none[1].config)


def test_no_table_puts_dense_inputs_beside_others_unless_it_says_so() -> None:
    rows = [("none", ""), ("wanda", ""), ("wanda", ",inputs=dense")]
    columns = {"model": "m", "task": "a", "metric": "perplexity"}
    frame = pd.DataFrame([{"method": method, "protocol": f"a@32{mark}#1", **columns} for method, mark in rows])
    refuse_unlike(frame[:2])
    refuse_unlike(frame.drop(index=1))
    with pytest.raises(UserError, match="unlike protocols"):
        refuse_unlike(frame)
    refuse_unlike(frame.assign(inputs=["", "pruned", "dense"]))
    with pytest.raises(UserError, match="unlike protocols"):
        refuse_unlike(frame.replace("a@32,inputs=dense#1", "a@64,inputs=dense#1").drop(index=1))


def test_mrp_asks_what_a_run_on_dense_inputs_would_leave(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = config(options, "allocator=mrp", "inputs=dense")
    alone = numbers(cfg, monkeypatch, None)
    here = Session(keeps=True)
    assert numbers(cfg, monkeypatch, here) == alone
    assert numbers(cfg, monkeypatch, here) == alone


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_model_is_dense_again_too(options: list[str]) -> None:
    cfg = config(options, "dtype=float16", "device=cuda", "method=sparsegpt")
    here, fresh = Session(keeps=True), dense_tensors(cfg)
    compute(prepare(cfg), here)
    decoder, _ = here.load(prepare(cfg))
    assert here.tally["model"] == 1
    assert all(torch.equal(tensor, fresh[name]) for name, tensor in session._tensors(decoder.model))
