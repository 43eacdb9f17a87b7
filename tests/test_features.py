"""Features of rhythm, of the shape of beats, and of a recording."""

from __future__ import annotations

import csv
import dataclasses
import re

import numpy as np
import pytest
import wfdb
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit

from rayecg import read_record
from rayecg.archives import synthesis
from rayecg.archives.catalogue import open_archive
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings, InputSettings
from rayecg.signal import features
from rayecg.signal.beat_shape import OF_LEAD, shape_columns
from rayecg.signal.features import (
    BEATWISE,
    RHYTHM,
    feature_columns,
    feature_names,
    interval_columns,
    quantile,
    rhythm_columns,
)
from rayecg.signal.measurements import measure, measurement_names
from rayecg.signal.prepare import prepare

FS = 250.0
STEADY = np.arange(1, 41) * 200.0  # 75 beats a minute at 250 Hz


def rhythm(beats: np.ndarray, fs: float = FS) -> dict[str, np.ndarray]:
    return dict(zip(RHYTHM, rhythm_columns(beats, fs).T, strict=True))


def bumps(n_times: int, beats: np.ndarray, *waves: tuple[float, float, float]) -> np.ndarray:
    """Draw a lead of Gaussian waves, each (s after R, mV, width in s), at every beat."""
    x_T = np.zeros(n_times)
    for after_s, size, width_s in waves:
        for beat in beats:
            away_T = (np.arange(n_times) - beat) / FS - after_s
            x_T += size * np.exp(-0.5 * (away_T / width_s) ** 2)
    return x_T.astype(np.float32)


P, Q, R, S, T = (
    (-0.16, 0.15, 0.02),
    (-0.03, -0.2, 0.008),
    (0.0, 1.0, 0.01),
    (0.03, -0.2, 0.008),
    (0.28, 0.3, 0.04),
)
SINUS = bumps(8400, STEADY, P, Q, R, S, T)


# Rhythm.


def test_a_steady_rhythm_has_ratios_of_one():
    found = rhythm(STEADY)
    for name, value_B in found.items():
        if name != "rr_before_rank":
            inside_B = value_B[2:-2]
            np.testing.assert_allclose(inside_B, 0, atol=1e-6, err_msg=name)
    assert np.isnan(found["rr_before_to_near"][0])
    assert np.isnan(found["rr_after_to_near"][-1])


def test_a_premature_beat_by_hand():
    beats = STEADY.copy()
    beats[20] -= 80  # 0.48 s before it, 1.12 s after it, 0.8 s elsewhere
    found = rhythm(beats)
    expected = {
        "rr_before_to_near": np.log(0.6),
        "rr_after_to_near": np.log(1.4),
        "rr_before_to_around": np.log(0.6),
        "rr_before_to_record75": np.log(0.6),
        "rr_after_to_record90": np.log(1.4),
        "rr_before_to_past": np.log(0.6),
        "rr_both_to_around": 0.0,
        "rr_before_rank": 0.5 / 39,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name][20], value, atol=1e-5, err_msg=name)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_beats=st.integers(0, 80),
    scale=st.floats(0.25, 4),
    at=st.integers(0, 999),
)
def test_rhythm_knows_no_rate_and_no_place(seed, n_beats, scale, at):
    steps = np.random.default_rng(seed).uniform(0.3, 2.0, n_beats)
    first = rhythm_columns(steps.cumsum() * FS, FS)
    again = rhythm_columns(at + steps.cumsum() * scale * FS, scale * FS)
    np.testing.assert_allclose(again, first, rtol=1e-4, atol=1e-4)
    # Only how the beats follow one another counts, not how fast.
    slower = rhythm_columns(steps.cumsum() * scale * FS, FS)
    np.testing.assert_allclose(slower, first, rtol=1e-4, atol=1e-4)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0, 1), n_columns=st.integers(1, 9))
def test_quantile_is_numpys(seed, share, n_columns):
    random = np.random.default_rng(seed)
    value_BK = random.normal(size=(7, n_columns))
    value_BK[random.random(value_BK.shape) < 0.3] = np.nan
    known_B = ~np.isnan(value_BK).all(axis=1)
    found_B = quantile(value_BK, share)
    np.testing.assert_allclose(found_B[known_B], np.nanquantile(value_BK[known_B], share, axis=1))
    assert np.isnan(found_B[~known_B]).all()


# Shape.


def shape(x_T: np.ndarray, beats: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(OF_LEAD, shape_columns(x_T, FS, beats).T, strict=True))


def test_beats_that_are_all_the_same_look_so():
    found = shape(SINUS, STEADY)
    for name in ("qrs_correlation", "t_correlation", "beats_alike"):
        np.testing.assert_allclose(found[name], 1, atol=1e-4, err_msg=name)
    for name in ("qrs_distance", "qrs_energy", "qrs_width", "qrs_frequency"):
        np.testing.assert_allclose(found[name], 0, atol=1e-3, err_msg=name)


def test_a_wide_beat_stands_out():
    other = 20
    x_T = bumps(8400, np.delete(STEADY, other), P, Q, R, S, T)
    x_T += bumps(8400, STEADY[[other]], (0.0, -1.5, 0.05), (0.3, 0.5, 0.05))
    found = shape(x_T, STEADY)
    usual = np.delete(np.arange(len(STEADY)), other)
    for name, sign in [
        ("qrs_correlation", -1),
        ("qrs_distance", 1),
        ("qrs_width", 1),
        ("qrs_frequency", -1),
        ("beats_alike", -1),
    ]:
        gap = sign * (found[name][other] - found[name][usual])
        assert gap.min() > 0.3, name
    np.testing.assert_allclose(found["qrs_correlation"][usual], 1, atol=0.01)


def test_where_most_beats_are_premature_the_usual_one_is_still_the_most_frequent_kind():
    x_T = bumps(8400, STEADY[::2], R) + bumps(8400, STEADY[1::2][:12], (0.0, -1.5, 0.05))
    beats = np.sort(np.concatenate([STEADY[::2], STEADY[1::2][:12]]))
    found = shape(x_T, beats)
    narrow_B = np.isin(beats, STEADY[::2])
    assert found["qrs_correlation"][narrow_B].min() > 0.95
    assert found["qrs_correlation"][~narrow_B].max() < 0.5


@given(size=st.floats(0.05, 20), level=st.floats(-3, 3))
def test_shape_knows_no_unit_and_no_level(size, level):
    first = shape_columns(SINUS, FS, STEADY)
    again = shape_columns((size * SINUS + level).astype(np.float32), FS, STEADY)
    np.testing.assert_allclose(again, first, rtol=1e-2, atol=1e-2)


def test_leads_without_a_signal_are_not_measured():
    assert np.isnan(shape_columns(np.zeros(8400, np.float32), FS, STEADY)).all()
    assert shape_columns(SINUS, FS, np.empty(0)).shape == (0, len(OF_LEAD))
    assert np.isfinite(shape_columns(np.ones(8400, np.float32), FS, STEADY)).all()


# Measurements.


def measured(x_LT: np.ndarray, leads: tuple[str, ...], beats: np.ndarray | None = None):
    values = measure(x_LT, FS, leads, beats)
    return dict(zip(measurement_names(leads), values.tolist(), strict=True))


@pytest.mark.parametrize("beats", [STEADY, None], ids=["given", "found"])
def test_waves_are_measured(beats):
    found = measured(SINUS[None], ("II",), beats)
    expected = {
        "heart_rate": (1.25, 0.001),
        "rr_change": (0.0, 1e-6),
        "rr_shortest": (0.0, 0.02),
        "beats_alike": (1.0, 1e-6),
        "II_p_wave": (0.15, 0.02),
        "II_r_wave": (1.0, 0.05),
        "II_s_wave": (-0.2, 0.05),
        "II_q_wave": (-0.2, 0.05),
        "II_t_wave": (0.3, 0.03),
        # Gaussian waves have no ends: R is about 0.1 s wide, P begins 0.2 s before R, T ends
        # 0.28 + 2 * 0.04 s after it.
        "qrs_width": (0.1, 0.03),
        "pr_interval": (0.14, 0.04),
        "qt_interval": (0.41, 0.04),
    }
    for name, (value, tolerance) in expected.items():
        assert found[name] == pytest.approx(value, abs=tolerance), name
    assert np.isnan(found["qrs_axis"])


def hurried(rate: int, fs: float, step: float) -> dict[str, float]:
    """Measure three noisy leads of waves that follow the rate, as long as the root of RR says.

    From the middle of P to the QRS the level is another one than before P.
    """
    stretch, leads = np.sqrt(75 / rate), ("II", "I", "V1")
    beat_s = np.arange(0.5, 9.5, 60 / rate)
    away_BT = np.arange(round(10 * fs)) / fs - beat_s[:, None]
    x_T = step * (expit((away_BT / stretch + 0.16) / 0.02) * expit(-away_BT / 0.01)).sum(0)
    for after_s, size, width_s in (P, Q, R, S, T):
        x_T += size * np.exp(-0.5 * ((away_BT / stretch - after_s) / width_s) ** 2).sum(0)
    noise_LT = np.random.default_rng(rate).normal(size=(3, len(x_T)))
    x_LT = (np.outer([1, 0.6, -0.4], x_T) + 0.01 * noise_LT).astype(np.float32)
    values = measure(x_LT, fs, leads, np.round(beat_s * fs))
    return dict(zip(measurement_names(leads), values.tolist(), strict=True))


@pytest.mark.parametrize("fs", [100.0, 250.0])
@pytest.mark.parametrize("rate", [60, 75, 90, 100, 110, 120, 135, 150])
@pytest.mark.parametrize("step", [-0.05, 0.0, 0.05])
def test_intervals_are_those_of_the_beat_at_any_rate(rate, fs, step):
    found, stretch = hurried(rate, fs, step), np.sqrt(75 / rate)
    # As in `test_waves_are_measured`; at 100 Hz two samples are 0.02 s.
    for name, value_s in [("qrs_width", 0.1), ("pr_interval", 0.15), ("qt_interval", 0.41)]:
        assert found[name] == pytest.approx(stretch * value_s, abs=0.025), name


def test_waves_that_end_nowhere_are_not_measured():
    ramp_T = (np.arange(8400) % 200 / 200).astype(np.float32)  # rises all the way to the next R
    slow = bumps(8400, STEADY, (0.0, 1.0, 0.15))  # a QRS longer than its search
    for x_T, names in [
        (ramp_T + SINUS - bumps(8400, STEADY, P, T), ("pr_interval", "qt_interval")),
        (slow, ("qrs_width", "pr_interval", "qt_interval")),
    ]:
        found = measured(x_T[None], ("II",), STEADY)
        assert all(np.isnan(found[name]) for name in names), found


@pytest.mark.parametrize("degrees", [-60, 0, 45, 90, 150])
def test_axes_are_the_angle_the_heart_was_drawn_at(degrees):
    angle = np.radians(degrees)
    heart_T = bumps(8400, STEADY, R, T)
    i_T, ii_T = (np.cos(angle - lead) * heart_T for lead in (0, np.pi / 3))
    x_LT = np.stack([i_T, ii_T, ii_T - i_T / 2]).astype(np.float32)
    for leads in [("I", "II"), ("I", "II", "aVF")]:
        found = measured(x_LT[: len(leads)], leads, STEADY)
        for name in ("qrs_axis", "t_axis"):
            assert found[name] == pytest.approx(angle, abs=0.02), (leads, name)


def test_what_is_not_there_is_not_measured():
    found = measured(np.zeros((2, 5000), np.float32), ("I", "II"))
    assert all(np.isnan(value) for value in found.values())
    found = measured(np.stack([SINUS, 0 * SINUS]), ("II", "V1"), STEADY)
    assert all(
        np.isnan(v) == name.startswith("V1") for name, v in found.items() if "axis" not in name
    )
    alone = measured(SINUS[None], ("II",), STEADY[[5]])
    assert np.isnan(alone["heart_rate"])
    assert alone["II_r_wave"] == pytest.approx(1.0, abs=0.05)


@given(
    seed=st.integers(0, 2**32 - 1),
    n_times=st.integers(1, 3000),
    kind=st.sampled_from(["noise", "flat", "step", "spikes"]),
)
def test_nothing_makes_it_fail(seed, n_times, kind):
    random = np.random.default_rng(seed)
    x_LT = random.normal(size=(2, n_times)).astype(np.float32)
    if kind == "flat":
        x_LT[:] = 1.0
    elif kind == "step":
        x_LT[:] = np.arange(n_times) > n_times / 2
    elif kind == "spikes":
        x_LT = np.where(random.random(x_LT.shape) < 0.01, 5.0, 0.0).astype(np.float32)
    beats = np.unique(random.integers(0, n_times, random.integers(0, 20))).astype(np.float64)
    for groups, beat_W in [(("measurements",), None), ((*BEATWISE, "measurements"), beats)]:
        found = feature_columns(groups, x_LT, 100.0, ("I", "II"), beat_W, None)
        assert found.shape[1] == len(feature_names(groups, ("I", "II")))
        assert not np.isinf(found).any()


# Together.


def test_beats_have_the_same_columns_whichever_are_asked_for():
    leads, groups = ("II",), (*BEATWISE, "measurements")
    whole = feature_columns(groups, SINUS[None], FS, leads, STEADY, None)
    some = feature_columns(groups, SINUS[None], FS, leads, STEADY[[30, 4, 4]], STEADY)
    np.testing.assert_array_equal(some, whole[[30, 4, 4]])
    assert whole.dtype == np.float32
    assert feature_columns(groups, SINUS[None], FS, leads, STEADY[:0], STEADY).shape[0] == 0


def test_wrong_input_is_refused():
    with pytest.raises(
        ValueError, match="expected beats for the features rhythm, came a recording"
    ):
        feature_columns(("rhythm", "measurements"), SINUS[None], FS, ("II",), None, None)
    with pytest.raises(ValueError, match="expected all beats of windows among the recording's"):
        feature_columns(("rhythm",), SINUS[None], FS, ("II",), STEADY[:3] + 1, STEADY)


def test_times_of_beats_are_not_rounded_to_the_rate_that_is_read_at():
    settings = InputSettings(
        leads=("II",), fs=50, duration_s=1.0, features=("rhythm",), normalisation="none"
    )
    beats = np.round(STEADY + np.random.default_rng(0).uniform(-9, 9, len(STEADY))).astype(np.int64)
    prepared = prepare(SINUS[None], FS, ("II",), settings, beats)
    np.testing.assert_allclose(prepared.side_WM, rhythm_columns(beats, FS), rtol=1e-4, atol=1e-5)
    some = prepare(SINUS[None], FS, ("II",), settings, beats[[7, 3]], beats)
    np.testing.assert_array_equal(some.side_WM, prepared.side_WM[[7, 3]])


def test_simulated_rates_are_found():
    block = synthesis.draw_block(3, 0)
    x_NLT = synthesis.simulate(block, 250, 10.0, 12)
    peaks_NK = synthesis.beat_times(block, 10.0)[:12]
    for x_LT, peaks in zip(x_NLT, peaks_NK, strict=True):
        inside = peaks[(peaks > 0) & (peaks < 10)]
        values = measure(x_LT, 250.0, STANDARD_LEADS)
        assert values[0] == pytest.approx(1 / np.median(np.diff(inside)), rel=0.05)


def test_real_premature_beats_come_early_and_look_different(data_folder):
    """A record with many ventricular beats, known only by its annotations."""
    archive = open_archive(ArchiveSettings("mitbih", str(data_folder / "mitdb")))
    rows = [row for row in archive.index().to_pylist() if row["record_id"] == "119"]
    (record,) = archive.read_each(rows)
    settings = InputSettings(
        leads=("MLII",), fs=120, duration_s=1.0, features=BEATWISE, bandpass_hz=(0.5, 35.0)
    )
    prepared = prepare(record.physical, record.fs, record.leads, settings, record.beat_times)
    names = feature_names(BEATWISE, ("MLII",))
    found = dict(zip(names, prepared.side_WM.T, strict=True))
    ventricular_B = np.array(record.beat_symbols) == "V"
    for name, sign in [
        ("rr_before_to_near", -1),
        ("MLII_qrs_correlation", -1),
        ("MLII_qrs_width", 1),
    ]:
        values = sign * found[name]
        assert np.nanmin(values[ventricular_B]) > np.nanmedian(values[~ventricular_B]), name
    twice = dataclasses.replace(settings, leads=("MLII", "V1"))
    again = prepare(record.physical, record.fs, record.leads, twice, record.beat_times)
    np.testing.assert_array_equal(again.side_WM[:, : len(names)], prepared.side_WM)


INTERVALS = ("qrs_width", "pr_interval", "qt_interval")


def intervals(records: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Measure records of standard leads: `INTERVALS` by records."""
    columns = [measurement_names(STANDARD_LEADS).index(name) for name in INTERVALS]
    return np.stack([measure(x_LT, fs, STANDARD_LEADS)[columns] for x_LT, fs in records], axis=1)


def test_real_intervals_are_plausible_and_the_same_at_100_and_at_500_hz(data_folder):
    """Normal 12-lead recordings of PTB-XL, which come at both rates."""
    folder = data_folder / "ptb-xl"
    with (folder / "ptbxl_database.csv").open() as file:
        normal = [row for row in csv.DictReader(file) if "'NORM': 100.0" in row["scp_codes"]]
    pairs = [(folder / row["filename_lr"], folder / row["filename_hr"]) for row in normal]
    pairs = [pair for pair in pairs if all(path.with_suffix(".dat").exists() for path in pair)][:60]
    assert len(pairs) == 60
    slow_MN, fast_MN = (
        intervals([(record.physical, record.fs) for record in map(read_record, paths)])
        for paths in zip(*pairs, strict=True)
    )
    # Between which two the median lies; what 19 in 20 are below, and no limit of a search is.
    usual = {
        "qrs_width": (0.07, 0.1, 0.12),
        "pr_interval": (0.14, 0.18, 0.23),
        "qt_interval": (0.35, 0.42, 0.46),
    }
    for name, slow_N, fast_N in zip(INTERVALS, slow_MN, fast_MN, strict=True):
        low, high, most = usual[name]
        for value_N in (slow_N, fast_N):
            assert np.isfinite(value_N).mean() > 0.9, name
            assert low < np.nanmedian(value_N) < high, name
            assert np.nanquantile(value_N, 0.95) < most, name
        apart_N = np.abs(slow_N - fast_N)
        assert np.mean(apart_N[np.isfinite(apart_N)] < 0.0205) > 0.9, name


def test_real_intervals_are_where_they_were_marked_by_hand(data_folder):
    """LUDB: every fourth record, if most beats of lead II have a P; K is P, QRS and T."""
    found, marked = [], []
    for number in range(1, 201, 4):
        path = data_folder / "ludb" / "data" / str(number)
        marks = wfdb.rdann(str(path), "ii")
        kinds = "".join(marks.symbol)
        starts = [match.start() for match in re.finditer(r"\(p\)\(N\)\(t\)", kinds)]
        if len(starts) > kinds.count("N") / 2:
            start_BK = np.stack([marks.sample[i : i + 9 : 3] for i in starts])
            stop_BK = np.stack([marks.sample[i + 2 : i + 9 : 3] for i in starts])
            p_B, onset_B, _ = start_BK.T
            _, offset_B, t_end_B = stop_BK.T
            values = (offset_B - onset_B, onset_B - p_B, t_end_B - onset_B)
            record = read_record(path)
            marked.append([np.median(value_B) / record.fs for value_B in values])
            found.append((record.physical, record.fs))
    away_MN = intervals(found) - np.transpose(marked)
    for name, away_N in zip(INTERVALS, away_MN, strict=True):
        assert np.isfinite(away_N).mean() > 0.9, name
        assert np.abs(np.nanmedian(away_N)) < 0.02, name
        assert np.mean(np.abs(away_N) < 0.04) > 0.85, name


def test_intervals_by_hand():
    times = np.array([0, 90, 190, 240, 360, 440, 520])
    rr = np.diff(times) / 100
    found = interval_columns(times, 100.0)
    assert found.shape == (7, len(features.INTERVALS))
    np.testing.assert_allclose(found[1:, 0], np.log(rr), rtol=1e-6)
    np.testing.assert_allclose(found[:-1, 1], np.log(rr), rtol=1e-6)
    assert np.isnan(found[[0, -1], [0, 1]]).all()
    # Five either side: the third beat has two before it and four after it, the first none and five.
    np.testing.assert_allclose(found[2, 2], np.log(rr.mean()), rtol=1e-6)
    np.testing.assert_allclose(found[0, 2], np.log(rr[:5].mean()), rtol=1e-6)
    assert np.isnan(interval_columns(np.array([5.0]), 100.0)).all()
