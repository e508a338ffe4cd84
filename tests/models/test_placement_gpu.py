"""Offload and sharing out on real GPUs: equal numbers, less memory, and copies that wait for what they have to."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from helpers import pattern, windows
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.calibration.walk.batches import batched
from harness.calibration.walk.blocks import stream
from harness.compress import prune
from harness.evaluation.perplexity import mean_nll
from harness.methods.sparsegpt import SparseGPT
from harness.methods.sparsellm import SparseLLM
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.models.placement import Where, place
from harness.runtime.memory import OffloadableTensors

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = torch.device("cuda", 0)
METHODS = {"wanda": Wanda(), "sparsegpt": SparseGPT(), "sparsellm": SparseLLM(epochs=2)}
LONG = 50_000_000
"""Cycles for which a kernel holds up the computation: some hundredths of a second."""


def model_of(blocks: int, hidden: int, wide: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=wide, num_hidden_layers=blocks, num_attention_heads=hidden // 64,
        vocab_size=64, max_position_embeddings=512, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=torch.float16)
    return model.requires_grad_(False).eval()


def pruned(
    method: Any, size: tuple[int, int, int] = (5, 256, 704), **where: Any
) -> tuple[dict[str, Tensor], float, int]:
    """Weights and loss of a model pruned in its place, and the peak of memory from placing on."""
    model = model_of(*size)
    decoder = decoder_of(model)
    torch.cuda.init()  # no peak before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    place(decoder, Where(GPU, **where))
    sites = [site for index in range(size[0]) for site in decoder.linears(index)]
    calibration = batched(windows(40, 256).to(GPU))
    prune(decoder, calibration, range(size[0]), method, dict.fromkeys(sites, pattern("0.6")), masks=False)
    loss = mean_nll(decoder_of(model), windows(50, 256, seed=3), GPU)
    peak = torch.cuda.max_memory_allocated(GPU) - before
    return {key: value.cpu() for key, value in model.state_dict().items()}, loss, peak


@pytest.mark.parametrize("method", METHODS)
def test_offload_changes_no_bit(method: str) -> None:
    resident, loss, _ = pruned(METHODS[method], offload=False)
    for _ in range(3):
        waiting, same, _ = pruned(METHODS[method], offload=True)
        assert all(torch.equal(resident[key], waiting[key]) for key in resident) and same == loss


def test_the_peak_is_below_the_weights() -> None:
    size = (24, 1024, 4096)  # 0.8 GB; a batch inside a block takes about 0.4
    weights = sum(parameter.nbytes for parameter in model_of(*size).parameters())
    _, loss, resident = pruned(Wanda(), size, offload=False)
    _, same, offloaded = pruned(Wanda(), size, offload=True)
    assert resident > weights > offloaded and same == loss


def is_locked(tensor: torch.Tensor) -> bool:
    """CUDA locks nothing twice; `is_pinned` does not know of memory that was locked later, with some drivers."""
    refused = int(torch.cuda.cudart().cudaHostRegister(tensor.data_ptr(), tensor.nbytes, 0))
    with suppress(RuntimeError):  # the next call is told of it
        torch.zeros(1, device=GPU)
    return refused != 0


def test_matrices_wait_in_page_locked_memory() -> None:
    model = model_of(3, 256, 704)
    place(decoder_of(model), Where(GPU, offload=True))
    assert all(is_locked(p) for block in model.model.layers for p in block.parameters() if p.dim() > 1)
    assert model.lm_head.weight.is_cuda and model.model.layers[0].input_layernorm.weight.is_cuda


def test_what_is_written_late_arrives_and_is_seen() -> None:
    """The computation is held up before every write and before every read; nothing may overtake it."""
    model = model_of(6, 256, 704)
    decoder = decoder_of(model)
    placement = place(decoder, Where(GPU, offload=True))
    calibration = batched(windows(8, 256).to(GPU))
    for turn in range(3):
        for block in stream(decoder, calibration, range(6), edited=True, label=""):
            torch.cuda._sleep(LONG)
            for site, weight in block.weights.items():
                assert turn == 0 or bool((weight == 10 * (turn - 1) + block.index).all())
                block.write(site, torch.full_like(weight, 10 * turn + block.index))
            torch.cuda._sleep(LONG)
        for index, layer in enumerate(model.model.layers):  # the host reads as soon as the walk is over
            assert bool((layer.mlp.up_proj.weight == 10 * turn + index).all())
    placement.settle()


def test_activations_that_are_written_late_arrive() -> None:
    offloadable = OffloadableTensors(GPU, (torch.zeros(1 << 20, device=GPU) for _ in range(8)), on_host=True)
    for _ in range(3):
        for index, tensor in enumerate(offloadable):
            torch.cuda._sleep(LONG // 4)
            offloadable[index] = tensor + index
    assert [float(tensor.mean()) for tensor in offloadable] == [3.0 * index for index in range(8)]
    assert offloadable.waiting == 8


def test_waiting_activations_are_not_on_the_gpu() -> None:
    size = 1 << 26
    torch.cuda.init()  # no peak before
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    offloadable = OffloadableTensors(GPU, on_host=True)
    for _ in range(16):
        offloadable.append(torch.ones(size, dtype=torch.uint8, device=GPU))
    for index, tensor in enumerate(offloadable):
        torch.cuda._sleep(LONG // 4)
        offloadable[index] = tensor + 1
    assert torch.cuda.max_memory_allocated(GPU) - before <= 10 * size


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_two_gpus_see_what_one_sees(method: str, offload: bool) -> None:
    """Sums in another order decide a few near ties; the loss follows."""
    resident, loss, _ = pruned(METHODS[method], offload=False)
    shared, other, _ = pruned(METHODS[method], offload=offload, others=[torch.device("cuda", 1)])
    flips = [((resident[key] == 0) != (shared[key] == 0)).float().mean() for key in resident if "layers.0." in key]
    assert max(flips) < 1e-3 and other == pytest.approx(loss, rel=1e-2)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@pytest.mark.parametrize("offload", [False, True])
def test_perplexity_on_two_gpus_is_that_of_one(offload: bool) -> None:
    losses = []
    for where in ({"offload": False}, {"offload": offload, "others": [torch.device("cuda", 1)]}):
        model = model_of(5, 256, 704)
        place(decoder_of(model), Where(GPU, **where))
        losses.append(mean_nll(decoder_of(model), windows(70, 256, seed=3), GPU))
    assert losses[0] == losses[1]
