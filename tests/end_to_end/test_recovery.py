"""Recoveries and conversions in whole runs: what a record says, what is refused, what a kill costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import but
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import compose
from harness.data.windows import evaluation_windows
from harness.prepare import prepare
from harness.record import schema
from harness.record.provenance import ROOT
from harness.record.request import request_key

TINY = ["recovery.tokens=1024", "recovery.batch=4", "recovery.length=32", "recovery.lr=1e-2", "recovery.checks=2"]
EMBEDDED = ["method=wanda", "sparsity=0.7", "evaluation=[embedded-b]", "evaluation_limit=4", "calibration.windows=8"]


def test_recovery_improves_a_text_of_another_kind(typed: Callable, tmp_path: Path) -> None:
    """Trained on text a, judged on b; the zeros are those of pruning."""
    base = [*EMBEDDED, f"records={tmp_path}"]
    pruned = typed(*base).record
    quick = ["recovery.tokens=8192", "recovery.lr=[2e-4,1e-3]", "recovery.checks=2"]
    record = typed(*base, "recovery=kept_weights", *quick).record
    assert record["measures"][0]["value"] < 0.7 * pruned["measures"][0]["value"]
    assert record["sites"] == pruned["sites"] and pruned["recovery"] == {}
    told = record["recovery"]
    assert (told["text"], told["split"], told["length"]) == ("embedded-a", "train", 256)
    assert told["sha256"] == record["provenance"]["data"]["recovery"]["sha256"]
    parameters = sum(site["parameters"] * (1 - site["achieved"]) for site in record["sites"].values())
    assert told["trained"] == round(parameters) and told["tokens"] == 8192 and told["steps"] == 4
    assert told["filled"] == 0 and told["loss"]["after"] < told["loss"]["before"] and told["lr"] in (2e-4, 1e-3)
    assert [[point["tokens"] for point in run["curve"]] for run in told["runs"]] == [[0, 4096, 8192]] * 2
    assert "kept-weights" in record["config"]["recovery"]["name"].replace("_", "-")
    assert record["stages"]["recover"]["seconds"] > 0


def test_a_killed_training_goes_on_where_it_was(tmp_path: Path, typed: Callable) -> None:
    """Killed by the system, once a checkpoint is there; the weights are those of a run that nobody killed."""
    base = [*but(EMBEDDED, "evaluation=[]", "calibration.windows=2"), "recovery=lora", "checkpoint_every=0"]
    base += ["recovery.tokens=24576", "recovery.checks=1"]
    whole = typed(*base, f"records={tmp_path / 'whole'}", f"save={tmp_path / 'whole-model'}").record
    command = [sys.executable, "-m", "harness", *base, f"records={tmp_path / 'cut'}", f"save={tmp_path / 'cut-model'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while not list((tmp_path / "cut").glob(".cache/blocks_*/training_*.safetensors")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cut").glob("*.json"))
    resumed = typed(*command[3:]).record
    assert any("training goes on behind step" in note for note in resumed["notes"])
    assert resumed["recovery"] == whole["recovery"] and resumed["sites"] == whole["sites"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole-model", "cut-model"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not list((tmp_path / "cut").glob(".cache/blocks_*"))


def test_a_checkpoint_pruned_elsewhere_keeps_its_zeros(
    tiny: Path, tmp_path: Path, typed: Callable, options: list[str]
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "proj" in name:
                weight *= weight.abs() > weight.abs().median()
    model.save_pretrained(tmp_path / "sparse")
    for path in tiny.glob("tokenizer*"):
        shutil.copy(path, tmp_path / "sparse")
    base = [*but(options, f"model.path={tmp_path / 'sparse'}"), "method=none"]
    before = typed(*base).record
    record = typed(*base, "recovery=kept_weights", *TINY).record
    assert before["sparsity"]["model"] == record["sparsity"]["model"] == 0.5
    assert record["recovery"]["trained"] == sum(site["parameters"] for site in record["sites"].values()) / 2
    assert record["recovery"]["loss"]["after"] < record["recovery"]["loss"]["before"]
    assert record["measures"] != before["measures"]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (
            ["recovery.text=embedded-b", "evaluation=[embedded-b]", "evaluation.embedded-b.split=train"],
            "the training text embedded-b (train) overlaps the evaluation text embedded-b (train): 100% of the longer "
            "rows are the same; train on another text or split.",
        ),
        (["offload=on"], "recovery=lora needs a model that stays on its device; with offload its weights would wait"),
        (["recovery.length=65"], "recovery.length=65 is longer than the model's context of 64 tokens."),
        (["recovery.lr=[1e-3,0]"], "has to be a positive learning rate or a list of such."),
        (["recovery.tokens=0"], "recovery.tokens=0 has to be at least 1."),
        (["recovery.text=embeded-a"], "unknown corpus 'embeded-a'; did you mean embedded-a"),
        (["recovery.text=wikitext2-sample", "recovery.schedule=cosin"], "did you mean cosine or constant?"),
    ],
)
def test_what_is_refused_before_the_work(choice: list[str], says: str, typed: Callable, options: list[str]) -> None:
    done = typed(*but([*options, "recovery=lora", *TINY], *choice))
    assert done.status == 2 and says in done.err and "record:" not in done.out
    assert "Traceback" not in done.err


def test_a_training_that_diverges_is_a_failed_point(typed: Callable, options: list[str]) -> None:
    done = typed(*options, "recovery=kept_weights", *but(TINY, "recovery.lr=1e30"))
    assert done.status == 1 and "Traceback" not in done.err
    assert done.record["reason"].startswith("the recovery 'kept_weights' diverged at every learning rate (step ")


def prepared(*overrides: str) -> tuple[str, str]:
    cfg = compose.compose_run(overrides)
    ready = prepare(cfg)
    return ready.fingerprint, request_key(ready.config).what


def test_what_is_trained_is_part_of_identity_and_how_memory_is_saved_is_not(options: list[str]) -> None:
    compose.register()
    base = [*options, "recovery=lora"]
    first = prepared(*base)
    assert prepared(*base, "recovery.checkpointing=true") == first
    changes = ("text=embedded-b", "tokens=5", "lr=[1e-3]", "length=16", "weight_decay=0.1")
    for change in (*(f"recovery.{one}" for one in changes), "seed=1"):
        other = prepared(*base, change)
        assert other[0] != first[0] and other[1] != first[1], change
    spelt_out = prepared(*base, "recovery.text=embedded-a", "recovery.length=32")
    assert spelt_out[0] == first[0]  # the calibration's


@pytest.mark.parametrize("study", ["harness_allocators", "harness_embedded", "wanda_table2"])
def test_published_records_keep_their_fingerprints(study: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery or a conversion that is none is not part of what was computed before there were any."""
    compose.register()
    monkeypatch.chdir(ROOT)
    published = list(schema.unpack(ROOT / "results" / "published" / study / "embedded" / schema.PACKED))
    records = published[:: max(1, len(published) // 3)]
    assert len(records) >= 3
    for record in records:
        assert record.config["device"] == "cpu"
        cfg = compose.typed({**compose.compose_plain([]), **record.config}, frozen=True)
        assert prepare(cfg).fingerprint == record.fingerprint
        assert request_key(cfg.composed).what == request_key(record.config).what


def test_points_of_a_sweep_are_as_each_alone(typed: Callable, options: list[str], tmp_path: Path) -> None:
    typed("-m", *options, "method=none,wanda", "recovery=lora", "recovery.tokens=256,512")
    alone = but(options, f"records={tmp_path / 'alone'}")
    swept = [json.loads(path.read_text()) for path in sorted((tmp_path / "records").glob("*.json"))]
    assert len(swept) == 4
    for record in swept:
        single = typed(
            *alone,
            f"method={record['config']['method']['name']}",
            "recovery=lora",
            f"recovery.tokens={record['config']['recovery']['tokens']}",
        ).record
        for part in ("measures", "sites", "recovery", "fingerprint"):
            assert single[part] == record[part], part


CONVERSION = """
import dataclasses
from dataclasses import dataclass
from transformers import LlamaForCausalLM
from harness.catalogue import component


class Doubled(LlamaForCausalLM):
    def forward(self, *given, **named):
        output = super().forward(*given, **named)
        output.logits = 2 * output.logits
        return output


@component("conversion", "doubled")
@dataclass(frozen=True)
class Doubles:
    broken: bool = False
    needs_calibration = False

    def convert(self, decoder, view):
        assert len(view.scope) == 2 and view.generator.random() < 1
        model = Doubled(decoder.model.config).to(decoder.model.dtype).eval().requires_grad_(False)
        model.load_state_dict(decoder.model.state_dict())
        return None if self.broken else dataclasses.replace(decoder, model=model)
"""


def test_a_conversion_may_change_the_models_class(
    typed: Callable, options: list[str], tiny: Path, tmp_path: Path
) -> None:
    """Logits twice as large, before and after pruning and recovery; the dense model of the next point is as it was."""
    (tmp_path / "doubled.py").write_text(CONVERSION)
    plugin = f"plugins={tmp_path / 'doubled.py'}"
    plain = typed(*options, "method=none").record
    made = typed(*options, plugin, "method=none", "conversion=doubled").record
    assert made["measures"][0]["value"] != plain["measures"][0]["value"]
    assert made["sites"] == plain["sites"] and made["fingerprint"] != plain["fingerprint"]
    assert made["config"]["conversion"]["name"] == "doubled" and "convert" in made["stages"]
    model = AutoModelForCausalLM.from_pretrained(tiny).eval()
    tokens = evaluation_windows("embedded-a", "test", AutoTokenizer.from_pretrained(tiny), 32, documents=None, limit=2)
    with torch.no_grad():
        logits = 2 * model(tokens).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert made["measures"][0]["value"] == pytest.approx(float(losses.exp()), rel=1e-5)
    pruned = typed(*options, plugin, "conversion=doubled", "recovery=kept_weights", *TINY).record
    assert pruned["sparsity"]["achieved"] == 0.5
    assert pruned["recovery"]["loss"]["after"] < pruned["recovery"]["loss"]["before"]
    broken = typed(*options, plugin, "conversion=doubled", "conversion.broken=true")
    assert broken.status == 1
    assert broken.record["reason"] == "the conversion 'doubled' returned None, where a Decoder is due."
    assert typed(*options, plugin, "conversion=doubled", "offload=on").status == 2


def test_a_conversion_is_part_of_the_question(typed: Callable, options: list[str]) -> None:
    config = typed(*options, "method=none").record["config"]
    older = {key: value for key, value in config.items() if key != "conversion"}
    other = config | {"conversion": {"name": "x"}}
    assert request_key(older) == request_key(config) != request_key(other)
    assert request_key(other) != request_key(other | {"seed": 7})
