"""Speed and memory of a model as it is: prefill, decoding with its cache, peaks. Wall-clock times, so measured anew."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles, stdev
from typing import Any

import torch
from torch import Tensor

from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.core.rng import rng
from harness.evaluation.protocol import Context, Measure, Protocol
from harness.models.decoder import Decoder
from harness.models.placement import placement_of
from harness.runtime.errors import Refusal, UserError
from harness.runtime.peak import peak_bytes, reset_peak

OF_MEDIAN = 1.2533
"""The standard error of a median over that of a mean, of normal numbers."""


@dataclass
class _Clock:
    """A stopping criterion that stops nothing: the moments of the first and the last token of a continuation."""

    device: torch.device
    new: int
    first: float = 0.0
    last: float = 0.0
    seen: int = 0

    def __call__(self, tokens: Tensor, scores: Any, **_: Any) -> Tensor:
        self.seen += 1
        if self.seen in (1, self.new):
            _finish(self.device)
            now = time.perf_counter()
            self.first, self.last = (now if self.seen == 1 else self.first), now
        return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)


@component("evaluator", "speed")
@dataclass(frozen=True)
class Speed:
    """Milliseconds of the prefill of one prompt; tokens a second of greedy decoding, alone and in a batch; peak memory.

    `prefill_ms` is one forward that fills the cache and gives the logits of the last position. Decoding is the model's
    own `generate` with its cache, over prompts of `prompt` tokens that are not counted (Song et al. 2024, SLEB, arXiv
    2402.09025: 64 prompts of 64 tokens, 128 new ones, 10 times). Values are medians of `repeats` after `warmup`
    further ones; the note has their quartiles and ends. `peak_bytes` are those allocated on a GPU, weights among them,
    or resident in the process on a CPU. Hardware, dtype and attention kernel are part of the protocol, so that numbers
    of two machines are never compared.
    """

    prefill: int | None = None
    """Tokens of the prefilled prompt; null: the evaluation window, 2,048 where the model's context allows it."""
    prompt: int = 64
    """Tokens of a prompt of decoding."""
    new: int = 128
    """Tokens that are decoded, all of them whatever they are."""
    batch: int = 64
    """Prompts of the batch; 1: no batch beside the single prompt."""
    repeats: int = 10
    """Timed repeats."""
    warmup: int = 3
    """Repeats before them."""

    measures_anew = True
    needs_resident = True

    def __post_init__(self) -> None:
        lengths = (self.prompt, self.batch, self.prefill if self.prefill is not None else 1)
        if min(lengths) < 1 or self.new < 2 or self.repeats < 2 or self.warmup < 0:
            raise UserError(
                "evaluation of speed: prefill, prompt and batch are at least 1, new and repeats at least 2, and warmup "
                "is not negative."
            )

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Every token that is read or made; the cache of the batch, and its logits."""
        times = self.repeats + self.warmup
        one = self.prompt + self.new
        cache = 2 * geometry.blocks * geometry.key_value * work.itemsize
        rows = max((self.prefill or work.window), self.batch * one)
        return Cost(
            forwards=times * ((self.prefill or work.window) + (self.batch + 1) * one),
            working_bytes=rows * cache + self.batch * geometry.vocabulary * (4 + work.itemsize),
        )

    def protocol(self, context: Context) -> Protocol:
        """The protocol on this machine; what only the model says is in that of its measures."""
        return self._protocol(context, self.batch, {})

    def _protocol(self, context: Context, batch: int, model: dict[str, Any]) -> Protocol:
        length, where = self.prefill or context.window, _hardware(context.device)
        name = f"speed@{length},{self.prompt}+{self.new},batch={batch},{where.replace(' ', '-')}"
        settings = {
            "hardware": where,
            "prefill": length,
            "prompt": self.prompt,
            "new": self.new,
            "batch": batch,
            "repeats": self.repeats,
            "warmup": self.warmup,
            "torch": torch.__version__,
            "decoding": "generate, greedy, dynamic cache; tokens behind the first one",
            "value": "median",
        }
        return Protocol(name, settings | model)

    def data_hash(self) -> str:
        """Nothing: the prompts are drawn from the vocabulary."""
        return "drawn tokens"

    @torch.no_grad()
    def __call__(self, decoder: Decoder, tokenizer: Any, context: Context) -> Iterator[Measure]:
        length = self.prefill or context.window
        self._check(decoder, length)
        model = _about(decoder)

        def measures(task: str, batch: int, timed: Sequence[tuple[str, list[float]]], peak: int) -> Iterator[Measure]:
            protocol = str(self._protocol(context, batch, model))
            for metric, values in timed:
                error = OF_MEDIAN * stdev(values) / len(values) ** 0.5
                yield Measure(task, metric, median(values), error, protocol, len(values), _spread(values))
            yield Measure(task, "peak_bytes", float(peak), None, protocol, 1, _peak_of(context.device))

        reset_peak(context.device)
        prefill = self._prefill(decoder, length, context)
        alone = self._decoding(decoder, 1, context)
        timed = [("prefill_ms", prefill), ("decode_tokens_per_s", alone)]
        yield from measures("speed", 1, timed, peak_bytes(context.device))
        if self.batch > 1:
            reset_peak(context.device)
            together = self._decoding(decoder, self.batch, context)
            peak = peak_bytes(context.device)
            yield from measures(f"speed@{self.batch}", self.batch, [("decode_tokens_per_s", together)], peak)

    def _check(self, decoder: Decoder, length: int) -> None:
        """Refuse what would measure something else.

        Raises:
            Refusal: the blocks wait in host memory, or a prompt is longer than the model's context.
        """
        if placement_of(decoder).offloaded:
            raise Refusal("speed is measured of a model that lies on its device as a whole; this one is offloaded.")
        holds = getattr(decoder.config.get_text_config(), "max_position_embeddings", None)
        if holds and max(length, self.prompt + self.new) > holds:
            raise Refusal(
                f"speed: {max(length, self.prompt + self.new)} tokens are more than the model's context of {holds}; "
                "take a smaller prefill, prompt or new."
            )

    def _prefill(self, decoder: Decoder, length: int, context: Context) -> list[float]:
        """Milliseconds of each repeat."""
        tokens = _prompts(decoder, 1, length, context)

        def once() -> float:
            _finish(context.device)
            start = time.perf_counter()
            decoder.model(tokens, use_cache=True, logits_to_keep=1)
            _finish(context.device)
            return 1e3 * (time.perf_counter() - start)

        return self._repeated(once)

    def _decoding(self, decoder: Decoder, batch: int, context: Context) -> list[float]:
        """Tokens a second of each repeat, those behind the first one of each prompt."""
        tokens = _prompts(decoder, batch, self.prompt, context)

        def once() -> float:
            clock = _Clock(context.device, self.new)
            continued(decoder, tokens, self.new, stopping_criteria=[clock], min_new_tokens=self.new)
            return batch * (self.new - 1) / (clock.last - clock.first)

        return self._repeated(once)

    def _repeated(self, once: Callable[[], float]) -> list[float]:
        return [once() for _ in range(self.warmup + self.repeats)][self.warmup :]


def continued(decoder: Decoder, tokens: Tensor, new: int, **options: Any) -> Tensor:
    """Greedy continuations (B, new) of prompts (B, L) of one length, by the model's own `generate` and its cache.

    One that ends early is filled up with its last token, the end of text.
    """
    config = decoder.model.generation_config
    end = config.eos_token_id
    fill = end[0] if isinstance(end, list) else end
    pad = config.pad_token_id if config.pad_token_id is not None else (fill or 0)
    generate: Any = decoder.model.generate
    found: Tensor = generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, do_sample=False, num_beams=1,
        use_cache=True, pad_token_id=pad, **options,
    )  # fmt: skip
    return found[:, tokens.shape[1] :]


def _prompts(decoder: Decoder, batch: int, length: int, context: Context) -> Tensor:
    """Tokens (B, L) drawn evenly from the vocabulary."""
    draw = torch.Generator().manual_seed(rng(context.seed, "prompts of speed").getrandbits(63))
    vocabulary = int(decoder.config.get_text_config().vocab_size)
    return torch.randint(vocabulary, (batch, length), generator=draw).to(context.device)


def _about(decoder: Decoder) -> dict[str, Any]:
    """Facts of a model that decide its speed beside its sizes."""
    own = [name for name, module in decoder.model.named_modules() if "forward" in vars(module)]
    return {
        "dtype": str(decoder.model.dtype).removeprefix("torch."),
        "attention": str(decoder.config._attn_implementation),
        "kernels": "fused norms, activations and rotations of the harness" if own else "the model's own",
    }


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{torch.get_num_threads()} CPU threads"


def _finish(device: torch.device) -> None:
    """Wait for what was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _spread(values: Sequence[float]) -> str:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return f"quartiles {low:.4g}-{high:.4g}, ends {min(values):.4g}-{max(values):.4g}"


def _peak_of(device: torch.device) -> str:
    return "allocated on the GPU" if device.type == "cuda" else "resident in the process"
