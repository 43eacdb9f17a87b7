"""Ensembles in report, audit and ledger."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest
from fake_benchmark import (
    BOTH,
    EVERYONE,
    RUNS,
    SEEDS,
    add_ensembles,
    card_of,
    edit_json,
    edit_table,
    write_benchmark,
)
from test_report_many import make_folds

from rayecg import pipeline
from rayecg.audit.run import audit
from rayecg.core.files import read_json, read_table
from rayecg.core.folders import Folders
from rayecg.report.results import Results
from rayecg.report.write import report


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("ensemble") / "out")


@pytest.fixture
def out(recordings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings, tmp_path / "copy"))


def test_the_report_shows_it_and_does_not_choose_it(out):
    add_ensembles(out)
    edit_json(
        out / "work" / "train" / EVERYONE / "run.json",
        lambda tree: tree["validation"].update(macro_auroc=0.999),
    )
    audit(out / "work", out)
    written = report(out, out)
    runs = pd.read_parquet(out / "runs.parquet").set_index("run")
    assert runs["n_members"].dropna().to_dict() == {SEEDS: 2, EVERYONE: 3}
    ensembles = runs.loc[[SEEDS, EVERYONE]]
    assert (ensembles["status"] == "ok").all()
    assert (ensembles["verdict"] == runs.loc["wide-seed0", "verdict"]).all()
    assert not ensembles["chosen"].any()
    assert runs["chosen"].sum() == 1
    assert ensembles[["seed", "fold", "epochs", "seconds", "examples_per_s"]].isna().all(axis=None)
    assert ensembles["n_parameters"].tolist() == [2468, 3702]
    assert ensembles["test_macro_auroc"].notna().all()
    summary = pd.read_csv(out / "summary.csv").set_index("architecture")
    assert summary.index[0] == "all architectures ensemble"
    single = runs[runs["architecture"] == "wide"]["test_macro_auroc"]
    assert summary.loc["wide", "test_macro_auroc_mean"] == pytest.approx(single.mean(), rel=1e-5)
    assert (summary.loc["wide", "n_seeds"], summary.loc["wide ensemble", "n_members"]) == (2, 2)
    assert "3 averaged" in written.table
    page = written.page.read_text()
    assert "An ensemble&#39;s probability is the mean" in page
    assert "It is no checkpoint that could be deployed" in page
    assert "3 averaged); " in page  # of the plot's description
    results = Results(out, out / "findings.json")
    assert "ensemble" not in results.chosen_name
    assert set(results.single["architecture"]) == {"wide", "deep", "broken"}


@pytest.mark.parametrize(
    ("section", "change", "rule"),
    [
        ("operating_point", {"split": "test"}, "threshold-on-test"),
        ("training", {"selection": {"metric": "x", "split": "test"}}, "selection-on-test"),
        ("training", {"class_weights": {"split": "all", "values": []}}, "fit-outside-training"),
    ],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_member_s_violation_taints_it(out, section, change, rule, when):
    if when == "after":  # so that the ensemble's own card knows nothing of it
        add_ensembles(out)
    edit_json(card_of(out, "wide-seed0"), lambda tree: tree[section].update(change))
    if when == "before":
        add_ensembles(out)
    audit(out / "work", out)
    runs = Results(out, out / "findings.json").runs.set_index("run")
    assert set(runs.index[runs["verdict"].str.startswith(f"violated: {rule}")]) == {
        SEEDS,
        EVERYONE,
        "wide-seed0",
    }
    assert runs["verdict"].str.startswith("violated").sum() == 3


def test_its_own_violations_taint_it_alone(out):
    add_ensembles(out)
    edit_json(card_of(out, SEEDS), lambda tree: tree["operating_point"].update(split="test"))
    findings = audit(out / "work", out)
    violated = [finding for finding in findings if finding.verdict == "violated"]
    assert [finding.rule_id for finding in violated] == ["threshold-on-test"]
    assert violated[0].taints == (f"run:{SEEDS}",)


@pytest.mark.parametrize("how", ["without its card", "not there"])
def test_a_member_that_nobody_looked_at_leaves_it_open(out, how):
    add_ensembles(out, ("seeds",))
    if how == "without its card":
        card_of(out, "wide-seed0").unlink()
    else:
        edit_json(out / "work" / "runs.json", lambda runs: runs.remove("wide-seed0"))
    findings = [f for f in audit(out / "work", out) if f.verdict == "not checked"]
    rules_of = {
        run: {f.rule_id for f in findings if f"run:{run}" in f.taints} for run in (SEEDS, *RUNS)
    }
    by_card = {"threshold-on-test", "calibrator-on-test", "selection-on-test"}
    by_card |= {"fit-outside-training", "batch-dependence"}
    assert rules_of[SEEDS] == by_card | {"forbidden-input", "pretraining-overlap"}
    assert rules_of["wide-seed1"] == rules_of["deep-seed0"] == set()


def test_the_ledger_counts_it(out):
    add_ensembles(out)
    folders = Folders.of_benchmark(out)
    for _ in range(2):
        pipeline.note_looks(folders, [*RUNS, SEEDS, EVERYONE])
    looks = read_json(out / "ledger.json", list)
    assert len({look["checkpoint_sha256"] for look in looks}) == len(looks) == 5


def test_each_fold_has_its_own(tmp_path):
    out = make_folds(tmp_path / "out", "wide", "deep")
    work = out / "work"
    names = read_json(work / "runs.json", list)
    examples = read_table(work / "examples.parquet").to_pandas()
    for name in names:
        # The fake's runs are of one split: give each the validation rows of its fold.
        fold = read_json(work / "train" / name / "run.json")["fold"]
        scored = read_table(work / "score" / name / "predictions").to_pandas()
        own = examples[(examples["fold"] == fold) & (examples["split"] == "validation")]

        def rows_of(_: pd.DataFrame, own=own, scored=scored) -> pd.DataFrame:
            return (
                own[["record_id", "offset"]].merge(scored, on="record_id").dropna(subset="logit_MI")
            )

        edit_table(work / "train" / name / "validation.parquet", rows_of)
        edit_json(card_of(out, name), lambda tree, f=fold: tree["training"].update(fold=f))
    found = add_ensembles(out, BOTH, tuple(names))
    assert [(r["run"], r["fold"], r["status"]) for r in found] == [
        (f"fold{fold}-ensemble", fold, "ok") for fold in range(3)
    ]
    audit(work, out)
    report(out, out)
    runs = pd.read_parquet(out / "runs.parquet").set_index("run")
    for fold in range(3):
        row = runs.loc[f"fold{fold}-ensemble"]
        own = examples[(examples["fold"] == fold) & (examples["split"] == "test")]
        assert (row["fold"], row["n_test"], row["n_members"]) == (fold, len(own), 2)
    assert runs["chosen"].sum() == 3
    assert not runs.loc[runs["n_members"].notna(), "chosen"].any()
    summary = pd.read_csv(out / "summary.csv").set_index("architecture")
    assert summary["complete"].all()
    assert summary.loc["all architectures ensemble", "n_seeds"] == 3
    assert "3, each 2 averaged" in (out / "summary.md").read_text()
    # A run that lacks a fold takes that fold's ensemble with it.
    edit_json(
        work / "train" / "deep-fold1-seed0" / "run.json", lambda tree: tree.update(status="failed")
    )
    add_ensembles(out, BOTH, tuple(names))
    results = Results(out, out / "findings.json")
    assert not results.summary.set_index("architecture").loc[
        "all architectures ensemble", "complete"
    ]
    assert results.architectures[0] == "wide"
