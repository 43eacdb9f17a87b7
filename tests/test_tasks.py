"""Tasks: label spaces as their publishers define them, and who belongs where."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayecg.archives.catalogue import ARCHIVES, open_archive
from rayecg.archives.mitbih import BEAT_SYMBOLS, DS1, DS2, MitBih, read_beats
from rayecg.archives.ptbxl import PtbXl
from rayecg.archives.synthetic_labels import statement_table
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ArchiveSettings, TaskSettings
from rayecg.core.settings import build
from rayecg.metrics import classification
from rayecg.tasks.task import (
    SPLITS,
    Split,
    Task,
    example_rows,
    example_table,
    load_task,
    target_matrix,
    task_names,
)

PTBXL, MITBIH = TaskSettings("ptbxl_superdiagnostic"), TaskSettings("mitbih_aami5")


def split_values(split: Split) -> list:
    return [value for name in SPLITS for value in getattr(split, name)]


def index_row(**values) -> dict:
    row = {"record_id": "1", "patient_id": "1", "strat_fold": 1, "codes": [], "likelihoods": []}
    return row | values


@pytest.mark.parametrize("name", task_names())
def test_every_task(name):
    task = load_task(TaskSettings(name))
    assert task.name == name
    assert task.version >= 1
    assert task.title
    assert set(task.archives) <= set(ARCHIVES)
    assert callable(getattr(classification, task.primary_metric))
    assert all(task.labels.values())
    assert len(task.label_of) == sum(len(codes) for codes in task.labels.values())
    values = split_values(task.split)
    assert len(values) == len(set(values))
    assert all(getattr(task.split, split) for split in SPLITS)
    for kind in task.archives:
        assert load_task(TaskSettings(name), kind) == task


def test_splits_are_the_archives_own():
    split, official = load_task(PTBXL).split, PtbXl.official_split
    assert split.by == official["by"]
    assert [list(getattr(split, name)) for name in SPLITS] == [official[name] for name in SPLITS]
    split = load_task(MITBIH).split
    assert split.by == MitBih.official_split["by"]
    assert sorted([*split.train, *split.validation]) == sorted(DS1)
    assert list(split.test) == DS2
    assert len(set(DS1 + DS2)) == 44
    assert not {"102", "104", "107", "217"} & {*DS1, *DS2}  # paced


def test_the_aami_classes_cover_every_beat_symbol_that_ec57_names():
    task = load_task(MITBIH)
    assert set(task.label_of) <= BEAT_SYMBOLS
    assert task.label_names == ("N", "S", "V", "F", "Q")
    for symbol, label in (("L", "N"), ("e", "N"), ("J", "S"), ("E", "V"), ("/", "Q"), ("F", "F")):
        assert task.label_names[task.label_of[symbol]] == label


def test_superclasses_of_the_synthetic_archive_are_the_same():
    task = load_task(PTBXL)
    statements = statement_table()
    diagnostic = statements[statements["diagnostic"] == 1]
    for code, row in diagnostic.iterrows():
        assert task.label_names[task.label_of[code]] == row["diagnostic_class"]
    assert not set(statements.index[statements["diagnostic"] != 1]) & set(task.label_of)


def test_superclasses_are_the_publishers(data_folder):
    statements = pd.read_csv(data_folder / "ptb-xl" / "scp_statements.csv", index_col=0)
    diagnostic = statements[statements["diagnostic"] == 1]
    expected = {code: row["diagnostic_class"] for code, row in diagnostic.iterrows()}
    task = load_task(PTBXL)
    found = {code: label for label, codes in task.labels.items() for code in codes}
    assert found == expected
    assert len(found) == 44


def test_records_of_ptbxl(data_folder):
    archive = open_archive(ArchiveSettings("ptbxl", str(data_folder / "ptb-xl"), rate=500))
    task = load_task(PTBXL)
    examples = example_table(task, archive.index())
    assert examples.num_rows == 2992
    reasons = Counter(examples["reason"].to_pylist())
    assert reasons == {None: 2931, "no label of the task": 61}
    assert Counter(examples["split"].to_pylist()) == {
        "train": 2288,
        "validation": 322,
        "test": 321,
        "none": 61,
    }
    targets_NC = target_matrix(task, examples)
    normal_N = targets_NC[:, task.label_names.index("NORM")] == 1
    assert (normal_N & (targets_NC.sum(axis=1) > 1)).sum() == 67
    folds = {
        split: set(examples.filter(pc.equal(examples["split"], split))["strat_fold"].to_pylist())
        for split in SPLITS
    }
    assert folds == {"train": set(range(1, 9)), "validation": {9}, "test": {10}}


def test_beats_of_mitbih(data_folder):
    """All annotated beats: the 90125 N, 2781 S, 7009 V, 803 F and 15 Q quoted for DS1 and DS2."""
    task = load_task(MITBIH)
    counts: dict[str, Counter] = {"none": Counter(), **{name: Counter() for name in SPLITS}}
    n_beats = 0
    for file in sorted((data_folder / "mitdb").glob("*.atr")):
        times, symbols = read_beats(file.with_suffix(""), 650_000)
        row = index_row(record_id=file.stem, beat_times=times.tolist(), beat_symbols=symbols)
        n_beats += len(times)
        for example in example_rows(task, row):
            label = next((n for n in task.label_names if example[f"target_{n}"]), "unlabelled")
            counts[example["split"]][label] += 1
    assert n_beats == 109_494
    development = counts["train"] + counts["validation"]
    assert development == {"N": 45866, "S": 944, "V": 3788, "F": 415, "Q": 8}
    assert counts["test"] == {"N": 44259, "S": 1837, "V": 3221, "F": 388, "Q": 7}
    assert all(counts["validation"][name] > 20 for name in "NSVF")
    # The four paced records belong to no split, and are counted.
    assert counts["none"].total() == n_beats - development.total() - counts["test"].total() == 8761


def test_targets_follow_the_minimum_likelihood():
    codes, likelihoods = ["NORM", "IMI", "SR", "ASMI", "LVH"], [80.0, 35.0, 0.0, 50.0, 0.0]
    task = load_task(PTBXL)
    assert task.targets(codes, likelihoods).tolist() == [1, 1, 0, 0, 1]
    strict = load_task(TaskSettings(PTBXL.name, minimum_likelihood=50.0))
    assert strict.targets(codes, likelihoods).tolist() == [1, 1, 0, 0, 0]
    assert strict.targets(["IMI"], [49.9]).tolist() == [0, 0, 0, 0, 0]
    assert strict.targets(["IMI"], None).tolist() == [0, 1, 0, 0, 0]


def test_records_without_a_label_keep_their_row_with_the_reason():
    task = load_task(PTBXL)
    [labelled] = example_rows(task, index_row(strat_fold=9, codes=["NORM"], likelihoods=[100.0]))
    assert (labelled["split"], labelled["reason"], labelled["target_NORM"]) == (
        "validation",
        None,
        1,
    )
    [unlabelled] = example_rows(task, index_row(codes=["SR"], likelihoods=[0.0]))
    assert (unlabelled["split"], unlabelled["reason"]) == ("none", "no label of the task")
    [outside] = example_rows(task, index_row(strat_fold=11, codes=["NORM"], likelihoods=[1.0]))
    assert (outside["split"], outside["reason"]) == ("none", "outside the protocol")
    [nothing] = example_rows(task, index_row(strat_fold=None, codes=None, likelihoods=None))
    assert nothing["split"] == "none"


def test_each_beat_is_an_example():
    row = index_row(record_id="100", beat_times=[5, 400, 900], beat_symbols=["N", "V", "?"])
    examples = example_rows(load_task(MITBIH), row)
    assert [example["offset"] for example in examples] == [5, 400, 900]
    assert [example["split"] for example in examples] == ["test", "test", "none"]
    assert [example["target_V"] for example in examples] == [0, 1, 0]
    assert example_rows(load_task(MITBIH), index_row(beat_times=None, beat_symbols=None)) == []


def test_the_table_of_examples_keeps_the_order_of_records():
    task = load_task(PTBXL)
    rows = [
        index_row(record_id=str(i), strat_fold=1 + i % 10, codes=["IMI"], likelihoods=[100.0])
        for i in range(20)
    ]
    examples = example_table(task, pa.Table.from_pylist(rows))
    assert examples["record_id"].to_pylist() == [str(i) for i in range(20)]
    np.testing.assert_array_equal(target_matrix(task, examples), [[0, 1, 0, 0, 0]] * 20)
    assert examples.schema.field("target_MI").type == pa.int8()


def test_wrong_names_are_refused_with_the_nearest():
    with pytest.raises(SettingsError, match=r"no task is named 'ptbxl_super'.*ptbxl_superdiag"):
        load_task(TaskSettings("ptbxl_super"))
    with pytest.raises(SettingsError, match="mitbih_aami5 is defined on mitbih, not on ptbxl"):
        load_task(MITBIH, "ptbxl")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"labels": {"A": ["x"], "B": ["x"]}}, "'x' stands under two labels"),
        ({"kind": "regression"}, "task.kind|kind: expected one of multilabel, multiclass"),
        ({"unit": "window"}, "unit: expected one of record, beat"),
        ({"version": "one"}, "version: expected a whole number"),
        ({"lables": {}}, r"unknown key 'lables' \(nearest: labels"),
        (
            {"split": {"train": [1], "validation": [1], "test": [2]}},
            "strat_fold 1 stands there twice",
        ),
        ({"split": {"train": ["1"], "validation": [2], "test": [3]}}, "expected strat_fold as int"),
        (
            {"split": {"by": "record_id", "train": [101], "validation": ["2"], "test": ["3"]}},
            "expected record_id as str, came 101",
        ),
        (
            {"split": {"by": "site", "train": [1], "validation": [2], "test": [3]}},
            "split.by: expected",
        ),
    ],
)
def test_wrong_task_files_are_refused(change, expected):
    tree = {
        "name": "mine",
        "version": 1,
        "title": "Mine",
        "archives": ["ptbxl"],
        "unit": "record",
        "kind": "multilabel",
        "labels": {"A": ["x"], "B": ["y"]},
        "split": {"name": "s", "by": "strat_fold", "train": [1], "validation": [2], "test": [3]},
        "primary_metric": "macro_auroc",
    }
    assert build(Task, tree, "task mine").label_names == ("A", "B")
    split = tree["split"] | change.get("split", {})
    with pytest.raises(SettingsError, match=expected):
        build(Task, tree | change | {"split": split}, "task mine")
