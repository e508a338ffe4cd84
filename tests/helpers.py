"""What many tests share: the table of components, tiny models of every family, made-up blocks and probes.

Shapes: O outputs, I inputs, T tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_flatten
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness import catalogue
from harness.core.interfaces import BlockMethod, FeedForward, Trace
from harness.core.pattern import Pattern, parse_pattern
from harness.core.statistic import Gram, Statistic, gram
from harness.models.anatomy import FAMILIES

PLUGIN = Path(__file__).parent / "conformance" / "plugin_method.py"

catalogue.discover()
catalogue.load_plugin(str(PLUGIN))


def components(kind: str) -> dict[str, Any]:
    """Every registered component of a kind with its default settings."""
    return {name: catalogue.build(kind, catalogue.defaults(kind, name)) for name in catalogue.names(kind)}


def quick(allocator: Any) -> Any:
    """The allocator, or planner, with settings under which short windows are enough and a search ends soon."""
    cheap = {
        "sensitivity_windows": 2,
        "generations": 1,
        "population": 4,
        "offspring": 8,
        "stages": (1, 2, 3),
        "probes": 1,
        "steps": 3,
    }
    own = {name: value for name, value in cheap.items() if hasattr(allocator, name)}
    own |= {"windows": 2} if "windows" in {f.name for f in fields(allocator)} else {}
    return replace(allocator, **own)


METHODS = components("method")
LINEAR_METHODS = {name: method for name, method in METHODS.items() if not isinstance(method, BlockMethod)}
REFITTED = {f"{name} refit": replace(it, refit=True) for name, it in LINEAR_METHODS.items() if hasattr(it, "refit")}
ALLOCATORS = {
    name: quick(it)
    for name, it in components("allocator").items()
    if name != "file"  # it has to be named one
}


def pattern(text: str) -> Pattern:
    return parse_pattern(text)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs(tokens: int, width: int, seed: int = 0) -> Tensor:
    """Inputs (T, I) that are correlated and differ in scale, as real ones do."""
    scales = torch.logspace(-1, 1, width)[torch.randperm(width, generator=torch.Generator().manual_seed(seed))]
    mixing = torch.eye(width) + 0.3 * normal(width, width, seed=seed + 1) / width**0.5
    return normal(tokens, width, seed=seed + 2) @ mixing * scales


def seen_by(statistic: Statistic | None, *seen_windows: Tensor) -> Any:
    """The value of a statistic after windows of inputs (T, I)."""
    if statistic is None:
        return None
    state = statistic.init(seen_windows[0].shape[1], seen_windows[0].device)
    for window in seen_windows:
        state = statistic.update(state, window)
    return state


def hessian(*seen_windows: Tensor) -> Tensor:
    """The matrix (I, I) of SparseGPT's statistic."""
    return seen_by(gram, *seen_windows).matrix


register_pytree_node(Gram, lambda state: ([state.matrix, state.windows], None), lambda parts, _: Gram(*parts))


def same(one: Any, other: Any) -> bool:
    """Return whether two statistics, of whatever form, hold the same numbers."""
    flat, form = tree_flatten(one)
    other_flat, other_form = tree_flatten(other)
    return form == other_form and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(flat, other_flat, strict=True)
    )


everything = Statistic(
    lambda width, device: torch.zeros(0, width, device=device), lambda state, tokens: torch.cat([state, tokens])
)
"""All inputs (T, I) themselves: what the stream really showed."""


@dataclass
class FakeBlock:
    """A block that is nothing but its matrices and what they saw: a `BlockView`."""

    index: int
    weights: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]

    def observe(self, statistic: Statistic | Mapping[str, Statistic]) -> dict[str, Any]:
        wanted = statistic if isinstance(statistic, Mapping) else dict.fromkeys(self.weights, statistic)
        return {site: seen_by(one, self.inputs[site]) for site, one in wanted.items()}

    def log(self, **facts: Any) -> None:
        raise AssertionError("nothing is told about a made-up block")

    @property
    def feed_forward(self) -> FeedForward:
        raise AssertionError("a made-up block has no feed-forward part")


@dataclass
class FakeView:
    """A model that is nothing but such blocks: a `ModelView`."""

    content: list[FakeBlock]
    method: Any = None
    seed: int = 0
    weights_sha256: str | None = None
    diagnostics: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    window = 16

    @property
    def weights(self) -> dict[str, Tensor]:
        return {site: weight for block in self.content for site, weight in block.weights.items()}

    def log(self, **facts: Any) -> None:
        self.diagnostics |= facts

    def pruned(
        self, method: Any, allocation: Mapping[str, Pattern], *, reuse_prefix: bool = False
    ) -> Iterator[FakeBlock]:
        """Nothing is removed, so nothing becomes more or less redundant."""
        yield from self.content

    def fisher_trace(self, windows: int) -> dict[str, Trace]:
        """The same for every weight."""
        return {site: Trace(float(weight.numel())) for site, weight in self.weights.items()}

    def hessian_trace(self, windows: int, probes: int, draws: str) -> dict[str, Trace]:
        return self.fisher_trace(windows)

    def assembler(self, method: Any, levels: Any, **settings: Any) -> FakeAssembler:
        return FakeAssembler(levels)

    def cached(self, purpose: str, settings: Mapping[str, Any]) -> FakeEntry:
        return FakeEntry(self.kept, f"{purpose} {settings}")

    def remembered(self, purpose: str, settings: Mapping[str, Any], compute: Any, **_: Any) -> Any:
        return compute()

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return {site: tuple(weight.shape) for block in self.content for site, weight in block.weights.items()}

    @property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        return tuple(tuple(block.weights) for block in self.content)

    def observe(self, statistic: Statistic) -> Iterator[FakeBlock]:
        yield from self.content


@dataclass
class FakeEntry:
    """A cached value in a dictionary."""

    kept: dict[str, Any]
    key: str

    def read(self) -> Any:
        return copy.deepcopy(self.kept.get(self.key))

    def held(self) -> Any:
        return nullcontext()

    def write(self, value: Any) -> None:
        self.kept[self.key] = copy.deepcopy(value)


@dataclass
class FakeAssembler:
    """Every candidate is as good as any other, unless `judge` says how good it is; what was asked is counted."""

    levels: Mapping[str, Any]
    judge: Any = None
    asked: list[Any] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def losses(self, candidates: Any, windows: slice = slice(None)) -> list[float]:
        for candidate in candidates:
            assert all(pattern in self.levels[site] for site, pattern in candidate.items())
        self.asked += [(windows, candidate) for candidate in candidates]
        return [self.judge(candidate) if self.judge else 1.0 for candidate in candidates]


_SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED: dict[str, Any] = _SIZES | {"num_key_value_heads": 2, "intermediate_size": 56, "head_dim": 8}
_MIXED: dict[str, Any] = _GATED | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
_OPT: dict[str, Any] = _SIZES | {"ffn_dim": 56, "word_embed_proj_dim": 32}
TINY: dict[str, dict[str, Any]] = {
    "llama": _GATED,
    "mistral": _GATED | {"sliding_window": 8},
    "qwen2": _MIXED | {"use_sliding_window": True},
    "qwen3": _GATED,
    "gemma": _GATED,
    "gemma2": _MIXED,
    "gemma3_text": _MIXED,
    "opt": _OPT,
    "opt-350m": _OPT | {"model_type": "opt", "do_layer_norm_before": False, "word_embed_proj_dim": 16},
    "phi": _SIZES | {"intermediate_size": 56},
    "gpt_neox": _SIZES | {"intermediate_size": 56},
    "phi3": _GATED,
    "gpt2": _SIZES | {"n_inner": 56},
    "bloom": _SIZES,
    "falcon": _SIZES | {"ffn_hidden_size": 56},
    "falcon-40b": _SIZES | {"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon-rw": _SIZES
    | {"model_type": "falcon", "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False},
    "olmo2": _GATED,
}
"""Tiny models, two blocks each: one per supported family, with blocks that differ in their masks where families do."""


def tiny(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random tiny model whose weights are large enough that everything matters."""
    settings = {"model_type": name} | copy.deepcopy(TINY[name]) | changes  # surgery shortens lists of a configuration
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    torch.manual_seed(seed)
    attention = "sdpa" if FAMILIES[config.model_type].sdpa else "eager"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    model.config.use_cache = False
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            noise = torch.randn_like(parameter)
            parameter.copy_(0.2 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model.to(dtype)


def given_tokens(model: Any, *indices: int) -> Any:
    """The model, some of whose blocks are called with something that follows from the tokens themselves.

    As in models with embeddings of their own in every block: (B, L, 1), from a number of each token, its sine.
    """

    def call(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens = positional[0] if positional else named["input_ids"]
        model.of_tokens = torch.sin(tokens.float())[..., None].to(next(model.parameters()).dtype)

    def add(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> Any:
        return positional, {"of_tokens": model.of_tokens, **named}  # what is replayed comes with it

    for index in indices:
        block = model.model.layers[index]
        run = block.forward
        block.forward = lambda hidden, of_tokens, run=run, **named: run(hidden, **named) * (1 + 0.5 * of_tokens)
        block.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
    model.model.register_forward_pre_hook(call, with_kwargs=True)
    return model


def windows(count: int, length: int = 24, seed: int = 0) -> Tensor:
    """Random token ids (N, L) that no family takes for padding."""
    return torch.randint(3, 64, (count, length), generator=torch.Generator().manual_seed(seed))


def linears(model: nn.Module, blocks: nn.ModuleList) -> dict[str, nn.Linear]:
    """Every linear inside the blocks by its full name, found without any layout."""
    inside = {id(module) for module in blocks.modules()}
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) in inside}
