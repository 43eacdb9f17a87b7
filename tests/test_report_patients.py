"""The worst patients in the report, against what the outputs say of each."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import DEGRADED
from stated_groups import make, results_of, turned
from test_report_many import make_folds

from rayecg.report.patients import WORST, worst_patients, worst_patients_table

#: What is compared is computed in float64, in another order.
CLOSE = 1e-9


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("patients") / "out")


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


def test_patients_are_ordered_by_their_log_loss(out):
    results = results_of(out)
    outputs, worst = results.chosen_outputs, worst_patients(results)
    assert outputs is not None
    assert worst is not None
    value_NC = np.where(outputs.targets_NC, outputs.calibrated_NC, 1 - outputs.calibrated_NC)
    losses = pd.Series(-np.log(value_NC).mean(axis=1)).groupby(outputs.patients_N).mean()
    expected = losses.sort_values(ascending=False)[:WORST]
    assert worst["patient"].tolist() == expected.index.tolist()
    assert worst["log_loss"].tolist() == pytest.approx(expected.tolist(), abs=CLOSE)
    assert worst.attrs == {"n_patients": len(losses), "median": losses.median()}


def test_a_patient_who_is_wrong_throughout_comes_first_with_what_was_wrong(out):
    ids = ["r005", "r025"]
    before = results_of(out).chosen_outputs
    assert before is not None
    turned(out, ids)
    results = results_of(out)
    worst, outputs = worst_patients(results), results.chosen_outputs
    assert worst is not None
    assert outputs is not None
    row = worst.iloc[0]
    assert (row["patient"], row["records"], row["n_records"]) == ("patient p5", ids, 2)
    own_N = outputs.patients_N == "patient p5"
    truth_NC, given_NC = outputs.targets_NC[own_N], outputs.decisions_NC[own_N] == 1
    for name, wrong_NC in (("missed", truth_NC & ~given_NC), ("invented", given_NC & ~truth_NC)):
        counts = dict(zip(outputs.labels, wrong_NC.sum(axis=0).tolist(), strict=True))
        said = {part.split(" (")[0]: int(part.split("(")[1][:-1]) for part in row[name].split(", ")}
        assert said == {label: n for label, n in counts.items() if n}
    assert (row["n_wrong"], row["n_decided"]) == ((truth_NC != given_NC).any(axis=1).sum(), 2)
    (table,) = worst_patients_table(results)
    assert table.rows[0][0] == "patient p5"
    assert table.rows[0][-1] == "r005, r025"


def test_what_was_not_decided_is_neither_missed_nor_invented(out):
    turned(out, [DEGRADED])
    worst = worst_patients(results_of(out))
    assert worst is not None
    row = worst.iloc[0]
    # Its other recording has no probability.
    assert (row["patient"], row["records"]) == ("patient p19", [DEGRADED, "r059"])
    assert row["n_decided"] == 1


def test_over_folds_every_patient_counts_where_it_was_tested(tmp_path):
    out = make_folds(tmp_path / "out", "wide")
    results = results_of(out)
    worst = worst_patients(results)
    assert worst is not None
    test = results.benchmark.split_examples("test")
    assert worst.attrs["n_patients"] == test["patient_id"].nunique()
    sizes = test.groupby("patient_id")["record_id"].nunique()
    for _, row in worst.iterrows():
        n_records = sizes[row["patient"].removeprefix("patient ")]
        assert row["n_records"] <= n_records  # one may have no probability
        assert row["n_examples"] == row["n_records"]
    (table,) = worst_patients_table(results)
    assert "of 3 runs, decisions counted in each" in table.notes[0]
