"""The runner of the authors' codes, on a small program written as theirs are; and what holds a sweep to theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.speed.authors import Order, Rows, digest
from benchmarks.speed.points import Given, Point, Side, points
from benchmarks.speed.pointwise import Setting, breakdown, command, compare, with_defaults
from harness.core.places import ROOT
from harness.data.corpora import EMBEDDED, read_text
from harness.data.windows import Calibration, calibration_windows

MAIN = """
import argparse
import datasets
import torch
import weightwatcher
from accelerate import Accelerator, DistributedType
from accelerate.logging import get_logger
from huggingface_hub import Repository, create_repo
from importlib.metadata import version
from lib.eval import eval_ppl
from lib.prune import check_sparsity
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaTokenizer
from transformers.utils import get_full_repo_name, send_example_telemetry
from transformers.utils.versions import require_version

logger = get_logger(__name__)
require_version("datasets>=1.8.0")
version("accelerate")
parser = argparse.ArgumentParser()
parser.add_argument("--model")
name = parser.parse_args().model
model = AutoModelForCausalLM.from_pretrained(
    name, torch_dtype=torch.float16, cache_dir="x", low_cpu_mem_usage=True, device_map="auto"
)
model.seqlen = 2048
tokenizer = LlamaTokenizer.from_pretrained(name, use_fast=False)
assert type(tokenizer) is type(AutoTokenizer.from_pretrained(name))
assert "model.embed_tokens" in model.hf_device_map
device = torch.device("cuda:0")
with torch.no_grad():
    model.model.layers[0](
        torch.zeros(1, 8, model.config.hidden_size), attention_mask=None, position_ids=torch.arange(8)[None]
    )
check_sparsity(model)
eval_ppl(model, tokenizer, device)
"""
DATA = """
import random
from datasets import load_dataset

class Encoded:
    pass

def get_loaders(name, nsamples=3, seed=0, seqlen=2048, tokenizer=None):
    random.seed(seed)
    if "wikitext2" in name:
        encoded = Encoded()
        text = load_dataset("wikitext", "wikitext-2-raw-v1", split="test")
        encoded.input_ids = tokenizer(" ".join(text["text"]), return_tensors="pt").input_ids
        return None, encoded
    text = load_dataset("allenai/c4", data_files={}, split="train")
    drawn = []
    for _ in range(nsamples):
        while True:
            ids = tokenizer(text[random.randint(0, len(text) - 1)]["text"], return_tensors="pt").input_ids
            if ids.shape[1] > seqlen:
                break
        start = random.randint(0, ids.shape[1] - seqlen - 1)
        drawn.append((ids[:, start : start + seqlen], None))
    return drawn, None
"""
EVAL = """
import torch
from .data import get_loaders

def eval_ppl(model, tokenizer, device):
    get_loaders("c4", seqlen=2048, tokenizer=tokenizer)
    _, test = get_loaders("wikitext2", seqlen=model.seqlen, tokenizer=tokenizer)
    torch.cuda.synchronize()
    with torch.no_grad():
        logits = model(test.input_ids[:, : model.seqlen].to(device)).logits
    return float(test.input_ids.numel()) if logits.isfinite().all() else None
"""
PRUNE = """
def check_sparsity(model):
    return float((model.model.layers[0].mlp.up_proj.weight == 0).float().mean())
"""


def test_a_program_like_theirs_runs_on_our_texts(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    (clone / "lib").mkdir(parents=True)
    (clone / "main.py").write_text(MAIN)
    for name, text in {"data": DATA, "eval": EVAL, "prune": PRUNE}.items():
        (clone / "lib" / f"{name}.py").write_text(text)
    (tmp_path / "llama").symlink_to(EMBEDDED / "embedded-llama")
    texts = {"c4 train": ["embedded-a", "train"], "wikitext test": ["embedded-b", "test"]}
    order = Order(str(tmp_path), texts, length=64, limit=2, dtype="float32")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "benchmarks.speed.authors",
            clone,
            json.dumps(order._asdict()),
            "--",
            "--model",
            "llama",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["perplexity"] == 2 * 64
    assert told["sparsity"] == 0.0
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "embedded-llama")
    assert told["tokens"]["calibration"] == digest(calibration_windows(Calibration("embedded-a", 3), tokenizer, 64))


def test_rows_read_as_a_dataset() -> None:
    rows = Rows(read_text("embedded-a", "test").rows)
    assert rows[1]["text"] == rows["text"][1] == rows[:2]["text"][1]
    assert len(rows) == len(rows["text"])


def test_each_point_has_its_program(tmp_path: Path) -> None:
    common = Setting(tmp_path, Order("", {}, 2048), 128, 0, {})
    clone, arguments = command(Point(0.7, "wanda", "owl"), common)
    assert clone == tmp_path / "OWL"
    assert arguments[arguments.index("--prune_method") + 1] == "wanda_owl"
    assert command(Point(0.7, "magnitude", "alphapruning"), common)[1][3] == "magnitude_ww"
    assert "opt" not in arguments[1]


def test_defaults_give_way() -> None:
    assert with_defaults(["dtype=float32"]) == ["calibration=c4-sample", "evaluation=[wikitext2]", "dtype=float32"]


def side(factor: float = 1.0, zeros: float = 0.6) -> Side:
    given = {point.name: Given([100 * factor], zeros, 2.0) for point in points([0.6])}
    return Side(18.0, 9.0, given, once=(1.0, 0.5))


def test_what_is_computed_once_is_counted_once() -> None:
    assert side().counted_up(7) == (17 * 7 + 1, 8.5 * 7 + 0.5)
    assert side().plus(side()).once == (2.0, 1.0)


@pytest.mark.parametrize("other", [side(1.01), side(zeros=0.61), side(float("nan"))])
def test_another_computation_gives_no_ratio(other: Side) -> None:
    with pytest.raises(SystemExit, match="method=wanda allocator=uniform"):
        compare(other, side(), points([0.6]))


def test_small_differences_are_told_by_allocator() -> None:
    worst = compare(side(1.004), side(), points([0.6]))
    assert worst == pytest.approx(dict.fromkeys(("uniform", "owl", "alphapruning"), 0.004))


def test_the_metric_is_no_part_of_the_mean_of_a_point() -> None:
    lines = breakdown(side(), side(), points([0.6]))
    assert "| magnitude | uniform | 2.00 | 2.00 | 1.00 |" in lines
    assert "| magnitude | alphapruning | 2.00 | 1.00 | 0.50 |" in lines  # of 2 s, 1 s was the metric's


def test_a_digest_is_of_the_tokens_not_of_their_shape() -> None:
    assert digest(torch.arange(6).reshape(2, 3)) == digest(torch.arange(6)[None])
