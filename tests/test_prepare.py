"""From a recording to a network's windows: what is cut where, and what each limit means."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import signal

from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import RecordError
from rayecg.core.experiment import STANDARD_LEADS, InputSettings
from rayecg.core.shard_format import (
    Layout,
    index_table,
    shard_batch,
)
from rayecg.core.shard_reader import read_records
from rayecg.signal.prepare import prepare, resample

TWO = InputSettings(fs=100, duration_s=2.0, leads=("I", "II"))
RNG = np.random.default_rng(4)

#: `resample_poly`'s window is Kaiser's with beta 5. By Kaiser's formula, beta = 0.1102 (A - 8.7), it
#: lets pass, and lets sway, this share of an amplitude (A = 54 dB).
RIPPLE = 10 ** (-(5.0 / 0.1102 + 8.7) / 20)


def noise(n_leads: int, n_times: int) -> np.ndarray:
    return RNG.standard_normal((n_leads, n_times)).astype(np.float32)


def test_consecutive_windows():
    x_LT = noise(2, 600)
    found = prepare(x_LT, 100, ("I", "II"), TWO)
    np.testing.assert_array_equal(found.x_WLT, x_LT.reshape(2, 3, 200).transpose(1, 0, 2))
    assert found.offset_W.tolist() == [0, 200, 400]
    assert found.limits == ()
    assert found.x_WLT.dtype == np.float32
    assert found.x_WLT.flags.c_contiguous


@pytest.mark.parametrize(
    ("n_times", "offsets"),
    [
        (200, [0]),
        (219, [0]),
        (220, [0, 20]),
        (399, [0, 199]),
        (419, [0, 200]),
        (430, [0, 200, 230]),
    ],
)
def test_the_last_window_ends_with_the_recording(n_times, offsets):
    x_LT = noise(2, n_times)
    found = prepare(x_LT, 100, ("I", "II"), TWO)
    assert found.offset_W.tolist() == offsets
    for x_window_LT, offset in zip(found.x_WLT, offsets, strict=True):
        np.testing.assert_array_equal(x_window_LT, x_LT[:, offset : offset + 200])


@given(n_times=st.integers(1, 1200), fs=st.sampled_from([100, 128, 250, 257, 360, 500]))
def test_windows_cover_the_recording_but_for_a_short_tail(n_times, fs):
    found = prepare(np.ones((2, n_times), np.float32), fs, ("I", "II"), TWO)
    n_window = 2 * fs
    starts = found.offset_W
    assert starts[0] == 0
    # Offsets are whole samples at the recording's rate: half a sample, and a resampled one's width.
    slack = 1 + fs / 100
    assert (np.diff(starts) > 0).all()
    assert (np.diff(starts) <= n_window + slack).all()
    assert n_times - (starts[-1] + n_window) <= 0.1 * n_window + slack
    assert starts[-1] + n_window <= max(n_times, n_window) + slack


def test_offsets_are_samples_of_the_recording():
    found = prepare(noise(2, 3000), 500, ("I", "II"), TWO)
    assert found.x_WLT.shape == (3, 2, 200)
    assert found.offset_W.tolist() == [0, 1000, 2000]


def test_leads_are_chosen_by_name():
    x_LT = noise(3, 200)
    found = prepare(x_LT, 100, ("V1", "II", "I"), TWO)
    np.testing.assert_array_equal(found.x_WLT[0], x_LT[[2, 1]])


def test_absent_leads_are_zero_and_a_limit():
    x_LT = noise(2, 200)
    wanted = dataclasses.replace(TWO, leads=("I", "II", "V1", "V2"))
    found = prepare(x_LT, 100, ("V1", "I"), wanted)
    np.testing.assert_array_equal(found.x_WLT[0, [2, 0]], x_LT)
    assert (found.x_WLT[0, [1, 3]] == 0).all()
    assert found.limits == ("absent_leads:II V2",)
    normalised = prepare(
        x_LT, 100, ("V1", "I"), dataclasses.replace(wanted, normalisation="record")
    )
    assert (normalised.x_WLT[0, [1, 3]] == 0).all()
    accepted = prepare(x_LT, 100, ("V1", "I"), dataclasses.replace(wanted, absent_leads="accept"))
    np.testing.assert_array_equal(accepted.x_WLT, found.x_WLT)
    assert accepted.limits == ()


@pytest.mark.parametrize("fs", [250, 360, 500])
def test_a_flat_lead_is_not_spread_out(fs):
    x_LT = np.stack([noise(1, 10 * fs)[0], np.full(10 * fs, 0.137, np.float32)])
    wanted = dataclasses.replace(TWO, leads=("I", "V1"), normalisation="record")
    found = prepare(x_LT, fs, ("I", "V1"), wanted)
    assert np.abs(found.x_WLT[0, 1]).max() < 1e-3


def test_a_record_without_any_wanted_lead_is_refused():
    with pytest.raises(RecordError, match="expected leads I II, the record has MLII V5") as caught:
        prepare(noise(2, 200), 100, ("MLII", "V5"), TWO)
    assert caught.value.code == "missing_leads"


@pytest.mark.parametrize("shape", [(200, 2), (2,), (1, 2, 200), (3, 200)])
def test_an_array_that_is_not_leads_by_times_is_refused(shape):
    with pytest.raises(ValueError, match="expected an array of 2 leads by times, came shape"):
        prepare(np.zeros(shape), 100, ("I", "II"), TWO)


def test_a_recording_that_is_too_short_is_filled_with_zeros():
    x_LT = noise(2, 150)
    found = prepare(x_LT, 100, ("I", "II"), TWO)
    np.testing.assert_array_equal(found.x_WLT[0, :, :150], x_LT)
    assert (found.x_WLT[0, :, 150:] == 0).all()
    assert found.limits == ("too_short:1.50 s",)
    assert found.offset_W.tolist() == [0]


def test_invalid_samples_are_bridged_by_straight_lines():
    x_LT = np.vstack([np.linspace(1, 2, 200), np.linspace(5, 3, 200)]).astype(np.float32)
    gaps_LT = x_LT.copy()
    gaps_LT[0, 50:60] = gaps_LT[1, :5] = gaps_LT[1, -5:] = np.nan
    found = prepare(gaps_LT, 100, ("I", "II"), TWO)
    # A line is a line again, to float32's rounding of values below 4.
    np.testing.assert_allclose(found.x_WLT[0, 0], x_LT[0], atol=4 * 2.0**-24)
    assert (found.x_WLT[0, 1, :5] == x_LT[1, 5]).all()
    assert (found.x_WLT[0, 1, -5:] == x_LT[1, -6]).all()
    assert found.limits == ()
    assert np.isnan(gaps_LT).sum() == 20  # the caller's array is left as it is


@pytest.mark.parametrize(("n_invalid", "limits"), [(80, ()), (81, ("invalid_samples:0.20",))])
def test_many_invalid_samples_are_a_limit(n_invalid, limits):
    x_LT = noise(2, 200)
    x_LT.ravel()[:n_invalid] = np.nan
    assert prepare(x_LT, 100, ("I", "II"), TWO).limits == limits


def test_invalid_samples_of_leads_that_are_not_read_do_not_count():
    x_LT = noise(3, 200)
    x_LT[2] = np.nan
    assert prepare(x_LT, 100, ("I", "II", "V1"), TWO).limits == ()
    x_LT[1] = np.inf
    found = prepare(x_LT, 100, ("I", "II", "V1"), TWO)
    assert found.limits == ("invalid_samples:0.50",)
    assert (found.x_WLT[0, 1] == 0).all()


def test_no_valid_sample_at_all_is_refused():
    x_LT = np.full((3, 200), np.nan)
    x_LT[2] = 1.0
    for n_times in (200, 0):
        with pytest.raises(RecordError) as caught:
            prepare(x_LT[:, :n_times], 100, ("I", "II", "V1"), TWO)
        assert caught.value.code == "all_invalid"


def test_beat_windows_stand_around_their_r_peaks():
    x_LT = noise(2, 1000)
    found = prepare(x_LT, 100, ("I", "II"), TWO, np.array([500, 100, 899, 900]))
    for x_window_LT, beat in zip(found.x_WLT, [500, 100, 899, 900], strict=True):
        np.testing.assert_array_equal(x_window_LT[:, 100], x_LT[:, beat])
        stop = min(beat + 100, 1000)
        np.testing.assert_array_equal(
            x_window_LT[:, : stop - beat + 100], x_LT[:, beat - 100 : stop]
        )
    assert found.offset_W.tolist() == [500, 100, 899, 900]
    assert found.limits == ()


def test_beat_windows_at_the_edges_are_filled_with_zeros():
    x_LT = noise(2, 300)
    beats = [0, 30, 270, 299]
    found = prepare(x_LT, 100, ("I", "II"), TWO, np.array(beats))
    padded_LT = np.pad(x_LT, ((0, 0), (100, 100)))
    expected_WLT = [padded_LT[:, beat : beat + 200] for beat in beats]
    np.testing.assert_array_equal(found.x_WLT, expected_WLT)


def test_beats_move_with_the_rate():
    x_LT = np.zeros((2, 3600), np.float32)
    beats = np.array([360, 1799, 3000])
    x_LT[:, beats] = 1.0
    found = prepare(x_LT, 360, ("I", "II"), TWO, beats)
    assert found.offset_W.tolist() == beats.tolist()
    # A resampled impulse is highest where its time is rounded to.
    assert (found.x_WLT.argmax(axis=2) == 100).all()


def test_no_beats_no_windows():
    found = prepare(noise(2, 300), 100, ("I", "II"), TWO, np.array([], dtype=np.int64))
    assert found.x_WLT.shape == (0, 2, 200)


def test_resampling_keeps_a_sine_and_its_phase():
    t_500, t_100 = np.arange(5000) / 500, np.arange(1000) / 100
    for frequency in (1.0, 5.0, 17.0, 35.0):
        x_LT = np.tile(np.sin(2 * np.pi * frequency * t_500), (2, 1))
        found = prepare(x_LT, 500, ("I", "II"), dataclasses.replace(TWO, duration_s=10.0))
        expected_T = np.sin(2 * np.pi * frequency * t_100)
        # The filter reaches 10 samples at the lower rate; the ends see the held value beyond.
        error_LT = np.abs(found.x_WLT[0] - expected_T)[:, 10:-10]
        assert error_LT.max() < RIPPLE, frequency


def test_resampling_does_not_fold_high_frequencies_down():
    x_LT = np.tile(np.sin(2 * np.pi * 130.0 * np.arange(5000) / 500), (2, 1))
    found = prepare(x_LT, 500, ("I", "II"), dataclasses.replace(TWO, duration_s=10.0))
    assert np.abs(found.x_WLT[0, :, 10:-10]).max() < RIPPLE


@pytest.mark.parametrize(("fs", "to_fs"), [(500, 100), (360, 120), (257, 100), (100, 250)])
def test_resampling_is_scipys(fs, to_fs):
    x_LT = noise(2, 777)
    ratio = np.gcd(fs, to_fs)
    expected = signal.resample_poly(x_LT, to_fs // ratio, fs // ratio, axis=1, padtype="edge")
    np.testing.assert_array_equal(resample(x_LT, fs, to_fs), expected)
    assert resample(x_LT, fs, to_fs).dtype == np.float32
    assert resample(x_LT, fs, fs) is x_LT


def test_an_offset_does_not_ring():
    found_LT = resample(np.full((1, 500), 7.0, np.float32), 500, 100)
    np.testing.assert_allclose(found_LT, 7.0, rtol=RIPPLE)


def test_up_sampling_is_a_limit():
    found = prepare(noise(2, 100), 50, ("I", "II"), TWO)
    assert found.limits == ("up_sampled:50",)
    assert found.x_WLT.shape == (1, 2, 200)


def test_a_rate_near_nothing_takes_no_memory():
    with pytest.raises(RecordError, match="would make") as caught:
        prepare(noise(2, 60_000), 0.001, ("I", "II"), TWO)
    assert caught.value.code == "too_large"


def test_a_record_is_normalised_as_a_whole():
    x_LT = 3.0 + 2.0 * noise(2, 1000)
    x_LT[1] = 5.0
    found = prepare(x_LT, 100, ("I", "II"), dataclasses.replace(TWO, normalisation="record"))
    whole_LT = found.x_WLT.transpose(1, 0, 2).reshape(2, -1)
    # Sums of 1000 float32 of about 1.
    assert abs(whole_LT[0].mean()) < 1e-5
    assert abs(whole_LT[0].std() - 1) < 1e-5
    assert (whole_LT[1] == 0).all()  # a flat lead stays flat


def test_the_band_pass_takes_wander_and_keeps_the_band():
    t = np.arange(10_000) / 500
    wander, wave = np.sin(2 * np.pi * 0.1 * t), np.sin(2 * np.pi * 8.0 * t)
    settings = dataclasses.replace(TWO, fs=500, duration_s=20.0, bandpass_hz=(0.5, 40.0))
    x_LT = np.vstack([wander, wave])
    found_LT = prepare(x_LT, 500, ("I", "II"), settings).x_WLT[0, :, 2000:-2000]
    # Butterworth of order 3, twice: 1 / (1 + (0.5 / 0.1)^6) of the wander, and far from both edges
    # 1 - 1 / (1 + (40 / 8)^6) of the wave; its transient of 0.5 Hz has fallen to e^-6 in 4 s.
    assert np.abs(found_LT[0]).max() < 1 / (1 + 5.0**6) + np.exp(-6)
    np.testing.assert_allclose(found_LT[1], wave[2000:-2000], atol=1 / (1 + 5.0**6) + np.exp(-6))


def test_windows_from_a_shard_equal_those_of_the_record(synthetic_archive, tmp_path):
    paths = sorted((synthetic_archive / "records100").rglob("*.dat"))[:6]
    records = []
    for path in paths:
        try:
            records.append(read_record(path.with_suffix("")))
        except RecordError:
            continue
    assert len(records) > 2
    rows = [{"record_id": str(i), "path": ""} for i in range(len(records))]
    batch = shard_batch(index_table(rows), records, Layout.of(records[0]))
    pq.write_table(pa.Table.from_batches([batch]), tmp_path / "shard.parquet")
    settings = InputSettings(fs=80, duration_s=4.0, normalisation="record", bandpass_hz=(0.5, 30.0))
    for (_, stored), record in zip(read_records(tmp_path / "shard.parquet"), records, strict=True):
        raw = prepare(record.physical, record.fs, record.leads, settings)
        found = prepare(stored.physical, stored.fs, stored.leads, settings)
        np.testing.assert_array_equal(found.x_WLT, raw.x_WLT)
        np.testing.assert_array_equal(found.offset_W, raw.offset_W)
        assert raw.x_WLT.shape == (3, len(STANDARD_LEADS), 320)
