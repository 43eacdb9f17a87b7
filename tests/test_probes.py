"""Evidence that runs make for the audit: scores in other batches, and a run on permuted labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from fake_benchmark import edit_json, edit_table, write_benchmark
from test_pipeline import TOO_LARGE, small
from torch import nn

from rayecg import pipeline
from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Finding
from rayecg.audit.probe_rules import TOLERANCE
from rayecg.audit.run import apply_rule
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import (
    ArchitectureSettings,
    AuditSettings,
    Experiment,
    InputSettings,
    ScoreSettings,
)
from rayecg.core.files import read_json, read_table, write_json
from rayecg.core.settings import load_settings, to_tree
from rayecg.core.shard_format import RECORDS, shard_files
from rayecg.core.units import Units
from rayecg.metrics.operating_point import choose_operating_point
from rayecg.models.catalogue import ARCHITECTURES, ModelInputs, build_model
from rayecg.models.checkpoint import read_card, save_checkpoint
from rayecg.score.batches import batches_file, compare_scores, draw_examples, prepare_sample
from rayecg.score.run import decides
from rayecg.score.sources import ShardSource
from rayecg.score.unit import UnitScorer
from rayecg.shards.build import write_records
from rayecg.tasks.task import load_task
from rayecg.train.permuted import permuted

BATCHES, LABELS = "batch-dependence", "permuted-labels"


class _Linear(nn.Module):
    """Means of twelve stretches of every lead, and a linear layer."""

    def __init__(self, inputs: ModelInputs, n_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(len(inputs.leads) * 12, n_outputs)

    def stretches(self, x_BLT: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool1d(x_BLT, 12).flatten(1)


class OwnRecordAlone(_Linear):
    """Centred on itself."""

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(self.stretches(x_BLT - x_BLT.mean(2, keepdim=True)))
        return found


class CentredOnItsBatch(_Linear):
    """The mean of the batch is taken off."""

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(self.stretches(x_BLT - x_BLT.mean(0, keepdim=True)))
        return found


class NormedByItsBatch(_Linear):
    """Batch normalisation by the statistics of the batch at hand; it refuses a window alone."""

    def __init__(self, inputs: ModelInputs, n_outputs: int) -> None:
        super().__init__(inputs, n_outputs)
        self.norm = nn.BatchNorm1d(self.linear.in_features, track_running_stats=False)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.linear(self.norm(self.stretches(x_BLT)))
        return found


def scored_benchmark(
    out: Path, kind: str, architecture: str, duration_s: float, n_examples: int = 40
) -> Path:
    """Write a benchmark of one network with random weights, scored by the score stage itself."""
    write_benchmark(out, kind)
    work, run = out / "work", "wide-seed0"
    leads = ("MLII",) if kind == "beats" else ("I", "II", "V5")
    settings = InputSettings(fs=100, duration_s=duration_s, leads=leads)
    place = work / "train" / run / "checkpoint"
    card = read_json(place / "card.json")
    n_labels = len(card["task"]["labels"])
    rng = np.random.default_rng(0)
    task_kind = card["task"]["kind"]
    point = choose_operating_point(
        rng.normal(size=(50, n_labels)),
        np.eye(n_labels, dtype=int)[rng.integers(0, n_labels, 50)],
        task_kind,
        "validation",
    )
    torch.manual_seed(0)
    model = build_model(architecture, ModelInputs.of(settings), n_labels, {})
    card |= {"architecture": architecture, "hyperparameters": {}, "input": to_tree(settings)}
    save_checkpoint(place, model, card | {"operating_point": to_tree(point)})
    write_records(shard_files(work / "shards"), work / "shards" / RECORDS)
    source, scoring = ShardSource(work / "shards"), ScoreSettings(batch_size=16)
    scores = work / "again"
    plans = {run: decides(read_card(place), source, scoring, None)}
    scorer = UnitScorer(source, {run: place}, {run: Units(scores, "0" * 16)}, plans, scoring)
    scorer.open()
    for unit in source.units():
        scorer(source.payload(unit))
    write_json(work / "runs.json", [run])
    examples = read_table(work / "examples.parquet").to_pandas()
    wanted = draw_examples(examples, None, n_examples)
    sample = prepare_sample(work / "shards", place, wanted, n_examples)
    found = compare_scores(place, sample, scores, scoring)
    write_json(batches_file(work / "audit" / "batches", run), {"source_key": source.key, **found})
    return out


def findings(out: Path, rule_id: str) -> list[Finding]:
    return apply_rule(rule_id, Evidence(out / "work"))


@pytest.mark.parametrize(
    ("kind", "duration_s", "n_windows"),
    # Six test records of one window, then of four each; beats that lie anywhere in their records.
    [("recordings", 10.0, 6), ("recordings", 2.5, 24), ("beats", 1.0, 40)],
)
@pytest.mark.parametrize(
    ("network", "verdict"),
    [
        (OwnRecordAlone, "passed"),
        (CentredOnItsBatch, "violated"),
        (NormedByItsBatch, "violated"),
    ],
)
def test_a_network_that_reads_its_batch_fires(
    kind: str,
    duration_s: float,
    n_windows: int,
    network: type[nn.Module],
    verdict: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(ARCHITECTURES, "toy", f"{__name__}:{network.__name__}")
    out = scored_benchmark(tmp_path, kind, "toy", duration_s)
    said = read_json(batches_file(out / "work" / "audit" / "batches", "wide-seed0"))
    assert said["n_windows"] == n_windows
    assert said["n_records"] == len(said["record_ids"])
    assert [one["name"] for one in said["circumstances"]] == [
        "one at a time",
        "7 at a time, in reverse",
        "in another order",
        "beside noise",
    ]
    moved = [one["probability"] for one in said["circumstances"] if one["error"] is None]
    assert min(moved) > TOLERANCE if verdict == "violated" else max(moved) <= TOLERANCE
    refused = said["circumstances"][0]["error"]
    assert ("Expected more than 1 value" in (refused or "")) == (network is NormedByItsBatch)
    assert [finding.verdict for finding in findings(out, BATCHES)] == [verdict]


@pytest.mark.parametrize("architecture", ["simple_cnn1d", "xresnet1d18", "bilstm"])
def test_a_network_of_the_catalogue_passes(architecture: str, tmp_path: Path) -> None:
    out = scored_benchmark(tmp_path, "recordings", architecture, 2.5)
    assert [finding.verdict for finding in findings(out, BATCHES)] == ["passed"]
    said = read_json(batches_file(out / "work" / "audit" / "batches", "wide-seed0"))
    own = [one for one in said["circumstances"] if one["batch_size"] == said["batch_size"]]
    assert len(own) == 2
    # Batches are filled up to one shape, so that the arithmetic is the same to the bit.
    assert [one["logit"] for one in own] == [0.0, 0.0]


def test_scores_that_are_not_this_network_s_fire(tmp_path: Path) -> None:
    """It is the score stage's own files that are compared."""
    out = scored_benchmark(tmp_path, "recordings", "simple_cnn1d", 10.0)
    work, run = out / "work", "wide-seed0"

    def shift(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(logit_MI=table["logit_MI"] + 0.01)

    for file in (work / "again" / "predictions").glob("*.parquet"):
        edit_table(file, shift)
    place, scoring = work / "train" / run / "checkpoint", ScoreSettings(batch_size=16)
    wanted = draw_examples(read_table(work / "examples.parquet").to_pandas(), None, 40)
    sample = prepare_sample(work / "shards", place, wanted, 40)
    found = compare_scores(place, sample, work / "again", scoring)
    assert all(one["logit"] == pytest.approx(0.01, abs=1e-5) for one in found["circumstances"])
    edit_json(batches_file(work / "audit" / "batches", run), lambda tree: tree.update(found))
    assert [finding.verdict for finding in findings(out, BATCHES)] == ["violated"]


def test_examples_are_drawn_of_the_test_split_and_the_fold() -> None:
    table = pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(400)],
            "offset": 0,
            "fold": [i % 2 for i in range(400)],
            "split": ["test" if i % 4 < 2 else "train" for i in range(400)],
        }
    )
    drawn = draw_examples(table, 1, 30)
    assert len(drawn) == 30
    chosen = table.loc[drawn.index]
    assert set(chosen["split"]) == {"test"}
    assert set(chosen["fold"]) == {1}
    assert draw_examples(table, 1, 30).equals(drawn)
    assert len(draw_examples(table, None, 10**6)) == 200


# The whole way


@pytest.mark.parametrize(
    "settings",
    [["audit.batch_dependence=-1"], ["audit.permuted_labels=resnet"], ["audit.permuted=yes"]],
)
def test_wrong_settings_of_the_audit_are_refused(settings: list[str]) -> None:
    with pytest.raises(SettingsError, match=r"audit|batch_dependence"):
        load_settings(Experiment, None, settings)


def probed(permuted: str) -> Experiment:
    experiment = small(
        architectures=(ArchitectureSettings("simple_cnn1d"), TOO_LARGE),
        seeds=(3,),
        audit=AuditSettings(batch_dependence=20, permuted_labels=permuted),
    )
    archive = dataclasses.replace(experiment.archive, n_records=160)
    train = dataclasses.replace(experiment.train, epochs=1)
    return dataclasses.replace(experiment, archive=archive, train=train)


@pytest.mark.slow
def test_probes_are_ordinary_runs_kept_apart(ray: None, tmp_path: Path) -> None:
    out = tmp_path / "out"
    work = out / "work"
    result = pipeline.benchmark(probed("simple_cnn1d"), out)
    assert not result.violated

    # They are in no table of runs, and the ledger says whose looks they are.
    run = "simple_cnn1d-seed3"
    runs = pd.read_parquet(out / "runs.parquet")
    assert set(runs["architecture"]) == {"simple_cnn1d", "too_large"}
    assert not runs["run"].str.contains("permuted").any()
    ledger = read_json(out / "ledger.json", list)
    assert [look.get("audit") for look in ledger] == [None, "permuted-labels"]
    assert "counts 1 checkpoint or ensemble" in (out / "index.html").read_text()

    # One is trained on other labels, with the rest alike, and is near chance.
    place = work / "audit" / "permuted"
    cards = [
        read_json(folder / "checkpoint" / "card.json")
        for folder in (work / "train" / run, place / "train" / f"{run}-permuted")
    ]
    assert cards[0]["weights_sha256"] != cards[1]["weights_sha256"]
    assert cards[0]["input"] == cards[1]["input"]
    assert cards[0]["training"]["settings"] == cards[1]["training"]["settings"]
    assert not (place / "train" / ".resident").exists()
    (found,) = findings(out, LABELS)
    assert found.verdict == "passed"
    assert found.evidence["low"] <= found.evidence["macro_auroc"] <= found.evidence["high"]

    # The other was scored again, on test records.
    (again,) = findings(out, BATCHES)
    assert again.verdict == "passed"
    said = read_json(batches_file(work / "audit" / "batches", run))
    examples = pd.read_parquet(work / "examples.parquet").set_index("record_id")
    assert set(examples.loc[said["record_ids"], "split"]) == {"test"}
    assert 0 < said["n_windows"] <= 20

    # What is there is not made again, and a permuted run that fails is no failure of the benchmark.
    kept = [*place.rglob("*.parquet"), batches_file(work / "audit" / "batches", run)]
    kept = [file for file in kept if file.name != "examples.parquet"]
    assert len(kept) >= 3
    before = {file: file.stat().st_mtime_ns for file in kept}
    assert not pipeline.benchmark(probed("too_large"), out).violated
    (failed,) = findings(out, LABELS)
    assert failed.verdict == "not checked"
    assert "too_large-seed3-permuted: the run failed: " in failed.evidence["text"]
    pipeline.benchmark(probed("simple_cnn1d"), out)
    assert findings(out, LABELS) == [found]
    assert {file: file.stat().st_mtime_ns for file in kept} == before
    assert len(read_json(out / "ledger.json", list)) == 2


def test_a_permuted_run_differs_in_name_and_key_alone() -> None:
    experiment = small()
    task = load_task(experiment.task, "synthetic")
    runs = pipeline.plan_runs(experiment, task, "key", True)
    again = [permuted(run) for run in runs]
    assert len({run.key for run in (*runs, *again)}) == 2 * len(runs)
    assert len({run.name for run in (*runs, *again)}) == 2 * len(runs)
    for one, other in zip(runs, again, strict=True):
        own = dataclasses.replace(other, name=one.name, key=one.key)
        assert own == one
