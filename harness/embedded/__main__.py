"""Makes the embedded default from nothing: corpora, tasks, tokenizers and both models; `--only` makes one part."""

from __future__ import annotations

import argparse

from harness.embedded.data import write_corpora
from harness.embedded.language import Language
from harness.embedded.tasks import write_tasks
from harness.embedded.train import train
from harness.embedded.worth import check


def main() -> None:
    """Parse the arguments and make what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m harness.embedded", description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--only", choices=("texts", "llama", "opt", "check"))
    parser.add_argument("--tokens", type=int, help="training tokens per model; the default depends on the device")
    chosen = parser.parse_args()
    if chosen.only in (None, "texts"):
        language = Language()
        write_corpora(language)
        write_tasks(language)
    for name in ("llama", "opt"):
        if chosen.only in (None, name):
            train(name, chosen.device, chosen.tokens)
    if chosen.only in (None, "check"):
        check()


if __name__ == "__main__":
    main()
