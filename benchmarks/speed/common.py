"""Shared parts of the speed benchmarks: random models, authors' code on newer transformers, clocks, tables."""

from __future__ import annotations

import gc
import json
import shutil
import statistics
import sys
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.core.places import ROOT
from harness.data.corpora import EMBEDDED, assets
from harness.models.pieces import first
from harness.record.provenance import provenance
from harness.record.schema import hardware_name


class Shape(NamedTuple):
    """A LLaMA geometry."""

    hidden: int
    wide: int
    blocks: int
    heads: int
    vocabulary: int


SHAPES = {
    "7b": Shape(4096, 11008, 32, 32, 32000),
    "1b": Shape(2048, 5504, 24, 16, 32000),
    "160m": Shape(768, 2048, 12, 12, 32000),
    "135m": Shape(576, 1536, 30, 9, 49152),
    "11m": Shape(256, 704, 8, 4, 16384),
}
"""More kinds of tokens than hidden size, so that inputs have full rank."""


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def random_model(shape: Shape, blocks: int, where: torch.device, window: int = 4096) -> LlamaForCausalLM:
    """So many blocks, made where they stay, 16 bit on a GPU; their inputs differ in scale from channel to channel."""
    config = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.wide, num_hidden_layers=blocks,
        num_attention_heads=shape.heads, num_key_value_heads=shape.heads, vocab_size=shape.vocabulary,
        max_position_embeddings=window, use_cache=False,
    )  # fmt: skip
    fast = where.type == "cuda"
    torch.manual_seed(0)
    with where:
        model = LlamaForCausalLM._from_config(
            config, attn_implementation="sdpa" if fast else "eager", dtype=torch.float16 if fast else torch.float32
        )
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.normal_(0, shape.hidden**-0.5)
            model.model.embed_tokens.weight.mul_(torch.exp(torch.randn(shape.hidden)) * shape.hidden**0.5)
    return model.requires_grad_(False).eval()


def shaped(shape: str, folder: Path) -> list[str]:
    """A random checkpoint of a shape with all its blocks, and the overrides that choose it."""
    model = random_model(SHAPES[shape], SHAPES[shape].blocks, device())
    tokens = json.loads((tokenizer_folder() / "config.json").read_text(encoding="utf-8"))
    model.config.bos_token_id, model.config.eos_token_id = tokens["bos_token_id"], tokens["eos_token_id"]
    model.save_pretrained(folder / shape)
    copy_tokenizer(folder / shape)
    del model
    torch.cuda.empty_cache()
    return ["model=hf", f"model.path={folder / shape}"]


def tokenizer_folder() -> Path:
    """A model whose tokenizer fits real text: a proxy where the assets are, else an embedded one."""
    local = assets()
    return local / "models" / "proxy-llama-11m" if local else EMBEDDED / "embedded-llama"


def copy_tokenizer(folder: Path) -> None:
    """Put a tokenizer beside a model that has none."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer_folder() / name, folder)


def random_tokens(shape: Shape, windows: int, length: int, where: torch.device, seed: int = 1) -> Tensor:
    """Token ids (N, L)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(shape.vocabulary, (windows, length), generator=generator).to(where)


def synchronise() -> None:
    """Wait for all GPUs."""
    for index in range(torch.cuda.device_count()):
        torch.cuda.synchronize(index)


def timed(work: Callable[[], Any]) -> tuple[float, int, Any]:
    """Seconds, peak bytes of the GPU (0 without one), and what the work returned."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    synchronise()
    start = time.perf_counter()
    result = work()
    synchronise()
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return time.perf_counter() - start, peak, result


def spread(seconds: Sequence[float]) -> str:
    """The median with the range, as tables print it."""
    return f"{statistics.median(seconds):.3f} ({min(seconds):.3f}–{max(seconds):.3f})"


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.1f}" if size else "–"


def write(
    name: str, title: str, about: str, lines: Sequence[str], data: Mapping[str, Any] | None = None,
    where: str | None = None,
) -> None:  # fmt: skip
    """Print a table with what it was measured on, and write it to `results/bench/<name>.md`.

    Args:
        data: raw numbers, for whatever counts on with them; they go to `<name>.json`.
        where: what it was measured on, if not here and now.
    """
    where = where or measured_on()
    text = "\n".join([f"# {title}", "", f"{where}; {about}", "", *lines, ""])
    (bench_folder() / f"{name}.md").write_text(text, encoding="utf-8")
    if data is not None:
        write_raw(name, data, where)
    print(text)


def write_raw(name: str, data: Mapping[str, Any], where: str | None = None) -> None:
    """Write numbers with what they were measured on to `results/bench/<name>.json`."""
    content = {"where": where or measured_on(), **data}
    (bench_folder() / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def bench_folder() -> Path:
    """Where tables and raw numbers lie."""
    folder = ROOT / "results" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def measured_on() -> str:
    """Machine and code, in a line."""
    facts = provenance(device(), {})
    return f"{hardware_name(facts['hardware'])}, torch {facts['versions']['torch']}, commit {facts['commit']}"


PAIRS = False
"""True if the authors' blocks see every window twice at once: products of another shape, which round otherwise."""


@contextmanager
def in_pairs() -> Iterator[None]:
    """Let the authors' code round its forwards as another batch, or another library, would."""
    global PAIRS
    PAIRS = True
    try:
        yield
    finally:
        PAIRS = False


def give_positions() -> None:
    """Blocks of newer transformers want rotary embeddings, which the authors' codes do not hand on.

    They are made where the hidden states are, as the model's own were: a CPU and a GPU round frequencies differently.
    """
    from transformers.models.llama import modeling_llama as llama

    forward = llama.LlamaDecoderLayer.forward
    rotaries: dict[tuple[int, torch.device, torch.dtype], Any] = {}

    def with_positions(self: Any, hidden_states: Tensor, *positional: Any, **named: Any) -> Any:
        if named.get("position_embeddings") is None:
            key = (hidden_states.shape[1], hidden_states.device, hidden_states.dtype)
            if key not in rotaries:
                with hidden_states.device:
                    rotary = llama.LlamaRotaryEmbedding(self.self_attn.config)
                positions = torch.arange(hidden_states.shape[1], device=hidden_states.device)[None]
                rotaries[key] = rotary(hidden_states, positions)
            named["position_embeddings"] = rotaries[key]
        if PAIRS:
            return first(forward(self, hidden_states.repeat(2, 1, 1), *positional, **named))[:1]
        return forward(self, hidden_states, *positional, **named)

    llama.LlamaDecoderLayer.forward = with_positions  # type: ignore[method-assign]


def load_wanda(folder: Path) -> types.ModuleType:
    """`lib/prune.py` of locuslab/wanda as it is; it gets our tokens in place of its C4 loader."""
    sys.modules.setdefault("datasets", types.ModuleType("datasets"))
    sys.modules["datasets"].load_dataset = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(folder))
    try:
        import lib.prune as module
    finally:
        sys.path.pop(0)
    give_positions()
    return module


def run_authors(module: types.ModuleType, method: str, model: LlamaForCausalLM, ids: Tensor, sparsity: float) -> None:
    """Their `prune_<method>` on these tokens, its printing swallowed."""
    import contextlib
    import io

    loader = [(window[None],) for window in ids]
    module.get_loaders = lambda *_, **__: (loader, None)  # type: ignore[attr-defined]
    model.seqlen = ids.shape[1]  # type: ignore[assignment]
    model.hf_device_map = {}  # type: ignore[assignment]
    arguments = types.SimpleNamespace(nsamples=len(ids), seed=0, sparsity_ratio=sparsity, use_variant=False)
    if ids.device.type == "cpu":
        torch.cuda.synchronize = lambda *_: None  # which their code calls in any case
    with contextlib.redirect_stdout(io.StringIO()):
        getattr(module, f"prune_{method}")(arguments, model, None, ids.device)
