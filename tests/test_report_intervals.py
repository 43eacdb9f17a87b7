"""Intervals over patients in the report, against a loop over the same resamples."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import DEGRADED, LOST, RUNS, edit_json, edit_table, write_benchmark
from scipy import stats
from scipy.special import expit, logit
from test_report_many import make_folds

from rayecg.metrics.bootstrap import N_RESAMPLES, units_of_labels
from rayecg.metrics.resamples import Resamples
from rayecg.report import layout
from rayecg.report.benchmark import Benchmark
from rayecg.report.intervals import Intervals
from rayecg.report.results import Results
from rayecg.report.text import with_interval
from rayecg.report.write import markdown

#: Of the tables' own figures; what is compared is computed in float64.
CLOSE = 1e-9


def more_tested(examples: pd.DataFrame) -> pd.DataFrame:
    """Put two thirds of the recordings into the test split, of all patients."""
    other = examples["record_id"].str[1:].astype(int) < 41
    changed = examples.assign(split=np.where(other, "test", examples["split"]))
    return changed.assign(reason=None)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark whose test split has twenty patients with two recordings and one with one."""
    out = write_benchmark(tmp_path_factory.mktemp("intervals") / "out")
    edit_table(out / "work" / "examples.parquet", more_tested)
    return out


@pytest.fixture
def out(recordings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings, tmp_path / "copy"))


def results_of(out: Path) -> Results:
    return Results(out, out / "findings.json")


def by_hand(out: Path, runs: tuple[str, ...], n: int) -> dict[str, np.ndarray]:
    """Average what runs say of themselves on the first resamples, written out; NaN are left out."""
    benchmark = Benchmark(out, out / "findings.json")
    resamples = Resamples.of(benchmark.patients(benchmark.split_examples("test")), N_RESAMPLES)
    rows: dict[str, list[list[float]]] = {}
    for run in runs:
        outputs = benchmark.outputs(run)
        assert outputs is not None
        place_N = resamples.index(outputs.patients_N)
        for r in range(n):
            own = np.repeat(np.arange(len(place_N)), resamples.counts_GR[place_N, r])
            part = type(outputs)(
                outputs.labels,
                *(
                    getattr(outputs, f"{name}_NC")[own]
                    for name in ("targets", "probabilities", "calibrated", "decisions")
                ),
                outputs.patients_N[own],
                outputs.n_examples,
                outputs.n_missing,
            )
            for name, value in part.metrics().items():
                rows.setdefault(name, [[] for _ in range(n)])[r].append(value)
    return {name: pd.DataFrame(values).mean(axis=1).to_numpy() for name, values in rows.items()}


def units(out: Path, label: str = "") -> float:
    """Count the patients of equal size that a figure's spread is known from."""
    benchmark = Benchmark(out, out / "findings.json")
    test = benchmark.split_examples("test")
    names = [label] if label else benchmark.labels
    targets_NC = test[[f"target_{name}" for name in names]].to_numpy(dtype=bool)
    return units_of_labels(targets_NC, benchmark.patients(test))


def usual_ends(mean: float, values_R: np.ndarray, n_units: float) -> tuple[float, float]:
    """Give the ends from resamples written out, by the formula."""
    error = np.nanstd(values_R) * np.sqrt(n_units / (n_units - 1)) / (mean * (1 - mean))
    reach = stats.t.ppf(0.975, n_units - 1) * error
    return float(expit(logit(mean) - reach)), float(expit(logit(mean) + reach))


def few_resamples(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Take the first of the same draws, so that a loop ends."""
    whole = Resamples.of

    def first(groups_N, n_resamples=N_RESAMPLES, seed=0):
        drawn = whole(groups_N, n_resamples, seed)
        return Resamples(drawn.names_G, drawn.counts_GR[:, :n])

    monkeypatch.setattr("rayecg.report.intervals.Resamples.of", first)


@pytest.mark.parametrize("primary", ["macro_auroc", "accuracy", "macro_auprc"])
def test_they_are_of_the_mean_over_runs(out, monkeypatch, primary):
    edit_json(out / "work" / "task.json", lambda tree: tree.update(primary_metric=primary))
    n = 25
    expected = {
        "wide": by_hand(out, ("wide-seed0", "wide-seed1"), n),
        "deep": by_hand(out, ("deep-seed0",), n),
    }
    few_resamples(monkeypatch, n)
    results = results_of(out)
    summary = results.summary.set_index("architecture")
    for name, values in expected.items():
        row = summary.loc[name]
        for metric in {primary, "macro_auroc", "macro_f1"}:
            n_units = results.intervals.n_effective if metric == "accuracy" else units(out)
            ends = usual_ends(row[f"test_{metric}_mean"], values[metric], n_units)
            found = row[f"test_{metric}_low"], row[f"test_{metric}_high"]
            assert found == pytest.approx(ends, abs=CLOSE), (name, metric)
        labels = results.per_class[results.per_class["architecture"] == name].set_index("label")
        for label in results.benchmark.labels:
            for metric in ("auroc", "f1"):
                mean, values_R = labels.loc[label, f"{metric}_mean"], values[f"{metric}_{label}"]
                ends = usual_ends(mean, values_R, units(out, label))
                found = labels.loc[label, [f"{metric}_low", f"{metric}_high"]].tolist()
                assert found == pytest.approx(ends, abs=CLOSE), (name, metric, label)
    assert np.isnan(summary.loc["broken", "test_macro_auroc_low"])


def test_abstentions_count_as_in_the_figures(out, monkeypatch):
    """A degraded recording counts in AUROC alone, a lost one nowhere."""
    found = results_of(out)
    outputs = found.benchmark.outputs("deep-seed0")
    assert outputs is not None
    test = found.benchmark.split_examples("test")
    assert {LOST, DEGRADED} < set(test["record_id"])
    assert (~outputs.decided).sum() == 1
    assert len(outputs.patients_N) == len(outputs.targets_NC) == len(test) - 1
    few_resamples(monkeypatch, 20)
    before = results_of(out).summary.set_index("architecture").loc["deep"]

    def undecided(rows: pd.DataFrame) -> pd.DataFrame:
        decisions = [name for name in rows if str(name).startswith("decision_")]
        rows.loc[rows["record_id"].isin(test["record_id"][:10]), decisions] = None
        return rows

    edit_table(out / "work" / "score" / "deep-seed0" / "predictions" / "0.parquet", undecided)
    after = results_of(out).summary.set_index("architecture").loc["deep"]
    for end in ("low", "high"):
        assert after[f"test_macro_auroc_{end}"] == before[f"test_macro_auroc_{end}"]
    assert after["test_macro_f1_low"] != before["test_macro_f1_low"]
    values_R = by_hand(out, ("deep-seed0",), 20)["macro_f1"]
    ends = usual_ends(after["test_macro_f1_mean"], values_R, units(out))
    found_ends = after[["test_macro_f1_low", "test_macro_f1_high"]].tolist()
    assert found_ends == pytest.approx(ends, abs=CLOSE)


def test_each_fold_is_evaluated_on_its_own_patients(tmp_path, monkeypatch):
    out = make_folds(tmp_path / "out", "wide")
    runs = tuple(f"wide-fold{fold}-seed0" for fold in range(3))
    n = 20
    expected = by_hand(out, runs, n)
    few_resamples(monkeypatch, n)
    results = results_of(out)
    row = results.summary.iloc[0]
    for metric in ("macro_auroc", "macro_f1"):
        ends = usual_ends(row[f"test_{metric}_mean"], expected[metric], units(out))
        found = row[f"test_{metric}_low"], row[f"test_{metric}_high"]
        assert found == pytest.approx(ends, abs=CLOSE)
    test = results.benchmark.examples.query("split == 'test' and record_id != @LOST")
    assert row["n_test_patients"] == test["patient_id"].nunique()
    assert results.intervals.n_drawn == 20


def test_patients_are_told_apart_as_splits_do(out):
    def edit(examples: pd.DataFrame) -> pd.DataFrame:
        ids = examples["patient_id"].where(examples["record_id"] != "r003", None)
        return examples.assign(patient_id=ids)

    edit_table(out / "work" / "examples.parquet", edit)
    edit_json(out / "work" / "task.json", lambda tree: tree.update(aliases=[["p5", "p6"]]))
    benchmark = Benchmark(out, out / "findings.json")
    rows = benchmark.examples.drop_duplicates("record_id").set_index("record_id", drop=False)
    named = dict(zip(rows.index, benchmark.patients(rows), strict=True))
    assert named["r003"] == "record r003"
    assert named["r005"] == named["r006"] == named["r025"] == "patient p5"
    assert named["r023"] == "patient p3"
    some = rows.loc[["r023", "r003"]]
    assert benchmark.patients(some).tolist() == ["patient p3", "record r003"]


def test_tables_show_them_and_say_what_they_are(out):
    results = results_of(out)
    table = layout.summary_table(results)
    at = table.columns.index("95 % interval")
    assert table.columns[at - 1] == "test macro AUROC"
    assert at in table.numeric
    for cells, (_, row) in zip(table.rows, results.summary.iterrows(), strict=True):
        low, high = row["test_macro_auroc_low"], row["test_macro_auroc_high"]
        if row["n_seeds"]:
            assert cells[at] == f"{low:.3f}\N{EN DASH}{high:.3f}"
            assert low < row["test_macro_auroc_mean"] < high
            assert row["n_test_patients"] == 20
        else:
            assert cells[at] == "\N{EN DASH}"
            assert pd.isna(row["n_test_patients"])
    note = table.notes[-1]
    assert note.startswith("95 % interval: ")
    assert "2,000 resamples of 20 patients" in note
    assert "It rests on few patients (20), and is rough." in note
    labels = layout.per_class_table(results)
    by_name = {row[:2]: row for row in labels.rows}
    row = results.per_class.iloc[0]
    cells = by_name[row["label"], row["architecture"]]
    for metric, column in (("auroc", "AUROC"), ("f1", "F1")):
        around = f"({row[f'{metric}_low']:.3f}\N{EN DASH}{row[f'{metric}_high']:.3f})"
        assert cells[labels.columns.index(column)].endswith(around)
    assert "(" not in cells[labels.columns.index("AUPRC")]
    for text in (note, labels.notes[0], " (0."):
        assert text in markdown(results)


def test_notes_name_what_is_doubtful():
    ends = {"wide": {"macro_f1": (0.1, 0.2)}}
    plain = Intervals(("macro_f1",), ends, n_drawn=30, n_effective=28.4).notes
    assert len(plain) == 1
    assert "few patients" not in plain[0]
    doubtful = Intervals(
        ("macro_f1",), ends, {}, 29, 20.0, ("MI", "HYP"), ("f1_MI of wide",)
    ).notes[0]
    assert "patients of equal size: at most 28.4 here" in plain[0]
    for text in (
        "rests on few patients (29)",
        "The positives of MI, HYP come from fewer than 5 patients",
        "does not contain its figure for f1_MI of wide.",
    ):
        assert text in doubtful
        assert text not in plain[0]
    assert Intervals(("macro_f1",)).notes == ()
    nowhere = Intervals(("macro_f1",), ends).of("deep", "macro_f1")
    assert np.isnan(nowhere).all()
    assert with_interval(0.893, 0.01, 0.851, 0.931) == "0.893 ± 0.010 (0.851\N{EN DASH}0.931)"
    assert with_interval(0.893, 0.01, float("nan"), float("nan")) == "0.893 ± 0.010"


def test_the_same_files_give_the_same_intervals(out):
    first, again = results_of(out).intervals, results_of(out).intervals
    assert repr(first) == repr(again)
    assert set(first.ends) == {RUNS[run][0] for run in RUNS}
