"""Calibration in the report: tables against the files, plots against counting, and what is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import RUNS, add_ensembles, card_of, edit_json, edit_table, write_benchmark
from sklearn.metrics import brier_score_loss
from test_report_many import make_folds

from rayecg.audit.run import audit
from rayecg.core.outputs import DecisionWeights, Platt
from rayecg.core.settings import to_tree
from rayecg.metrics.calibration import ece, recalibration
from rayecg.report.calibration import FIGURES, calibration_tables
from rayecg.report.calibration_plots import decision_plot, reliability_plot
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.text import NOTHING, mean_and_spread, number
from rayecg.report.write import report

PLATT = Platt(
    "validation", 6, (1.0, 0.5, 1.0, 2.0, 1.0), (0.0,) * 5, (True, True, False, True, True)
)


#: Rows of the overview that are no ensembles.
SINGLE = ("deep-seed0, the chosen run", "deep", "wide")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark whose test split has twenty patients with two recordings and one with one."""
    out = write_benchmark(tmp_path_factory.mktemp("calibration") / "out")
    add_ensembles(out)

    def more(examples: pd.DataFrame) -> pd.DataFrame:
        other = examples["record_id"].str[1:].astype(int) < 41
        changed = examples.assign(split=np.where(other, "test", examples["split"]))
        return changed.assign(reason=None)

    edit_table(out / "work" / "examples.parquet", more)
    return out


@pytest.fixture
def out(recordings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings, tmp_path / "copy"))


def results_of(out: Path) -> Results:
    return Results(out, out / "findings.json")


def tables_of(out: Path) -> list[Table]:
    return list(calibration_tables(results_of(out)))


def rows_of(table: Table) -> dict[tuple[str, str], dict[str, str]]:
    """Give the rows of the overview by their name and their state."""
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {(row["run or architecture"], row["probabilities"]): row for row in rows}


def set_point(out: Path, run: str, **changes: Any) -> None:
    edit_json(card_of(out, run), lambda tree: tree["operating_point"].update(changes))


def by_hand(out: Path, run: str, state: str) -> dict[str, float]:
    """Average a run's figures over labels with both sides, and slopes on both states, from its files."""
    outputs = results_of(out).benchmark.outputs(run)
    assert outputs is not None
    target_NC = outputs.targets_NC
    both_C = target_NC.any(axis=0) & ~target_NC.all(axis=0)
    values = {"raw": outputs.probabilities_NC, "calibrated": outputs.calibrated_NC}
    value_NC = values[state]
    known_C = ~np.isnan([recalibration(target_NC, own)[0] for own in values.values()]).any(axis=0)
    slope_C, intercept_C = recalibration(target_NC, value_NC)
    brier_C = [
        brier_score_loss(t, p, labels=[0, 1]) for t, p in zip(target_NC.T, value_NC.T, strict=True)
    ]
    return {
        "ECE": ece(target_NC, value_NC)[both_C].mean(),
        "adaptive ECE": ece(target_NC, value_NC, bins="mass")[both_C].mean(),
        "Brier score": np.array(brier_C)[both_C].mean(),
        "slope": slope_C[both_C & known_C].mean(),
        "intercept": intercept_C[both_C & known_C].mean(),
    }


def test_the_overview_holds_what_the_files_say(out):
    overview = tables_of(out)[0]
    assert overview.section == "calibration"
    rows = rows_of(overview)
    results = results_of(out)
    chosen = f"{results.chosen['run']}, the chosen run"
    names = [name for name in results.architectures if name != "broken"]
    assert list(rows)[::2] == [(name, "raw") for name in [chosen, *names]]
    assert [overview.rows[i][0] for i in overview.marked] == [chosen] * 2
    members = {
        chosen: [results.chosen["run"]],
        "deep": ["deep-seed0"],
        "wide": ["wide-seed0", "wide-seed1"],
        "wide ensemble": ["wide-ensemble"],
        "all architectures ensemble": ["ensemble"],
    }
    assert set(members) == {name for name, _ in rows}
    for (name, state), row in rows.items():
        figures = pd.DataFrame([by_hand(out, run, state) for run in members[name]])
        for figure in FIGURES.values():
            expected = mean_and_spread(figures[figure].mean(), figures[figure].std())
            assert row[figure] == expected, (name, state, figure)
        assert row["calibrator"] == (NOTHING if state == "raw" else "temperature")
        assert row["runs"] == {"wide": "2", "wide ensemble": "2 averaged"}.get(name, row["runs"])
        assert row["audit"] == "not audited"
    # The fake's temperature is too high: raw and calibrated differ.
    assert rows["deep", "raw"]["ECE"] != rows["deep", "calibrated"]["ECE"]


def test_labels_show_their_operating_point(out):
    run = str(results_of(out).chosen["run"])
    set_point(out, run, rule="youden", thresholds_C=[0.25, 0.5, 0.5, 0.125, 0.5])
    set_point(out, run, n_positive_C=[2, 0, 1, 1, 2], chosen_C=[True, False, True, True, True])
    set_point(out, run, calibrator=to_tree(PLATT))
    table = tables_of(out)[1]
    assert f"calibration of {run} by label" in table.caption
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["threshold"] for row in rows[:4]] == [
        "0.250",
        "0.500, by default",
        "0.500",
        "0.125",
    ]
    assert [row["positive in validation"] for row in rows] == ["2", "0", "1", "1", "2"]
    outputs = results_of(out).benchmark.outputs(run)
    assert [row["positive in test"] for row in rows] == [
        str(n) for n in outputs.targets_NC.sum(axis=0)
    ]
    raw_C, calibrated_C = (
        ece(outputs.targets_NC, own) for own in (outputs.probabilities_NC, outputs.calibrated_NC)
    )
    assert [row["ECE"] for row in rows] == [
        f"{number(a)} → {number(b)}" for a, b in zip(raw_C, calibrated_C, strict=True)
    ]
    said = " ".join(table.notes)
    assert "highest sensitivity + specificity - 1 among 6 examples of the validation split" in said
    assert "nothing to choose the threshold of MI by: it is the default" in said
    assert "nothing to fit a calibrator to for STTC: left as they are" in said
    assert "calibrator: Platt, by label, fitted to 6 examples of the validation split" in said
    set_point(out, run, rule="sensitivity", sensitivity=0.8)
    assert "is the highest that reaches a sensitivity of 0.80" in tables_of(out)[1].notes[0]


def test_classes_show_their_weights(tmp_path):
    out = write_benchmark(tmp_path / "out", "beats")
    run = str(results_of(out).chosen["run"])
    overview, table = tables_of(out)
    assert "top-label ECE" in overview.columns
    assert "threshold" not in table.columns
    assert "weight" not in table.columns
    assert (
        table.notes[0] == "Decisions are for the class with the largest probability (rule argmax)."
    )
    weights = DecisionWeights("sqrt_inverse", "train", 1234, (0.5, 1.0, 1.5, 2.0, 0.0))
    set_point(out, run, rule="weighted_argmax", weights=to_tree(weights))
    table = tables_of(out)[1]
    place = table.columns.index("weight")
    assert [row[place] for row in table.rows] == ["0.500", "1.000", "1.500", "2.000", "0.000"]
    assert "square root of the inverse of the classes' frequencies among 1,234" in table.notes[0]


def test_what_averages_leave_out_is_named(recordings, tmp_path):
    few = write_benchmark(tmp_path / "out")  # with five test examples
    said = " ".join(tables_of(few)[0].notes)
    assert "The averages leave out STTC: without positives" in said
    assert "also leave out NORM, MI, CD" in said
    assert not [note for note in tables_of(recordings)[0].notes if "averages leave out" in note]


def test_a_card_that_says_nothing_leaves_the_figures(out):
    overview, table = tables_of(out)
    for run in RUNS:
        edit_json(card_of(out, run), lambda tree: tree.pop("operating_point"))
    silent, by_label = tables_of(out)
    assert silent.rows == [
        tuple("not stated" if cell == "temperature" and row[0] in SINGLE else cell for cell in row)
        for row in overview.rows
    ]
    assert "threshold" in table.columns
    assert "threshold" not in by_label.columns
    assert [row[-5:] for row in by_label.rows] == [row[-5:] for row in table.rows]
    assert "does not say how this run decides" in by_label.notes[0]
    (plot,) = reliability_plot(results_of(out))
    assert "Calibrator: not stated." in plot.caption


def test_the_reliability_plot_says_what_is_counted(out):
    (plot,) = reliability_plot(results_of(out))
    assert (plot.name, plot.section) == ("reliability", "calibration")
    outputs = results_of(out).chosen_outputs
    for state, value_NC in (
        ("raw", outputs.probabilities_NC),
        ("calibrated", outputs.calibrated_NC),
    ):
        bin_NC = np.ceil(value_NC * 10).clip(1) - 1
        parts = []
        for b in range(10):
            own_NC = bin_NC == b
            if own_NC.any():
                share = outputs.targets_NC[own_NC].mean()
                parts.append(f"{value_NC[own_NC].mean():.2f} → {share:.2f}")
        assert f"{state}: {', '.join(parts)}" in plot.alt
    assert "Calibrator: temperature 1.50, fitted on validation." in plot.caption
    n_patients = len(np.unique(outputs.patients_N))
    assert f"resamples of {n_patients} patients" in plot.caption
    assert f"rests on few patients ({n_patients})" in plot.caption
    run = str(results_of(out).chosen["run"])
    set_point(out, run, calibrator=to_tree(PLATT))
    (plot,) = reliability_plot(results_of(out))
    assert "Calibrator: Platt, by label, fitted on validation." in plot.caption


def test_decision_curves_are_drawn_for_each_label(out):
    (plot,) = decision_plot(results_of(out))
    assert (plot.name, plot.section) == ("decision_curves", "calibration")
    outputs = results_of(out).chosen_outputs
    drawn = [axes for axes in plot.figure.axes if axes.get_visible()]
    assert len(drawn) == len(outputs.labels)
    for i, (axes, label) in enumerate(zip(drawn, outputs.labels, strict=True)):
        target_N, value_N = outputs.targets_NC[:, i], outputs.calibrated_NC[:, i]
        prevalence = target_N.mean()
        assert axes.get_title(loc="left") == f"{label}  ({number(prevalence)})"
        lines = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
        found = np.asarray(lines["calibrated"])
        n_better = 0
        for k, t in enumerate(np.arange(1, 100) / 100):
            acted_N = value_N >= t
            price = t / (1 - t)
            benefit = (acted_N & target_N).mean() - (acted_N & ~target_N).mean() * price
            everybody = prevalence - (1 - prevalence) * price
            assert found[k] == pytest.approx(benefit / prevalence, abs=1e-9)
            n_better += benefit > max(everybody, 0)
        assert f"{label} {n_better} of 99" in plot.alt


def test_slopes_before_and_after_are_averaged_over_the_same_labels(out):
    """Of a label that all calibrated probabilities call 0.3, the raw slope counts no more."""
    run = str(results_of(out).chosen["run"])
    before = rows_of(tables_of(out)[0])["deep", "raw"]
    for file in (out / "work" / "score" / run / "predictions").iterdir():
        edit_table(file, lambda table: table.assign(calibrated_NORM=0.3))
    rows = rows_of(tables_of(out)[0])
    assert rows["deep", "raw"]["ECE"] == before["ECE"]
    assert rows["deep", "raw"]["slope"] != before["slope"]
    for state in ("raw", "calibrated"):
        assert rows["deep", state]["slope"] == number(by_hand(out, run, state)["slope"])
    assert "also leave out NORM: in some or all runs" in " ".join(tables_of(out)[0].notes)


def test_the_page_has_the_section(out):
    audit(out / "work", out)
    report(out, out)
    page, text = (out / "index.html").read_text(), (out / "summary.md").read_text()
    _, _, section = page.partition('<section id="calibration">')
    section = section.partition("</section>")[0]
    assert '<a href="#calibration">' in page
    for title in ("Reliability", "Decision curves"):
        assert f"<h3>{title}</h3>" in section
        assert page.count(f"<h3>{title}</h3>") == 1
    for table in tables_of(out):
        assert table.caption in section
        assert f"## {table.caption}" in text
    rows = rows_of(tables_of(out)[0])
    summary = pd.read_csv(out / "summary.csv").set_index("architecture")
    assert rows["deep", "raw"]["audit"] == summary.loc["deep", "verdict"]
    assert {"reliability.png", "decision_curves.png"} <= {f.name for f in (out / "plots").iterdir()}


def test_of_folds_the_chosen_architecture_is_marked(tmp_path):
    out = make_folds(tmp_path / "out", "wide", "deep")
    results = results_of(out)
    overview = tables_of(out)[0]
    marked = {overview.rows[i][0] for i in overview.marked}
    assert marked == {results.chosen["architecture"]}
    assert [row[0] for row in overview.rows[::2]] == results.architectures


def test_without_a_finished_run_nothing_is_said(out):
    for run in (*RUNS, "wide-ensemble", "ensemble"):
        edit_json(
            out / "work" / "train" / run / "run.json",
            lambda tree: tree.update(status="failed", error="lost"),
        )
    results = results_of(out)
    for function in (calibration_tables, reliability_plot, decision_plot):
        assert list(function(results)) == []
