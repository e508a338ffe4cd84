"""From a name to a model in memory: local folders first, then the hub; safetensors only."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast
from weakref import WeakSet

import torch

from harness.core.errors import UserError
from harness.core.memory import free_on_gpu
from harness.models.anatomy import Anatomy, anatomy_of
from harness.models.packaged import PACKAGED, packaged_folder
from harness.models.placement import Placement, Where, place

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ASSETS = "assets:"
"""Opens the path of a model below `HARNESS_ASSETS`."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
HUB_PATTERNS = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
HUB_COPIES = ["original/*", "consolidated*"]
"""The same weights in another layout, which transformers does not read."""
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SIZES = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "ffn_dim", "vocab_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "max_position_embeddings"),
)
"""Entries of `config.json` that are counted with, where they are given."""
TOKENIZER_FILES = ("tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "*.model")
NOT_ARCHITECTURE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
"""Entries of `config.json` that do not decide what is computed; the dtype of a run is an option of its own."""


@dataclass(frozen=True)
class ModelChoice:
    """What `conf/model` says of a checkpoint; `path` is a folder or a hub id, already resolved for local names."""

    name: str
    path: str
    revision: str | None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Checkpoint:
    """A model folder on disk whose files were looked at, not yet loaded."""

    folder: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    revision: str | None

    @property
    def context(self) -> int:
        """The longest window the model takes."""
        return int(self.config.get("max_position_embeddings") or 2048)

    @property
    def stored_dtype(self) -> str:
        """The dtype that the configuration names; float32 where it names none."""
        return str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")

    @property
    def size(self) -> int:
        """Bytes of the weight files."""
        return sum(path.stat().st_size for path in self.weights)


def find_checkpoint(choice: ModelChoice) -> Checkpoint:
    """The folder of a model, checked for a configuration and safetensors weights.

    Raises:
        UserError: no such folder and no such hub model (or no network), no weights, pickle weights, remote code.
    """
    if not choice.path:
        raise UserError("model=hf needs model.path=<hub id or folder>.")
    if choice.path.startswith(ASSETS):
        raise UserError(f"model={choice.name} is a local model: set HARNESS_ASSETS to the folder that holds it.")
    folder, revision = Path(choice.path).expanduser(), choice.revision
    if choice.path.startswith(PACKAGED):
        folder = packaged_folder(choice.path, file_hash)
    if not folder.is_dir():
        if choice.path.startswith(("/", ".", "~")) or choice.path.count("/") != 1:
            raise UserError(f"the model folder {choice.path} of model={choice.name} does not exist.")
        folder, revision = _from_hub(choice)
    config = _read_config(folder)
    if config.get("auto_map") and not choice.trust_remote_code:
        raise UserError(
            f"the checkpoint {choice.path} needs code from its own repository; "
            "add model.trust_remote_code=true if you trust it."
        )
    weights = _weight_files(folder, config)
    if not weights and any(next(folder.glob(pattern), None) for pattern in PICKLES):
        raise UserError(f"{choice.path} holds pickle weights only, which are refused; convert them to safetensors.")
    if not weights:
        raise UserError(f"{choice.path} holds no weights ({SINGLE} or {INDEX}).")
    return Checkpoint(folder, config, weights, revision)


def _weight_files(folder: Path, config: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files that transformers loads, in its order of preference: the single file, or those of the index."""
    if named := config.get("transformers_weights"):
        raise UserError(f"{folder / 'config.json'} names its weights itself ({named}); call them {SINGLE} or {INDEX}.")
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if not (folder / INDEX).is_file():
        return ()
    places = _read_json(folder / INDEX).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    if not names or any(Path(name).name != name for name in names):
        raise UserError(f"{folder / INDEX} does not map weights to files beside it.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder} lacks {missing[0]}, which its {INDEX} names.")
    return tuple(folder / name for name in names)


def _from_hub(choice: ModelChoice) -> tuple[Path, str | None]:
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            choice.path,
            revision=choice.revision,
            allow_patterns=[*HUB_PATTERNS, "*.py"] if choice.trust_remote_code else HUB_PATTERNS,
            ignore_patterns=HUB_COPIES,
        )
    except Exception as error:
        raise UserError(
            f"the model {choice.path} is neither a local folder nor to be had from the hub ({type(error).__name__}); "
            f"on a machine with a network run: python -m harness prefetch model={choice.name}"
            + (f" model.path={choice.path}" if choice.name == "hf" else "")
        ) from error
    return Path(folder), Path(folder).name


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"the model folder {folder} has no config.json.")
    config = _read_json(path)
    for name in SIZES:
        size = config.get(name)
        if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 1):
            raise UserError(f"{path} has no whole number above 0 for {name}.")
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except RecursionError:
        raise UserError(f"{path} is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


@lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file; read once per process while size and time stay the same."""
    status = path.stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)


def weights_hash(checkpoint: Checkpoint) -> str:
    """sha256 over the sha256 of every weight file, in order of name; one file's own hash if there is one."""
    hashes = [file_hash(path) for path in checkpoint.weights]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def architecture(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `config.json` says of the computation: equal weights under another norm's epsilon are another model.

    A checkpoint with code of its own has the hashes of that code too.
    """
    said = {key: value for key, value in checkpoint.config.items() if key not in NOT_ARCHITECTURE}
    if "auto_map" not in said:
        return said
    return {**said, "code": {path.name: file_hash(path) for path in sorted(checkpoint.folder.glob("*.py"))}}


def tokenizer_hashes(checkpoint: Checkpoint) -> dict[str, str]:
    """File name → sha256 of every file that decides the tokens."""
    found = {path.name: path for pattern in TOKENIZER_FILES for path in checkpoint.folder.glob(pattern)}
    return {name: file_hash(path) for name, path in sorted(found.items()) if path.is_file()}


def resolve_dtype(wanted: str, checkpoint: Checkpoint, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU and the model file's dtype on a GPU.

    Raises:
        UserError: the file's dtype is none that the harness computes in.
    """
    if wanted == "auto":
        wanted = "float32" if device.type == "cpu" else checkpoint.stored_dtype
    if wanted not in DTYPES:
        raise UserError(f"the checkpoint is stored as {wanted}; choose dtype={' or '.join(DTYPES)}.")
    return DTYPES[wanted]


def resolve_device(wanted: str) -> torch.device:
    """`auto` is the GPU where there is one.

    Raises:
        UserError: not a device, or one this machine lacks.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise UserError(f"device={wanted} is none of auto, cpu, cuda, cuda:<number>.") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"device={wanted} is none of auto, cpu, cuda, cuda:<number>.")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device={wanted} is not there: this machine has {torch.cuda.device_count()} GPUs.")
    return device


FREE = 0.9
"""A GPU with so much of its memory free is used by nobody."""


def other_gpus(wanted: str, device: torch.device) -> list[torch.device]:
    """The GPUs that may help `device`: all others that nobody uses where the choice was left open, else none."""
    if wanted != "auto" or device.type != "cuda":
        return []
    others = [index for index in range(torch.cuda.device_count()) if index != (device.index or 0)]
    free = {index: torch.cuda.mem_get_info(index) for index in others}
    return [torch.device("cuda", index) for index, (here, total) in free.items() if here > FREE * total]


def available(device: torch.device) -> int:
    """Bytes that a run can have on a device."""
    return free_on_gpu(device) if device.type == "cuda" else free_memory()


class Lender(Protocol):
    """Whoever keeps tensors between runs, and gives them up for one that needs their memory."""

    def lent(self, device: torch.device) -> int: ...


_lenders: WeakSet[Lender] = WeakSet()


def lend(lender: Lender) -> None:
    """Let the memory that somebody keeps count as free."""
    _lenders.add(lender)


def lent_on(device: torch.device) -> int:
    """Bytes on a device that whoever keeps them would give up."""
    return sum(lender.lent(device) for lender in _lenders)


def free_memory() -> int:
    """Bytes of main memory that are free to this process, with a container's limit respected."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    info = Path("/proc/meminfo")
    if info.is_file():
        fields = dict(line.split(":", 1) for line in info.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free


def load_tokenizer(checkpoint: Checkpoint, choice: ModelChoice) -> Any:
    """The tokenizer as the checkpoint defines it."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            checkpoint.folder, local_files_only=True, trust_remote_code=choice.trust_remote_code
        )
    except Exception as error:
        raise UserError(f"{choice.path} has no tokenizer that can be loaded ({_first_line(error)}).") from error


def load_model(checkpoint: Checkpoint, choice: ModelChoice, dtype: torch.dtype, where: Where) -> PreTrainedModel:
    """The model in evaluation mode in its place (`placement.place`), every weight finite.

    Raises:
        UserError: the files do not make a decoder model, or a weight is not finite.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    if not sys.stderr.isatty():
        logging.disable_progress_bar()
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            output_loading_info=True,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=choice.trust_remote_code,
            attn_implementation=_attention(checkpoint, dtype),
        )
    except Exception as error:
        raise UserError(f"{choice.path} cannot be loaded as a language model ({_first_line(error)}).") from error
    model, info = loaded
    if info["missing_keys"]:
        raise UserError(
            f"the weights of {choice.path} lack {sorted(info['missing_keys'])[0]}; transformers would invent it."
        )
    model.eval().requires_grad_(False)
    model.config.use_cache = False
    anatomy = anatomy_of(model)
    placement = place(model, anatomy, where)
    if (name := _not_finite(model, anatomy, placement)) is not None:
        raise UserError(f"the weight {name} of {choice.path} is not finite (NaN or infinity).")
    return cast("PreTrainedModel", model)


def _not_finite(model: PreTrainedModel, anatomy: Anatomy, placement: Placement) -> str | None:
    """The first weight that is not finite, looked for on the device."""
    for name, parameter in model.named_parameters():
        if not name.startswith(f"{anatomy.blocks}.") and not torch.isfinite(parameter).all():
            return name
    for index, block in enumerate(anatomy.block_list(model)):
        with placement.on_device(index):
            for name, parameter in block.named_parameters():
                if not torch.isfinite(parameter).all():
                    return f"{anatomy.blocks}.{index}.{name}"
    return None


def _attention(checkpoint: Checkpoint, dtype: torch.dtype) -> str:
    """Plain attention in float32, the dtype of comparisons; fused attention in 16 bits.

    The released codes ran on a transformers that had plain attention only. SparseGPT is chaotic: with it, its masks on
    the proxies are the authors', bit for bit; with fused attention, tenths of a per cent of them are not by the second
    block. Soft-capped attention (Gemma 2) has no fused form.
    """
    plain = dtype == torch.float32 or checkpoint.config.get("attn_logit_softcapping")
    return "eager" if plain else "sdpa"


def fuse_attention(model: PreTrainedModel) -> None:
    """Fused attention for evaluation, where nothing is chaotic and it only rounds the seventh digit (not Gemma 2's)."""
    if not getattr(model.config, "attn_logit_softcapping", None):
        model.set_attn_implementation("sdpa")


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__
