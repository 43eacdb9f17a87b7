"""Archive kinds: what each lists of its records, and what it makes of odd and missing statements."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import wfdb
from shard_folders import write_wfdb

from rayecg.archives.base import Archive
from rayecg.archives.catalogue import ARCHIVES, open_archive
from rayecg.archives.cinc import age_in_years, sex_of, source_of, stated_in
from rayecg.core.errors import DataError, RecordError
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings
from rayecg.core.record import Record
from rayecg.core.shard_format import INDEX_FIELDS

SAMPLES_TL = np.random.default_rng(5).integers(-900, 900, (200, 12)).astype("<i2")


def write_record(
    path: Path, suffix: str, gains: Sequence[str], names: Sequence[str], comments: str
) -> None:
    """Write a record of 12 leads; a MATLAB file has its 24 bytes of header before the samples."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fmt, before = ("16", b"")
    if suffix == ".mat":
        fmt, before = "16+24", struct.pack("<5i4s", 30, 12, len(SAMPLES_TL), 0, 4, b"val\0")
    sums = SAMPLES_TL.sum(axis=0, dtype=np.int64) % 65536
    lines = [f"{path.name} 12 500 {len(SAMPLES_TL)}"]
    lines += [
        f"{path.name}{suffix} {fmt} {gains[i]} 16 0 {SAMPLES_TL[0, i]} {sums[i]} 0 {names[i]}"
        for i in range(12)
    ]
    Path(f"{path}.hea").write_text("\n".join([*lines, comments]), encoding="utf-8")
    Path(f"{path}{suffix}").write_bytes(before + SAMPLES_TL.tobytes())


def write_cinc(path: Path, comments: str = "#Age: 53\n#Sex: Male\n#Dx: 426783006\n") -> None:
    write_record(path, ".mat", ["1000/mV"] * 12, STANDARD_LEADS, comments)


def write_ludb(path: Path, comments: str = "") -> None:
    gains = [f"{1000 + 37 * i}({i - 4})/mV" for i in range(12)]
    write_record(path, ".dat", gains, [name.lower() for name in STANDARD_LEADS], comments)


LUDB_HEADER = """#<age>: 87
#<sex>: F
#<diagnoses>:
#Rhythm: Sinus rhythm.
#III degree AV-block.
#Ventricular extrasystole, localisation: RVOT, anterior wall.\x20
#UNIpolar ventricular pacing.\x20
"""
LUDB_TABLE = """ID,Sex,Age,Rhythms,Electric axis of the heart,Hypertrophies,Other states
1,"F
","51
",Sinus bradycardia,Electric axis of the heart: left axis deviation,"Left atrial hypertrophy
Left ventricular hypertrophy",
2,"M
",">89
",Sinus rhythm,,,"
"
3,?,about 40,,,,
"""


def a_cinc(folder: Path) -> ArchiveSettings:
    for source, name in (("georgia/g1", "E00001"), ("georgia/g2", "E01001"), ("cpsc_2018", "A1")):
        write_cinc(folder / "training" / source / name)
    return ArchiveSettings("cinc", str(folder))


def a_ludb(folder: Path) -> ArchiveSettings:
    for number in (1, 2, 3, 10):
        write_ludb(folder / "data" / str(number), LUDB_HEADER)
    (folder / "RECORDS").write_text("data/1\ndata/2\ndata/3\ndata/10\n")
    (folder / "ludb.csv").write_text(LUDB_TABLE)
    return ArchiveSettings("ludb", str(folder))


def a_mitbih(folder: Path) -> ArchiveSettings:
    folder.mkdir()
    for name in ("100", "201", "202"):
        wfdb.wrsamp(
            name, fs=360, units=["mV"] * 2, sig_name=["MLII", "V1"], fmt=["212"] * 2,
            d_signal=SAMPLES_TL[:, :2].astype(np.int64), adc_gain=[200.0] * 2, baseline=[0] * 2,
            comments=["69 M 1085 1629 x1"], write_dir=str(folder),
        )  # fmt: skip
        beats = np.array([10, 90])
        wfdb.wrann(name, "atr", beats, symbol=["N", "V"], write_dir=str(folder))
    return ArchiveSettings("mitbih", str(folder))


@pytest.fixture(params=sorted(ARCHIVES))
def archive(request, tmp_path, synthetic_archive) -> Archive:
    """Give a small archive of each kind; a new kind needs a line here."""
    kind, folder = request.param, tmp_path / "archive"
    if kind in ("synthetic", "ptbxl"):
        return open_archive(ArchiveSettings(kind, str(synthetic_archive), rate=100, limit=8))
    if kind == "wfdb":
        return open_archive(ArchiveSettings("wfdb", a_cinc(folder).path))
    return open_archive({"cinc": a_cinc, "ludb": a_ludb, "mitbih": a_mitbih}[kind](folder))


def test_every_kind_lists_and_reads_its_records(archive):
    index = archive.checked_index()
    assert [(f.name, f.type) for f in index.schema] == [(f.name, f.type) for f in INDEX_FIELDS]
    assert index.num_rows >= 3
    rows = index.to_pylist()
    assert all(not row["sex"] or row["sex"] in "MF" for row in rows)
    found = list(archive.read_each(rows))
    assert sum(isinstance(one, Record) for one in found) >= 3
    assert all(isinstance(one, Record | RecordError) for one in found)


def test_every_kind_is_the_same_in_another_process(archive):
    index = archive.index()
    again = pickle.loads(pickle.dumps(archive))
    assert again.index().equals(index)
    assert again.fingerprint(index) == archive.fingerprint(index)


def test_a_limit_takes_the_first_records_as_they_are(archive):
    settings = ArchiveSettings(archive.settings.kind, archive.settings.path, limit=2)
    if archive.settings.rate:
        settings = ArchiveSettings(settings.kind, settings.path, rate=100, limit=2)
    assert open_archive(settings).index().equals(archive.index().slice(0, 2))


def index_of(kind: str, folder: Path, **settings) -> list[dict]:
    return open_archive(ArchiveSettings(kind, str(folder), **settings)).checked_index().to_pylist()


def test_cinc_states_what_the_comments_say(tmp_path):
    write_cinc(tmp_path / "a" / "g1" / "A0001")
    write_cinc(tmp_path / "b" / "B1", "# Age: NaN\n# Sex: Unknown\n# Dx: 164889003, 426783006\n")
    write_cinc(tmp_path / "C1", "")
    first, second, third = index_of("cinc", tmp_path)[1:] + index_of("cinc", tmp_path, limit=1)
    assert (first["record_id"], second["record_id"], third["record_id"]) == ("A0001", "B1", "C1")
    assert (first["path"], first["site"]) == ("a/g1/A0001", "a")
    assert (first["age"], first["sex"], first["codes"]) == (53, "M", ["426783006"])
    assert (second["age"], second["sex"], second["site"]) == (None, None, "b")
    assert second["codes"] == ["164889003", "426783006"]
    assert [third[name] for name in ("age", "sex", "codes", "site")] == [None] * 4
    assert {row["patient_id"] for row in (first, second, third)} == {None}
    assert {row["likelihoods"] for row in (first, second, third)} == {None}


def test_cinc_samples_follow_the_header_of_the_matlab_file(tmp_path):
    write_cinc(tmp_path / "A0001")
    opened = open_archive(ArchiveSettings("cinc", str(tmp_path)))
    [record] = opened.read_each(opened.index().to_pylist())
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T)
    assert (record.leads, record.fs, record.flags) == (STANDARD_LEADS, 500, ())


def test_cinc_ids_are_paths_where_names_repeat(tmp_path):
    for path in ("x/A1", "y/A1", "y/A2", "A1", "z/A3"):
        write_cinc(tmp_path / path)
    ids = [row["record_id"] for row in index_of("cinc", tmp_path)]
    assert ids == ["A1", "x/A1", "y/A1", "A2", "A3"]
    # An id does not depend on how much of the archive is taken.
    assert [row["record_id"] for row in index_of("cinc", tmp_path, limit=2)] == ids[:2]


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_cinc_lists_the_same_in_pieces_of_any_size(tmp_path, monkeypatch, piece):
    for i, path in enumerate(("x/A1", "y/A1", "y/A2", "A1", "z/A3", "z/A1", "z/A10")):
        write_cinc(tmp_path / path, f"#Age: {i}\n")
    opened = open_archive(ArchiveSettings("cinc", str(tmp_path)))
    index = opened.checked_index()
    assert index["record_id"].to_pylist() == ["A1", "x/A1", "y/A1", "A2", "z/A1", "A10", "A3"]
    assert index["age"].to_pylist() == [3, 0, 1, 2, 5, 6, 4]
    for module in ("core.index_file", "archives.folder"):
        monkeypatch.setattr(f"rayecg.{module}.PIECE", piece)
    monkeypatch.setattr("rayecg.core.index_file.ROWS", min(piece, 2))
    parts = list(opened.listing())
    assert max(part.num_rows for part, _ in parts) <= piece
    assert pa.concat_tables(part for part, _ in parts).equals(index)
    assert opened.index().equals(index)
    sizes = [
        sum((tmp_path / f"{path}{end}").stat().st_size for end in (".hea", ".mat"))
        for path in index["path"].to_pylist()
    ]
    assert facts_of(opened)[:, 0].tolist() == sizes
    for limit in (1, 2, 3, 6, 7, 8):
        few = open_archive(ArchiveSettings("cinc", str(tmp_path), limit=limit))
        assert pa.concat_tables(part for part, _ in few.listing()).equals(index.slice(0, limit))


def test_cinc_names_of_one_hash_are_told_by_their_paths(tmp_path, monkeypatch):
    for path in ("x/A1", "y/A2", "A3"):
        write_cinc(tmp_path / path)
    monkeypatch.setattr("rayecg.archives.cinc._hash", lambda name: len(name))
    assert [row["record_id"] for row in index_of("cinc", tmp_path)] == ["A3", "x/A1", "y/A2"]


def test_cinc_headers_that_say_nothing_are_listed_all_the_same(tmp_path):
    for name in ("no_signal", "broken", "sound"):
        write_cinc(tmp_path / name)
    (tmp_path / "no_signal.mat").unlink()
    (tmp_path / "broken.hea").write_bytes(b"\xff\xfe\x00#Age: 41\n#Age: 41\n#Dx:\n#\n")
    opened = open_archive(ArchiveSettings("cinc", str(tmp_path)))
    rows = opened.checked_index().to_pylist()
    assert [(row["record_id"], row["age"], row["codes"]) for row in rows] == [
        ("broken", 41, None), ("no_signal", 53, ["426783006"]), ("sound", 53, ["426783006"]),
    ]  # fmt: skip
    found = [getattr(one, "code", "read") for one in opened.read_each(rows)]
    assert found == ["bad_header", "missing_file", "read"]
    (tmp_path / "empty" / "georgia").mkdir(parents=True)
    with pytest.raises(DataError, match="found none"):
        index_of("cinc", tmp_path / "empty")


@pytest.mark.parametrize(
    ("comments", "expected"),
    [
        ("#Age: 74\n#Sex: Female\n#Dx: 59118001,270492004\n", (74, "F", ["59118001", "270492004"])),
        ("# Age: 74.0\r\n# Sex: F\r\n# Dx: 59118001\r\n", (74, "F", ["59118001"])),
        ("#age:0\n#SEX:male\n#dx:59118001;270492004", (0, "M", ["59118001", "270492004"])),
        ("#Dx: 59118001\n#Dx: 270492004,59118001\n", (None, None, ["59118001", "270492004"])),
        ("#Age: 50\n#Age: 60\n#Sex: M\n#Sex: F\n", (50, "M", None)),
        ("#Age: Unknown\n#Sex: NaN\n#Dx: Unknown\n", (None, None, None)),
        ("#Age:\n#Sex:\n#Dx:\n#Rx: 59118001\n", (None, None, None)),
        ("#Age\n#Sex M\n#Dx 59118001\n", (None, None, None)),
        ("#Dx: 12,5.9118001,-59118001,x59118001,1234567890123456789\n", (None, None, None)),
        ("#Hx: #Age: 50\nAge: 50\n", (None, None, None)),
        ("", (None, None, None)),
    ],
)
def test_cinc_comments(comments, expected):
    found = stated_in(f"A1 1 500 10\nA1.mat 16+24 1000/mV 16 0 0 0 0 I\n{comments}")
    assert tuple(found.values()) == expected


@pytest.mark.parametrize(
    ("text", "age"),
    [("53", 53), (" 53.5\n", 53.5), ("0", 0), (">89", 90), ("300", 90)],
)
def test_ages(text, age):
    assert age_in_years(text) == age


@pytest.mark.parametrize("text", ["-1", "131", "NaN", "inf", "1e999", "", "fifty", "5 3", ">90"])
def test_ages_that_are_none(text):
    assert age_in_years(text) is None


@pytest.mark.parametrize(
    ("text", "sex"),
    [("Male", "M"), ("F\n", "F"), ("female", "F"), ("Unknown", None), ("", None), ("0", None)],
)
def test_sexes(text, sex):
    assert sex_of(text) == sex


@pytest.mark.parametrize(
    ("above", "source"),
    [
        ("training/georgia/g1", "georgia"),
        ("cpsc_2018_extra", "cpsc_2018_extra"),
        ("training/st_petersburg_incart/g1", "st_petersburg_incart"),
        ("PhysioNetChallenge2020_Training_E/WFDB", "PhysioNetChallenge2020_Training_E"),
        ("Training_WFDB", None),
        ("WFDBRecords/01/010", None),
        ("g1", None),
        ("", None),
    ],
)
def test_cinc_sources(above, source):
    assert source_of(above) == source


def test_ludb_takes_the_table_and_the_headers_for_what_it_lacks(tmp_path):
    rows = index_of("ludb", Path(a_ludb(tmp_path / "a").path))
    assert [row["record_id"] for row in rows] == ["1", "2", "3", "10"]
    assert all(row["patient_id"] == row["record_id"] for row in rows)
    assert [row["path"] for row in rows[2:]] == ["data/3", "data/10"]
    assert [(row["age"], row["sex"]) for row in rows] == [
        (51, "F"), (90, "M"), (None, None), (87, "F"),
    ]  # fmt: skip
    assert [row["codes"] for row in rows] == [
        ["Sinus bradycardia", "Electric axis of the heart: left axis deviation",
         "Left atrial hypertrophy", "Left ventricular hypertrophy"],
        ["Sinus rhythm"],
        [],
        ["Sinus rhythm", "Iii degree av-block",
         "Ventricular extrasystole, localisation: rvot, anterior wall",
         "Unipolar ventricular pacing"],
    ]  # fmt: skip


def test_ludb_without_its_lists(tmp_path):
    folder = Path(a_ludb(tmp_path / "a").path)
    write_ludb(folder / "data" / "20")
    for name in ("ludb.csv", "RECORDS"):
        (folder / name).unlink()
    rows = index_of("ludb", folder)
    assert [row["record_id"] for row in rows] == ["1", "2", "3", "10", "20"]
    assert {row["age"] for row in rows[:4]} == {87}
    assert [rows[4][name] for name in ("age", "sex", "codes")] == [None] * 3
    shutil.rmtree(folder / "data")
    with pytest.raises(DataError, match="no data"):
        index_of("ludb", folder)


def test_ludb_lists_a_record_that_is_not_there(tmp_path):
    settings = a_ludb(tmp_path / "a")
    for file in (tmp_path / "a" / "data").glob("10.*"):
        file.unlink()
    opened = open_archive(settings)
    rows = opened.checked_index().to_pylist()
    assert [rows[3][name] for name in ("record_id", "age", "codes")] == ["10", None, None]
    found = [getattr(one, "code", "read") for one in opened.read_each(rows)]
    assert found == ["read"] * 3 + ["missing_file"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"Name,Age\n1,50\n", r"ludb\.csv: expected the column ID"),
        (b"", "expected the column ID"),
        (b'ID,Age\n1,"' + b"x" * 200_000 + b'"\n', r"ludb\.csv, line 2: field larger"),
    ],
)
def test_ludb_tables_that_cannot_be_read(tmp_path, table, message):
    folder = Path(a_ludb(tmp_path / "a").path)
    (folder / "ludb.csv").write_bytes(table)
    with pytest.raises(DataError, match=message):
        index_of("ludb", folder)


@pytest.mark.parametrize(
    "table",
    [
        b"\xef\xbb\xbfID,Sex\n1,M\n",  # a byte-order mark
        b" ID ,Sex\r\n1 ,M\r\n",
        b"ID,Sex\n1,M,more,cells\n1,F\n",  # cells without a column, and a second row
        b"ID,Sex,,\n1,M,,\n",
        b"ID,Sex,Rhythms\n1,M\n",
        b"ID,Sex,Rhythms\n1,M,\x92\xff\n",  # Windows-1252
    ],
)
def test_ludb_tables_with_odd_cells(tmp_path, table):
    folder = Path(a_ludb(tmp_path / "a").path)
    (folder / "ludb.csv").write_bytes(table)
    rows = index_of("ludb", folder)
    assert (rows[0]["sex"], rows[0]["age"], rows[3]["age"]) == ("M", None, 87)


def test_real_ludb(data_folder):
    opened = open_archive(ArchiveSettings("ludb", str(data_folder / "ludb")))
    rows = opened.checked_index().to_pylist()
    assert [row["record_id"] for row in rows] == [str(i) for i in range(1, 201)]
    assert Counter(row["sex"] for row in rows) == {"M": 115, "F": 85}
    ages = [row["age"] for row in rows]
    assert (min(ages), max(ages), ages[33]) == (11, 90, 90)  # record 34 says >89
    # The counts that its publishers state.
    counts = Counter(code for row in rows for code in row["codes"])
    assert (counts["Sinus rhythm"], counts["Sinus bradycardia"]) == (143, 25)
    assert counts["Electric axis of the heart: left axis deviation"] == 66
    assert counts["Incomplete right bundle branch block"] == 29
    assert counts["Left anterior hemiblock"] == 16
    assert all(code == code.strip() and "\n" not in code for code in counts)
    # The headers say the same, but for one statement.
    for row in rows:
        stated = opened._stated(row["path"])
        assert (stated["age"], stated["sex"]) == (row["age"], row["sex"])
        assert {*row["codes"]} - {"Pacemaker presence, undefined"} == {*stated["codes"]}
    records = list(opened.read_each(rows))
    assert {(one.leads, one.fs, one.flags) for one in records} == {(STANDARD_LEADS, 500.0, ())}
    assert all(len(set(one.gain_L)) > 1 for one in records)


def test_segments_named_after_their_record_belong_to_it(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    for name in ("r1_0001", "r1_0002", "r12", "s0"):
        signal = np.arange(20, dtype=np.int64)[:, None] + len(name)
        wfdb.wrsamp(
            name, fs=100, units=["mV"], sig_name=["V1"], d_signal=signal, fmt=["16"],
            adc_gain=[100.0], baseline=[0], write_dir=str(folder),
        )  # fmt: skip
    (folder / "r1_layout.hea").write_text("r1_layout 1 100 0\n~ 0 100/mV 16 0 0 0 0 V1\n")
    (folder / "r1.hea").write_text("r1/4 1 100 60\nr1_layout 0\nr1_0001 20\nr1_0002 20\ns0 20\n")
    archive = open_archive(ArchiveSettings("wfdb", str(tmp_path)))
    assert archive.index()["record_id"].to_pylist() == ["a/r1", "a/r12", "a/s0"]
    [first, *_] = archive.read_each(archive.index().to_pylist())
    assert first.digital.shape == (1, 60)


def facts_of(archive):
    return np.concatenate([facts for _, facts in archive.listing()])


def test_a_file_that_changes_in_a_sub_folder_changes_its_record_s_facts(tmp_path):
    for name in ("a", "b_1", "b_1_0001", "x/a", "x/y/c"):
        write_wfdb(tmp_path / Path(name).parent, Path(name).name, ["I", "V1"], 100, "16")
    (tmp_path / "b_1_0001.hea").unlink()  # a segment, which is no record of its own
    opened = open_archive(ArchiveSettings("wfdb", str(tmp_path)))
    index = opened.index()
    assert index["record_id"].to_pylist() == ["a", "b_1", "x/a", "x/y/c"]
    before, of_all = facts_of(opened), opened.deciding_facts(index)
    assert (before[:, 0] > 0).all()
    for file, expected in (
        ("x/y/c.dat", [False, False, False, True]),
        ("b_1_0001.dat", [False, True, False, False]),
    ):
        stat = (tmp_path / file).stat()
        os.utime(tmp_path / file, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
        after = facts_of(opened)
        assert (after != before).any(axis=1).tolist() == expected
        assert (opened.deciding_facts(index) != of_all).any()
        before = after
