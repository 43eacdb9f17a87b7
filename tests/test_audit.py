"""Every rule of the audit: a clean benchmark passes, a planted fault fires, lost evidence is no pass."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_benchmark import RUNS, edit_json, edit_table, write_benchmark

from rayecg.audit.catalogue import RULES, load_rule
from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import MOST_IDS, Finding, Rule
from rayecg.audit.run import audit
from rayecg.core.errors import SettingsError
from rayecg.core.files import read_json

BY_RUN = ("threshold-on-test", "calibrator-on-test", "selection-on-test", "fit-outside-training")


@pytest.fixture(scope="module")
def clean_recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("audit") / "recordings")


@pytest.fixture(scope="module")
def clean_beats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("audit") / "beats", "beats")


@pytest.fixture
def recordings(clean_recordings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_recordings, tmp_path / "copy"))


@pytest.fixture
def beats(clean_beats: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean_beats, tmp_path / "copy"))


def check(out: Path, rule_id: str) -> list[Finding]:
    return load_rule(rule_id)(Evidence(out / "work"))


def one(out: Path, rule_id: str, verdict: str) -> Finding:
    found = [finding for finding in check(out, rule_id) if finding.verdict == verdict]
    assert len(found) == 1, [(f.verdict, f.evidence) for f in check(out, rule_id)]
    return found[0]


def edit_examples(out: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    edit_table(out / "work" / "examples.parquet", edit)


def put(out: Path, column: str, value: Any, rows: Callable[[pd.DataFrame], Any]) -> None:
    """Overwrite a column of the examples."""

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[rows(table), column] = value
        return table

    edit_examples(out, edit)


def put_in_shards(out: Path, record_id: str, column: str, value: Any) -> None:
    def edit(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[table["record_id"] == record_id, column] = value
        return table

    for file in (out / "work" / "shards" / "records").glob("*.parquet"):
        edit_table(file, edit)


def card(out: Path, run: str) -> Path:
    return out / "work" / "train" / run / "checkpoint" / "card.json"


def test_catalogue_names_rules_that_say_what_they_are() -> None:
    for rule_id in RULES:
        rule = load_rule(rule_id)
        assert isinstance(rule, Rule)
        assert rule.rule_id == rule_id
        assert min(map(len, (rule.title, rule.rationale, rule.source))) > 20
    with pytest.raises(SettingsError, match="patient-overlap"):
        load_rule("patient-overlapp")


@pytest.mark.parametrize("rule_id", list(RULES))
@pytest.mark.parametrize("kind", ["recordings", "beats"])
def test_clean_benchmark_passes(kind: str, rule_id: str, request: pytest.FixtureRequest) -> None:
    findings = check(request.getfixturevalue(f"clean_{kind}"), rule_id)
    assert [finding.verdict for finding in findings] == ["passed"]
    assert findings[0].taints == ()


@pytest.mark.parametrize("rule_id", list(RULES))
def test_missing_evidence_is_not_checked(rule_id: str, tmp_path: Path) -> None:
    findings = check(tmp_path, rule_id)
    assert {finding.verdict for finding in findings} == {"not checked"}
    assert all("test" in finding.taints for finding in findings)


def test_damaged_evidence_is_not_checked(recordings: Path) -> None:
    for file in recordings.rglob("*.*"):
        if file.is_file():
            file.write_bytes(b"{")
    findings = audit(recordings / "work", recordings)
    assert [finding.rule_id for finding in findings] == list(RULES)
    assert {finding.verdict for finding in findings} == {"not checked"}
    assert str(recordings) not in str(findings)
    assert len(read_json(recordings / "findings.json", list)) == len(RULES)


@pytest.mark.parametrize("fold", [None, 0])
@pytest.mark.parametrize(
    ("name", "rules"),
    [
        (
            "examples.parquet",
            {*RULES}
            - {"selection-on-test", "fit-outside-training", "batch-dependence"}
            - {"test-looks", "interval-excludes-point", "archive-version"},
        ),
        ("task.json", {"patient-alias", "test-looks"}),
    ],
)
def test_one_damaged_file_leaves_the_other_rules_checked(
    recordings: Path, name: str, rules: set[str], fold: int | None
) -> None:
    """The file may be one that folds share."""
    edit_examples(recordings, lambda table: table.assign(fold=fold))
    for file in (recordings / "work").rglob("run.json"):
        edit_json(file, lambda tree: tree.update(fold=fold))
    (recordings / "work" / name).write_bytes(b"junk")
    findings = audit(recordings / "work", recordings)
    open_ones = {f.rule_id for f in findings if f.verdict == "not checked"}
    assert open_ones == rules
    assert {f.verdict for f in findings} == {"passed", "not checked"}


def test_patient_on_two_sides_fires(recordings: Path) -> None:
    # Patient p19 stands in fold 10 with three recordings.
    put_in_shards(recordings, "r000", "patient_id", "p19")
    found = one(recordings, "patient-overlap", "violated")
    assert found.evidence["ids"] == ["p19"]
    assert found.evidence["sides"] == ["train", "test"]
    assert (found.evidence["n_examples"], found.evidence["of"]) == (3, 6)
    assert found.taints == ("test",)


def test_patient_in_training_and_validation_taints_validation(recordings: Path) -> None:
    put_in_shards(recordings, "r000", "patient_id", "p16")
    found = one(recordings, "patient-overlap", "violated")
    assert found.evidence["sides"] == ["train", "validation"]
    assert found.taints == ("validation",)


def test_record_without_patient_is_not_a_pass(recordings: Path) -> None:
    put_in_shards(recordings, "r000", "patient_id", None)
    found = check(recordings, "patient-overlap")
    assert [finding.verdict for finding in found] == ["not checked"]
    assert found[0].evidence["n"] == 1


def test_many_patients_are_counted_and_few_named(recordings: Path) -> None:
    put(recordings, "split", "test", lambda t: t.index % 2 == 0)
    put(recordings, "split", "train", lambda t: t.index % 2 == 1)
    files = (recordings / "work" / "shards" / "records").glob("*.parquet")

    def pair(table: pd.DataFrame) -> pd.DataFrame:
        table["patient_id"] = [f"q{int(i[1:]) // 2}" for i in table["record_id"]]
        return table

    for file in files:
        edit_table(file, pair)
    found = one(recordings, "patient-overlap", "violated")
    assert found.evidence["n"] == 30
    assert len(found.evidence["ids"]) == MOST_IDS


def test_alias_on_two_sides_fires(beats: Path) -> None:
    edit_json(beats / "work" / "task.json", lambda task: task.update(aliases=[["101", "103"]]))
    found = one(beats, "patient-alias", "violated")
    assert found.evidence["ids"] == ["101 = 103"]
    assert found.taints == ("test",)
    assert one(beats, "patient-overlap", "passed")


def test_alias_of_the_customary_mitbih_split_fires(beats: Path) -> None:
    """The man of records 201 (DS1) and 202 (DS2), with the task as it is."""
    edit_examples(
        beats,
        lambda t: t.assign(
            record_id=t["record_id"].replace({"101": "201", "103": "202"}),
            patient_id=t["patient_id"].replace({"101": "201", "103": "202"}),
        ),
    )
    found = one(beats, "patient-alias", "violated")
    assert found.evidence["ids"] == ["201 = 202"]
    assert "201 = 202" in found.evidence["text"]


def test_beats_of_one_record_on_two_sides_fire(beats: Path) -> None:
    put(beats, "split", "test", lambda t: (t["record_id"] == "101") & (t["offset"] > 3000))
    found = one(beats, "record-astride", "violated")
    assert found.evidence["ids"] == ["101"]
    assert found.taints == ("test",)


@pytest.mark.parametrize("waveform", ["f" * 64, "flat"])
def test_same_waveform_on_two_sides_fires(recordings: Path, waveform: str) -> None:
    for record_id in ("r000", "r018"):
        put_in_shards(recordings, record_id, "waveform_sha256", waveform)
    found = one(recordings, "duplicate-exact", "violated")
    assert found.evidence["ids"] == ["r000 = r018"]
    assert found.taints == ("test",)


def test_same_waveform_on_one_side_passes(recordings: Path) -> None:
    for record_id in ("r000", "r002"):
        put_in_shards(recordings, record_id, "waveform_sha256", "f" * 64)
    assert one(recordings, "duplicate-exact", "passed")


def test_split_unlike_the_archives_fires(recordings: Path) -> None:
    put(recordings, "split", "train", lambda t: t["record_id"] == "r018")
    found = one(recordings, "folds-official", "violated")
    assert found.evidence["ids"] == ["r018"]
    assert found.taints == ("test",)


def test_test_records_left_out_fire(beats: Path) -> None:
    put(beats, "split", "none", lambda t: t["record_id"] == "100")
    put(beats, "reason", "outside the protocol", lambda t: t["record_id"] == "100")
    found = one(beats, "folds-official", "violated")
    assert found.evidence["ids"] == ["100"]


def test_changed_fold_fires(recordings: Path) -> None:
    put(recordings, "strat_fold", 3, lambda t: t["record_id"] == "r000")
    found = one(recordings, "folds-official", "violated")
    assert found.evidence["ids"] == ["r000"]
    assert "strat_fold" in found.evidence["text"]


def test_archive_without_a_split_is_not_checked(recordings: Path) -> None:
    manifest = recordings / "work" / "shards" / "manifest.json"
    edit_json(manifest, lambda tree: tree.update(official_split=None))
    assert one(recordings, "folds-official", "not checked")


@pytest.mark.parametrize(
    ("rule_id", "section", "key", "value"),
    [
        ("threshold-on-test", "operating_point", "split", "test"),
        ("threshold-on-test", "operating_point", "n_examples", 5),
        ("selection-on-test", "training", "selection", {"metric": "macro_auroc", "split": "test"}),
        ("fit-outside-training", "training", "class_weights", {"split": "all", "values": []}),
    ],
)
def test_card_that_used_other_data_fires(
    recordings: Path, rule_id: str, section: str, key: str, value: Any
) -> None:
    edit_json(card(recordings, "deep-seed0"), lambda tree: tree[section].update({key: value}))
    found = one(recordings, rule_id, "violated")
    assert found.taints == ("run:deep-seed0",)
    assert found.evidence["ids"] == ["deep-seed0"]
    assert one(recordings, rule_id, "passed").evidence["n"] == len(RUNS) - 1


@pytest.mark.parametrize("rule_id", BY_RUN)
def test_run_without_card_is_not_checked(recordings: Path, rule_id: str) -> None:
    card(recordings, "deep-seed0").unlink()
    edit_json(card(recordings, "wide-seed0"), dict.clear)
    found = one(recordings, rule_id, "not checked")
    assert found.taints == ("run:deep-seed0", "run:wide-seed0")


def test_validation_on_test_examples_fires(recordings: Path) -> None:
    """The card's word is held against the examples that the run lists."""
    file = recordings / "work" / "train" / "deep-seed0" / "validation.parquet"
    edit_table(
        file, lambda table: table.assign(record_id=table["record_id"].replace("r016", "r018"))
    )
    assert one(recordings, "threshold-on-test", "violated").evidence["ids"] == ["deep-seed0"]


def test_validation_example_that_cannot_be_prepared_is_no_violation(recordings: Path) -> None:
    run = recordings / "work" / "train" / "deep-seed0"
    edit_table(run / "validation.parquet", lambda table: table.iloc[1:])
    edit_json(card(recordings, "deep-seed0"), lambda t: t["operating_point"].update(n_examples=5))
    assert one(recordings, "threshold-on-test", "passed")


def test_runs_of_an_earlier_experiment_are_left_alone(recordings: Path) -> None:
    edit_json(
        card(recordings, "deep-seed0"), lambda tree: tree["operating_point"].update(split="test")
    )
    edit_json(recordings / "work" / "runs.json", lambda runs: runs.remove("deep-seed0"))
    assert one(recordings, "threshold-on-test", "passed").evidence["n"] == len(RUNS) - 1


def test_findings_are_written_whole(recordings: Path, tmp_path: Path) -> None:
    put_in_shards(recordings, "r000", "patient_id", "p19")
    findings = audit(recordings / "work", tmp_path / "elsewhere")
    written = read_json(tmp_path / "elsewhere" / "findings.json", list)
    assert len(written) == len(findings) >= len(RULES)
    assert {row["rule_id"] for row in written} == set(RULES)
    assert [row["verdict"] for row in written].count("violated") == 1
    for row in written:
        assert {"rule_id", "verdict", "severity", "evidence", "taints"} <= set(row)
        assert row["evidence"]["text"]
    first = (tmp_path / "elsewhere" / "findings.json").read_bytes()
    audit(recordings / "work", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "findings.json").read_bytes() == first


def test_audit_and_report_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, rayecg.audit.run, rayecg.report.write, rayecg.report.waveforms\n"
        "from rayecg.audit.catalogue import RULES, load_rule\n"
        "[load_rule(rule) for rule in RULES]\n"
        "print(sorted({'torch', 'ray'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
