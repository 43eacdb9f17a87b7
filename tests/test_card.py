"""What a trained checkpoint's card says of the data behind it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_benchmark import write_benchmark

from rayecg.core.experiment import ArchitectureSettings, InputSettings, TaskSettings
from rayecg.core.files import read_json, read_table
from rayecg.core.predictions import stack_output
from rayecg.core.train_settings import TrainSettings
from rayecg.metrics.classification import evaluate
from rayecg.score.summary import summarise
from rayecg.signal.prepare import MAX_INVALID
from rayecg.tasks.task import load_task, target_matrix
from rayecg.train.loop import train_run
from rayecg.train.reference import training_records
from rayecg.train.resident import Windows, resident_windows
from rayecg.train.run import Run


@dataclasses.dataclass(frozen=True)
class Trained:
    run: Run
    windows: dict[str, Windows]
    folder: Path

    @property
    def card(self) -> dict[str, Any]:
        return read_json(self.folder / "checkpoint" / "card.json")


@pytest.fixture(scope="module", params=["recordings", "beats"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("card")
    work = write_benchmark(folder / "out", request.param) / "work"
    beats = request.param == "beats"
    task = load_task(TaskSettings("mitbih_aami5" if beats else "ptbxl_superdiagnostic"), None)
    leads = ("MLII",) if beats else ("I", "II")
    own = InputSettings(fs=50, duration_s=1.0 if beats else 4.0, leads=leads)
    architecture = ArchitectureSettings("simple_cnn1d", {"hidden": 8})
    settings = TrainSettings(epochs=1, batch_size=8)
    run = Run("one", "key", architecture, 0, task, own, settings, "shards", True)
    examples = work / "examples.parquet"
    windows = resident_windows(run, work / "shards", examples, folder / "cache")
    train_run(run, windows, folder / "run")
    return Trained(run, windows, folder / "run")


def test_figures_of_validation_are_those_of_its_predictions(trained: Trained):
    metrics, task = trained.card["metrics"], trained.run.task
    table = read_table(trained.folder / "validation.parquet")
    outputs = (stack_output(table, name, task.label_names) for name in ("probability", "decision"))
    probability_NC, decision_NC = outputs
    own = trained.windows["validation"].examples
    expected = evaluate(target_matrix(task, own), probability_NC, decision_NC, task.label_names)
    primary = metrics["primary"]
    assert (metrics["split"], primary["metric"]) == ("validation", task.primary_metric)
    assert primary["point"] == pytest.approx(expected[task.primary_metric], rel=1e-5)  # six digits
    assert metrics["n_examples"] == own.num_rows
    assert metrics["n_patients"] == len(set(own["patient_id"].to_pylist()))
    assert metrics["label_metric"] == ("f1" if task.kind == "multiclass" else "auroc")
    assert list(metrics["labels"]) == list(task.label_names)
    for found in (primary, *metrics["labels"].values()):
        low, high = found["low"], found["high"]
        assert "few patients" in found["warning"]
        assert (low is None) == (high is None)
        if low is not None:
            assert low <= found["point"] <= high


def test_the_fingerprint_is_of_the_training_examples_and_their_waveforms(trained: Trained):
    data, train = trained.card["training"]["data"], trained.windows["train"]
    records = training_records(train)
    assert records is not None
    rows = [(row["record_id"], row["waveform_sha256"]) for _, row in records.iterrows()]
    lines = "\n".join(sorted(" ".join(row) for row in rows))
    assert data["records_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert {name for name, _ in rows} == set(train.examples["record_id"].to_pylist())
    assert data["n_records"] == len(rows)
    assert data["n_examples"] == train.examples.num_rows
    assert len(data["examples_sha256"]) == 64


def test_limits_are_what_scoring_enforces(trained: Trained):
    limits, own = trained.card["limits"], trained.run.input
    beats = trained.run.task.unit == "beat"
    assert limits["enforced"] == {
        "leads": list(own.leads),
        "absent_leads": "zero",
        "least_fs": 50,
        "least_seconds": None if beats else 4.0,
        "largest_invalid_share": MAX_INVALID,
        "beats": "annotated" if beats else None,
    }
    # The folder's name alone: a card travels, and says nothing of this machine.
    archive = limits["trained_on"]["archive"]
    assert archive == {"kind": "synthetic", "name": "my-archive"}
    assert limits["trained_on"]["synthetic"]
    assert "not a medical device" in limits["intended_use"]
    assert "synthetic" in limits["intended_use"]


def test_the_reference_is_of_training_quality_and_validation_scores(trained: Trained):
    reference, labels = trained.card["training"]["reference"], trained.run.task.label_names
    known, train = reference["quality"], trained.windows["train"]
    records = read_table(train.shards / "records").to_pandas()  # type: ignore[operator]
    records = records[records["record_id"].isin(train.examples["record_id"].to_pylist())]
    assert known["n_records"] == len(records)
    assert list(known["fs"].values()) == [len(records)]
    # The invented shards hold no measures; that is said, not taken for good quality.
    assert not known["measured"]
    table = read_table(trained.folder / "validation.parquet")
    probability_NC = stack_output(table, "probability", labels)
    decision_NC = stack_output(table, "decision", labels)
    for c, label in enumerate(labels):
        own = reference["scores"]["labels"][label]
        assert sum(own["shares"]) == pytest.approx(1, abs=1e-5)  # ten shares of six digits
        assert len(own["shares"]) == len(own["edges"]) + 1
        below = (probability_NC[:, c] <= own["edges"][0]).mean()
        assert own["shares"][0] == pytest.approx(below, abs=1e-6)
        assert own["positive"] == pytest.approx(decision_NC[:, c].mean(), abs=1e-6)
    assert len(json.dumps([reference, trained.card["metrics"], trained.card["limits"]])) < 20_000


def test_the_summary_reads_what_training_wrote(trained: Trained):
    table = read_table(trained.folder / "validation.parquet")
    beats = trained.run.task.unit == "beat"
    found = summarise([], trained.card, {}, [table] if beats else ())
    n = table.num_rows if beats else 0
    assert {own["n_decided"] for own in found["answers"]["labels"].values()} == {n}


def test_training_goes_on_without_the_shards(trained: Trained, tmp_path: Path):
    windows = {
        name: dataclasses.replace(own, shards=tmp_path / "not here")
        for name, own in trained.windows.items()
    }
    train_run(trained.run, windows, tmp_path / "run")
    card = read_json(tmp_path / "run" / "checkpoint" / "card.json")
    assert card["training"]["reference"]["quality"] is None
    assert "records_sha256" not in card["training"]["data"]
    assert (
        card["training"]["reference"]["scores"] == trained.card["training"]["reference"]["scores"]
    )
    assert np.isfinite(card["metrics"]["n_patients"])
