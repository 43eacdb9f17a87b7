"""What a trained checkpoint's card says of the data behind it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fake_benchmark import write_benchmark

from rayecg.core.errors import RecordError
from rayecg.core.experiment import ArchitectureSettings, InputSettings, TaskSettings
from rayecg.core.files import read_json, read_table
from rayecg.core.predictions import RECORD_COLUMNS, label_fields, stack_output
from rayecg.core.train_settings import TrainSettings
from rayecg.metrics.classification import evaluate
from rayecg.models.predictor import Predictor
from rayecg.pipeline.export import checked_examples
from rayecg.score.shift import AS_BEFORE, FEWEST
from rayecg.score.summary import summarise
from rayecg.signal.prepare import MAX_INVALID
from rayecg.tasks.task import load_task, target_matrix
from rayecg.train.loop import train_run
from rayecg.train.reference import training_data, training_records
from rayecg.train.resident import Windows, resident_windows
from rayecg.train.run import Run


@dataclasses.dataclass(frozen=True)
class Trained:
    run: Run
    windows: dict[str, Windows]
    folder: Path
    examples: Path

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
    return Trained(run, windows, folder / "run", examples)


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
    examples = read_table(trained.examples).to_pandas()
    labels = [f"target_{label}" for label in trained.run.task.label_names]
    lines = "\n".join(
        sorted(
            f"{row['record_id']} {row['offset']} {''.join(str(row[label]) for label in labels)}"
            for _, row in examples[examples["split"] == "train"].iterrows()
        )
    )
    assert data["examples_sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    # An example that has no window is none that trained; what was listed is as before.
    some = train.example_W != train.example_W[0]
    less = dataclasses.replace(train, example_W=train.example_W[some])
    found = training_data(trained.run, less, None)
    assert found["n_examples"] == data["n_examples"] - 1
    assert found["examples_sha256"] == data["examples_sha256"]


def test_export_knows_the_examples_that_trained(trained: Trained):
    """The digest in the card is the one that an export makes of the file."""
    n_listed = read_table(trained.examples).num_rows
    assert len(checked_examples(trained.examples, trained.card)) == n_listed


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
    check_limits(Predictor(trained.folder / "checkpoint"), limits["enforced"])
    # The folder's name alone: a card travels, and says nothing of this machine.
    archive = limits["trained_on"]["archive"]
    assert archive == {"kind": "synthetic", "name": "my-archive"}
    assert limits["trained_on"]["synthetic"]
    assert "not a medical device" in limits["intended_use"]
    assert "synthetic" in limits["intended_use"]


def check_limits(predictor: Predictor, enforced: dict[str, Any]) -> None:
    """Prepare a record at each limit that a card states, and one just beyond it."""
    leads, fs = list(enforced["leads"]), enforced["least_fs"]
    beat = None if enforced["beats"] is None else [30]
    n_times = 60 if enforced["least_seconds"] is None else int(fs * enforced["least_seconds"])
    n_invalid = int(enforced["largest_invalid_share"] * len(leads) * n_times)

    def broken(n_times: int, fs: float, leads: list[str], n_invalid: int) -> list[str]:
        signal_LT = np.random.default_rng(0).normal(size=(len(leads), n_times))
        signal_LT.reshape(-1)[:n_invalid] = np.nan
        return [
            text.partition(":")[0] for text in predictor.prepare(signal_LT, fs, leads, beat).limits
        ]

    assert broken(n_times, fs, leads, n_invalid) == []
    assert broken(n_times, fs, leads, n_invalid + 1) == ["invalid_samples"]
    assert broken(n_times + 9, fs - 1, leads, 0) == ["up_sampled"]
    assert broken(n_times - 1, fs, leads, 0) == ([] if beat else ["too_short"])
    assert broken(n_times, fs, ["aVF", *leads], 0) == []
    if len(leads) > 1:
        assert broken(n_times, fs, leads[1:], 0) == ["absent_leads"]
    with pytest.raises(RecordError, match="expected leads"):
        broken(n_times, fs, ["aVF"], 0)
    if beat:
        with pytest.raises(RecordError, match="needs the R peaks of the record"):
            predictor.prepare(np.zeros((len(leads), n_times)), fs, leads)


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
    """Scores of the validation examples themselves have not shifted; others have."""
    table = read_table(trained.folder / "validation.parquet")
    card, labels = trained.card, trained.run.task.label_names
    reference = card["training"]["reference"]["scores"]
    # As if there were more of them: of few, nothing is said of shift.
    times = FEWEST // table.num_rows + 1
    reference["n_examples"] *= times

    def found(table: pa.Table) -> dict[str, Any]:
        many = pa.concat_tables([table] * times)
        if trained.run.task.unit == "beat":
            return summarise([], card, {}, [many])["answers"]["labels"]
        given = {"record_id": "r", "status": "ok", "abstain": False, "n_windows": 1}
        left = pa.Table.from_pylist([given] * many.num_rows, pa.schema(RECORD_COLUMNS))
        for field in label_fields(labels):
            left = left.append_column(field, many[field.name])
        return summarise([left], card, {})["answers"]["labels"]

    for label, own in found(table).items():
        stated = reference["labels"][label]
        assert own["n_decided"] == times * table.num_rows
        assert own["positive"] == pytest.approx(stated["positive"], abs=2e-6)  # both of six digits
        assert own["shift"]["positive_reference"] == stated["positive"]
        assert own["shift"]["prevalence_reference"] == stated["prevalence"]
        assert own["calibrated_mean"] == pytest.approx(stated["calibrated_mean"], rel=2e-5)
        # Ten shares of six digits, each off by half of the last at most.
        assert own["shift"]["ks"] == pytest.approx(0, abs=1e-5)
        assert own["shift"]["reading"] == AS_BEFORE
    sure = table
    for label in labels:
        for name, value in (("probability", 1.0), ("decision", 1)):
            place = table.column_names.index(f"{name}_{label}")
            column = pa.array([value] * table.num_rows, table.schema.field(place).type)
            sure = sure.set_column(place, table.schema.field(place), column)
    for label, own in found(sure).items():
        assert own["positive"] == 1
        last = reference["labels"][label]["shares"][-1]
        assert own["shift"]["ks"] == pytest.approx(1 - last, abs=1e-5)
        assert own["shift"]["reading"] == "much higher than in validation"


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
