"""The rules that look at results: planted faults fire, clean cases do not, lost evidence is no pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import (
    FAILED,
    RUNS,
    SEEDS,
    add_ensembles,
    card_of,
    edit_json,
    edit_table,
    write_benchmark,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions_of_others import as_csv, beat_rows, prediction_rows

from rayecg import pipeline
from rayecg.audit.catalogue import load_rule
from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Finding
from rayecg.audit.order import grouping, grouping_in_batches, order_by_person
from rayecg.audit.others import TableEvidence
from rayecg.core.files import read_json, write_json, write_text
from rayecg.core.folders import Folders
from rayecg.core.prediction_table import read_prediction_table
from rayecg.metrics import bootstrap_interval, macro_auroc


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("results")
    return {kind: write_benchmark(place / kind, kind) for kind in ("recordings", "beats")}


@pytest.fixture
def recordings(clean: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean["recordings"], tmp_path / "copy"))


@pytest.fixture
def beats(clean: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean["beats"], tmp_path / "copy"))


def check(out: Path, rule_id: str) -> list[Finding]:
    return load_rule(rule_id)(Evidence(out / "work"))


def one(out: Path, rule_id: str) -> Finding:
    (found,) = check(out, rule_id)
    return found


def of_table(rows: pd.DataFrame, folder: Path, rule_id: str) -> list[Finding]:
    table = read_prediction_table(as_csv(rows, folder))
    return load_rule(rule_id)(TableEvidence(table))


# The calibrator.


def test_calibrator_fitted_on_test_fires_and_leaves_thresholds_alone(recordings: Path) -> None:
    def edit(tree: dict[str, Any]) -> None:
        tree["operating_point"]["calibrator"]["split"] = "test"

    edit_json(card_of(recordings, "deep-seed0"), edit)
    found = [f for f in check(recordings, "calibrator-on-test") if f.verdict == "violated"]
    assert [finding.taints for finding in found] == [("run:deep-seed0",)]
    assert one(recordings, "threshold-on-test").verdict == "passed"


@pytest.mark.parametrize(("split", "said"), [("test", "violated"), ("validation", "passed")])
def test_a_temperature_of_an_older_card_shares_the_threshold_s_data(
    recordings: Path, split: str, said: str
) -> None:
    def edit(tree: dict[str, Any]) -> None:
        point = tree["operating_point"]
        del point["calibrator"]
        point |= {"temperature": 1.5, "split": split}

    for run in RUNS:
        edit_json(card_of(recordings, run), edit)
    assert one(recordings, "calibrator-on-test").verdict == said


def test_a_card_without_calibrator_is_not_checked(recordings: Path) -> None:
    for run in RUNS:
        edit_json(card_of(recordings, run), lambda tree: tree["operating_point"].pop("calibrator"))
    assert one(recordings, "calibrator-on-test").verdict == "not checked"


def test_decision_weights_of_the_test_split_fire(recordings: Path) -> None:
    def weights_of(split: str) -> None:
        weights = {"weights": {"split": split}}
        card = card_of(recordings, "deep-seed0")
        edit_json(card, lambda tree: tree["operating_point"].update(weights))

    for split, said in (("train", {"passed"}), ("test", {"passed", "violated"})):
        weights_of(split)
        assert {f.verdict for f in check(recordings, "threshold-on-test")} == said


# Looks at the test split.


def retrain(out: Path, run: str, weights: str) -> None:
    edit_json(card_of(out, run), lambda tree: tree.update(weights_sha256=weights))


def look(out: Path) -> Finding:
    folders = Folders.of_benchmark(out)
    runs = [run for run in read_json(out / "work" / "runs.json", list) if run != FAILED]
    pipeline.note_looks(folders, runs)
    return one(out, "test-looks")


def test_the_same_checkpoints_again_are_the_same_look(recordings: Path) -> None:
    assert look(recordings).verdict == "passed"
    found = look(recordings)
    assert found.verdict == "passed"
    assert found.evidence["n_looks"] == 1
    assert len(read_json(recordings / "ledger.json", list)) == len(RUNS)


def test_other_checkpoints_are_a_further_look(recordings: Path) -> None:
    (recordings / "ledger.json").unlink()
    assert look(recordings).evidence["n_looks"] == 1
    retrain(recordings, "deep-seed0", "after having seen the figures")
    found = look(recordings)
    assert (found.verdict, found.severity, found.taints) == ("violated", "weakens", ("test",))
    assert found.evidence["n_looks"] == 2
    assert any("deep-seed0" in each for each in found.evidence["ids"])


def test_a_further_architecture_is_a_further_look(recordings: Path) -> None:
    (recordings / "ledger.json").unlink()
    listed = recordings / "work" / "runs.json"
    edit_json(
        recordings / "work" / "train" / "deep-seed0" / "run.json", lambda t: t.update(key="d")
    )
    write_json(listed, ["wide-seed0", "wide-seed1"])
    look(recordings)
    write_json(listed, list(RUNS))
    assert look(recordings).evidence["n_looks"] == 2


def test_a_run_that_failed_at_first_belongs_to_the_look_of_its_plan(recordings: Path) -> None:
    (recordings / "ledger.json").unlink()
    folders = Folders.of_benchmark(recordings)
    pipeline.note_looks(folders, ["wide-seed0", "wide-seed1"])  # the plan lists deep-seed0, too
    pipeline.note_looks(folders, list(RUNS))
    found = one(recordings, "test-looks")
    assert (found.verdict, found.evidence["n_looks"]) == ("passed", 1)


def test_ensembles_and_runs_for_the_audit_are_no_looks(recordings: Path) -> None:
    look(recordings)
    add_ensembles(recordings)
    assert look(recordings).evidence["n_looks"] == 1
    entries = read_json(recordings / "ledger.json", list)
    assert [entry["run"] for entry in entries if "members" in entry] == [SEEDS, "ensemble"]
    entries.append({**entries[0], "evaluation": "other", "audit": "permuted-labels"})
    write_json(recordings / "ledger.json", entries)
    assert one(recordings, "test-looks").evidence["n_looks"] == 1


def test_looks_at_another_task_do_not_count(recordings: Path) -> None:
    entries = read_json(recordings / "ledger.json", list)
    write_json(
        recordings / "ledger.json", [*entries, {**entries[0], "task": "x", "evaluation": "y"}]
    )
    assert one(recordings, "test-looks").verdict == "passed"


def test_looks_elsewhere_count_and_a_correction_is_shown(recordings: Path) -> None:
    settings_file = recordings / "experiment.yaml"
    write_text(settings_file, "audit: {looks_elsewhere: 2}\n")
    found = one(recordings, "test-looks")
    assert (found.verdict, found.evidence["n_looks"]) == ("violated", 3)
    write_text(settings_file, "audit: {looks_elsewhere: 2, looks_correction: Holm over three}\n")
    found = one(recordings, "test-looks")
    assert found.verdict == "passed"
    assert "Holm over three" in found.evidence["text"]


def test_a_ledger_that_groups_nothing_is_not_checked(recordings: Path) -> None:
    edit_json(recordings / "ledger.json", lambda looks: [look.pop("evaluation") for look in looks])
    assert one(recordings, "test-looks").verdict == "not checked"


# The order of the test rows.


def test_beats_in_time_pass_and_sorted_by_label_fire(beats: Path) -> None:
    assert one(beats, "label-grouped-input").verdict == "passed"

    def by_label(table: pd.DataFrame) -> pd.DataFrame:
        targets = [name for name in table if name.startswith("target_")]
        return table.sort_values(targets, kind="stable")

    edit_table(beats / "work" / "examples.parquet", by_label)
    found = one(beats, "label-grouped-input")
    assert (found.verdict, found.severity, found.taints) == ("violated", "invalidates", ("test",))
    assert found.evidence["seen"] < found.evidence["expected"] / 2


def test_long_runs_of_one_kind_in_time_pass(tmp_path: Path) -> None:
    rows = beat_rows()
    (found,) = of_table(rows, tmp_path, "label-grouped-input")
    assert found.verdict == "passed"
    # The same rows would look grouped against a shuffle of single beats.
    label_N = rows["target_V"].to_numpy()
    changes = int((label_N[1:] != label_N[:-1]).sum())
    assert changes < 0.5 * 2 * label_N.mean() * (1 - label_N.mean()) * len(rows)


def test_one_label_sorted_among_several_fires(tmp_path: Path) -> None:
    rows = prediction_rows(600, 300)
    (found,) = of_table(rows, tmp_path, "label-grouped-input")
    assert found.verdict == "passed"
    (found,) = of_table(rows.sort_values("target_MI"), tmp_path, "label-grouped-input")
    assert found.verdict == "violated"
    assert "of MI" in found.evidence["text"]


def test_batches_of_one_label_fire_and_batches_in_order_do_not(tmp_path: Path) -> None:
    rows = prediction_rows(600, 300)
    rows = rows[rows["split"] == "test"].reset_index(drop=True)
    in_order = rows.assign(batch=[f"b{i // 8}" for i in range(len(rows))])
    assert {f.verdict for f in of_table(in_order, tmp_path, "label-grouped-input")} == {"passed"}
    targets = [name for name in rows if name.startswith("target_")]
    by_label = rows.sort_values(targets).index
    place = np.empty(len(rows), dtype=int)
    place[by_label] = np.arange(len(rows)) // 8
    grouped = rows.assign(batch=[f"b{i}" for i in place])  # the rows themselves stay as they are
    found = of_table(grouped, tmp_path, "label-grouped-input")
    assert "violated" in {finding.verdict for finding in found}


def test_too_few_rows_to_tell_are_not_checked(tmp_path: Path) -> None:
    rows = prediction_rows(6, 6).assign(split="test", target_NORM=[0, 0, 0, 1, 1, 1])
    rows = rows.assign(target_MI=0, target_STTC=0, patient_id=rows["record_id"])
    (found,) = of_table(rows, tmp_path, "label-grouped-input")
    assert found.verdict == "not checked"
    assert "too few" in found.evidence["text"]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n_labels=st.integers(1, 4))
def test_shuffled_rows_never_fire(seed: int, n_labels: int) -> None:
    """Chance gives fewer than half the changes of 200 rows in none of 10^10 orders."""
    rng = np.random.default_rng(seed)
    values_NL = (rng.random((200, n_labels)) < 0.4).astype(int)
    names = np.arange(200).astype(str)
    order = order_by_person(names, names, np.zeros(200, dtype=int))
    assert grouping(values_NL, *order).share > 0.5
    batches = np.arange(200) // 8
    assert grouping_in_batches(values_NL, *order, batches).share > 0.5


# Intervals.


def test_an_interval_beside_its_point_fires_for_its_runs(recordings: Path) -> None:
    file = recordings / "intervals.csv"
    table = pd.read_csv(file)
    assert set(table["unit"]) == {"patient"}
    assert one(recordings, "interval-excludes-point").verdict == "passed"
    at = table.index[(table["name"] == "deep") & (table["metric"] == "macro_auroc")][0]
    table.loc[at, ["low", "high"]] = table.loc[at, "point"] + np.array([0.01, 0.02])
    table.to_csv(file, index=False)
    found = {f.verdict: f for f in check(recordings, "interval-excludes-point")}
    assert found["violated"].taints == ("run:deep-seed0",)
    assert "macro_auroc of deep" in found["violated"].evidence["ids"][0]
    assert found["passed"].evidence["n"] == len(table) - 1


@pytest.mark.parametrize(
    ("low", "high", "point", "said"),
    [
        (0.0, 1.0, None, "passed"),
        (0.0, 0.001, None, "violated"),
        (0.96, 0.94, 0.95, "violated"),  # turned round
        (0.90, 0.95, 0.951, "violated"),
        (0.90, 0.95, 0.92, "passed"),
    ],
)
def test_a_published_interval_against_its_point(
    tmp_path: Path, low: float, high: float, point: float | None, said: str
) -> None:
    rows = prediction_rows().assign(
        interval_low_macro_auroc=low, interval_high_macro_auroc=high, point_macro_auroc=point
    )
    (found,) = of_table(rows, tmp_path, "interval-excludes-point")
    assert found.verdict == said, found.evidence


def test_an_end_may_be_rounded_past_the_point_and_no_further(tmp_path: Path) -> None:
    rows = prediction_rows()
    test = rows[rows["split"] == "test"]
    columns = (test[[name for name in rows if name.startswith(k)]] for k in ("target", "prob"))
    point = macro_auroc(*(own.to_numpy() for own in columns))
    end = round(point, 2)
    outwards = 0.01 if end > point else -0.01
    for shift, said in ((0.0, "passed"), (outwards, "violated")):
        ends = sorted([end + shift, 1.0 if end > point else 0.0])
        own = rows.assign(interval_low_macro_auroc=ends[0], interval_high_macro_auroc=ends[1])
        own = own.round({"interval_low_macro_auroc": 2, "interval_high_macro_auroc": 2})
        (found,) = of_table(own, tmp_path, "interval-excludes-point")
        assert found.verdict == said, found.evidence


def test_an_interval_of_an_unknown_metric_needs_its_point(tmp_path: Path) -> None:
    rows = prediction_rows().assign(interval_low_fmax=0.4, interval_high_fmax=0.6)
    (found,) = of_table(rows, tmp_path, "interval-excludes-point")
    assert found.verdict == "not checked"
    (found,) = of_table(rows.assign(point_fmax=0.7), tmp_path, "interval-excludes-point")
    assert found.verdict == "violated"


@pytest.mark.parametrize(
    ("unit", "said"),
    [
        ("patient", "passed"),
        ("Subjects", "passed"),
        ("hospital", "passed"),
        ("record", "violated"),
        ("beats", "violated"),
        ("moons", "not checked"),
    ],
)
def test_the_unit_that_intervals_resample(tmp_path: Path, unit: str, said: str) -> None:
    rows = prediction_rows().assign(
        interval_low_accuracy=0.4, interval_high_accuracy=0.6, resampling_unit=unit
    )
    (found,) = of_table(rows, tmp_path, "resampling-unit")
    assert (found.verdict, found.severity) == (said, "weakens")
    if unit == "record":  # where each patient has one, it is the same
        alone = rows.drop_duplicates("patient_id")
        assert of_table(alone, tmp_path, "resampling-unit")[0].verdict == "passed"


def test_what_was_resampled_shows_in_the_width(tmp_path: Path) -> None:
    rows = beat_rows()
    targets, scores = rows[["target_V"]].to_numpy(), rows[["probability_V"]].to_numpy()
    people = rows["patient_id"].to_numpy(dtype=str)
    for groups, said in ((None, "violated"), (people, "passed")):
        found = bootstrap_interval("macro_auroc", targets, scores, groups, 1000, seed=5)
        own = rows.assign(
            interval_low_macro_auroc=round(found.low, 3),
            interval_high_macro_auroc=round(found.high, 3),
        )
        (one_finding,) = of_table(own, tmp_path, "resampling-unit")
        assert one_finding.verdict == said, one_finding.evidence
    # Where patients have one row each, there is nothing to tell them apart by.
    alone = own.drop_duplicates("patient_id")
    assert of_table(alone, tmp_path, "resampling-unit")[0].verdict == "not checked"


def test_more_units_than_patients_are_finer_than_patients(recordings: Path) -> None:
    file = recordings / "intervals.csv"
    assert one(recordings, "resampling-unit").verdict == "passed"
    pd.read_csv(file).assign(n_units=50).to_csv(file, index=False)
    assert one(recordings, "resampling-unit").verdict == "violated"
    pd.read_csv(file).assign(unit=None).to_csv(file, index=False)
    assert one(recordings, "resampling-unit").verdict == "not checked"
