"""Every verdict and every reason for it, on made-up records of ours and of papers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import pytest

from harness.report.compare import COLUMNS, compare
from harness.report.reported import DENSE, PAIR, SCHEMA, load_dense, load_pairs, load_reported

OURS = "wikitext2-test@2048#8f89f7f3"
THEIRS = "made-up-loader@2048"
CELL = {
    "model": "made-up-7b", "method": "wanda", "allocator": "uniform", "scope": "all", "sparsity": 0.5,
    "pattern": "unstructured", "task": "wikitext2", "metric": "perplexity",
}  # fmt: skip


def measured(value: float | None = 7.26, **changes: Any) -> dict[str, Any]:
    """A row of our tidy table."""
    row = {
        "study": "paper_table1", "scale": "paper", "variant": "", "seed": 0, "stderr": None, "protocol": OURS,
        "samples": 166, "status": "done", "reason": "", "fingerprint": "f",
    }  # fmt: skip
    return CELL | row | {"value": value} | changes


def dense(value: float | None = 5.68, **changes: Any) -> dict[str, Any]:
    return measured(value, **({"method": "none", "sparsity": 0.0, "pattern": "dense"} | changes))


def printed(value: float = 7.26, **changes: Any) -> dict[str, Any]:
    """A reported row."""
    row = {
        "paper": "Paper", "arxiv": "", "table": "Table 1", "protocol": THEIRS, "seed": None, "digits": 2,
        "source": "primary: made up", "confidence": "verified", "note": "",
    }  # fmt: skip
    return CELL | row | {"value": value} | changes


def pair(**changes: Any) -> dict[str, Any]:
    row = {
        "reported_protocol": THEIRS, "our_protocol": "wikitext2-test@2048", "our_id": OURS, "task": "wikitext2",
        "metric": "perplexity", "model": "*", "method": "*", "pattern": "*", "min_sparsity": 0.0, "max_sparsity": 1.0,
        "kind": "relative", "tolerance": 0.02, "reason": "the same loader",
    }  # fmt: skip
    return row | changes


def known(value: float = 5.68, **changes: Any) -> dict[str, Any]:
    row = {
        "model": "made-up-7b", "task": "wikitext2", "metric": "perplexity", "our_protocol": "wikitext2-test@2048",
        "our_id": OURS, "value": value, "tolerance": 0.05, "source": "Paper",
    }  # fmt: skip
    return row | changes


def verdicts(
    ours: list[dict[str, Any]],
    reported: list[dict[str, Any]],
    pairs: list[dict[str, Any]] | None = None,
    gate: list[dict[str, Any]] | None = None,
    expected: list[dict[str, Any]] | None = None,
    tasks: Sequence[tuple[str, str]] = (("wikitext2", "perplexity"),),
) -> list[dict[str, Any]]:
    answer = compare(
        pd.DataFrame(ours),
        pd.DataFrame(reported, columns=list(SCHEMA)).astype(dict.fromkeys(("value", "seed", "digits"), "float64")),
        pd.DataFrame([pair()] if pairs is None else pairs, columns=list(PAIR)),
        pd.DataFrame(gate or [], columns=list(DENSE)),
        tasks,
        None if expected is None else pd.DataFrame(expected),
    )
    assert tuple(answer.columns) == COLUMNS
    return answer.to_dict("records")


def verdict(*args: Any, **kwargs: Any) -> dict[str, Any]:
    rows = verdicts(*args, **kwargs)
    assert len(rows) == 1, rows
    return rows[0]


def test_within_tolerance() -> None:
    row = verdict([measured(7.30)], [printed(7.26)])
    assert row["verdict"] == "within tolerance" and row["why"] == "the same loader"
    assert row["difference"] == pytest.approx(0.04 / 7.26)
    assert (row["ours"], row["reported"], row["paper"], row["n"]) == (7.30, 7.26, "Paper", 1)


def test_off() -> None:
    row = verdict([measured(7.79)], [printed(7.26)])
    assert row["verdict"] == "off" and row["why"] == "differs by +7.30 %, allowed are 2.07"


def test_half_a_printed_digit_is_always_allowed() -> None:
    exact = [pair(tolerance=0.0)]
    assert verdict([measured(5.1140)], [printed(5.11)], exact)["verdict"] == "within tolerance"
    assert verdict([measured(5.1160)], [printed(5.11)], exact)["verdict"] == "off"
    assert verdict([measured(5400.0)], [printed(5000, digits=-3)], exact)["verdict"] == "within tolerance"


def test_missing_where_nothing_is_reported() -> None:
    row = verdict([measured(model="embedded-llama", scale="embedded")], [printed()])
    assert row["verdict"] == "missing" and row["why"] == "no reported number" and pd.isna(row["reported"])


@pytest.mark.parametrize("change", ["model", "method", "allocator", "scope", "sparsity", "pattern", "task"])
def test_another_cell_is_never_compared(change: str) -> None:
    other = 0.51 if change == "sparsity" else "other"
    assert verdict([measured()], [printed(**{change: other})])["verdict"] == "missing"


def test_not_comparable_without_a_pair_of_protocols() -> None:
    row = verdict([measured()], [printed(protocol="elsewhere@128")])
    assert row["verdict"] == "not comparable" and row["reported"] == 7.26
    assert row["why"] == f"no pair of protocols: ours {OURS}, reported elsewhere@128"


def test_a_pair_ends_when_our_protocol_changes() -> None:
    changed = "wikitext2-test@2048#00000000"
    assert changed in verdict([measured(protocol=changed)], [printed()])["why"]


def test_not_comparable_where_the_pair_is_refused() -> None:
    refused = pair(kind="refused", tolerance=None, reason="word perplexity")
    row = verdict([measured()], [printed()], [refused, pair()])
    assert (row["verdict"], row["why"]) == ("not comparable", "word perplexity")


@pytest.mark.parametrize("note", ["misprint: others print 4.10", "not comparable: a broken run; by a user"])
def test_a_flagged_number_is_shown_and_not_compared(note: str) -> None:
    row = verdict([measured()], [printed(note=note)])
    assert (row["verdict"], row["why"], row["reported"]) == ("not comparable", note.split("; ")[0], 7.26)


def test_a_paper_that_prints_no_number() -> None:
    row = verdict([measured()], [printed(None, digits=None, note="printed: nan")])
    assert (row["verdict"], row["why"]) == ("not comparable", "no number is printed (printed: nan)")


def test_a_measure_that_is_not_finite() -> None:
    row = verdict([measured(None)], [printed()])
    assert (row["verdict"], row["why"]) == ("not comparable", "ours is not finite") and pd.isna(row["ours"])


def test_the_best_candidate_is_comparable_own_verified_and_no_rerun() -> None:
    rows = [
        printed(1.0, paper="Elsewhere", protocol="elsewhere@128"),
        printed(7.1, paper="Second", confidence="secondary"),
        printed(7.2, paper="First rerun"),
        printed(7.25, paper="First"),
    ]
    row = verdict([measured()], rows)
    assert (row["paper"], row["reported"], row["verdict"]) == ("First", 7.25, "within tolerance")
    assert row["also"].startswith("First rerun Table 1: 7.2; Second Table 1: 7.1; Elsewhere Table 1: 1 (no pair")
    own = verdict([measured()], [*rows, printed(7.3, table="Table 9"), printed(7.4, table="Table 1; Table 22")])
    assert own["reported"] == 7.4


def test_seeds_are_averaged_before_they_meet_a_number_without_a_seed() -> None:
    row = verdict([measured(value, seed=seed) for seed, value in enumerate((7.0, 7.2, 7.6))], [printed(7.26)])
    assert row["ours"] == pytest.approx(7.2667, abs=1e-4) and row["sd"] == pytest.approx(0.3055, abs=1e-4)
    assert (row["n"], row["seeds"], row["verdict"]) == (3, "", "within tolerance")


def test_a_number_with_a_seed_meets_that_seed_and_the_worst_one_decides() -> None:
    ours = [measured(7.0, seed=0), measured(9.0, seed=1)]
    first = verdict(ours, [printed(7.0, seed=0)])
    assert (first["verdict"], first["seeds"], first["difference"], first["ours"]) == ("within tolerance", "0", 0.0, 8.0)
    both = verdict(ours, [printed(7.0, seed=0), printed(8.0, seed=1)])
    assert (both["verdict"], both["seeds"], both["difference"], both["reported"]) == ("off", "0,1", 0.125, 7.5)
    none = verdict(ours, [printed(7.0, seed=5)])
    assert (none["verdict"], none["why"]) == ("not comparable", "reported for seed 5, which is not measured")


def test_a_dense_model_has_no_seed_allocator_or_scope() -> None:
    reported = printed(5.68, method="none", sparsity=0.0, pattern="dense", seed=0)
    row = verdict([dense(seed=3, allocator="owl", scope="first_half", sparsity=None)], [reported])
    assert row["verdict"] == "within tolerance"


@pytest.mark.parametrize(
    ("ours", "outcome", "why"),
    [
        ([], "not comparable", "dense gate: the dense model is not measured, 5.68 ± 0.05 is known (Paper)"),
        ([dense(7.72)], "not comparable", "dense gate: the dense model has 7.72 where 5.68 ± 0.05 is known (Paper)"),
        ([dense(None)], "not comparable", "dense gate: the dense model has nan where 5.68 ± 0.05 is known (Paper)"),
        ([dense(5.73)], "within tolerance", "the same loader"),
    ],
)
def test_pruned_cells_count_only_behind_the_dense_gate(ours: list[dict[str, Any]], outcome: str, why: str) -> None:
    rows = verdicts([measured(), *ours], [printed()], gate=[known()])
    assert (rows[0]["verdict"], rows[0]["why"]) == (outcome, why)
    other = verdicts([measured(), *ours], [printed()], gate=[known(our_id="ptb-test@2048#1")])
    assert other[0]["verdict"] == "within tolerance"


def test_the_gate_does_not_hide_the_dense_verdict_or_a_missing_number() -> None:
    reported = [printed(5.68, method="none", sparsity=0.0, pattern="dense")]
    rows = verdicts([dense(7.72), measured()], reported, gate=[known()])
    assert [row["verdict"] for row in rows] == ["off", "missing"]


@pytest.mark.parametrize(
    ("status", "reason", "why"),
    [
        ("to do", "", "not run"),
        ("skipped", "its input width 7 is not divisible by 4", "skipped: its input width 7 is not divisible by 4"),
        ("missing", "no method 'sparsellm'", "not run: no method 'sparsellm'"),
    ],
)
def test_a_point_without_a_measure_is_missing_and_shows_what_is_reported(status: str, reason: str, why: str) -> None:
    nothing = {"task": None, "metric": None, "protocol": None, "samples": None, "status": status, "reason": reason}
    rows = verdicts([measured(), measured(None, method="sparsellm", **nothing)], [printed(6.9, method="sparsellm")])
    assert rows[1]["task"] == "wikitext2" and pd.isna(rows[1]["ours"])
    assert (rows[1]["verdict"], rows[1]["why"], rows[1]["reported"]) == ("missing", why, 6.9)


def test_a_study_that_has_not_run_shows_every_point_once() -> None:
    nothing = {"task": None, "metric": None, "protocol": None, "samples": None, "status": "to do"}
    ours = [measured(None, **nothing), measured(None, method="other", **nothing)]
    reported = [printed(), printed(30.0, task="ptb"), printed(0.5, task="boolq", metric="acc")]
    rows = verdicts(ours, reported, tasks=[("wikitext2", "perplexity"), ("ptb", "perplexity")])
    assert [(row["method"], row["task"]) for row in rows] == [
        *(("wanda", "wikitext2"), ("wanda", "ptb")),
        *(("other", "wikitext2"), ("other", "ptb")),
    ]
    assert [row["reported"] for row in rows[:2]] == [7.26, 30.0]
    assert {row["verdict"] for row in rows} == {"missing"}


def test_reported_points_that_the_study_lacks_are_missing() -> None:
    expected = [printed(), printed(6.1, model="made-up-13b")]
    rows = verdicts([measured()], expected, expected=expected)
    assert [(row["model"], row["verdict"]) for row in rows] == [
        ("made-up-7b", "within tolerance"),
        ("made-up-13b", "missing"),
    ]
    assert rows[1]["why"] == "not run: the study has no such point" and rows[1]["reported"] == 6.1


BOOLQ = {"task": "boolq", "metric": "acc"}
ZERO_SHOT = pair(
    reported_protocol="lm-eval-df3da98,0-shot", our_protocol="boolq@lm-eval-*,0-shot,no-bos", our_id="", kind="z",
    tolerance=2.0, reason="another lm-eval version", **BOOLQ,
)  # fmt: skip


@pytest.mark.parametrize(
    ("value", "protocol", "outcome"),
    [
        (0.7500, "boolq@lm-eval-2.0,0-shot,no-bos#12345678", "within tolerance"),
        (0.7200, "boolq@lm-eval-2.0,0-shot,no-bos#12345678", "off"),
        (0.7500, "boolq@lm-eval-2.0,0-shot,bos#12345678", "not comparable"),
        (0.7500, "boolq@lm-eval-2.0,5-shot,no-bos#12345678", "not comparable"),
        (0.7500, "boolq@lm-eval-2.0,0-shot,no-bos,limit=2000#12345678", "not comparable"),
    ],
)
def test_accuracies_meet_by_their_standard_errors(value: float, protocol: str, outcome: str) -> None:
    ours = measured(value, protocol=protocol, samples=3270, stderr=0.0076, **BOOLQ)
    row = verdict([ours], [printed(0.7502, digits=4, protocol="lm-eval-df3da98,0-shot", **BOOLQ)], [ZERO_SHOT])
    assert row["verdict"] == outcome
    if outcome == "off":
        assert row["difference"] == pytest.approx(-0.0302) and row["tolerance"] == pytest.approx(0.0215, abs=1e-3)
        assert row["why"] == "differs by -3.02 points, allowed are 2.15"


def test_unlike_metrics_of_a_task_say_so() -> None:
    ours = measured(0.76, task="hellaswag", metric="acc_norm", protocol="hellaswag@lm-eval-1.0,0-shot,no-bos#1")
    row = verdict([ours], [printed(0.57, task="hellaswag", metric="acc")], [])
    assert (row["verdict"], row["why"]) == ("not comparable", "the metrics differ: ours acc_norm, reported acc")


def real(*ours: dict[str, Any]) -> list[dict[str, Any]]:
    """Against the numbers that papers print."""
    return compare(pd.DataFrame(ours), load_reported(), load_pairs(), load_dense()).to_dict("records")


def test_a_run_that_agrees_with_wanda_and_one_with_another_context() -> None:
    at_4096 = "wikitext2-test@4096#a2e45ff3"
    llama = {"model": "llama2-7b", "study": "wanda_table3"}
    good = real(dense(5.12, protocol=at_4096, **llama), measured(6.44, protocol=at_4096, **llama))
    assert [(row["verdict"], row["table"].split(";")[0]) for row in good] == [("within tolerance", "Table 3")] * 2
    short = real(dense(5.47, **llama), measured(6.92, **llama))
    assert [row["verdict"] for row in short] == ["within tolerance"] * 2
    assert short[1]["paper"] != "Wanda" and "no pair of protocols" in short[1]["also"]


def test_llama_on_ptb_is_not_compared() -> None:
    row = real(dense(40.99, model="llama2-13b", task="ptb", protocol="ptb-test@2048#e1dd0d5f"))[0]
    assert row["verdict"] == "not comparable" and "<unk>" in row["why"]


def test_the_authors_code_judges_the_proxies() -> None:
    ids = {"model": "proxy-llama-11m", "scale": "proxy", "protocol": "wikitext2-test@512#9070aced"}
    rows = real(dense(43.58, **ids), measured(56.59, **ids), measured(60.0, seed=1, **ids))
    assert [(row["verdict"], row["seeds"]) for row in rows] == [("within tolerance", ""), ("off", "0,1")]
    gated = real(measured(56.59, **ids))[0]
    assert gated["why"].startswith("dense gate: the dense model is not measured")
