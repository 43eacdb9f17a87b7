"""The report's figures beyond the first tables: averages, Fmax, the challenge's score, ectopic beats."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import RUNS, edit_json, edit_table, write_benchmark
from sklearn import metrics as reference

from rayecg.core.experiment import TaskSettings
from rayecg.core.files import read_table
from rayecg.metrics.challenge import challenge_score, challenge_weights
from rayecg.metrics.counts import ppv_at_prevalence
from rayecg.metrics.fmax import f_at_threshold, fmax_threshold
from rayecg.report.beat_tables import beat_tables
from rayecg.report.benchmark import Outputs
from rayecg.report.class_tables import PREVALENCES, class_tables
from rayecg.report.layout import Table, per_class_table
from rayecg.report.results import Results
from rayecg.report.runs import METRICS, OF_TEST, of_test, run_table
from rayecg.report.text import NOTHING, SYNTHETIC_LABEL, number
from rayecg.tasks.task import load_task

LABELS = ("NORM", "MI", "STTC", "CD", "HYP")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark whose test split has 41 recordings."""
    out = write_benchmark(tmp_path_factory.mktemp("classes") / "recordings")

    def more(examples: pd.DataFrame) -> pd.DataFrame:
        other = examples["record_id"].str[1:].astype(int) < 41
        return examples.assign(split=np.where(other, "test", examples["split"]), reason=None)

    edit_table(out / "work" / "examples.parquet", more)
    return out


@pytest.fixture(scope="module")
def beats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark on beats, where every run decides two F beats and one Q beat for V."""
    out = write_benchmark(tmp_path_factory.mktemp("classes") / "beats", "beats", synthetic=False)
    examples = pd.read_parquet(out / "work" / "examples.parquet")
    normal = examples[(examples["split"] == "test") & (examples["target_N"] == 1)]
    fused, unknown = normal.index[:2], normal.index[2]

    def plant(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[[*fused, unknown], "target_N"] = 0
        table.loc[fused, "target_F"] = 1
        table.loc[unknown, "target_Q"] = 1
        return table

    edit_table(out / "work" / "examples.parquet", plant)
    keys = set(normal.iloc[:3][["record_id", "offset"]].itertuples(index=False, name=None))
    for run in RUNS:

        def decide(table: pd.DataFrame) -> pd.DataFrame:
            own = [key in keys for key in zip(table["record_id"], table["offset"], strict=True)]
            assert sum(own) == 3
            for label in "NSVFQ":
                table.loc[own, f"decision_{label}"] = int(label == "V")
            return table

        edit_table(out / "work" / "score" / run / "windows" / "0.parquet", decide)
    return out


def results_of(out: Path) -> Results:
    return Results(out, out / "findings.json")


def by_row(table: Table, n_names: int = 1) -> dict[tuple[str, ...], dict[str, str]]:
    return {row[:n_names]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def test_every_average_is_in_the_table_of_runs(recordings):
    results = results_of(recordings)
    columns = run_table(results.runs, results.benchmark.labels).column_names
    assert {f"{part}_{name}" for part in ("validation", "test") for name in METRICS} < set(columns)
    assert set(OF_TEST) < set(columns)
    runs = results.runs.set_index("run")
    for run in RUNS:
        outputs = results.benchmark.outputs(run)
        assert outputs is not None
        own_N = outputs.decided
        assert 0 < own_N.sum() < len(own_N)
        truth, decided = outputs.targets_NC[own_N], outputs.decisions_NC[own_N].astype(bool)
        row = runs.loc[run]
        for name, expected in {
            "micro_f1": reference.f1_score(truth, decided, average="micro"),
            "weighted_f1": reference.f1_score(truth, decided, average="weighted"),
            "hamming_loss": reference.hamming_loss(truth, decided),
            "micro_auroc": reference.roc_auc_score(
                outputs.targets_NC, outputs.probabilities_NC, average="micro"
            ),
        }.items():
            assert row[f"test_{name}"] == pytest.approx(expected, abs=1e-12), name
        for c, label in enumerate(LABELS):
            tn, fp, fn, tp = reference.confusion_matrix(truth[:, c], decided[:, c]).ravel()
            found = [row[f"test_{name}_{label}"] for name in ("tn", "fp", "fn", "tp")]
            assert found == [tn, fp, fn, tp]
            # Support counts all with a probability, as the areas under curves do.
            assert row[f"test_n_positive_{label}"] == outputs.targets_NC[:, c].sum()
            assert row[f"test_specificity_{label}"] == pytest.approx(tn / (tn + fp), abs=1e-12)


def test_fmax_has_its_threshold_from_validation(recordings):
    results = results_of(recordings)
    validation = results.benchmark.split_examples("validation")
    runs = results.runs.set_index("run")
    for run in RUNS:
        given = read_table(recordings / "work" / "score" / run / "predictions").to_pandas()
        rows = validation.merge(given, on="record_id")

        def stack(name: str, rows: pd.DataFrame = rows) -> np.ndarray:
            return rows[[f"{name}_{label}" for label in LABELS]].to_numpy(dtype=float)

        threshold = fmax_threshold(stack("target"), stack("probability"))
        assert runs.loc[run, "fmax_threshold"] == threshold
        outputs = results.benchmark.outputs(run)
        assert outputs is not None
        expected = f_at_threshold(outputs.targets_NC, outputs.probabilities_NC, threshold)
        assert runs.loc[run, "test_fmax"] == expected
        assert runs.loc[run, "test_fmax"] < 1


def test_fmax_never_looks_at_the_test_split_for_its_threshold(recordings, tmp_path):
    """Where no validation example was scored there is no Fmax."""
    out = Path(shutil.copytree(recordings, tmp_path / "out"))

    def none(examples: pd.DataFrame) -> pd.DataFrame:
        kept = examples["split"].where(examples["split"] != "validation", None)
        return examples.assign(split=kept, reason=None)

    edit_table(out / "work" / "examples.parquet", none)
    runs = results_of(out).runs
    assert runs["test_macro_auroc"].notna().any()
    assert runs[["fmax_threshold", "test_fmax"]].isna().all(axis=None)


def outputs_of(task: str, targets_NC: np.ndarray, decisions_NC: np.ndarray) -> Outputs:
    labels = load_task(TaskSettings(task)).label_names
    probabilities_NC = np.nan_to_num(0.2 + 0.6 * decisions_NC)
    patients_N = np.arange(len(targets_NC)).astype(str)
    parts = (targets_NC.astype(bool), probabilities_NC, probabilities_NC, decisions_NC, patients_N)
    return Outputs(labels, *parts, len(targets_NC), 0)


def test_the_challenges_score_is_of_its_own_task():
    rng = np.random.default_rng(0)
    targets_NC = (rng.random((60, 26)) < 0.1).astype(float)
    decisions_NC = np.where(rng.random((60, 26)) < 0.1, 1 - targets_NC, targets_NC)
    decisions_NC[-10:] = np.nan  # the run abstained
    outputs = outputs_of("cinc_snomed", targets_NC, decisions_NC)
    found = of_test({"kind": "multilabel", "name": "cinc_snomed"}, outputs, None)
    weights_CC = challenge_weights(outputs.labels)
    place = outputs.labels.index("NSR")
    expected = challenge_score(targets_NC[:50], decisions_NC[:50], weights_CC, place)
    assert found == {"test_challenge_score": expected}
    assert 0 < expected < 1
    assert of_test({"kind": "multilabel", "name": "ptbxl_all"}, outputs, None) == {}
    assert "test_fmax" in of_test({"kind": "multilabel", "name": "x"}, outputs, outputs)
    assert of_test({"kind": "multiclass", "name": "x"}, outputs, outputs) == {}


def test_labels_in_detail_are_of_the_chosen_run(recordings):
    results = results_of(recordings)
    detail, averages = class_tables(results)
    assert detail.section == averages.section == "classes"
    assert results.chosen is not None
    row = results.chosen
    assert str(row["run"]) in detail.caption
    assert detail.caption.endswith(SYNTHETIC_LABEL)
    for (label,), cells in by_row(detail).items():
        assert cells["TP"] == str(int(row[f"test_tp_{label}"]))
        assert cells["NPV"] == number(row[f"test_npv_{label}"])
        assert cells["at 0.95"] == number(row[f"test_sensitivity_at_spec95_{label}"])
        pair = row[f"test_sensitivity_{label}"], row[f"test_specificity_{label}"]
        for share in PREVALENCES:
            expected = float(ppv_at_prevalence(*pair, share))
            assert cells[f"PPV at {share:.0%} prevalence"] == number(expected)
        assert cells["audit"] == results.chosen_verdict == "not audited"
    assert [row[0] for row in detail.rows] == list(LABELS)
    cells = by_row(averages)["PPV",]
    assert [cells[how] for how in ("macro", "micro", "weighted")] == [
        number(row[f"test_{how}_ppv"]) for how in ("macro", "micro", "weighted")
    ]
    text = " ".join(averages.notes)
    assert f"Hamming loss {number(row['test_hamming_loss'])}" in text
    assert f"{number(row['test_fmax'])} at {number(row['fmax_threshold'])}" in text
    assert "chosen on validation" in text
    assert "challenge 2021" not in text
    assert not list(beat_tables(results))


def test_all_metrics_of_labels_are_in_the_csv(recordings):
    table = results_of(recordings).per_class
    for name in ("specificity", "npv", "accuracy", "tp", "sensitivity_at_spec90", "f2", "g2"):
        assert table[f"{name}_mean"].notna().all()
    assert "specificity" in per_class_table(results_of(recordings)).columns


def test_labels_that_averages_leave_out_are_named(recordings, tmp_path):
    def note(out: Path) -> str:
        return list(class_tables(results_of(out)))[1].notes[0]

    assert note(recordings).endswith("left out of the first two.")
    few = write_benchmark(tmp_path, "beats")
    assert note(few).endswith("the first two (AUROC, AUPRC, F1, sensitivity of Q).")


def counted(out: Path, run: str) -> pd.DataFrame:
    """Give the decided beats of the test split with their true and decided class."""
    examples = pd.read_parquet(out / "work" / "examples.parquet")
    given = read_table(out / "work" / "score" / run / "windows").to_pandas()
    rows = examples[examples["split"] == "test"].merge(given, on=["record_id", "offset"])
    for name in ("target", "decision"):
        columns = [f"{name}_{label}" for label in "NSVFQ"]
        rows[name] = rows[columns].idxmax(axis=1).str[-1]
    return rows[["record_id", "target", "decision"]]


def ventricular(rows: pd.DataFrame, strict: bool) -> tuple[float, float, float]:
    """Give sensitivity, positive predictivity and false positive rate of V, written out."""
    given = rows[rows["decision"] == "V"]
    hits = (given["target"] == "V").sum()
    wrong = given["target"].isin(list("NS") if not strict else list("NSFQ")).sum()
    left = ((rows["target"] != "V") & (rows["decision"] != "V")).sum()
    return hits / (rows["target"] == "V").sum(), hits / (hits + wrong), wrong / (wrong + left)


def test_ectopic_beats_are_those_of_the_files(beats):
    results = results_of(beats)
    overall, records = beat_tables(results)
    rows = by_row(overall, 3)
    own = counted(beats, "deep-seed0")
    free = (own["decision"] == "V") & own["target"].isin(["F", "Q"])
    assert free.sum() >= 3
    gross, average = (rows["deep", "VEB", name] for name in ("gross", "average"))
    assert gross["don't care"] == str(free.sum())
    sensitivity, ppv, rate = ventricular(own, strict=False)
    assert (gross["Se"], gross["+P"], gross["FPR"]) == tuple(map(number, (sensitivity, ppv, rate)))
    _, strict_ppv, strict_rate = ventricular(own, strict=True)
    assert gross["+P strictly"] == number(strict_ppv) < gross["+P"]
    assert gross["FPR strictly"] == number(strict_rate) > gross["FPR"]
    each = np.array([ventricular(part, strict=False) for _, part in own.groupby("record_id")])
    assert (average["Se"], average["+P"], average["FPR"]) == tuple(map(number, each.mean(axis=0)))
    seeds = [ventricular(counted(beats, f"wide-seed{seed}"), False)[0] for seed in (0, 1)]
    assert rows["wide", "VEB", "gross"]["Se"].startswith(number(float(np.mean(seeds))))
    assert all(cells["audit"] == "not audited" for cells in rows.values())
    text = " ".join(overall.notes)
    assert "F decided V, Q decided V, Q decided S" in text

    assert results.chosen is not None
    chosen = counted(beats, str(results.chosen["run"]))
    assert str(results.chosen["run"]) in records.caption
    of_record = by_row(records)
    assert {name for (name,) in of_record} == set(chosen["record_id"])
    for record, part in chosen.groupby("record_id"):
        cells = of_record[str(record),]
        hit = ((part["target"] == "S") & (part["decision"] == "S")).sum()
        assert cells["beats"] == str(len(part))
        assert cells["SVEB TP"] == str(hit)
        assert cells["SVEB FN"] == str((part["target"] == "S").sum() - hit)
        assert cells["VEB FPR"] == number(ventricular(part, strict=False)[2])


def test_a_task_without_f_and_q_has_no_dont_care_cell(beats, tmp_path):
    out = Path(shutil.copytree(beats, tmp_path / "out"))
    edit_json(
        out / "work" / "task.json",
        lambda tree: tree.update(labels={name: tree["labels"][name] for name in "NSV"}),
    )

    def without(examples: pd.DataFrame) -> pd.DataFrame:
        gone = (examples["target_F"] + examples["target_Q"]) > 0
        return examples.assign(split=examples["split"].where(~gone, None))

    edit_table(out / "work" / "examples.parquet", without)
    for run in RUNS:

        def decide(table: pd.DataFrame) -> pd.DataFrame:
            others = table["decision_F"] + table["decision_Q"]
            return table.assign(decision_N=table["decision_N"] + others)

        edit_table(out / "work" / "score" / run / "windows" / "0.parquet", decide)
    overall, _ = beat_tables(results_of(out))
    for cells in by_row(overall, 3).values():
        assert cells["+P"] == cells["+P strictly"]
        assert cells["don't care"] in ("0", "")
    assert "no don't-care cell" in " ".join(overall.notes)


def test_without_a_finished_run_there_is_no_table(beats, tmp_path):
    out = Path(shutil.copytree(beats, tmp_path / "out"))
    for run in RUNS:
        shutil.rmtree(out / "work" / "train" / run)
    results = results_of(out)
    assert not list(class_tables(results))
    assert all(not table.rows for table in beat_tables(results))


def test_a_record_without_ectopic_beats_has_no_sensitivity(beats, tmp_path):
    out = Path(shutil.copytree(beats, tmp_path / "out"))
    run = str(results_of(out).chosen["run"])
    record = counted(out, run)["record_id"].iloc[0]

    def normal(examples: pd.DataFrame) -> pd.DataFrame:
        own = examples["record_id"] == record
        for label in "NSVFQ":
            examples.loc[own, f"target_{label}"] = int(label == "N")
        return examples

    edit_table(out / "work" / "examples.parquet", normal)
    overall, records = beat_tables(results_of(out))
    assert by_row(records)[str(record),]["VEB Se"] == NOTHING
    own = counted(out, "deep-seed0")
    rest = own[own["record_id"] != record].groupby("record_id")
    expected = np.mean([ventricular(part, strict=False)[0] for _, part in rest])
    assert by_row(overall, 3)["deep", "VEB", "average"]["Se"] == number(float(expected))
