"""Trains the two small models, LLaMA- and OPT-shaped, on the embedded language and stores them in float16."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from harness.embedded.data import ASSETS, token_ids, training_stream, windows, write_tokenizer
from harness.embedded.language import Language
from harness.embedded.muon import Muon

CONTEXT = 256
# A processor gets an hour for both models; a GPU can afford many more passes.
TOKENS = {"cpu": 12_000_000, "cuda": 40_000_000}
UNIQUE_TOKENS = 20_000_000
BATCH = {"cpu": 16, "cuda": 64}
PEAK_RATE = {"llama": 0.02, "opt": 0.02}
OTHER_RATE = 3e-3
WEIGHT_DECAY = 0.1
SEED = 7


@dataclass(frozen=True)
class Shape:
    """Widths and depth of a model; the widths are multiples of 16 so that N:M patterns divide them."""

    hidden: int
    inner: int
    layers: int
    heads: int
    init: float = 0.02


# Wider or deeper models learn the language better but hardly notice the loss of half their weights.
SHAPES = {"llama": Shape(96, 256, 6, 4), "opt": Shape(96, 384, 6, 4)}


def build(name: str, vocabulary: int) -> PreTrainedModel:
    """An untrained model."""
    torch.manual_seed(SEED)
    shape = SHAPES[name]
    shared: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 3,
    }
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(intermediate_size=shape.inner, initializer_range=shape.init, **shared))
    return OPTForCausalLM(
        OPTConfig(
            ffn_dim=shape.inner,
            word_embed_proj_dim=shape.hidden,
            do_layer_norm_before=True,
            activation_function="relu",
            dropout=0.0,
            attention_dropout=0.0,
            init_std=shape.init,
            **shared,
        )
    )


class Optimizers:
    """Muon for the matrices inside the blocks, AdamW for embeddings, norms and biases."""

    def __init__(self, model: PreTrainedModel, rate: float) -> None:
        inner = [p for n, p in model.named_parameters() if p.dim() == 2 and "embed" not in n]
        chosen = set(map(id, inner))
        others = [p for p in model.parameters() if id(p) not in chosen]
        self.rate = rate
        self.muon = Muon(inner)
        self.adam = torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0)

    def step(self, share: float) -> None:
        """Update everything at a share of the peak rates."""
        self.muon.step(self.rate * share, WEIGHT_DECAY)
        for group in self.adam.param_groups:
            group["lr"] = OTHER_RATE * share
        self.adam.step()


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine down to nothing."""
    warm = max(1, steps // 50)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def batches(text: np.ndarray, size: int, steps: int) -> list[np.ndarray]:
    """`steps` batches of windows, pass after pass over the text."""
    rng = np.random.default_rng(SEED)
    out: list[np.ndarray] = []
    rows: list[np.ndarray] = []
    while len(out) < steps:
        for window in windows(text, CONTEXT, rng):
            rows.append(window)
            if len(rows) == size:
                out.append(np.stack(rows).astype(np.int16))
                rows = []
            if len(out) == steps:
                break
    return out


def fit(model: PreTrainedModel, text: np.ndarray, device: str, tokens: int, rate: float) -> float:
    """Train in place; returns tokens per second."""
    size = BATCH[device]
    steps = tokens // (size * CONTEXT)
    plan = batches(text, size, steps)
    model.to(device).train()  # type: ignore[arg-type]
    optimizer = Optimizers(model, rate)
    begun = time.monotonic()
    for step, rows in enumerate(plan):
        ids = torch.from_numpy(rows.astype(np.int64)).to(device)
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(rate_at(step, steps))
        if step % max(1, steps // 20) == 0 or step == steps - 1:
            speed = (step + 1) * size * CONTEXT / (time.monotonic() - begun)
            print(f"step {step + 1}/{steps} loss {loss.item():.4f} {speed:.0f} tokens/s", flush=True)
    return tokens / (time.monotonic() - begun)


def train(name: str, device: str, tokens: int | None = None, folder: Path | None = None) -> None:
    """Make one model from nothing and store it in float16 with its tokenizer."""
    language = Language()
    count = tokens or TOKENS[device]
    text = training_stream(min(count, UNIQUE_TOKENS), os.cpu_count() or 2)
    model = build(name, len(token_ids(language)))
    fit(model, text, device, count, PEAK_RATE[name])
    target = folder or ASSETS / f"embedded-{name}"
    model.to("cpu").to(torch.float16).save_pretrained(target)  # type: ignore[arg-type]
    write_tokenizer(language, target)
