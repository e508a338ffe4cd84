"""What a run takes of memory, against models that are there; and what is refused before the work starts."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers import TINY, linears, tiny

from harness import compose, needs
from harness.core.places import ROOT
from harness.models.decoder import decoder_of
from harness.models.geometry import of_config, of_facts
from harness.needs import LIBRARIES, Need, check_memory, need_of
from harness.runtime.errors import UserError
from harness.runtime.memory import GIB
from harness.study.estimate import estimate

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NEED = Need(blocks=20 * GIB, block=GIB, outside=GIB, waiting=4 * GIB, pruning=3 * GIB, scoring=2 * GIB)


def configured(*overrides: str) -> Any:
    compose.register()
    return compose.compose_run(["model=llama2-7b", "evaluation=[wikitext2]", "calibration=c4", *overrides])


def needed(*overrides: str, **options: Any) -> Need:
    cfg = configured(*overrides)
    sizes = {"length": 2048, "window": 2048, "itemsize": 2} | options
    return need_of(cfg, of_facts(cfg.composed["model"]["geometry"]), **sizes)


@pytest.mark.parametrize("head", [None, 16])
@pytest.mark.parametrize("name", [name for name in TINY if name != "opt-350m"])
def test_parameters_are_those_of_the_model(name: str, head: int | None) -> None:
    """With heads that are wider than the hidden size has room for, too, where a family has such."""
    model = tiny(name, **({"head_dim": head} if head and "head_dim" in TINY[name] else {}))
    geometry = of_config(model.config.to_dict())
    matrices = linears(model, decoder_of(model).modules)
    assert geometry.blocks * geometry.block_parameters == sum(linear.weight.numel() for linear in matrices.values())
    rest = sum(p.numel() for p in model.parameters()) - geometry.blocks * geometry.block_parameters
    vectors = 5000  # norms, biases, and the positions of OPT
    assert geometry.outside_parameters <= rest < geometry.outside_parameters + vectors


PUBLISHED = {
    "llama2-7b": 6.74, "llama3-8b": 8.03, "qwen2.5-7b": 7.62, "opt-6.7b": 6.66, "llama3.2-1b": 1.236,
    "smollm2-135m": 0.1345, "smollm2-135m-q4": 0.1345, "smollm2-360m": 0.3618, "smollm2-1.7b": 1.711,
    "qwen3-0.6b": 0.596, "pythia-410m": 0.4053,
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_sizes(model: str) -> None:
    """Their makers' own counts of parameters, in billions."""
    geometry = of_facts(configured(f"model={model}").composed["model"]["geometry"])
    counted = geometry.blocks * geometry.block_parameters + geometry.outside_parameters
    assert counted / 1e9 == pytest.approx(PUBLISHED[model], rel=0.01)


def test_where_everything_is_adds_up() -> None:
    assert (NEED.resident, NEED.activations_offloaded, NEED.offloaded) == (28 * GIB, 24 * GIB, 6 * GIB)
    assert (NEED.host(offload=True), NEED.host(offload=False)) == (24 * GIB, 4 * GIB)
    sizes = [24 * GIB + LIBRARIES, 24 * GIB + LIBRARIES - 1, 6 * GIB + LIBRARIES, 6 * GIB]
    assert [NEED.mode(size) for size in sizes] == ["resident", "offload", "offload", "too large"]


def test_what_is_counted() -> None:
    """LLaMA-2-7B in 16 bits, by hand: 202 M weights a block, 262 M outside; 128 windows of 2048 are 2 GiB."""
    wanda, gpt, dense = needed("method=wanda"), needed("method=sparsegpt"), needed("method=none", calibrated=False)
    assert wanda.blocks == 32 * wanda.block == 32 * 2 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert wanda.outside == 2 * (2 * 32000 * 4096 + 4096)  # the last norm too
    assert wanda.waiting == 2 * GIB and dense.waiting == 0 and dense.pruning == 0
    assert needed("method=wanda", "allocator=owl").waiting == 4 * GIB  # what a dense block gives, beside what it got
    inside, chosen = 2 * (8 * 4096 + 3 * 11008), 10 * 4096 * 11008 + wanda.block
    grams = 4 * (3 * 4096**2 + 11008**2)
    assert wanda.pruning == 16384 * inside > chosen
    assert gpt.pruning == max(16384 * inside + grams, 2 * grams + 3 * 4 * 11008**2 + chosen)
    for solver, inverses in (("admm", 1), ("alps", 10)):  # sums, the scaled matrix with its halves, and the inverses
        lasting = grams + grams * (10 + 4 * inverses) / 4
        passing = 11008**2 * 18 + 2 * 4096 * 11008 * 30  # the last inverse; gate and up on their way
        assert needed(f"method={solver}").pruning == lasting + passing + chosen
    exact = needed("method=sparsegpt", "numerics=exact")
    assert exact.pruning == 3 * grams + 4 * 4 * 11008**2 + chosen > 2048 * inside
    tokens = 128 * 2048
    assert needed("method=sparsellm").waiting - wanda.waiting == tokens * (2 * 4096 * 2 + 2 * 11008 * 4)
    levels = needed("method=wanda", "allocator=msp", "sparsity=1of4").waiting - 4 * GIB
    assert levels == 4 * wanda.blocks  # 0, 1, 2 and 3 of 4; 4 of 4 are the model's own
    assert needed("method=wanda", "inputs=dense").waiting == 4 * GIB
    for search, windows in (("msp", 4), ("evopress", 16)):
        judged = needed("model=llama3-8b", f"allocator={search}", "method=magnitude")
        assert judged.pruning >= 4 * windows * 2048 * 128256  # the dense model's probabilities for every fitness window
    for tracing in ("isc", "msp"):  # in float32, whatever the weights are: a copy of those that run
        short, single = (needed(f"allocator={tracing}", "method=magnitude", itemsize=size) for size in (2, 4))
        copied = 2 * (short.block + short.outside)
        assert short.pruning == single.pruning + copied >= 4 * single.block + copied
    on_disk = needed("method=wanda", "allocator=msp", "sparsity=1of4", "allocator.database=disk")
    assert on_disk.waiting == 4 * GIB
    assert needed("allocator=mrp").waiting - 4 * GIB == wanda.blocks
    assert needed("allocator=mrp", "scope=0-15").waiting - 4 * GIB == wanda.blocks / 2
    assert needed("method=wanda", "evaluation=[]").scoring == 0 < wanda.scoring
    behind = 16384 * 2 * 4096  # hidden states of a batch; logits are there after what is inside a block
    assert wanda.scoring == 16384 * inside + behind
    assert needed("model=llama3-8b").scoring == 10 * 2048 * 128256 + behind  # those of a single window
    assert needed(weights=1e12).outside == 1e12 - wanda.blocks


def test_counts_are_near_what_two_blocks_took_on_a_gpu() -> None:
    """The peaks of `benchmarks/speed/block.py`, within a quarter."""
    measured = json.loads((ROOT / "results" / "bench" / "block_7b.json").read_text())
    for method in ("wanda", "sparsegpt"):
        for mode in ("fast", "exact"):
            need = needed(f"method={method}", f"numerics={mode}", "evaluation=[]")
            two = replace(need, blocks=2 * need.block)
            assert two.resident == pytest.approx(measured[f"{method}, {mode}"]["peak"], rel=0.25)


@pytest.mark.parametrize(
    ("offload", "gpu", "host", "answer"),
    [
        ("auto", 29.1, 0, (False, None)),
        ("auto", 28.9, 100, (False, True)),
        ("auto", 25.1, 100, (False, True)),
        ("auto", 24.9, 100, (True, True)),
        ("on", 100, 100, (True, True)),
        ("off", 29.1, 0, (False, False)),
        (
            "off",
            28.9,
            100,
            "needs about 29.0 GiB on cuda and 28.9 GiB are free; take offload=auto, which needs 6.0 GiB",
        ),
        ("off", 5, 100, "free; take fewer or shorter calibration windows, a smaller dtype, or a larger machine."),
        ("auto", 6, 100, "needs about 7.0 GiB on cuda and 6.0 GiB are free"),
        ("auto", 10, 23, "needs about 24.0 GiB on cpu and 23.0 GiB are free"),
        ("auto", 26, 3, "needs about 4.0 GiB on cpu and 3.0 GiB are free"),
    ],
)
def test_memory_is_asked_for_before_the_work(
    offload: str, gpu: float, host: float, answer: tuple[bool, bool | None] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "free_memory", lambda: host * GIB)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (gpu * GIB, 200 * GIB))
    if isinstance(answer, str):
        with pytest.raises(UserError) as caught:
            check_memory(NEED, offload, CUDA)
        assert answer in str(caught.value)
    else:
        assert check_memory(NEED, offload, CUDA) == answer


def test_a_cpu_has_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needs, "free_memory", lambda: 29 * GIB)
    assert [check_memory(NEED, offload, CPU) for offload in ("auto", "off")] == [(False, False)] * 2
    with pytest.raises(UserError, match=r"needs about 30\.0 GiB on cpu and 29\.0 GiB are free"):
        check_memory(NEED, "on", CPU)


def test_what_a_recovery_takes() -> None:
    """LLaMA-2-7B in 16 bits at half its weights, by hand: 16 bytes a trained value, a byte of mask a weight."""
    sizes = {"q, k, v, o": 4 * 4096**2, "gate, up, down": 3 * 4096 * 11008}
    weights = 32 * sum(sizes.values())
    tokens, block = 8192, sum(sizes.values())
    states = 32 * tokens * 4096 * 2
    graph = tokens * (8 * 4096 + 6 * 11008) * 2 + 2 * block
    beside = 3 * 4 * 4096 * 11008 + tokens * 32000 * 14
    kept = needed("method=wanda", "recovery=kept_weights")
    assert kept.recovering == pytest.approx(weights / 2 * 16 + weights + states + graph + beside)
    assert kept.offloaded == kept.activations_offloaded > 50 * GIB and needed("method=wanda").recovering == 0
    low_rank = 32 * 8 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    lora = needed("method=wanda", "recovery=lora")
    assert lora.recovering == pytest.approx(low_rank * 16 + weights + states + graph + beside)
    half = needed("method=wanda", "recovery=lora", "scope=first_half")
    assert lora.recovering - half.recovering == pytest.approx((low_rank * 16 + weights) / 2)
    whole = needed("method=wanda", "recovery=lora", "recovery.checkpointing=false")
    assert whole.recovering - lora.recovering == pytest.approx(31 * graph - states)
    assert needed("recovery=lora", "recovery.length=128", "recovery.batch=1").recovering < lora.recovering


def test_what_a_recovery_asks_of_the_model() -> None:
    """Three learning rates of 10 steps: tokens forward and backward, blocks run again, and held-out windows."""
    quick = ("recovery.tokens=40960", "recovery.batch=2", "recovery.length=2048", "recovery.checks=3")
    cfg = configured("recovery=lora", *quick, "recovery.lr=[1e-4,3e-4,1e-3]")
    geometry = of_facts(cfg.composed["model"]["geometry"])
    cost = needs.recovery_cost(cfg, geometry, 2048, 2, cuda=True)
    assert cost.backwards == 3 * 40960 and cost.forwards == 2 * 3 * 40960 + 3 * 4 * 16 * 2048
    assert needs.recovery_cost(cfg, geometry, 2048, 4, cuda=False).forwards == 3 * 40960 + 3 * 4 * 16 * 2048
    with_it, without = (estimate(one, "cuda").seconds for one in (cfg, configured()))
    passes = cost.forwards + 2 * cost.backwards
    parameters = 32 * geometry.block_parameters + 32000 * 4096
    assert with_it - without == pytest.approx(2 * passes * parameters / 590e12, rel=0.2)
