"""Architectures against the chosen one in the report, against a loop over the same resamples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import RUNS, add_ensembles, edit_json, edit_table, write_benchmark
from scipy import stats
from test_report_intervals import (
    by_hand,
    few_resamples,
    more_tested,
    out,
    recordings,
    results_of,
    units,
)
from test_report_many import make_folds

from rayecg.metrics.comparison import holm
from rayecg.report.comparison import (
    COLUMNS,
    comparison_csv,
    comparison_plot,
    comparison_table,
    comparisons,
)
from rayecg.report.text import NOTHING
from rayecg.report.write import report

__all__ = ["out", "recordings"]  # fixtures


def expected_ends(point: float, less_R: np.ndarray, n: float) -> tuple[float, float, float]:
    """Give ends and p by the formula."""
    error = np.nanstd(less_R) * np.sqrt(n / (n - 1))
    reach = stats.t.ppf(0.975, n - 1) * error
    return point - reach, point + reach, 2 * stats.t.sf(abs(point) / error, n - 1)


@pytest.mark.parametrize("primary", ["macro_auroc", "accuracy"])
def test_differences_are_paired_means_over_seeds(out, monkeypatch, primary):
    edit_json(out / "work" / "task.json", lambda tree: tree.update(primary_metric=primary))
    n = 25
    values = {
        "wide": by_hand(out, ("wide-seed0", "wide-seed1"), n)[primary],
        "deep": by_hand(out, ("deep-seed0",), n)[primary],
    }
    few_resamples(monkeypatch, n)
    results = results_of(out)
    table = comparisons(results)
    assert tuple(table.columns) == COLUMNS
    (row,) = table.to_dict("records")
    assert {row["architecture"], row["reference"]} == {"wide", "deep"}
    means = results.summary.set_index("architecture")[f"test_{primary}_mean"]
    assert row["reference"] == results.chosen["architecture"]
    assert row["difference"] == pytest.approx(means[row["architecture"]] - means[row["reference"]])
    n_units = results.intervals.n_effective if primary == "accuracy" else units(out)
    less_R = values[row["architecture"]] - values[row["reference"]]
    low, high, p = expected_ends(row["difference"], less_R, n_units)
    assert [row["low"], row["high"]] == pytest.approx([low, high], abs=1e-9)
    assert row["p_value"] == row["p_holm"] == pytest.approx(p, abs=1e-9)
    assert (row["n_patients"], row["metric"]) == (20, primary)


def test_folds_are_paired_with_themselves(tmp_path, monkeypatch):
    folder = make_folds(tmp_path / "out", "wide", "deep")
    for fold in range(3):  # else both give the same, and differ by 0 in every resample
        scores = folder / "work" / "score" / f"deep-fold{fold}-seed0"
        edit_table(
            scores / "predictions" / "0.parquet",
            lambda rows: rows.assign(probability_NORM=1 - rows["probability_NORM"]),
        )
    n = 20
    values = {
        name: by_hand(folder, tuple(f"{name}-fold{fold}-seed0" for fold in range(3)), n)
        for name in ("wide", "deep")
    }
    few_resamples(monkeypatch, n)
    results = results_of(folder)
    (row,) = comparisons(results).to_dict("records")
    own, other = (values[row[key]]["macro_auroc"] for key in ("architecture", "reference"))
    low, high, p = expected_ends(row["difference"], own - other, units(folder))
    assert [row["low"], row["high"]] == pytest.approx([low, high], abs=1e-9)
    assert row["p_value"] == pytest.approx(p, abs=1e-9)
    # Without one of its folds an architecture does not compare.
    name = f"{row['architecture']}-fold1-seed0"
    file = folder / "work" / "train" / name / "run.json"
    edit_json(file, lambda tree: tree.update(status="failed", error="gone"))
    again = results_of(folder)
    assert again.intervals.reference == row["reference"]
    assert comparison_csv(again) is None
    assert list(comparison_table(again)) == list(comparison_plot(again)) == []


def test_table_plot_and_file_say_the_same(tmp_path: Path):
    out = write_benchmark(tmp_path / "out")
    add_ensembles(out)
    edit_table(out / "work" / "examples.parquet", more_tested)
    results = results_of(out)
    table = comparisons(results)
    assert len(table) == 3
    np.testing.assert_allclose(table["p_holm"], holm(table["p_value"]))
    (laid,) = comparison_table(results)
    assert laid.section == "comparison"
    reference = results.chosen["architecture"]
    assert laid.caption.startswith(f"Against {reference}, the architecture chosen on validation")
    at = {title: i for i, title in enumerate(laid.columns)}
    for cells, (_, row) in zip(laid.rows, table.iterrows(), strict=True):
        assert cells[0] == row["architecture"] != reference
        assert cells[at["difference"]].replace("\N{MINUS SIGN}", "-") == f"{row['difference']:+.3f}"
        assert f"{abs(row['low']):.3f} to" in cells[at["95 % interval"]]
        assert cells[at["p by Holm"]] != NOTHING
    notes = " ".join(laid.notes)
    for text in (
        "2,000 resamples of 20 patients",
        "corrected for 3 comparisons",
        "not what other seeds could",
        "rests on few patients (20)",
    ):
        assert text in notes
    (plot,) = comparison_plot(results)
    assert plot.section == "comparison"
    assert all(cells[at["95 % interval"]] in plot.alt for cells in laid.rows)
    report(out, out)
    written = pd.read_csv(out / "comparison.csv")
    np.testing.assert_allclose(written["difference"], table["difference"], rtol=1e-5)
    assert (out / "plots" / "comparison.png").exists()
    page = (out / "index.html").read_text()
    assert '<section id="comparison">' in page
    assert laid.caption.split(",")[0] in page
    assert f"## {laid.caption}" in (out / "summary.md").read_text()


def test_a_single_architecture_has_nothing_to_compare(out):
    runs = [run for run, (name, _) in RUNS.items() if name == "wide"]
    (out / "work" / "runs.json").write_text(str(runs).replace("'", '"'))
    results = results_of(out)
    assert results.intervals.reference == "wide"
    assert results.intervals.differences == {}
    assert comparison_csv(results) is None
