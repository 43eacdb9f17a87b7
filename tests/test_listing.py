"""Archives that are listed folder by folder and a few records at a time, on disk and in a store."""

from __future__ import annotations

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from s3_store import BUCKET, Front, one_line, write_tree
from shard_folders import write_wfdb

from rayecg.archives.catalogue import open_archive
from rayecg.core import remote, s3_pages, sorted_names
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


@pytest.fixture
def at_once(monkeypatch) -> Callable[[int], None]:
    """Give a setter for how many names are held, read, listed and worked on at a time."""

    def set_to(size: int) -> None:
        for name in ("HELD", "AT_ONCE", "PART"):
            monkeypatch.setattr(sorted_names, name, size)
        monkeypatch.setattr("rayecg.archives.folder.PIECE", size)

    return set_to


#: Files by their names, a record's segments in its header; each is as long as its place says.
ODD = {
    "": (
        "m.hea=m_layout m_0001 m_0002 mx other", "m.dat", "m_layout.hea", "m_0001.hea", "m_0001.dat",
        "m_0002.hea", "m_0002.x.dat", "m_0003.dat", "m_0003.hea", "mx.hea", "mx.dat", "m-1.hea",
        "m1.hea", "m1.dat", "m1_0001.dat", "m1_x_0001.dat", "m", "m.", "M.hea", "other.hea",
        "a.b.dat", "a.b.hea", "a.b_0001.dat", "a.dat", "a.hea", "a.z", "b.1.dat", "b.2.dat", "b.dat",
        "b.hea", "b_1.dat", "c_1.dat", "ecg.txt", "ecg_1.dat", "ecg_1.hea", "ecg_2.dat", "ecg_2.hea",
        "line\n.dat", "line\n.hea", "line\n_1.dat", "ü.hea", "ü_1.dat", ".hea", "_.hea", "__1.dat",
    ),
    "folder.hea": ("r.hea", "other", "m_0009.dat"),
    "m_5": ("m.hea", "m_0001.dat"),
    "m.x": ("y", "z.hea"),
}  # fmt: skip
#: Their sizes, added up by hand: what belongs to `m` are the names that begin with it and `.` or `_`,
#: but for `m_0003`, a record of its own; `m.`, whose end is empty, is one of them.
SIZES = {
    "m": [1, 2, 3, 4, 5, 6, 7, 18], "m_0003": [8, 9], "m-1": [12], "m1": [13, 14, 15], "M": [19],
    "other": [20], "a.b": [21, 22, 23], "a": [24, 25, 26], "b": [29, 30, 31], "ecg_1": [34, 35],
    "ecg_2": [36, 37], "line\n": [38, 39, 40], "ü": [41, 42], "": [43], "_": [44, 45], "folder": [],
    "folder.hea/r": [46], "m_5/m": [49, 50], "m.x/z": [52],
}  # fmt: skip
IN_ORDER = [
    "", "_", "M", "a.b", "a", "b", "ecg_1", "ecg_2", "folder", "line\n", "m", "m_0003", "m-1", "m1",
    "other", "ü", "folder.hea/r", "m.x/z", "m_5/m",
]  # fmt: skip


@pytest.fixture
def odd(tmp_path) -> Path:
    place = 0
    for above, names in ODD.items():
        (tmp_path / "odd" / above).mkdir(parents=True)
        for name in names:
            place += 1
            name, _, segments = name.partition("=")
            file = tmp_path / "odd" / above / name
            file.write_bytes(bytes(1000 + place))
            if segments:
                lines = "".join(f"{one} 10\n" for one in segments.split())
                text = f"{file.stem}/{len(segments.split())} 1 100\n{lines}"
                file.write_text(text.ljust(1000 + place, "\n"))
    return tmp_path / "odd"


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


def facts_of(path: object, limit: int | None = None) -> dict[str, list[int]]:
    """Give size and time of each record, in order, as pieces of the listing say."""
    found: dict[str, list[int]] = {}
    for index, facts_R2 in opened(path, limit).listing():
        ids = index["record_id"].to_pylist()
        assert not found.keys() & ids
        found |= dict(zip(ids, facts_R2.tolist(), strict=True))
    return found


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 30, 1 << 16])
def test_a_folder_of_many_names_is_listed_as_one_of_few(odd, at_once, size) -> None:
    whole = facts_of(odd)
    at_once(size)
    found = facts_of(odd)
    assert list(found) == IN_ORDER == opened(odd).index()["record_id"].to_pylist()
    assert {name: facts[0] for name, facts in found.items()} == {
        name: sum(1000 + place for place in places) for name, places in SIZES.items()
    }
    assert found == whole
    for limit in (1, 2, 10, 11, 12, len(found), 99):
        first = {name: found[name] for name in IN_ORDER[:limit]}
        assert facts_of(odd, limit) == first
        assert opened(odd, limit).index()["record_id"].to_pylist() == IN_ORDER[:limit]
    levels = list(Folder(odd).levels())
    assert max(len(level.files) + len(level.folders) for level in levels) <= size
    assert opened(odd).deciding_facts(opened(odd).index())[:, 0].sum() == sum(
        1000 + place for place in range(1, 53)
    )


def test_names_that_are_no_utf8_are_listed_in_parts_too(archive, at_once) -> None:
    for raw in (b"\xff.hea", b"\xfe.hea", b"\xff_1.dat", rb"\xff.hea", "ü.hea".encode()):
        for above in (archive, archive / "sub"):
            (above / os.fsdecode(raw)).write_bytes(b"r 1 100 10\n")
    (archive / os.fsdecode(b"\xfd")).mkdir()
    (archive / os.fsdecode(b"\xfd") / "r.hea").touch()
    whole = facts_of(archive)
    assert list(whole)[:4] == [r"\\xff", r"\xfe", r"\xff", "a"]
    assert r"\xfd/r" in whole
    at_once(2)
    assert facts_of(archive) == whole


def test_listing_goes_no_further_than_the_limit(archive, monkeypatch) -> None:
    listed = []
    scan = Folder._scan
    monkeypatch.setattr(
        Folder, "_scan", lambda self, above: listed.append(above) or scan(self, above)
    )
    for limit, folders in ((3, [b""]), (4, [b"", b"sub/"]), (6, [b"", b"sub/", b"sub/a/"])):
        assert len(facts_of(archive, limit)) == opened(archive, limit).index().num_rows == limit
        assert listed == folders * 2
        listed.clear()


@pytest.mark.parametrize("kind", ["files", "folders"])
def test_memory_does_not_grow_with_a_folder(tmp_path, at_once, monkeypatch, kind) -> None:
    at_once(128)
    monkeypatch.setattr(sorted_names, "AT_ONCE", 2)
    peaks = []
    for n in (256, 2048):
        root = tmp_path / str(n)
        root.mkdir()
        for i in range(n):
            name = root / f"{'a rather long name':50}{i:06d}.hea"
            name.mkdir() if kind == "folders" else name.touch()
        for _ in range(2):  # what the first time imports and keeps does not count
            tracemalloc.start()
            assert sum(1 for _ in Folder(root).walk(".hea")) == n
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[3] < 3 * peaks[1], peaks


def test_records_wait_on_disk_for_one_whose_files_may_go_on(tmp_path, at_once) -> None:
    at_once(128)
    (tmp_path / "a.hea").write_text("a 1 100 10\n")
    n, long = 2048, 60
    for i in range(n):
        (tmp_path / f"{'a_':{long}}{i:06d}.hea").touch()
    before, held, found = pa.total_allocated_bytes(), [], 0
    for _, facts_R2 in opened(tmp_path).listing():
        held.append(pa.total_allocated_bytes() - before)
        found += len(facts_R2)
    assert found == n + 1
    assert max(held) < n * long / 2


@pytest.fixture(params=["pages", "whole"])
def give(request, monkeypatch) -> None:
    """Let the store give a few names at a time, or a folder's at once, as stores do that are not S3."""
    if request.param == "pages":
        monkeypatch.setattr(s3_pages, "PAGE", 2)
    else:
        monkeypatch.setattr(remote, "S3Pages", lambda files: None)


@pytest.mark.usefixtures("give")
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


@pytest.mark.usefixtures("give")
@pytest.mark.parametrize("size", [1, 3, 1 << 16])
def test_a_store_lists_odd_names_as_a_disk_does(store, odd, at_once, size) -> None:
    for file in odd.glob("line*"):
        file.unlink()  # the server of the tests takes no such key
    store.put(odd, "odd")
    at_once(size)
    near, far = Folder(odd), open_folder(store.uri("odd"))
    both = [
        [(level.files, level.folders, level.follows) for level in one.levels()]
        for one in (near, far)
    ]
    assert both[0] == both[1]
    names = [name for files, _, _ in both[0] for name in (*files, "m.nobody")]
    np.testing.assert_array_equal(near.facts(names)[:, 0], far.facts(names)[:, 0])
    found = facts_of(store.uri("odd"))
    assert list(found) == [name for name in IN_ORDER if name != "line\n"]
    assert [one[0] for one in found.values()] == [one[0] for one in facts_of(odd).values()]


@pytest.mark.usefixtures("give")
@pytest.mark.parametrize("size", [1, 1 << 16])
def test_an_object_that_others_lie_below_is_listed_once(store, at_once, size) -> None:
    for name in ("b.hea", "c.hea", "c.hea/d.hea", "c.hea_1.dat", "e.hea"):
        store.client.put_object(Bucket=BUCKET, Key=f"both/{name}", Body=b"r 1 100 10\n")
    at_once(size)
    assert list(facts_of(store.uri("both"))) == ["b", "c", "e", "c.hea/d"]


def test_folders_that_wait_are_asked_for_in_order(store, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(remote, "TAKEN", 2)
    for name in ("a/1", "a/2", "a/3", "a/4", "a/5", "b/1", "b/2", "c"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "r.hea").touch()
    store.put(tmp_path, "wide")
    far = open_folder(store.uri("wide"))
    assert list(far.walk(".hea")) == list(Folder(tmp_path).walk(".hea"))


@pytest.mark.usefixtures("give")
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


def test_names_some_at_a_time_have_the_facts_of_names_at_once(store, archive, monkeypatch) -> None:
    store.put(archive, "facts")
    with_pages = open_folder(store.uri("facts"))
    monkeypatch.setattr(remote, "S3Pages", lambda files: None)
    pages, whole = (
        [level.facts() for level in one.levels()]
        for one in (with_pages, open_folder(store.uri("facts")))
    )
    assert len(pages) == len(whole) == 4
    for some, all_F2 in zip(pages, whole, strict=True):
        np.testing.assert_array_equal(some, all_F2)
    assert min(facts_F2.min() for facts_F2 in whole if len(facts_F2)) > 0


@pytest.mark.usefixtures("impatient")
def test_a_list_that_is_refused_stops_the_job(store, archive, front) -> None:
    store.put(archive, "closed")
    far = open_folder(store.uri("closed", front))
    Front.faults.append(["prefix=closed%2Fsub%2F", 403, 99])
    Front.faults.append(["prefix=closed/sub/", 403, 99])
    for use in (lambda: list(far.levels()), lambda: far.facts(["a.hea", "sub/a.hea"])):
        with pytest.raises(DataError, match=r"/closed/sub/: cannot be listed .*403") as e:
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
