"""Cut models on disk: plain transformers reads them in a process of its own, the harness reads their true widths."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import load
from helpers import TINY, normal, windows
from safetensors.torch import load_file
from test_surgery import BLOCKS, CUTS, dense, fitting, logits, units
from transformers import AutoConfig

from harness.core.structure import Cut, Plan
from harness.evaluation.zeros import achieved_sites
from harness.models.decoder import Decoder, decoder_of
from harness.models.surgery import operate
from harness.runtime.errors import Refusal
from harness.save import Form, check_form, save_model

EVEN = units("head", {block: [block % 2] for block in range(BLOCKS)}) | units(
    "channel", {block: [block, 9, 50] for block in range(BLOCKS)}
)
STOCK = """
import sys
import torch
from transformers import AutoModelForCausalLM

for folder in sys.argv[1:]:
    model, told = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=open(f"{folder}/attention").read(), output_loading_info=True
    )
    assert not any(told.values()), told
    tokens = torch.load(f"{folder}/tokens.pt")
    with torch.no_grad():
        torch.save(model.eval()(tokens, use_cache=False).logits, f"{folder}/logits.pt")
    cached, plain = (
        model.generate(tokens[:, :8], max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=use)
        for use in (True, False)
    )
    assert torch.equal(cached, plain)
"""


class NoTokenizer(SimpleNamespace):
    def save_pretrained(self, folder: Path) -> None:
        """Nothing is written."""


def saved(decoder: Decoder, folder: Path, form: Form = "padded") -> int:
    scope = decoder.indices
    return save_model(decoder, NoTokenizer(), folder, achieved_sites(decoder, scope, {}), "print", form=form)


def cut_of(name: str, which: str) -> Decoder:
    decoder = dense(name, relu=False)
    cut = fitting(decoder, {"even": EVEN, **CUTS}[which])
    if decoder.anatomy.norm_in_stream and getattr(decoder.config, decoder.anatomy.norm_in_stream[0]) is False:
        cut = Cut(frozenset(unit for unit in cut.units if unit.part not in ("attention", "mlp")))
    if decoder.model._can_set_attn_implementation():
        decoder.model.set_attn_implementation("eager")
    return operate(decoder, Plan(cut))


@torch.no_grad()
def test_stock_transformers_reads_every_cut_of_every_family(tmp_path: Path) -> None:
    """Depth and even widths to the bit, padded ones up to rounding; sizes are those of the files.

    On one thread the padded ones were found to differ by nothing: zeros add nothing where a sum goes in one order. The
    tolerance leaves room for sums that several threads or other kernels share out otherwise.
    """
    tokens, wanted = windows(2), {}
    for name in TINY:
        for which in ("blocks", "even", "everything"):
            folder = tmp_path / f"{name} {which}"
            decoder = cut_of(name, which)
            wanted[folder] = logits(decoder, tokens)
            check_form(decoder, "padded")
            size = saved(decoder, folder)
            sizes = [tensor.numel() for tensor in load_file(folder / "model.safetensors").values()]
            assert size == sum(sizes) and size >= decoder.model.num_parameters()
            torch.save(tokens, folder / "tokens.pt")
            (folder / "attention").write_text(decoder.config._attn_implementation, encoding="utf-8")
    subprocess.run([sys.executable, "-c", STOCK, *map(str, wanted)], check=True, timeout=300)
    for folder, before in wanted.items():
        after = torch.load(folder / "logits.pt")
        torch.testing.assert_close(
            after, before, rtol=1e-6, atol=1e-6, msg=lambda told, folder=folder: f"{folder}: {told}"
        )
        if folder.name.endswith("blocks"):
            assert torch.equal(after, before), folder


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_the_harness_reads_true_widths(name: str, tmp_path: Path) -> None:
    tokens, decoder = windows(2), cut_of(name, "everything")
    size = saved(decoder, tmp_path, "sliced")
    assert size == decoder.model.num_parameters()
    again = decoder_of(load(tmp_path))
    torch.testing.assert_close(logits(again, tokens), logits(decoder, tokens), rtol=1e-6, atol=1e-6)
    assert again.indices == (0, 1, 2) and [len(again.linears(at)) for at in again.indices] == [
        len(decoder.linears(index)) for index in decoder.indices
    ]
    further = Plan(units("channel", {0: [0, 1]}) | Cut.of_blocks([2]))
    if channels_are_there(again):
        other = operate(again, further)
        saved(other, tmp_path / "again", "sliced")
        assert torch.equal(load(tmp_path / "again")(tokens).logits, logits(other, tokens))
    with pytest.raises(ValueError, match="sliced_"):
        AutoConfig.from_pretrained(tmp_path)


def channels_are_there(decoder: Decoder) -> bool:
    return not decoder.cut.gone("mlp", 0)


@torch.no_grad()
def test_biases_are_written_where_the_class_has_a_place_for_them(tmp_path: Path) -> None:
    cut, bias, tokens = units("channel", {1: [0]}) | units("attention", {0: [0]}), normal(32), windows(2)
    names = ["model.layers.1.mlp.down_proj.bias", "model.layers.0.self_attn.o_proj.bias"]
    tensors = dict.fromkeys(names, bias)
    decoder = operate(dense("llama", relu=False), Plan(cut, tensors))
    saved(decoder, tmp_path / "llama")
    again = load(tmp_path / "llama")
    torch.testing.assert_close(again(tokens).logits, logits(decoder, tokens), rtol=1e-6, atol=1e-6)
    assert again.config.mlp_bias and again.config.attention_bias
    other = operate(dense("mistral", relu=False), Plan(cut, tensors))
    with pytest.raises(Refusal, match=r"no plain model of the family 'mistral' has a place for .*save_form=sliced"):
        check_form(other, "padded")
    saved(other, tmp_path / "mistral", "sliced")
    other.model.set_attn_implementation("eager")
    assert torch.equal(load(tmp_path / "mistral")(tokens).logits, logits(other, tokens))


@pytest.mark.parametrize(("name", "tensors"), [("opt-350m", ()), ("gemma2", ("model.layers.0.self_attn.o_proj.bias",))])
def test_a_norm_behind_a_part_that_is_gone_has_no_plain_form(name: str, tensors: Any) -> None:
    decoder = operate(dense(name), Plan(units("attention", {0: [0]}), dict.fromkeys(tensors, normal(32))))
    with pytest.raises(Refusal, match=r"leaves out the attention of block 0, .*take save_form=sliced\."):
        check_form(decoder, "padded")
    check_form(decoder, "sliced")


def test_attention_that_is_scaled_by_the_number_of_its_block_is_not_numbered_anew() -> None:
    decoder = operate(dense("gpt2", scale_attn_by_inverse_layer_idx=True), Plan(Cut.of_blocks([0])))
    with pytest.raises(Refusal, match="scale attention by their numbers"):
        check_form(decoder, "sliced")
