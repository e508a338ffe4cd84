"""No network, two threads, and no test on real assets where there are none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "ACTIVE")  # as in harness.__main__, before torch is imported
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers and datasets are imported
os.environ["HF_DATASETS_OFFLINE"] = "1"

import pytest
import torch

from harness.data import corpora

torch.set_num_threads(1)  # two processes share two cores (pytest -n 2)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    folder = os.environ.get("HARNESS_ASSETS")
    if folder and Path(folder).is_dir():
        return
    for item in items:
        if item.get_closest_marker("assets"):
            item.add_marker(pytest.mark.skip(reason="HARNESS_ASSETS is not set, or no folder"))


@pytest.fixture(autouse=True)
def _texts_are_read_again() -> Iterator[None]:
    """What one test reads below its own HARNESS_ASSETS is not remembered for the next one."""
    yield
    corpora.read_text.cache_clear()
