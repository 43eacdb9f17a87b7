"""The grammar of WFDB headers, how archives break it, and signals that are no ECG."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wfdb
from against_wfdb import assert_equals_wfdb

from rayecg.archives.wfdb_header import MAX_NAME, parse_header, read_header
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import RecordError
from rayecg.core.storage import Folder

SAMPLES_TL = np.random.default_rng(5).integers(-900, 900, (40, 2)).astype("<i2")


def lines_of(names: str = "I II", form: str = "r.dat 16 200/mV", end: str = "0") -> list[str]:
    """Give the signal lines of `SAMPLES_TL`."""
    sums = SAMPLES_TL.sum(axis=0, dtype=np.int64) % 65536
    return [
        f"{form} 16 0 {SAMPLES_TL[0, i]} {sums[i]} {end} {name}"
        for i, name in enumerate(names.split())
    ]


def write_header(folder: Path, first: str, lines: list[str], name: str = "r") -> Path:
    SAMPLES_TL.tofile(folder / "r.dat")
    (folder / f"{name}.hea").write_text("\n".join([first, *lines]) + "\n", encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    "lines",
    [
        ["r.dat 8 200", "r.dat 8 200"],
        ["r.dat 61 200", "r.dat 61 200"],
        ["r.dat 160 200", "r.dat 160 200"],
        ["r.dat 310 200", "r.dat 310 200"],
        ["r.dat 16x2 200", "r.dat 16x2 200"],  # two samples a frame
        ["r.dat 16:3 200", "r.dat 16 200"],  # three samples of skew
        ["r.dat 16+24 200", "r.dat 16+24 200"],  # 24 bytes that are no samples
        ["r.dat 212+24 200", "r.dat 212+24 200"],
        ["r.dat 16x2+2 200", "r.dat 16+2 200"],
        ["r.dat 16 200", "s.dat 16 100(3)/uV"],  # a file each
        ["r.dat 16 200", "r.dat 16 200", "s.dat 212 100"],  # a format each
        ["r.dat 16", "r.dat 16 0"],  # no gain
        ["r.dat 16 2.5e2(-7)/mV 12 9", "r.dat 16 1e+1/nV 12 9"],  # with a zero beside the baseline
        ["r.dat 16 200/mV 12 9", "r.dat 16 200 12 -9"],  # a zero is the baseline if that is missing
        ["r.dat 16 -200/mV", "r.dat 16 200"],  # upside down
    ],
)
def test_signal_lines_as_wfdb_reads_them(tmp_path, lines):
    rng = np.random.default_rng(1)
    for name in "rs":
        rng.integers(0, 256, 800, dtype=np.uint8).tofile(tmp_path / f"{name}.dat")
    text = [f"# first\nr {len(lines)} 250 40", "# between", *lines, "# last"]
    (tmp_path / "r.hea").write_text("\n".join(text))
    record = assert_equals_wfdb(tmp_path / "r")
    assert record.leads == tuple(f"lead{i}" for i in range(len(lines)))
    assert "nonstandard_header" not in record.flags


@pytest.mark.parametrize(
    "first",
    [
        "r 2 250 40",
        "r 2 250",
        "r 2",
        "r 2 250.0 40",
        "r 2 250/360 40",
        "r 2 250/360(10.5) 40 12:00",
        "r 2 250 40 1:02:03",
        "r 2 250 40 00:00:00.500 01/12/1999",
        "A_record-1 2 250 40",
    ],
)
def test_a_standard_header_is_not_flagged(tmp_path, first):
    path = write_header(tmp_path, first, lines_of())
    record = read_record(path)
    assert record.flags == ()
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T)
    assert record.fs == 250
    assert wfdb.rdheader(str(path)).fs == 250


@pytest.mark.parametrize(
    "first",
    [
        "E00271.mat 2 250 40 05-May-2020 14:00:00",  # Georgia's and others' of PhysioNet's challenges
        "JS00001.mat 2 250 40",
        "r 2 250 40 14:00:00 2020-05-05",
        "r 2 250 40 14:00:00 5/5/20",
        "r 2 250 40.0",
        "r 2 250 4e1",
        "r 2 250 40 Wed",
        "r 2 250 40 14:00:00 05/05/2020 and more",
        "the.record 2 250 40",
    ],
)
def test_what_leaves_the_signal_unambiguous_is_read_and_flagged(tmp_path, first):
    record = read_record(write_header(tmp_path, first, lines_of()))
    assert record.flags == ("nonstandard_header",)
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T)


def test_wfdb_refuses_the_headers_of_the_challenge(tmp_path):
    path = write_header(tmp_path, "E00271.mat 2 250 40 05-May-2020 14:00:00", lines_of())
    with pytest.raises(ValueError, match="invalid syntax in record line"):
        wfdb.rdheader(str(path))


def test_lines_after_the_last_signal_are_flagged(tmp_path):
    more = [*lines_of(), "r.dat 16 200/mV 16 0 0 0 0 V1", "Age: 60"]
    record = read_record(write_header(tmp_path, "r 2 250 40", more))
    assert record.flags == ("nonstandard_header",)
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T)


@pytest.mark.parametrize("form", ["16x1+24", "16+24", "16x1:0+24"])
def test_matlab_files_hold_samples_after_their_own_header(tmp_path, form):
    raw = b"\x0c\x00\x00\x00\x02\x00\x00\x00\x28\x00\x00\x00\x00\x00\x00\x00\x04\x00\x00\x00val\x00"
    (tmp_path / "A0001.mat").write_bytes(raw + SAMPLES_TL.tobytes())
    lines = lines_of(form=f"A0001.mat {form} 1000/mV")
    path = write_header(tmp_path, "A0001 2 250 40 05-Feb-2020 11:39:16", lines, "A0001")
    record = read_record(path)
    assert record.flags == ("nonstandard_header",)
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T)
    write_header(tmp_path, "A0001 2 250 40 11:39:16", lines, "A0001")
    assert assert_equals_wfdb(path).flags == ()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_ends_of_lines(tmp_path, ending):
    path = write_header(tmp_path, "r 2 250 40", ["", *lines_of(), "", "  # note"])
    text = path.with_suffix(".hea").read_text()
    path.with_suffix(".hea").write_bytes(text.replace("\n", ending).encode())
    assert read_record(path).flags == ()
    assert read_header(Folder(tmp_path), "r").comments == ("note",)


def test_a_header_in_another_encoding(tmp_path):
    """A byte that ends a line in Unicode (0x85) is a character of Windows' own encoding."""
    path = write_header(tmp_path, "r 2 250 40", [*lines_of(), "# note"])
    raw = path.with_suffix(".hea").read_bytes().replace(b"note", b"Gr\xf6\xdfe \x85 unbekannt")
    path.with_suffix(".hea").write_bytes(raw)
    record = read_record(path)
    assert record.flags == ()
    assert read_header(Folder(tmp_path), "r").comments == ("Größe \x85 unbekannt",)


def test_names_of_leads_hold_spaces_and_other_alphabets(tmp_path):
    path = write_header(tmp_path, "r 2 250 40", lines_of("II X"))
    text = path.with_suffix(".hea").read_text().replace(" X\n", " Отведение  2 \n")
    path.with_suffix(".hea").write_text(text, encoding="utf-8")
    assert read_record(path).leads == ("II", "Отведение  2")


def test_signals_that_are_no_voltage_are_left_out(tmp_path):
    lines = lines_of("ABP II")
    lines[0] = lines[0].replace("/mV", "/mmHg")
    path = write_header(tmp_path, "r 2 250 40", lines)
    record = assert_equals_wfdb(path)
    assert (record.leads, record.flags) == (("II",), ("other_signal:ABP",))
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T[1:])


def test_a_signal_that_is_left_out_is_checked_all_the_same(tmp_path):
    lines = lines_of("RESP II")
    words = lines[0].replace("/mV", "/Ohm").split()
    words[6] = "1"
    path = write_header(tmp_path, "r 2 250 40", [" ".join(words), lines[1]])
    with pytest.raises(RecordError, match="lead 'RESP': expected checksum 1,"):
        read_record(path)
    assert read_record(path, checks="flag").flags == (
        "other_signal:RESP",
        "checksum_mismatch:RESP",
    )


def test_a_faster_signal_that_is_left_out_does_not_set_the_rate(tmp_path):
    SAMPLES_TL.tofile(tmp_path / "r.dat")
    lines = ["r.dat 16x3 200/mmHg 16 0 0", "r.dat 16 200/mV 16 0"]
    (tmp_path / "r.hea").write_text("\n".join(["r 2 250 20", *lines]))
    record = read_record(tmp_path / "r", checks="off")
    assert (record.fs, record.flags) == (250, ("other_signal:signal0",))
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.reshape(20, 4)[:, 3:].T)


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("mV", 1), ("MV", 1), ("uV", 1000), ("µV", 1000), ("μV", 1000), ("V", 0.001), ("nV", 1e6)],
)
def test_units_of_voltage(tmp_path, unit, factor):
    path = write_header(tmp_path, "r 2 250 40", lines_of(form=f"r.dat 16 250(4)/{unit}"))
    expected_LT = (SAMPLES_TL.T.astype(np.float64) - 4) / (250 * factor)
    np.testing.assert_allclose(read_record(path).physical, expected_LT, rtol=2.0**-23)


def test_a_gain_that_is_not_stated_is_flagged(tmp_path):
    lines = lines_of("V1 V2", form="r.dat 16 0")
    path = write_header(tmp_path, "r 2 250 40", [lines[0], lines[1].replace(" 0 16", " 100 16")])
    record = read_record(path)
    assert record.flags == ("default_gain:V1",)
    assert record.gain_L.tolist() == [200.0, 100.0]


@pytest.mark.parametrize(
    ("n_more", "flags"), [(3, ()), (511, ()), (512, ("longer_file",)), (4000, ("longer_file",))]
)
def test_a_file_that_goes_on(tmp_path, n_more, flags):
    path = write_header(tmp_path, "r 2 250 40", lines_of())
    with open(tmp_path / "r.dat", "ab") as stream:
        stream.write(b"\1" * n_more)
    record = read_record(path)
    assert record.flags == flags
    np.testing.assert_array_equal(record.digital, SAMPLES_TL.T)


def test_what_is_kept_of_headers_is_of_bounded_length():
    line = f"r.dat 16 200 16 0 0 0 0 {'x' * MAX_NAME}"
    assert len(parse_header(f"r 1 250 9\n{line}").signals.specs[0].name) == MAX_NAME
    for longer in (f"{line}x", f"r.dat 16 200/{'m' * 80} 16 0 0 0 0 I", f"r.dat 16 {'1' * 80}"):
        with pytest.raises(RecordError) as caught:
            parse_header(f"r 1 250 9\n{longer}")
        assert caught.value.code == "bad_header"
