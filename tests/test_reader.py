"""The WFDB reader gives what `wfdb` gives, leads by standard name, invalid samples as NaN."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import wfdb
from hypothesis import given, settings
from hypothesis import strategies as st

import rayecg
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.experiment import STANDARD_LEADS
from rayecg.core.record import Record, invalid_value, to_millivolts
from rayecg.signal.leads import standard_name, standard_order

PER_MILLIVOLT = {"V": 1e-3, "mV": 1.0, "uV": 1e3, "nV": 1e6}


def assert_equals_wfdb(path: Path) -> Record:
    """Compare a record with `wfdb`'s reading of it: samples to the bit, mV to one rounding."""
    ours = read_record(path)
    theirs = wfdb.rdrecord(str(path), physical=False)
    order = standard_order([standard_name(name) for name in theirs.sig_name])
    assert ours.fs == theirs.fs
    assert list(ours.leads) == [standard_name(theirs.sig_name[i]) for i in order]
    expected_LT = theirs.dac().T[order]
    expected_LT /= np.array([[PER_MILLIVOLT[theirs.units[i]]] for i in order])
    invalid_LT = np.isnan(expected_LT)
    np.testing.assert_array_equal(np.isnan(ours.physical), invalid_LT)
    np.testing.assert_array_equal(ours.digital == invalid_value(ours.digital.dtype), invalid_LT)
    theirs_LT = theirs.d_signal.T[order]
    np.testing.assert_array_equal(ours.digital[~invalid_LT], theirs_LT[~invalid_LT])
    # float32 of a float64: half a unit in the last place, and 2^-50 for the factor of the units.
    error_LT = np.abs(ours.physical.astype(np.float64) - expected_LT)
    limit_LT = np.abs(expected_LT) * (2.0**-24 + 2.0**-50)
    assert (error_LT <= limit_LT)[~invalid_LT].all()
    assert ours.physical.dtype == np.float32
    return ours


def write(
    folder: Path, d_TL: np.ndarray, fmt: str, names: Sequence[str], **header: Sequence | int
) -> Path:
    n_leads = d_TL.shape[1]
    wanted = {"fs": 250, "units": ["mV"] * n_leads, "adc_gain": [200.0] * n_leads} | header
    wanted.setdefault("baseline", [0] * n_leads)
    wfdb.wrsamp(
        "r",
        sig_name=list(names),
        d_signal=d_TL.astype(np.int64),
        fmt=[fmt] * n_leads,
        write_dir=str(folder),
        **wanted,
    )
    return folder / "r"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("records")


@given(data=st.data(), fmt=st.sampled_from(["16", "212"]))
@settings(max_examples=40)
def test_what_wfdb_writes(folder, data, fmt):
    n_leads, n_times = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 33))
    smallest = -(2**15) if fmt == "16" else -(2**11)
    samples = st.integers(smallest, -smallest - 1)
    values = data.draw(
        st.lists(samples, min_size=n_leads * n_times, max_size=n_leads * n_times)
        # A record without a single valid sample is refused.
        .filter(lambda drawn: any(value != smallest for value in drawn))
    )

    def each(strategy: st.SearchStrategy) -> list:
        return data.draw(st.lists(strategy, min_size=n_leads, max_size=n_leads))

    path = write(
        folder,
        np.reshape(values, (n_times, n_leads)),
        fmt,
        data.draw(st.permutations(["II", "V1", "MLII", "avf"]))[:n_leads],
        fs=data.draw(st.sampled_from([100, 128, 360, 500, 1000])),
        units=each(st.sampled_from(sorted(PER_MILLIVOLT))),
        adc_gain=each(st.floats(0.5, 1e5, width=32)),
        baseline=each(st.integers(-(2**15), 2**15)),
    )
    assert assert_equals_wfdb(path).digital.dtype == np.int16


@pytest.mark.parametrize(
    ("fmt", "largest", "dtype"),
    [("24", 2**23 - 1, np.int32), ("32", 2**31 - 1, np.int32), ("80", 127, np.int32)],
)
@pytest.mark.parametrize("n_leads", [1, 3])
def test_formats_read_through_wfdb(tmp_path, fmt, largest, dtype, n_leads):
    rng = np.random.default_rng(0)
    d_TL = rng.integers(-largest, largest, (101, n_leads), endpoint=True)
    d_TL[5, 0] = -largest - 1
    path = write(tmp_path, d_TL, fmt, ["II", "V1", "V2"][:n_leads])
    record = assert_equals_wfdb(path)
    assert record.digital.dtype == dtype
    assert record.flags == (f"some_invalid:{record.leads[0]}",)


@pytest.mark.parametrize(
    "lines",
    [
        ["r.dat 8 200", "r.dat 8 200"],
        ["r.dat 61 200", "r.dat 61 200"],
        ["r.dat 160 200", "r.dat 160 200"],
        ["r.dat 310 200", "r.dat 310 200"],
        ["r.dat 16x2 200", "r.dat 16 200"],  # two samples a frame
        ["r.dat 16:3 200", "r.dat 16 200"],  # three samples of skew
        ["r.dat 16+24 200", "r.dat 16+24 200"],  # 24 bytes that are no samples
        ["r.dat 212+24 200", "r.dat 212+24 200"],
        ["r.dat 16 200", "s.dat 16 100(3)/uV"],  # a file each
        ["r.dat 16 200", "r.dat 16 200", "s.dat 212 100"],  # a format each
        ["r.dat 16", "r.dat 16 0"],  # no gain
        ["r.dat 16 2.5e2(-7)/mV 12 9", "r.dat 16 1e+1/nV 12 9"],  # with a zero beside the baseline
        ["r.dat 16 200/mV 12 9", "r.dat 16 200 12 -9"],  # a zero is the baseline if that is missing
    ],
)
def test_the_grammar_of_headers(tmp_path, lines):
    assert_equals_unnamed(tmp_path, lines, " 40")


@pytest.mark.parametrize("fmt", ["16", "16+24", "212", "212+24"])
def test_without_a_length_the_file_tells(tmp_path, fmt):
    record = assert_equals_unnamed(tmp_path, [f"r.dat {fmt} 200", f"r.dat {fmt} 200"], "")
    n_bytes = 776 if "+" in fmt else 800
    assert record.digital.shape[1] == (n_bytes // 4 if fmt[0] == "1" else n_bytes // 3)


def assert_equals_unnamed(folder: Path, lines: list[str], length: str) -> Record:
    """Write random bytes under a header without lead names, and compare with `wfdb`."""
    rng = np.random.default_rng(1)
    for name in "rs":
        rng.integers(0, 256, 800, dtype=np.uint8).tofile(folder / f"{name}.dat")
    text = [f"# first\nr {len(lines)} 250{length}", "# between", *lines, "# last"]
    (folder / "r.hea").write_text("\n".join(text))
    # wfdb has no names for these leads, and ours are of our own making.
    found = read_record(folder / "r")
    theirs = wfdb.rdrecord(str(folder / "r"), physical=False)
    valid_LT = found.digital != invalid_value(found.digital.dtype)
    assert valid_LT.mean() > 0.9
    np.testing.assert_array_equal(found.digital[valid_LT], theirs.d_signal.T[valid_LT])
    physical_LT = theirs.dac().T
    scale_L1 = np.array([[PER_MILLIVOLT[unit]] for unit in theirs.units])
    np.testing.assert_allclose(found.physical, physical_LT / scale_L1, rtol=2.0**-23)
    assert found.leads == tuple(f"lead{i}" for i in range(len(lines)))
    return found


def test_checksums_are_of_the_file_not_of_leads_moved_by_a_skew(tmp_path):
    samples_TL = np.random.default_rng(2).integers(-900, 900, (50, 2)).astype("<i2")
    samples_TL.tofile(tmp_path / "r.dat")
    sums = samples_TL.sum(axis=0, dtype=np.int64) % 65536
    lines = [
        f"r.dat {fmt} 200 16 0 {samples_TL[0, i]} {sums[i]}" for i, fmt in enumerate(["16:3", "16"])
    ]
    (tmp_path / "r.hea").write_text("\n".join(["r 2 250 50", *lines]))
    record = read_record(tmp_path / "r")
    np.testing.assert_array_equal(record.digital[0, :47], samples_TL[3:, 0])
    np.testing.assert_array_equal(record.digital[1], samples_TL[:, 1])
    assert record.flags == ("some_invalid:lead0",)


def test_a_gain_that_is_not_stated_is_flagged(tmp_path):
    np.arange(40, dtype="<i2").tofile(tmp_path / "r.dat")
    lines = ["r 2 250 20", "r.dat 16 0 16 0 0 380 0 V1", "r.dat 16 100 16 0 1 400 0 V2"]
    (tmp_path / "r.hea").write_text("\n".join(lines))
    record = read_record(tmp_path / "r")
    assert record.flags == ("default_gain:V1",)
    assert record.gain_L.tolist() == [200.0, 100.0]


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


@pytest.mark.parametrize("lead", STANDARD_LEADS)
def test_every_spelling_of_a_standard_lead(lead):
    for name in (lead, lead.lower(), lead.upper(), f" {lead} ", f"lead {lead}", f"Lead_{lead}"):
        assert standard_name(name) == lead
    assert standard_name(f"MDC_ECG_LEAD_{lead.upper()}") == lead
    assert standard_name(f"ML{lead}") == f"ML{lead}"


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
    assert record.flags == ("some_invalid:II", "invalid:III", "flat:V1")
    assert (record.digital[2] == invalid_value(record.digital.dtype)).all()


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


def test_ptbxl_sample(data_folder):
    paths = sorted((data_folder / "ptb-xl").glob("records*/*/*.hea"))
    assert len(paths) > 3000
    for path in paths[:: len(paths) // 60]:
        record = assert_equals_wfdb(path.with_suffix(""))
        assert record.leads == STANDARD_LEADS
        assert record.digital.shape == (12, round(10 * record.fs))


def test_mitbih_sample(data_folder):
    for path in sorted((data_folder / "mitdb").glob("*.hea"))[:5]:
        record = assert_equals_wfdb(path.with_suffix(""))
        assert record.digital.shape == (2, 650_000)
        assert record.fs == 360


def test_ludb(data_folder):
    paths = sorted((data_folder / "ludb" / "data").glob("*.hea"))
    assert len(paths) == 200
    for path in paths:
        assert assert_equals_wfdb(path.with_suffix("")).leads == STANDARD_LEADS


@pytest.mark.slow
@pytest.mark.parametrize("database", ["ptb-xl", "mitdb"])
def test_every_record_of_a_database(data_folder, database):
    paths = sorted((data_folder / database).rglob("*.hea"))
    assert len(paths) in (48, 2992 + 500)
    for path in paths:
        assert_equals_wfdb(path.with_suffix(""))
