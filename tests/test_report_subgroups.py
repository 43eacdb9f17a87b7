"""Groups of recordings and the worst patients in the report, against figures made by hand."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import DEGRADED, LOST, edit_json, edit_table, write_benchmark
from stated_groups import (
    FIRST,
    group_of,
    make,
    records_of,
    results_of,
    stated,
    turned,
    write_records,
)
from test_report_intervals import few_resamples
from test_report_many import make_folds

from rayecg.core.files import read_table, write_table
from rayecg.metrics.bootstrap import N_RESAMPLES, ends, units_of_labels
from rayecg.metrics.comparison import difference, holm
from rayecg.metrics.resamples import Resamples, n_effective
from rayecg.report.patients import WORST, worst_patients, worst_patients_table
from rayecg.report.results import Results
from rayecg.report.subgroup_figures import DIFFERENCE, FEWEST_PATIENTS, SHARED
from rayecg.report.subgroups import forest, subgroup_tables, subgroups_csv
from rayecg.report.text import NOTHING, SYNTHETIC_LABEL
from rayecg.report.write import report

#: What is compared is computed in float64, in another order.
CLOSE = 1e-9


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("subgroups") / "out")


@pytest.fixture
def out(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "copy"))


@dataclass(frozen=True)
class ByHand:
    """Means over runs on some recordings: as they are, and on the first resamples written out."""

    points: pd.Series
    values: pd.DataFrame
    targets_NC: np.ndarray
    patients_N: np.ndarray

    def units(self, label: int | None = None) -> float:
        """Count the patients that a label's figures are known from, or a mean of all labels'."""
        if label is None:
            return units_of_labels(self.targets_NC, self.patients_N)
        return units_of_labels(self.targets_NC[:, [label]], self.patients_N)


def by_hand(results: Results, runs: Collection[str], own: Callable[[str], bool], n: int) -> ByHand:
    benchmark = results.benchmark
    drawn = Resamples.of(benchmark.patients(benchmark.split_examples("test")), N_RESAMPLES)
    points, values, parts = [], [], []
    for run in runs:
        outputs = benchmark.outputs(run)
        assert outputs is not None
        part = outputs.part(np.array([own(name) for name in records_of(results, outputs)]))
        parts.append(part)
        points.append(part.metrics())
        place_N = drawn.index(part.patients_N)
        each = [
            part.part(np.repeat(np.arange(len(place_N)), drawn.counts_GR[place_N, r]))
            for r in range(n)
        ]
        values.append(pd.DataFrame([drawn_part.metrics() for drawn_part in each]))
    return ByHand(
        pd.DataFrame(points).mean(),
        pd.concat(values).groupby(level=0).mean(),
        np.concatenate([part.targets_NC for part in parts]),
        np.concatenate([part.patients_N for part in parts]),
    )


def male(record_id: str) -> bool:
    return int(record_id[1:]) % 2 == 0


@pytest.mark.parametrize("primary", ["macro_auroc", "accuracy", "macro_f1"])
def test_a_groups_figures_are_those_of_its_recordings(out, monkeypatch, primary):
    edit_json(out / "work" / "task.json", lambda tree: tree.update(primary_metric=primary))
    results = results_of(out)
    assert results.chosen is not None
    run, n = str(results.chosen["run"]), 25
    men = by_hand(results, [run], male, n)
    others = by_hand(results, [run], lambda name: not male(name), n)
    few_resamples(monkeypatch, n)
    group = group_of(results, "sex", "male")
    for name, point in men.points.items():
        if not name.startswith("n_positive"):
            assert group.figure(name).point == pytest.approx(point, abs=CLOSE, nan_ok=True)
    labels = results.benchmark.labels
    everyone = n_effective(men.patients_N)
    units = {f"macro_{m}": men.units() for m in ("auroc", "auprc", "f1", "npv", "sensitivity")}
    units |= dict.fromkeys(("accuracy", "micro_f1", "micro_specificity"), everyone)
    for m in ("auroc", "auprc", "f1", "sensitivity", "specificity", "ppv", "npv"):
        units |= {f"{m}_{label}": men.units(c) for c, label in enumerate(labels)}
    n_with = 0
    for name, n_units in units.items():
        low, high, _ = ends("student", men.points[name], men.values[name].to_numpy(), n_units)
        found = group.figure(name)
        if np.isnan(found.low):
            assert n_units <= 1 or not high - low > CLOSE
            continue
        n_with += 1
        assert (found.low, found.high) == pytest.approx((low, high), abs=CLOSE), name
    assert n_with > len(units) / 2
    single = {"macro_auroc": "auroc", "macro_f1": "f1"}.get(primary, primary)
    names = [f"{single}_{label}" for label in labels] if single != primary else [single]
    expected = difference(
        (men.points[names] - others.points[names]).mean(),
        (men.values[names] - others.values[names]).mean(axis=1).to_numpy(),
        (10, min(men.units(), others.units()))
        if single != primary
        else (10, min(everyone, n_effective(others.patients_N))),
    )
    found = group.figure(f"{primary}_{DIFFERENCE}")
    assert found == group.difference
    assert (found.point, found.low, found.high, found.p) == pytest.approx(
        (expected.point, expected.low, expected.high, expected.p_value), abs=CLOSE
    )


def test_all_examples_come_first_with_the_runs_own_figures(out):
    results = results_of(out)
    assert results.subgroups is not None
    whole = results.subgroups.groups[0]
    assert results.chosen is not None
    for metric in ("macro_auroc", "macro_f1", "auroc_MI"):
        assert whole.figure(metric).point == results.chosen[f"test_{metric}"]
    assert whole.n_examples == FIRST + 2 - 1  # one has no probability
    assert np.isnan(whole.p_holm)
    outputs = results.chosen_outputs
    assert outputs is not None
    assert list(whole.n_positive.values()) == outputs.targets_NC.sum(axis=0).tolist()


def test_what_was_lost_and_what_was_not_decided_is_counted(out):
    results = results_of(out)
    assert not male(LOST)
    assert not male(DEGRADED)
    female, other = (group_of(results, "sex", name) for name in ("female", "male"))
    assert (female.n_missing, female.n_abstained) == (1, 1)
    assert (other.n_missing, other.n_abstained) == (0, 0)
    assert (female.n_records, female.n_patients) == (20, 10)
    assert (other.n_records, other.n_patients) == (22, 10)
    note = next(iter(subgroup_tables(results))).notes
    assert any(line.startswith("1 recording without a probability") for line in note)


def test_a_group_of_few_patients_has_counts_alone(out):
    results = results_of(out)
    children = group_of(results, "age", "under 18")
    assert (children.n_patients, children.n_records) == (3, 7)
    assert children.n_patients < FEWEST_PATIENTS
    assert not children.figures
    assert np.isnan(children.p_holm)
    figures, labels = (table for table in subgroup_tables(results))
    row = next(row for row in figures.rows if row[0] == "age: under 18")
    assert row[1:3] == ("7", "3")
    assert set(row[3:-1]) == {NOTHING}
    assert row[-1] == "fewer than 5 patients"
    assert any(row[0] == "age: under 18" for row in labels.rows)
    written = subgroups_csv(results)
    assert written is not None
    own = written[written["group"] == "under 18"]
    assert own[["n_records", "n_patients"]].values.tolist() == [[7, 3]]
    assert own["value"].isna().all()
    (plot,) = forest(results)
    assert f"age under 18 {NOTHING} (3 patients)" in plot.alt


def test_few_patients_and_few_positives_are_said(out):
    results = results_of(out)
    adults = group_of(results, "age", "18-39")
    assert "rests on few patients (7)" in adults.warning
    outputs = results.chosen_outputs
    assert outputs is not None
    ages = [stated(int(name[1:]))["age"] for name in records_of(results, outputs)]
    part = outputs.part(np.array([age == 30.0 for age in ages]))
    few = [
        label
        for label, own_N in zip(part.labels, part.targets_NC.T, strict=True)
        if 0 < len(np.unique(part.patients_N[own_N])) < 5
    ]
    assert few
    assert list(adults.rare) == few


def test_a_group_that_is_worse_is_named_and_marked(out):
    turned(out, [f"r{i:03d}" for i in range(60) if stated(i)["site"] == "B"])
    results = results_of(out)
    found = results.subgroups
    assert found is not None
    bad = group_of(results, "site", "B")
    figure = bad.figure(f"macro_auroc_{DIFFERENCE}")
    assert figure.high < 0
    assert bad.p_holm < 0.05
    assert bad in found.worse
    assert found.compared[0].figure(f"macro_auroc_{DIFFERENCE}").point <= figure.point
    assert group_of(results, "site", "A") not in found.worse
    table = next(iter(subgroup_tables(results)))
    assert "B" in {table.rows[i][0].removeprefix("site: ") for i in table.marked}
    assert table.notes[0].startswith("Worse than the rest in macro AUROC, also after Holm")
    assert (
        f"site B, {figure.point:+.3f} ({figure.low:+.3f} to {figure.high:+.3f})" in table.notes[0]
    )
    assert f"only {bad.n_patients} patients" in table.notes[0]


def test_where_no_group_is_worse_the_lowest_is_named(out):
    results = results_of(out)
    found = results.subgroups
    assert found is not None
    assert found.worse == []
    points = [group.figure(f"macro_auroc_{DIFFERENCE}").point for group in found.compared]
    assert points == sorted(points)
    table = next(iter(subgroup_tables(results)))
    assert not table.marked
    n = len(found.compared)
    assert table.notes[0].startswith(f"After Holm's correction over {n} groups, none is worse")
    assert f"the lowest against it is {found.compared[0].title}, {points[0]:+.3f}" in table.notes[0]


def test_every_comparison_counts_in_the_correction(out):
    found = results_of(out).subgroups
    assert found is not None
    compared = [g for g in found.groups if g.figure(f"macro_auroc_{DIFFERENCE}").p >= 0]
    expected = holm([group.figure(f"macro_auroc_{DIFFERENCE}").p for group in compared])
    assert [group.p_holm for group in compared] == pytest.approx(expected, abs=CLOSE)
    assert len(found.compared) == len(compared) > 5


def test_a_figure_that_no_resample_changes_has_no_interval(out):
    """Who finds every infarct has a sensitivity of 1 in any resample."""

    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(decision_MI=rows["decision_MI"].where(rows["decision_MI"].isna(), 1))

    for file in (out / "work" / "score").glob("*/predictions/*.parquet"):
        edit_table(file, edit)
    results = results_of(out)
    figure = group_of(results, "sex", "male").figure("sensitivity_MI")
    assert figure.point == 1
    assert np.isnan([figure.low, figure.high]).all()
    written = subgroups_csv(results)
    assert written is not None
    own = written[(written["metric"] == "sensitivity") & (written["label"] == "MI")]
    assert own["n_undefined"].isna().all()


@pytest.mark.parametrize("primary", ["macro_auroc", "macro_auprc"])
def test_of_very_many_positives_auprc_has_an_interval_only_where_it_chooses(
    out, monkeypatch, primary
):
    edit_json(out / "work" / "task.json", lambda tree: tree.update(primary_metric=primary))
    before = group_of(results_of(out), "sex", "male")
    n = sum(before.n_positive.values())
    monkeypatch.setattr("rayecg.report.subgroup_evaluation.MOST_POSITIVES", n - 1)
    after = group_of(results_of(out), "sex", "male")
    for name in ("macro_auprc", "auprc_NORM"):
        assert after.figure(name).point == before.figure(name).point
        assert np.isnan(after.figure(name).low) == (primary != "macro_auprc")
    assert after.figure("macro_auroc") == before.figure("macro_auroc")
    assert after.difference == before.difference


def test_labels_that_a_group_lacks_are_said_and_shared_ones_compared(out):
    """No patient of site B has an infarct: its average rests on the others."""

    def without(examples: pd.DataFrame) -> pd.DataFrame:
        b = examples["record_id"].map(lambda name: stated(int(name[1:]))["site"] == "B")
        return examples.assign(target_MI=examples["target_MI"] & ~b, reason=None)

    edit_table(out / "work" / "examples.parquet", without)
    results = results_of(out)
    found = results.subgroups
    assert found is not None
    assert group_of(results, "site", "B").without == ("MI",)
    assert "without MI" in group_of(results, "site", "B").warning
    shared = tuple(label for label in results.benchmark.labels if label != "MI")
    assert found.shared["site"] == shared
    for name in "AB":
        group = group_of(results, "site", name)
        points = [group.figure(f"auroc_{label}").point for label in shared]
        figure = group.figure(f"macro_auroc_{SHARED}")
        assert figure.point == pytest.approx(np.mean(points), abs=CLOSE)
        assert figure.low < figure.point < figure.high
    table = next(iter(subgroup_tables(results)))
    column = table.columns.index("macro AUROC, shared labels")
    row = next(row for row in table.rows if row[0] == "site: B")
    assert (
        row[column] == f"{group_of(results, 'site', 'B').figure(f'macro_auroc_{SHARED}').point:.3f}"
    )
    assert any("site: NORM, STTC, CD, HYP" in note for note in table.notes)


def test_what_no_recording_states_is_said(out):
    table = next(iter(subgroup_tables(results_of(out))))
    assert "No test recording states: device, wander." in table.notes
    names = [row[0] for row in table.rows]
    assert "flag: noise" in names
    assert not [name for name in names if name.startswith(("device", "wander"))]


def test_a_table_of_before_sites_and_devices_will_do(out):
    file = out / "work" / "shards" / "records.parquet"
    write_table(file, read_table(file).drop_columns(["site", "device", "noise_mv"]))
    results = results_of(out)
    assert results.subgroups is not None
    assert results.subgroups.absent == ("site", "device", "noise", "wander")
    assert group_of(results, "sex", "male").is_shown


def test_without_the_records_table_a_note_says_so(out):
    (out / "work" / "shards" / "records.parquet").unlink()
    results = results_of(out)
    assert results.subgroups is None
    (table,) = subgroup_tables(results)
    assert table.section == "subgroups"
    assert "records.parquet" in table.rows[0][1]
    assert list(forest(results)) == []
    assert subgroups_csv(results) is None
    assert worst_patients(results) is not None


def test_without_a_scored_choice_there_is_nothing(out):
    shutil.rmtree(out / "work" / "score")
    results = results_of(out)
    assert results.subgroups is None
    assert list(subgroup_tables(results)) == list(forest(results)) == []
    assert list(worst_patients_table(results)) == []
    assert subgroups_csv(results) is worst_patients(results) is None


def test_folds_are_averaged_each_on_its_own_examples(tmp_path, monkeypatch):
    out = make_folds(tmp_path / "out", "wide")
    write_records(out, stated)
    runs = tuple(f"wide-fold{fold}-seed0" for fold in range(3))
    results, n = results_of(out), 20
    men = by_hand(results, runs, male, n)
    few_resamples(monkeypatch, n)
    group = group_of(results, "sex", "male")
    test = results.benchmark.split_examples("test")
    assert group.n_records == test["record_id"].map(male).sum() == len(men.patients_N)
    units = {"accuracy": n_effective(men.patients_N), "ppv_MI": men.units(1)}
    for name in ("macro_auroc", "macro_f1", "accuracy", "ppv_MI"):
        figure, point = group.figure(name), men.points[name]
        assert figure.point == pytest.approx(point, abs=CLOSE)
        n_units = units.get(name, men.units())
        low, high, _ = ends("student", point, men.values[name].to_numpy(), n_units)
        assert (figure.low, figure.high) == pytest.approx((low, high), abs=CLOSE)
    table = next(iter(subgroup_tables(results)))
    assert any(note.startswith("Figures are means over 3 runs") for note in table.notes)


@pytest.fixture
def beats(tmp_path: Path) -> Path:
    """Nine patients' beats in the test split, of men and women."""
    out = write_benchmark(tmp_path / "beats", "beats")
    write_records(out, lambda i: {"sex": "F" if i < 3 else "M", "age": 50.0})

    def edit(examples: pd.DataFrame) -> pd.DataFrame:
        kept = examples["split"].isin(["train", "validation", "test"])
        return examples.assign(split=examples["split"].where(~kept, "test"))

    edit_table(out / "work" / "examples.parquet", edit)
    return out


def test_beats_are_counted_beside_recordings(beats):
    results = results_of(beats)
    test = results.benchmark.split_examples("test")
    records = results.benchmark.records
    assert records is not None
    women = set(records.loc[records["sex"] == "F", "record_id"])
    own = test[test["record_id"].isin(women)]
    other = test[~test["record_id"].isin(women)]
    table = next(iter(subgroup_tables(results)))
    assert table.columns[1:4] == ("beats", "recordings", "patients")
    row = next(row for row in table.rows if row[0] == "sex: female")
    n = own["record_id"].nunique()
    assert row[1:4] == (str(len(own)), str(n), str(n))
    assert n < FEWEST_PATIENTS <= other["record_id"].nunique()
    male_row = next(row for row in table.rows if row[0] == "sex: male")
    assert male_row[4] != NOTHING
    assert male_row[5] == NOTHING  # the rest are too few to compare with
    found = results.subgroups
    assert found is not None
    assert found.compared == []
    assert table.notes[0].startswith("In brackets")


def test_intervals_of_all_are_those_of_the_other_tables(beats):
    """Of an architecture with one run, where every example has a probability."""
    results = results_of(beats)
    assert results.chosen is not None
    assert results.subgroups is not None
    architecture = str(results.chosen["architecture"])
    assert (results.done["architecture"] == architecture).sum() == 1
    whole = results.subgroups.groups[0]
    for name in ("f1_V", "auroc_S"):
        expected = results.intervals.of(architecture, name)
        assert (whole.figure(name).low, whole.figure(name).high) == pytest.approx(
            expected, abs=CLOSE
        )


def test_the_report_holds_groups_and_patients(out):
    report(out, out)
    page, markdown = ((out / name).read_text() for name in ("index.html", "summary.md"))
    for text in (page, markdown):
        assert "none is worse than the rest in macro AUROC" in text
        assert "Patients with the worst figures" in text
    assert 'id="subgroups"' in page
    assert (out / "plots" / "subgroups.png").stat().st_size > 0
    groups, patients = (pd.read_csv(out / f"{n}.csv") for n in ("subgroups", "worst_patients"))
    assert len(patients) == WORST
    for table in (groups, patients):
        assert (table["data"] == SYNTHETIC_LABEL).all()
        assert set(table["verdict"]) == {"not audited"}
    shown = groups[(groups["by"] == "sex") & (groups["group"] == "male")].set_index("metric")
    assert shown.loc["macro_auroc", "low"] < shown.loc["macro_auroc", "value"]
    assert set(groups.loc[groups["metric"] == "auroc", "label"].dropna()) == {
        "NORM", "MI", "STTC", "CD", "HYP",
    }  # fmt: skip
    assert (
        shown.loc[f"macro_auroc_{DIFFERENCE}", "p_holm"]
        >= shown.loc[f"macro_auroc_{DIFFERENCE}", "p"]
    )
    first = {name: (out / name).read_bytes() for name in ("subgroups.csv", "worst_patients.csv")}
    report(out, out)
    assert first == {name: (out / name).read_bytes() for name in first}
