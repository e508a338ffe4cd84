"""A small template grammar whose every random choice is charged to the token that reveals it.

Template syntax: plain words are emitted as they are; `[x|y z]` is a uniform choice of phrase; `{p.town.river}` names
what the path leads to; `{c=colours}` draws a thing from a pool (a world pool, or a list on a path) other than those
already bound, binds it to `c` (`_` binds nothing) and names it; `{w=wares~pl}` names its `pl` form; `{n+m}` is a sum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from math import log
from random import Random

from harness.embedded.world import Word, World

Env = dict[str, Word]


@dataclass
class Text:
    """Tokens and, for each, its negative log-probability under the generator given the plan and the past."""

    tokens: list[str] = field(default_factory=list)
    costs: list[float] = field(default_factory=list)
    pending: float = 0.0

    def emit(self, words: str) -> None:
        """Append words; a cost that waits goes to the first of them."""
        for word in words.split(" "):
            self.tokens.append(word)
            self.costs.append(self.pending)
            self.pending = 0.0

    def charge(self, options: int) -> None:
        """Note a uniform choice among `options`."""
        self.pending += log(options)

    def __str__(self) -> str:
        return " ".join(self.tokens)


class Tape:
    """A stream of uniform numbers that can be recorded and played again, for counterfactual sentences."""

    def __init__(self, rng: Random, played: list[float] | None = None) -> None:
        self.rng = rng
        self.played = list(played or [])
        self.used: list[float] = []

    def index(self, size: int) -> int:
        """A uniform index below `size`."""
        value = self.played[len(self.used)] if len(self.used) < len(self.played) else self.rng.random()
        self.used.append(value)
        return int(value * size)


@dataclass(frozen=True)
class Emit:
    """Literal words."""

    words: str


@dataclass(frozen=True)
class Slot:
    """A path to name, or a draw when `pool` is set, or a sum when `plus` is set."""

    path: tuple[str, ...]
    pool: tuple[str, ...] = ()
    form: str = ""
    plus: str = ""


@dataclass(frozen=True)
class Choice:
    """Alternatives of equal probability."""

    options: tuple[tuple[Op, ...], ...]


Op = Emit | Slot | Choice

_PIECE = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^\[{]+")


def _slot(body: str) -> Slot:
    body, _, form = body.partition("~")
    if "+" in body:
        left, right = body.split("+")
        return Slot((left,), plus=right)
    if "=" in body:
        name, pool = body.split("=")
        return Slot((name,), tuple(pool.split(".")), form)
    return Slot(tuple(body.split(".")))


def compile_template(source: str) -> tuple[Op, ...]:
    """Parse a template into operations."""
    ops: list[Op] = []
    for piece in _PIECE.findall(source):
        if piece[0] == "[":
            ops.append(Choice(tuple(compile_template(option) for option in _split(piece[1:-1]))))
        elif piece[0] == "{":
            ops.append(_slot(piece[1:-1]))
        elif piece.strip():
            ops.append(Emit(" ".join(piece.split())))
    return tuple(ops)


def _split(body: str) -> list[str]:
    return [option.strip() for option in body.split("|")]


class Grammar:
    """Realises templates in one world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._members: dict[int, frozenset[int]] = {}

    def follow(self, env: Env, path: tuple[str, ...]) -> Word:
        """The word at the end of a path such as p.town.river."""
        word = env[path[0]]
        for name in path[1:]:
            word = word.get(name)  # type: ignore[assignment]
        return word

    def pool(self, env: Env, path: tuple[str, ...]) -> list[Word]:
        """A world pool by name, or a list that hangs on a word."""
        return self.world[path[0]] if len(path) == 1 else self.follow(env, path)  # type: ignore[return-value]

    def _draw(self, slot: Slot, env: Env, tape: Tape, out: Text) -> Word:
        pool = self.pool(env, slot.pool)
        members = self._members.get(id(pool))
        if members is None:
            members = self._members[id(pool)] = frozenset(map(id, pool))
        barred = {id(word) for word in env.values()} & members
        left = len(pool) - len(barred)
        if left <= 0:
            raise ValueError(f"nothing left to draw from {slot.pool}")
        word = pool[tape.index(len(pool))]
        while id(word) in barred:
            word = pool[tape.index(len(pool))]
        out.charge(left)
        if slot.path[0] != "_":
            env[slot.path[0]] = word
        return word

    def write(self, ops: tuple[Op, ...], env: Env, tape: Tape, out: Text) -> None:
        """Append one realisation of `ops` to `out`; draws are bound in `env`."""
        for op in ops:
            if isinstance(op, Emit):
                out.emit(op.words)
            elif isinstance(op, Choice):
                out.charge(len(op.options))
                self.write(op.options[tape.index(len(op.options))], env, tape, out)
            elif op.plus:
                out.emit(str(int(env[op.path[0]].text) + int(env[op.plus].text)))
            elif op.pool:
                word = self._draw(op, env, tape, out)
                out.emit(word.get(op.form).text if op.form else word.text)  # type: ignore[attr-defined]
            else:
                out.emit(self.follow(env, op.path).text)
