"""Rows and names that lie on disk: put away in any pieces, read back by number or sorted."""

from __future__ import annotations

import os
import sys
import tempfile
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from full_disk import small_disk
from hypothesis import given
from hypothesis import strategies as st
from s3_store import one_line

from rayecg.core import sorted_names
from rayecg.core.errors import DataError
from rayecg.core.index_file import PIECE, ROW, ROWS, IndexFile, TableQueue
from rayecg.core.sorted_names import SortedNames, in_parts, key_of, name_of

N = 2 * ROWS + 300
NAMES = [f"r{i}" if i % 7 else None for i in range(N)]


def table() -> pa.Table:
    pairs = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(2 * N)), 2)
    return pa.table({"name": NAMES, "codes": [["a"] * (i % 3) for i in range(N)], "pair": pairs})


@given(
    st.lists(st.integers(0, N), max_size=6),
    st.lists(st.integers(0, N - 1), min_size=1, max_size=50),
)
def test_rows_come_back_as_they_were(cuts: list[int], asked: list[int]) -> None:
    whole = table()
    edges = [0, *sorted(cuts), N]
    index = IndexFile(whole.slice(start, stop - start) for start, stop in pairwise(edges))
    assert len(index) == N
    assert index.take(np.array([], np.int64)).num_rows == 0
    rows_N = np.array(asked, np.int64)
    assert index.take(rows_N).equals(whole.take(pa.array(rows_N)))
    chosen = index.chosen(rows_N)
    assert pa.concat_tables(chosen.pieces()).equals(whole.take(pa.array(rows_N)))


def test_pieces_are_all_rows_in_order() -> None:
    n = PIECE + ROWS + 5
    index = IndexFile([pa.table({"x": np.arange(n), "y": np.zeros(n)})])
    pieces = list(index.pieces(["x"]))
    assert [piece.num_rows for piece in pieces] == [PIECE, ROWS + 5]
    assert pa.concat_tables(pieces)["x"].to_pylist() == list(range(n))
    assert pa.concat_tables(pieces).column_names == ["x"]


def test_others_read_the_same_rows_with_their_numbers() -> None:
    index = IndexFile([table()])
    for _ in range(2):  # a query may go over them more than once
        found = index.dataset(["pair", "name"]).to_table()
        assert found.column_names == ["pair", "name", ROW]
        assert found.drop_columns([ROW]).equals(table().select(["pair", "name"]))
        assert found[ROW].to_pylist() == list(range(N))


@given(st.lists(st.integers(-1, 5), max_size=40))
def test_tables_come_back_in_the_order_they_were_put(steps: list[int]) -> None:
    queue, left, whole = TableQueue(), [], table()
    for step in steps:  # a table of so many rows, or one back
        if step >= 0:
            left.append(whole.slice(7 * step, step))
            queue.put(left[-1])
        elif left:
            assert queue.take().equals(left.pop(0))


@given(st.lists(st.binary(max_size=9), max_size=40), st.integers(1, 12), st.integers(1, 5))
def test_names_come_back_sorted(names: list[bytes], held: int, at_once: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorted_names, "HELD", held)
        patch.setattr(sorted_names, "AT_ONCE", at_once)
        found = SortedNames(names)
        for _ in range(2):
            assert list(found) == sorted(names)


@given(st.lists(st.text("a._-0A\né", max_size=5), min_size=1, unique=True))
def test_what_begins_with_a_name_and_a_sign_is_together(names: list[str]) -> None:
    keys = sorted(key_of(name.encode()) for name in names)
    ordered = [name_of(key).decode() for key in keys]
    assert set(ordered) == set(names)
    for name in names:
        for signs in ((".",), (".", "_")):
            own = [one.startswith(tuple(name + sign for sign in signs)) for one in ordered]
            assert sum(after and not before for before, after in pairwise([False, *own])) <= 1
        behind = ordered[ordered.index(name) + 1 :]
        longer = [one.startswith(name) for one in behind]
        assert longer == sorted(longer, reverse=True)
        own = [one[len(name)] in "._" for one in behind[: sum(longer)]]
        assert own == sorted(own, reverse=True)


@pytest.mark.parametrize(
    ("n", "sizes"), [(0, [0]), (1, [1]), (3, [3]), (4, [3, 1]), (7, [3, 3, 1])]
)
def test_parts_say_what_follows(monkeypatch, n, sizes) -> None:
    monkeypatch.setattr(sorted_names, "PART", 3)
    keys = [bytes([i]) for i in range(n)]
    parts = list(in_parts(keys))
    assert [len(part) for part, _ in parts] == sizes
    assert [key for part, _ in parts for key in part] == keys
    assert [follows for _, follows in parts] == [*(part[0] for part, _ in parts[1:]), None]


def test_nothing_is_left_on_disk(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sorted_names, "HELD", 2)
    index = IndexFile([table()])
    names = SortedNames([b"c", b"a", b"b"])
    assert not os.listdir(tmp_path)
    assert len(index.take(np.array([3]))) == 1
    assert list(names) == [b"a", b"b", b"c"]


FULL = """
import sys, tempfile
import numpy as np
import pyarrow as pa
from rayecg.core.errors import DataError
from rayecg.core.index_file import IndexFile, TableQueue
from rayecg.core.sorted_names import HELD, SortedNames
tempfile.tempdir = sys.argv[1]
numbers = np.random.default_rng(0).integers(0, 2**62, HELD)
try:
    if sys.argv[2] == "rows":
        IndexFile(pa.table({"x": numbers}) for _ in range(20))
    elif sys.argv[2] == "tables":
        queue, small = TableQueue(), pa.table({"x": numbers[:10]})
        queue.put(small)
        for _ in range(10_000):
            queue.put(small)
            queue.take()
    else:
        SortedNames(number.tobytes() for _ in range(20) for number in numbers)
except DataError as error:
    sys.exit(str(error))
"""


@pytest.mark.parametrize("what", ["rows", "names", "tables"])
def test_a_full_disk_is_one_line(tmp_path, what) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        command = [sys.executable, "-c", FULL, disk.folder, what]
        done = disk.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert one_line(DataError(done.stderr.strip())).endswith(
        "(No space left on device); TMPDIR names another folder for them"
    )


def test_what_fails_elsewhere_keeps_its_own_words() -> None:
    def tables():
        yield table()
        raise PermissionError("of the archive")

    with pytest.raises(PermissionError, match="of the archive"):
        IndexFile(tables())
