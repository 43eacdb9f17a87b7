"""Resampled records: rounded to their own units, invalid stays invalid, beats move along."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from scipy import signal

from rayecg.core.record import Record, invalid_value
from rayecg.shards.resample import resample_record

RNG = np.random.default_rng(6)


def record_of(digital_LT: np.ndarray, fs: float = 500.0, **more) -> Record:
    gain_L, baseline_L = np.full(len(digital_LT), 200.0), np.full(len(digital_LT), 100)
    names = ("I", "II", "III")[: len(digital_LT)]
    return Record(digital_LT, gain_L, baseline_L, fs, names, **more)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
@pytest.mark.parametrize(("fs", "to_fs"), [(500, 100), (360, 120), (257, 100), (100, 250)])
def test_the_rounding_is_half_a_unit(dtype, fs, to_fs):
    largest = np.iinfo(dtype).max // 4
    record = record_of(RNG.integers(-largest, largest, (3, 1111)).astype(dtype), fs)
    found = resample_record(record, to_fs)
    ratio = np.gcd(fs, to_fs)
    exact_LT = signal.resample_poly(
        record.digital.astype(np.float64), to_fs // ratio, fs // ratio, axis=1, padtype="edge"
    )
    assert found.digital.dtype == dtype
    assert np.abs(found.digital - exact_LT).max() <= 0.5
    assert found.fs == to_fs
    assert (found.leads, found.gain_L is record.gain_L) == (record.leads, True)


def test_the_same_rate_is_the_same_record():
    record = record_of(np.ones((2, 100), np.int16))
    assert resample_record(record, 500) is record


def test_invalid_samples_stay_invalid_and_disturb_no_others():
    t = np.arange(5000) / 500
    digital_LT = np.tile(20_000 + 3000 * np.sin(2 * np.pi * 1.0 * t), (2, 1)).astype(np.int16)
    whole = resample_record(record_of(digital_LT), 100).digital
    sentinel = invalid_value(digital_LT.dtype)
    gaps_LT = digital_LT.copy()
    gaps_LT[0, 2000:2250] = sentinel
    found = resample_record(record_of(gaps_LT), 100).digital
    invalid_T = found[0] == sentinel
    assert invalid_T[400:450].all()
    # The filter reaches 10 samples of the lower rate to either side.
    assert not invalid_T[:390].any()
    assert not invalid_T[460:].any()
    np.testing.assert_array_equal(found[0, :390], whole[0, :390])
    # Between, less than 1 % of a sample's weight lies on the line that bridges the gap, which is off
    # by at most the sine's peak to peak.
    near_T = ~invalid_T
    assert np.abs(found[0].astype(int) - whole[0])[near_T].max() <= 0.01 * 6000 + 1
    np.testing.assert_array_equal(found[1], whole[1])


def test_a_lead_that_is_all_invalid_stays_so():
    digital_LT = np.zeros((2, 1000), np.int16)
    digital_LT[0] = invalid_value(digital_LT.dtype)
    found = resample_record(record_of(digital_LT), 100)
    assert np.isnan(found.physical[0]).all()
    np.testing.assert_allclose(found.physical[1], -0.5)


def test_values_beyond_the_type_are_held_and_flagged():
    square_LT = np.where(np.arange(2000) // 250 % 2, 32767, -32767).astype(np.int16)[None]
    found = resample_record(record_of(square_LT, flags=("before",)), 100)
    assert found.flags == ("before", "out_of_range")
    assert found.digital.max() == 32767
    assert found.digital.min() == -32767  # and not the sentinel
    assert resample_record(record_of(square_LT // 2), 100).flags == ()


def test_a_rate_that_was_lower_is_flagged():
    record = record_of(np.ones((2, 100), np.int16), 128.0)
    assert resample_record(record, 250).flags == ("up_sampled:128",)
    assert resample_record(record, 100).flags == ()


def test_beats_move_along():
    beats = np.array([0, 7, 361, 3599])
    record = record_of(
        np.ones((2, 3600), np.int16), 360.0, beat_times=beats, beat_symbols=("N", "V", "N", "S")
    )
    found = resample_record(record, 120)
    assert found.beat_times.tolist() == [0, 2, 120, 1199]  # and not beyond the last sample
    assert found.beat_times.dtype == np.int64
    assert found.beat_symbols == record.beat_symbols
    without = dataclasses.replace(record, beat_times=None, beat_symbols=None)
    assert resample_record(without, 120).beat_times is None
