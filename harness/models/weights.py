"""The weight files of a checkpoint: which ones there are, what their headers say, what they are known by."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from harness.runtime.errors import UserError
from harness.runtime.files import is_there

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
STORED = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights, in a safetensors header, that mean themselves; others need scales or tables beside them."""
LONGEST_HEADER = 100_000_000
"""Bytes; the limit that safetensors has."""
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
"""Marks of text editors in front of a text; transformers does not read JSON behind them."""
HARMLESS = re.compile(
    r"(^|\.)(rotary_emb\.(inv_freq|cos_cached|sin_cached)|(attn|attention|self_attn)\.(masked_)?bias|position_ids)$"
)
"""Buffers that old checkpoints hold and that a model makes itself: frequencies, causal masks, positions."""


class Tensor(NamedTuple):
    """A header's entry for one tensor."""

    dtype: str
    shape: tuple[int, ...]
    file: str

    @property
    def size(self) -> int:
        """Its elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size


def is_harmless(name: str, tensor: Tensor) -> bool:
    """Return whether a tensor is a buffer that a model makes itself; a mask is told from a bias by its dimensions."""
    if not HARMLESS.search(name):
        return False
    return not name.endswith(".bias") or len(tensor.shape) > 2 or tensor.dtype in ("BOOL", "U8")


def weight_files(folder: Path, config: Mapping[str, Any]) -> tuple[Path, ...]:
    """The files that transformers loads, in its order of preference: the single file, or those of the index.

    Raises:
        UserError: the index does not map to files that are there, or leaves out a file of its series.
    """
    if named := config.get("transformers_weights"):
        raise UserError(f"{folder / 'config.json'} names its weights itself ({named}); call them {SINGLE} or {INDEX}.")
    if is_there(folder / SINGLE):
        return (folder / SINGLE,)
    if not is_there(folder / INDEX):
        return ()
    places = read_json(folder / INDEX).get("weight_map")
    places = places if isinstance(places, dict) else {}
    names = sorted(set(map(str, places.values())))
    if not names or any(not isinstance(name, str) or Path(name).name != name for name in places.values()):
        raise UserError(f"{folder / INDEX} does not map weights to files beside it.")
    if missing := [name for name in names if not is_there(folder / name)]:
        raise UserError(f"{folder} lacks {missing[0]}, which its {INDEX} names.")
    series = {re.sub(r"\d+(-of-\d+\.safetensors)$", r"*\1", name) for name in names}
    beside = sorted(path.name for pattern in series for path in folder.glob(pattern) if path.name not in names)
    if beside:
        raise UserError(f"{folder} holds {beside[0]}, which its {INDEX} does not name: the two do not belong together.")
    return tuple(folder / name for name in names)


def read_headers(folder: Path, files: tuple[Path, ...]) -> dict[str, Tensor]:
    """Name → what the header says of it, of every tensor of the weight files, none of which is read.

    Raises:
        UserError: a file is no safetensors file, two files hold one tensor, the index and the files disagree, or
            weights are stored in something else than floating-point numbers of 16 bits or more.
    """
    found: dict[str, Tensor] = {}
    for path in files:
        for name, tensor in _header(path).items():
            if name in found:
                raise UserError(
                    f"{folder} holds the tensor {name} twice, in {found[name].file} and in {path.name}; delete one."
                )
            found[name] = tensor
    if files and files[0].name != SINGLE:
        _check_index(folder, found)
    for name, tensor in found.items():
        if tensor.dtype not in STORED and not is_harmless(name, tensor):
            raise UserError(
                f"the tensor {name} of {folder} is stored as {tensor.dtype}: quantized checkpoints are not pruned; "
                "dequantize it first, to float32, bfloat16 or float16."
            )
    return found


def _check_index(folder: Path, found: Mapping[str, Tensor]) -> None:
    places: Mapping[str, Any] = read_json(folder / INDEX)["weight_map"]
    for name, place in places.items():
        if name in found and found[name].file != place:
            raise UserError(f"{folder / INDEX} places {name} in {place}; it is in {found[name].file}.")
        if name not in found and not HARMLESS.search(name) and not name.endswith("lm_head.weight"):
            raise UserError(f"{folder / INDEX} places {name} in {place}, which does not hold it.")
    for name, tensor in found.items():
        if name not in places and not is_harmless(name, tensor):
            raise UserError(f"{folder / tensor.file} holds {name}, which {INDEX} does not name.")


@lru_cache(maxsize=256)
def _read_header(path: Path, size: int, modified: int) -> bytes:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return file.read(length) if length <= min(size, LONGEST_HEADER) else b""


def _header(path: Path) -> dict[str, Tensor]:
    try:
        status = path.stat()
        header = _read_header(path, status.st_size, status.st_mtime_ns)
        content = json.loads(header, object_pairs_hook=_once)
        content.pop("__metadata__", None)
        tensors = {
            name: Tensor(str(about["dtype"]), tuple(map(int, about["shape"])), path.name)
            for name, about in content.items()
        }
        end = 8 + len(header) + max((int(about["data_offsets"][1]) for about in content.values()), default=0)
    except _Twice as error:
        raise UserError(f"{path} holds the tensor {error} twice.") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{path} is not a safetensors file, or not whole.") from None
    if end != status.st_size:
        raise UserError(
            f"{path} is not whole: it has {status.st_size} bytes, its header counts {end}; copy or download it again."
        )
    return tensors


class _Twice(Exception):
    """A name that one object has twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise _Twice(name)
        content[name] = value
    return content


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: it is not one.
    """
    try:
        content = json.loads(utf8_text(path)) if is_there(path) else None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content


def utf8_text(path: Path) -> str:
    """The text of a file that transformers reads too.

    Raises:
        UserError: it is not plain UTF-8.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    if content.startswith(MARKS):
        raise UserError(f"{path} opens with a byte order mark; save it as UTF-8 without one.")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not in UTF-8; save it as UTF-8.") from None


@lru_cache(maxsize=256)
def _file_hash(path: Path, size: int, modified: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file; read once per process while size and time stay the same."""
    status = path.stat()
    return _file_hash(path, status.st_size, status.st_mtime_ns)
