"""Cost of a point, counted from the model's geometry: no checkpoint is needed.

The rates in 16 bits on a GPU are those that `benchmarks/plan.py` and `benchmarks/speed/block.py` measured on an H200;
those of two CPU cores follow `benchmarks/speed/block.py --whole`, those of float32 on a GPU are assumptions. The memory
is counted in `harness/needs.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from harness.calibration.walk import batches
from harness.config import RunConfig
from harness.core.component import MethodHooks
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.models.geometry import of_facts
from harness.needs import LIBRARIES, Need, need_of, recovery_cost, work_of
from harness.prepare import uses_calibration
from harness.runtime.memory import GIB
from harness.training.loop import TOKENS_AT_ONCE


@dataclass(frozen=True)
class Speed:
    """Rates of a kind of device with weights of a width.

    `rate` are the operations a second of a forward's products, `gram` those of X Xᵀ counted whole, `fit` those of
    products in float32; `factor` and `spectrum` the n³ a second of a factor and of eigenvalues. The others are seconds:
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
BACKWARD = 2
"""Forward passes that a backward costs: the gradients of inputs and those of weights."""
TRACED = 137e12
"""Operations a second that traces of a 16-bit model reach on a GPU, which are computed in TF32: as other fits."""
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
    work = work_of(cfg, geometry, window, window, narrow, cuda=cuda)
    seconds = START + speed.read * (need.blocks + need.outside)
    seconds += _evaluation(cfg, geometry, work, speed)
    if calibrated:
        drawn = cfg.calibration.corpus.startswith("c4")
        seconds += TOKEN * (DRAWN * work.tokens if drawn else max(work.tokens, TRAINING))
        seconds += TOKEN * (DRAWN if drawn else 1) * cfg.planner.cost(geometry, work).drawn
    if cfg.method is not None:
        seconds += _walk(cfg.method, in_scope, work, speed)
    for part in (cfg.planner, *((cfg.allocator, cfg.method) if cfg.method is not None else ())):
        seconds += _asked(part.cost(geometry, work), in_scope, work, speed)
    seconds += _recovering(
        recovery_cost(cfg, geometry, replace(work, length=length)), geometry, length, speed, cuda=cuda
    )
    return Estimate(seconds, need)


def _tokens(cfg: RunConfig, facts: Mapping[str, Any]) -> int:
    return int(facts["context"] if cfg.window == "context" else cfg.window or 2048)


def _walk(method: MethodHooks, geometry: Geometry, work: Work, speed: Speed) -> float:
    """Seconds of the walk over the blocks: a pass to the last input, what is chosen, and a pass behind it."""
    if method.statistic is None:
        return 0.0
    batches = work.tokens / max(work.length, work.at_once)
    products = 2 * work.tokens * (2 * geometry.block_parameters - geometry.hidden * geometry.wide)
    return geometry.blocks * speed.forward(products, 2 * batches)


def _asked(cost: Cost, geometry: Geometry, work: Work, speed: Speed) -> float:
    """Seconds of what a component asks for; a search counts whole, though points that share it pay once."""
    tokens = cost.forwards + BACKWARD * cost.backwards
    seconds = _through(tokens, geometry, work, speed)
    seconds += _through(cost.traced, geometry, work, replace(speed, rate=min(speed.rate, TRACED)))
    seconds += 2 * cost.summed * geometry.gram_elements * geometry.blocks / speed.gram
    seconds += cost.column_walks * geometry.blocks * _choosing(geometry, speed)
    seconds += cost.operations / speed.fit + cost.halves / speed.rate + cost.launches * speed.launch
    seconds += cost.factored / speed.factor + cost.spectral / speed.spectrum
    return seconds + cost.spectra * (speed.block + geometry.hidden**3 / speed.spectrum)


def _through(tokens: float, geometry: Geometry, work: Work, speed: Speed) -> float:
    """Seconds of tokens through the blocks and the head."""
    products = 2 * (geometry.block_parameters * geometry.blocks + geometry.hidden * geometry.vocabulary)
    return speed.forward(tokens * products, tokens / work.length / JUDGED * geometry.blocks)


def _choosing(geometry: Geometry, speed: Speed) -> float:
    """Seconds in which SparseGPT factorises and walks over the columns of a block, once for each distinct input."""
    widths = (geometry.hidden,) * 3 + (geometry.wide,)
    return speed.block + sum(width**3 / speed.factor + width * speed.column for width in widths)


def _recovering(cost: Cost, geometry: Geometry, length: int, speed: Speed, *, cuda: bool) -> float:
    """Seconds of a recovery: its tokens forward, and backward at twice the products of a forward."""
    passes = cost.forwards + BACKWARD * cost.backwards
    per_token = 2 * (geometry.blocks * geometry.block_parameters + geometry.vocabulary * geometry.hidden)
    at_once = max(length, TOKENS_AT_ONCE["cuda" if cuda else "cpu"])
    return speed.forward(passes * per_token, passes / at_once * geometry.blocks)


def _evaluation(cfg: RunConfig, geometry: Geometry, work: Work, speed: Speed) -> float:
    per_token = 2 * (geometry.blocks * geometry.block_parameters + geometry.vocabulary * geometry.hidden)
    tokens = sum(evaluator.cost(geometry, work).forwards for evaluator in cfg.evaluators.values())
    count = tokens / max(batches.evaluation_tokens(work.itemsize, work.cuda), work.window)
    return tokens * TOKEN + speed.forward(tokens * per_token, count * geometry.blocks)
