"""Splits: patients on one side, labels spread evenly, and the protocols that settings ask for."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayecg.archives.mitbih import DS1, DS2
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import SplitSettings, TaskSettings
from rayecg.core.settings import build, to_tree
from rayecg.tasks.split import SPLITS, Split, balanced_groups, splits_of
from rayecg.tasks.task import Task, example_table, load_task

PTBXL, MITBIH, INTRA, CINC = (
    load_task(TaskSettings(name))
    for name in ("ptbxl_superdiagnostic", "mitbih_aami5", "mitbih_aami5_intra", "cinc_snomed")
)
PACED = ["102", "104", "107", "217"]
#: A statement of each superclass, and a rhythm.
CODES = ["NORM", "IMI", "NDT", "LAFB", "LVH", "SR"]
TARGETS = [f"target_{name}" for name in PTBXL.label_names]


def records_of(patients: list[str | None], codes: list[list[str]] | None = None) -> pa.Table:
    """Give PTB-XL records of patients, in folds that put patients on two sides."""
    n = len(patients)
    return pa.table(
        {
            "record_id": [f"r{i}" for i in range(n)],
            "patient_id": pa.array(patients, pa.string()),
            "strat_fold": [1 + i % 10 for i in range(n)],
            "codes": codes or [[CODES[i % 5]] for i in range(n)],
            "likelihoods": pa.nulls(n, pa.list_(pa.float32())),
        }
    )


def many_records(n: int, seed: int = 0) -> pa.Table:
    """Give records of patients with one to nine each, the statements from frequent to rare."""
    rng = np.random.default_rng(seed)
    patients = [str(p) for p in np.repeat(np.arange(n), rng.geometric(0.6, n).clip(max=9))[:n]]
    shares = [0.45, 0.25, 0.2, 0.07, 0.03, 0.05]
    drawn = rng.random((n, len(CODES))) < shares
    return records_of(
        patients, [[c for c, d in zip(CODES, row, strict=True) if d] for row in drawn]
    )


def beats_of(record_ids: list[str], n_beats: int = 40) -> pa.Table:
    """Give beat-wise records, each its own patient, of three classes."""
    n = len(record_ids)
    return pa.table(
        {
            "record_id": record_ids,
            "patient_id": record_ids,
            "strat_fold": pa.nulls(n, pa.int16()),
            "beat_times": [list(range(0, 300 * n_beats, 300))] * n,
            "beat_symbols": [["N", "N", "V", "A"] * (n_beats // 4)] * n,
        }
    )


def tables(task: Task, records: pa.Table, **asked) -> list[pd.DataFrame]:
    """Give the examples of each split of a protocol."""
    splits = splits_of(task, SplitSettings(**asked))
    whole = example_table(task, records, splits).to_pandas()
    n = len(whole) // len(splits)
    return [whole.iloc[i * n : (i + 1) * n] for i in range(len(splits))]


def sides_of(table: pd.DataFrame, by: str) -> dict[str, set[str]]:
    """Give the sides that each value of a column stands on."""
    used = table[table["split"].isin(SPLITS)]
    return {str(value): set(part) for value, part in used.groupby(by)["split"]}


#: At least thirty patients, some with many records, and records without patient.
patient_lists = st.lists(st.sampled_from([*map(str, range(30)), None]), max_size=90).map(
    lambda more: [*map(str, range(30)), *more]
)


@settings(max_examples=25)
@given(
    patients=patient_lists,
    asked=st.just({"protocol": "holdout"})
    | st.builds(lambda k: {"protocol": "kfold", "k": k}, st.integers(3, 6)),
    seed=st.integers(0, 1000),
)
def test_no_patient_stands_on_two_sides(patients, asked, seed):
    records = records_of(patients)
    for table in tables(PTBXL, records, **asked, seed=seed):
        assert all(len(sides) == 1 for sides in sides_of(table, "patient_id").values())
        assert set(table["split"]) == set(SPLITS)
        assert table["reason"].isna().all()


@settings(max_examples=25)
@given(patients=patient_lists, k=st.integers(3, 6), seed=st.integers(0, 1000))
def test_every_patient_is_tested_once_and_validated_once(patients, k, seed):
    found = tables(PTBXL, records_of(patients), protocol="kfold", k=k, seed=seed)
    assert len(found) == k
    for side in ("test", "validation"):
        records = [record for t in found for record in t.loc[t["split"] == side, "record_id"]]
        assert sorted(records) == sorted(f"r{i}" for i in range(len(patients)))
    for this, following in zip(found, [*found[1:], found[0]], strict=True):
        after = set(following.loc[following["split"] == "test", "record_id"])
        assert set(this.loc[this["split"] == "validation", "record_id"]) == after


def test_the_folds_are_numbered_and_one_split_has_none():
    records = many_records(60)
    whole = example_table(PTBXL, records, splits_of(PTBXL, SplitSettings("kfold", k=4)))
    assert whole["fold"].to_pylist() == [fold for fold in range(4) for _ in range(60)]
    assert whole.schema.field("fold").type == pa.int16()
    for protocol in ("task", "holdout"):
        [split] = splits_of(PTBXL, SplitSettings(protocol))
        assert split.fold is None
        assert example_table(PTBXL, records, [split])["fold"].null_count == 60


def test_the_protocol_of_the_task_is_what_a_task_does_by_itself():
    records = many_records(60)
    assert splits_of(PTBXL, SplitSettings()) == (PTBXL.split,)
    own = example_table(PTBXL, records)
    assert own.equals(example_table(PTBXL, records, splits_of(PTBXL, SplitSettings())))
    assert own["split"].to_pylist()[:3] == ["train"] * 3


@pytest.mark.parametrize("protocol", ["kfold", "holdout"])
def test_labels_are_spread_evenly(protocol):
    for table in tables(PTBXL, many_records(3000), protocol=protocol):
        counts = table[table["split"] != "none"].groupby("split")[TARGETS].sum()
        shares = counts / counts.sum()
        expected = [0.2, 0.6, 0.2] if protocol == "kfold" else [0.15, 0.7, 0.15]
        # A thirtieth of a label with 90 records is three of them.
        np.testing.assert_allclose(shares, np.tile(expected, (5, 1)).T, atol=0.03)
        assert (counts > 0).all(axis=None)


def test_records_without_a_label_are_left_out_of_the_draw():
    codes = [["SR"] if i % 3 == 0 else [CODES[i % 5]] for i in range(90)]
    with_them = records_of([str(i) for i in range(90)], codes)
    keep = pa.array([i % 3 != 0 for i in range(90)])
    for table, without in zip(
        tables(PTBXL, with_them, protocol="kfold"),
        tables(PTBXL, with_them.filter(keep), protocol="kfold"),
        strict=True,
    ):
        left_out = table[table["split"] == "none"]
        assert list(left_out["record_id"]) == [f"r{i}" for i in range(0, 90, 3)]
        assert set(left_out["reason"]) == {"no label of the task"}
        used = table[table["split"] != "none"]
        assert list(used["split"]) == list(without["split"])


def test_negatives_of_a_binary_task_are_spread_like_its_positives():
    task = load_task(TaskSettings("ptbxl_mi_vs_norm"))
    for table in tables(task, many_records(2000), protocol="kfold"):
        used = table[table["split"] != "none"]
        counts = used.groupby(["target_MI", "split"]).size().unstack()
        shares = counts.div(counts.sum(axis=1), axis=0)[list(SPLITS)]
        np.testing.assert_allclose(shares, [[0.6, 0.2, 0.2]] * 2, atol=0.01)


@pytest.mark.parametrize("protocol", ["kfold", "holdout", "rotate"])
def test_draws_follow_the_seed_and_not_the_order_of_records(protocol):
    records = many_records(300)
    first, again, other = (
        example_table(PTBXL, records, splits_of(PTBXL, SplitSettings(protocol, seed=seed)))
        for seed in (1, 1, 2)
    )
    assert first.equals(again)
    assert first["split"] != other["split"]
    backwards = records.take(list(range(300))[::-1])
    turned = example_table(PTBXL, backwards, splits_of(PTBXL, SplitSettings(protocol, seed=1)))
    keys = [("fold", "ascending"), ("record_id", "ascending")]
    assert turned.sort_by(keys).equals(first.sort_by(keys))


def test_even_few_unequal_patients_come_in_several_draws():
    count_PC = np.random.default_rng(0).lognormal(3, 2, (22, 5)).round()
    draws = {tuple(pd.factorize(balanced_groups(count_PC, [1] * 5, seed))[0]) for seed in range(9)}
    assert len(draws) > 6


def test_the_largest_group_gets_whoever_holds_nearly_all_of_a_label():
    count_PC = np.array([[90.0, 10.0], *[[1.0, 10.0]] * 10])
    for seed in range(20):
        assert balanced_groups(count_PC, [0.70, 0.15, 0.15], seed)[0] == 0


def test_groups_of_equal_persons_have_the_sizes_that_the_shares_say():
    group_P = balanced_groups(np.ones((200, 1)), [7, 2, 1], seed=3)
    assert np.bincount(group_P).tolist() == [140, 40, 20]


def test_rotation_keeps_the_test_side_and_validates_on_every_other_patient_once():
    records = beats_of([*DS1, *DS2, *PACED])
    found = tables(MITBIH, records, protocol="rotate")
    validated = []
    for table in found:
        by_record = sides_of(table, "record_id")
        assert {record for record, sides in by_record.items() if sides == {"test"}} == set(DS2)
        assert set(by_record) == {*DS1, *DS2}
        validated += [record for record, sides in by_record.items() if sides == {"validation"}]
        outside = table[table["split"] == "none"]
        assert set(outside["record_id"]) == set(PACED)
        assert set(outside["reason"]) == {"outside the protocol"}
    assert sorted(validated) == sorted(DS1)


def test_folds_of_mitbih_leave_the_paced_records_outside_and_keep_one_man_together():
    records = beats_of([*DS1, *DS2, *PACED])
    tested = []
    for seed in range(3):
        for table in tables(MITBIH, records, protocol="kfold", seed=seed):
            by_record = sides_of(table, "record_id")
            assert set(by_record) == {*DS1, *DS2}
            assert by_record["201"] == by_record["202"]
            tested += [record for record, sides in by_record.items() if sides == {"test"}]
    assert sorted(tested) == sorted([*DS1, *DS2] * 3)


@pytest.mark.parametrize("protocol", ["task", "kfold", "holdout", "rotate"])
def test_excluded_records_are_outside_every_split(protocol):
    records = beats_of([*DS1, *DS2, *PACED])
    for table in tables(MITBIH, records, protocol=protocol, exclude=("202", "100")):
        outside = table[table["split"] == "none"]
        assert set(outside["record_id"]) == {"100", "202", *PACED}
        assert set(outside["reason"]) == {"outside the protocol"}
        assert set(sides_of(table, "record_id")) == {*DS1, *DS2} - {"100", "202"}


@pytest.mark.parametrize("protocol", ["task", "kfold", "holdout", "rotate"])
def test_to_leave_out_what_is_not_there_is_refused(protocol):
    records = beats_of([*DS1, *DS2, *PACED])
    with pytest.raises(
        DataError, match=r"among the 48 records that could be read, came 'nope', 'x'$"
    ):
        tables(MITBIH, records, protocol=protocol, exclude=("x", "202", "nope"))
    # A task's own list is of the whole archive, of which the first records may be all there is.
    [table] = tables(INTRA, beats_of(DS1), exclude=("201",))
    assert set(table.loc[table["split"] == "none", "record_id"]) == {"201"}


def test_a_record_without_patient_is_its_own_even_under_a_patients_name():
    patients = [None, "r0", "r0", *[None] * 57]
    for table in tables(PTBXL, records_of(patients), protocol="kfold"):
        by_record = sides_of(table, "record_id")
        assert by_record["r1"] == by_record["r2"]
    alone = [
        sides_of(table, "record_id")
        for seed in range(5)
        for table in tables(PTBXL, records_of(patients), protocol="kfold", seed=seed)
    ]
    assert any(by_record["r0"] != by_record["r1"] for by_record in alone)


def test_too_few_patients_for_the_groups_are_refused():
    with pytest.raises(
        DataError, match=r"5 patient folds: 4 patients with examples .* for 5 groups"
    ):
        tables(PTBXL, records_of(["a", "b", "c", "d", "d"]), protocol="kfold")


def test_the_intra_patient_split_is_astride_on_purpose():
    [table] = tables(INTRA, beats_of([*DS1, *DS2, *PACED], n_beats=400))
    by_record = sides_of(table, "record_id")
    assert set(by_record) == {*DS1, *DS2}
    assert all(sides == set(SPLITS) for sides in by_record.values())
    assert set(table.loc[table["split"] == "none", "record_id"]) == set(PACED)
    shares = table.loc[table["split"] != "none", "split"].value_counts(normalize=True)
    # 17,600 draws: three standard errors of a share are 0.012 at most.
    np.testing.assert_allclose(shares[list(SPLITS)], [0.4, 0.1, 0.5], atol=0.012)


def test_a_beats_lot_depends_on_seed_record_and_place_alone():
    whole = example_table(INTRA, beats_of(DS1))
    part = example_table(INTRA, beats_of(DS1[3:5]))
    assert part.equals(whole.slice(3 * 40, 2 * 40))
    split = dataclasses.replace(INTRA.split, seed=1)
    assert example_table(INTRA, beats_of(DS1), [split])["split"] != whole["split"]
    lots = {tuple(whole["split"].to_pylist()[i : i + 40]) for i in range(0, 40 * len(DS1), 40)}
    assert len(lots) == len(DS1)


@pytest.mark.parametrize("protocol", ["kfold", "holdout", "rotate"])
def test_a_leaky_task_takes_no_other_protocol(protocol):
    with pytest.raises(SettingsError, match=f"mitbih_aami5_intra is leaky .*'task'.*'{protocol}'"):
        splits_of(INTRA, SplitSettings(protocol))


def test_the_challenge_collections_are_divided_by_the_task_itself():
    records = many_records(400)
    codes = [[CINC.codes[i % 30]] for i in range(400)]
    records = records.set_column(records.schema.get_field_index("codes"), "codes", pa.array(codes))
    own = example_table(CINC, records).to_pandas()
    assert all(len(sides) == 1 for sides in sides_of(own, "patient_id").values())
    shares = own["split"].value_counts(normalize=True)
    np.testing.assert_allclose(shares[list(SPLITS)], [0.7, 0.15, 0.15], atol=0.02)
    for table in tables(CINC, records, protocol="rotate"):
        assert list(table["split"] == "test") == list(own["split"] == "test")


@pytest.mark.parametrize(
    ("task", "asked", "name"),
    [
        (PTBXL, {}, "folds 1-8 / 9 / 10"),
        (PTBXL, {"protocol": "kfold"}, "5 patient folds"),
        (PTBXL, {"protocol": "kfold", "seed": 3}, "5 patient folds, seed 3"),
        (PTBXL, {"protocol": "holdout"}, "70/15/15 by patient"),
        (
            PTBXL,
            {"protocol": "holdout", "fractions": (0.29, 0.57, 0.14)},
            "29/57/14 by patient",
        ),
        (MITBIH, {"exclude": ("202",)}, "DS1 / DS2 without 202"),
        (MITBIH, {"exclude": ("202", "207")}, "DS1 / DS2 without 202, 207"),
        (MITBIH, {"exclude": ("1", "2", "3", "4")}, "DS1 / DS2 without 4 records"),
        (
            MITBIH,
            {"protocol": "rotate", "k": 4, "exclude": ("202",)},
            "DS1 / DS2, 4 rotating validation folds without 202",
        ),
    ],
)
def test_names_for_tables(task, asked, name):
    assert {split.name for split in splits_of(task, SplitSettings(**asked))} == {name}


@pytest.mark.parametrize("task", [PTBXL, MITBIH, CINC], ids=lambda task: task.name)
@pytest.mark.parametrize("protocol", ["task", "kfold", "holdout", "rotate"])
def test_a_task_with_the_split_of_a_run_can_be_written_and_read_back(task, protocol):
    splits = splits_of(task, SplitSettings(protocol, exclude=("x",)))
    assert len(set(splits)) == len(splits)
    for split in splits:
        own = dataclasses.replace(task, split=split)
        assert own.split.name == split.name
        assert build(Task, json.loads(json.dumps(to_tree(own))), "the tree") == own


SPLIT = {"name": "s", "by": "strat_fold", "train": [1], "validation": [2], "test": [3]}
GROUPS = SPLIT | {"by": "patient_group", "train": [0], "validation": [1], "test": [2]}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (SPLIT | {"validation": [1]}, "strat_fold 1 stands there twice"),
        (SPLIT | {"train": ["1"]}, "expected strat_fold as int, came '1'"),
        (SPLIT | {"train": [True]}, "expected strat_fold as int, came True"),
        (SPLIT | {"test": []}, "expected at least one value each"),
        (SPLIT | {"by": "site"}, "by: expected one of strat_fold, record_id"),
        (SPLIT | {"by": "record_id"}, "expected record_id as str, came 1"),
        (SPLIT | {"shares": [1, 1, 1]}, "shares, within: expected with by: patient_group"),
        (SPLIT | {"within": SPLIT}, "shares, within: expected with by: patient_group"),
        (SPLIT | {"leaky": True}, "leaky: expected true with by: example, and there alone"),
        (GROUPS, r"shares: expected one for each group .* came 0 for the groups \[0, 1, 2\]"),
        (GROUPS | {"shares": [1, 1, 1, 1]}, "shares: expected one for each group .* came 4"),
        (GROUPS | {"shares": [1, 1, 0]}, "shares: expected more than 0 each"),
        (GROUPS | {"shares": [1, 1], "test": []}, "expected at least one value each"),
        (GROUPS | {"shares": [1, 1, 1], "by": "example"}, "leaky: expected true with by: example"),
    ],
)
def test_wrong_splits_are_refused(change, expected):
    assert build(Split, SPLIT, "split").train == (1,)
    assert build(Split, GROUPS | {"shares": [1, 1, 1]}, "split").shares == (1.0, 1.0, 1.0)
    with pytest.raises(SettingsError, match=expected):
        build(Split, change, "split")


@pytest.mark.parametrize("protocol", ["kfold", "holdout"])
def test_copies_of_a_recording_stay_together(protocol):
    records = many_records(400)
    ids = records["record_id"].to_pylist()
    # Chains and pairs of patients, each with a flag of another kind beside it.
    copies = {ids[i]: ids[i - 97] for i in range(97, 400, 13)} | {ids[3]: "not there"}
    flags = [["noise:V1", f"duplicate:{copies[i]}"] if i in copies else None for i in ids]
    flagged = records.append_column("flags", pa.array(flags, pa.list_(pa.string())))
    for table in tables(PTBXL, flagged, protocol=protocol):
        side = dict(zip(table["record_id"], table["split"], strict=True))
        patients = dict(zip(table["record_id"], table["patient_id"], strict=True))
        own = {i: s for i, s in side.items() if s in SPLITS}
        together = [(i, of) for i, of in copies.items() if i in own and of in own]
        assert len(together) > 10
        assert all(own[i] == own[of] for i, of in together)
        assert any(patients[i] != patients[of] for i, of in together)
    plain = tables(PTBXL, records, protocol=protocol)[0]
    side = dict(zip(plain["record_id"], plain["split"], strict=True))
    apart = [{side[i], side[of]} for i, of in copies.items() if of in side]
    assert any(len(both) == 2 and "none" not in both for both in apart)
