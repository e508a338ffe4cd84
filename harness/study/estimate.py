"""What a point will cost, counted from the model's geometry: no checkpoint is needed.

The rates in 16 bits on a GPU are those that `benchmarks/plan.py` and `benchmarks/speed/block.py` measured on an H200;
those of two CPU cores follow `benchmarks/speed/block.py --whole`, those of float32 on a GPU are assumptions. The memory
is counted in `harness/needs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.calibration import batches
from harness.config import RunConfig
from harness.core.geometry import Geometry
from harness.core.refit import STEPS as REFIT_STEPS
from harness.core.statistic import gram, squared_norms
from harness.core.training import Cost
from harness.models.geometry import of_facts
from harness.needs import LIBRARIES, Need, need_of, recovery_cost, tokens_at_once
from harness.prepare import uses_calibration
from harness.runtime.memory import GIB
from harness.training.loop import TOKENS_AT_ONCE


@dataclass(frozen=True)
class Speed:
    """What a kind of device reaches with weights of a width.

    `rate` are the operations a second of a forward's products, `gram` those of X Xᵀ counted whole, `fit` those of
    SparseLLM's updates; `factor` and `spectrum` the n³ a second of a factor and of eigenvalues. The others are seconds:
    `launch` of a block and batch that a forward takes however small it is, `column` of a column that SparseGPT walks
    over, `block` of a block's factors and thresholds however small they are, `read` of a byte of weights from the file
    to its place. `ahead` says that the device computes while the host launches what follows.
    """

    rate: float
    gram: float
    fit: float
    factor: float
    spectrum: float
    launch: float
    column: float
    block: float
    read: float
    ahead: bool

    def forward(self, operations: float, launches: float) -> float:
        """Seconds of products of so many operations, in so many blocks times batches."""
        seconds, waiting = operations / self.rate, launches * self.launch
        return max(seconds, waiting) if self.ahead else seconds + waiting


CORES = Speed(75e9, 140e9, 35e9, 10e9, 5e9, 1e-3, 4e-5, 1e-2, 1e-9, ahead=False)
SPEEDS = {
    ("cpu", 4): CORES,
    ("cpu", 2): CORES,
    ("cuda", 4): Speed(40e12, 40e12, 20e12, 10e12, 7e11, 5e-4, 1e-5, 2e-2, 2.4e-10, ahead=True),
    ("cuda", 2): Speed(590e12, 950e12, 137e12, 40e12, 7e11, 5e-4, 3.5e-6, 1e-2, 2.4e-10, ahead=True),
}
START = 0.5
"""Seconds of a point that nothing else explains."""
TOKEN = 3.7e-6
"""Seconds of a token of text: reading and cutting it."""
DRAWN, TRAINING = 5, 300_000
"""Tokens that are cut for one drawn, where documents have to be longer than a window; those of other training texts."""
JUDGED = 1.5
"""Windows of a search that go through a block in the launches of a forward, about: a candidate is put together too."""
RETRACED = 0.6
"""The share of the forwards of MRP's turns that are run again, about: a turn begins where it first differs."""
LEVELS = 5
"""Times that a search prunes every matrix, about."""
FISHER, HESSIAN = 4, 13
"""Forward passes that a window costs in the Fisher trace, and a window and probe in the Hessian's (measured)."""
TRACED = 137e12
"""Operations a second that traces of a 16-bit model reach on a GPU, which are computed in TF32: as SparseLLM's fit."""
BACKWARD = 2
"""Forward passes that a backward costs: the gradients of inputs and those of weights."""
UPDATES = 3
"""Times the launches of a forward that SparseLLM's updates of a window take."""
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
        return f"{need.activations_offloaded / GIB:.1f} GiB, activations of {need.waiting / GIB:.1f} GiB in host memory"


def estimate(cfg: RunConfig, device: str) -> Estimate | None:
    """The cost of a point on a device type (`cpu` or `cuda`), or None where `conf/model` holds no geometry."""
    facts = cfg.composed["model"].get("geometry")
    if not facts:
        return None
    geometry = of_facts(facts)
    narrow = 4 if cfg.dtype == "float32" or (cfg.dtype == "auto" and device == "cpu") else 2
    speed = SPEEDS[device, narrow]
    if cfg.numerics == "exact":
        speed = replace(speed, gram=SPEEDS[device, 4].gram)
    window = _tokens(cfg, facts)
    in_scope = replace(geometry, blocks=len(cfg.scope.blocks(geometry.blocks)))
    calibrated = uses_calibration(cfg)
    cuda, length = device == "cuda", cfg.calibration.length or window
    need = need_of(
        cfg, geometry, length=length, window=cfg.evaluation_window or window,
        itemsize=narrow, calibrated=calibrated, cuda=cuda,
    )  # fmt: skip
    seconds = START + speed.read * (need.blocks + need.outside)
    seconds += _evaluation(cfg, geometry, window, batches.tokens_at_once(narrow, cuda), speed)
    if calibrated:
        drawn = cfg.calibration.windows * window
        seconds += TOKEN * (DRAWN * drawn if cfg.calibration.corpus.startswith("c4") else max(drawn, TRAINING))
    if cfg.method is not None:
        at_once = tokens_at_once(cfg, narrow, cuda)
        seconds += _pruning(cfg, in_scope, window, at_once, speed) + _allocating(cfg, in_scope, window, speed)
    seconds += _recovering(recovery_cost(cfg, geometry, length, narrow, cuda=cuda), geometry, length, speed, cuda=cuda)
    return Estimate(seconds, need)


def _tokens(cfg: RunConfig, facts: Mapping[str, Any]) -> int:
    return int(facts["context"] if cfg.window == "context" else cfg.window or 2048)


def _pruning(cfg: RunConfig, geometry: Geometry, window: int, at_once: int, speed: Speed) -> float:
    """Seconds of the walk over the blocks: a pass to the last input, what is chosen, and a pass behind it."""
    statistic = getattr(cfg.method, "statistic", gram)
    if statistic is None:
        return 0.0
    tokens = cfg.calibration.windows * window
    batches = tokens / max(window, at_once)
    products = 2 * tokens * (2 * geometry.block_parameters - geometry.hidden * geometry.wide)
    seconds = speed.forward(products, 2 * batches)
    if statistic is not squared_norms:
        seconds += 2 * tokens * geometry.gram_elements / speed.gram + _choosing(geometry, speed)
    seconds += 2 * _products(cfg.method) * geometry.solver_elements / speed.fit
    if cfg.composed["method"]["name"] == "sparsellm":
        seconds += (cfg.composed["method"]["epochs"] - 1) * _epoch(geometry, tokens, cfg.calibration.windows, speed)
    return geometry.blocks * seconds


def _products(method: Any) -> float:
    """Products of every matrix with one of its inputs' width that a method takes, alone or inside another's rounds."""
    own = getattr(method, "products", 0) + (REFIT_STEPS + 2 if getattr(method, "refit", False) else 0)
    inner = getattr(method, "inner", None)
    return own + (getattr(method, "epochs", 1) * _products(inner) if inner is not None else 0)


def _choosing(geometry: Geometry, speed: Speed) -> float:
    """Seconds in which SparseGPT factorises and walks over the columns of a block, once for each distinct input."""
    widths = (geometry.hidden,) * 3 + (geometry.wide,)
    return speed.block + sum(width**3 / speed.factor + width * speed.column for width in widths)


def _allocating(cfg: RunConfig, geometry: Geometry, window: int, speed: Speed) -> float:
    """Seconds of an allocator; a search counts whole, though points that share it pay once."""
    settings = cfg.composed["allocator"]
    body = 2 * window * geometry.block_parameters * geometry.blocks  # a window through the blocks
    whole = body + 2 * window * geometry.hidden * geometry.vocabulary
    calibration, traced = cfg.calibration.windows, 0.0
    match settings["name"]:
        case "uniform" | "file":
            windows = 0.0
        case "alphapruning":
            return len(geometry.widths) * geometry.blocks * (speed.block + geometry.hidden**3 / speed.spectrum)
        case "mrp":  # a pruning and an observation a turn
            windows = RETRACED * 2 * calibration * geometry.blocks * settings["headroom"] / settings["step"]
        case "isc":
            windows, traced = 0.0, HESSIAN * settings["windows"] * settings["probes"]
        case "msp":
            trace = FISHER if settings["sensitivity"] == "fisher" else HESSIAN * settings["probes"]
            windows, traced = calibration, trace * settings["sensitivity_windows"]
            windows += (settings["generations"] + 1) * settings["population"] * settings["windows"]
        case "evopress":
            pools = [settings["offspring"], *settings["survivors"][:-1]]
            judged = sum(pool * stage for pool, stage in zip(pools, settings["stages"], strict=True))
            windows = settings["generations"] * judged + calibration
        case _:
            windows = calibration
    levels = LEVELS if settings["name"] in ("msp", "evopress") else 0
    forwards = speed.forward(windows * whole, windows / JUDGED * geometry.blocks)
    forwards += replace(speed, rate=min(speed.rate, TRACED)).forward(traced * whole, traced / JUDGED * geometry.blocks)
    return forwards + levels * geometry.blocks * _choosing(geometry, speed)


def _recovering(cost: Cost, geometry: Geometry, length: int, speed: Speed, *, cuda: bool) -> float:
    """Seconds of a recovery: its tokens forward, and backward at twice the products of a forward."""
    passes = cost.forwards + BACKWARD * cost.backwards
    per_token = 2 * (geometry.blocks * geometry.block_parameters + geometry.vocabulary * geometry.hidden)
    at_once = max(length, TOKENS_AT_ONCE["cuda" if cuda else "cpu"])
    return speed.forward(passes * per_token, passes / at_once * geometry.blocks)


def _epoch(geometry: Geometry, tokens: int, windows: int, speed: Speed) -> float:
    """Seconds of a block's epoch of SparseLLM after the first (SparseGPT): its updates, then the columns again."""
    wide, hidden = geometry.wide, geometry.hidden
    products = 2 * tokens * (wide**2 + (7 if geometry.gated else 5) * hidden * wide)  # the Gram matrix of p is wide²
    return products / speed.fit + UPDATES * windows * speed.launch + _choosing(geometry, speed)


def _evaluation(cfg: RunConfig, geometry: Geometry, window: int, at_once: int, speed: Speed) -> float:
    per_token = 2 * (geometry.blocks * geometry.block_parameters + geometry.vocabulary * geometry.hidden)
    tokens = sum(ITEM_TOKENS.get(name, TOKENS.get(name, 256 * window)) for name in cfg.evaluators)
    batches = tokens / max(at_once, window)
    return tokens * TOKEN + speed.forward(tokens * per_token, batches * geometry.blocks)
