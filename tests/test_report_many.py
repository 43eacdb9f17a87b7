"""Reports of many labels and of several folds."""

from __future__ import annotations

import dataclasses
import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_benchmark import LOST, edit_json, write_benchmark
from PIL import Image

from rayecg.audit.run import audit
from rayecg.core.experiment import SplitSettings, TaskSettings
from rayecg.core.files import read_json, read_table, write_table
from rayecg.report import benchmark as benchmark_module
from rayecg.report import layout, plots, training_plots
from rayecg.report.page import headline
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


def make_folds(out: Path, *architectures: str, protocol: str = "kfold") -> Path:
    """Write three folds of each architecture, by copies of a run of the fake benchmark."""
    write_benchmark(out)
    work = out / "work"
    task = load_task(TaskSettings())
    splits = splits_of(task, SplitSettings(protocol, k=3))
    records = read_table(work / "shards" / "records").drop_columns(["signal"])
    write_table(work / "examples.parquet", example_table(task, records, splits))
    names = []
    for architecture, fold in itertools.product(architectures, range(3)):
        name = f"{architecture}-fold{fold}-seed0"
        names.append(name)
        for stage in ("train", "score"):
            shutil.copytree(work / stage / f"{architecture}-seed0", work / stage / name)
        edit_json(
            work / "train" / name / "run.json",
            lambda tree, f=fold, n=name: tree.update(run=n, fold=f),
        )
    (work / "runs.json").write_text(json.dumps(names))
    edit_json(work / "task.json", lambda tree: tree.update(split=dataclasses.asdict(splits[0])))
    text = (out / "experiment.yaml").read_text()
    planned = ", ".join(f"{{name: {name}}}" for name in architectures)
    text = text.replace("{name: wide}, {name: deep}, {name: broken}", planned)
    (out / "experiment.yaml").write_text(text)
    return out


@pytest.fixture
def folds(tmp_path: Path) -> Path:
    return make_folds(tmp_path / "folds", "wide")


def say(out: Path, run: str, validation: float, **said) -> None:
    """Change what a run says of itself."""

    def edit(tree):
        tree["validation"]["macro_auroc"] = validation
        tree.update(said)

    edit_json(out / "work" / "train" / run / "run.json", edit)


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


def test_an_architecture_that_lacks_a_hard_fold_cannot_win(tmp_path):
    out = make_folds(tmp_path / "out", "wide", "deep")
    for fold, (wide, deep) in enumerate([(0.9, 0.91), (0.8, 0.81), (0.5, 0.5)]):
        say(out, f"wide-fold{fold}-seed0", wide)
        say(out, f"deep-fold{fold}-seed0", deep)
    whole = Results(out, out / "findings.json")
    assert whole.chosen_name == "deep, mean of 3 runs"
    assert whole.architectures == ["deep", "wide"]
    say(out, "deep-fold2-seed0", 0.5, status="failed", error="out of memory")
    audit(out / "work", out)
    report(out, out)
    results = Results(out, out / "findings.json")
    assert results.summary["validation_macro_auroc_mean"].idxmax() == 1
    assert results.architectures == ["wide", "deep"]
    assert results.chosen_name == "wide, mean of 3 runs"
    assert set(results.runs.loc[results.runs["chosen"], "architecture"]) == {"wide"}
    assert "Not every seed and fold is there of deep" in (out / "summary.md").read_text()
    shutil.rmtree(out / "work" / "train" / "wide-fold0-seed0")
    results = Results(out, out / "findings.json")
    assert results.chosen is None
    assert headline(results)[0]["value"] == "no architecture finished every fold"


def test_the_headline_speaks_of_all_folds(folds):
    for fold in range(3):
        edit_json(
            folds / "work" / "train" / f"wide-fold{fold}-seed0" / "checkpoint" / "card.json",
            lambda tree, f=fold: tree["training"]["selection"].update(
                split="test" if f == 2 else "validation"
            ),
        )
    audit(folds / "work", folds)
    results = Results(folds, folds / "findings.json")
    note = headline(results)[1]["note"]
    n = int(results.runs["n_test_scored"].sum())
    assert n > results.runs["n_test_scored"].max()
    assert note.startswith(f"{n} test recordings; audit: violated: ")
    assert "selection-on-test" in note
    (folds / "work" / "score" / "wide-fold0-seed0" / "manifest.json").unlink()
    results = Results(folds, folds / "findings.json")
    rest = int(results.runs["n_test_scored"].sum())
    assert headline(results)[1]["note"].startswith(f"{rest} test recordings in 2 of 3 runs; audit")


@pytest.mark.parametrize("protocol", ["kfold", "rotate"])
def test_counts_add_up_over_folds_unless_these_test_on_the_same(tmp_path, protocol):
    out = make_folds(tmp_path / "out", "wide", "deep", protocol=protocol)
    results = Results(out, out / "findings.json")
    examples = results.benchmark.examples
    test = examples[examples["split"] == "test"].drop_duplicates("record_id")
    summary = layout.summary_table(results)
    sides = "splits of the folds together have" if protocol == "kfold" else "split has"
    assert summary.notes[0].startswith(
        f"The test {sides} {len(test)} recordings. Up to 1 recording"
    )
    assert list(results.summary["n_test"]) == [len(test)] * 2
    assert len(results.per_class) == 2 * len(results.benchmark.labels)
    scored = test[test["record_id"] != LOST]
    for _, row in results.per_class.iterrows():
        assert row["n_positive"] == scored[f"target_{row['label']}"].sum()


def test_plots_say_what_they_are_means_over(folds):
    captions = {
        plot.name: f"{plot.caption} {plot.alt}"
        for draw in (plots.primary_metric, plots.per_class, training_plots.training_curves)
        for plot in draw(Results(folds, folds / "findings.json"))
    }
    assert "mean over seeds and folds" in captions["primary_metric"]
    assert "deviation over seeds and folds" in captions["primary_metric"]
    assert "Means over seeds and folds" in captions["per_class_auroc"]
    assert "One line per run" in captions["training_loss"]
    assert "Unweighted BCE or cross-entropy" in captions["validation_loss"]
    assert "plain validation loss by epoch" in captions["validation_loss"]


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
