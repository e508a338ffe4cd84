"""A pattern in a permuted order, from the command to the record and the saved model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import SMALL, save_tiny
from safetensors import safe_open

from harness.allocators.file import read_allocation
from harness.core.pattern import NofM, satisfies
from harness.runtime.errors import UserError
from harness.save import MARK, orders_of

PERMUTED = ["method=ria", "sparsity=2of4", "method.reallocation=true"]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    model = save_tiny(tmp_path / "model")
    return ["model=hf", f"model.path={model}", *SMALL, f"records={tmp_path / 'records'}", f"cache={tmp_path / 'cache'}"]


@pytest.mark.parametrize("lsa", ["false", "true"])
def test_record_and_file_tell_the_order(typed: Callable, options: list[str], tmp_path: Path, lsa: str) -> None:
    kept = tmp_path / "kept"
    record = typed(*options, *PERMUTED, f"method.lsa={lsa}", f"save={kept}").record
    assert {site["pattern"] for site in record["sites"].values()} == {"2of4 permuted"}
    assert {site["achieved"] for site in record["sites"].values()} == {0.5} and record["sparsity"]["achieved"] == 0.5
    orders = orders_of(kept)
    assert orders.keys() == record["sites"].keys()
    with safe_open(kept / "model.safetensors", "pt") as file:
        for site, order in orders.items():
            weight = file.get_tensor(f"{site}.weight")
            assert satisfies(weight, NofM(2, 4), order) and not satisfies(weight, NofM(2, 4))
            assert ((weight[:, order].reshape(-1, 4) != 0).sum(dim=1) == 2).all()


def test_a_plain_pattern_has_no_order(typed: Callable, options: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    record = typed(*options, "method=ria", "sparsity=2of4", f"save={kept}").record
    assert {site["pattern"] for site in record["sites"].values()} == {"2of4"}
    mark = json.loads((kept / MARK).read_text())
    assert orders_of(kept) == {} and "orders" not in mark and {"fingerprint", "files", "sites"} < mark.keys()
    with pytest.raises(UserError, match=r"holds no pruning.json"):
        orders_of(tmp_path)


def test_mixed_levels_are_permuted_each_by_its_own(typed: Callable, options: list[str]) -> None:
    record = typed(*options, *PERMUTED, "allocator=owl", "allocator.levels=[0,1,2,3]", "allocator.spread=0.2").record
    patterns = {site["pattern"] for site in record["sites"].values()}
    assert len(patterns) > 1 and patterns <= {"1of4 permuted", "2of4 permuted", "3of4 permuted", "0of4"}
    assert record["sparsity"]["achieved"] == pytest.approx(0.5)


@pytest.mark.parametrize("inner", ["swaps", "dsnot"])
def test_masks_refined_on_it_stay_in_its_order(typed: Callable, options: list[str], inner: str, tmp_path: Path) -> None:
    wrapped = [f"method={inner}", "method.inner.name=ria", "method.inner.reallocation=true", "sparsity=2of4"]
    record = typed(*options, *wrapped, f"save={tmp_path / 'kept'}").record
    assert {site["pattern"] for site in record["sites"].values()} == {"2of4 permuted"}
    assert len(orders_of(tmp_path / "kept")) == len(record["sites"])


def test_a_restart_has_the_orders_too(
    typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    keeping = [*options, *PERMUTED, "checkpoint_every=0", f"save={tmp_path / 'kept'}"]
    with monkeypatch.context() as patch:
        patch.setattr("harness.run.achieved_sites", interrupted)
        assert typed(*keeping).status == 1
    again = typed(*keeping)
    assert "resumed" in again.err and len(orders_of(tmp_path / "kept")) == len(again.record["sites"])
    assert {site["pattern"] for site in again.record["sites"].values()} == {"2of4 permuted"}


def test_a_permuted_pattern_is_an_allocation(tmp_path: Path) -> None:
    """What a record's sites call it can be given back as what to remove."""
    path = tmp_path / "allocation.json"
    path.write_text(
        json.dumps({"a": {"pattern": "2of4 permuted", "asked": 0.5}, "b": {"pattern": "1of4", "asked": 0.75}})
    )
    assert read_allocation(path).patterns == {"a": NofM(2, 4), "b": NofM(1, 4)}
