"""Whatever a user gets wrong: one sentence, exit status 2, no traceback, no record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.commands import Typed, save_tiny

SIMPLE = {
    "methodd=wanda": "did you mean method",
    "method=wandaa": "did you mean wanda",
    "allocator=owll": "did you mean owl",
    "model=lama-7b": "did you mean llama-7b",
    "method.grup=row": "did you mean group",
    "calibration.lenght=8": "did you mean length",
    "method.group=column": "known: matrix, row",
    "evaluation=[wikitext]": "did you mean wikitext2",
    "sparsity=1.2": "below 1",
    "sparsity=-0.1": "at least 0",
    "sparsity=5of4": "0 < N <= M",
    "sparsity=many": "neither a fraction",
    "sparsity=3of5": "not divisible by 5",
    "scope=1-0": "does not fit",
    "scope=0-9": "the blocks 0-1",
    "scope=half": "first_half",
    "seed=x": "whole number",
    "device=tpu": "none of auto, cpu, cuda",
    "dtype=int8": "known: auto, bfloat16, float16, float32",
    "evaluation_window=128": "longer than the model's context of 64",
    "calibration.length=128": "longer than the model's context",
    "calibration.windows=0": "at least 1",
    "calibration.windows=1000000000": "GiB",
    "evaluation_limit=0": "at least 1",
    "calibration=c4-sample": "HARNESS_ASSETS",
    "plugins=/nowhere/x.py": "no such file",
    "allocator.spread=wide": "spread",
    "model.path=/nowhere": "does not exist",
    "sparsity=0.5,0.6": "add -m",
    "tracker=wandb": "wandb login",
    "study=sparsellm_table9": "did you mean sparsellm_table2",
    "dtype=": "dtype",
    "method=null": "method=null: a choice has to be a name",
    "force=banana": "has to be true or false",
    "model.trust_remote_code=no": "has to be true or false",
    "calibration.split=[a]": "unknown split",
    "++calibration.foo=1": "unknown setting of calibration: 'foo'",
    "++tracker.foo=1": "unknown setting of tracker: 'foo'",
    "allocator.levels=[1,2]": "needs a pattern",
    "evaluation.embedded-a.foo=1": "known: corpus, documents, split, windows",
    "~study": "leave study= out for a single run",
    "++method.name=[1]": "method=[1]: method takes one choice",
    "++model.name=null": "becomes part of file names",
    "hydra/launcher=joblib": "how points are run is chosen by cluster=gpus, joblib, local, ray, slurm",
    "~seed": "~seed takes away what a command needs; write seed=<value>",
    "~plugins": "~plugins takes away what a command needs",
    "~method": "~method takes away what a command needs; method=none leaves a model dense",
    "~model": "~model takes away what a command needs",
    "~model.window": "~model.window takes away",
    "~evaluation": "evaluation=[] evaluates nothing",
    "~evaluation.embedded-a.name": "~evaluation.embedded-a.name takes away",
    "evaluation.embedded-a=3": "evaluation.embedded-a=3 has to be settings with a name, which is one of perplexity,",
    "evaluation.embedded-a=null": "evaluation.embedded-a=None has to be settings with a name",
    "+evaluation.x=3": "evaluation.x=3 has to be settings with a name",
    "+evaluation.x={name:perplexity}": "lacks corpus: give it by evaluation.x.corpus=<value>",
    "evaluation=[[embedded-a]]": "evaluation=[[embedded-a]]: a choice has to be a name; evaluation=[] evaluates",
    "evaluation={nope:{windows:3}}": "unknown setting of evaluation: 'nope'",
    "evaluation.embedded-a.windows=x": "evaluation.embedded-a.windows=x has to be of type int",
    "tracker.name=foo": "unknown tracker 'foo'; known: csv, wandb, wandb-offline",
    "++tracker.project=[1]": "tracker.project=[1] has to be a text",
    "model.revision=[1]": "model.revision=[1] has to be a text",
    "model.revision=3": "a number within quotes",
    "+model.foo=1": "unknown setting of model: 'foo'; known: geometry, name, path",
    "model={foo:1}": "unknown setting of model: 'foo'; known: geometry, path",
    "model.geometry=3": "model.geometry=3 has to be settings",
    "study=null": "study=null names no study: leave it out for a single run",
    "+study=owl_table3": "study= has to be a name, without + in front",
    "calibration=true": "calibration=true: a choice has to be a name; known: c4",
    "cache_gib=1e400": "cache_gib=inf has to be a number",
    "--config-name=nope": "--config-name=nope: the configuration is the harness's own",
    "--config-path=/etc": "the configuration is the harness's own",
    "--config-dir=/nope": "the configuration is the harness's own",
    "--config-n=nope": "the configuration is the harness's own",
    "-cn=nope": "the configuration is the harness's own",
    "--experimental-rerun=x": "the configuration is the harness's own",
    "--resolve": "--resolve needs --cfg",
    "--package=x": "--package needs --cfg",
    "--shell-completion": "completion bash (or zsh) prints the script",
    "-sc": "-sc: python -m harness completion bash",
    "hydra.job.chdir=true": "of Hydra's own settings only those of a launcher",
    "hydra.run.dir=/proc/nope": "of Hydra's own settings only those of a launcher",
    "model=[embedded-llama,embedded-opt]": "model takes one choice; -m model=embedded-llama,embedded-opt makes a sweep",
    "save=true": "save=true has to be a folder's name",
    "save=": "save= has to be a folder's name",
    "records=true": "records=true has to be a folder's name",
    "records=[a]": "has to be a folder's name",
    "cache=5": "cache=5 has to be a folder's name (within quotes if it is a number)",
    "sparsity=true": "sparsity=True is neither a fraction",
    "seed=null": "seed=null has to be a whole number",
    "seed=true": "seed=true has to be a whole number",
    "seed=1000000000000000000000000000000": "whole numbers go up to",
    "sparsity=1e-400": "too small a number",
    "offload=[]": "unknown value of offload: '[]'",
    "dtype=true": "unknown value of dtype: 'true'",
    "scope=0-99999999999": "is none of all, first_half",
    "calibration.windows=null": "calibration.windows=null has to be a whole number",
    "calibration.windows=true": "calibration.windows=true has to be a whole number",
    "evaluation.embedded-a.windows=0": "windows=0 has to be at least 1, or null for all",
    "evaluation.embedded-a.windows=-1": "windows=-1 has to be at least 1, or null for all",
    "evaluation.embedded-a.documents=0": "documents=0 has to be at least 1, or null for all",
    "model=${hydra:job.num}": "cannot be read",
    f"model.path={'x' * 300}": "cannot be looked at: File name too long",
    "plugins=5": "plugins=5 has to be modules or",
    "calibration=[]": "calibration=[]: calibration takes one choice, not an empty list; known: c4",
    "save_form=sliced": "save_form=sliced says how a model is saved, and none is: add save=<folder>",
}


def said(done: Typed, expected: str, records: Path) -> None:
    assert done.status == 2, done
    lines = done.err.strip().splitlines()
    assert len(lines) == 1, done.err
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert not list(records.glob("*.json")) if records.is_dir() else True


@pytest.mark.parametrize("override", SIMPLE)
def test_an_override(
    override: str, typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARNESS_ASSETS", raising=False)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    choice = override.split("=")[0]
    rest = [text for text in options if text.split("=")[0] not in (choice, f"{choice}.path", f"{choice}.length")]
    if override.startswith(("model=", "evaluation=")):
        rest = [text for text in rest if not text.startswith(("model", "evaluation"))]
    if override.startswith("allocator."):
        rest.append("allocator=owl")
    said(typed(*rest, override), SIMPLE[override], tmp_path / "records")


def test_model_hf_without_a_path(typed: Callable, tmp_path: Path) -> None:
    said(typed("model=hf", f"records={tmp_path}"), "model.path=", tmp_path)


def test_every_point_is_checked_before_the_first(typed: Callable, options: list[str], tmp_path: Path) -> None:
    done = typed("-m", *options, "sparsity=0.5,1.5")
    said(done, "at the point", tmp_path / "records")


def test_flags_of_hydra(typed: Callable, options: list[str], tmp_path: Path) -> None:
    said(typed(*options, "--no-such-flag"), "unrecognized arguments: --no-such-flag", tmp_path / "records")
    said(typed(*options, "-m", "--cfg", "job"), "only one of", tmp_path / "records")
    assert typed(*options[:3], "-m", *options[3:], "method=none").status == 0  # anywhere among the overrides


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("--cfg=job study=owl_table3", "python -m harness plan study=owl_table3"),
        ("--info=defaults study=owl_table3", "one run, not a study"),
        ("--info=config methodd=wanda", "did you mean method"),
        ("--cfg=job --resolve seed=${none}", "cannot be resolved"),
        ("plan study=owl_table3 --config-name=nope", "the configuration is the harness's own"),
        ("plan study=owl_table3 ~model", "takes away what a command needs"),
        ("plan study=owl_table3 tracker.name=foo", "unknown tracker 'foo'"),
        ("planner=block_influence planner.amount=0", "planner.amount=0 takes nothing away; planner=none leaves"),
        ("recovery=lora recovery.lr=[]", "recovery.lr=[] has to be a positive learning rate or a list"),
        ("method=sparsellm method.inner=3", "method.inner=3: method.inner is one method, given by its name: admm, "),
        ("evaluation=[embedded-b] evaluation.embedded-a.windows=1", "evaluation does not name embedded-a; add it, or"),
        ("evaluation=[embedded-a,embedded-a]", "evaluation names embedded-a twice; name it once."),
        ("allocator=msp allocator.pruner={foo:1}", "unknown setting of allocator.pruner: 'foo'; known: blocksize"),
    ],
)
def test_several_arguments(arguments: str, expected: str, typed: Callable, tmp_path: Path) -> None:
    said(typed(*arguments.split(), f"records={tmp_path}"), expected, tmp_path)


def test_unwritable_records(typed: Callable, options: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rest = [text for text in options if not text.startswith("records")]
    said(typed(*rest, f"records={tmp_path / 'file' / 'records'}"), "cannot be written", tmp_path)
    said(typed(*rest, f"records={tmp_path / 'file'}"), "is not a folder; choose another.", tmp_path)


def test_checkpoints_that_cannot_be_used(typed: Callable, options: list[str], tiny: Path, tmp_path: Path) -> None:
    def with_model(folder: Path) -> list[str]:
        return [f"model.path={folder}" if text.startswith("model.path") else text for text in options]

    def copy(name: str) -> Path:
        return Path(shutil.copytree(tiny, tmp_path / name))

    empty = copy("empty")
    (empty / "model.safetensors").unlink()
    said(typed(*with_model(empty)), "holds no weights", tmp_path / "records")
    (empty / "pytorch_model.bin").write_bytes(b"x")
    said(typed(*with_model(empty)), "pickle weights only", tmp_path / "records")
    remote = copy("remote")
    config = json.loads((remote / "config.json").read_text())
    (remote / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "m.M"}}))
    said(typed(*with_model(remote)), "trust_remote_code=true", tmp_path / "records")
    sick = copy("sick")
    tensors = load_file(sick / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][3, 3] = torch.nan
    save_file(tensors, sick / "model.safetensors", metadata={"format": "pt"})
    said(typed(*with_model(sick)), "not finite", tmp_path / "records")
    torn = copy("torn")
    (torn / "model.safetensors").rename(torn / "part-1.safetensors")
    (torn / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part-2.safetensors"}}))
    said(typed(*with_model(torn)), "lacks part-2.safetensors", tmp_path / "records")
    corrupt = copy("corrupt")
    (corrupt / "model.safetensors").write_bytes(b"not a checkpoint")
    said(typed(*with_model(corrupt)), "is not a safetensors file, or not whole", tmp_path / "records")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from harness.catalogue import component\n@component('methd', 'x')\nclass X: ...", "not 'methd'"),
        ("from harness.catalogue import component\n@component('method', 'x')\nclass X: ...", "X is no dataclass"),
        ("import sys; sys.exit(3)", "SystemExit"),
    ],
)
def test_plugins_that_cannot_be_used(
    source: str, expected: str, typed: Callable, options: list[str], tmp_path: Path
) -> None:
    (tmp_path / "p.py").write_text(source)
    said(typed(*options, f"plugins={tmp_path / 'p.py'}"), expected, tmp_path / "records")


def test_saves_that_would_spoil_something(typed: Callable, options: list[str], tiny: Path, tmp_path: Path) -> None:
    said(typed(*options, f"save={tiny}"), "is the folder of the dense model", tmp_path / "records")
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "model.safetensors").write_text("mine")
    said(typed(*options, f"save={tmp_path / 'notes'}"), "holds files that no run saved there", tmp_path / "records")
    assert (tmp_path / "notes" / "model.safetensors").read_text() == "mine"
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    for name in ("itself", "x" * 300):
        said(typed(*options, f"save={tmp_path / name}"), "choose another folder.", tmp_path / "records")
    both = typed("-m", *options, "seed=0,1", f"save={tmp_path / 'out'}")
    said(both, "several points would save to one folder", tmp_path / "records")


def test_no_document_is_long_enough(typed: Callable, options: list[str], tmp_path: Path) -> None:
    long = save_tiny(tmp_path / "long", max_position_embeddings=100_000)
    rest = [text for text in options if not text.startswith(("model.path", "calibration.length"))]
    done = typed(*rest, f"model.path={long}", "calibration.length=8000")
    said(done, "none of its", tmp_path / "records")


def test_a_corrupt_data_file(
    typed: Callable, options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data" / "ptb").mkdir(parents=True)
    (tmp_path / "data" / "ptb" / "ptb.test.txt").write_text("not the treebank\n")
    monkeypatch.setenv("HARNESS_ASSETS", str(tmp_path))
    rest = [text for text in options if not text.startswith("evaluation=")]
    said(typed(*rest, "evaluation=[ptb]"), "sha256", tmp_path / "records")
