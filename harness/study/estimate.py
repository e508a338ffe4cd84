"""What a point will cost, counted from the model's geometry: no checkpoint is needed.

Rates are assumptions, stated here; the memory is counted in `harness/needs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.config import RunConfig
from harness.core.memory import GIB
from harness.needs import LIBRARIES, Geometry, Need, need_of, of_facts
from harness.prepare import uses_calibration

RATES = {"cpu": 50e9, "cuda": 300e12}
"""Floating-point operations a second that a forward pass reaches: two CPU cores; a data-centre GPU in 16 bits."""
FLOAT32_RATES = {"cpu": 50e9, "cuda": 40e12}
START = {"cpu": 2.0, "cuda": 3.0}
"""Seconds a point spends on loading and book-keeping."""
COLUMN = {"cpu": 2e-4, "cuda": 1e-5}
"""Seconds per column of SparseGPT's loop."""
FISHER, HESSIAN = 4, 13
"""Forward passes that a window costs in the Fisher trace, and a window and probe in the Hessian's (measured)."""
TOKENS = {"wikitext2": 340_000, "ptb": 110_000, "embedded-a": 40_000, "embedded-b": 40_000, "embedded-c": 40_000}
ITEM_TOKENS = {
    "boolq": 3270 * 2 * 180,
    "rte": 277 * 2 * 90,
    "hellaswag": 10042 * 4 * 100,
    "winogrande": 1267 * 2 * 30,
    "arc_easy": 2376 * 4 * 35,
    "arc_challenge": 1172 * 4 * 40,
    "openbookqa": 500 * 4 * 20,
    "piqa": 1838 * 2 * 45,
    "embedded-cloze": 500 * 4 * 80,
    "embedded-facts": 500 * 4 * 20,
}


GPU = 80 * GIB
"""The GPU that a plan asks about where this machine has none."""


@dataclass(frozen=True)
class Estimate:
    """Seconds of one point, and its memory: `need` in bytes, by part."""

    seconds: float
    need: Need

    @property
    def peak_bytes(self) -> float:
        """With everything on the device."""
        return self.need.resident

    def fits(self, size: float) -> str:
        """In words: how a GPU with `size` bytes can run it, and what it takes there and in host memory."""
        need, mode = self.need, self.need.mode(size)
        if mode == "too large":
            return f"does not fit {size / GIB:.0f} GiB, it needs {need.offloaded / GIB:.1f} GiB even with offload"
        if mode == "offload":
            return (
                f"{need.offloaded / GIB:.1f} GiB with offload, {need.host(offload=True) / GIB:.1f} GiB in host memory"
            )
        if need.resident + LIBRARIES <= size:
            return f"{need.resident / GIB:.1f} GiB"
        return f"{need.parked / GIB:.1f} GiB, activations of {need.waiting / GIB:.1f} GiB in host memory"


def estimate(cfg: RunConfig, device: str) -> Estimate | None:
    """The cost of a point on a device type (`cpu` or `cuda`), or None where `conf/model` holds no geometry."""
    facts = cfg.composed["model"].get("geometry")
    if not facts:
        return None
    geometry = of_facts(facts)
    narrow = 4 if cfg.dtype == "float32" or (cfg.dtype == "auto" and device == "cpu") else 2
    rate = (FLOAT32_RATES if narrow == 4 else RATES)[device]
    window = _tokens(cfg, facts)
    in_scope = replace(geometry, blocks=len(cfg.scope.blocks(geometry.blocks)))
    seconds = START[device] + _pruning(cfg, in_scope, window, rate, device) + _evaluation(cfg, geometry, window, rate)
    need = need_of(
        cfg, geometry, length=cfg.calibration.length or window, window=cfg.evaluation_window or window,
        itemsize=narrow, calibrated=uses_calibration(cfg), cuda=device == "cuda",
    )  # fmt: skip
    return Estimate(seconds, need)


def _tokens(cfg: RunConfig, facts: Mapping[str, Any]) -> int:
    return int(facts["context"] if cfg.window == "context" else cfg.window or 2048)


def _pruning(cfg: RunConfig, geometry: Geometry, window: int, rate: float, device: str) -> float:
    if cfg.method is None:
        return 0.0
    tokens = cfg.calibration.windows * window
    forward = 2 * tokens * geometry.block_parameters * geometry.blocks
    name = cfg.composed["method"]["name"]
    passes = 0 if name == "magnitude" else 2
    work = passes * forward / rate + _allocating(cfg, geometry, window, rate, device)
    if name != "magnitude" and name != "wanda":
        grams = 2 * tokens * (3 * geometry.hidden**2 + geometry.wide**2) * geometry.blocks
        work += grams / FLOAT32_RATES[device] + sum(geometry.widths) * geometry.blocks * COLUMN[device]
    if name == "sparsellm":
        work += (cfg.composed["method"]["epochs"] - 1) * _epoch(geometry, tokens, rate, device)
    return work


def _allocating(cfg: RunConfig, geometry: Geometry, window: int, rate: float, device: str) -> float:
    """Seconds of an allocator; a search counts whole, though points that share it pay once."""
    settings = cfg.composed["allocator"]
    body = 2 * window * geometry.block_parameters * geometry.blocks  # a window through the blocks
    whole = body + 2 * window * geometry.hidden * geometry.vocabulary
    calibration = cfg.calibration.windows
    match settings["name"]:
        case "uniform" | "file" | "alphapruning":
            windows = 0.0
        case "mrp":  # a pruning and an observation a turn
            windows = 2 * calibration * geometry.blocks * settings["headroom"] / settings["step"]
        case "isc":
            windows = HESSIAN * settings["windows"] * settings["probes"]
        case "msp":
            trace = FISHER if settings["sensitivity"] == "fisher" else HESSIAN * settings["probes"]
            windows = trace * settings["sensitivity_windows"] + calibration
            windows += (settings["generations"] + 1) * settings["population"] * settings["windows"]
        case "evopress":
            pools = [settings["offspring"], *settings["survivors"][:-1]]
            judged = sum(pool * stage for pool, stage in zip(pools, settings["stages"], strict=True))
            windows = settings["generations"] * judged + calibration
        case _:
            windows = calibration
    levels = 8 if settings["name"] in ("msp", "evopress") else 0
    return windows * whole / rate + levels * sum(geometry.widths) * geometry.blocks * COLUMN[device]


def _epoch(geometry: Geometry, tokens: int, rate: float, device: str) -> float:
    """Seconds of one epoch of SparseLLM after the first, which is SparseGPT: its updates, then the columns again.

    Its products reach half the rate of a forward pass: TF32 against 16 bits on a GPU, small matrices on a CPU.
    """
    wide, hidden = geometry.wide, geometry.hidden
    products = 2 * tokens * (wide**2 + (7 if geometry.gated else 5) * hidden * wide)  # the Gram matrix of p is wide²
    columns = (2 if geometry.gated else 1) * hidden + wide
    return geometry.blocks * (products / (rate / 2) + columns * COLUMN[device])


def _evaluation(cfg: RunConfig, geometry: Geometry, window: int, rate: float) -> float:
    per_token = 2 * (geometry.blocks * geometry.block_parameters + geometry.vocabulary * geometry.hidden)
    tokens = sum(ITEM_TOKENS.get(name, TOKENS.get(name, 256 * window)) for name in cfg.evaluators)
    return tokens * per_token / rate
