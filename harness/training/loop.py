"""The loop that every trained recovery shares: AdamW on the parts of its adapters, at one or several learning rates.

Shapes: B windows, L tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from random import Random
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from harness.core.recoveries import Selector
from harness.core.rng import rng
from harness.core.training import Training, checked_steps, rates_of, share_at, steps_of
from harness.models.losses import next_token_loss
from harness.runtime.errors import Failure
from harness.runtime.oom import with_oom_backoff
from harness.runtime.plain import plain
from harness.runtime.progress import progress
from harness.runtime.warn import warn
from harness.training.adapted import Adapted
from harness.training.checkpoints import Checkpoints, State

REVISION = 1
"""Raised when training changes its numbers on purpose."""
TOKENS_AT_ONCE = {"cuda": 8192, "cpu": 2048}
"""Tokens that go through the model at once, at least a window's."""
HALF_SCALE = 2.0**14
"""The factor of a loss in float16 at first, so that small gradients are no zeros."""
LEAST_SCALE = 2.0**-4
MOMENTS = {"first": "exp_avg", "second": "exp_avg_sq", "count": "step"}


@dataclass(frozen=True)
class Text:
    """Token windows (N, L) to train on, and those (H, L) of the same text that are held out."""

    windows: Tensor
    held_out: Tensor

    @property
    def length(self) -> int:
        return int(self.windows.shape[1])


def train(
    name: str, settings: Training, adapted: Adapted, text: Text, seed: int, checkpoints: Checkpoints | None = None
) -> dict[str, Any]:
    """Train the parts of an adapted decoder; they are then those of the learning rate that was chosen.

    Returns:
        For the record: steps, tokens, the learning rate chosen, the losses along the way at every learning rate.

    Raises:
        Failure: the loss of every learning rate became infinite or no number, or not even one window fits into memory.
    """
    loop = _Loop(name, settings, adapted, text, seed, checkpoints)
    with adapted.in_place():
        return loop.run()


@dataclass
class _Loop:
    name: str
    settings: Training
    adapted: Adapted
    text: Text
    seed: int
    checkpoints: Checkpoints | None
    state: State = field(default_factory=State)

    def __post_init__(self) -> None:
        self.steps = steps_of(self.settings, self.text.length)
        self.device = next(iter(self.adapted.parts.values())).device
        at_once = TOKENS_AT_ONCE[self.device.type] // self.text.length
        self.at_once = max(1, min(at_once, self.settings.batch))
        self.beginning = {name: part.detach().to("cpu", copy=True) for name, part in self.adapted.parts.items()}
        self.optimiser: AdamW | None = None
        self.order = lru_cache(maxsize=2)(self._order)

    def run(self) -> dict[str, Any]:
        """Every learning rate in turn; the best one's parts are put in place."""
        rates, state = rates_of(self.settings), self._resumed()
        while state.rate < len(rates):
            reason = self._at_one_rate(rates[state.rate])
            state.finished.append(
                {"lr": rates[state.rate], "curve": state.curve, **({"stopped": reason} if reason else {})}
            )
            self._keep_best()
            state.rate, state.step, state.curve, state.loss, state.since = state.rate + 1, 0, [], 0.0, 0
            state.selection = None
            self._begin({})
        best = state.named("best")
        if not best:
            raise Failure(
                f"the recovery '{self.name}' diverged at every learning rate ({state.finished[-1]['stopped']}); take a "
                "smaller recovery.lr."
            )
        with torch.no_grad():
            for name, part in self.adapted.parts.items():
                part.copy_(best[name])
        chosen = _best(state.finished)
        return {
            "steps": self.steps,
            "tokens": self.steps * self.settings.batch * self.text.length,
            "lr": chosen["lr"],
            "loss": {"before": chosen["curve"][0]["held_out"], "after": chosen["curve"][-1]["held_out"]},
            "runs": state.finished,
        }

    def _resumed(self) -> State:
        """Where an earlier attempt was, or the beginning."""
        found = self.checkpoints.load() if self.checkpoints else None
        if found is not None:
            self.state = found
            rate, rates = found.rate + 1, len(rates_of(self.settings))
            warn(
                f"resumed: training goes on behind step {found.step} of {self.steps} (learning rate {rate} of {rates})"
            )
        self._begin(self.state.tensors)
        return self.state

    def _begin(self, tensors: Mapping[str, Tensor]) -> None:
        """Parts and moments as a checkpoint has them, or as they are at the start."""
        parts = self.adapted.parts
        with torch.no_grad():
            for name, part in parts.items():
                part.copy_(tensors.get(f"part/{name}", self.beginning[name]))
                part.requires_grad_(True)
                part.grad = None
        # several fused launches are one sum in another order; a CPU has no other
        self.optimiser = AdamW(parts.values(), lr=0.0, weight_decay=self.settings.weight_decay)
        for name, part in parts.items():
            if f"first/{name}" in tensors:
                self.optimiser.state[part] = {
                    own: tensors[f"{kind}/{name}"].to(part.device if kind != "count" else "cpu", copy=True)
                    for kind, own in MOMENTS.items()
                }
        if not tensors:
            self.state.scale = HALF_SCALE if self.adapted.decoder.model.dtype == torch.float16 else 1.0

    def _at_one_rate(self, rate: float) -> str:
        """Train to the end of the budget; says why where it stops before, with the parts as the last good step left."""
        state, checked = self.state, checked_steps(self.settings, self.steps)
        if not state.curve:
            self._check()
        for step in progress(range(state.step, self.steps), f"recover lr={rate:g}"):
            if reason := self._step(step, rate):
                warn(f"training at the learning rate {rate:g} stopped at step {step + 1} of {self.steps}: {reason}")
                return f"step {step + 1} of {self.steps}: {reason}"
            state.step = step + 1
            if state.step in checked:
                self._check()
            if self.checkpoints and state.step < self.steps and self.checkpoints.due():
                self._write()
        last = state.curve[-1]["held_out"]
        return "" if last is not None else "the held-out loss is not finite"

    def _step(self, step: int, rate: float) -> str:
        """One step of the optimiser; where the loss or its gradient is not finite nothing moves, and it says so."""
        settings, state = self.settings, self.state
        assert self.optimiser is not None
        trained = self._selected(step)
        rows = self.text.windows[self._batch(step)]
        while True:
            loss = self._gradients(rows, trained)
            norm = float(torch.nn.utils.get_total_norm([part.grad for part in trained if part.grad is not None]))
            if math.isfinite(norm) or not math.isfinite(loss) or state.scale <= LEAST_SCALE or state.scale == 1.0:
                break
            state.scale /= 2  # of float16 alone: an overflow of what was scaled up
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"the loss is {loss:g} and the norm of its gradient {norm:g}"
        if settings.clip and norm > settings.clip:
            for part in trained:
                part.grad.mul_(settings.clip / norm)  # type: ignore[union-attr]
        for group in self.optimiser.param_groups:
            group["lr"] = rate * share_at(settings, step, self.steps)
        self.optimiser.step()
        state.loss, state.since = state.loss + loss, state.since + 1
        return ""

    def _gradients(self, rows: Tensor, trained: Sequence[Tensor]) -> float:
        """The loss of windows (B, L) in nats per token, its gradients being left at the parts that train."""

        def work(at_once: int) -> tuple[float, int]:
            for part in self.adapted.parts.values():
                part.grad = None
            total = 0.0
            for some in rows.split(at_once):
                loss = nll(self.adapted.decoder.model, some.to(self.device)) * (len(some) / len(rows))
                (loss * self.state.scale).backward(inputs=list(trained))
                total += float(loss.detach())
            return total, at_once

        loss, self.at_once = with_oom_backoff(work, self.at_once, "recovery")
        if self.state.scale != 1.0:
            for part in trained:
                part.grad.div_(self.state.scale)  # type: ignore[union-attr]
        return loss

    def _selected(self, step: int) -> list[Tensor]:
        """The parts that train in a step: all, or those of the blocks that the recovery selects."""
        parts = self.adapted.parts
        if not isinstance(self.settings, Selector):
            return list(parts.values())
        trial = _Trial(self, step, self.adapted.blocks, rng(self.seed, f"selection {step} of a recovery"))
        chosen, state = self.settings.select(step, self.state.selection, trial)
        self.state.selection = plain(state)
        if not chosen or not set(chosen) <= set(trial.blocks):
            raise Failure(f"the recovery '{self.name}' selected the blocks {sorted(chosen)} of {list(trial.blocks)}.")
        names = {name for index in chosen for name in self.adapted.of_block(index)}
        for name, part in parts.items():
            part.requires_grad_(name in names)
        return [part for name, part in parts.items() if name in names]

    def _batch(self, step: int) -> list[int]:
        """The windows of a step: pass after pass over all of them, each in an order of its own."""
        count = len(self.text.windows)
        first = step * self.settings.batch
        places = (divmod(place, count) for place in range(first, first + self.settings.batch))
        return [self.order(nth)[place] for nth, place in places]

    def _order(self, nth: int) -> list[int]:
        count = len(self.text.windows)
        return rng(self.seed, f"pass {nth} of a recovery").sample(range(count), count)

    def _check(self) -> None:
        """Measure the held-out loss, and note it beside the mean training loss since the last time."""
        state = self.state
        held_out = self.loss(self.text.held_out)
        trained = state.loss / state.since if state.since else None
        tokens = state.step * self.settings.batch * self.text.length
        state.curve.append(plain({"tokens": tokens, "train": trained, "held_out": held_out}))
        state.loss, state.since = 0.0, 0

    @torch.no_grad()
    def loss(self, windows: Tensor) -> float:
        """The mean loss of windows (B, L), in nats per token."""

        def work(at_once: int) -> tuple[float, int]:
            losses = [
                float(nll(self.adapted.decoder.model, one.to(self.device))) * len(one) for one in windows.split(at_once)
            ]
            return sum(losses) / len(windows), at_once

        loss, self.at_once = with_oom_backoff(work, self.at_once, "recovery")
        return loss

    def _keep_best(self) -> None:
        """Keep the parts of the learning rate that has just ended if none was better."""
        state = self.state
        latest = state.finished[-1]
        if "stopped" not in latest and _best(state.finished) is latest:
            best = {f"best/{name}": part.detach().to("cpu", copy=True) for name, part in self.adapted.parts.items()}
        else:
            best = {f"best/{name}": part for name, part in state.named("best").items()}
        state.tensors = best

    def _write(self) -> None:
        """A checkpoint of everything as it is."""
        assert self.checkpoints and self.optimiser is not None
        tensors = {f"best/{name}": part for name, part in self.state.named("best").items()}
        for name, part in self.adapted.parts.items():
            tensors[f"part/{name}"] = part.detach()
            for kind, own in MOMENTS.items():
                if own in self.optimiser.state.get(part, {}):
                    tensors[f"{kind}/{name}"] = self.optimiser.state[part][own]
        self.state.tensors = tensors
        self.checkpoints.write(self.state)
        self.state.tensors = {name: one for name, one in tensors.items() if name.startswith("best/")}


@dataclass
class _Trial:
    """The view of a selector in front of a step."""

    loop: _Loop
    step: int
    blocks: tuple[int, ...]
    generator: Random

    def losses(self, strengths: Sequence[Mapping[int, float]]) -> list[float]:
        """One loss for each choice of strengths by block, all on the same windows of the training text."""
        count = len(self.loop.text.windows)
        rows = rng(self.loop.seed, f"trial {self.step} of a recovery").sample(range(count), min(count, 16))
        found = []
        for one in strengths:
            self.loop.adapted.strengths = one
            found.append(self.loop.loss(self.loop.text.windows[rows]))
        self.loop.adapted.strengths = {}
        return found


def nll(model: nn.Module, tokens: Tensor) -> Tensor:
    """The mean negative log-likelihood of the L − 1 targets of windows (B, L), in nats, computed in float32."""
    return next_token_loss(model(tokens, use_cache=False).logits, tokens)


def _best(runs: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The learning rate with the lowest held-out loss at its end, the first of equals; a diverged one is the worst."""
    return min(runs, key=lambda run: math.inf if "stopped" in run else run["curve"][-1]["held_out"])
