"""What a structural edit leaves of a model, against the models themselves and the numbers that LLM-Pruner prints."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import TINY, linears, tiny

from harness.core.cost import Size, cost, first_units, removed
from harness.core.geometry import Geometry
from harness.core.structure import UNCUT, Cut, Unit
from harness.models.anatomy import FAMILIES
from harness.models.decoder import decoder_of
from harness.models.geometry import of_config
from harness.runtime.errors import Refusal

LLAMA_7B = Geometry(32, 4096, 11008, 4096, 4096, 32, 32000, gated=True, tied=False, rotated=128)
SETTINGS: dict[str, dict[str, Any]] = {
    **{name: {} for name in TINY},
    "llama with biases": {"attention_bias": True, "mlp_bias": True},
    "llama tied": {"tie_word_embeddings": True},
    "qwen3 with wide heads": {"head_dim": 16},
    "opt without biases": {"enable_bias": False},
    "phi with norms of heads": {"qk_layernorm": True},
    "gpt_neox in sequence": {"use_parallel_residual": False, "attention_bias": False},
}


def narrowed(blocks: range, heads: int, channels: int) -> Cut:
    """The last heads and channels of some blocks gone."""
    units = [Unit("head", block, 31 - index) for block in blocks for index in range(heads)]
    return Cut(
        frozenset(units + [Unit("channel", block, 11007 - index) for block in blocks for index in range(channels)])
    )


@pytest.mark.parametrize(
    ("edit", "parameters", "giga"),
    [
        (UNCUT, 6_738_415_616, "424.021"),
        (narrowed(range(4, 30), 8, 2752), 5_422_977_024, "339.603"),
        (narrowed(range(3, 31), 19, 6605), 3_350_188_032, "206.585"),
    ],
    ids=["dense", "20 %", "50 %"],
)
def test_table_3_of_llm_pruner(edit: Cut, parameters: int, giga: str) -> None:
    """Ma et al. 2023, arXiv 2305.11627: LLaMA-7B, dense and block-wise at 20 and 50 %, for 64 tokens."""
    found = cost(edit, LLAMA_7B)
    assert found.parameters == parameters
    assert f"{found.macs / 1e9:.3f}" == giga


def test_multiplications_of_the_dense_model_to_the_last() -> None:
    """As the arithmetic of LLM-Pruner's test_speedup.py gives them."""
    assert cost(UNCUT, LLAMA_7B).macs == 424_021_065_728


@pytest.mark.parametrize("name", SETTINGS)
def test_parameters_are_those_of_the_model(name: str) -> None:
    model = tiny(name.split()[0], **SETTINGS[name])
    found = cost(UNCUT, of_config(model.config.to_dict()))
    matrices = linears(model, decoder_of(model).modules)
    assert found.parameters == found.active == model.num_parameters()
    assert found.linears == sum(linear.weight.numel() for linear in matrices.values())


def are_apart(name: str) -> bool:
    """Whether queries, keys and values have matrices of their own, and heads nothing in common."""
    layout = FAMILIES[TINY[name].get("model_type", name)]
    return layout.order == "separate" and layout.heads_alone


@pytest.mark.parametrize("name", SETTINGS)
def test_a_block_is_its_parameters(name: str) -> None:
    """A block that goes takes all of its own, its norms too; its two parts take as much together."""
    model = tiny(name.split()[0], **SETTINGS[name])
    geometry = of_config(model.config.to_dict())
    left = cost(Cut.of_blocks([1]), geometry)
    block = decoder_of(model).modules[1]
    assert left.parameters == model.num_parameters() - sum(p.numel() for p in block.parameters())
    assert left == cost(Cut(frozenset({Unit("attention", 1), Unit("mlp", 1)})), geometry)


@pytest.mark.parametrize("name", [name for name in SETTINGS if are_apart(name.split()[0])])
def test_units_are_their_parameters(name: str) -> None:
    """A key/value group and a channel take the rows and columns of their matrices, and the biases of the rows."""
    model = tiny(name.split()[0], **SETTINGS[name])
    geometry = of_config(model.config.to_dict())
    named = dict(decoder_of(model).modules[0].named_parameters())
    share = {"head": geometry.groups, "channel": geometry.wide}
    parts = {"head": ("q_proj", "k_proj", "v_proj"), "channel": ("gate_proj", "up_proj", "fc1")}
    columns = {
        "head": ("o_proj.weight", "out_proj.weight", "dense.weight"),
        "channel": ("down_proj.weight", "fc2.weight"),
    }
    for part, count in share.items():
        whole = sum(
            p.numel() for key, p in named.items()
            if any(f"{one}." in key for one in parts[part]) or key.endswith(columns[part])
        )  # fmt: skip
        found = cost(Cut(frozenset({Unit(part, 0, 1)})), geometry)
        assert model.num_parameters() - found.parameters == whole // count


def test_cache_of_grouped_queries() -> None:
    """LLaMA-3-8B: 32 blocks, 8 key/value heads of 128, in 16 bits 128 KiB a token; a head that goes takes its own."""
    geometry = Geometry(32, 4096, 14336, 4096, 1024, 32, 128256, gated=True, tied=False, rotated=128)
    assert cost(UNCUT, geometry).kv_bytes == 128 * 1024
    assert cost(Cut(frozenset({Unit("head", 3, 7)})), geometry).kv_bytes == 128 * 1024 - 2 * 128 * 2
    assert cost(Cut(frozenset({Unit("attention", 3)})), geometry).kv_bytes == 31 * 4 * 1024


def test_experts() -> None:
    """Mixtral-8x7B: 46.7 billion parameters, 12.9 of them for one token; an expert takes its router row along."""
    geometry = Geometry(
        32, 4096, 14336, 4096, 1024, 32, 32000, gated=True, tied=False, experts=8, chosen=2, rotated=128
    )
    found = cost(UNCUT, geometry)
    assert (round(found.parameters / 1e9, 1), round(found.active / 1e9, 1)) == (46.7, 12.9)
    without = cost(Cut(frozenset({Unit("expert", 0, 5)})), geometry)
    assert found.parameters - without.parameters == 3 * 4096 * 14336 + 4096


@pytest.mark.parametrize(
    "unit", [Unit("block", 32), Unit("head", 0, 32), Unit("channel", 0, 11008), Unit("expert", 0, 0), Unit("mlp", -1)]
)
def test_what_is_not_there_is_refused(unit: Unit) -> None:
    with pytest.raises(Refusal, match="cannot go"):
        cost(Cut(frozenset({unit})), LLAMA_7B)


def test_all_blocks_are_refused() -> None:
    with pytest.raises(Refusal, match="leave one"):
        cost(Cut.of_blocks(range(32)), LLAMA_7B)


@pytest.mark.parametrize(("of", "amount", "count"), [("blocks", 2, 2), ("sublayers", 3, 2), ("linears", 0.1, 4)])
def test_fewest_units(of: Any, amount: float, count: int) -> None:
    """Blocks are a thirty-second of the matrices each, and two sub-layers."""
    order = [Unit("block", block) for block in (9, 8, 7, 6, 5)]
    assert first_units(order, amount, of, LLAMA_7B) == Cut(frozenset(order[:count]))


def test_fewest_units_of_all_parameters() -> None:
    """A block of LLaMA-7B is 202,383,360 of 6,738,415,616 parameters: 3 %."""
    order = [Unit("block", block) for block in range(3, 9)]
    share = 202_383_360 / 6_738_415_616
    assert removed(Cut.of_blocks([4]), LLAMA_7B, "parameters") == pytest.approx(share, rel=1e-12)
    assert len(first_units(order, 0.03, "parameters", LLAMA_7B).blocks) == 1
    assert len(first_units(order, 0.031, "parameters", LLAMA_7B).blocks) == 2
    with pytest.raises(Refusal, match="cannot go"):
        first_units(order, 0.2, "parameters", LLAMA_7B)


def test_a_size_adds_up() -> None:
    """Half of the blocks gone is half of what blocks have."""
    dense, half = cost(UNCUT, LLAMA_7B), cost(Cut.of_blocks(range(16)), LLAMA_7B)
    outside = Size(LLAMA_7B.outside_parameters, LLAMA_7B.outside_parameters, 0, 64 * 4096 * (32000 + 2), 0)
    assert all(2 * (h - o) == d - o for d, h, o in zip(dense, half, outside, strict=True))
