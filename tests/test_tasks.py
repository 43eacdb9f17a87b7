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
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchiveSettings, TaskSettings
from rayecg.core.settings import to_tree
from rayecg.metrics import classification
from rayecg.tasks.split import SPLITS
from rayecg.tasks.task import (
    Task,
    build_task,
    example_table,
    load_task,
    target_matrix,
    task_names,
)

PTBXL, MITBIH = TaskSettings("ptbxl_superdiagnostic"), TaskSettings("mitbih_aami5")
#: How many labels each task of PTB-XL's statements has, as Strodthoff et al. 2021 count them.
N_STATEMENT_LABELS = {
    "superdiagnostic": 5,
    "subdiagnostic": 23,
    "diagnostic": 44,
    "form": 19,
    "rhythm": 12,
    "all": 71,
}


def index_row(**values) -> dict:
    row = {"record_id": "1", "patient_id": "1", "strat_fold": 1, "codes": [], "likelihoods": None}
    return row | values


def examples_of(task: Task, *rows: dict) -> list[dict]:
    return example_table(task, pa.Table.from_pylist(list(rows))).to_pylist()


def label_of(task: Task) -> dict[str, str]:
    """Give the label that each code makes."""
    return {code: label for label, codes in task.labels.items() for code in codes.any}


def targets(task: Task, codes: list[str], likelihoods: list[float] | None = None) -> list[int]:
    [example] = examples_of(task, index_row(codes=codes, likelihoods=likelihoods))
    return [example[f"target_{name}"] for name in task.label_names]


@pytest.fixture(scope="module")
def statements(data_folder) -> pd.DataFrame:
    return pd.read_csv(data_folder / "ptb-xl" / "scp_statements.csv", index_col=0)


@pytest.fixture(scope="module")
def ptbxl(data_folder) -> pa.Table:
    return open_archive(ArchiveSettings("ptbxl", str(data_folder / "ptb-xl"), rate=500)).index()


@pytest.fixture(scope="module")
def mitbih(data_folder) -> pa.Table:
    rows = []
    for file in sorted((data_folder / "mitdb").glob("*.atr")):
        times, symbols = read_beats(file.with_suffix(""), 650_000)
        row = {"record_id": file.stem, "patient_id": file.stem}
        rows.append(index_row(**row, beat_times=times.tolist(), beat_symbols=symbols))
    return pa.Table.from_pylist(rows)


@pytest.mark.parametrize("name", task_names())
def test_every_task(name):
    task = load_task(TaskSettings(name))
    assert task.name == name
    assert task.version >= 1
    assert task.title
    assert set(task.archives) <= set(ARCHIVES)
    assert callable(getattr(classification, task.primary_metric))
    assert all(getattr(task.split, split) for split in SPLITS)
    assert task.split.fold is None
    assert name.partition("_")[0] in task.archives
    assert build_task(to_tree(task), "the tree of a task") == task
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
    assert set(task.codes) <= BEAT_SYMBOLS
    assert task.label_names == ("N", "S", "V", "F", "Q")
    for symbol, label in (("L", "N"), ("e", "N"), ("J", "S"), ("E", "V"), ("/", "Q"), ("F", "F")):
        assert label_of(task)[symbol] == label


@pytest.mark.parametrize(("name", "labels"), [("mitbih_aami4", "NSVF"), ("mitbih_aami3", "NSV")])
def test_smaller_label_spaces_of_beats_leave_classes_out(name, labels):
    whole, task = load_task(MITBIH), load_task(TaskSettings(name))
    assert task.labels == {label: whole.labels[label] for label in labels}
    assert (task.split, task.aliases, task.kind) == (whole.split, whole.aliases, whole.kind)
    row = {"beat_times": [1, 2, 3], "beat_symbols": ["V", "F", "Q"]}
    found = [e["split"] for e in examples_of(task, index_row(record_id="101", **row))]
    assert found == ["train", "train" if "F" in labels else "none", "none"]


def test_the_intra_patient_task_says_that_it_leaks():
    whole, task = load_task(MITBIH), load_task(TaskSettings("mitbih_aami5_intra"))
    assert (task.labels, task.aliases, task.kind) == (whole.labels, whole.aliases, whole.kind)
    assert "leaky by design" in task.title
    assert "leaky" in task.split.name
    assert to_tree(task)["split"]["leaky"] is True
    assert [n for n in task_names() if load_task(TaskSettings(n)).split.leaky] == [task.name]


def test_the_challenge_has_26_diagnoses_of_30_codes():
    task = load_task(TaskSettings("cinc_snomed"))
    assert len(task.label_names) == 26
    assert len(task.codes) == 30
    assert all(code.isdecimal() for code in task.codes)
    joined = [label for label, codes in task.labels.items() if len(codes.any) == 2]
    assert joined == ["CLBBB", "CRBBB", "PAC", "PVC"]


def expected_labels(statements: pd.DataFrame, name: str) -> dict[str, set[str]]:
    """Give the labels that the publisher's table makes of its statements."""
    if name == "all":
        return {code: {code} for code in statements.index}
    kind = "diagnostic" if name.endswith("diagnostic") else name
    chosen = statements[statements[kind] == 1]
    column = {"superdiagnostic": "diagnostic_class", "subdiagnostic": "diagnostic_subclass"}
    by = chosen[column[name]] if name in column else chosen.index
    return {label: set(codes) for label, codes in chosen.groupby(by).groups.items()}


@pytest.mark.parametrize("name", N_STATEMENT_LABELS)
def test_the_labels_of_ptbxl_are_the_publishers(name, statements):
    task = load_task(TaskSettings(f"ptbxl_{name}"))
    expected = expected_labels(statements, name)
    assert {label: set(codes.any) for label, codes in task.labels.items()} == expected
    assert not any(codes.none for codes in task.labels.values())
    assert len(expected) == N_STATEMENT_LABELS[name]


@pytest.mark.parametrize("name", [name for name in N_STATEMENT_LABELS if name != "all"])
def test_the_statements_of_the_synthetic_archive_make_the_same_labels(name):
    task = load_task(TaskSettings(f"ptbxl_{name}"))
    for label, codes in expected_labels(statement_table(), name).items():
        assert {label_of(task)[code] for code in codes} == {label}
    assert set(statement_table().index) <= set(load_task(TaskSettings("ptbxl_all")).codes)


def test_a_statement_of_two_kinds_counts_in_both():
    for name in ("ptbxl_diagnostic", "ptbxl_form"):
        [example] = examples_of(load_task(TaskSettings(name)), index_row(codes=["NDT"]))
        assert (example["target_NDT"], example["split"]) == (1, "train")


def test_the_five_most_frequent_diagnostic_statements(ptbxl, statements):
    task = load_task(TaskSettings("ptbxl_top5"))
    counts = Counter(code for codes in ptbxl["codes"].to_pylist() for code in codes)
    diagnostic = [code for code, _ in counts.most_common() if statements["diagnostic"][code] == 1]
    assert set(task.label_names) == {"NORM", "IMI", "ASMI", "LVH", "NDT"}
    # The subset of the tests is no random one: its ranks may differ a little from the whole's.
    assert set(task.label_names) <= set(diagnostic[:6])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("ptbxl_mi_vs_norm", {"NORM": 0, "MI": 1, "MI CD": 1}),
        ("ptbxl_norm_vs_abnormal", {"NORM": 0, "MI": 1, "MI CD": 1, "CD": 1, "HYP STTC": 1}),
    ],
)
def test_binary_tasks_hold_who_is_clearly_on_one_side(name, expected, ptbxl, statements):
    """Against the sets of superclasses that the publisher's table gives."""
    task = load_task(TaskSettings(name))
    class_of = statements["diagnostic_class"].dropna().to_dict()
    assert set(task.codes) == set(class_of)
    examples = example_table(task, ptbxl).to_pylist()
    seen = Counter()
    for example, codes in zip(examples, ptbxl["codes"].to_pylist(), strict=True):
        classes = {class_of[code] for code in codes if code in class_of}
        if classes == {"NORM"}:
            wanted: int | None = 0
        elif "NORM" in classes or not classes:
            wanted = None
        else:
            wanted = 1 if "abnormal" in name or "MI" in classes else None
        assert example[f"target_{task.label_names[0]}"] == (wanted or 0)
        assert (example["split"] == "none") == (wanted is None)
        assert example["reason"] == ("no label of the task" if wanted is None else None)
        seen[wanted] += 1
    assert min(seen[0], seen[1], seen[None]) > 100
    one_of = {"NORM": "NORM", "MI": "IMI", "CD": "LAFB", "HYP": "LVH", "STTC": "NDT"}
    for classes, target in expected.items():
        codes = [one_of[one] for one in classes.split()]
        assert targets(task, codes) == [target]


def test_records_of_ptbxl(ptbxl):
    task = load_task(PTBXL)
    examples = example_table(task, ptbxl)
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


def test_beats_of_mitbih(mitbih):
    """All annotated beats: the 90125 N, 2781 S, 7009 V, 803 F and 15 Q quoted for DS1 and DS2."""
    task = load_task(MITBIH)
    counts: dict[str, Counter] = {"none": Counter(), **{name: Counter() for name in SPLITS}}
    examples = example_table(task, mitbih).to_pylist()
    for example in examples:
        label = next((n for n in task.label_names if example[f"target_{n}"]), "unlabelled")
        counts[example["split"]][label] += 1
    assert len(examples) == 109_494
    development = counts["train"] + counts["validation"]
    assert development == {"N": 45866, "S": 944, "V": 3788, "F": 415, "Q": 8}
    assert counts["test"] == {"N": 44259, "S": 1837, "V": 3221, "F": 388, "Q": 7}
    assert all(counts["validation"][name] > 20 for name in "NSVF")
    # The four paced records belong to no split, and are counted.
    assert counts["none"].total() == 109_494 - development.total() - counts["test"].total() == 8761


def test_targets_follow_the_minimum_likelihood():
    codes, likelihoods = ["NORM", "IMI", "SR", "ASMI", "LVH"], [80.0, 35.0, 0.0, 50.0, 0.0]
    task = load_task(PTBXL)
    assert targets(task, codes, likelihoods) == [1, 1, 0, 0, 1]
    strict = load_task(TaskSettings(PTBXL.name, minimum_likelihood=50.0))
    assert targets(strict, codes, likelihoods) == [1, 1, 0, 0, 0]
    assert targets(strict, ["IMI"], [49.9]) == [0, 0, 0, 0, 0]
    assert targets(strict, ["IMI"], None) == [0, 1, 0, 0, 0]


def test_a_statement_below_the_minimum_likelihood_excludes_nobody():
    named = "ptbxl_norm_vs_abnormal"
    row = index_row(codes=["NORM", "IMI"], likelihoods=[80.0, 15.0])
    [both] = examples_of(load_task(TaskSettings(named)), row)
    assert both["reason"] == "no label of the task"
    [alone] = examples_of(load_task(TaskSettings(named, minimum_likelihood=50.0)), row)
    assert (alone["split"], alone["target_ABNORMAL"]) == ("train", 0)
    row = index_row(codes=["NORM", "IMI"], likelihoods=[15.0, 80.0])
    [other] = examples_of(load_task(TaskSettings(named, minimum_likelihood=50.0)), row)
    assert (other["split"], other["target_ABNORMAL"]) == ("train", 1)


def test_an_experiment_may_choose_another_primary_metric():
    assert load_task(TaskSettings(PTBXL.name, primary_metric="macro_auprc")).primary_metric == (
        "macro_auprc"
    )
    with pytest.raises(SettingsError, match=r"primary_metric: expected one of macro_auroc, .*'f2'"):
        load_task(TaskSettings(PTBXL.name, primary_metric="f2"))


def test_records_without_a_label_keep_their_row_with_the_reason():
    task = load_task(PTBXL)
    labelled, unlabelled, outside, nothing = examples_of(
        task,
        index_row(strat_fold=9, codes=["NORM"], likelihoods=[100.0]),
        index_row(codes=["SR"], likelihoods=[0.0]),
        index_row(strat_fold=11, codes=["NORM"], likelihoods=[1.0]),
        index_row(strat_fold=None, codes=None, likelihoods=None),
    )
    found = (labelled["split"], labelled["reason"], labelled["target_NORM"])
    assert found == ("validation", None, 1)
    assert (unlabelled["split"], unlabelled["reason"]) == ("none", "no label of the task")
    assert (outside["split"], outside["reason"]) == ("none", "outside the protocol")
    assert (nothing["split"], nothing["reason"]) == ("none", "outside the protocol")


def test_each_beat_is_an_example():
    row = index_row(record_id="100", beat_times=[5, 400, 900], beat_symbols=["N", "V", "?"])
    examples = examples_of(load_task(MITBIH), row)
    assert [example["offset"] for example in examples] == [5, 400, 900]
    assert [example["split"] for example in examples] == ["test", "test", "none"]
    assert [example["target_V"] for example in examples] == [0, 1, 0]
    assert examples_of(load_task(MITBIH), index_row(beat_times=None, beat_symbols=None)) == []


def test_lists_of_a_record_that_do_not_fit_are_refused():
    rows = [
        index_row(record_id="100", beat_times=[5, 400], beat_symbols=["N", "V"]),
        index_row(record_id="101", beat_times=[5], beat_symbols=["N", "V"]),
    ]
    with pytest.raises(DataError, match="record 101: expected 2 items in beat_times, came 1"):
        examples_of(load_task(MITBIH), *rows)
    with pytest.raises(DataError, match="record 1: expected 1 items in likelihoods, came 0"):
        examples_of(load_task(PTBXL), index_row(codes=["NORM"], likelihoods=[]))


def test_examples_do_not_depend_on_how_the_records_are_cut(mitbih, ptbxl):
    for task, records in ((load_task(MITBIH), mitbih), (load_task(PTBXL), ptbxl)):
        whole = example_table(task, records)
        parts = [example_table(task, records.slice(i, 7)) for i in range(0, 42, 7)]
        assert pa.concat_tables(parts).equals(whole.slice(0, sum(map(len, parts))))


@pytest.mark.parametrize("name", ["ptbxl_all", "ptbxl_top5", "ptbxl_mi_vs_norm"])
def test_labels_that_never_occur_have_no_metrics(name):
    task = load_task(TaskSettings(name))
    targets_NC = np.zeros((4, len(task.label_names)))
    targets_NC[::2, 0] = 1
    shape = targets_NC.shape
    found = classification.evaluate(
        targets_NC, np.full(shape, 0.5), np.ones(shape, dtype=bool), task.label_names
    )
    assert found[f"auroc_{task.label_names[0]}"] == found["macro_auroc"] == 0.5
    for label in task.label_names[1:]:
        assert np.isnan(found[f"auroc_{label}"])
        assert found[f"n_positive_{label}"] == 0


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
        ({"labels": {"A": ["x"], "B": {"any": ["y", "x"]}}}, "'x' stands under two labels"),
        ({"labels": {"A": {"any": ["x"], "none": ["x"]}}}, "'x' stands under any and under none"),
        ({"labels": {"A": {"none": ["x"]}}}, "labels.A: .*missing 1 required .* 'any'"),
        ({"labels": {"A": []}}, "labels.A: any: expected at least one code"),
        ({"labels": {"A": "x"}}, "labels.A: expected a section of keys and values, came 'x'"),
        ({"labels": {"A": [1]}}, r"labels.A.any\[0\]: expected text, came 1"),
        ({"labels": {}}, "labels: expected at least one"),
        ({"labels": None}, "labels: expected a section"),
        ({"negatives": ["x"]}, "negatives: expected a section"),
        ({"kind": "multiclass", "negatives": {"any": ["z"]}}, "negatives: expected of multilabel"),
        ({"kind": "regression"}, "task.kind|kind: expected one of multilabel, multiclass"),
        ({"unit": "window"}, "unit: expected one of record, beat"),
        ({"version": "one"}, "version: expected a whole number"),
        ({"primary_metric": "auc"}, "primary_metric: expected one of .*, came 'auc'"),
        ({"lables": {}}, r"unknown key 'lables' \(nearest: labels"),
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
    assert build_task(tree, "task mine").label_names == ("A", "B")
    with pytest.raises(SettingsError, match=expected):
        build_task(tree | change, "task mine")
