"""Reports of many labels and of several folds."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_benchmark import edit_json, write_benchmark
from PIL import Image

from rayecg.audit.run import audit
from rayecg.core.experiment import SplitSettings, TaskSettings
from rayecg.core.files import read_json, read_table, write_table
from rayecg.report import benchmark as benchmark_module
from rayecg.report.results import Results
from rayecg.report.text import listed
from rayecg.report.write import report
from rayecg.tasks.split import splits_of
from rayecg.tasks.task import example_table, load_task


def test_long_lists_are_cut():
    assert listed(["a", "b"], 2) == "a, b"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more"
    assert listed([]) == ""


def test_of_many_labels_plots_show_the_most_frequent(tmp_path, monkeypatch):
    out = write_benchmark(tmp_path / "out")
    audit(out / "work", out)
    report(out, tmp_path / "all")
    monkeypatch.setattr(benchmark_module, "MOST_DRAWN", 2)
    report(out, tmp_path / "few")
    few = Results(out, out / "findings.json").benchmark
    test = few.split_examples("test")
    counts = {label: test[f"target_{label}"].sum() for label in few.labels}
    assert sorted(counts[label] for label in few.drawn_labels) == sorted(counts.values())[-2:]
    drawn = {path.stem for path in (tmp_path / "few" / "plots").glob("example_*.png")}
    assert drawn == {f"example_{label}" for label in few.drawn_labels}
    widths = [
        Image.open(tmp_path / name / "plots" / "per_class_auroc.png").width
        for name in ("all", "few")
    ]
    assert widths[1] < widths[0]
    page = (tmp_path / "few" / "index.html").read_text()
    assert "The 2 of 5 labels with most positives in the test split." in page
    # Tables still have them all.
    table = pd.read_csv(tmp_path / "few" / "per_class.csv")
    assert set(table["label"]) == set(few.labels)


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    """Three folds of one architecture, by copies of a run of the fake benchmark."""
    out = write_benchmark(tmp_path / "folds")
    work = out / "work"
    task = load_task(TaskSettings())
    splits = splits_of(task, SplitSettings("kfold", k=3))
    records = read_table(work / "shards" / "records").drop_columns(["signal"])
    write_table(work / "examples.parquet", example_table(task, records, splits))
    names = []
    for fold in range(3):
        name = f"wide-fold{fold}-seed0"
        names.append(name)
        for stage in ("train", "score"):
            shutil.copytree(work / stage / "wide-seed0", work / stage / name)
        edit_json(work / "train" / name / "run.json", lambda tree, f=fold: tree.update(fold=f))
    (work / "runs.json").write_text(json.dumps(names))
    edit_json(work / "task.json", lambda tree: tree.update(split=dataclasses.asdict(splits[0])))
    text = (out / "experiment.yaml").read_text().replace(", {name: deep}, {name: broken}", "")
    (out / "experiment.yaml").write_text(text)
    return out


def test_each_run_is_evaluated_on_the_test_side_of_its_fold(folds):
    results = Results(folds, folds / "findings.json")
    examples = results.benchmark.examples
    for _, run in results.runs.iterrows():
        own = examples[(examples["fold"] == run["fold"]) & (examples["split"] == "test")]
        assert run["n_test"] == len(own)
    assert results.runs["n_test"].sum() == (examples["split"] == "test").sum()
    assert results.runs["chosen"].all()
    assert results.chosen_name == "wide, mean of 3 runs"
    values = results.runs["test_macro_auroc"]
    assert results.chosen_figure("test") == pytest.approx(values.mean())
    assert list(results.summary["n_seeds"]) == [3]


def test_a_fold_without_its_run_is_named(folds):
    shutil.rmtree(folds / "work" / "train" / "wide-fold1-seed0")
    runs = Results(folds, folds / "findings.json").runs.set_index("run")
    assert runs.loc["wide, fold 1, seed 0", "status"] == "not finished"
    assert len(runs) == 3


def test_findings_that_all_folds_share_stand_once(folds):
    findings = audit(folds / "work", folds)
    by_rule = {}
    for finding in findings:
        by_rule.setdefault(finding.rule_id, []).append(finding)
    alike = by_rule["patient-alias"]
    assert len(alike) == 1
    assert alike[0].evidence["text"].startswith("each fold: ")
    apart = by_rule["folds-official"]
    assert {fold for finding in apart for fold in finding.evidence["folds"]} == {0, 1, 2}
    assert all(f.evidence["text"].startswith(("fold ", "each fold")) for f in apart)
    # Each card says that it was validated on the fake's fold 9, which no fold's validation side is.
    assert {f.verdict for f in by_rule["threshold-on-test"]} == {"violated"}
    report(folds, folds)
    summary = (folds / "summary.md").read_text()
    assert "mean over seeds and folds" in summary
    assert "fold 2, validation" in summary
    assert len(read_json(folds / "findings.json", list)) == len(findings)
