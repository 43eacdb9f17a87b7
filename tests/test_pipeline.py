"""The whole way, on a small synthetic archive with one Ray session."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import rayecg
from rayecg import pipeline
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import (
    ArchitectureSettings,
    ArchiveSettings,
    Experiment,
    ScoreSettings,
    SplitSettings,
)
from rayecg.core.files import read_json, read_table
from rayecg.core.predictions import OUTPUTS, stack_output
from rayecg.core.settings import Overrides
from rayecg.core.train_settings import ScalingSettings, TrainSettings

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("NORM", "MI", "STTC", "CD", "HYP")
#: Builds on the meta device, so that the settings are accepted, but asks for terabytes when run.
TOO_LARGE = ArchitectureSettings("simple_cnn1d", {"filters": [32, 64, 10**10]}, label="too_large")


def small(**changes: object) -> Experiment:
    settings = Experiment(
        name="small",
        archive=ArchiveSettings("synthetic", rate=100, n_records=240),
        architectures=(ArchitectureSettings("simple_cnn1d"), TOO_LARGE),
        seeds=(0, 1),
        train=TrainSettings(epochs=2, batch_size=32),
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def benchmark_out(ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("benchmark") / "small"
    pipeline.benchmark(small(), out)
    return out


def first_checkpoint(out: Path) -> Path:
    return out / "work" / "train" / "simple_cnn1d-seed0" / "checkpoint"


def test_every_run_has_a_row_and_failures_say_why(benchmark_out: Path) -> None:
    runs = pd.read_parquet(benchmark_out / "runs.parquet").set_index("run")
    assert set(runs.index) == {
        f"{a}-{of}" for a in ("simple_cnn1d", "too_large") for of in ("seed0", "seed1", "ensemble")
    }
    good = runs.loc[["simple_cnn1d-seed0", "simple_cnn1d-seed1"]]
    assert (good["status"] == "ok").all()
    assert good["test_macro_auroc"].between(0, 1).all()
    assert {f"test_f1_{label}" for label in LABELS} <= set(runs.columns)
    bad = runs.loc[["too_large-seed0", "too_large-seed1"]]
    assert (bad["status"] == "failed").all()
    assert bad["error"].str.len().gt(10).all()
    assert bad["test_macro_auroc"].isna().all()
    assert runs.loc["too_large-ensemble", "status"] == "not made"
    assert "too_large-seed0" in runs.loc["too_large-ensemble", "error"]


def test_an_ensemble_of_the_seeds_is_a_row_like_any_other(benchmark_out: Path) -> None:
    runs = pd.read_parquet(benchmark_out / "runs.parquet").set_index("run")
    name, members = "simple_cnn1d-ensemble", ["simple_cnn1d-seed0", "simple_cnn1d-seed1"]
    assert runs.loc[name, "status"] == "ok"
    assert runs.loc[name, "n_members"] == 2
    assert runs.loc[name, "n_parameters"] == runs.loc[members, "n_parameters"].sum()
    assert runs.loc[name, "verdict"] == runs.loc[members[0], "verdict"]
    scores = {
        run: read_table(benchmark_out / "work" / "score" / run / "predictions").to_pandas()
        for run in (name, *members)
    }
    for label in LABELS:
        each = [scores[m].set_index("record_id")[f"probability_{label}"] for m in members]
        found = scores[name].set_index("record_id")[f"probability_{label}"]
        # A few roundings of float64 in logs.
        pd.testing.assert_series_equal(found, sum(each) / 2, check_names=False, atol=1e-14)


def test_totals_add_up_at_every_stage(benchmark_out: Path) -> None:
    work = benchmark_out / "work"
    manifests = [work / "shards" / "manifest.json", *work.glob("score/*/manifest.json")]
    assert len(manifests) == 4
    for file in manifests:
        found = read_json(file)
        assert found["n_input"] == 240
        assert found["n_quarantined"] == 4
        assert found["n_ok"] + found["n_degraded"] + found["n_quarantined"] == 240
    rows = read_table(work / "score" / "simple_cnn1d-seed0" / "predictions").to_pandas()
    assert len(rows) == rows["record_id"].nunique() == 240
    refused = rows[rows["status"] == "quarantined"]
    assert len(refused) == 4
    assert refused["error_code"].notna().all()
    for output in OUTPUTS:
        columns = [f"{output}_{label}" for label in LABELS]
        assert refused[columns].isna().all(axis=None)
        assert rows.loc[rows["status"] == "ok", columns].notna().all(axis=None)


def test_validation_predictions_of_training_are_those_of_scoring(benchmark_out: Path) -> None:
    work = benchmark_out / "work"
    trained = pd.read_parquet(work / "train" / "simple_cnn1d-seed0" / "validation.parquet")
    scored = read_table(work / "score" / "simple_cnn1d-seed0" / "predictions").to_pandas()
    both = trained.merge(scored, on="record_id", suffixes=("_train", "_score"))
    assert len(both) == len(trained) > 10
    for label in LABELS:
        # Batches hold other neighbours; float32 sums of about 1e3 terms differ by some 1e-6.
        difference = both[f"logit_{label}_train"] - both[f"logit_{label}_score"]
        assert difference.abs().max() < 1e-5
        assert (both[f"decision_{label}_train"] == both[f"decision_{label}_score"]).all()


def test_shards_raw_records_and_predict_give_equal_scores(
    benchmark_out: Path, tmp_path: Path
) -> None:
    work = benchmark_out / "work"
    archive = next((work / "archive").iterdir())
    checkpoint = first_checkpoint(benchmark_out)
    manifest = pipeline.score(
        checkpoint, ArchiveSettings("ptbxl", str(archive), rate=100), tmp_path / "s"
    )
    assert manifest["n_input"] == 240
    raw = read_table(tmp_path / "s" / "predictions").sort_by("record_id")
    shards = read_table(work / "score" / "simple_cnn1d-seed0" / "predictions").sort_by("record_id")
    assert raw["record_id"].equals(shards["record_id"])
    np.testing.assert_allclose(
        stack_output(raw, "logit", LABELS), stack_output(shards, "logit", LABELS), atol=1e-5
    )
    assert raw["status"].to_pylist() == shards["status"].to_pylist()
    row = next(r for r in raw.to_pylist() if r["status"] == "ok")
    record = rayecg.read_record(archive / row["path"])
    found = rayecg.load(checkpoint).predict(record.physical[None], record.fs, record.leads)
    for i, label in enumerate(LABELS):
        assert found.records.logit[0, i] == pytest.approx(row[f"logit_{label}"], abs=1e-5)
        assert found.records.calibrated[0, i] == pytest.approx(row[f"calibrated_{label}"], abs=1e-5)
        assert found.decision[0, i] == row[f"decision_{label}"]


def test_a_record_s_score_does_not_depend_on_its_batch(benchmark_out: Path) -> None:
    predictor = rayecg.load(first_checkpoint(benchmark_out))
    rng = np.random.default_rng(0)
    signal_BLT = rng.normal(size=(70, 12, 1000)).astype(np.float32)
    leads = predictor.input.leads
    together = predictor.predict(signal_BLT, 100, leads).records.logit
    alone = [predictor.predict(signal_BLT[i : i + 1], 100, leads).records.logit[0] for i in (0, 65)]
    np.testing.assert_allclose(together[[0, 65]], alone, atol=1e-6)


def test_broken_limits_give_a_probability_but_no_decision(benchmark_out: Path) -> None:
    predictor = rayecg.load(first_checkpoint(benchmark_out))
    signal_LT = np.random.default_rng(1).normal(size=(2, 400)).astype(np.float32)
    found = predictor.predict([signal_LT], 100, ["II", "V5"])
    assert found.status == ("degraded",)
    assert {limit.split(":")[0] for limit in found.limits[0]} == {"absent_leads", "too_short"}
    assert np.isfinite(found.probability).all()
    assert (found.decision == -1).all()
    assert found.abstain.all()
    strange = predictor.predict([signal_LT], 100, ["X", "Y"])
    assert strange.status == ("quarantined",)
    assert strange.errors[0] is not None
    assert strange.errors[0][0] == "missing_leads"
    assert np.isnan(strange.probability).all()


@pytest.mark.slow
def test_a_second_start_repeats_nothing_that_is_complete(benchmark_out: Path) -> None:
    work = benchmark_out / "work"
    watched = [
        *work.glob("shards/records/*.parquet"),
        *work.glob("train/simple*/checkpoint/*"),
        *work.glob("train/*-ensemble/*"),
        *work.glob("score/*/predictions/*.parquet"),
    ]
    assert len(watched) >= 7
    before = {file: file.stat().st_mtime_ns for file in watched}
    table, page = benchmark_out / "runs.parquet", benchmark_out / "index.html"
    first = table.read_bytes(), page.read_bytes(), (benchmark_out / "ledger.json").read_text()
    pipeline.benchmark(small(), benchmark_out)
    assert {file: file.stat().st_mtime_ns for file in watched} == before
    assert (table.read_bytes(), page.read_bytes()) == first[:2]
    # The same checkpoints on the same split again are the same looks.
    assert (benchmark_out / "ledger.json").read_text() == first[2]
    assert len(json.loads(first[2])) == 3


def test_report_is_made_again_from_the_files_alone(benchmark_out: Path, tmp_path: Path) -> None:
    result = pipeline.report(benchmark_out, tmp_path / "again")
    assert result.page.exists()
    again = pq.read_table(tmp_path / "again" / "runs.parquet")
    assert again.equals(pq.read_table(benchmark_out / "runs.parquet"))
    assert not result.violated
    with pytest.raises(DataError, match="finished benchmark"):
        pipeline.report(tmp_path, tmp_path / "no")


@pytest.mark.slow
def test_a_violated_rule_taints_the_table_and_strict_exits_3(
    benchmark_out: Path, tmp_path: Path
) -> None:
    planted = tmp_path / "planted"
    shutil.copytree(benchmark_out, planted, ignore=shutil.ignore_patterns("archive", ".resident"))
    file = planted / "work" / "examples.parquet"
    examples = pd.read_parquet(file)
    trained = examples[examples["split"] == "train"]
    again = trained.index[trained["patient_id"].duplicated()][0]
    examples.loc[again, "split"] = "test"
    examples.to_parquet(file)
    job = [sys.executable, str(ROOT / "jobs" / "report.py"), "--runs", str(planted)]
    for strict, status in (([], 0), (["--strict"], 3)):
        command = [*job, "--out", str(tmp_path / "out"), *strict]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert found.returncode == status, found.stderr
        assert "patient-overlap" in found.stdout
    findings = read_json(tmp_path / "out" / "findings.json", list)
    fired = {f["rule_id"] for f in findings if f["verdict"] == "violated"}
    assert fired == {"patient-overlap", "folds-official"}


@pytest.mark.slow
def test_two_workers_train_one_run_together(ray: None, benchmark_out: Path, tmp_path: Path) -> None:
    archive = next((benchmark_out / "work" / "archive").iterdir())
    experiment = small(
        archive=ArchiveSettings("synthetic", str(archive), rate=100),
        architectures=(ArchitectureSettings("simple_cnn1d"),),
        seeds=(0,),
        train=TrainSettings(epochs=2, batch_size=32, scaling=ScalingSettings(num_workers=2)),
    )
    (report,) = pipeline.train(experiment, tmp_path)
    assert report["status"] == "ok", report["error"]
    assert report["epochs"] == 2
    assert 0 < report["validation"]["macro_auroc"] < 1


def test_only_the_bundle_holds_safetensors(benchmark_out: Path) -> None:
    found = sorted(benchmark_out.rglob("*.safetensors"))
    expected = [benchmark_out / "work" / "train" / f"simple_cnn1d-seed{s}" for s in (0, 1)]
    assert found == [folder / "checkpoint" / "model.safetensors" for folder in expected]
    assert not list(benchmark_out.rglob("*.part"))


@pytest.mark.slow
def test_same_seed_gives_the_same_weights(ray: None, benchmark_out: Path, tmp_path: Path) -> None:
    experiment = small(architectures=(ArchitectureSettings("simple_cnn1d"),), seeds=(0,))
    archive = next((benchmark_out / "work" / "archive").iterdir())
    kept = dataclasses.replace(experiment.archive, path=str(archive))
    reports = pipeline.train(dataclasses.replace(experiment, archive=kept), tmp_path)
    assert [report["status"] for report in reports] == ["ok"]
    card = read_json(tmp_path / "simple_cnn1d-seed0" / "checkpoint" / "card.json")
    other = read_json(first_checkpoint(benchmark_out) / "card.json")
    assert card["weights_sha256"] == other["weights_sha256"]


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"architectures": (ArchitectureSettings("simple_cnn"),)}, SettingsError, "simple_cnn1d"),
        (
            {"architectures": (ArchitectureSettings("simple_cnn1d", {"dropuot": 0.1}),)},
            SettingsError,
            "dropout",
        ),
        ({"archive": ArchiveSettings("ptbxl")}, SettingsError, "archive.path"),
        (
            {"archive": ArchiveSettings("ptbxl", "/nowhere/at/all")},
            SettingsError,
            "/nowhere/at/all",
        ),
        ({"archive": ArchiveSettings("mitbih", "/tmp")}, SettingsError, "not on mitbih"),
        ({"archive": ArchiveSettings("ptb")}, SettingsError, "ptbxl"),
    ],
)
def test_wrong_settings_fail_before_anything_is_written(
    changes: dict[str, object], error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        pipeline.benchmark(small(**changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scoring_survives_an_archive_of_any_quality(
    benchmark_out: Path, synthetic_archive: Path, tmp_path: Path
) -> None:
    """A folder tree of records, among them some that cannot be read and one of a single lead."""
    folder = tmp_path / "tree" / "ward 7"
    folder.mkdir(parents=True)
    files = sorted((synthetic_archive / "records100" / "00000").glob("0000[1-6]*"))
    for file in files:
        (folder / file.name).write_bytes(file.read_bytes())
    one = files[0].stem
    lines = (folder / f"{one}.hea").read_text().splitlines()
    samples = np.frombuffer((folder / f"{one}.dat").read_bytes(), "<i2").reshape(-1, 12)[:, 1]
    (tmp_path / "tree" / "single.dat").write_bytes(samples.tobytes())
    checksum = int(samples.sum(dtype=np.int64)) % 65536
    fields = lines[2].split()
    fields[0], fields[5], fields[6] = "single.dat", str(samples[0]), str(checksum)
    record_line = f"single 1 100 {len(samples)}"
    (tmp_path / "tree" / "single.hea").write_text(f"{record_line}\n{' '.join(fields)}\n")
    (tmp_path / "tree" / "broken.hea").write_bytes(b"\x00\xff not a header")
    settings = ArchiveSettings("wfdb", str(tmp_path / "tree"))
    found = pipeline.score(
        first_checkpoint(benchmark_out), settings, tmp_path / "s", ScoreSettings(concurrency=1)
    )
    rows = read_table(tmp_path / "s" / "predictions").to_pandas().set_index("record_id")
    n_headers = len(list((tmp_path / "tree").rglob("*.hea")))
    assert found["n_input"] == len(rows) == n_headers
    assert rows.loc["broken", "error_code"] == "bad_header"
    assert rows.loc["single", "status"] == "degraded"
    assert rows.loc["single", "abstain"]
    assert np.isfinite(rows.loc["single", "probability_NORM"])
    assert np.isnan(rows.loc["single", "decision_NORM"])


@pytest.fixture(scope="session")
def folds_out(ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "out"
    settings = small(
        architectures=(
            ArchitectureSettings("simple_cnn1d", train=Overrides(epochs=1)),
            ArchitectureSettings("feature_boosting", {"max_iter": 3}),
        ),
        split=SplitSettings("kfold", k=3),
        seeds=(0,),
    )
    pipeline.benchmark(settings, out)
    return out


@pytest.mark.slow
def test_every_patient_is_tested_in_one_fold_and_in_no_other(folds_out: Path) -> None:
    examples = read_table(folds_out / "work" / "examples.parquet").to_pandas()
    runs = pd.read_parquet(folds_out / "runs.parquet").set_index("run")
    assert set(runs.index) == {
        f"{a}-fold{f}-seed0" for a in ("simple_cnn1d", "feature_boosting") for f in range(3)
    }
    assert (runs["status"] == "ok").all()
    assert (runs["split"] == "3 patient folds").all()
    tested = examples[examples["split"] == "test"]
    assert (tested.groupby("patient_id")["fold"].nunique() == 1).all()
    for name, run in runs.iterrows():
        own = examples[examples["fold"] == run["fold"]]
        assert run["n_test"] == (own["split"] == "test").sum()
        table = read_table(folds_out / "work" / "train" / str(name) / "validation.parquet")
        validated = own[own["split"] == "validation"]["record_id"]
        assert set(table["record_id"].to_pylist()) == set(validated)


@pytest.mark.slow
def test_of_folds_an_architecture_is_chosen_with_all_its_runs(folds_out: Path) -> None:
    runs = pd.read_parquet(folds_out / "runs.parquet")
    means = runs.groupby("architecture")["validation_macro_auroc"].mean()
    assert set(runs.loc[runs["chosen"], "architecture"]) == {means.idxmax()}
    assert runs["chosen"].sum() == 3
    assert (runs.groupby("architecture")["epochs"].first() == 1).all()


@pytest.mark.slow
def test_the_audit_looks_at_every_fold(folds_out: Path) -> None:
    findings = {f["rule_id"]: f for f in read_json(folds_out / "findings.json", list)}
    for rule_id in ("patient-overlap", "record-astride", "selection-on-test"):
        assert findings[rule_id]["verdict"] == "passed"
        assert findings[rule_id]["evidence"]["folds"] == [0, 1, 2]
        assert findings[rule_id]["evidence"]["text"].startswith("each fold: ")
    # Patients who were dealt anew are not on the archive's own sides, and every figure says so.
    assert findings["folds-official"]["verdict"] == "violated"
    runs = pd.read_parquet(folds_out / "runs.parquet")
    assert runs["verdict"].str.contains("folds-official").all()


@pytest.mark.slow
def test_fitted_trees_are_a_checkpoint_like_any_other(folds_out: Path) -> None:
    folder = folds_out / "work" / "train" / "feature_boosting-fold0-seed0" / "checkpoint"
    scores = folds_out / "work" / "score" / "feature_boosting-fold0-seed0" / "predictions"
    predictor = rayecg.load(folder)
    assert predictor.input.features == ("measurements",)
    found = read_table(scores).to_pandas().set_index("record_id")
    archive = next((folds_out / "work" / "archive").iterdir())
    row = found[found["status"] == "ok"].iloc[0]
    record = rayecg.read_record(archive / row["path"])
    answer = predictor.predict(record.physical[None], record.fs, record.leads)
    own = [row[f"logit_{label}"] for label in LABELS]
    np.testing.assert_array_equal(answer.records.logit[0], own)
