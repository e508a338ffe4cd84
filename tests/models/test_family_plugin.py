"""A family from outside: a plugin brings its layout, and it is pruned, cut and saved like ours."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from checkpoints import load
from helpers import windows
from transformers import AutoConfig, AutoModelForCausalLM

from harness.core.structure import Cut, Plan, Unit
from harness.models import anatomy
from harness.models.anatomy import FAMILIES, Anatomy, family
from harness.models.decoder import decoder_of
from harness.models.facts import Keys, Norms
from harness.models.gates import gated
from harness.models.surgery import operate
from harness.runtime.errors import UserError

STARCODER = """
from harness.models.anatomy import Anatomy, family
from harness.models.facts import Keys, Norms

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
    anatomy._KNOWN.pop("starcoder2", None)


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


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            '"model.layers"',
            '"model.layer"',
            "blocks='model.layer' is no list of blocks of this model; it has model.layers.",
        ),
        (
            "gated=False,",
            "",
            "gated=True does not fit: mlp.c_fc give 64 features and mlp.c_proj reads 64; set gated=False",
        ),
        (
            "tied=True",
            'parts=("attn", "mlp")',
            "says that 'attn' is the attention, and it holds no self_attn.q_proj; write",
        ),
        ("tied=True", 'parts=("self_attn", "self_attn")', "holds no mlp.c_fc; write 'mlp'"),
        ("tied=True", 'parts="mlp"', "parts='mlp' has to be two modules"),
        ("tied=True", 'order="groups"', "three are order='separate'"),
        ("tied=True", 'order="rows"', "order='rows' is none of separate, parts, groups"),
        ("tied=True", 'norms=Norms(("ln_1",), ("ln_2",))', "which are input_layernorm, post_attention_layernorm"),
        (
            '"mlp.act"',
            '"mlp.gelu"',
            "activation='mlp.gelu' is no module of this block; beside matrices and norms it has",
        ),
        ('("mlp.c_fc",)', '("mlp.fc1",)', "it has no matrix 'mlp.fc1'; its matrices are self_attn.q_proj"),
        ('("mlp.c_fc",)', '"mlp.c_fc"', "has to be tuples of linears"),
        ("family(", "FAMILIES['starcoder2'] = dict(a=", "does not support item assignment"),
    ],
)
def test_a_layout_that_does_not_fit_is_one_sentence(
    old: str, new: str, expected: str, starcoder: Path, typed: Callable, options: list[str], tmp_path: Path
) -> None:
    """Before anything is loaded, in a sweep too: exit 2 and no record."""
    source = STARCODER.replace("Keys, Norms, family", "FAMILIES, Keys, Norms, family").replace(old, new, 1)
    if "dict(a=" in new:
        source = "from harness.models.anatomy import FAMILIES\nFAMILIES['starcoder2'] = None"
    (tmp_path / "starcoder.py").write_text(source, encoding="utf-8")
    asked = [*(one for one in options if not one.startswith("model.path")), f"model.path={starcoder}"]
    done = typed("-m", *asked, f"plugins={tmp_path / 'starcoder.py'}", "sparsity=0.5,0.6")
    assert done.status == 2 and done.err.count("\n") == 1 and done.err.startswith("error: "), done.err
    assert expected in done.err
    assert not (tmp_path / "records").exists()


def test_a_layout_of_ones_own_can_be_mended_and_registered_again() -> None:
    wrong = Anatomy("layers", (("q",), ("o",)), (("up",), ("down",)), "act")
    try:
        family("mine", wrong)
        assert family("mine", replace(wrong, order="groups")) == FAMILIES["mine"]
    finally:
        anatomy._KNOWN.pop("mine", None)
