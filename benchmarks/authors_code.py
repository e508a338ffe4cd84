"""The authors' one-shot codes as functions of a model and windows, run as they are on current libraries.

Their loader gives our windows, their printing is swallowed, and on a machine without a GPU what they send there stays.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import sys
import types
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed.common import device
from harness.core.pattern import NofM, parse_pattern

CODES = {
    "ria": "Relative-importance-and-activation-pruning",
    "dsnot": "DSnoT",
    "thanos": "thanos",
    "alps": "ALPS",
    "admm": "admm-pruning",
}
"""Method → the folder of its repository's work tree."""
TOPS = ("lib", "alps", "modelutils", "opt", "llama")
"""Their top-level modules; most repositories have a `lib`."""


def run(clones: Path, method: str, setting: str, model: Any, windows: Tensor) -> None:
    """Prune a LLaMA or OPT model in place by the authors' code of a method, on windows (N, L)."""
    family = model.config.model_type
    model.seqlen, model.hf_device_map, model.name_or_path = windows.shape[1], {}, family
    loader = [(window[None],) for window in windows]
    with contextlib.redirect_stdout(io.StringIO()):
        way = _alps if method == "alps" else _in_wanda_frame
        way(clones / CODES[method], method, setting, model, loader)


def _in_wanda_frame(clone: Path, method: str, setting: str, model: Any, loader: Sequence[Any]) -> None:
    """Run a `prune_<method>` of a repository that derives from Wanda's."""
    is_opt = model.config.model_type == "opt"
    module_name, name = {
        "ria": ("lib.prune", "prune_ria"),
        "dsnot": ("lib.prune_opt", "prune_DSnoT_opt") if is_opt else ("lib.prune", "prune_DSnoT"),
        "thanos": ("lib.prune", "prune_thanos"),
        "admm": ("lib.prune", "prune_admm"),
    }[method]
    module = _module_of(clone, module_name)
    module.get_loaders = lambda *_, **__: (loader, None)
    if method == "admm" and is_opt:  # it knows LLaMA's names alone
        model.model.__dict__["layers"] = model.model.decoder.layers
    pattern = parse_pattern(setting)
    removed, of = (pattern.of - pattern.keep, pattern.of) if isinstance(pattern, NofM) else (0, 0)
    more = {"blocksize": 512, "v_blocksize": 256, "perc_outliers": 0.0} if method == "thanos" else {}
    options = _options(method, model, loader, pattern.sparsity)
    getattr(module, name)(options, model, None, device(), prune_n=removed, prune_m=of, **more)


def _options(method: str, model: Any, loader: Sequence[Any], sparsity: float) -> types.SimpleNamespace:
    """The defaults of their command lines."""
    return types.SimpleNamespace(
        model=model.config.model_type, nsamples=len(loader), seed=0, seqlen=model.seqlen,
        sparsity_ratio=sparsity, calib_dataset="c4", prune_method=method,
        # RIA
        reconstruction=False, gptq=False, a=0.5, reallocation=False, importance_score="sum", lsa=False, fast=False,
        semi_sparse_acc=False, per_outneuron=False,
        # DSnoT
        initial_method="wanda", max_cycle_time=50, without_DSnoT=False, update_threshold=0.1,
        pow_of_var_regrowing=1, pow_of_var_pruning=1, skip_layer="mlp", skip_sub_layer="no_skip",
        without_same_sign=True, get_time_overhead=False, output_results_file=os.devnull,
    )  # fmt: skip


def _alps(clone: Path, method: str, setting: str, model: Any, loader: Sequence[Any]) -> None:
    """Run `llama_sequential` or `opt_sequential` of ALPS, which read their options from a global."""
    family = model.config.model_type
    module = _module_of(clone, family)
    sparsity = parse_pattern(setting).sparsity
    module.args = types.SimpleNamespace(nsamples=len(loader), method=method.upper(), sp=sparsity, nm_n=0, nm_m=0)
    getattr(module, f"{family}_sequential")(model, loader, device(), nsamples=len(loader))
    model.to(device())  # it leaves the blocks on the CPU


@cache
def _module_of(clone: Path, name: str) -> Any:
    """A module of a clone, imported beside those of other clones that have its names."""
    for known in [key for key in sys.modules if key.partition(".")[0] in TOPS]:
        del sys.modules[known]
    sys.modules.setdefault("datasets", types.ModuleType("datasets")).load_dataset = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(clone))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


def stay_on_cpu() -> None:
    """Keep on the CPU what their codes send to a GPU."""
    move = torch.Tensor.to

    def to(self: Tensor, *given: Any, **named: Any) -> Tensor:
        places: list[Any] = [torch.device("cpu") if _is_gpu(one) else one for one in given]
        return move(self, *places, **named)

    torch.Tensor.to = to  # type: ignore[method-assign,assignment]
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    torch.cuda.synchronize = lambda *_: None


def _is_gpu(place: Any) -> bool:
    return (isinstance(place, str) and place.startswith("cuda")) or getattr(place, "type", None) == "cuda"
