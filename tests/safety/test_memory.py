"""Where a GPU's memory runs out the batch is halved, which is said, recorded, and changes no number beyond rounding.

Memory runs out here when a block is given more windows than a limit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers import everything, pattern, tiny, windows
from torch import nn

from harness.calibration.walk.blocks import stream
from harness.compress import prune
from harness.core.statistic import gram
from harness.evaluation.perplexity import mean_nll
from harness.methods.wanda import Wanda
from harness.models.decoder import decoder_of
from harness.runtime.errors import Failure
from harness.runtime.oom import with_oom_backoff
from harness.runtime.warn import collected_warnings

CPU = torch.device("cpu")
Fits = Callable[[torch.Size], bool]


@contextmanager
def memory(module: nn.Module, fits: Fits) -> Iterator[list[int]]:
    """While inside, the module runs out of memory for inputs that do not fit; lists the batches that did."""
    ran: list[int] = []

    def check(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        hidden = positional[0] if positional else named["hidden_states"]
        if not fits(hidden.shape):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        ran.append(len(hidden))

    handle = module.register_forward_pre_hook(check, with_kwargs=True)
    try:
        yield ran
    finally:
        handle.remove()


@pytest.mark.parametrize(("most", "steps"), [(7, []), (4, [3]), (2, [3, 1]), (1, [3, 1])])
def test_perplexity_depends_on_the_batch_by_rounding_only(most: int, steps: list[int]) -> None:
    model, tokens = tiny("llama"), windows(7)
    whole = mean_nll(decoder_of(model), tokens, CPU)
    block = decoder_of(model).modules[1]
    with memory(block, lambda shape: shape[0] <= most) as ran, collected_warnings() as said:
        assert mean_nll(decoder_of(model), tokens, CPU) == pytest.approx(whole, rel=1e-6)
    assert max(ran) <= most
    assert said == [f"batch of evaluation halved to {size} after running out of memory" for size in steps]


def test_what_does_not_fit_alone_is_one_sentence() -> None:
    model = tiny("llama")
    block = decoder_of(model).modules[1]
    with memory(block, lambda shape: False), pytest.raises(Failure, match=r"^evaluation runs out of memory with .*\.$"):
        mean_nll(decoder_of(model), windows(7), CPU)


def test_host_memory_runs_out_as_a_gpus_does() -> None:
    """Torch has no exception of its own for it."""

    def work(size: int) -> int:
        return torch.empty(10**15 if size > 2 else size).numel()

    with collected_warnings() as said:
        assert with_oom_backoff(work, 8, "evaluation") == 2
    assert len(said) == 2


def test_no_other_error_is_taken_for_memory() -> None:
    def broken(size: int) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        with_oom_backoff(broken, 8, "evaluation")


@pytest.mark.parametrize("place", ["mlp", "mlp.down_proj", "self_attn"])
def test_what_was_seen_before_memory_ran_out_is_not_seen_twice(place: str) -> None:
    """Memory runs out in the middle of the second block, when its attention has been observed already."""

    def seen(limit: int | None) -> Any:
        model = tiny("llama")
        decoder = decoder_of(model)
        inner = decoder.modules[1].get_submodule(place)
        found = {}
        with memory(inner, lambda shape: limit is None or shape[0] <= limit):
            for block in stream(decoder, [windows(5), windows(4, seed=1)], range(2), edited=True, label=""):
                found |= block.observe(everything)
        return found

    whole = seen(None)
    with collected_warnings() as said:
        halved = seen(1)
    assert said == [f"batch of calibration halved to {size} after running out of memory" for size in (2, 1)]
    assert whole.keys() == halved.keys()
    for site, tokens in whole.items():
        assert halved[site].shape == tokens.shape == (9 * 24, tokens.shape[1])
        assert torch.allclose(halved[site], tokens, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3_text", "qwen2"])
def test_a_model_is_pruned_alike_however_small_the_batches(family: str) -> None:
    def pruned(most: int) -> Any:
        model = tiny(family)
        decoder = decoder_of(model)
        sites = [site for index in range(2) for site in decoder.linears(index)]
        with memory(decoder.modules[1], lambda shape: shape[0] <= most):
            return prune(decoder, [windows(5)], range(2), Wanda(), dict.fromkeys(sites, pattern("0.5")))

    whole, halved = pruned(5), pruned(2)
    for site, one in whole.items():
        assert (one.kept != halved[site].kept).float().mean() < 0.01, site


def test_windows_are_counted_once() -> None:
    model = tiny("llama")
    decoder = decoder_of(model)
    with memory(decoder.modules[0].mlp, lambda shape: shape[0] <= 2):
        block = next(stream(decoder, [windows(5)], range(2), edited=True, label=""))
        assert {state.windows for state in block.observe(gram).values()} == {5}


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fits], None]:
    """Give the blocks of every LLaMA so much memory."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    forward = LlamaDecoderLayer.forward

    def limit(fits: Fits) -> None:
        def checked(self: nn.Module, hidden_states: torch.Tensor, *arguments: Any, **named: Any) -> Any:
            if not fits(hidden_states.shape):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return forward(self, hidden_states, *arguments, **named)

        monkeypatch.setattr(LlamaDecoderLayer, "forward", checked)

    return limit


def test_a_run_says_and_records_every_step(typed: Callable, limited: Callable[[Fits], None], tmp_path: Any) -> None:
    run = ["calibration.windows=4", "calibration.length=64", "evaluation=[embedded-a,embedded-cloze]"]
    run += ["evaluation_limit=4", f"records={tmp_path / 'records'}"]
    whole = typed(*run).record
    limited(lambda shape: shape[0] <= 1)
    done = typed(*run, "force=true")
    assert done.status == 0, done.err
    steps = {"calibration": (2, 1), "evaluation": (2, 1), "zero-shot evaluation": (1024, 512, 256)}
    said = [f"batch of {what} halved to {size} after running out of memory" for what in steps for size in steps[what]]
    assert done.record["notes"] == said
    assert all(f"note: {step}\n" in done.err for step in said)
    for one, other in zip(done.record["measures"], whole["measures"], strict=True):
        assert one["value"] == pytest.approx(other["value"], rel=1e-3)
    notes = [one["note"] for one in done.record["measures"]]
    assert notes == [""] * len(notes)


@pytest.mark.parametrize(
    ("fits", "reason"),
    [
        (lambda shape: shape[1] != 48, "calibration runs out of memory with a batch of one; take shorter windows"),
        (lambda shape: shape[1] != 64, "evaluation runs out of memory with a batch of one; take shorter windows"),
        (lambda shape: False, "memory ran out where no batch can be smaller; take fewer or shorter"),
    ],
)
def test_what_does_not_fit_is_a_failed_record_and_the_sweep_goes_on(
    fits: Fits, reason: str, typed: Callable, limited: Callable[[Fits], None], tmp_path: Any
) -> None:
    run = ["evaluation=[embedded-a]", "evaluation_window=64", "evaluation_limit=2", f"records={tmp_path / 'records'}"]
    run += ["calibration.windows=2", "calibration.length=48"]
    limited(fits)
    failed = typed(*run)
    assert failed.status == 1 and failed.record["status"] == "failed"
    assert reason in failed.record["reason"] and reason in failed.err and "Traceback" not in failed.err
    swept = typed("-m", *run, "sparsity=0.5,0.6")
    assert swept.status == 1 and swept.out.count("record: ") == 2
