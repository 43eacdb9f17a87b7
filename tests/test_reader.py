"""The WFDB reader gives what `wfdb` gives, leads by standard name, invalid samples as NaN."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from against_wfdb import assert_equals_wfdb, write

import rayecg
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.experiment import STANDARD_LEADS
from rayecg.core.record import invalid_value, to_millivolts


def test_leads_get_their_standard_names_and_order(tmp_path):
    written = ["v6", "MLII", "Lead aVR", "MDC_ECG_LEAD_I", "AVF", "ECG II", "resp"]
    d_TL = np.arange(70).reshape(10, 7)
    gains = [float(100 + i) for i in range(7)]
    path = write(tmp_path, d_TL, "16", written, adc_gain=gains, baseline=list(range(7)))
    record = read_record(f"{path}.hea")
    assert record.leads == ("I", "II", "aVR", "aVF", "V6", "MLII", "resp")
    order = [3, 5, 2, 4, 0, 1, 6]
    np.testing.assert_array_equal(record.digital, d_TL.T[order])
    np.testing.assert_array_equal(record.gain_L, np.array(gains)[order])
    np.testing.assert_array_equal(record.baseline_L, order)


def test_repeated_and_missing_lead_names_stay_apart(tmp_path):
    np.arange(40, dtype="<i2").tofile(tmp_path / "r.dat")
    line = "r.dat 16 200 16 0 {} {} 0 {}"
    lines = [line.format(i, sum(range(i, 40, 4)), n) for i, n in enumerate(["V1", "v1", "", "I"])]
    (tmp_path / "r.hea").write_text("\n".join(["r 4 250 10", *lines]))
    record = read_record(tmp_path / "r")
    assert record.leads == ("I", "V1", "V1#2", "lead2")
    assert record.digital[:, 0].tolist() == [3, 0, 1, 2]
    assert record.flags == ("repeated_lead:V1",)


@pytest.mark.parametrize("fmt", ["16", "212", "24"])
def test_invalid_samples_become_nan(tmp_path, fmt):
    smallest = {"16": -(2**15), "212": -(2**11), "24": -(2**23)}[fmt]
    d_TL = np.arange(40).reshape(10, 4)
    d_TL[3:6, 1] = smallest
    d_TL[:, 2] = smallest
    d_TL[:, 3] = 7
    record = read_record(write(tmp_path, d_TL, fmt, ["I", "II", "III", "V1"]))
    expected_LT = d_TL.T / 200.0
    expected_LT[1, 3:6] = expected_LT[2] = np.nan
    np.testing.assert_allclose(record.physical, expected_LT, rtol=2.0**-23)
    assert record.flags == ()  # what a waveform is like is measured elsewhere
    assert (record.digital[2] == invalid_value(record.digital.dtype)).all()


def test_what_many_records_share_cannot_be_changed_through_one(tmp_path):
    path = write(tmp_path, np.arange(40).reshape(10, 4), "16", ["I", "II", "III", "V1"])
    record = read_record(path)
    with pytest.raises(ValueError, match="read-only"):
        record.gain_L[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        record.baseline_L[0] = 1


def test_millivolts_are_rounded_once():
    rng = np.random.default_rng(2)
    digital_LT = rng.integers(-32768, 32768, (3, 5000)).astype(np.int16)
    gain_L, baseline_L = np.array([1000.0, 698.3, 1e-3]), np.array([0, -1024, 2**31 - 1])
    physical_LT = to_millivolts(digital_LT, gain_L, baseline_L)
    exact_LT = (digital_LT.astype(float) - baseline_L[:, None]) / gain_L[:, None]
    exact_LT[digital_LT == -32768] = np.nan
    np.testing.assert_array_equal(physical_LT, exact_LT.astype(np.float32))


def test_the_fingerprint_is_of_the_waveform(tmp_path):
    d_TL = np.arange(40).reshape(10, 4)
    names = ["I", "II", "III", "V1"]
    first = read_record(write(tmp_path, d_TL, "16", names)).sha256
    assert read_record(write(tmp_path, d_TL, "16", names, baseline=[1] * 4)).sha256 == first
    others = [
        read_record(write(tmp_path, d_TL + 1, "16", names)).sha256,
        read_record(write(tmp_path, d_TL, "16", [*names[:3], "V2"])).sha256,
        read_record(write(tmp_path, d_TL, "16", names, fs=500)).sha256,
    ]
    assert len({first, *others}) == 4


def test_the_python_door_reads_a_record(synthetic_archive):
    path = next((synthetic_archive / "records100").rglob("*.dat")).with_suffix("")
    np.testing.assert_array_equal(rayecg.read_record(path).digital, read_record(path).digital)


PTBXL, MITBIH, LUDB = "ptb-xl/records*/**/*.hea", "mitdb/*.hea", "ludb/data/*.hea"


def of_database(data_folder: Path, pattern: str, step: int = 1) -> list[Path]:
    paths = sorted(data_folder.glob(pattern))
    assert len(paths) in (2992 + 500, 48, 200)
    return [path.with_suffix("") for path in paths[::step]]


def test_ptbxl_sample(data_folder):
    for path in of_database(data_folder, PTBXL, step=10):
        record = assert_equals_wfdb(path)
        assert record.leads == STANDARD_LEADS
        assert record.digital.shape == (12, round(10 * record.fs))
        assert "nonstandard_header" not in record.flags


def test_mitbih_sample(data_folder):
    for path in of_database(data_folder, MITBIH, step=10):
        record = assert_equals_wfdb(path)
        assert record.digital.shape == (2, 650_000)
        assert (record.fs, record.flags) == (360, ())


def test_ludb(data_folder):
    for path in of_database(data_folder, LUDB, step=4):
        assert assert_equals_wfdb(path).leads == STANDARD_LEADS


@pytest.mark.slow
@pytest.mark.parametrize("pattern", [PTBXL, MITBIH, LUDB])
def test_every_record_of_a_database(data_folder, pattern):
    for path in of_database(data_folder, pattern):
        assert_equals_wfdb(path)
