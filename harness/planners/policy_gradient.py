"""Width by policy gradient: masks of heads and channels are drawn, and those that lose little become likelier."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from harness.catalogue import component, describe, name_of, revision
from harness.core.costs import Cost, Work, block_bytes
from harness.core.geometry import Geometry
from harness.core.interfaces import StructureView
from harness.core.learned import Learned, thinned
from harness.core.policy import Rule, ascending, drawn, reaching, sigmap, updated
from harness.core.rng import rng
from harness.core.structure import Cut, Part, Plan, Unit
from harness.core.width import INSIDE, Counts, Module, Of, Width, pruned_norms, told
from harness.runtime.errors import Failure, Refusal, UserError

LOGITS = 5
"""Tensors as large as the logits of a window while it is judged."""
LENGTH = 128
"""Tokens of a window as the authors take them."""
LAUNCHES = 40
"""Launches that a step takes beside its blocks (assumed): its windows are embedded, masks drawn, scores projected."""


@component("planner", "policy_gradient")
@dataclass(frozen=True)
class PolicyGradient:
    """Gao et al. 2025, Bypass Back-propagation (arXiv 2406.10576), as their code has it: heads and channels have
    probabilities to stay; each step draws `samples` masks, takes the loss of the model under each on the same windows,
    and moves the probabilities by the policy gradient, with a moving average of the loss as baseline.

    Heads and channels are then projected onto their budgets, over all blocks together, so that blocks end with widths
    of their own. No gradient goes through the model. The paper's schedule is the default: 15,000 steps of 2 masks on
    1,024 tokens. As many masks and tokens in fewer and larger forwards: `samples=16 steps=1875 lr=0.016` (the gradient
    is a mean over masks, so that the rate grows as steps get fewer). A shorter schedule that small models take:
    `steps=400 samples=4 batch=4 lr=0.05`. With `steps=0` the start is all there is.
    """

    amount: float = 0.3
    """The fraction that goes, of what `of` says; the fewest channels reach it."""
    of: Of = "linears"
    """`linears`: the weights of the blocks' matrices; `parameters`: all parameters; `units`: the heads and the
    channels."""
    round_to: int = 1
    """Blocks keep a multiple of so many channels."""
    keep_first: int = 0
    """Blocks at the beginning of the model that stay whole."""
    keep_last: int = 0
    """Blocks at its end that stay whole."""
    start: Literal["metric", "random", "even"] = "metric"
    """The first probabilities. `metric`: Wanda's metric of each unit on the calibration windows, each block seeing the
    narrowed ones in front, as Wanda-sp has it; `random`: normal numbers; both as z-scores within the block through a
    sigmoid, shifted to the share that stays. `even`: the same for all."""
    steps: int = 15_000
    """Updates."""
    samples: int = 2
    """Masks that a step draws; they go through the model in one batch."""
    batch: int = 8
    """Windows of a step."""
    length: int | None = None
    """Tokens of such a window; None: 128 as the authors take, or those of calibration windows if they are fewer."""
    lr: float = 2e-3
    """The first learning rate; it falls to 0 by half a cosine. The authors take 0.006 for LLaMA-3-8B."""
    average: int = 5
    """Steps of the moving average that is the baseline."""
    held_out: int = 32
    """Further windows by which the first and the last mask are judged, for the record."""
    variant: Literal["default", "released"] = "default"
    """`released`: windows of documents one after the other, each with its own beginning of text, and a final mask in
    which ties with the threshold stay, so that more may stay than was asked for."""
    keep_every: float = field(default=60.0, metadata={"identity": False})
    """Seconds after which the state is kept in the cache folder, from which a killed run goes on; 0: every step."""

    uses_cache = True

    def __post_init__(self) -> None:
        self._width.check()
        if self.samples < 2:
            raise UserError("planner.samples has to be at least 2: the gradient compares masks with one another.")
        if self.steps < 0 or self.held_out < 0 or min(self.batch, self.average) < 1 or (self.length or 2) < 2:
            raise UserError(
                "planner.batch and planner.average have to be at least 1, planner.length at least 2, planner.steps and "
                "planner.held_out at least 0."
            )
        if not self.lr > 0 or self.keep_every < 0:
            raise UserError("planner.lr has to be above 0, planner.keep_every at least 0.")

    @property
    def _width(self) -> Width:
        return Width(self.amount, self.of, self.round_to, self.keep_first, self.keep_last)

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Every step its windows under every mask; before, each block twice over the calibration windows."""
        metric = self.start == "metric"
        length = self._length(work.length)
        rows = self.samples * self.batch * length
        states = rows * (8 * geometry.hidden + 3 * geometry.wide) * work.itemsize
        return Cost(
            forwards=self.steps * rows + 2 * self.held_out * length + (2 * work.tokens if metric else 0),
            launches=self.steps * LAUNCHES,
            drawn=self._windows * length,
            kept_bytes=block_bytes(geometry, work) if metric else 0,
            working_bytes=states + 4 * LOGITS * length * geometry.vocabulary + 8 * self._windows * length,
        )

    def _length(self, calibration: int) -> int:
        """Tokens of a window of a step, those of calibration windows being so many."""
        return self.length or min(LENGTH, calibration)

    @property
    def _windows(self) -> int:
        return self.steps * self.batch + self.held_out

    def plan(self, view: StructureView) -> Plan:
        modules = self._width.modules(view)
        keep = 1 - self._width.share(modules, view.geometry)
        if keep < 0:
            raise Refusal(f"{self.amount:g} of the {self.of} cannot go: all heads and channels that may are fewer.")
        windows = self._drawn_windows(view)
        learned = self._learned(view, modules, keep, windows[self.held_out :])
        first, last = (self._final(scores, modules, keep, view) for scores in (learned.first, learned.policy.scores))
        told(view, last, {module: learned.policy.scores[module.part][row] for module, row in _rows(modules).items()})
        view.log(policy=self._facts(view, learned, keep, first, last, windows[: self.held_out]))
        return Plan(last)

    def _drawn_windows(self, view: StructureView) -> Tensor:
        """Windows (N, L): those that the masks are judged by, and those of the steps, or fewer where the text ends."""
        if not self._windows:
            return view.windows[:0]
        length = self._length(view.windows.shape[1])
        if self.variant == "default":
            return view.draw(self._windows, length)
        found = view.packed(self._windows, length)
        order = rng(view.seed, "order of packed windows").sample(range(len(found)), len(found))
        return found[torch.tensor(order, device=found.device)]

    def _learned(self, view: StructureView, modules: Counts, keep: float, windows: Tensor) -> Learned:
        """The probabilities behind all steps, from those that an earlier attempt kept on."""
        rule = Rule(keep, self.steps, self.lr, self.samples, self.average)
        known_by = {"settings": describe(self), "seed": view.seed, "revision": revision(self)}
        entry = view.cached(name_of(self), known_by)
        with entry.held():
            kept = entry.read()
            device = view.windows.device
            learned = Learned.from_json(kept, device) if kept else Learned.begun(self._start(view, modules, keep))
            since = spent = time.perf_counter()
            for step, batch in self._batches(view.seed, len(learned.losses), windows):
                masks = drawn(learned.policy.scores, self.samples, _generator(view.seed, step, device))
                losses = view.masked_losses(_whole(masks, modules, view.geometry), batch).mean(dim=1)
                learned.add(updated(learned.policy, masks, losses, rule), losses)
                now = time.perf_counter()
                learned.seconds, spent = learned.seconds + now - spent, now
                if now - since >= self.keep_every or step == self.steps - 1:
                    entry.write(learned.json())
                    since = now
        return learned

    def _batches(self, seed: int, done: int, windows: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The steps that are left, each with its windows (N, L); those of a short text come again in another order."""
        if done < self.steps and not len(windows):
            raise Failure("the calibration text has no windows that masks could be tried on.")
        order: list[int] = []
        epoch = 0
        while len(order) < self.steps * self.batch:
            mixed = rng(seed, f"windows of epoch {epoch}").sample(range(len(windows)), len(windows))
            order, epoch = order + (mixed if epoch else list(range(len(windows)))), epoch + 1
        for step in range(done, self.steps):
            yield step, windows[torch.tensor(order[step * self.batch : (step + 1) * self.batch], device=windows.device)]

    def _start(self, view: StructureView, modules: Counts, keep: float) -> dict[Part, Tensor]:
        """The first probabilities (B, U) of each part, on the device of the windows."""
        counts = {part: [units for module, units in modules.items() if module.part == part] for part in INSIDE}
        device = view.windows.device
        if self.start == "even":
            return {part: torch.full((len(n), n[0]), keep, device=device) for part, n in counts.items()}
        if self.start == "random":
            draw = torch.Generator().manual_seed(rng(view.seed, "start of a policy").getrandbits(63))
            normal = {part: torch.randn(len(n), n[0], generator=draw) for part, n in counts.items()}
            return {part: sigmap(one, keep).to(device) for part, one in normal.items()}
        metrics = pruned_norms(view, modules, lambda _, scores: ~reaching(scores, keep))
        stacked = {part: torch.stack([one for module, one in metrics.items() if module[0] == part]) for part in INSIDE}
        if not all(bool(metric.isfinite().all()) for metric in stacked.values()):
            raise Failure("Wanda's metric of heads and channels is not finite; dtype=float32 may be enough.")
        return {part: sigmap(metric.float(), keep).to(device) for part, metric in stacked.items()}

    def _final(self, scores: Mapping[Part, Tensor], modules: Counts, keep: float, view: StructureView) -> Cut:
        """The units that go: of heads the share that was asked for, and the fewest channels that make up the amount."""
        blocks = _blocks(modules)
        order = {
            part: [Unit(part, blocks[row], index) for row, index in ascending(one)] for part, one in scores.items()
        }
        if self.variant == "released":
            stays = {part: reaching(one, keep) for part, one in scores.items()}
            return Cut(frozenset(unit for part, units in order.items() for unit in _gone(units, stays[part], blocks)))
        heads = order["head"][: round(len(order["head"]) * (1 - keep))]
        if self.of == "units":
            return Cut(frozenset(heads)) | self._width.first_of(order["channel"], view.geometry)
        return self._width.first_of([*heads, *order["channel"]], view.geometry)

    def _facts(
        self, view: StructureView, learned: Learned, keep: float, first: Cut, last: Cut, windows: Tensor
    ) -> dict[str, Any]:
        """Facts for the record: the course of the loss, its baseline and the rate, and what the masks are worth."""
        judged = view.losses([first, last], windows).mean(dim=1).tolist() if len(windows) else []
        return {
            "keep": keep,
            "steps": self.steps,
            "masks": self.steps * self.samples,
            "tokens": self.steps * self.samples * self.batch * self._length(view.windows.shape[1]),
            "seconds": round(learned.seconds, 2),
            "trajectory": thinned(learned, self.steps, self.lr),
            "held_out": dict(zip(("start", "end"), judged, strict=False)),
        }


def _generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(rng(seed, f"masks of step {step}").getrandbits(63))


def _blocks(modules: Counts) -> list[int]:
    """The blocks that the rows of scores stand for."""
    return [module.block for module in modules if module.part == "head"]


def _rows(modules: Counts) -> dict[Module, int]:
    """Each module's row of the scores of its part."""
    blocks = _blocks(modules)
    return {module: blocks.index(module.block) for module in modules}


def _whole(masks: Mapping[Part, Tensor], modules: Counts, geometry: Geometry) -> dict[Part, Tensor]:
    """Masks (K, B, U) of all blocks of the model, those that stay whole being ones."""
    rows = torch.tensor(_blocks(modules))
    found = {}
    for part, mask in masks.items():
        found[part] = mask.new_ones(len(mask), geometry.blocks, mask.shape[-1])
        found[part][:, rows.to(mask.device)] = mask
    return found


def _gone(units: list[Unit], stays: Tensor, blocks: list[int]) -> list[Unit]:
    kept = dict(zip(blocks, stays.tolist(), strict=True))
    return [unit for unit in units if not kept[unit.block][unit.index]]
