"""Records of several segments, fixed and variable layout, as `wfdb.rdrecord` joins them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import wfdb
from against_wfdb import assert_rounded_once
from hypothesis import given, settings
from hypothesis import strategies as st

from rayecg.archives import wfdb_segments
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import RecordError
from rayecg.core.record import MAX_SAMPLES, Record

LEADS = ("II", "V1", "V5", "MLII")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("segments")


def write_segment(
    folder: Path,
    name: str,
    d_TL: np.ndarray,
    leads: Sequence[str],
    gains: Sequence[float] | None = None,
    baselines: Sequence[int] | None = None,
    fmt: str = "16",
    fs: float = 250,
) -> tuple[str, int]:
    n = len(leads)
    wfdb.wrsamp(
        name,
        fs,
        ["mV"] * n,
        list(leads),
        d_signal=d_TL.astype(np.int64),
        fmt=[fmt] * n,
        adc_gain=list(gains or [200.0] * n),
        baseline=list(baselines or [0] * n),
        write_dir=str(folder),
    )
    return name, len(d_TL)


def write_master(
    folder: Path,
    segments: Sequence[tuple[str, int]],
    n_signals: int,
    layout: Sequence[str] | None = None,
    n_times: int | str | None = None,
) -> Path:
    """Write the header that names the segments; with a layout's signal names it is variable."""
    segments = list(segments)
    if layout is not None:
        lines = [f"~ 0 200/mV 16 0 0 0 0 {name}" for name in layout]
        (folder / "m_layout.hea").write_text("\n".join([f"m_layout {len(layout)} 250 0", *lines]))
        segments.insert(0, ("m_layout", 0))
    length = sum(n for _, n in segments) if n_times is None else n_times
    first = f"m/{len(segments)} {n_signals} 250 {length}"
    (folder / "m.hea").write_text("\n".join([first, *(f"{name} {n}" for name, n in segments)]))
    return folder / "m"


def assert_equals_wfdb(path: Path) -> Record:
    """Compare with `wfdb`'s one array in mV: one rounding where the gains have a common multiple."""
    ours = read_record(path)
    theirs = wfdb.rdrecord(str(path), m2s=True)
    assert ours.fs == theirs.fs
    for i, name in enumerate(theirs.sig_name):
        theirs_T = theirs.p_signal[:, i]
        if name not in ours.leads:  # no segment holds a valid sample of it
            assert np.isnan(theirs_T).all()
            continue
        row = ours.leads.index(name)
        ours_T = ours.physical[row]
        valid_T = ~np.isnan(theirs_T)
        np.testing.assert_array_equal(np.isnan(ours_T), ~valid_T)
        # A scale that is no multiple of the segments' own is 1024 times finer than the finest.
        coarse = f"requantised:{name}" in ours.flags
        assert_rounded_once(ours_T[valid_T], theirs_T[valid_T], 0.5 / ours.gain_L[row] * coarse)
    assert set(ours.leads) <= set(theirs.sig_name)
    return ours


def draw_segment(data: st.DataObject, folder: Path, name: str, leads: Sequence[str]) -> tuple:
    n_times, n = data.draw(st.integers(1, 12)), len(leads)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    d_TL = rng.integers(-(2**11), 2**11, (n_times, n))
    d_TL[data.draw(st.integers(0, n_times - 1))] = 1  # not a lead without a valid sample
    gain = st.sampled_from([100.0, 200.0, 250.0, 1000.0, 1.5, 204.8])
    return write_segment(
        folder,
        name,
        d_TL,
        leads,
        data.draw(st.lists(gain, min_size=n, max_size=n)),
        data.draw(st.lists(st.integers(-(2**15), 2**15), min_size=n, max_size=n)),
        data.draw(st.sampled_from(["16", "212", "24"])),
    )


@given(data=st.data())
@settings(max_examples=40)
def test_fixed_layout(folder, data):
    leads = data.draw(st.permutations(LEADS))[: data.draw(st.integers(1, 4))]
    n_segments = data.draw(st.integers(1, 4))
    segments = [draw_segment(data, folder, f"s{i}", leads) for i in range(n_segments)]
    record = assert_equals_wfdb(write_master(folder, segments, len(leads)))
    assert "gaps" not in record.flags
    assert record.leads == tuple(sorted(leads, key=LEADS.index))


@given(data=st.data())
@settings(max_examples=60)
def test_variable_layout(folder, data):
    layout = data.draw(st.permutations(LEADS))[: data.draw(st.integers(1, 4))]
    n_segments, segments = data.draw(st.integers(1, 5)), []
    for i in range(n_segments):
        if i and data.draw(st.booleans()):
            segments.append(("~", data.draw(st.integers(1, 30))))
            continue
        own = data.draw(st.permutations(layout))[: data.draw(st.integers(1, len(layout)))]
        segments.append(draw_segment(data, folder, f"s{i}", own))
    record = assert_equals_wfdb(write_master(folder, segments, len(layout), layout))
    assert ("gaps" in record.flags) == any(name == "~" for name, _ in segments)


def test_segments_of_one_gain_keep_their_digits(tmp_path):
    d_TL = np.arange(60).reshape(30, 2)
    segments = [write_segment(tmp_path, f"s{i}", d_TL[i::3], ["II", "V1"]) for i in range(3)]
    record = assert_equals_wfdb(write_master(tmp_path, segments, 2))
    assert (record.digital.dtype, record.flags) == (np.int16, ())
    assert record.gain_L.tolist() == [200.0, 200.0]
    np.testing.assert_array_equal(record.digital, np.concatenate([d_TL[i::3] for i in range(3)]).T)


def test_gains_with_a_common_multiple_lose_nothing(tmp_path):
    d_TL = np.arange(-10, 10).reshape(20, 1)
    segments = [
        write_segment(tmp_path, f"s{i}", d_TL, ["II"], [gain], [baseline])
        for i, (gain, baseline) in enumerate([(200.0, 0), (250.0, 1024), (1000.0, -3)])
    ]
    record = assert_equals_wfdb(write_master(tmp_path, segments, 1))
    assert (record.gain_L.tolist(), record.baseline_L.tolist()) == ([1000.0], [0])
    expected = [(d_TL * 5), (d_TL - 1024) * 4, d_TL + 3]
    np.testing.assert_array_equal(record.digital[0], np.concatenate(expected)[:, 0])
    assert record.flags == ()


@pytest.mark.parametrize("gains", [(200.0, -250.0), (1e-3, 1e9), (1e27, 1e26 + 1), (2.0, 2e9 + 1)])
def test_gains_without_a_common_multiple(tmp_path, gains):
    d_TL = np.array([[-2000], [5], [1999]])
    segments = [write_segment(tmp_path, f"s{i}", d_TL, ["II"]) for i in range(2)]
    for (name, _), gain in zip(segments, gains, strict=True):
        text = (tmp_path / f"{name}.hea").read_text()
        (tmp_path / f"{name}.hea").write_text(text.replace("200.0(0)", f"{gain!r}(0)"))
    record = read_record(write_master(tmp_path, segments, 1))
    assert record.flags == ("requantised:II",)
    expected_T = np.concatenate([d_TL[:, 0] / gain for gain in gains])
    error_T = np.abs(record.physical[0].astype(np.float64) - expected_T)
    assert error_T.max() <= 0.5 / record.gain_L[0] + np.abs(expected_T).max() * 2.0**-24


def test_a_lead_that_no_segment_holds_is_not_there(tmp_path):
    d_TL = np.arange(1, 11).reshape(10, 1)
    segments = [("~", 5), write_segment(tmp_path, "s0", d_TL, ["V1"])]
    record = assert_equals_wfdb(write_master(tmp_path, segments, 3, ["II", "V1", "V5"]))
    assert (record.leads, record.flags) == (("V1",), ("gaps",))
    assert np.isnan(record.physical[0, :5]).all()


def test_a_segment_without_ecg_is_a_gap(tmp_path):
    d_TL = np.arange(1, 11).reshape(10, 1)
    segments = [write_segment(tmp_path, f"s{i}", d_TL, ["V1"]) for i in range(2)]
    text = (tmp_path / "s0.hea").read_text()
    (tmp_path / "s0.hea").write_text(text.replace("/mV", "/mmHg").replace("V1", "ABP"))
    record = read_record(write_master(tmp_path, segments, 2, ["V1", "ABP"]))
    assert record.flags == ("gaps",)
    np.testing.assert_array_equal(record.digital[0, 10:], d_TL[:, 0])
    assert np.isnan(record.physical[0, :10]).all()


def test_frames_of_several_samples(tmp_path):
    """A segment without the fastest signal is brought to the rate of the others."""
    fast_T, slow_T = np.arange(80), np.arange(40) * 3
    rows = np.concatenate([fast_T.reshape(40, 2), slow_T[:, None]], axis=1).astype("<i2")
    rows.tofile(tmp_path / "s0.dat")
    (tmp_path / "s0.hea").write_text("s0 2 250 40\ns0.dat 16x2 200 16 0\ns0.dat 16 200 16 0\n")
    for name in ("s0", "s1"):
        text = (
            "s0 2 250 40\ns0.dat 16x2 200/mV 16 0 0 3160 0 II\ns0.dat 16 200/mV 16 0 0 2340 0 V1\n"
        )
        if name == "s1":
            slow_T.astype("<i2").tofile(tmp_path / "s1.dat")
            text = "s1 1 250 40\ns1.dat 16 200/mV 16 0 0 2340 0 V1\n"
        (tmp_path / f"{name}.hea").write_text(text)
    path = write_master(tmp_path, [("s0", 40), ("s1", 40)], 2, ["II", "V1"])
    record = read_record(path)
    assert (record.fs, record.digital.shape) == (500, (2, 160))
    assert record.flags == ("up_sampled:250:V1", "up_sampled:250")
    np.testing.assert_array_equal(record.digital[0, :80], fast_T)
    assert np.isnan(record.physical[0, 80:]).all()
    inner = np.s_[10:60]
    np.testing.assert_array_equal(record.digital[1, :80][inner], record.digital[1, 80:][inner])
    averaged = read_record(path, frames="average")
    assert (averaged.fs, averaged.digital.shape) == (250, (2, 80))
    np.testing.assert_array_equal(averaged.digital[1], np.concatenate([slow_T, slow_T]))
    np.testing.assert_array_equal(averaged.digital[0, :40], fast_T[::2])


def test_errors_of_a_segment_are_the_records(tmp_path):
    d_TL = np.arange(1, 11).reshape(10, 1)
    segments = [write_segment(tmp_path, f"s{i}", d_TL, ["V1"]) for i in range(2)]
    path = write_master(tmp_path, segments, 1)
    raw = (tmp_path / "s1.dat").read_bytes()
    (tmp_path / "s1.dat").write_bytes(raw[:-2] + b"\x7f\x7f")
    assert "s1.dat" in refused(path, "checksum_mismatch")
    assert read_record(path, checks="flag").flags == ("checksum_mismatch:V1",)
    assert read_record(path, checks="off").flags == ()
    (tmp_path / "s1.dat").write_bytes(raw[:-2])
    assert "s1.dat" in refused(path, "truncated_signal")
    (tmp_path / "s1.hea").unlink()
    assert "s1.hea" in refused(path, "missing_file")


def refused(path: Path, code: str) -> str:
    with pytest.raises(RecordError) as caught:
        read_record(path)
    assert caught.value.code == code, caught.value.message
    assert str(path.parent) in caught.value.message
    assert "\n" not in caught.value.message
    return caught.value.message


@pytest.mark.parametrize("name", ["../s0", "/etc/s0", "sub/s0", "..", "a\\b", "~s0"])
@pytest.mark.parametrize("layout", [None, ["V1"]])
def test_segments_lie_in_the_folder_of_their_record(tmp_path, name, layout):
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, tmp_path / "sub"):
        write_segment(folder, "s0", np.arange(1, 11).reshape(10, 1), ["V1"])
    path = write_master(tmp_path / "sub", [(name, 10), ("s0", 10)], 1, layout)
    refused(path, "outside_archive")


def test_a_layout_alone_is_no_record(tmp_path):
    segments = [write_segment(tmp_path, "s0", np.arange(1, 11).reshape(10, 1), ["V1"])]
    write_master(tmp_path, segments, 1, ["V1"])
    refused(tmp_path / "m_layout", "outside_archive")


@pytest.mark.parametrize(
    ("master", "code"),
    [
        ("m/2 1 250 20\ns0 10\n", "bad_header"),  # a line too few
        ("m/2 1 250 20\ns0 10\ns0 ten\n", "bad_header"),
        ("m/2 1 250 20\ns0 10\ns0\n", "bad_header"),
        ("m/2 1 250 20\ns0 10\ns0 -10\n", "bad_header"),
        ("m/2 1 250 21\ns0 10\ns0 10\n", "bad_header"),  # not together what the record says
        ("m/2 1 250 19\ns0 10\ns0 9\n", "bad_header"),  # not what the segment says
        ("m/2 1 500 20\ns0 10\ns0 10\n", "bad_header"),  # another rate
        ("m/2 1 250 20\ns0 10\nm 10\n", "bad_header"),  # itself
        ("m/2 1 250 10\nm 0\ns0 10\n", "bad_header"),  # itself as its layout
        ("m/2 2 250 20\ns0 10\nt0 10\n", "bad_header"),  # other leads
        ("m/99999999999999999999 1 250 20\ns0 10\n", "bad_header"),
        ("m/1 1 250 10\nnowhere 10\n", "missing_file"),
        ("m/2 1 250 10\nnowhere 0\ns0 10\n", "missing_file"),
        ("m/1 1 250 10\n~ 10\n", "all_invalid"),
        ("m/1 1 250 0\ns0 0\n", "all_invalid"),  # a layout, and nothing after it
        (f"m/2 1 250\n~ {MAX_SAMPLES}\ns0 10\n", "too_large"),
        (f"m/2 1 250\n~ {MAX_SAMPLES - 100}\ns0 10\n", "too_large"),
        (f"m/2 1 250\n~ {1 << 25}\ns0 10\n", "too_large"),
        (f"m/2 1 250\n~ {10**30}\ns0 10\n", "too_large"),
        (f"m/2 1 250\n~ {'9' * 4290}\ns0 10\n", "too_large"),
        (f"m/2 1 250\n~ {'9' * 5000}\ns0 10\n", "bad_header"),
        (f"m/2 1 250 {'9' * 4290}\ns0 10\ns0 10\n", "too_large"),
    ],
    ids=lambda value: repr(value[:40]),
)
def test_segments_that_do_not_fit(tmp_path, master, code):
    write_segment(tmp_path, "s0", np.arange(1, 11).reshape(10, 1), ["V1"])
    write_segment(tmp_path, "t0", np.arange(1, 11).reshape(10, 1), ["V2"])
    (tmp_path / "m.hea").write_text(master)
    assert len(refused(tmp_path / "m", code)) < 1000


def test_too_many_segments(tmp_path, monkeypatch):
    monkeypatch.setattr(wfdb_segments, "MAX_SEGMENTS", 3)
    monkeypatch.setattr(wfdb_segments, "MAX_PIECES", 2)
    segment = write_segment(tmp_path, "s0", np.arange(1, 11).reshape(10, 1), ["V1"])
    assert len(read_record(write_master(tmp_path, [segment] * 2, 1)).digital[0]) == 20
    assert "1 leads in 3 segments" in refused(write_master(tmp_path, [segment] * 3, 1), "too_large")
    assert "4 segments, over 3" in refused(write_master(tmp_path, [segment] * 4, 1), "too_large")


def test_a_segment_that_is_named_often_is_read_once(tmp_path, monkeypatch):
    segment = write_segment(tmp_path, "s0", np.arange(1, 11).reshape(10, 1), ["V1"])
    path = write_master(tmp_path, [segment] * 1000, 1)
    names = []
    real = wfdb_segments.read_header
    monkeypatch.setattr(
        wfdb_segments, "read_header", lambda *args: names.append(args[1]) or real(*args)
    )
    assert read_record(path).digital.shape == (1, 10_000)
    assert names == ["s0"]
