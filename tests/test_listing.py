"""Archives that are listed folder by folder and a few records at a time, on disk and in a store."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from s3_store import BUCKET, Front, one_line, write_tree
from shard_folders import write_wfdb

from rayecg.archives.catalogue import open_archive
from rayecg.core import remote
from rayecg.core.errors import DataError, RecordError, SettingsError
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.storage import Folder, open_folder
from rayecg.score.sources import FILES, ArchiveSource

NAMES = ("b", "a-1", "a", "sub/b", "sub/a", "sub/a/x", "tub/b", "tub/a")


@pytest.fixture
def archive(tmp_path) -> Path:
    for name in NAMES:
        write_wfdb(tmp_path / Path(name).parent, Path(name).name, ["I", "V1"], 100, "16")
    return tmp_path


def opened(path: object, limit: int | None = None):
    return open_archive(ArchiveSettings("wfdb", str(path), limit=limit))


def ids_of(source: ArchiveSource) -> list[str]:
    return [one for piece in source.records.pieces() for one in piece["record_id"].to_pylist()]


def test_a_folder_s_files_come_before_its_folders(archive) -> None:
    ordered = ["a", "a-1", "b", "sub/a", "sub/b", "sub/a/x", "tub/a", "tub/b"]
    assert opened(archive).index()["record_id"].to_pylist() == ordered
    assert opened(archive).checked_index().equals(opened(archive).index())
    for limit in range(1, len(ordered) + 2):
        assert opened(archive, limit).index()["record_id"].to_pylist() == ordered[:limit]


@pytest.mark.parametrize("piece", [1, 3, 100])
def test_pieces_of_any_size_list_the_same(archive, monkeypatch, piece) -> None:
    whole = list(opened(archive).listing())
    assert len(whole) == 1
    monkeypatch.setattr("rayecg.archives.folder.PIECE", piece)
    parts = list(opened(archive).listing())
    assert len(parts) == {1: 4, 3: 3, 100: 1}[piece]
    assert pa.concat_tables(part for part, _ in parts).equals(whole[0][0])
    np.testing.assert_array_equal(np.concatenate([facts for _, facts in parts]), whole[0][1])
    for limit in range(1, len(NAMES) + 2):
        listed = [part for part, _ in opened(archive, limit).listing()]
        assert pa.concat_tables(listed).equals(opened(archive).index().slice(0, limit))


def test_a_record_s_facts_do_not_depend_on_which_others_are_listed(archive) -> None:
    ((_, facts_R2),) = opened(archive).listing()
    for name in ("a-1", "b", "sub/a/x"):
        (archive / f"{name}.hea").unlink()
    ((index, few_R2),) = opened(archive).listing()
    assert index["record_id"].to_pylist() == ["a", "sub/a", "sub/b", "tub/a", "tub/b"]
    np.testing.assert_array_equal(few_R2, facts_R2[[0, 3, 4, 6, 7]])


@pytest.mark.parametrize(
    ("select", "limit", "expected"),
    [
        (None, 1, ["a"]),
        (None, 3, ["a", "a-1", "b"]),
        (None, 4, ["a", "a-1", "b", "sub/a"]),
        (None, 99, ["a", "a-1", "b", "sub/a", "sub/b", "sub/a/x", "tub/a", "tub/b"]),
        ("record_id LIKE '%/b'", None, ["sub/b", "tub/b"]),
        ("record_id LIKE '%/b'", 1, ["sub/b"]),
    ],
)
def test_what_is_chosen_of_several_pieces(archive, monkeypatch, select, limit, expected) -> None:
    monkeypatch.setattr("rayecg.archives.folder.PIECE", 1)
    source = ArchiveSource(opened(archive), select=select, limit=limit)
    assert ids_of(source) == expected
    assert source.n_input == len(expected)
    plan = source.plan(None, 2, 1, None)
    planned = [source.payload(unit, plan)["rows"] for unit in source.units(plan)]
    assert pa.concat_tables(planned)["record_id"].to_pylist() == expected
    assert max(rows.num_rows for rows in planned) <= 2


def test_sizes_are_no_column_of_a_condition(archive) -> None:
    with pytest.raises(SettingsError, match=FILES):
        ArchiveSource(opened(archive), select=f"{FILES}[1] > 0")


def test_a_folder_that_is_called_like_a_header_hides_nothing(archive) -> None:
    write_wfdb(archive / "c.hea", "d", ["I", "V1"], 100, "16")
    listed = opened(archive)
    ids = listed.index()["record_id"].to_pylist()
    assert ids == ["a", "a-1", "b", "c", "c.hea/d", *ids[5:]]
    with pytest.raises(RecordError, match="not a regular file"):
        listed.read({"path": "c"})
    assert listed.read({"path": "c.hea/d"}).leads


def test_names_that_would_look_alike_stay_apart(archive) -> None:
    for name in (b"a\xff", rb"a\xff"):
        for above in (archive, archive / os.fsdecode(name)):
            write_wfdb(above, "r", ["I", "V1"], 100, "16")
            for file in above.glob("r.*"):
                file.rename(above / os.fsdecode(name + os.fsencode(file.suffix)))
    odd = {r"a\xff", r"a\\xff"}
    expected = odd | {f"{one}/{other}" for one in odd for other in odd}
    expected -= {rf"{one}/{other}" for one in odd for other in odd if one != other}
    source = ArchiveSource(opened(archive))
    ids = ids_of(source)
    assert len(ids) == len(set(ids)) == len(NAMES) + len(expected)
    assert expected < set(ids)
    for row in source.records.take(np.arange(len(ids))).to_pylist():
        if row["record_id"] in expected:
            with pytest.raises(RecordError):
                source.archive.read(row)


def test_a_folder_that_goes_while_it_is_listed_is_one_line(archive) -> None:
    listing = Folder(archive).levels()
    next(listing)
    shutil.rmtree(archive / "sub")
    with pytest.raises(DataError, match=r"/sub/: No such file or directory$") as caught:
        next(listing)
    one_line(caught.value)


@pytest.mark.parametrize("held", [1, 1 << 16])
def test_a_store_lists_as_a_disk_does(store, archive, monkeypatch, held) -> None:
    monkeypatch.setattr(remote, "HELD", held)
    monkeypatch.setattr("rayecg.archives.folder.PIECE", 3)
    store.put(archive, "levels")
    near, far = Folder(archive), open_folder(store.uri("levels"))
    both = [[(level.files, level.folders) for level in one.levels()] for one in (near, far)]
    assert both[0] == both[1]
    sizes = [np.concatenate([level.facts() for level in one.levels()])[:, 0] for one in (near, far)]
    np.testing.assert_array_equal(*sizes)
    names = [f"{name}.dat" for name in NAMES] + ["nobody", "sub/nobody", "nowhere/x"]
    np.testing.assert_array_equal(near.facts(names)[:, 0], far.facts(names)[:, 0])
    assert opened(store.uri("levels")).index().equals(opened(archive).index())


def test_keys_with_two_slashes_are_listed_once_and_refused(store) -> None:
    for name in ("a/r1", "a//r2", "a//b//r3", "/r4", "c/r5"):
        store.client.put_object(Bucket=BUCKET, Key=f"slashes/{name}.hea", Body=b"r 1 100 10\n")
    far = opened(store.uri("slashes"))
    rows = far.checked_index().to_pylist()
    ids = [row["record_id"] for row in rows]
    assert sorted(ids) == ["/r4", "a//b//r3", "a//r2", "a/r1", "c/r5"]
    codes = {row["record_id"]: one.code for row, one in zip(rows, far.read_each(rows), strict=True)}
    assert codes.pop("a/r1") == codes.pop("c/r5") == "bad_header"
    assert set(codes.values()) <= {"missing_file", "outside_archive"}
    assert [facts[:, 0].tolist() for _, facts in far.listing()] == [[11] * 5]


@pytest.mark.usefixtures("impatient")
def test_a_list_that_is_refused_stops_the_job(store, archive, front) -> None:
    store.put(archive, "closed")
    far = open_folder(store.uri("closed", front))
    Front.faults.append(["prefix=closed%2Fsub%2F", 403, 99])
    Front.faults.append(["prefix=closed/sub/", 403, 99])
    for use in (lambda: list(far.levels()), lambda: far.facts(["a.hea", "sub/a.hea"])):
        with pytest.raises(DataError, match=r"/closed/sub/: cannot be listed .*ACCESS_DENIED") as e:
            use()
        one_line(e.value)
    Front.faults.clear()
    assert far.facts(["a.hea", "sub/a.hea"])[:, 0].min() > 0


@pytest.mark.usefixtures("impatient")
def test_a_list_that_fails_is_asked_for_again(store, tmp_path, front) -> None:
    write_tree(tmp_path)
    store.put(tmp_path, "shaky")
    far = open_folder(store.uri("shaky", front))
    Front.faults.append(["list-type=2", 503, 2])
    assert list(far.walk(".hea")) == ["a/r1.hea", "a/r2.hea", "b c/ä1.hea"]
    assert Front.faults[0][2] == 0
