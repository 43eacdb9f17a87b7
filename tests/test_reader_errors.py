"""Records that cannot be read: each reason has its code, names the file, and is found early."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import wfdb

from rayecg.archives.mitbih import read_beats
from rayecg.archives.wfdb_header import MAX_HEADER_BYTES
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import ERROR_CODES, DataError, RecordError, record_error

LEADS = ("I", "II", "V1")
SAMPLES_TL = np.random.default_rng(3).integers(-900, 900, (50, 3)).astype("<i2")


def signal_line(i: int, name: str = "r.dat", fmt: str = "16", gain: str = "200/mV") -> str:
    checksum = int(SAMPLES_TL[:, i].sum(dtype=np.int64)) % 65536
    return f"{name} {fmt} {gain} 16 0 {SAMPLES_TL[0, i]} {checksum} 0 {LEADS[i]}"


@pytest.fixture
def record(tmp_path) -> Path:
    """Give a sound record of three leads, to be damaged."""
    folder = tmp_path / "archive"
    folder.mkdir()
    SAMPLES_TL.tofile(folder / "r.dat")
    write_header(folder / "r", [signal_line(i) for i in range(3)])
    assert read_record(folder / "r").flags == ()
    return folder / "r"


def write_header(path: Path, lines: list[str], first: str = "r 3 250 50") -> None:
    path.with_suffix(".hea").write_text("\n".join([first, *lines]) + "\n")


def refused(path: Path, code: str) -> str:
    """Give the message of the refusal, which has one line and names the file."""
    with pytest.raises(RecordError) as caught:
        read_record(path)
    message = str(caught.value)
    assert caught.value.code == code, message
    assert str(path.parent) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kept", [0, 1, 299])
def test_truncated_signal(record, kept):
    os.truncate(f"{record}.dat", kept)
    assert f"expected 300 bytes (3 leads x 50 samples), came {kept}" in refused(
        record, "truncated_signal"
    )


def test_truncated_signal_of_12_bits(record):
    write_header(record, [f"r.dat 212 200 12 0 {i}" for i in range(3)])
    os.truncate(f"{record}.dat", 224)
    assert "expected 225 bytes" in refused(record, "truncated_signal")


@pytest.mark.parametrize(
    ("fmt", "n_bytes"),
    [("8", 150), ("24", 450), ("32", 600), ("61", 300), ("80", 150), ("160", 300), ("310", 200),
     ("311", 200), ("16x2", 600)],
)  # fmt: skip
def test_truncated_signal_of_a_rare_format(record, fmt, n_bytes):
    write_header(record, [f"r.dat {fmt} 200"] * 3)
    with open(f"{record}.dat", "ab") as stream:
        stream.truncate(n_bytes)
    assert len(read_record(record, checks="off").leads) == 3
    os.truncate(f"{record}.dat", n_bytes - 1)
    message = refused(record, "truncated_signal")
    assert f"expected {n_bytes} bytes" in message
    assert f"came {n_bytes - 1}" in message


def test_an_empty_signal_without_a_length(record):
    for fmt in ("16", "212", "310", "516", "16x1000"):
        write_header(record, [f"r.dat {fmt} 200"] * 3, "r 3 250")
        os.truncate(f"{record}.dat", 4 if fmt == "212" else 0)
        refused(record, "truncated_signal")


@pytest.mark.parametrize("fmt", ["16+400", "212+301"])
@pytest.mark.parametrize("first", ["r 1 250 50", "r 1 250"])
def test_an_offset_beyond_the_file(record, fmt, first):
    write_header(record, [f"r.dat {fmt} 200"], first)
    refused(record, "truncated_signal")


@pytest.mark.parametrize("fmt", ["16", "24"])
def test_missing_signal(record, fmt):
    write_header(record, [f"s.dat {fmt} 200"], "r 1 250 50")
    assert f"{record.with_name('s.dat')}: No such file" in refused(record, "missing_file")


def test_missing_header(record):
    assert "nowhere.hea: No such file" in refused(record.with_name("nowhere"), "missing_file")


def test_a_folder_in_place_of_a_file(record):
    os.unlink(f"{record}.dat")
    os.mkdir(f"{record}.dat")
    with pytest.raises(RecordError):
        read_record(record)
    os.unlink(f"{record}.hea")
    os.mkdir(f"{record}.hea")
    refused(record, "missing_file")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"# only a comment\n",
        b"\x00\xff<html>502 Bad Gateway</html>\x80\n",
        b"r\n",
        b"r three 250 50\n",
        b"r 0 250 50\n",
        b"r -3 250 50\n",
        b"r 3 0 50\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 3 nan 50\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 3 inf 50\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 3 250 -50\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 3 250 50.5\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 3 250 nan\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 3 250 inf\nr.dat 16\nr.dat 16\nr.dat 16\n",
        b"r 1 1e400 50\nr.dat 16\n",
        b"r 1 250 " + b"9" * 5000 + b"\nr.dat 16\n",
        b"r 3 250 50\nr.dat 16\nr.dat 16\n",
        b"r 1 250 50\nr.dat 16x0\n",
        b"r 1 250 50\nr.dat 16x-2\n",
        b"r 1 250 50\nr.dat 16 1e-40\n",
        b"r 1 250 50\nr.dat 16 1e40\n",
        b"r 1 250 50\nr.dat 8 200 8 0 99999999999\n",
        b"r 1 250 50\nr.dat 8 200 8 0 1e300\n",
        b"r 1 250 50\nr.dat 16x2+" + b"1" * 60 + b"\n",
        b"r 2 250 50\nr.dat 516x2\nr.dat 516\n",
        b"r 1 250 50\nr.dat\n",
        b"r 1 250 50\nr.dat sixteen\n",
        b"r 1 250 50\nr.dat 16 12x\n",
        b"r 1 250 50\nr.dat 16 1.2.3\n",
        b"r 1 250 50\nr.dat 16 1e999\n",
        b"r 1 250 50\nr.dat 16 200(2147483648)\n",
        b"r 1 250 50\nr.dat 16 200(1" + 40 * b"0" + b")\n",
        b"r 1 250 50\nr.dat 16 200 16 zero\n",
        b"r 1 250 50\nr.dat 16 200 16 0 first\n",
        b"r 1 250 50\nr.dat 16 200 16 0 0 sum\n",
        b"r 2 250 50\nr.dat 16\nr.dat 212\n",
        b"r 2 250 50\nr.dat 16\nr.dat 16+2\n",
        b"r 2 250\nr.dat 16\ns.dat 16\n",
        b"r 3 250 9\nr.dat 16\ns.dat 16\nr.dat 16\n",
        b"r 1 250 50\nr.dat 16\n" + b"#" * MAX_HEADER_BYTES,
    ],
    ids=lambda content: repr(content[:40]),
)
def test_bad_headers(record, content):
    SAMPLES_TL[:10].tofile(record.with_name("s.dat"))
    record.with_suffix(".hea").write_bytes(content)
    refused(record, "bad_header")


def test_a_format_that_nobody_knows(record):
    write_header(record, ["r.dat 17 200"] * 3)
    assert "unknown format 17" in refused(record, "unsupported_format")


def test_a_wrong_checksum_is_of_the_lead_named(record):
    samples_TL = SAMPLES_TL.copy()
    samples_TL[7, 1] += 1
    samples_TL.tofile(f"{record}.dat")
    assert "lead 'II': expected checksum" in refused(record, "checksum_mismatch")
    assert read_record(record, checks="flag").flags == ("checksum_mismatch:II",)
    found = read_record(record, checks="off")
    assert found.flags == ()
    np.testing.assert_array_equal(found.digital, samples_TL.T)


def test_a_wrong_initial_value_is_of_the_lead_named(record):
    samples_TL = SAMPLES_TL.copy()
    samples_TL[[0, 1], 2] = samples_TL[[1, 0], 2]  # the checksum stays
    samples_TL.tofile(f"{record}.dat")
    assert f"lead 'V1': expected first sample {SAMPLES_TL[0, 2]}, came" in refused(
        record, "bad_initial_value"
    )
    assert read_record(record, checks="flag").flags == ("bad_initial_value:V1",)
    assert read_record(record, checks="off").flags == ()


def test_checksums_of_a_rare_format(tmp_path):
    d_TL = SAMPLES_TL.astype(np.int64)
    wfdb.wrsamp(
        "r", 250, ["mV"] * 3, list(LEADS), d_signal=d_TL, fmt=["24"] * 3,
        adc_gain=[200.0] * 3, baseline=[0] * 3, write_dir=str(tmp_path),
    )  # fmt: skip
    assert read_record(tmp_path / "r").flags == ()
    content = bytearray((tmp_path / "r.dat").read_bytes())
    content[300] ^= 1
    (tmp_path / "r.dat").write_bytes(content)
    refused(tmp_path / "r", "checksum_mismatch")
    assert len(read_record(tmp_path / "r", checks="flag").flags) == 1


def test_checksums_count_modulo_16_bits_and_may_be_negative(record):
    lines = [signal_line(i) for i in range(3)]
    words = lines[1].split(" ")
    words[6] = str(int(words[6]) - 65536)
    write_header(record, [lines[0], " ".join(words), lines[2]])
    assert read_record(record).flags == ()


@pytest.mark.parametrize("gain", ["200/mmHg", "200/%", "200(0)/ohm"])
def test_units_that_are_no_voltage(record, gain):
    write_header(record, [signal_line(i, gain=gain) for i in range(3)])
    assert f"came {gain.partition('/')[2]}" in refused(record, "bad_units")
    write_header(record, [signal_line(0), signal_line(1, gain=gain), signal_line(2)])
    found = read_record(record)
    assert (found.leads, found.flags) == (("I", "V1"), ("other_signal:II",))
    np.testing.assert_array_equal(found.digital, SAMPLES_TL.T[[0, 2]])


@pytest.mark.parametrize(
    ("fmt", "smallest"), [("16", -(2**15)), ("212", -(2**11)), ("24", -(2**23))]
)
def test_all_invalid(tmp_path, fmt, smallest):
    wfdb.wrsamp(
        "r", 250, ["mV"] * 2, ["I", "II"], d_signal=np.full((10, 2), smallest), fmt=[fmt] * 2,
        adc_gain=[200.0] * 2, baseline=[0] * 2, write_dir=str(tmp_path),
    )  # fmt: skip
    refused(tmp_path / "r", "all_invalid")


def test_beat_annotations_that_do_not_fit(tmp_path):
    wfdb.wrann("r", "atr", np.array([3, 70]), symbol=["N", "V"], write_dir=str(tmp_path))
    times, symbols = read_beats(tmp_path / "r", 71)
    assert (times.tolist(), symbols) == ([3, 70], ("N", "V"))
    with pytest.raises(RecordError, match="a beat at 70, the signal ends at 70") as caught:
        read_beats(tmp_path / "r", 70)
    assert caught.value.code == "bad_annotation"
    whole = (tmp_path / "r.atr").read_bytes()
    for content in (None, b"", whole[:-1], whole[:-2], whole[:-4], b"<html>"):
        if content is not None:
            (tmp_path / "s.atr").write_bytes(content)
        with pytest.raises(RecordError, match=r"s\.atr") as caught:
            read_beats(tmp_path / "s", 70)
        assert caught.value.code == "bad_annotation", content


@pytest.mark.parametrize("code", ERROR_CODES)
def test_errors_survive_pickling(code):
    error = pickle.loads(pickle.dumps(RecordError(code, "expected this, came that")))
    assert (type(error), error.code, error.message) == (
        RecordError,
        code,
        "expected this, came that",
    )
    assert str(error) == "expected this, came that"
    assert record_error(error) == (code, "expected this, came that")


@pytest.mark.usefixtures("ray")
def test_errors_survive_a_ray_task():
    import ray

    @ray.remote
    def fail() -> None:
        raise RecordError("truncated_signal", "expected this, came that")

    with pytest.raises(RecordError) as caught:
        ray.get(fail.remote())
    assert (caught.value.code, caught.value.message) == (
        "truncated_signal",
        "expected this, came that",
    )


def test_a_code_that_is_not_documented_is_refused():
    with pytest.raises(KeyError, match="no_such_code"):
        RecordError("no_such_code", "text")
    assert record_error(DataError("text")) == ("internal_error", "DataError: text")
