"""The embedded language: a seeded generator of documents that knows the probability of every token it writes.

Types: `World` (world.py) holds the facts; `Kind` (styles.py) the templates; `Grammar` (grammar.py) turns a template
into a `Text`, tokens with their costs; here a `Plan` is drawn, then a `Document` written from it.

Flow: a document draws its plan first (style, topic, order of its subjects), writes a title, then one entry per
subject: opening, episode, facts in free order, closing. Everything after the plan is charged at the token where it
shows: templates, phrases, things drawn. What the plan, the world or the past fixes costs nothing.

The floor is exp of the mean cost per token: the exact joint negative log-probability of tokens and choices given the
plan and the world. A reader who must infer the plan, or learn the world, can only do worse on average; where two
choices could give the same words the sum over both would be lower, but alternatives are worded apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from harness.embedded.grammar import Env, Grammar, Op, Tape, Text, compile_template
from harness.embedded.styles import STYLES, TITLES, Kind
from harness.embedded.world import Word, World, build_world, shuffled

STYLE_NAMES = ("a", "b", "c")
TOPICS = (("family", 0.3), ("town", 0.3), ("trade", 0.2), ("region", 0.1), ("habitat", 0.1))
TOPIC_POOLS = {"family": "families", "town": "towns", "trade": "trades", "region": "regions", "habitat": "habitats"}
ENTRIES = {"a": 3, "b": 3, "c": 4}

Templates = tuple[tuple[Op, ...], ...]


@dataclass(frozen=True)
class CompiledKind:
    """A Kind whose templates are parsed."""

    openings: Templates
    episodes: Templates
    facts: Templates
    closings: Templates
    count: int


@dataclass(frozen=True)
class Plan:
    """The latent choices of a document, known to the floor: style, topic and subjects in order."""

    style: str
    topic: str
    about: Word
    subjects: tuple[tuple[str, Word], ...]


@dataclass
class Entry:
    """Where the sentences of one entry lie, and what was bound when each began (for counterfactual choices)."""

    role: str
    start: int
    sentences: list[tuple[tuple[Op, ...], Env, list[float], int, int]]


@dataclass
class Document:
    """One document: its plan, its tokens with costs, and its entries."""

    plan: Plan
    text: Text
    entries: list[Entry]


def _compiled(kind: Kind) -> CompiledKind:
    openings, episodes, facts, closings = (
        tuple(compile_template(t) for t in part) for part in (kind.openings, kind.episodes, kind.facts, kind.closings)
    )
    return CompiledKind(openings, episodes, facts, closings, kind.count)


class Language:
    """Draws documents; all randomness comes from the generator handed in."""

    def __init__(self, world: World | None = None) -> None:
        self.world = world or build_world()
        self.grammar = Grammar(self.world)
        self.kinds = {s: {role: _compiled(kind) for role, kind in kinds.items()} for s, kinds in STYLES.items()}
        self.titles = {s: {t: compile_template(x) for t, x in titles.items()} for s, titles in TITLES.items()}

    def plan(self, rng: Random, style: str) -> Plan:
        """Draw the latent choices of a document in this style."""
        value, topic = rng.random(), TOPICS[-1][0]
        for name, share in TOPICS:
            if value < share:
                topic = name
                break
            value -= share
        pool = self.world[TOPIC_POOLS[topic]]
        about = pool[int(rng.random() * len(pool))]
        member, role = {"habitat": ("beasts", "b"), "region": ("towns", "t")}.get(topic, ("people", "p"))
        subjects = shuffled(rng, about.get(member))  # type: ignore[arg-type]
        chosen = [(role, word) for word in subjects[: ENTRIES[style]]]
        if topic == "town":
            chosen = [("t", about), *chosen[:-1]]
        return Plan(style, topic, about, tuple(chosen))

    def document(self, rng: Random, style: str) -> Document:
        """Draw a plan and write it out."""
        plan = self.plan(rng, style)
        text, env = Text(), {plan.topic: plan.about}
        self.grammar.write(self.titles[style][plan.topic], env, Tape(rng), text)
        speakers: Env = {name: env[name] for name in ("x", "y") if name in env}
        entries = []
        for number, (role, subject) in enumerate(plan.subjects, 1):
            bound: Env = {**speakers, "z": plan.about, role: subject, "i": Word(str(number))}
            entries.append(self._entry(rng, self.kinds[style][role], role, bound, text))
            if speakers:
                speakers = {"x": speakers["y"], "y": speakers["x"]}
        return Document(plan, text, entries)

    def _entry(self, rng: Random, kind: CompiledKind, role: str, env: Env, text: Text) -> Entry:
        entry = Entry(role, len(text.tokens), [])
        self._sentence(rng, kind.openings, env, text, entry)
        self._sentence(rng, kind.episodes, env, text, entry)
        left = list(kind.facts)
        for _ in range(kind.count):
            chosen = self._sentence(rng, tuple(left), env, text, entry)
            left.remove(chosen)
        self._sentence(rng, kind.closings, env, text, entry)
        return entry

    def _sentence(self, rng: Random, options: Templates, env: Env, text: Text, entry: Entry) -> tuple[Op, ...]:
        text.charge(len(options))
        template = options[int(rng.random() * len(options))]
        tape, before, start = Tape(rng), dict(env), len(text.tokens)
        self.grammar.write(template, env, tape, text)
        entry.sentences.append((template, before, tape.used, start, len(text.tokens)))
        return template

    def vocabulary(self) -> list[str]:
        """Every token the language can write, sorted."""
        words: set[str] = {str(n) for n in range(1, 24)}
        for pool in self.world.pools.values():
            for word in pool:
                words.update(word.text.split(" "))
                for fact in word.facts.values():
                    if isinstance(fact, Word):
                        words.update(fact.text.split(" "))
        for ops in self._all_templates():
            _collect(ops, words)
        return sorted(words)

    def _all_templates(self) -> list[tuple[Op, ...]]:
        found = [t for titles in self.titles.values() for t in titles.values()]
        for kinds in self.kinds.values():
            for kind in kinds.values():
                found += [*kind.openings, *kind.episodes, *kind.facts, *kind.closings]
        return found


def _collect(ops: tuple[Op, ...], words: set[str]) -> None:
    for op in ops:
        for option in getattr(op, "options", ()):
            _collect(option, words)
        words.update(getattr(op, "words", "").split())
