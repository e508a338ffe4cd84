"""The two multiple-choice tasks: embedded-cloze (which sentence fits the text) and embedded-facts (what is so).

Cloze distractors are the same sentence told of someone else, or of another episode, with the free words unchanged.
Facts come in groups of four questions that share their four choices, so that no choice is likelier than another.
"""

from __future__ import annotations

from random import Random

from harness.embedded.data import ASSETS, SEEDS, write_jsonl
from harness.embedded.grammar import Env, Op, Tape, Text, compile_template
from harness.embedded.language import STYLE_NAMES, Document, Language
from harness.embedded.world import Word, pick, shuffled

ITEMS = 500
CHOICES = 4
EPISODE = ("q", "s", "c", "w", "n", "m")

Item = dict[str, object]

# relation: query (subject is p, t or f), answer path
QUESTIONS = (
    ("people", "Born in the month of {p.month} , {p} works as a", "{p.trade}"),
    ("people", "entry 1 : {p} ,", "{p.trade}"),
    ("people", "entry 1 : {p} , {p.trade} ,", "{p.town}"),
    ("people", "entry 1 : {p} , {p.trade} , {p.town} . meals :", "{p.dish}"),
    ("people", "entry 1 : {p} , {p.trade} , {p.town} . teacher :", "{p.teacher}"),
    ("people", "entry 1 : {p} , {p.trade} , {p.town} . friend :", "{p.friend}"),
    ("people", "entry 1 : {p} , {p.trade} , {p.town} . beast :", "{p.colour} {p.beast}"),
    ("people", "entry 1 : {p} , {p.trade} , {p.town} . born :", "{p.month}"),
    ("people", "The {p.trade} {p} settled down in the old {p.town.kind} of", "{p.town}"),
    (
        "people",
        "{p} is a {p.trade} . {p.His} house stands near the old {p.town.landmark} , where the",
        "{p.town.river}",
    ),
    ("towns", "entry 1 : {p} , {p.kind} ,", "{p.region}"),
    ("towns", "entry 1 : {p} , {p.kind} , {p.region} . mayor :", "{p.mayor}"),
    ("towns", "entry 1 : {p} , {p.kind} , {p.region} . road :", "{p.neighbour}"),
    ("towns", "entry 1 : {p} , {p.kind} , {p.region} . coin :", "{p.region.coin}"),
    ("families", "Like all of the {p} kin she wears", "{p.colour}"),
    ("families", "Like all of the {p} kin he wears {p.colour} and the sign of the", "{p.beast}"),
)


def _swap(language: Language, rng: Random, env: Env) -> Env:
    """The bindings of someone else of the same gender, who lived through another episode."""
    other = dict(env)
    person = env["p"]
    while other["p"] is person or other["p"].get("he").text != person.get("he").text:  # type: ignore[attr-defined]
        other["p"] = pick(rng, language.world["people"])
    for name, pool in zip(EPISODE, ("people", "people", "colours", "wares", "numbers", "months"), strict=True):
        if name in env:
            other[name] = pick(rng, language.world[pool])
    return other


def _realise(language: Language, ops: tuple[Op, ...], env: Env, tape: Tape) -> str:
    out = Text()
    language.grammar.write(ops, dict(env), tape, out)
    return str(out)


def _cloze_item(language: Language, rng: Random, document: Document, gold: int) -> Item | None:
    entries = [e for e in document.entries if e.role == "p"]
    if not entries:
        return None
    entry = entries[int(rng.random() * len(entries))]
    # The opening and the episode introduce things; the sentences after them can be told true from false.
    template, env, played, start, end = entry.sentences[2 + int(rng.random() * (len(entry.sentences) - 2))]
    tokens = document.text.tokens
    answer = " ".join(tokens[start:end])
    choices = [answer]
    for _ in range(20):
        wrong = _realise(language, template, _swap(language, rng, env), Tape(rng, played))
        if wrong not in choices:
            choices.append(wrong)
        if len(choices) == CHOICES:
            choices[0], choices[gold] = choices[gold], choices[0]
            return {"query": " ".join(tokens[entry.start : start]), "choices": list(choices), "gold": gold}
    return None


def cloze(language: Language) -> list[Item]:
    """500 items over the three styles, from documents of their own seed."""
    rng = Random(SEEDS["cloze"])
    items: list[Item] = []
    while len(items) < ITEMS:
        document = language.document(rng, STYLE_NAMES[len(items) % len(STYLE_NAMES)])
        item = _cloze_item(language, rng, document, len(items) % CHOICES)
        if item:
            items.append(item)
    return items


def _group(language: Language, rng: Random, question: tuple[str, str, str], used: set[tuple[str, str]]) -> list[Item]:
    """Four questions of one relation with four different answers, which are the choices of each."""
    pool, query, answer = question
    subjects: list[Word] = []
    answers: list[str] = []
    for word in shuffled(rng, language.world[pool]):
        text = _realise(language, compile_template(answer), {"p": word}, Tape(rng))
        if (query, word.text) not in used and text not in answers:
            subjects.append(word)
            answers.append(text)
        if len(answers) == CHOICES:
            break
    used.update((query, word.text) for word in subjects)
    items: list[Item] = []
    for word, text in zip(subjects, answers, strict=True):
        asked = _realise(language, compile_template(query), {"p": word}, Tape(rng))
        items.append({"query": asked, "choices": list(answers), "gold": answers.index(text)})
    return items


def facts(language: Language) -> list[Item]:
    """500 items over the relations in turn."""
    rng = Random(SEEDS["facts"])
    used: set[tuple[str, str]] = set()
    items: list[Item] = []
    for number in range(ITEMS // CHOICES):
        items += _group(language, rng, QUESTIONS[number % len(QUESTIONS)], used)
    return items


def write_tasks(language: Language) -> None:
    """Write both task files."""
    write_jsonl(ASSETS / "tasks" / "embedded-cloze.jsonl", cloze(language))
    write_jsonl(ASSETS / "tasks" / "embedded-facts.jsonl", facts(language))
