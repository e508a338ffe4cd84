"""Zero-shot (and few-shot) accuracy through lm-eval, on local files where they are, else on the hub's data sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.catalogue import component
from harness.core.costs import Cost, Work
from harness.core.geometry import Geometry
from harness.data.corpora import Local, local_file, read_known
from harness.data.vocabulary import TOLD, unknown_tokens
from harness.data.zeroshot import TASKS, LocalTask, hub_rows
from harness.evaluation.likelihoods import AT_ONCE, LOGIT_BYTES, SHORTEST
from harness.evaluation.prepared import prepared
from harness.evaluation.protocol import Context, Measure, Protocol
from harness.evaluation.zeroshot_lm import (
    FEWSHOT_SEED,
    choice_task,
    documents_hash,
    evaluate,
    hub_revisions,
    hub_task,
    installed_tasks,
    language_model,
    local_task,
    own_randomness,
    package,
    quiet,
    read_template,
    reports_accuracy,
    templates,
    with_examples,
)
from harness.models.decoder import Decoder
from harness.runtime.errors import UserError, unknown
from harness.runtime.hub import asking, why_nothing

EMBEDDED_VERSION = 1
TOKENS = {
    "boolq": 508_000,
    "rte": 25_000,
    "hellaswag": 1_827_000,
    "winogrande": 53_000,
    "arc_easy": 114_000,
    "arc_challenge": 69_000,
    "openbookqa": 12_000,
    "piqa": 127_000,
    "embedded-cloze": 84_000,
    "embedded-facts": 6_000,
}
"""Tokens that run where a context runs once, counted with the tokenizers of the proxies and of the embedded models."""


@component("evaluator", "zeroshot")
@dataclass(frozen=True)
class ZeroShot:
    """Gao et al., The Language Model Evaluation Harness: the answer with the highest log-likelihood is the model's.

    `acc` compares sums over an answer's tokens, `acc_norm` the sums divided by its characters. The papers' protocol is
    zero-shot and without BOS. Answers run behind one pass over their common context, many items in a row, the head
    where a token of an answer is predicted; `numerics=exact` scores them one by one as lm-eval does, padded, in batches
    of `batch_size`, which moves results in the third digit. The protocol says which.
    """

    task: str
    """The task, as lm-eval calls it."""
    fewshot: int = 0
    """Solved examples in front of each question."""
    add_bos_token: bool = False
    """Put a BOS in front of each question."""
    batch_size: int = 16
    """Answers at a time with `numerics=exact`; moves results in the third digit."""

    def __post_init__(self) -> None:
        if self.task not in TASKS and self.task not in (known := installed_tasks()):
            raise unknown("lm-eval task", self.task, {*TASKS, *known})
        if self.fewshot < 0 or self.batch_size < 1:
            raise UserError(f"task '{self.task}': fewshot is at least 0 and batch_size at least 1.")

    def cost(self, geometry: Geometry, work: Work) -> Cost:
        """Every context once, with all its answers; what a batch takes in a block, with its mask, or its logits."""
        rows = AT_ONCE[work.device] * (6 * geometry.hidden + 3 * geometry.wide + SHORTEST[work.device]) * work.itemsize
        logits = LOGIT_BYTES[work.device] * (2 + work.itemsize // 4)
        return Cost(forwards=TOKENS.get(self.task, 256 * work.window), working_bytes=max(rows, logits))

    def protocol(self, context: Context) -> Protocol:
        """The protocol of the task where its data are now; a limit makes it another one."""
        files = self._files()
        template = self._template()
        bos = "bos" if self.add_bos_token else "no-bos"
        limit = f",limit={context.limit}" if context.limit else ""
        return Protocol(
            f"{self.task}@lm-eval-{template['version']},{self.fewshot}-shot,{bos}{limit}",
            {
                "task": self.task,
                "version": template["version"],
                "lm_eval": package(),
                "fewshot": self.fewshot,
                "fewshot_seed": FEWSHOT_SEED if self.fewshot else None,
                "bos": "one, in front of the prompt" if self.add_bos_token else "none",
                "limit": context.limit,
                **({"batch_size": self.batch_size} if context.exact else {"answers": "behind a shared context"}),
                "source": "local" if files else "hub",
                "dataset": template["dataset"],
                "split": template["split"],
                "sha256": {split: _digest(self.task, *found) for split, found in files.items()} or None,
                "departure": TASKS[self.task].departure if files else "",
                "length": "the model's own context, longer prompts lose their beginning",
                "log_softmax": "float32",
            },
        )

    def data_hash(self) -> str:
        """The sha256 of the evaluated local file's uncompressed bytes, or of the hub's documents, which it downloads.

        Raises:
            UserError: the local file is not the one known, or the hub is not to be had.
        """
        files = self._files()
        return read_known(self.task, *files[TASKS[self.task].evaluated])[1] if files else _hub_hash(self)

    def __call__(self, decoder: Decoder, tokenizer: Any, context: Context) -> Iterator[Measure]:
        with own_randomness(), quiet():
            task = prepared((self, context.limit, self.data_hash(), self._template()["version"]), self._examples)
            exact_batch = self.batch_size if context.exact else None
            lm = language_model(decoder, tokenizer, task, self.add_bos_token, exact_batch)
            scores = evaluate(lm, task.task, context.limit)
        notes = [f"hub revision {revision}" for revision in hub_revisions(task.task)]
        if context.exact and lm.batch_size < self.batch_size:
            notes.append(f"batches of {lm.batch_size}, not {self.batch_size}, after running out of memory")
        if lm.truncated:
            notes.append(f"{lm.truncated} requests were cut to the model's context of {lm.max_length} tokens")
        if lm.unknown > TOLD:
            notes.append(unknown_tokens(lm.unknown, "the task"))
        if lm.undefined:
            notes.append(f"not finite: {lm.undefined} log-likelihoods are not numbers")
        protocol = str(self.protocol(context))
        for metric, score in scores.items():
            value, stderr = (None, None) if lm.undefined else (score.value, score.stderr)
            yield Measure(self.task, metric, value, stderr, protocol, score.samples, "; ".join(notes))

    def _examples(self) -> Any:
        return with_examples(self.load(), self.fewshot)

    def load(self) -> Any:
        """lm-eval's task with its documents: local files first, then the hub.

        Raises:
            UserError: a local file is not the one known, the hub is not to be had, or the task reports no accuracy.
        """
        if files := self._files():
            known = TASKS[self.task]
            rows = {split: hub_rows(self.task, split, path) for split, (_, path) in files.items()}
            if known.template:
                return local_task(templates() / known.template, rows)
            return choice_task(self.task, EMBEDDED_VERSION, rows[known.evaluated])
        if not reports_accuracy(read_template(self._path())):
            raise UserError(f"the lm-eval task '{self.task}' reports no accuracy, so that the harness cannot score it.")
        try:
            with asking(f"the task {self.task}"):
                return hub_task(self._path())
        except Exception as error:
            raise UserError(
                f"the task '{self.task}' is neither below HARNESS_ASSETS nor to be had from the hub "
                f"({why_nothing(error)}); on a machine with a network run: "
                f"python -m harness prefetch 'evaluation=[{self.task}]'"
            ) from error

    def _files(self) -> dict[str, tuple[Local, Path]]:
        """The local files of the run by split; empty where the hub has to be asked."""
        if self.task not in TASKS:
            return {}
        known = TASKS[self.task]
        found = {split: (local, path) for split, local in known.files.items() if (path := local_file(local))}
        if known.evaluated not in found:
            if not known.template:
                raise UserError(f"the task file {known.files[known.evaluated].path} is missing: run make embedded.")
            return {}
        if not self.fewshot:
            return {known.evaluated: found[known.evaluated]}
        if "train" not in found and not known.template:
            raise UserError(f"the generated task '{self.task}' has no examples to show: set fewshot=0.")
        if "train" not in found:
            raise UserError(
                f"the local files of '{self.task}' have no training split to draw {self.fewshot} examples from: "
                "set fewshot=0, or unset HARNESS_ASSETS to take the task from the hub."
            )
        return found

    def _path(self) -> Path:
        known: LocalTask | None = TASKS.get(self.task)
        return templates() / known.template if known and known.template else installed_tasks()[self.task]

    def _template(self) -> dict[str, Any]:
        """The protocol's facts of the task: version, data set and split."""
        known = TASKS.get(self.task)
        if known and not known.template:
            return {"version": EMBEDDED_VERSION, "dataset": self.task, "split": known.evaluated}
        config = read_template(self._path())
        names = [config.get("dataset_path"), config.get("dataset_name")]
        return {
            "version": (config.get("metadata") or {}).get("version"),
            "dataset": ":".join(str(name) for name in names if name),
            "split": config.get("test_split") or config.get("validation_split") or config.get("training_split"),
        }


@lru_cache(maxsize=32)
def _hub_hash(evaluator: ZeroShot) -> str:
    with own_randomness(), quiet():
        return documents_hash(evaluator.load())


def _digest(task: str, local: Local, path: Path) -> str:
    """The sha256 that a file has to have, or of an embedded one has."""
    return local.sha256 or read_known(task, local, path)[1]
