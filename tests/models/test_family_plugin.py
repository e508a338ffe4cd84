"""A family from outside: a plugin brings its layout, and it is pruned, cut and saved like ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from checkpoints import load
from helpers import windows
from transformers import AutoConfig, AutoModelForCausalLM

from harness.core.structure import Cut, Plan, Unit
from harness.models.anatomy import FAMILIES, Anatomy, Keys, Norms, family
from harness.models.decoder import decoder_of
from harness.models.gates import gated
from harness.models.surgery import operate
from harness.runtime.errors import UserError

STARCODER = """
from harness.models.anatomy import Anatomy, Keys, Norms, family

family(
    "starcoder2",
    Anatomy(
        "model.layers",
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",)),
        (("mlp.c_fc",), ("mlp.c_proj",)),
        "mlp.act",
        gated=False,
        tied=True,
    ),
)
"""


@pytest.fixture
def starcoder(tiny: Path, tmp_path: Path) -> Iterator[Path]:
    folder = Path(shutil.copytree(tiny, tmp_path / "starcoder"))
    own = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    names = ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "max_position_embeddings")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = AutoConfig.for_model(
        "starcoder2", num_key_value_heads=2, **sizes, **{name: own.get(name) for name in names}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    yield folder
    FAMILIES.pop("starcoder2", None)


def test_a_layout_from_a_plugin_is_pruned_and_saved(
    starcoder: Path, typed: Callable, options: list[str], tmp_path: Path
) -> None:
    asked = [*(one for one in options if not one.startswith("model.path")), f"model.path={starcoder}", "method=wanda"]
    refused = typed(*asked)
    assert refused.status == 2 and "the model family 'starcoder2' has no layout" in refused.err
    plugin = tmp_path / "starcoder.py"
    plugin.write_text(STARCODER, encoding="utf-8")
    done = typed(*asked, "sparsity=2of4", f"plugins={plugin}", f"save={tmp_path / 'kept'}")
    assert done.status == 0, done.err
    assert {site["pattern"] for site in done.record["sites"].values()} == {"2of4"} and len(done.record["sites"]) == 18
    decoder, tokens = decoder_of(load(tmp_path / "kept")), windows(1)
    cut = Cut(frozenset({Unit("head", 0, 1), Unit("attention", 1), *(Unit("channel", 2, unit) for unit in range(8))}))
    with torch.no_grad(), gated(decoder, cut):
        tried = decoder.model(tokens).logits
    with torch.no_grad():
        torch.testing.assert_close(operate(decoder, Plan(cut)).model(tokens).logits, tried, rtol=0, atol=1e-6)


def test_a_plugin_cannot_change_a_family_that_is_known() -> None:
    family("llama", FAMILIES["llama"])
    other = Anatomy("model.layers", (), (), "", norms=Norms(), keys=Keys())
    with pytest.raises(UserError, match="the model family 'llama' has a layout"):
        family("llama", other)
