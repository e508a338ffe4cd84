"""Calibration and evaluation texts that are, in part, the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from harness.data import overlap
from harness.data.overlap import refuse_overlap, shared_rows
from harness.runtime.errors import UserError

TEXTS: dict[tuple[str, str], Sequence[str]] = {}


def rows(name: str, count: int) -> list[str]:
    """Rows that are long enough to count, as the hub has them."""
    return [f" {name} {number} ".ljust(120, "x") + " \n" for number in range(count)]


@pytest.fixture(autouse=True)
def _made_up_texts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    own = rows("own", 200)
    TEXTS.update(
        {
            ("own", "train"): own,
            ("own", "test"): rows("test", 100),
            ("stripped", "train"): [row.strip() for row in own],
            ("mixed", "train"): rows("mixed", 50) + own[:1],
            ("large", "train"): rows("large", 5000) + rows("test", 100)[:50],
            ("quoting", "train"): rows("quoting", 200) + rows("test", 100)[:1],
            ("headings", "train"): ["= Title =\n", "", "The end.\n"] * 50 + rows("a", 5),
            ("headings", "test"): ["= Title =\n", "", "The end.\n"] * 50 + rows("b", 5),
            ("short", "train"): ["= Title =\n"],
        }
    )
    monkeypatch.setattr(overlap, "read_text", lambda *key: SimpleNamespace(rows=tuple(TEXTS[key])))
    shared_rows.cache_clear()
    yield
    shared_rows.cache_clear()


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        (("own", "train"), ("own", "train"), 1.0),
        (("own", "train"), ("stripped", "train"), 1.0),  # blanks around a row are none of its text
        (("own", "train"), ("own", "test"), 0.0),
        (("headings", "train"), ("headings", "test"), 0.0),  # what is short is the same by chance
        (("short", "train"), ("short", "train"), 0.0),
        (("mixed", "train"), ("own", "train"), 1 / 51),
        (("own", "train"), ("mixed", "train"), 1 / 200),
    ],
)
def test_the_share_of_long_rows(one: tuple[str, str], other: tuple[str, str], share: float) -> None:
    assert shared_rows(one, other) == pytest.approx(share)


def test_the_same_text_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        UserError, match=r"calibration text own \(train\) overlaps .* stripped \(train\): 100%"
    ) as error:
        refuse_overlap(("own", "train"), ("stripped", "train"))
    assert "calibrate on another text or split" in str(error.value) and "\n" not in str(error.value)


def test_a_small_text_within_a_large_one_is_refused_whichever_is_which() -> None:
    """Half of the evaluation text is 1 % of the calibration text."""
    for one, other in ((("large", "train"), ("own", "test")), (("own", "test"), ("large", "train"))):
        with pytest.raises(UserError, match="50%"):
            refuse_overlap(one, other)


def test_a_row_in_a_hundred_may_be_the_same() -> None:
    refuse_overlap(("quoting", "train"), ("own", "test"))
    refuse_overlap(("headings", "train"), ("headings", "test"))
    with pytest.raises(UserError, match="2%"):
        refuse_overlap(("mixed", "train"), ("own", "train"))


@pytest.mark.parametrize("corpus", ["embedded-a", "embedded-b", "embedded-c"])
def test_the_embedded_texts_do_not_overlap(corpus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    refuse_overlap((corpus, "train"), (corpus, "test"))
    with pytest.raises(UserError, match="100%"):
        refuse_overlap((corpus, "test"), (corpus, "test"))
