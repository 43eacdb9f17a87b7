"""Condensed copies of recordings: a rare kind of beat becomes the rule."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fake_benchmark import write_benchmark
from test_training import run_of

from rayecg.core.errors import SettingsError
from rayecg.core.experiment import InputSettings, TaskSettings
from rayecg.core.train_settings import AugmentSettings
from rayecg.signal import condense as signal_condense
from rayecg.signal.condense import FEWEST, condense
from rayecg.tasks.task import load_task
from rayecg.train.augment import check_augment
from rayecg.train.resident import resident_windows

RNG = np.random.default_rng(5)


def recording(n_beats: int) -> tuple[np.ndarray, np.ndarray]:
    """A recording whose samples count, and beats at uneven distances."""
    times = np.cumsum(RNG.integers(60, 120, n_beats))
    n_times = int(times[-1]) + 50
    return np.stack([np.arange(n_times), -np.arange(n_times)]), times


def test_kept_beats_have_their_neighbours_and_the_intervals_they_had():
    signal_LT, times = recording(300)
    wanted_B = np.zeros(300, dtype=bool)
    wanted_B[5:290:6] = True
    short_LT, time_K, kept_K = condense(signal_LT, times, wanted_B)
    expected = sorted({i + step for i in np.flatnonzero(wanted_B) for step in (-1, 0, 1)})
    assert kept_K.tolist() == expected
    # Each kept beat stands on the very samples it stood on, and so do those of the interval before.
    np.testing.assert_array_equal(short_LT[0, time_K], times[kept_K])
    np.testing.assert_array_equal(np.diff(time_K), (times[kept_K] - times[kept_K - 1])[1:])
    for place, beat in zip(time_K, kept_K, strict=True):
        n = times[beat] - times[beat - 1]
        np.testing.assert_array_equal(np.diff(short_LT[0, place - n + 1 : place + 1]), 1)
    np.testing.assert_array_equal(short_LT[1], -short_LT[0])
    assert wanted_B[kept_K].mean() == pytest.approx(1 / 3)


def test_the_last_beat_keeps_what_follows_it():
    signal_LT, times = recording(FEWEST)
    short_LT, time_K, kept_K = condense(signal_LT, times, np.ones(FEWEST, dtype=bool))
    np.testing.assert_array_equal(short_LT, signal_LT)
    np.testing.assert_array_equal(time_K, times)
    assert kept_K.tolist() == list(range(FEWEST))


def test_a_few_beats_are_no_recording():
    signal_LT, times = recording(300)
    wanted_B = np.zeros(300, dtype=bool)
    assert condense(signal_LT, times, wanted_B) is None
    wanted_B[: FEWEST - 2] = True  # with the neighbour after them, one too few
    assert condense(signal_LT, times, wanted_B) is None
    wanted_B[FEWEST - 2] = True
    assert condense(signal_LT, times, wanted_B) is not None


@pytest.mark.parametrize("unit", ["with", "without"])
def test_training_alone_has_the_copies(tmp_path: Path, monkeypatch, unit: str) -> None:
    monkeypatch.setattr(signal_condense, "FEWEST", 5)
    work = write_benchmark(tmp_path / "out", "beats") / "work"
    task = load_task(TaskSettings("mitbih_aami5"))
    features = InputSettings(fs=120, duration_s=1.0, leads=("MLII",), features=("rhythm",))
    condense_by = ("S",) if unit == "with" else ()
    run = run_of(task, "feature_boosting", features, augment=AugmentSettings(condense=condense_by))
    found = resident_windows(run, work / "shards", work / "examples.parquet", tmp_path / "cache")
    train, validation = found["train"], found["validation"]
    assert len(validation) == validation.examples.num_rows == validation.n_used
    assert train.n_used == train.examples.num_rows
    if unit == "without":
        assert len(train) == train.n_used
        return
    # Beats come N S V N: of four, the S and its neighbours are there twice.
    copied = np.bincount(train.example_W, minlength=train.n_used) == 2
    by_label = train.examples.to_pandas().assign(copied=copied)
    assert by_label.loc[by_label["target_S"] == 1, "copied"].all()
    assert 0.6 < copied.mean() < 0.9
    # A copy is the same beat of the same label in another rhythm.
    assert (train.target_WC.sum(axis=1) == 1).all()
    side_WM = train.all_WM[train.row_W]
    rhythm_differs = [
        not np.array_equal(*side_WM[train.example_W == i], equal_nan=True)
        for i in np.flatnonzero(copied)
    ]
    assert any(rhythm_differs)  # all intervals are equal here, and the ends lie elsewhere


def test_labels_are_those_of_a_task_of_beats():
    check_augment(load_task(TaskSettings("mitbih_aami5")), AugmentSettings(condense=("S", "V")))
    with pytest.raises(SettingsError, match="condense: expected labels of beats, came X"):
        check_augment(load_task(TaskSettings("mitbih_aami5")), AugmentSettings(condense=("X",)))
    with pytest.raises(SettingsError, match=r"labels NORM, .* of records"):
        check_augment(load_task(TaskSettings()), AugmentSettings(condense=("NORM",)))
