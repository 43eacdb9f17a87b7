"""Somebody else's results: what a table must hold, what is refused and how, and the job as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_benchmark import write_benchmark
from hypothesis import given
from hypothesis import strategies as st
from predictions_of_others import LABELS, as_csv, prediction_rows

from rayecg.audit.catalogue import RULES
from rayecg.audit.others import TableEvidence, audit_table
from rayecg.core.errors import DataError, RayecgError, SettingsError
from rayecg.core.files import read_json
from rayecg.core.prediction_table import SPLIT_WORDS, read_prediction_table
from rayecg.metrics import bootstrap_interval
from rayecg.report.audit_page import measure, write_audit

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def rows() -> pd.DataFrame:
    return prediction_rows()


def verdicts(file: Path, out: Path, shards: Path | None = None) -> dict[str, list[str]]:
    """Audit a table; gives the verdicts of each rule."""
    found: dict[str, list[str]] = {}
    for finding in audit_table(read_prediction_table(file), shards, out):
        found.setdefault(finding.rule_id, []).append(finding.verdict)
    return found


def test_clean_table_is_read_whole_and_ids_stay_text(rows: pd.DataFrame, tmp_path: Path) -> None:
    table = read_prediction_table(as_csv(rows, tmp_path))
    assert table.labels == LABELS
    assert table.rows["record_id"].tolist() == rows["record_id"].tolist()
    assert table.rows["patient_id"].iloc[0] == rows["patient_id"].iloc[0]
    assert set(table.rows["split"]) == {"train", "validation", "test"}
    assert table.runs == ("table",)
    np.testing.assert_array_equal(table.stack(table.rows, "target"), rows.filter(like="target_"))
    np.testing.assert_allclose(
        table.stack(table.rows, "probability"), rows.filter(like="probability_"), rtol=1e-15
    )


@pytest.mark.parametrize(
    "how", ["pandas", "large strings", "categories", "gzip", "semicolon", "bom"]
)
def test_the_same_table_in_other_files_is_the_same(
    rows: pd.DataFrame, tmp_path: Path, how: str
) -> None:
    expected = read_prediction_table(as_csv(rows, tmp_path)).rows
    file = tmp_path / "other"
    if how == "pandas":
        rows.to_parquet(file)
    elif how == "large strings":  # as polars writes them
        table = pa.Table.from_pandas(rows)
        for i, name in enumerate(table.column_names):
            if pa.types.is_string(table[name].type):
                table = table.set_column(i, name, table[name].cast(pa.large_string()))
        pq.write_table(table, file)
    elif how == "categories":
        rows.astype({"split": "category", "patient_id": "category"}).to_parquet(file)
    elif how == "gzip":
        file = tmp_path / "other.csv.gz"
        rows.to_csv(file, index=False)
    elif how == "semicolon":
        rows.to_csv(file, index=False, sep=";")
    else:
        rows.to_csv(file, index=False, encoding="utf-8-sig")
    pd.testing.assert_frame_equal(read_prediction_table(file).rows, expected)


@given(word=st.sampled_from([w for words in SPLIT_WORDS.values() for w in words]), up=st.booleans())
def test_every_word_for_a_split_is_understood(
    word: str, up: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = prediction_rows(20).assign(split=f" {word.upper() if up else word} ")
    table = read_prediction_table(as_csv(rows, tmp_path_factory.mktemp("words")))
    (split,) = set(table.rows["split"])
    assert word in SPLIT_WORDS[split]


def put(column: str, value: object, row: int = 5) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        rows = rows.astype({column: object}) if column in rows else rows.assign(**{column: None})
        rows.loc[row, column] = value
        return rows

    return edit


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (lambda t: t.rename(columns={"patient_id": "PatientId"}), ["patient_id", "PatientId"]),
        (lambda t: t.drop(columns="probability_MI"), ["probability_MI", "nearest"]),
        (lambda t: t[["record_id", "patient_id", "split"]], ["target_<label>"]),
        (put("target_MI", 2), ["target_MI", "0 or 1", "'2'", "row 6"]),
        (put("target_MI", None), ["target_MI", "empty", "row 6"]),
        (put("probability_MI", 1.25), ["probability_MI", "0 to 1", "1.25", "row 6"]),
        (put("probability_MI", "high"), ["high"]),
        (put("probability_MI", float("inf")), ["probability_MI", "finite", "row 6"]),
        (put("split", "holdout"), ["split", "'holdout'", "row 6", "dev", "testing"]),
        (put("split", None), ["split", "row 6"]),
        (put("record_id", "0004"), ["twice", "'0004'", "row 6", "offset"]),
        (put("offset", 1.5), ["offset", "whole number"]),
        (put("interval_low_macro_auroc", 0.5), ["interval_high_macro_auroc"]),
        (put("interval_level", 95), ["interval_level", "between 0 and 1"]),
        (
            lambda t: put("point_accuracy", 1)(t).assign(run="a", threshold_source=t["record_id"]),
            ["one value"],
        ),
        (put("decision_MI", 1), ["decision_NORM"]),
        (put("run", "a"), ["run", "row 1"]),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    rows: pd.DataFrame,
    tmp_path: Path,
    edit: Callable[[pd.DataFrame], pd.DataFrame],
    parts: list[str],
) -> None:
    with pytest.raises(DataError) as found:
        read_prediction_table(as_csv(edit(rows), tmp_path))
    text = str(found.value)
    assert text.startswith("predictions.csv: ")
    assert "\n" not in text
    assert all(part in text for part in parts), text


def test_a_missing_probability_is_refused_but_on_training_rows(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    names = [f"probability_{label}" for label in LABELS]
    rows.loc[rows["split"] == "train", names] = None
    read_prediction_table(as_csv(rows, tmp_path))
    rows.loc[rows.index[rows["split"] == "test"][0], names[1]] = None
    with pytest.raises(DataError, match="probability_MI: expected a number"):
        read_prediction_table(as_csv(rows, tmp_path))


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "empty"),
        (b"record_id,patient_id,split,target_A,probability_A\n", "rows below the header"),
        (bytes(range(256)), "neither"),
        (b"PAR1\0\0\0", "cannot be read"),
        (b"record_id,patient_id,split,target_A,probability_A\n1,2,test,0\n", "Expected 5 columns"),
        (
            "record_id,patient_id,split,target_A,probability_A\nÜ,1,test,0,0\n".encode("latin-1"),
            "UTF-8",
        ),
        (b"record_id,record_id,patient_id,split,target_A,probability_A\n", "each column once"),
    ],
)
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes, part: str) -> None:
    file = tmp_path / "predictions.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=part):
        read_prediction_table(file)


def test_a_truncated_parquet_file_is_refused(rows: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "predictions.parquet"
    rows.to_parquet(file)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(DataError, match=r"predictions.parquet: cannot be read"):
        read_prediction_table(file)


@pytest.mark.parametrize("name", [".", "nowhere.csv"])
def test_what_is_no_file_is_wrong_usage(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="expected a CSV or Parquet file"):
        read_prediction_table(tmp_path / name)


def test_what_a_table_does_not_say_is_not_checked(rows: pd.DataFrame, tmp_path: Path) -> None:
    found = verdicts(as_csv(rows, tmp_path), tmp_path)
    assert set(found) == set(RULES)
    passed = {rule_id for rule_id, said in found.items() if said == ["passed"]}
    assert passed == {"patient-overlap", "record-astride", "label-grouped-input"}
    assert not any("violated" in said for said in found.values())
    for finding in read_json(tmp_path / "findings.json", list):
        assert set(finding) >= {"rule_id", "verdict", "severity", "evidence", "taints"}
        assert "cannot be used" not in finding["evidence"]["text"], finding


@pytest.mark.parametrize("kept", [["test"], ["val", "test"], ["train", "val"]])
def test_rows_that_are_not_there_are_no_pass(
    rows: pd.DataFrame, tmp_path: Path, kept: list[str]
) -> None:
    file = as_csv(rows[rows["split"].isin(kept)], tmp_path)
    found = verdicts(file, tmp_path)
    crossing = ("patient-overlap", "record-astride", "duplicate-near", "resample-before-split")
    assert {word for rule_id in crossing for word in found[rule_id]} == {"not checked"}


def test_a_patient_on_two_sides_fires_also_without_training_rows(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    own = rows[rows["split"] != "train"].reset_index(drop=True)
    own.loc[own["split"] == "val", "patient_id"] = own.loc[
        own["split"] == "test", "patient_id"
    ].iloc[0]
    assert verdicts(as_csv(own, tmp_path), tmp_path)["patient-overlap"] == ["violated"]


SOURCES = {
    "threshold_source": "threshold-on-test",
    "calibrator_source": "calibrator-on-test",
    "selection_source": "selection-on-test",
    "class_weights_source": "fit-outside-training",
}


@pytest.mark.parametrize(("column", "rule_id"), SOURCES.items())
@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("test", "violated"),
        ("Test set", "violated"),
        ("validation + test", "violated"),
        ("train", "passed"),
        ("fixed", "passed"),
        ("somewhere", "not checked"),
        (None, "not checked"),
    ],
)
def test_where_a_choice_comes_from(
    rows: pd.DataFrame, tmp_path: Path, column: str, rule_id: str, said: str, verdict: str
) -> None:
    file = as_csv(rows.assign(**{column: said}), tmp_path)
    assert verdicts(file, tmp_path)[rule_id] == [verdict]
    table = read_prediction_table(file)
    assert list(TableEvidence(table).cards) == ["table"]


def test_copies_and_waveforms_that_a_table_states_fire(rows: pd.DataFrame, tmp_path: Path) -> None:
    train, test = (rows.index[rows["split"] == split][0] for split in ("train", "test"))
    rows["waveform_sha256"] = [f"{i:064d}" for i in range(len(rows))]
    assert verdicts(as_csv(rows, tmp_path), tmp_path)["duplicate-exact"] == ["passed"]
    rows.loc[train, "waveform_sha256"] = rows.loc[test, "waveform_sha256"]
    rows["copy_of"] = None
    rows.loc[test, "copy_of"] = rows.loc[train, "record_id"]
    found = verdicts(as_csv(rows, tmp_path), tmp_path)
    assert found["duplicate-exact"] == ["violated"]
    assert "violated" in found["resample-before-split"]


def test_runs_of_a_cross_validation_are_judged_by_their_own_sides(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    """What one fold trained on, another tests: no overlap, unless one fold itself has it."""
    turned = rows.assign(
        run="b", split=rows["split"].map({"train": "test", "test": "train", "val": "val"})
    )
    both = pd.concat([rows.assign(run="a"), turned], ignore_index=True)
    assert verdicts(as_csv(both, tmp_path), tmp_path)["patient-overlap"] == ["passed"]
    own = both["run"] == "b"
    tested = both.loc[own & (both["split"] == "test"), "patient_id"].iloc[0]
    both.loc[both.index[own & (both["split"] == "train")][0], "patient_id"] = tested
    findings = audit_table(read_prediction_table(as_csv(both, tmp_path)), None, tmp_path)
    fired = [f for f in findings if f.verdict == "violated" and f.rule_id == "patient-overlap"]
    assert [finding.evidence["folds"] for finding in fired] == [[1]]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_benchmark(tmp_path_factory.mktemp("others") / "benchmark")
    return out / "work" / "shards"


def of_shards(shards: Path) -> pd.DataFrame:
    """Give predictions for the records of the fake benchmark, with wrong patients."""
    examples = pq.read_table(shards.parent / "examples.parquet").to_pandas()
    rows = examples[examples["split"] != "none"].drop(
        columns=["fold", "reason", "strat_fold", "offset"]
    )
    labels = [name.removeprefix("target_") for name in rows if name.startswith("target_")]
    probability = np.random.default_rng(0).random((len(rows), len(labels)))
    rows[[f"probability_{label}" for label in labels]] = probability
    return rows


def test_shards_know_patients_waveforms_and_folds(shards: Path, tmp_path: Path) -> None:
    rows = of_shards(shards)
    clean = verdicts(as_csv(rows, tmp_path), tmp_path, shards)
    for rule_id in ("patient-overlap", "patient-alias", "duplicate-exact", "folds-official"):
        assert clean[rule_id] == ["passed"], rule_id
    rows["patient_id"] = "nobody"  # the shards know better
    assert verdicts(as_csv(rows, tmp_path), tmp_path, shards)["patient-overlap"] == ["passed"]
    rows.loc[rows.index[rows["split"] == "test"][0], "split"] = "train"
    moved = verdicts(as_csv(rows, tmp_path), tmp_path, shards)
    assert "violated" in moved["folds-official"]
    assert "violated" in moved["patient-overlap"]


def test_a_record_that_the_shards_lack_is_named(shards: Path, tmp_path: Path) -> None:
    rows = of_shards(shards)
    rows.loc[rows.index[3], "record_id"] = "stranger"
    findings = audit_table(read_prediction_table(as_csv(rows, tmp_path)), shards, tmp_path)
    for rule_id in ("duplicate-exact", "folds-official"):
        found = [f for f in findings if f.rule_id == rule_id and f.verdict == "not checked"]
        assert [finding.evidence["ids"] for finding in found] == [["stranger"]]


def test_shards_of_other_records_or_none_are_refused(
    shards: Path, rows: pd.DataFrame, tmp_path: Path
) -> None:
    table = read_prediction_table(as_csv(rows, tmp_path))
    with pytest.raises(DataError, match="none of its records is in the shards"):
        audit_table(table, shards, tmp_path)
    with pytest.raises(SettingsError, match="make_shards"):
        audit_table(table, tmp_path, tmp_path)


def test_figures_are_those_of_the_bootstrap_over_patients(
    rows: pd.DataFrame, tmp_path: Path
) -> None:
    table = read_prediction_table(as_csv(rows, tmp_path))
    found = measure(table).set_index(["split", "metric"])
    test = rows[rows["split"] == "test"]
    expected = bootstrap_interval(
        "macro_auroc",
        test[[f"target_{label}" for label in LABELS]].to_numpy(),
        test[[f"probability_{label}" for label in LABELS]].to_numpy(),
        test["patient_id"].to_numpy(dtype=str),
    )
    own = found.loc[("test", "macro_auroc")]
    assert (own["point"], own["low"], own["high"]) == pytest.approx(
        (expected.point, expected.low, expected.high), abs=1e-12
    )
    assert own["n_patients"] == test["patient_id"].nunique()
    assert "f1_MI" not in found.loc["test"].index  # no decisions, no F1


def test_the_page_shows_figures_beside_the_verdict(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows = rows.assign(resampling_unit="record", interval_low_macro_auroc=0.1, nonsense=1)
    rows = rows.assign(interval_high_macro_auroc=0.2, site="<script>alert(1)</script>")
    table = read_prediction_table(as_csv(rows, tmp_path))
    audit_table(table, None, tmp_path)
    written = write_audit(table, "", tmp_path)
    page = written.page.read_text()
    assert "<script>" not in page
    assert 'class="verdict weakened">violated: interval-excludes-point (weakens)' in page
    assert 'class="finding weakened"' in page
    assert "nonsense" in page
    assert "nonsense" in written.table
    own = pd.read_csv(tmp_path / "figures.csv").set_index(["split", "metric"])
    assert f"{own.loc[('test', 'macro_auroc'), 'point']:.3f}" in page
    first = written.page.read_bytes()
    assert write_audit(table, "", tmp_path).page.read_bytes() == first


def job(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "jobs" / "audit.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_the_job_exits_as_it_says(rows: pd.DataFrame, tmp_path: Path) -> None:
    as_csv(rows, tmp_path)
    clean = job("--predictions", "predictions.csv", "--out", "a", "--strict", cwd=tmp_path)
    assert (clean.returncode, clean.stderr) == (0, "")
    assert "patient-overlap" in clean.stdout
    assert sorted(p.name for p in (tmp_path / "a").iterdir() if p.name[0] != ".") == [
        "figures.csv",
        "findings.json",
        "index.html",
    ]
    first = (tmp_path / "a" / "findings.json").read_bytes()
    as_csv(rows.assign(threshold_source="test"), tmp_path, "leaky.csv")
    for strict, status in (([], 0), (["--strict"], 3)):
        found = job("--predictions", tmp_path / "leaky.csv", "--out", "a", *strict, cwd=tmp_path)
        assert found.returncode == status, found.stderr
    job("--predictions", "predictions.csv", "--out", "a", cwd=tmp_path)
    assert (tmp_path / "a" / "findings.json").read_bytes() == first
    for arguments, status in (
        (["--predictions", "predictions.csv"], 2),
        (["--rules", "--strict"], 2),
        (["--predictions", "nowhere.csv", "--out", "b"], 2),
        (["--predictions", "a/findings.json", "--out", "b"], 1),
    ):
        found = job(*arguments, cwd=tmp_path)
        assert found.returncode == status
        assert len(found.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "b").exists()


def test_errors_are_the_house_s_own(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text(json.dumps({"a": 1}))
    with pytest.raises(RayecgError):
        read_prediction_table(tmp_path / "predictions.csv")


def test_stated_aliases_are_one_person(rows: pd.DataFrame, tmp_path: Path) -> None:
    sides = rows.groupby("split")["patient_id"].first()
    table = read_prediction_table(as_csv(rows, tmp_path))
    group = (sides["train"], sides["test"])
    for aliases, verdict in ([], "not checked"), ([group], "violated"), ([("a", "b")], "passed"):
        found = audit_table(table, None, tmp_path, aliases)
        assert [f.verdict for f in found if f.rule_id == "patient-alias"] == [verdict]


def test_an_archive_that_is_known_by_its_ids_brings_its_aliases(tmp_path: Path) -> None:
    ids = ["100", "103", "105", "106", "201", "202", "203", "205", "207", "208"]
    rows = prediction_rows(10).assign(record_id=ids, patient_id=ids)
    rows["split"] = ["test" if one in ("100", "103", "105", "202") else "train" for one in ids]
    assert verdicts(as_csv(rows, tmp_path), tmp_path)["patient-alias"] == ["violated"]
    rows.loc[rows["record_id"] == "202", "split"] = "train"
    assert verdicts(as_csv(rows, tmp_path), tmp_path)["patient-alias"] == ["passed"]


def test_a_site_that_gives_labels_away_is_seen_in_a_table(tmp_path: Path) -> None:
    rows = prediction_rows(400)
    rng = np.random.default_rng(0)
    rows["site"] = rng.choice(["a", "b"], len(rows))
    assert verdicts(as_csv(rows, tmp_path), tmp_path)["metadata-shortcut"] == ["passed"]
    told = rng.random(len(rows)) < 0.95
    rows["site"] = np.where(told, np.where(rows["target_MI"] == 1, "a", "b"), rows["site"])
    assert set(verdicts(as_csv(rows, tmp_path), tmp_path)["metadata-shortcut"]) == {"violated"}
