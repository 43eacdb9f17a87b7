"""Untrusted archives: no file outside is opened, nothing hangs, no claim takes memory."""

from __future__ import annotations

import os
import pickle
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from test_reader_errors import SAMPLES_TL, refused, signal_line, write_header

from rayecg.archives.catalogue import open_archive
from rayecg.archives.wfdb_formats import MAX_FLAC_BYTES
from rayecg.archives.wfdb_header import MAX_HEADER_BYTES, MAX_SIGNALS
from rayecg.archives.wfdb_reader import read, read_record
from rayecg.core.errors import RecordError
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.record import MAX_SAMPLES
from rayecg.core.storage import Folder

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def record(tmp_path) -> Path:
    """Give a sound record in a folder that has others beside it."""
    folder = tmp_path / "archive"
    folder.mkdir()
    SAMPLES_TL.tofile(folder / "r.dat")
    write_header(folder / "r", [signal_line(i) for i in range(3)])
    return folder / "r"


def refused_by(folder: Folder, name: str, code: str) -> None:
    with pytest.raises(RecordError) as caught:
        read(folder, name)
    assert caught.value.code == code, caught.value.message


def peak_bytes(function: Callable[[], object]) -> int:
    """Give the most memory that a call held, by Python's and numpy's own count."""
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


NAMES = [
    "../x.dat",
    "/etc/passwd",
    "sub/x.dat",
    "..\\x.dat",
    "..",
    "~",
    "~root",
    "C:x.dat",
    "./r.dat",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fmt", ["16", "24", "516"])
def test_a_header_names_files_of_its_own_folder_alone(record, name, fmt):
    SAMPLES_TL.tofile(record.parent.parent / "x.dat")
    write_header(record, [signal_line(i, name, fmt) for i in range(3)])
    assert repr(name) in refused(record, "outside_archive")


@pytest.mark.parametrize("fmt", ["16", "24", "516"])
def test_a_link_does_not_lead_out_of_the_folder(record, fmt):
    outside = record.parent.parent / "x.dat"
    np.arange(450, dtype="<i2").tofile(outside)
    (record.parent / "link.dat").symlink_to(outside)
    (record.parent / "detour.dat").symlink_to("link.dat")
    (record.parent / "dots.dat").symlink_to("../x.dat")
    for name in ("link.dat", "detour.dat", "dots.dat"):
        write_header(record, [f"{name} {fmt} 200"] * 3)
        assert name in refused(record, "outside_archive")


def test_a_folder_beside_with_a_longer_name_is_outside(record):
    beside = record.parent.parent / "archive2"
    beside.mkdir()
    SAMPLES_TL.tofile(beside / "x.dat")
    (record.parent / "link.dat").symlink_to("../archive2/x.dat")
    write_header(record, ["link.dat 16 200"] * 3)
    refused(record, "outside_archive")


def test_a_header_that_is_a_link_out_of_the_folder(record):
    outside = record.parent.parent / "x.hea"
    outside.write_text("secret")
    (record.parent / "s.hea").symlink_to(outside)
    assert "secret" not in refused(record.with_name("s"), "outside_archive")


def test_a_link_within_the_folder_is_followed(record):
    (record.parent / "link.dat").symlink_to("r.dat")
    (record.parent / "link2.dat").symlink_to(record.parent / "link.dat")
    write_header(record, [signal_line(i, "link2.dat") for i in range(3)])
    np.testing.assert_array_equal(read_record(record).digital, SAMPLES_TL.T)


def test_links_to_folders(record):
    """One that stays inside is followed where a path names it, and none is searched for records."""
    archive, outside = record.parent, record.parent.parent / "outside"
    for folder in (archive / "sub", outside):
        folder.mkdir()
        SAMPLES_TL.tofile(folder / "r.dat")
        write_header(folder / "r", [signal_line(i) for i in range(3)])
    (archive / "inner").symlink_to("sub")
    (archive / "sub" / "up").symlink_to("..")
    (archive / "outer").symlink_to(outside)
    (archive / "nested").symlink_to("outer")
    folder = Folder(archive)
    assert list(folder.walk(".hea")) == ["r.hea", "sub/r.hea"]
    for name in ("r", "sub/r", "inner/r", "sub/up/r", "sub/up/inner/r"):
        np.testing.assert_array_equal(read(folder, name).digital, SAMPLES_TL.T)
    for name in ("outer/r", "nested/r", "sub/up/outer/r"):
        refused_by(folder, name, "outside_archive")


def test_links_that_lead_nowhere(record):
    (record.parent / "loop.dat").symlink_to("loop2.dat")
    (record.parent / "loop2.dat").symlink_to("loop.dat")
    (record.parent / "gone.dat").symlink_to("nothing.dat")
    for name in ("loop.dat", "gone.dat"):
        write_header(record, [f"{name} 16 200"] * 3)
        refused(record, "missing_file")


@pytest.mark.parametrize("suffix", [".hea", ".dat"])
@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "socket", "folder"])
def test_what_is_no_file_does_not_hang(record, suffix, kind):
    os.unlink(f"{record}{suffix}")
    if kind == "pipe":
        os.mkfifo(f"{record}{suffix}")
    elif kind == "link to a pipe":
        os.mkfifo(record.parent / "pipe")
        os.symlink("pipe", f"{record}{suffix}")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(f"{record}{suffix}"))
    else:
        os.mkdir(f"{record}{suffix}")
    refused(record, "missing_file")
    write_header(record, ["r.dat 516 200"], "r 1 250") if suffix == ".dat" else None
    refused(record, "missing_file")


@pytest.mark.parametrize(
    "name", ["r\0", "r\0/r", "a" * 5000, "a" * 5000 + "/r", "r\udc80\ud800", "r/r"]
)
def test_names_that_no_file_can_have(record, name):
    refused_by(Folder(record.parent), name, "missing_file")


def test_a_file_whose_name_is_not_unicode_is_a_row_of_the_index(record):
    for raw in (b"\xff.hea", b"\xfe.hea", "ü.hea".encode()):
        with open(os.fsencode(record.parent) + b"/" + raw, "wb") as stream:
            stream.write(record.with_suffix(".hea").read_bytes())
    archive = open_archive(ArchiveSettings("wfdb", str(record.parent)))
    index = archive.checked_index()
    assert index["record_id"].to_pylist() == ["\\xfe", "\\xff", "r", "ü"]
    codes = [getattr(found, "code", None) for found in archive.read_each(index.to_pylist())]
    assert codes == ["outside_archive", "outside_archive", None, None]


@pytest.mark.parametrize("path", ["../r", "/etc/r", "sub/../../r", "~/r"])
def test_an_index_names_records_of_its_archive_alone(record, path):
    archive = open_archive(ArchiveSettings("wfdb", str(record.parent)))
    found = archive.read({"path": "./r"})
    np.testing.assert_array_equal(found.digital[[0, 1, 6]], SAMPLES_TL.T)
    with pytest.raises(RecordError) as caught:
        archive.read({"path": path})
    assert caught.value.code == "outside_archive"


def test_an_archive_travels_to_workers_of_another_folder(record, monkeypatch):
    monkeypatch.chdir(record.parent.parent)
    sent = pickle.dumps(open_archive(ArchiveSettings("wfdb", "archive")))
    monkeypatch.chdir("/")
    found = pickle.loads(sent).read({"path": "r"})
    np.testing.assert_array_equal(found.digital[[0, 1, 6]], SAMPLES_TL.T)


def test_a_header_over_the_limit_is_not_read(record):
    os.truncate(f"{record}.hea", MAX_HEADER_BYTES + 1)
    refused(record, "bad_header")
    os.truncate(f"{record}.hea", 1 << 40)  # sparse: takes no disk
    assert peak_bytes(lambda: refused(record, "bad_header")) < 1 << 20


@pytest.mark.parametrize("fmt", ["16", "212", "24"])
def test_a_claim_that_is_too_large_is_refused_before_memory_is_taken(record, fmt):
    n_times = MAX_SAMPLES // 3 + 1
    write_header(record, [f"r.dat {fmt} 200"] * 3, f"r 3 250 {n_times}")
    assert str(3 * n_times) in refused(record, "too_large")


LINE = "r.dat {} 200"
CLAIMS = [
    ("r 1 250 1000000000", [LINE.format("16")], "truncated_signal"),
    ("r 1 250 1000000000", [LINE.format("212")], "truncated_signal"),
    ("r 1 250 1e300", [LINE.format("16")], "too_large"),
    ("r 1 250 " + "9" * 4290, [LINE.format("16")], "too_large"),
    ("r 1 250 50", [LINE.format("16x100000000")], "too_large"),
    ("r 1 250 50", [LINE.format("16x1000000")], "truncated_signal"),
    ("r 1 250", [LINE.format("16x" + "9" * 50)], "truncated_signal"),
    ("r 1 250", [LINE.format("516x" + "9" * 50)], "truncated_signal"),
    ("r 1 250 10", [LINE.format("16x" + "9" * 50)], "too_large"),
    ("r 1 250 10", [LINE.format("16:" + "9" * 50)], "all_invalid"),
    ("r 1 250 10", [LINE.format("16+" + "9" * 50)], "truncated_signal"),
    ("r 1 250", [LINE.format("16+" + "9" * 50)], "truncated_signal"),
    ("r 1 250 10", [LINE.format("516+" + "9" * 50)], "truncated_signal"),
    (f"r {MAX_SIGNALS + 1} 250 1", [LINE.format("16")] * (MAX_SIGNALS + 1), "too_large"),
    ("r 999999999 250 50", [LINE.format("16")], "too_large"),
    (f"r {'9' * 4290} 250 50", [LINE.format("16")], "too_large"),
    # 299 leads of one sample a frame beside one of 65,000: brought to one rate, 19,500,000 samples.
    ("r 300 250 1", [LINE.format("16")] * 299 + [LINE.format("16x65000")], "too_large"),
    # Two rates that no small whole numbers relate.
    ("r 2 250 1", [LINE.format("16x10007"), LINE.format("16x10009")], "too_large"),
]


@pytest.mark.parametrize(("first", "lines", "code"), CLAIMS, ids=range(len(CLAIMS)))
def test_what_a_header_claims_takes_no_memory(record, first, lines, code):
    write_header(record, lines, first)
    if "65000" in lines[-1] or "10009" in lines[-1]:
        os.truncate(f"{record}.dat", 1 << 18)
    if "516" in lines[-1]:
        soundfile.write(record.with_suffix(".dat"), SAMPLES_TL[:, 0], 96_000, format="FLAC")
    # A megabyte, and what 4097 lines take as they are read.
    assert peak_bytes(lambda: refused(record, code)) < (8 << 20 if len(lines) > 99 else 1 << 20)
    assert len(refused(record, code)) < 500 + len(str(record))


def test_a_file_that_is_too_large_without_a_claim(record):
    write_header(record, ["r.dat 16 200"] * 3, "r 3 250")
    os.truncate(f"{record}.dat", 2 * MAX_SAMPLES + 600)  # sparse: takes no disk
    assert peak_bytes(lambda: refused(record, "too_large")) < 1 << 20


def test_files_that_are_too_large_together(record):
    for name in ("r", "s"):
        with open(record.with_name(f"{name}.dat"), "wb") as stream:
            stream.truncate(MAX_SAMPLES // 2 + 1)
    lines = ["r.dat 80 200", "s.dat 80 200"]
    write_header(record, lines, f"r 2 250 {MAX_SAMPLES // 2 + 1}")
    assert peak_bytes(lambda: refused(record, "too_large")) < 1 << 20


def test_a_flac_file_over_the_limit_is_not_read(record):
    write_header(record, ["r.dat 516 200"], "r 1 250")
    os.truncate(f"{record}.dat", MAX_FLAC_BYTES + 1)
    assert peak_bytes(lambda: refused(record, "too_large")) < 1 << 20


@pytest.mark.parametrize("n_times", ["", " 2200000"])
def test_a_flac_file_that_unfolds_without_end(record, n_times):
    """Eight signals of equal samples: 17.6 million of them in some 20 kB."""
    zeros_TL = np.zeros((2_200_000, 8), dtype=np.int16)
    soundfile.write(record.with_suffix(".dat"), zeros_TL, 96_000, format="FLAC")
    assert record.with_suffix(".dat").stat().st_size < 30_000
    write_header(record, ["r.dat 516 200"] * 8, f"r 8 250{n_times}")
    # What the limit allows, twice, is the most that is held.
    assert peak_bytes(lambda: refused(record, "too_large")) < 3 * 2 * (1 << 24)
    write_header(record, ["r.dat 516 200"] * 8, "r 8 250 2000000")
    assert read_record(record).digital.shape == (8, 2_000_000)


@pytest.mark.parametrize("format", ["WAV", "AIFF", "OGG", "RAW"])
def test_other_sound_files_are_not_tried(record, format):
    more = {"subtype": "PCM_16"} if format == "RAW" else {}
    soundfile.write(record.with_suffix(".dat"), SAMPLES_TL, 96_000, format=format, **more)
    write_header(record, ["r.dat 516 200"] * 3, "r 3 250")
    assert "does not begin as a FLAC file" in refused(record, "truncated_signal")


def test_many_signals_in_files_of_their_own(record):
    (record.parent / "s.dat").write_bytes(b"\1\0" * 4)
    lines = [f"s{i}.dat 16 200" for i in range(MAX_SIGNALS)]
    for i in range(MAX_SIGNALS):
        os.link(record.parent / "s.dat", record.parent / f"s{i}.dat")
    write_header(record, lines, f"r {MAX_SIGNALS} 250 4")
    assert read_record(record).digital.shape == (MAX_SIGNALS, 4)
