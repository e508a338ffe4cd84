"""Tasks of lm-eval made ready once a process: documents read, requests built, templates rendered, tokens found.

lm-eval does all of this again for every model that it scores. What it is given here is its own task object, whose
methods remember what they gave for the same document.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import islice
from typing import Any
from weakref import WeakKeyDictionary

from harness.evaluation.likelihoods import Requests
from harness.evaluation.packing import Request
from harness.runtime.errors import Failure

KEPT = 32
"""Tasks that a process keeps."""
RENDERED = ("doc_to_choice", "doc_to_target", "doc_to_text")
"""Methods of a task that render a template for a document."""


class PreparedTask:
    """An lm-eval task for one limit and number of examples; the requests are those of its first evaluation."""

    def __init__(self, task: Any) -> None:
        self.task = task
        self._documents = [*task.eval_docs]
        self._tokens: WeakKeyDictionary[Any, dict[bool, Requests]] = WeakKeyDictionary()
        task.doc_iterator = self._iterate
        for name in RENDERED:
            setattr(task, name, _remembered(getattr(task, name)))
        self._build, task.build_all_requests = task.build_all_requests, self._requests
        self._built = False

    def _iterate(self, *, rank: int = 0, limit: int | None = None, world_size: int = 1, samples: Any = None) -> Any:
        assert (rank, world_size, samples) == (0, 1, None), "one process scores all of a task"
        return islice(enumerate(self._documents), limit)

    def _requests(self, **options: Any) -> None:
        """Build the requests, or take the answers of the last model off them."""
        if not self._built:
            self._build(**options)
            self._built = True
        for instance in self.task._instances:
            instance.resps, instance.filtered_resps = [], {}

    def tokens(self, tokenizer: Any, bos: bool, texts: Sequence[tuple[str, str]]) -> Requests:
        """The tokens of contexts and continuations, which are those of all calls, by lm-eval's rules (`encode`)."""
        known = self._tokens.setdefault(tokenizer, {})
        if bos not in known:
            known[bos] = Requests(encode(tokenizer, texts, bos))
        return known[bos]


def _remembered(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, once for each document that stays in memory."""
    known: dict[tuple[int, tuple[Any, ...]], Any] = {}

    def remembered(doc: Any, *given: Any, **named: Any) -> Any:
        if named:
            return method(doc, *given, **named)
        key = (id(doc), given)
        if key not in known:
            known[key] = (doc, method(doc, *given))  # the document stays, or its number would be another one's
        return known[key][1]

    return remembered


def encode(tokenizer: Any, texts: Sequence[tuple[str, str]], bos: bool) -> list[Request]:
    """Tokens of contexts and continuations as lm-eval's `TemplateLM` finds them, all at once.

    Spaces behind a context belong to the continuation; both are tokenised together and cut where the context ends. An
    empty context is the BOS, or EOS where there is none.

    Raises:
        Failure: a context or a continuation has no token of its own.
    """
    pairs = [_without_spaces(*pair) for pair in texts]
    known = _tokenised(tokenizer, {context for context, _ in pairs if context}, bos)
    known |= _tokenised(tokenizer, {context + continuation for context, continuation in pairs if context}, bos)
    alone = _tokenised(tokenizer, {continuation for context, continuation in pairs if not context}, None)
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    requests: list[Request] = []
    for context, continuation in pairs:
        if context:
            head, whole = known[context], known[context + continuation]
            requests.append(Request(head, whole[len(head) :]))
        else:
            answer = alone[continuation]
            split = answer[:1] == (prefix,)
            requests.append(Request(answer[:1], answer[1:]) if split else Request((prefix,), answer))
    if empty := sum(not (request.context and request.answer) for request in requests):
        raise Failure(f"{empty} requests of the task have no token in their context or in their answer.")
    return requests


def _without_spaces(context: str, continuation: str) -> tuple[str, str]:
    kept = context.rstrip()
    if not kept:  # lm-eval leaves it to itself
        return context, continuation
    return kept, context[len(kept) :] + continuation


def _tokenised(tokenizer: Any, texts: set[str], bos: bool | None) -> dict[str, tuple[int, ...]]:
    """Tokens of texts, with the tokenizer's BOS in front where `bos` asks for it and the text does not begin with one.

    Args:
        bos: None tokenises a part of a text, which never has one.
    """
    found: dict[str, tuple[int, ...]] = {}
    prefix = _prefix(tokenizer) if bos is not None else ""
    plain = [text for text in texts if not bos or (prefix and text.startswith(prefix))]
    special = [text for text in texts if bos and not (prefix and text.startswith(prefix))]
    for group, adds in ((plain, False), (special, True)):
        if group:
            ids = tokenizer(group, add_special_tokens=adds, return_attention_mask=False)["input_ids"]
            found |= {text: tuple(tokens) for text, tokens in zip(group, ids, strict=True)}
    return found


def _prefix(tokenizer: Any) -> str:
    token = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return "" if token is None else str(tokenizer.decode(token))


_PREPARED: dict[Hashable, PreparedTask] = {}


def prepared(key: Hashable, load: Callable[[], Any]) -> PreparedTask:
    """The task of a key, made now unless it is there; those asked for last are kept."""
    task = _PREPARED.pop(key, None) or PreparedTask(load())
    _PREPARED[key] = task
    for oldest in list(_PREPARED)[:-KEPT]:
        del _PREPARED[oldest]
    return task
