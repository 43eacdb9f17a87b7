"""The rules whose evidence ordinary runs make: scores in other batches, a run on permuted labels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_benchmark import (
    BOTH,
    EVERYONE,
    PERMUTED,
    RUNS,
    SEEDS,
    add_ensembles,
    edit_json,
    edit_table,
    write_benchmark,
)
from hypothesis import given
from hypothesis import strategies as st
from test_audit import check, one

from rayecg.audit.catalogue import load_rule
from rayecg.audit.evidence import Evidence, PermutedRun
from rayecg.audit.probe_rules import MARGIN, TOLERANCE, TOLERANCE_OTHER_SHAPE_GPU
from rayecg.audit.run import apply_rule
from rayecg.core.files import read_json, read_table, write_json, write_table
from rayecg.tasks.permute import permuted_examples

BATCHES, LABELS = "batch-dependence", "permuted-labels"


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("probes")
    return {kind: write_benchmark(place / kind, kind) for kind in ("recordings", "beats")}


@pytest.fixture(params=["recordings", "beats"])
def out(clean: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return Path(shutil.copytree(clean[request.param], tmp_path / "copy"))


@pytest.fixture
def recordings(clean: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean["recordings"], tmp_path / "copy"))


def edit_batches(out: Path, run: str, **changes: Any) -> None:
    edit_json(out / "work" / "audit" / "batches" / f"{run}.json", lambda tree: tree.update(changes))


def circumstance(**changes: Any) -> dict[str, Any]:
    found = {"name": "beside noise", "batch_size": 64, "probability": 0.0, "n_lost": 0}
    return {**found, "record_id": "r018", "offset": 0, **changes}


# Scores in other batches


def test_scores_that_move_with_their_batch_fire(out: Path) -> None:
    edit_batches(out, "deep-seed0", circumstances=[circumstance(probability=0.02)])
    found = one(out, BATCHES, "violated")
    assert found.evidence["ids"] == ["deep-seed0"]
    assert found.taints == ("run:deep-seed0",)
    assert all(part in found.evidence["text"] for part in ("0.02", "beside noise", "'r018'"))
    rest = one(out, BATCHES, "passed")
    assert rest.evidence["n"] == len(RUNS) - 1


def test_a_score_that_is_lost_in_another_batch_fires(recordings: Path) -> None:
    lost = circumstance(probability=None, n_lost=3)
    edit_batches(recordings, "deep-seed0", circumstances=[lost])
    assert "3 windows have no score" in one(recordings, BATCHES, "violated").evidence["text"]


@pytest.mark.parametrize(
    ("device", "batch_size", "apart", "verdict"),
    [
        ("cpu", 1, TOLERANCE, "passed"),
        ("cpu", 1, 2 * TOLERANCE, "violated"),
        ("cuda", 1, TOLERANCE_OTHER_SHAPE_GPU, "passed"),
        ("cuda", 1, 2 * TOLERANCE_OTHER_SHAPE_GPU, "violated"),
        # The same algorithm on the same shape.
        ("cuda", 64, 2 * TOLERANCE, "violated"),
    ],
)
def test_what_arithmetic_explains_passes(
    recordings: Path, device: str, batch_size: int, apart: float, verdict: str
) -> None:
    moved = [circumstance(batch_size=batch_size, probability=apart)]
    edit_batches(recordings, "deep-seed0", device=device, circumstances=moved)
    assert {finding.verdict for finding in check(recordings, BATCHES)} >= {verdict}
    assert ("violated" in {f.verdict for f in check(recordings, BATCHES)}) == (
        verdict == "violated"
    )


@pytest.mark.parametrize(
    "changes",
    [{"checkpoint_sha256": "other"}, {"source_key": "other"}, {"circumstances": []}],
)
def test_evidence_of_something_else_is_no_pass(recordings: Path, changes: dict[str, Any]) -> None:
    edit_batches(recordings, "deep-seed0", **changes)
    found = one(recordings, BATCHES, "not checked")
    assert found.taints == ("run:deep-seed0",)


def test_a_run_that_was_not_scored_again_is_not_checked(recordings: Path) -> None:
    shutil.rmtree(recordings / "work" / "audit")
    found = one(recordings, BATCHES, "not checked")
    assert found.evidence["n"] == len(RUNS)
    assert "not scored in other batches" in found.evidence["text"]


def test_an_ensemble_stands_and_falls_with_its_members(recordings: Path) -> None:
    add_ensembles(recordings, BOTH)
    assert one(recordings, BATCHES, "passed").evidence["n"] == len(RUNS) + 2
    edit_batches(recordings, "wide-seed1", circumstances=[circumstance(probability=0.5)])
    found = one(recordings, BATCHES, "violated")
    assert set(found.taints) == {"run:wide-seed1", f"run:{SEEDS}", f"run:{EVERYONE}"}
    (recordings / "work" / "audit" / "batches" / "wide-seed0.json").unlink()
    open_one = one(recordings, BATCHES, "not checked")
    assert {"run:wide-seed0", f"run:{SEEDS}"} <= set(open_one.taints)


# Runs on permuted labels


def plant(out: Path, probability: Callable[[pd.DataFrame, str], Any]) -> None:
    """Overwrite what the permuted run gives, from the true examples."""
    work = out / "work"
    truth = read_table(work / "examples.parquet").to_pandas()
    by_beat = (work / "audit" / "permuted" / "score" / PERMUTED / "windows").exists()
    keys = ["record_id", "offset"] if by_beat else ["record_id"]
    labels = read_json(work / "task.json")["labels"]

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        both = table[keys].merge(truth, on=keys, how="left")
        for label in labels:
            table[f"probability_{label}"] = np.asarray(probability(both, label), dtype=float)
        return table

    folder = "windows" if by_beat else "predictions"
    for file in (work / "audit" / "permuted" / "score" / PERMUTED / folder).glob("*.parquet"):
        edit_table(file, edit)


def test_a_permuted_run_that_knows_the_true_labels_fires(out: Path) -> None:
    plant(out, lambda rows, label: 0.2 + 0.6 * rows[f"target_{label}"])
    found = one(out, LABELS, "violated")
    assert found.evidence["ids"] == [PERMUTED]
    assert found.evidence["macro_auroc"] == 1.0
    assert found.taints == ("validation", "test")


def test_a_permuted_run_far_below_chance_is_told_and_no_leak(out: Path) -> None:
    plant(out, lambda rows, label: 0.8 - 0.6 * rows[f"target_{label}"])
    found = one(out, LABELS, "passed")
    assert found.evidence["macro_auroc"] == 0.0
    assert "against the labels" in found.evidence["text"]


@pytest.mark.parametrize(
    ("lift", "n_patients", "verdict"),
    [
        (0.0, 80, "passed"),
        # Chance of a network of its own making, which 80 patients tell from 0.5.
        (0.3, 80, "passed"),
        (2.0, 80, "violated"),
        # As far from 0.5, and too few patients to say so.
        (2.0, 2, "passed"),
    ],
)
def test_the_whole_interval_must_lie_beyond_the_margin(
    lift: float, n_patients: int, verdict: str, tmp_path: Path
) -> None:
    """Two labels, whose positives have scores higher by `lift` standard deviations."""
    rng = np.random.default_rng(3)
    n = 10 * n_patients
    examples = pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(n)],
            "patient_id": [f"p{i // 10}" for i in range(n)],
            "offset": 0,
            "split": "test",
            "target_A": rng.integers(0, 2, n),
            "target_B": rng.integers(0, 2, n),
        }
    )
    of_patient = np.repeat(rng.normal(0, 1, n_patients), 10) if n_patients < 10 else 0.0
    given_ = {
        f"probability_{label}": lift * examples[f"target_{label}"] * (1 - 0.8 * (of_patient < 0))
        + rng.normal(size=n)
        for label in "AB"
    }
    predictions = pd.DataFrame({"record_id": examples["record_id"], **given_})
    run = PermutedRun(
        "net-permuted", "", ("A", "B"), ("record_id",), examples.iloc[:0], predictions
    )
    evidence = Evidence(tmp_path)
    evidence.__dict__.update(permuted=[run], examples=examples)
    (found,) = load_rule(LABELS)(evidence)
    assert found.verdict == verdict
    assert (found.evidence["low"] > 0.5 + MARGIN) == (verdict == "violated")
    if lift:
        assert found.evidence["macro_auroc"] > 0.5


def test_a_run_whose_labels_were_not_permuted_is_not_checked(out: Path) -> None:
    truth = read_table(out / "work" / "examples.parquet")
    write_table(out / "work" / "audit" / "permuted" / "examples.parquet", truth)
    assert "the true ones" in one(out, LABELS, "not checked").evidence["text"]


def test_a_permuted_run_that_failed_says_why(recordings: Path) -> None:
    place = recordings / "work" / "audit" / "permuted"
    run = place / "train" / PERMUTED / "run.json"
    edit_json(run, lambda tree: tree.update(status="failed", error="out of memory"))
    assert "out of memory" in one(recordings, LABELS, "not checked").evidence["text"]
    run.unlink()
    edit_json(place / "plan.json", lambda plan: plan.update(error="no worker to be had"))
    assert "no worker" in one(recordings, LABELS, "not checked").evidence["text"]


def test_predictions_of_something_else_are_not_checked(recordings: Path) -> None:
    manifest = recordings / "work" / "audit" / "permuted" / "score" / PERMUTED / "manifest.json"
    edit_json(manifest, lambda tree: tree.update(checkpoint_sha256="other"))
    assert "predictions" in one(recordings, LABELS, "not checked").evidence["text"]


def test_not_asked_for_is_not_checked(recordings: Path) -> None:
    write_json(
        recordings / "work" / "audit" / "permuted" / "plan.json", {"runs": [], "error": None}
    )
    assert "audit.permuted_labels" in one(recordings, LABELS, "not checked").evidence["text"]


def test_each_fold_asks_for_its_own_permuted_run(recordings: Path) -> None:
    """Fold 0 has one, fold 1 has none."""
    work = recordings / "work"

    def twice(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table.assign(fold=fold) for fold in (0, 1)], ignore_index=True)

    for file in (work / "examples.parquet", work / "audit" / "permuted" / "examples.parquet"):
        edit_table(file, twice)
    for file in work.rglob("run.json"):
        edit_json(file, lambda tree: tree.update(fold=0))
    verdicts = {
        (finding.verdict, tuple(finding.evidence["folds"]))
        for finding in apply_rule(LABELS, Evidence(work))
    }
    assert verdicts == {("passed", (0,)), ("not checked", (1,))}


# The permutation


@given(seed=st.integers(0, 2**32 - 1))
def test_permuted_labels_are_the_same_rows_in_each_split(clean: dict[str, Path], seed: int) -> None:
    truth = read_table(clean["recordings"] / "work" / "examples.parquet")
    dealt = permuted_examples(truth, seed)
    assert dealt.schema.equals(truth.schema)
    own, other = truth.to_pandas(), dealt.to_pandas()
    columns = [name for name in own if name.startswith("target_")]
    own = own[own["split"].isin(["train", "validation"])].reset_index(drop=True)
    rest = [name for name in own if name not in columns]
    pd.testing.assert_frame_equal(other[rest], own[rest])
    for split in ("train", "validation"):
        each = [table.loc[table["split"] == split, columns] for table in (own, other)]
        sorted_rows = [sorted(map(tuple, one.to_numpy().tolist())) for one in each]
        assert sorted_rows[0] == sorted_rows[1]


def test_permuted_labels_say_nothing_of_the_true_ones() -> None:
    """Of many examples, by two folds: correlations as chance has them."""
    n = 20_000
    rng = np.random.default_rng(5)
    table = pd.DataFrame(
        {
            "record_id": [f"r{i}" for i in range(n)],
            "offset": 0,
            "fold": rng.integers(0, 2, n),
            "split": rng.choice(["train", "validation", "test", "none"], n),
            "target_A": rng.integers(0, 2, n),
        }
    )
    dealt = permuted_examples(pa.Table.from_pandas(table, preserve_index=False)).to_pandas()
    both = table.merge(dealt, on=["record_id", "fold", "split"])
    assert len(both) == len(dealt) == table["split"].isin(["train", "validation"]).sum()
    # Five standard errors of a correlation of independent values, 1 / sqrt(n).
    correlation = np.corrcoef(both["target_A_x"], both["target_A_y"])[0, 1]
    assert abs(correlation) < 5 / np.sqrt(len(both))
    again = permuted_examples(pa.Table.from_pandas(table, preserve_index=False)).to_pandas()
    pd.testing.assert_frame_equal(again, dealt)
