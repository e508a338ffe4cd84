"""Runs an authors' `main.py` as it is, on current libraries and on our texts: one point, in a process of its own.

    python -m benchmarks.speed.authors <clone> '<order as JSON>' -- <their arguments>

Their arithmetic is theirs. What changes is where a text comes from, how a model is placed where accelerate is missing,
what old names of libraries mean, and, where the order asks for it, the length of a window, the number of windows that
are evaluated (both are constants in their codes) and the dtype. Leaves in `<folder>/told.json` what their functions
returned, and a digest of the tokens they used.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.machinery
import importlib.metadata
import json
import logging
import os
import runpy
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch
import transformers

from benchmarks.speed.common import give_positions
from harness.data.corpora import read_text

MOST_WINDOWS = 128
"""Their buffers of activations hold so many windows, whatever is asked."""
OLD_NAMES = {
    "accelerate": ("Accelerator", "DistributedType"),
    "accelerate.utils": ("set_seed",),
    "huggingface_hub": ("Repository", "create_repo"),
    "transformers.utils": ("get_full_repo_name", "send_example_telemetry"),
    "weightwatcher": (),
}
"""Names their files import and a run to perplexity does not call."""


class Order(NamedTuple):
    """Orders of a process beside its arguments.

    `texts` gives corpus and split for `wikitext train`, `wikitext test`, `c4 train`, `c4 validation`.
    """

    folder: str
    texts: dict[str, list[str]]
    length: int
    limit: int | None = None
    dtype: str = "float16"


class Rows:
    """A text as a dataset of the hub: `rows["text"]`, `rows[3]["text"]`, `rows[:9]["text"]`, `len(rows)`."""

    def __init__(self, rows: Sequence[str]) -> None:
        self.rows = list(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: str | int | slice) -> Any:
        return self.rows if isinstance(key, str) else {"text": self.rows[key]}


def main() -> None:
    """Prepare, then run their file as a program."""
    end = sys.argv.index("--")
    clone, order = Path(sys.argv[end - 2]).resolve(), Order(**json.loads(sys.argv[end - 1]))
    told: dict[str, Any] = {}
    os.chdir(order.folder)
    sys.path.insert(0, str(clone))
    # before there are stand-ins, which transformers would take for the packages; it remembers the answers
    has_accelerate = transformers.utils.is_accelerate_available()
    transformers.utils.is_datasets_available()
    give_texts(order)
    give_old_names()
    give_positions()
    give_model(order, has_accelerate)
    if not torch.cuda.is_available():
        stay_on_cpu()
    listen(clone, order, told)
    give_tokenizer()
    sys.argv = [str(clone / "main.py"), *sys.argv[end + 1 :]]
    runpy.run_path(sys.argv[0], run_name="__main__")
    Path("told.json").write_text(json.dumps(told), encoding="utf-8")


def module_of(name: str) -> types.ModuleType:
    """A module, or one that stands in for it where it is not installed."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        return stand_in(name)


def stand_in(name: str) -> types.ModuleType:
    """An empty module under a name."""
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    module.__path__ = []
    sys.modules[name] = module
    return module


def give_texts(order: Order) -> None:
    """`datasets.load_dataset` reads the corpora of the harness."""

    def load_dataset(path: str, *_: Any, split: str, **__: Any) -> Rows:
        corpus, part = order.texts[f"{'c4' if 'c4' in path else path} {split}"]
        return Rows(read_text(corpus, part).rows)

    stand_in("datasets").load_dataset = load_dataset  # type: ignore[attr-defined]


def give_old_names() -> None:
    """Names that newer libraries dropped, or whose library is not there, so that their files can be imported."""
    for name, members in OLD_NAMES.items():
        module = module_of(name)
        for member in members:
            if not hasattr(module, member):
                setattr(module, member, unused(member))
    loggers = module_of("accelerate.logging")
    loggers.get_logger = logging.getLogger  # type: ignore[attr-defined]  # theirs wants a state that nobody makes
    importlib.import_module("transformers.utils.versions").require_version = lambda *_: None  # type: ignore[attr-defined]
    version = importlib.metadata.version
    # printed by them; any other package that is missing is still said to be
    importlib.metadata.version = lambda distribution_name: (
        "none" if distribution_name == "accelerate" else version(distribution_name)
    )


def give_tokenizer() -> None:
    """OWL's code names a class that, as it now is, reads other tokens out of a `tokenizer.json` than were meant.

    After everything else: transformers exchanges its own module when it imports this part of itself.
    """
    importlib.import_module("transformers.processing_utils")
    library: Any = importlib.import_module("transformers")
    library.LlamaTokenizer = library.AutoTokenizer


def unused(name: str) -> Callable[..., NoReturn]:
    """A function that must not be called."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise RuntimeError(f"{name} stands in for a name that this run should not need")

    return refuse


def give_model(order: Order, has_accelerate: bool) -> None:
    """`from_pretrained` in the dtype asked for, placed as `device_map="auto"` does on one device."""
    load: Any = transformers.AutoModelForCausalLM.from_pretrained
    dtype = getattr(torch, order.dtype)

    def loaded(*arguments: Any, **named: Any) -> Any:
        placed = named.get("device_map") is not None
        named |= {"dtype": dtype}
        for old in ("torch_dtype", "low_cpu_mem_usage", *(() if has_accelerate else ("device_map",))):
            named.pop(old, None)
        if dtype == torch.float32:
            named["attn_implementation"] = "eager"  # as ours calibrates in float32, see `models/loading.py`
        model = load(*arguments, **named)
        if placed and not has_accelerate and torch.cuda.is_available():
            model.to("cuda:0")
        if not torch.cuda.is_available():
            model.hf_device_map = {"model.embed_tokens": torch.device("cpu")}  # goes before their "cuda:0"
        elif not hasattr(model, "hf_device_map"):
            model.hf_device_map = {"": 0}
        # they set it: to 2048, or to the context
        type(model).seqlen = property(lambda _: order.length, lambda *_: None)
        return model

    transformers.AutoModelForCausalLM.from_pretrained = loaded  # type: ignore[method-assign]


def stay_on_cpu() -> None:
    """Keep on the CPU what they send to a GPU."""
    move = torch.Tensor.to

    def to(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if arguments and isinstance(arguments[0], torch.device) and arguments[0].type == "cuda":
            return self
        return move(self, *arguments, **named)

    torch.Tensor.to = to  # type: ignore[method-assign,assignment]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.empty_cache = lambda: None


def listen(clone: Path, order: Order, told: dict[str, Any]) -> None:
    """Keep what their functions return, and the seconds of AlphaPruning's metric; cut texts as the order says.

    Before their `main.py`, which imports the functions by name, and the loaders before the modules that use them.
    """
    data = importlib.import_module("lib.data")
    loaders, tokens = data.get_loaders, told.setdefault("tokens", {})

    def get_loaders(name: str, **named: Any) -> Any:
        windows, test = loaders(name, **{**named, "seqlen": order.length})
        if "wikitext2" in name:
            if order.limit is not None:
                test.input_ids = test.input_ids[:, : order.limit * order.length]
            whole = test.input_ids.numel() // order.length * order.length
            tokens["evaluation"] = digest(test.input_ids[:, :whole])
        else:
            tokens["calibration"] = digest(torch.cat([window for window, _ in windows]))
        return windows, test

    data.get_loaders = get_loaders  # type: ignore[attr-defined]
    prune = "prune_all" if (clone / "lib" / "prune_all.py").exists() else "prune"
    keep_result(told, "perplexity", "lib.eval", "eval_ppl")
    keep_result(told, "sparsity", f"lib.{prune}", "check_sparsity")
    if (clone / "lib" / "esd_utils.py").exists():
        metric = importlib.import_module("lib.esd_utils")
        compute = metric.get_esd_metrics

        def get_esd_metrics(*arguments: Any) -> Any:
            started, processor = time.perf_counter(), time.process_time()
            result = compute(*arguments)
            told["metric"] = [time.perf_counter() - started, time.process_time() - processor]
            return result

        metric.get_esd_metrics = get_esd_metrics  # type: ignore[attr-defined]


def digest(tokens: torch.Tensor) -> str:
    """A digest to tell token ids apart."""
    return hashlib.sha256(tokens.flatten().numpy().tobytes()).hexdigest()


def keep_result(told: dict[str, Any], key: str, module_name: str, function_name: str) -> None:
    """Keep the number that a function returned last."""
    module = importlib.import_module(module_name)
    function = getattr(module, function_name)

    def kept(*arguments: Any, **named: Any) -> Any:
        told[key] = function(*arguments, **named)
        return told[key]

    setattr(module, function_name, kept)


if __name__ == "__main__":
    main()
