"""From a name to a folder whose files were looked at: local folders first, then the hub; safetensors only."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.models.anatomy import FAMILIES, no_layout
from harness.models.packaged import PACKAGED, packaged_folder
from harness.models.sliced import unsliced
from harness.models.weights import INDEX, SINGLE, Tensor, file_hash, read_headers, read_json, weight_files
from harness.runtime.errors import UserError
from harness.runtime.files import at_home, is_there
from harness.runtime.hub import asking, why_nothing

ASSETS = "assets:"
"""Opens the path of a model below `HARNESS_ASSETS`."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
ADAPTER = "adapter_config.json"
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
READ = {Path(pattern).suffix for pattern in HUB_PATTERNS}
HUB_COPIES = ["original/*", "consolidated*"]
"""The same weights in another layout, which transformers does not read."""
SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "ffn_dim", "vocab_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
"""Entries of `config.json` that are counted with, where they are given."""
BLOCKS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""Names under which families keep the number of their blocks."""
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
NOT_ARCHITECTURE = (
    *("transformers_version", "_name_or_path", "dtype", "torch_dtype"),
    *("attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation"),
)
"""Entries of `config.json` that do not decide what is computed: the dtype and the attention are the run's."""


@dataclass(frozen=True)
class ModelChoice:
    """A checkpoint's entry in `conf/model`; `path` is a folder or a hub id, already resolved for local names."""

    name: str
    path: str
    revision: str | None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class InMemory:
    """A model that was not loaded from files here: bytes of its weights, and the hashes that stand for its files."""

    size: int
    weights_sha256: str
    tokenizer: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A model folder on disk whose files were looked at, not yet loaded."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    revision: str | None
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    """Headers of the weight files, by the tensor's name."""
    memory: InMemory | None = None
    """Stand-in for the files of a model that a caller has in memory."""

    @property
    def sizes(self) -> dict[str, Any]:
        """The configuration with sizes by the names that most families have."""
        layout = FAMILIES.get(str(self.config.get("model_type")))
        return dict(self.config) if layout is None else layout.standard(self.config)

    @property
    def context(self) -> int:
        """The longest window the model takes."""
        return int(self.sizes.get("max_position_embeddings") or 2048)

    @property
    def blocks(self) -> int | None:
        """How many blocks the model has; None where its configuration calls that by a name unknown here."""
        return None if self.blocks_key is None else int(self.config[self.blocks_key])

    @property
    def blocks_key(self) -> str | None:
        """The name under which the configuration has that number."""
        return next((name for name in BLOCKS if isinstance(self.config.get(name), int)), None)

    @property
    def stored_dtype(self) -> str:
        """The dtype that the configuration names; float32 where it names none."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return self.memory.size if self.memory else sum(path.stat().st_size for path in self.weights)


def find_checkpoint(choice: ModelChoice) -> Checkpoint:
    """The folder of a model, checked for a configuration and safetensors weights, whose headers are read.

    Raises:
        UserError: no such folder and no such hub model (or no network), no weights, pickle weights, quantized weights,
            files that disagree, remote code.
    """
    if not choice.path:
        raise UserError("model=hf needs model.path=<hub id or folder>.")
    if choice.path.startswith(ASSETS):
        raise UserError(f"model={choice.name} is a local model: set HARNESS_ASSETS to the folder that holds it.")
    folder, revision = at_home(choice.path), choice.revision
    if choice.path.startswith(PACKAGED):
        folder = packaged_folder(choice.path, file_hash)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"the model path {choice.path} of model={choice.name} is not a folder.")
        if choice.path.startswith(("/", ".", "~")) or choice.path.count("/") != 1:
            raise UserError(f"the model folder {choice.path} of model={choice.name} does not exist.")
        folder, revision = _from_hub(choice)
    for path in sorted(folder.iterdir()):
        if path.suffix in READ:
            is_there(path)  # or refused: whoever reads a pipe waits for ever
    config = _read_config(folder)
    _check_config(folder, config, choice)
    weights = weight_files(folder, config)
    if not weights and any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise UserError(f"{choice.path} holds pickle weights only, which are refused; convert them to safetensors.")
    if not weights:
        raise UserError(f"{choice.path} holds no weights ({SINGLE} or {INDEX}).")
    found = Checkpoint(folder, config, weights, revision, read_headers(folder, weights))
    check_blocks(found)
    return found


def _from_hub(choice: ModelChoice) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    try:
        with asking(f"the model {choice.path}"):
            folder = snapshot_download(
                choice.path,
                revision=choice.revision,
                allow_patterns=[*HUB_PATTERNS, "*.py"] if choice.trust_remote_code else HUB_PATTERNS,
                ignore_patterns=HUB_COPIES,
            )
    except Exception as error:
        raise UserError(
            f"the model {choice.path} is neither a local folder nor to be had from the hub ({why_nothing(error)}); "
            f"on a machine with a network run: python -m harness prefetch model={choice.name}"
            + (f" model.path={choice.path}" if choice.name == "hf" else "")
        ) from error
    return Path(folder), Path(folder).name


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not is_there(path):
        raise UserError(f"the model folder {folder} has no config.json.")
    config = unsliced(read_json(path), path)
    for name in SIZES:
        size = config.get(name)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise UserError(f"{path} has no whole number above 0 for {name}.")
    return config


def _check_config(folder: Path, config: Mapping[str, Any], choice: ModelChoice) -> None:
    """Refuse what is not one plain model of whole weights."""
    where = folder / "config.json"
    if any(part.get("auto_map") for part in _parts(config)) and not choice.trust_remote_code:
        raise UserError(
            f"the checkpoint {choice.path} needs code from its own repository; "
            "add model.trust_remote_code=true if you trust it."
        )
    for part in _parts(config):
        for key, declared in part.items():
            if isinstance(declared, float) and not math.isfinite(declared):
                raise UserError(f"{where} has {key}={declared}, which is not a finite number.")
            if key.endswith(("_eps", "_epsilon")) and isinstance(declared, int | float) and declared < 0:
                raise UserError(f"{where} has {key}={declared}, which has to be at least 0.")
            if key.endswith(("quantization_config", "compression_config")) and declared:
                how = declared.get("quant_method") if isinstance(declared, Mapping) else None
                raise UserError(
                    f"{where} declares quantized weights ({key}{f', {how}' if how else ''}): quantized "
                    "checkpoints are not pruned; dequantize it first, to float32, bfloat16 or float16."
                )
    if is_there(folder / ADAPTER):
        raise UserError(f"{folder} holds an adapter ({ADAPTER}); merge it into the weights first.")
    families = [part["model_type"] for part in _parts(config) if isinstance(part.get("model_type"), str)]
    if choice.trust_remote_code:
        return
    if not families:
        raise UserError(f"{where} names no model_type.")
    if not any(family in FAMILIES for family in families):
        raise no_layout(families[0])


def _parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those inside it."""
    yield config
    for value in config.values():
        if isinstance(value, Mapping):
            yield from _parts(value)


def weights_hash(checkpoint: Checkpoint) -> str:
    """sha256 over the sha256 of every weight file, in order of name; one file's own hash if there is one."""
    if checkpoint.memory:
        return checkpoint.memory.weights_sha256
    hashes = [file_hash(path) for path in checkpoint.weights]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    """Settings of `config.json` for the computation: equal weights under another norm's epsilon are another model.

    A checkpoint with code of its own has the hashes of that code too.
    """
    said = {key: value for key, value in checkpoint.config.items() if key not in NOT_ARCHITECTURE}
    if "auto_map" not in said:
        return said
    return {**said, "code": {path.name: file_hash(path) for path in sorted(checkpoint.folder.glob("*.py"))}}


def tokenizer_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """File name → sha256 of every file that decides the tokens."""
    if checkpoint.memory:
        return dict(checkpoint.memory.tokenizer)
    return tokenizer_files(checkpoint.folder)


def tokenizer_files(folder: Path) -> dict[str, str]:
    """The same of the files in a folder."""
    found = {path.name: path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)}
    return {name: file_hash(path) for name, path in sorted(found.items()) if path.is_file()}


INSIDE = "model."
"""The prefix of a decoder's names inside the model with a head; some checkpoints leave it out."""


def check_blocks(checkpoint: Checkpoint) -> None:
    """Compare the blocks that the files hold with those that the configuration counts, before anything is loaded.

    Raises:
        UserError: there are more, or fewer.
    """
    layout = FAMILIES.get(str(checkpoint.config.get("model_type")))
    if layout is None or checkpoint.blocks is None:
        return
    path = re.escape(layout.blocks.removeprefix(INSIDE))
    found: dict[int, str] = {}
    for name in checkpoint.tensors:
        if match := re.match(rf"(?:{re.escape(INSIDE)})?{path}\.(\d{{1,9}})\.", name):
            found.setdefault(int(match[1]), name)
    counted, where = checkpoint.blocks, checkpoint.folder / "config.json"
    if beyond := sorted(index for index in found if index >= counted):
        raise UserError(
            f"the weights of {checkpoint.folder} hold block {beyond[0]} ({found[beyond[0]]}), {where} counts {counted} "
            f"blocks: set {checkpoint.blocks_key}={beyond[-1] + 1} there, or delete the tensors of the blocks left out."
        )
    if found and len(found) < counted:
        lacking = next(index for index in range(counted) if index not in found)
        raise UserError(f"the weights of {checkpoint.folder} lack block {lacking}; {where} counts {counted} blocks.")
