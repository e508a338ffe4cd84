"""The reported numbers as data: schema, units, identities, and the two tables that let them meet ours."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest
import torch
import yaml

from harness.core.places import REPORTED
from harness.evaluation.perplexity import Perplexity
from harness.evaluation.protocol import Context
from harness.report.reported import flagged, load_dense, load_pairs, load_reported, of_tables, pair_of

ROOT = REPORTED.parents[1]


@pytest.fixture(scope="module")
def reported() -> pd.DataFrame:
    return load_reported()


def one(frame: pd.DataFrame, **cell: object) -> pd.Series:
    for name, value in cell.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def test_every_row_names_its_source_and_how_far_it_is_trusted(reported: pd.DataFrame) -> None:
    for column in ("paper", "table", "model", "method", "allocator", "task", "metric", "protocol", "source"):
        assert (reported[column] != "").all(), column
    assert set(reported["confidence"]) == {"verified", "secondary"}
    verified = pd.concat(pd.read_csv(path) for path in REPORTED.glob("*.csv") if "confidence" in path.read_text()[:300])
    assert set(verified["confidence"]) == {"verified"}


def test_accuracies_are_fractions_and_digits_count_in_the_unit_of_the_value(reported: pd.DataFrame) -> None:
    accuracies = reported[reported["metric"].isin(("acc", "acc_norm", "acc-or-acc_norm"))]["value"].dropna()
    assert accuracies.between(0, 1).all() and len(accuracies) > 1500
    table = of_tables(reported, "Wanda", ["Table 2"])
    assert {"mean7"} == set(table["task"])
    dense = one(table, model="llama-7b", method="none")
    assert (dense["value"], dense["digits"]) == (0.5999, 4)
    collapsed = one(of_tables(reported, "SparseGPT", ["Table 1"]), model="opt-1.3b", method="magnitude")
    assert (collapsed["value"], collapsed["digits"]) == (17000, -3)


def test_dense_rows_share_one_identity(reported: pd.DataFrame) -> None:
    dense = reported[reported["method"] == "none"]
    assert set(dense["pattern"]) == {"dense"} and set(dense["sparsity"]) == {0}
    assert set(dense["allocator"]) == {"uniform"} and set(dense["scope"]) == {"all"}


def test_n_of_m_counts_what_is_kept(reported: pd.DataFrame) -> None:
    patterns = reported[reported["pattern"].str.fullmatch(r"\d+of\d+")]
    kept = patterns["pattern"].str.extract(r"(\d+)of(\d+)").astype(int)
    assert (1 - kept[0] / kept[1] == patterns["sparsity"]).all()


def test_no_number_of_a_paper_stands_twice(reported: pd.DataFrame) -> None:
    cell = [
        "paper",
        "model",
        "method",
        "allocator",
        "scope",
        "sparsity",
        "pattern",
        "task",
        "metric",
        "protocol",
        "seed",
    ]
    again = reported[reported.duplicated([*cell, "value"], keep=False) & reported["value"].notna()]
    assert again.empty, again[["paper", "table", "model", "method", "task", "value"]]


def test_sparsellm_prunes_the_first_half_only(reported: pd.DataFrame) -> None:
    rows = reported[(reported["paper"] == "SparseLLM") & (reported["method"] != "none")]
    assert set(rows["scope"]) == {"first_half"} and set(rows["method"]) == {"sparsegpt", "sparsellm"}
    (row,) = rows[rows["confidence"] == "verified"].to_dict("records")
    assert (row["model"], row["method"], row["sparsity"], row["value"]) == ("llama2-7b", "sparsegpt", 0.8, 53.2)


@pytest.mark.parametrize(
    ("model", "method", "pattern", "sparsity", "task", "value"),
    [
        ("opt-30b", "sparsellm", "1of4", 0.75, "ptb", 73.61),  # printed 3:4, which counts what is pruned
        ("opt-30b", "sparsegpt", "unstructured", 0.9, "wikitext2", 5747.87),
        ("opt-66b", "sparsellm", "unstructured", 0.9, "wikitext2", 7504.17),
        ("llama2-7b", "sparsellm", "unstructured", 0.9, "c4", 181.56),
        ("opt-30b", "sparsellm", "unstructured", 0.7, "mean7", 0.5536),
    ],
)
def test_sparsellms_own_tables(
    reported: pd.DataFrame, model: str, method: str, pattern: str, sparsity: float, task: str, value: float
) -> None:
    cell = {"model": model, "method": method, "pattern": pattern, "sparsity": sparsity, "task": task}
    assert one(reported, paper="SparseLLM", **cell)["value"] == value


def test_the_mean_of_seven_is_that_of_its_tasks(reported: pd.DataFrame) -> None:
    rows = of_tables(reported, "SparseLLM", ["zero-shot accuracies"])
    for _, cell in rows.groupby(["method", "pattern", "sparsity"]):
        mean = cell[cell["task"] == "mean7"]["value"].item()
        assert len(cell) == 8 and cell[cell["task"] != "mean7"]["value"].mean() == pytest.approx(mean, abs=5.1e-5)


def test_methods_of_papers_have_the_names_of_ours(reported: pd.DataFrame) -> None:
    grad = reported[(reported["method"] == "admm") & (reported["task"] == "wikitext2")]
    assert list(grad["value"]) == [7.06, 9.22, 18.66, 69.46, 9.9] and set(grad["protocol"]) == {"wanda-native@2048"}
    wanda = one(reported, paper="DSnoT", model="llama2-7b", method="dsnot", sparsity=0.6)
    assert wanda["value"] == 10.59 and "on Wanda's mask" in wanda["note"]
    assert {"magnitude+dsnot", "sparsegpt+dsnot", "admm1"} <= set(reported["method"])  # other methods than those


def test_known_misprints_are_kept_and_flagged(reported: pd.DataFrame) -> None:
    wanda = one(of_tables(reported, "Wanda", ["Table 3"]), model="llama-30b", method="none")
    assert wanda["value"] == 4.77 and flagged(wanda).startswith("misprint:")
    owl = reported[(reported["paper"] == "OWL") & (reported["method"] == "none")]
    assert set(owl[owl.apply(flagged, axis=1) != ""]["model"]) == {"llama-65b", "opt-6.7b"}


def test_a_file_of_another_shape_or_unit_is_refused(tmp_path: Path) -> None:
    lines = (REPORTED / "ria.csv").read_text().splitlines()
    (tmp_path / "ria.csv").write_text("\n".join(lines).replace("sparsity", "density", 1))
    with pytest.raises(ValueError, match=r"ria\.csv has the columns"):
        load_reported(tmp_path)
    percent = lines[1].replace("perplexity", "acc")
    (tmp_path / "ria.csv").write_text(f"{lines[0]}\n{percent}\n")
    with pytest.raises(ValueError, match="accuracies are fractions"):
        load_reported(tmp_path)


def ids() -> Iterator[tuple[str, str, str]]:
    """Task, name and id of every perplexity protocol that `pairs.csv` and `dense.csv` name."""
    for frame in (load_pairs(), load_dense()):
        yield from frame[frame["our_id"] != ""][["task", "our_protocol", "our_id"]].itertuples(index=False, name=None)


@pytest.mark.parametrize(("task", "name", "identity"), sorted(set(ids())))
def test_the_protocols_named_are_what_the_code_measures_today(task: str, name: str, identity: str) -> None:
    fields = yaml.safe_load((ROOT / "conf" / "evaluation" / f"{task}.yaml").read_text())[task]
    evaluator = Perplexity(**{key: value for key, value in fields.items() if key != "name"})
    window = int(name.split("@")[1])
    assert str(evaluator.protocol(Context(window, None, 0, torch.device("cpu")))) == identity
    assert identity.split("#")[0] == name


def test_every_pair_says_why_and_refuses_or_allows() -> None:
    pairs = load_pairs()
    assert (pairs["reason"].str.len() > 20).all()
    assert set(pairs["kind"]) <= {"relative", "absolute", "z", "refused"}
    assert (pairs["tolerance"].isna() == (pairs["kind"] == "refused")).all()
    assert (pairs["min_sparsity"] <= pairs["max_sparsity"]).all()


def test_every_reported_protocol_has_a_say(reported: pd.DataFrame) -> None:
    """A protocol is paired or refused with a reason for its perplexities and accuracies."""
    pairs = load_pairs()
    measured = reported[reported["metric"].isin(("perplexity", "acc", "acc-or-acc_norm"))]
    for protocol in sorted(set(measured["protocol"])):
        assert any(fnmatchcase(protocol, known) for known in pairs["reported_protocol"]), protocol


@pytest.mark.parametrize(
    ("sparsity", "method", "pattern", "tolerance"),
    [
        (0.0, "none", "dense", 0.01),
        (0.5, "wanda", "unstructured", 0.02),
        (0.5, "sparsegpt", "2of4", 0.08),
        (0.6, "wanda", "unstructured", 0.04),
        (0.7, "wanda", "unstructured", 0.08),
        (0.75, "wanda", "1of4", 0.2),
        (0.5, "magnitude", "unstructured", 0.25),
    ],
)
def test_the_band_widens_with_sparsity(sparsity: float, method: str, pattern: str, tolerance: float) -> None:
    row = {"task": "wikitext2", "metric": "perplexity", "model": "llama-7b", "method": method, "pattern": pattern}
    cell = row | {"protocol": "wikitext2-test@2048#8f89f7f3", "sparsity": sparsity}
    pair = pair_of(load_pairs().to_dict("records"), cell, row | {"protocol": "wanda-loader@2048"})
    assert pair is not None and pair.tolerance == tolerance


def test_dense_values_are_reported_values(reported: pd.DataFrame) -> None:
    """The gate knows nothing that no row says, to the digits it prints."""
    pairs = load_pairs().to_dict("records")
    dense = reported[(reported["method"] == "none") & (reported["confidence"] == "verified")]
    for known in load_dense().to_dict("records"):
        rows = dense[(dense["model"] == known["model"]) & (dense["task"] == known["task"])]
        cell = known | {"protocol": known["our_id"], "sparsity": 0.0}
        meeting = [
            row["value"] for row in rows.to_dict("records") if (p := pair_of(pairs, cell, row)) and p.tolerance > 0
        ]
        assert any(abs(value - known["value"]) < 0.00501 for value in meeting), known


def cleaner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("clean_reported", ROOT / "benchmarks" / "clean_reported.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["clean_reported"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("printed", "value", "digits"),
    [("5.68", 5.68, 2), ("1.7e4", 17000, -3), ("7.25±0.03", 7.25, 2), ("about 10%", 10, 0), ("nan", None, None)],
)
def test_printed_numbers_are_read_to_their_last_digit(printed: str, value: float | None, digits: int | None) -> None:
    number = cleaner().Number.read(printed)
    assert (None if number.value is None else float(number.value), number.digits) == (value, digits)


def test_words_are_no_number_and_a_range_has_no_value() -> None:
    read = cleaner().Number.read
    assert read("superior to previous allocators") is None
    assert read("72.9-75.1").value is None and "72.9-75.1" in read("72.9-75.1").note


@pytest.mark.parametrize(
    ("printed", "allocator", "sparsity", "scope"),
    [
        ("0.7", "uniform", "0.7", "all"),
        ("20%", "uniform", "0.2", "all"),
        ("first 1/2", "uniform", "0.5", "first_half"),
        ("first 2/3", "uniform", "0.5", "first-2-of-3"),
        ("0.8", "uniform-first-half-of-layers-only", "0.8", "first_half"),
        ("3 of 32 layers", "depth", "0.09375", "all"),
        ("0.35% trainable", "global", "", "all"),
    ],
)
def test_amounts_are_fractions_of_zeros_in_scope(printed: str, allocator: str, sparsity: str, scope: str) -> None:
    amount = cleaner().Amount.read(printed, allocator)
    assert (amount.sparsity, amount.scope) == (sparsity, scope)


@pytest.mark.skipif(not Path(os.environ.get("HARNESS_ASSETS", ""), "reported").is_dir(), reason="needs HARNESS_ASSETS")
def test_cleaning_again_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = cleaner()
    shutil.copytree(REPORTED, tmp_path / "reported")
    for path in (tmp_path / "reported" / "secondary").glob("*.csv"):
        path.unlink()
    monkeypatch.setattr(module, "OUTPUT", tmp_path / "reported")
    module.main()
    written = {path.relative_to(tmp_path / "reported") for path in (tmp_path / "reported").rglob("*.csv")}
    assert written == {path.relative_to(REPORTED) for path in REPORTED.rglob("*.csv")}
    assert all((tmp_path / "reported" / name).read_bytes() == (REPORTED / name).read_bytes() for name in written)


def printed_row(**changes: str) -> dict[str, str]:
    row = dict.fromkeys(("paper", "arxiv", "table", "source", "confidence", "file"), "x")
    row |= {"model": "llama2-7b", "method": "alps", "allocator": "uniform", "sparsity": "0.7", "value": "9.5"}
    return row | {"pattern": "unstructured", "dataset_or_task": "wikitext2", "metric": "ppl"} | changes


@pytest.mark.parametrize(
    ("paper", "task", "protocol", "refused"),
    [
        ("ALPS", "c4", "unknown", True),  # tests on calibration windows
        ("ALPS", "wikitext2", "unknown", False),
        ("ADMM pruning (Boza)", "wikitext2", "wanda-native@4096", False),  # LLaMA-2 at its own length
    ],
)
def test_what_is_known_of_a_papers_protocol_holds_for_numbers_to_come(
    paper: str, task: str, protocol: str, refused: bool
) -> None:
    rules = cleaner().Rules.read(REPORTED / "cleaning")
    row = cleaner().clean(printed_row(paper=paper, dataset_or_task=task), rules)
    assert row.protocol == protocol and bool(flagged({"note": row.note})) is refused
