"""Shows whether the embedded models are worth pruning: perplexity beside floor and trigram, and tasks."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harness.embedded.data import ASSETS, corpus, corpus_path, token_ids, training_stream
from harness.embedded.language import STYLE_NAMES, Language
from harness.embedded.trigram import Trigram

WINDOW = 256
TRIGRAM_TOKENS = 20_000_000
TASKS = ("cloze", "facts")


@dataclass(frozen=True)
class TestText:
    """A test text as one row of ids, <s> first, and the generator's cost of each token."""

    ids: np.ndarray
    costs: np.ndarray


def read_rows(path: str) -> list[dict[str, object]]:
    """The rows of a JSON-lines asset."""
    return [json.loads(line) for line in (ASSETS / path).read_text(encoding="utf-8").splitlines()]


def test_text(language: Language, style: str) -> TestText:
    """Regenerate a test corpus with its costs, and insist that the stored file says the same."""
    documents = corpus(language, style, "test")
    stored = [json.loads(line)["text"] for line in corpus_path(style, "test").read_text(encoding="utf-8").splitlines()]
    if stored != [str(d.text) for d in documents]:
        raise ValueError(f"embedded-{style}.test.jsonl differs from what the generator writes")
    ids = token_ids(language)
    tokens = [0] + [ids[t] for d in documents for t in d.text.tokens]
    return TestText(np.array(tokens), np.array([0.0] + [c for d in documents for c in d.text.costs]))


def target_mask(length: int) -> np.ndarray:
    """Which tokens the protocol predicts: all but the first of each full window."""
    mask = np.ones(length - length % WINDOW, dtype=bool)
    mask[::WINDOW] = False
    return mask


@torch.no_grad()
def model_losses(model: PreTrainedModel, ids: np.ndarray, device: str = "cpu") -> np.ndarray:
    """Negative log-probability of every target of the protocol, in float32."""
    rows = torch.from_numpy(ids[: len(ids) - len(ids) % WINDOW]).view(-1, WINDOW)
    out = []
    for batch in rows.split(16):
        logits = model(input_ids=batch.to(device), use_cache=False).logits[:, :-1].float()
        targets = batch[:, 1:].to(device)
        out.append(torch.nn.functional.cross_entropy(logits.transpose(1, 2), targets, reduction="none").cpu())
    return torch.cat(out).numpy()


@torch.no_grad()
def task_accuracy(
    model: PreTrainedModel, rows: list[list[list[int]]], golds: list[int], starts: list[int], device: str = "cpu"
) -> float:
    """Share of items whose gold choice has the highest summed log-probability; rows are item x choice x ids."""
    right = 0
    for at in range(0, len(rows), 16):
        flat = [ids for item in rows[at : at + 16] for ids in item]
        width = max(map(len, flat))
        padded = torch.tensor([ids + [3] * (width - len(ids)) for ids in flat]).to(device)
        scores = torch.log_softmax(model(input_ids=padded, use_cache=False).logits.float(), -1)
        picked = scores[:, :-1].gather(2, padded[:, 1:, None])[..., 0].cpu()
        sums = []
        for k, ids in enumerate(flat):
            start = starts[at + k // len(rows[0])]
            sums.append(picked[k, start - 1 : len(ids) - 1].sum())
        best = torch.stack(sums).view(-1, len(rows[0])).argmax(1).tolist()
        right += sum(b == g for b, g in zip(best, golds[at : at + 16], strict=True))
    return right / len(rows)


def task_rows(ids: dict[str, int], name: str) -> tuple[list[list[list[int]]], list[int], list[int]]:
    """A task as ids: choices appended to their query, gold indices, and where each continuation starts."""
    rows, golds, starts = [], [], []
    for item in read_rows(f"tasks/embedded-{name}.jsonl"):
        query = [0] + [ids[t] for t in str(item["query"]).split()]
        choices: list[str] = item["choices"]  # type: ignore[assignment]
        rows.append([query + [ids[t] for t in c.split()] for c in choices])
        golds.append(int(item["gold"]))  # type: ignore[call-overload]
        starts.append(len(query))
    return rows, golds, starts


def trigram_perplexities(
    language: Language, texts: dict[str, TestText], tokens: int = TRIGRAM_TOKENS
) -> dict[str, float]:
    """Perplexity of the trigram on the same targets; it may look back over window edges."""
    trigram = Trigram(training_stream(tokens), len(token_ids(language)))
    out = {}
    for style, text in texts.items():
        chances = np.concatenate([np.ones(2), trigram.probabilities(text.ids)])
        mask = target_mask(len(text.ids))
        mask[1] = False
        out[style] = float(np.exp(-np.log(chances[: len(mask)][mask]).mean()))
    return out


TEXT_HEAD = ("model", "text", "dense", "floor", "dense / floor (≤ 1.3)", "trigram", "floor / trigram (≤ 0.5)")
TASK_HEAD = ("model", "task", "accuracy", "chance", "above chance (≥ 0.2)")


def text_rows(
    name: str, model: PreTrainedModel, texts: dict[str, TestText], trigrams: dict[str, float], device: str = "cpu"
) -> list[tuple[str, ...]]:
    """The cells of one model below `TEXT_HEAD`, a row per text; floor and trigram are perplexities too."""
    rows = []
    for style, text in texts.items():
        dense = float(np.exp(model_losses(model, text.ids, device).mean(1).mean()))
        mask = target_mask(len(text.ids))
        floor = float(np.exp(text.costs[: len(mask)][mask].mean()))
        numbers = (dense, floor, dense / floor, trigrams[style], floor / trigrams[style])
        rows.append((name, f"embedded-{style}", *(f"{number:.3f}" for number in numbers)))
    return rows


def accuracy_rows(name: str, model: PreTrainedModel, device: str = "cpu") -> list[tuple[str, ...]]:
    """The cells of one model below `TASK_HEAD`, a row per task."""
    ids = token_ids(Language())
    rows = []
    for task in TASKS:
        items, golds, starts = task_rows(ids, task)
        accuracy, chance = task_accuracy(model, items, golds, starts, device), 1 / len(items[0])
        rows.append((name, f"embedded-{task}", *(f"{number:.3f}" for number in (accuracy, chance, accuracy - chance))))
    return rows


def check() -> None:
    """Print what the stored models are worth, as two Markdown tables."""
    language = Language()
    texts = {style: test_text(language, style) for style in STYLE_NAMES}
    trigrams = trigram_perplexities(language, texts)
    perplexities, accuracies = [], []
    for name in ("embedded-llama", "embedded-opt"):
        tokenizer = AutoTokenizer.from_pretrained(ASSETS / name, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(ASSETS / name, local_files_only=True, dtype=torch.float32).eval()
        stored = " ".join(str(r["text"]) for r in read_rows("corpora/embedded-a.test.jsonl"))
        if tokenizer(stored)["input_ids"] != texts["a"].ids.tolist():
            raise ValueError("the stored tokenizer does not give the generator's tokens")
        perplexities += text_rows(name, model, texts, trigrams)
        accuracies += accuracy_rows(name, model)
    for head, rows in ((TEXT_HEAD, perplexities), (TASK_HEAD, accuracies)):
        print("\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)), end="\n\n")
