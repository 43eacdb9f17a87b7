"""Every format of WFDB signal files, with frames, offsets and skew, as `wfdb` reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import wfdb
from against_wfdb import (
    ENCODERS,
    PER_MILLIVOLT,
    WRITTEN,
    assert_equals_wfdb,
    limits,
    write,
    write_by_hand,
    write_frames,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from rayecg.archives.wfdb_formats import FLAC, FORMATS
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import RecordError

FLAC_FORMATS = tuple(str(code) for code in FLAC)
DTYPES = {"24": np.int32, "32": np.int32, "8": np.int32, "524": np.int32}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("records")


def test_every_format_is_tested():
    assert {str(code) for code in (*FORMATS, *FLAC)} == {*WRITTEN, *ENCODERS}


def draw_samples(data: st.DataObject, fmt: str, n_frames: int, width: int = 1) -> np.ndarray:
    """Draw samples of a format: any, the ends often, one frame at least valid."""
    n_times = n_frames * width
    low, high = (-128, 127) if fmt == "8" else limits(fmt)
    seed = data.draw(st.integers(0, 2**32 - 1))
    samples_T = np.random.default_rng(seed).integers(low, high, n_times, endpoint=True)
    few = st.lists(st.tuples(st.integers(0, n_times - 1), st.sampled_from([low, high, -1, 0])))
    for time, value in data.draw(few):
        samples_T[time] = value
    # A record without a single valid sample is refused, and a frame averages to an invalid one if
    # one of its samples is.
    frame = data.draw(st.integers(0, n_frames - 1))
    samples_T[frame * width : (frame + 1) * width] = 1
    return samples_T


@given(data=st.data())
@settings(max_examples=120)
def test_what_wfdb_writes(folder, data):
    """Formats mixed in files of their own, several samples a frame, offsets, units, gains."""
    n_frames = data.draw(st.integers(1, 33))
    formats, files, widths, offsets = [], [], [], []
    for file in range(data.draw(st.integers(1, 3))):
        n_own = data.draw(st.integers(1, 3))
        fmt = data.draw(st.sampled_from(WRITTEN))
        width = data.draw(st.sampled_from([1, 1, 1, 2, 3]))
        own = [width if data.draw(st.booleans()) else 1 for _ in range(n_own)]
        if fmt in FLAC_FORMATS:
            own = [width] * n_own
        formats += [fmt] * n_own
        files += [f"r{file}.dat"] * n_own
        widths += own
        offset = 0 if fmt in FLAC_FORMATS else data.draw(st.sampled_from([0, 0, 1, 24]))
        offsets += [offset] * n_own
    n_signals = len(formats)

    def each(strategy: st.SearchStrategy) -> list:
        return data.draw(st.lists(strategy, min_size=n_signals, max_size=n_signals))

    names = ["II", "V1", "MLII", "avf", "Lead V6", "X", "aVL", "I", "x"]
    path = write_frames(
        folder,
        [
            draw_samples(data, fmt, n_frames, width)
            for fmt, width in zip(formats, widths, strict=True)
        ],
        fs=data.draw(st.sampled_from([100, 128, 360, 500, 1000])),
        fmt=formats,
        file_name=files,
        samps_per_frame=widths,
        byte_offset=offsets if any(offsets) else None,
        sig_name=data.draw(st.permutations(names))[:n_signals],
        units=each(st.sampled_from(sorted(PER_MILLIVOLT))),
        adc_gain=each(st.floats(0.5, 1e5, width=32)),
        baseline=each(st.integers(-(2**15), 2**15)),
    )
    for frames in ("expand", "average"):
        record = assert_equals_wfdb(path, frames)
        several = max(widths) > 1
        assert ("averaged_frames" in record.flags) == (several and frames == "average")
    wide = any(DTYPES.get(fmt) for fmt in formats)
    assert record.digital.dtype == (np.int32 if wide else np.int16)


@given(data=st.data(), fmt=st.sampled_from(sorted(ENCODERS)))
@settings(max_examples=100)
def test_what_wfdb_only_reads(folder, data, fmt):
    n_frames = data.draw(st.integers(1, 33))
    widths = data.draw(st.lists(st.sampled_from([1, 1, 2, 4]), min_size=1, max_size=4))
    rows = [draw_samples(data, fmt, n_frames, width) for width in widths]
    path = write_by_hand(folder, rows, fmt, widths, offset=data.draw(st.sampled_from([0, 1, 24])))
    for frames in ("expand", "average"):
        record = assert_equals_wfdb(path, frames)
    assert record.digital.dtype == DTYPES.get(fmt, np.int16)


@given(data=st.data(), fmt=st.sampled_from(sorted({*ENCODERS, *WRITTEN} - {"8", *FLAC_FORMATS})))
@settings(max_examples=60)
def test_skew(folder, data, fmt):
    """Of one skew: `wfdb` fails with several, with frames of several samples, and with format 8."""
    n_times = data.draw(st.integers(1, 20))
    n_signals = data.draw(st.integers(1, 3))
    rows = [draw_samples(data, fmt, n_times) for _ in range(n_signals)]
    shifts = st.sampled_from([0, data.draw(st.integers(0, n_times - 1))])
    skew = data.draw(st.lists(shifts, min_size=n_signals, max_size=n_signals))
    if fmt in ENCODERS:
        path = write_by_hand(folder, rows, fmt, [1] * n_signals, skew)
    else:
        path = write_frames(folder, rows, fmt=[fmt] * n_signals, skew=skew)
    if any((row[s:] != limits(fmt)[0]).any() for row, s in zip(rows, skew, strict=True)):
        assert_equals_wfdb(path)
    else:  # what the skew leaves of the record is invalid
        with pytest.raises(RecordError, match="every sample is marked invalid"):
            read_record(path)


@pytest.mark.parametrize("fmt", ["16", "8", "310", "516"])
def test_skew_counts_frames(tmp_path, fmt):
    """A signal of two samples a frame that is two frames late begins with its fifth sample."""
    rows = [np.arange(1, 21), np.arange(1, 21)]
    if fmt in ENCODERS:
        path = write_by_hand(tmp_path, rows, fmt, [2, 2], [2, 0])
    else:
        path = write_frames(tmp_path, rows, fmt=[fmt] * 2, samps_per_frame=[2, 2], skew=[2, 0])
    record = read_record(path)
    whole_T = np.cumsum(rows[0]) + 5 if fmt == "8" else rows[0]
    np.testing.assert_array_equal(record.digital[0, :16], whole_T[4:])
    assert np.isnan(record.physical[0, 16:]).all()
    np.testing.assert_array_equal(record.digital[1], whole_T)


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
    assert record.flags == ()


@pytest.mark.parametrize("fmt", sorted({*WRITTEN, *ENCODERS} - {"8"}))
@pytest.mark.parametrize("n_leads", [1, 3])
def test_the_mark_of_an_invalid_sample(tmp_path, fmt, n_leads):
    low, high = limits(fmt)
    d_TL = np.random.default_rng(0).integers(low + 1, high, (101, n_leads), endpoint=True)
    d_TL[5, 0] = low
    if fmt in ENCODERS:
        path = write_by_hand(tmp_path, list(d_TL.T), fmt, [1] * n_leads)
    else:
        path = write(tmp_path, d_TL, fmt, ["II", "V1", "V2"][:n_leads])
    record = assert_equals_wfdb(path)
    assert np.argwhere(np.isnan(record.physical)).tolist() == [[0, 5]]
    assert record.digital.dtype == DTYPES.get(fmt, np.int16)


def test_bits_that_format_311_does_not_use_are_not_read(tmp_path):
    """`wfdb` takes bit 30 for one of the third sample, which the format leaves unused."""
    rows = [np.array([1, 2, 3, -4, 5, -6, 511, -511])]
    path = write_by_hand(tmp_path, rows, "311", [1])
    words = bytearray((tmp_path / "r.dat").read_bytes())
    words[3::4] = bytes(byte | 0xC0 for byte in words[3::4])
    (tmp_path / "r.dat").write_bytes(words)
    np.testing.assert_array_equal(read_record(path).digital[0], rows[0])


def test_differences_that_leave_32_bits_stop_at_their_end(tmp_path):
    (tmp_path / "r.dat").write_bytes(b"\x7f" * 20 + b"\x80" * 20)
    (tmp_path / "r.hea").write_text(f"r 1 250 40\nr.dat 8 200 16 0 {2**31 - 200}\n")
    digital_T = read_record(tmp_path / "r").digital[0].astype(np.int64)
    expected_T = 2**31 - 200 + np.cumsum([127] * 20 + [-128] * 20)
    np.testing.assert_array_equal(digital_T, np.minimum(expected_T, 2**31 - 1))


def test_a_lead_that_is_slower_is_brought_to_the_rate_of_the_fastest(tmp_path):
    """Band-limited, so that the samples between are known: to 1 % of the amplitude away from the ends."""
    fast_T, slow_T = np.arange(800) / 4, np.arange(400) / 2
    wave = [np.round(10_000 * np.sin(2 * np.pi * time_T / 20)) for time_T in (fast_T, slow_T)]
    path = write_frames(
        tmp_path, wave, fmt=["16"] * 2, samps_per_frame=[4, 2], sig_name=["II", "V1"]
    )
    record = read_record(path)
    assert (record.fs, record.digital.shape) == (1000, (2, 800))
    assert record.flags == ("up_sampled:500:V1",)
    np.testing.assert_array_equal(record.digital[0], wave[0])
    assert np.abs(record.digital[1, 40:-40] - wave[0][40:-40]).max() <= 100
    # The samples that are there stay where they are: the filter's own bound at half band is 0.1 %.
    assert np.abs(record.digital[1, ::2] - wave[1])[20:-20].max() <= 11


def test_an_invalid_sample_of_a_slower_lead_stays_invalid_and_alone(tmp_path):
    slow_T = np.full(50, 1000)
    slow_T[20] = limits("16")[0]
    path = write_frames(tmp_path, [np.arange(150), slow_T], fmt=["16"] * 2, samps_per_frame=[3, 1])
    record = read_record(path)
    invalid = np.flatnonzero(np.isnan(record.physical[1]))
    assert invalid.tolist() == [60, 61, 62]
    assert set(np.delete(record.digital[1], invalid).tolist()) <= {999, 1000, 1001}


@pytest.mark.parametrize("widths", [(1001, 1002), (7, 5), (128, 200)])
def test_any_rates_fit_together(tmp_path, widths):
    rows = [np.arange(3 * width) % 500 for width in widths]
    record = read_record(write_by_hand(tmp_path, rows, "160", widths))
    assert record.digital.shape == (2, 3 * max(widths))


@pytest.mark.parametrize("fmt", ["16", "61", "212", "310", "311", "24"])
@pytest.mark.parametrize("n_bytes", [24, 25, 26, 27, 28, 29])
@pytest.mark.parametrize("n_leads", [1, 2])
def test_without_a_length_the_file_tells(tmp_path, fmt, n_bytes, n_leads):
    np.arange(1, n_bytes + 1, dtype=np.uint8).tofile(tmp_path / "r.dat")
    (tmp_path / "r.hea").write_text(
        "\n".join([f"r {n_leads} 250", *[f"r.dat {fmt} 200"] * n_leads])
    )
    found = read_record(tmp_path / "r").digital
    form = FORMATS[int(fmt)]
    n_samples = found.shape[1] * n_leads
    assert form.n_bytes(n_samples) <= n_bytes < form.n_bytes(n_samples + n_leads)


@pytest.mark.parametrize("fmt", ["16", "16+24", "212", "212+24"])
def test_without_a_length_as_wfdb(tmp_path, fmt):
    rng = np.random.default_rng(1)
    rng.integers(0, 256, 800, dtype=np.uint8).tofile(tmp_path / "r.dat")
    (tmp_path / "r.hea").write_text(f"r 2 250\nr.dat {fmt} 200\nr.dat {fmt} 200\n")
    n_bytes = 776 if "+" in fmt else 800
    n_times = assert_equals_wfdb(tmp_path / "r").digital.shape[1]
    assert n_times == (n_bytes // 4 if fmt[0] == "1" else n_bytes // 3)


@pytest.mark.parametrize(("fmt", "subtype"), [("516", "PCM_S8"), ("524", "PCM_16")])
def test_flac_of_fewer_bits_than_its_format(tmp_path, fmt, subtype):
    """The smallest value of the narrower samples is a value in the wider format."""
    bits = {"PCM_S8": 8, "PCM_16": 16}[subtype]
    samples_T = np.array([-(2 ** (bits - 1)), -1, 0, 1, 2 ** (bits - 1) - 1])
    soundfile.write(
        tmp_path / "r.dat",
        (samples_T << (32 - bits)).astype(np.int32),
        96_000,
        subtype=subtype,
        format="FLAC",
    )
    (tmp_path / "r.hea").write_text(f"r 1 250 5\nr.dat {fmt} 200/mV 16 0 {samples_T[0]}\n")
    record = assert_equals_wfdb(tmp_path / "r")
    np.testing.assert_array_equal(record.digital[0], samples_T)
    assert not np.isnan(record.physical).any()


def test_flac_from_an_offset_and_without_a_length(tmp_path):
    rows = [np.arange(-50, 50), np.arange(0, 200, 2)]
    path = write_frames(tmp_path, rows, fmt=["516"] * 2)
    header = (tmp_path / "r.hea").read_text()
    later = header.replace("r 2 250 100", "r 2 250 90").replace("516x1", "516x1+10")
    (tmp_path / "r.hea").write_text(later)
    found = read_record(path, checks="off")
    np.testing.assert_array_equal(found.digital, np.stack(rows)[:, 10:])
    theirs = wfdb.rdrecord(str(path), physical=False)
    np.testing.assert_array_equal(found.digital, theirs.d_signal.T)
    (tmp_path / "r.hea").write_text(header.replace("r 2 250 100", "r 2 250"))
    np.testing.assert_array_equal(read_record(path).digital, np.stack(rows))


@pytest.mark.parametrize("frames", ["expand", "average"])
def test_averages_of_frames_are_cut_towards_zero(tmp_path, frames):
    rows = [np.array([1, 2, -1, -2, 3, 4, limits("16")[0], 8])]
    path = write_frames(tmp_path, rows, fmt=["16"], samps_per_frame=[2])
    record = read_record(path, frames=frames)
    if frames == "expand":
        assert (record.fs, record.digital[0].tolist()) == (500, rows[0].tolist())
        return
    assert (record.fs, record.flags) == (250, ("averaged_frames",))
    assert record.digital[0].tolist() == [1, -1, 3, -32768]
