"""Plans of units: every record in one unit, what stands stays, what came or changed is planned anew."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayecg.core.errors import SettingsError
from rayecg.core.shard_format import index_table
from rayecg.score.plan import LARGEST, SMALLEST, make_plan, record_facts, unit_size


def records(n: int, first: int = 0) -> tuple[pa.Array, np.ndarray]:
    ids = pa.array([f"r{i}" for i in range(first, first + n)], pa.string())
    return ids, np.arange(first, first + n).astype("u8") + 7


@given(
    st.integers(1, 300),
    st.integers(0, 300),
    st.integers(1, 40),
    st.integers(1, 40),
    st.sampled_from([1, 16, 10_000]),
)
def test_new_records_leave_earlier_units_as_they_are(
    n: int, n_more: int, size: int, later: int, piece: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rayecg.score.plan.PIECE", piece)
        grow(n, n_more, size, later)


def grow(n: int, n_more: int, size: int, later: int) -> None:
    ids, facts = records(n)
    plan = make_plan(ids.take, facts, size)
    more_ids, more_facts = records(n_more, n)
    # New records may stand anywhere in the index.
    grown = make_plan(
        pa.concat_arrays([more_ids, ids]).take, np.append(more_facts, facts), later, plan.stored
    )
    assert sorted(np.concatenate(list(grown.rows.values()))) == list(range(n + n_more))
    assert max(map(len, plan.rows.values())) <= size
    for unit, rows in plan.rows.items():
        np.testing.assert_array_equal(grown.rows[unit], rows + n_more)
    stored = pq.read_table(pa.BufferReader(grown.stored))
    assert sorted(stored["record_id"].to_pylist()) == sorted(
        [*ids.to_pylist(), *more_ids.to_pylist()]
    )


def test_ids_whose_numbers_are_alike_are_neither_lost_nor_doubled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, facts = records(40)
    plan = make_plan(ids.take, facts, 4)

    def alike(ids: pa.Array) -> np.ndarray:
        return np.array([int(one.as_py()[1:]) // 3 for one in ids], np.uint64)

    monkeypatch.setattr("rayecg.score.plan._keys", alike)
    again = make_plan(ids.take, facts, 4, plan.stored)
    assert sorted(np.concatenate(list(again.rows.values()))) == list(range(40))
    stored = pq.read_table(pa.BufferReader(again.stored))
    assert sorted(stored["record_id"].to_pylist()) == sorted(ids.to_pylist())


def test_a_record_whose_files_changed_takes_its_unit_with_it() -> None:
    ids, facts = records(10)
    plan = make_plan(ids.take, facts, 4)
    changed = facts.copy()
    changed[5] += 1
    again = make_plan(ids.take, changed, 4, plan.stored)
    first, second, third = plan.rows
    assert {first, third} < set(again.rows)
    assert second not in again.rows
    (new,) = set(again.rows) - {first, third}
    np.testing.assert_array_equal(again.rows[new], [4, 5, 6, 7])


def test_records_that_are_gone_are_refused_by_name() -> None:
    ids, facts = records(10)
    plan = make_plan(ids.take, facts, 4)
    with pytest.raises(
        SettingsError, match=r"2 records that were scored here.*first: r8.*--replace"
    ):
        make_plan(ids[:8].take, facts[:8], 4, plan.stored)


def test_units_are_named_by_what_they_hold() -> None:
    ids, facts = records(8)
    one, other = make_plan(ids.take, facts, 8), make_plan(ids.take, facts + np.uint64(1), 8)
    assert list(one.rows) == list(make_plan(ids.take, facts, 8).rows)
    assert list(one.rows) != list(other.rows)


def test_facts_move_with_the_index_and_with_the_files() -> None:
    rows = [
        {"record_id": "a", "path": "p/a", "age": 60.0, "sex": "F"},
        {"record_id": "b", "path": "p/b"},
    ]
    files = np.array([[10, 1, 20, 2], [11, 1, 21, 2]])
    before = record_facts(index_table(rows), files)
    assert len(set(before.tolist())) == 2
    np.testing.assert_array_equal(record_facts(index_table(rows), files), before)
    older = [{**rows[0], "age": 61.0}, rows[1]]
    assert (record_facts(index_table(older), files) != before).tolist() == [True, False]
    touched = files.copy()
    touched[1, 3] = 9
    assert (record_facts(index_table(rows), touched) != before).tolist() == [False, True]


def test_facts_do_not_depend_on_where_a_record_stands() -> None:
    # The first piece has all its folds, the second lacks one.
    rows = [
        {"record_id": f"{i}", "path": "p", "strat_fold": i if i < 3 else None} for i in range(4)
    ]
    files = np.array([[10, i] for i in range(4)])
    whole = record_facts(index_table(rows), files)
    parts = [record_facts(index_table(rows[i : i + 2]), files[i : i + 2]) for i in (0, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_units_are_many_enough_for_actors_and_never_too_large() -> None:
    assert unit_size(1, 2) == SMALLEST
    assert unit_size(1_000_000, 2) == LARGEST
    assert 24 <= -(-20_000 // unit_size(20_000, 2)) <= 26
    assert 12 * 64 * 0.9 <= -(-20_000 // unit_size(20_000, 64)) <= 12 * 64
    # Days of recording, 30 MB each, and one that is larger than a unit may be.
    assert unit_size(2400, 2, 2400 * 30_000_000) == 8
    assert unit_size(10, 2, 10 * 2**30) == 1


def test_the_stored_table_is_what_a_later_start_reads() -> None:
    ids, facts = records(5)
    # The largest number that 64 bits hold, which a float would not keep.
    facts[0] = np.iinfo("u8").max
    plan = make_plan(ids.take, facts, 2)
    again = make_plan(ids.take, facts, 2, plan.stored)
    assert again.stored == plan.stored
    assert list(again.rows) == list(plan.rows)
