"""A run that was killed while it pruned goes on behind its last finished block, bit for bit."""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import METHODS, pattern, tiny, windows
from safetensors import safe_open

from harness import execute
from harness.calibration.cache.resume import Block, CheckpointPolicy, FinishedBlocks, cache_key_of
from harness.compress import prune
from harness.core.interfaces import Pruned
from harness.core.pattern import Unstructured
from harness.models.decoder import decoder_of
from harness.runtime.warn import collected_warnings

BLOCKS = 6


class Killed(BaseException):
    """What ends a process without a record."""


def embedded(records: Path, method: str, *more: str) -> list[str]:
    """A run on the embedded model, six blocks, every one of which is kept."""
    return [
        *(f"method={method}", "sparsity=0.6", f"records={records}", "checkpoint_every=0", "calibration.windows=2"),
        *("calibration.length=64", "evaluation=[embedded-a]", "evaluation_limit=2", *more),
    ]


def killed_in(block: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let pruning die when it reaches a block; the list collects the blocks that are pruned."""
    import harness.compress as running

    lifted, done = running.as_block_method, []

    def watched(method: Any) -> Any:
        class Watched:
            def prune_block(self, view: Any, patterns: Any) -> Any:
                if view.index == block:
                    raise Killed
                done.append(view.index)
                return lifted(method).prune_block(view, patterns)

        return Watched()

    def dies(error: BaseException) -> str:
        raise error

    monkeypatch.setattr(running, "as_block_method", watched)
    monkeypatch.setattr(execute, "_reason", dies)  # which would make a failed record of it
    return done


@pytest.mark.parametrize(
    ("method", "block"),
    [
        ("wanda", 4),
        ("sparsegpt", 1),
        ("sparsellm", 3),
        ("magnitude", 5),
    ],
)
def test_a_killed_run_prunes_no_finished_block_again(
    method: str, block: int, typed: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["method.epochs=2"] if method == "sparsellm" else []
    whole = typed(*embedded(tmp_path / "whole", method, *more, f"save={tmp_path / 'whole-model'}")).record
    cut = embedded(tmp_path / "cut", method, *more)
    with monkeypatch.context() as patch:
        before = killed_in(block, patch)
        with pytest.raises(Killed):
            typed(*cut)
    assert before == list(range(block)) and not list((tmp_path / "cut").glob("*.json"))
    with monkeypatch.context() as patch:
        behind = killed_in(BLOCKS, patch)
        resumed = typed(*cut, f"save={tmp_path / 'cut-model'}").record
    assert behind == list(range(block, BLOCKS))
    for part in ("sites", "measures", "blocks", "sparsity", "fingerprint"):
        assert resumed[part] == whole[part], part
    (note,) = set(resumed["notes"]) - set(whole["notes"])
    assert note == f"resumed: {block} of {BLOCKS} blocks are those that an earlier attempt finished"
    assert set(whole["notes"]) <= set(resumed["notes"])
    same_weights(tmp_path / "whole-model", tmp_path / "cut-model")
    assert not list((tmp_path / "cut" / ".cache").glob("blocks_*"))  # removed with the record


def same_weights(one: Path, other: Path) -> None:
    with safe_open(one / "model.safetensors", "pt") as a, safe_open(other / "model.safetensors", "pt") as b:
        assert set(a.keys()) == set(b.keys())
        assert all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in a.keys())  # noqa: SIM118


def pruned_model(
    method: str, finished: Callable[..., FinishedBlocks] | None, stop: int | None = None, **more: Any
) -> Any:
    """The tiny model, pruned; as killed before block `stop` if one is named."""
    model = tiny("llama", num_hidden_layers=4)
    decoder = decoder_of(model)
    scope = range(4)
    sites = [site for index in scope for site in decoder.linears(index)]
    allocation = dict.fromkeys(sites, pattern("0.5"))

    def weights(index: int) -> dict[str, Any]:
        return {site: linear.weight.data for site, linear in decoder.linears(index).items()}

    kept = finished(weights) if finished else None
    told: dict[str, Any] = {}
    if kept and stop is not None:
        add = kept.add

        def dying(index: int, block: Block) -> None:
            if index == stop:
                raise Killed
            add(index, block)

        kept.add = dying  # type: ignore[method-assign]
    try:
        done = prune(decoder, [windows(3)], scope, METHODS[method], allocation, told, finished=kept, **more)
    except Killed:
        return None
    return weights, done, told


def same_result(one: Any, other: Any) -> bool:
    (weights, done, told), (other_weights, other_done, other_told) = one, other
    return (
        all(torch.equal(w, other_weights(index)[site]) for index in range(4) for site, w in weights(index).items())
        and all(torch.equal(done[site].kept, other_done[site].kept) for site in done)
        and [one.note for one in done.values()] == [one.note for one in other_done.values()]
        and json.dumps(told) == json.dumps(other_told)
    )


def keeping(cache: Path, **changes: Any) -> Callable[..., FinishedBlocks]:
    settings = {"folder": cache / "blocks_f", "cache_key": "this", "every": 0, "gib": None} | changes
    return lambda weights: FinishedBlocks(CheckpointPolicy(**settings), weights)


@pytest.mark.parametrize("method", sorted({*METHODS} - {"plugged"}))
def test_weights_masks_and_what_was_told_come_back(method: str, tmp_path: Path) -> None:
    whole = pruned_model(method, None)
    pruned_model(method, keeping(tmp_path), stop=2)
    assert len(list((tmp_path / "blocks_f").glob("*.safetensors"))) == 2
    with collected_warnings() as said:
        assert same_result(pruned_model(method, keeping(tmp_path)), whole)
    assert said == ["resumed: 2 of 4 blocks are those that an earlier attempt finished"]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "renamed"])
def test_a_damaged_block_and_those_behind_it_are_pruned_again(damage: str, tmp_path: Path) -> None:
    whole = pruned_model("sparsegpt", None)
    pruned_model("sparsegpt", keeping(tmp_path), stop=3)
    (path,) = (tmp_path / "blocks_f").glob("1_*.safetensors")
    content = path.read_bytes()
    if damage == "renamed":
        (other,) = (tmp_path / "blocks_f").glob("0_*.safetensors")
        shutil.copy(other, path)
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 64]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:middle], "flipped": flipped, "empty": b""}[damage])
    with collected_warnings() as said:
        assert same_result(pruned_model("sparsegpt", keeping(tmp_path)), whole)
    assert said[0].startswith(str(path)) and said[0].endswith("block 1 is pruned again")
    assert said[1].startswith("resumed: 1 of 4 blocks")


def test_blocks_of_other_settings_are_not_taken_up(tmp_path: Path) -> None:
    pruned_model("wanda", keeping(tmp_path), stop=2)
    whole = pruned_model("sparsegpt", None)
    assert same_result(pruned_model("sparsegpt", keeping(tmp_path, cache_key="that")), whole)


def test_what_a_block_belongs_to() -> None:
    given = {
        "identity": {"weights": "a"},
        "method": {"name": "wanda"},
        "seed": 0,
        "allocation": {"q": Unstructured(0.5)},
    }
    changed = {
        "identity": {"weights": "b"},
        "method": {"name": "wanda", "revision": 2},
        "seed": 1,
        "allocation": {"q": Unstructured(0.50000001)},
    }
    hashes = {cache_key_of(**given), *(cache_key_of(**{**given, key: value}) for key, value in changed.items())}
    assert len(hashes) == 5


def test_a_full_disk_stops_the_keeping_and_not_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pruned_model("wanda", None)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, collected_warnings() as said:
        patch.setattr(os, "fsync", full)
        assert same_result(pruned_model("wanda", keeping(tmp_path)), whole)
    assert said == [f"blocks from 0 on are not kept for a restart: {tmp_path}: No space left on device"]
    assert not list(tmp_path.rglob("*.safetensors")) and not list(tmp_path.rglob("*.tmp"))


def test_no_more_is_kept_than_the_cache_may_take(tmp_path: Path) -> None:
    pruned_model("wanda", keeping(tmp_path), stop=1)
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    shutil.rmtree(tmp_path / "blocks_f")
    with collected_warnings() as said:
        pruned_model("wanda", keeping(tmp_path, gib=2.5 * size / 2**30), stop=4)
    assert "cache_gib" in said[0] and said[0].startswith("blocks from 2 on are not kept")
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    # what an abandoned run left goes when another one needs the room
    gc.collect()  # the first run's hold on its blocks
    with collected_warnings() as said:
        other = keeping(tmp_path, folder=tmp_path / "blocks_e", gib=2.5 * size / 2**30)
        pruned_model("wanda", other, stop=2)
    assert not said and [path.name for path in tmp_path.iterdir()] == ["blocks_e"]


def test_blocks_are_kept_only_after_some_work(tmp_path: Path) -> None:
    pruned_model("wanda", keeping(tmp_path, every=3600), stop=3)
    pruned_model("wanda", keeping(tmp_path, every=None), stop=3)
    assert not list(tmp_path.iterdir())


def test_what_waits_to_be_written_takes_no_memory(tmp_path: Path) -> None:
    """The masks of a 7B model are 6 GiB, and most runs never write a block."""
    made: list[FinishedBlocks] = []

    def finished(weights: Any) -> FinishedBlocks:
        made.append(keeping(tmp_path, every=3600)(weights))
        return made[0]

    pruned_model("wanda", finished, masks=False)
    waiting = [one for block in made[0]._waiting.values() for one in block.pruned.values()]
    assert len(waiting) == 4 * 7
    assert all(one.weight.numel() == one.kept.numel() == 0 for one in waiting)


def test_writing_takes_a_share_of_the_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten seconds a block, four to write one: the next is written once 40 seconds of pruning are behind it."""
    now = [0.0]
    monkeypatch.setattr("harness.calibration.cache.resume.time.perf_counter", lambda: now[0])
    blocks = FinishedBlocks(
        CheckpointPolicy(tmp_path / "blocks_f", "this", 10.0), lambda index: {"q": torch.ones(1, 1)}
    )
    write, written = blocks._write, []

    def slow() -> None:
        written.append(sorted(blocks._waiting))
        write()
        now[0] += 4

    blocks._write = slow  # type: ignore[method-assign]
    for index in range(10):
        now[0] += 10
        blocks.add(index, Block({"q": Pruned(torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))}, {}))
    assert written == [[0], [1, 2, 3], [4, 5, 6, 7]]


def test_masks_that_are_not_the_nonzeros_come_back(tmp_path: Path) -> None:
    weight, kept = torch.tensor([[0.0, 1.0]]), torch.tensor([[True, True]])
    result = {"q": Pruned(weight, kept, "a remark")}
    first = FinishedBlocks(CheckpointPolicy(tmp_path / "b", "this", 0), lambda index: {"q": weight})
    first.add(0, Block(result, {"loss": [1.0, 0.1]}))
    found = FinishedBlocks(CheckpointPolicy(tmp_path / "b", "this", 0), lambda index: {"q": weight}).load(0)
    assert found and torch.equal(found.pruned["q"].kept, kept) and found.pruned["q"].note == "a remark"
    assert found.diagnostics == {"loss": [1.0, 0.1]}
