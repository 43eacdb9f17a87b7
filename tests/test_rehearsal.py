"""How early beats come, rearranged recordings, and the model that rehearses them."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch

from rayecg.core.experiment import STANDARD_LEADS
from rayecg.models.catalogue import ModelInputs
from rayecg.models.rehearsed_regression import RehearsedRegression
from rayecg.signal.features import feature_columns, feature_names
from rayecg.signal.prematurity import FURTHEST, PREMATURITY, prematurity_columns
from rayecg.signal.rehearsal import (
    BEATS_IN_RUNS,
    BEATS_IRREGULAR,
    SHORTEST_S,
    irregular,
    recordings,
    runs_and_pauses,
)

GROUPS = ("intervals", "prematurity")
SIDE = (*feature_names(GROUPS, ()), "shape")
INPUTS = ModelInputs(STANDARD_LEADS, 250, 100, SIDE)


def premature_every(n: int, n_beats: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give beat times (s) and which beats are premature, each followed by a pause."""
    rng = np.random.default_rng(seed)
    premature_B = np.arange(n_beats) % n == n - 1
    rr = 0.8 + 0.02 * rng.standard_normal(n_beats)
    rr[premature_B] *= 0.7
    rr[1:][premature_B[:-1]] *= 1.25
    return np.cumsum(rr), premature_B


def columns(times_B: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(PREMATURITY, prematurity_columns(times_B, 1.0).T, strict=True))


def side_of(times_B: np.ndarray, class_B: np.ndarray) -> np.ndarray:
    side = feature_columns(GROUPS, np.zeros((0, 10)), 1.0, (), times_B, None)
    return np.concatenate([side, (class_B == 2)[:, None]], axis=1).astype(np.float32)


def examples(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Give columns and classes of three recordings, ordinary, premature and other beats."""
    found = []
    for i in range(3):
        times_B, premature_B = premature_every(9, 400, seed + i)
        class_B = premature_B.astype(int)
        class_B[5::40] = 2
        found.append((side_of(times_B, class_B), class_B))
    side, classes = zip(*found, strict=True)
    return np.concatenate(side), np.concatenate(classes)


def test_prematurity_by_hand() -> None:
    times_B = np.array([0.0, 1.0, 1.5, 3.0, 4.0])
    found = columns(times_B)
    rr = np.diff(times_B)
    np.testing.assert_allclose(
        found["early_before_to_mean"][1:], np.log(rr / rr.mean()), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(found["early_after_to_q50"][:-1], np.log(rr), rtol=1e-6, atol=1e-7)
    # Intervals up to 1 s take 2.5 of the 4 s, and those of 0.5 s only 0.5.
    np.testing.assert_allclose(
        found["early_before_to_half_time"][1:], np.log(rr), rtol=1e-6, atol=1e-7
    )
    assert found["early_before_to_longest_near"][2] == pytest.approx(np.log(0.5 / 1.5))
    assert found["early_before_to_previous"][2] == pytest.approx(np.log(0.5))
    assert found["early_next_to_after"][1] == pytest.approx(np.log(3))
    assert np.isnan(found["early_before_to_mean"][0])
    assert np.isnan(found["early_after_to_mean"][-1])


@pytest.mark.parametrize("n_beats", [0, 1, 2, 3])
def test_prematurity_of_few_beats(n_beats: int) -> None:
    found_BM = prematurity_columns(np.arange(n_beats) * 1.0, 1.0)
    assert found_BM.shape == (n_beats, len(PREMATURITY))
    assert not np.isinf(found_BM).any()
    assert np.isnan(found_BM).all() == (n_beats < 2)


def test_prematurity_is_the_same_at_every_rate_and_tempo() -> None:
    times_B = premature_every(7, 200)[0]
    once = prematurity_columns(times_B, 1.0)
    np.testing.assert_allclose(prematurity_columns(times_B * 360, 360.0), once, atol=1e-5)
    np.testing.assert_allclose(prematurity_columns(times_B * 1.3, 1.0), once, atol=1e-4)
    assert np.nanmax(np.abs(once)) <= FURTHEST


def test_in_runs_only_the_whole_recording_says_what_is_early() -> None:
    rr = np.tile([*[0.6] * 9, 2.4, *[1.0] * 5], 30)
    found = columns(np.cumsum(rr))
    run = np.flatnonzero(rr[100:-100] == 0.6) + 100
    assert np.median(found["early_before_to_around"][run]) == pytest.approx(0, abs=1e-6)
    assert np.median(found["early_before_to_q90"][run]) < -0.4
    assert np.median(found["early_before_to_half_time"][run]) < -0.4


def test_recordings_are_told_apart_by_their_intervals() -> None:
    side_NM, _ = examples()
    found = list(recordings(side_NM[:, 0], side_NM[:, 1]))
    assert [len(own) for own in found] == [400, 400, 400]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(1200))
    without = np.delete(np.arange(1200), 700)  # a beat that is no example
    parts = recordings(side_NM[without, 0], side_NM[without, 1])
    assert [len(own) for own in parts] == [400, 300, 99, 400]
    assert list(recordings(side_NM[:0, 0], side_NM[:0, 1])) == []


@pytest.mark.parametrize("milder", [False, True])
def test_runs_are_of_premature_beats_and_end_in_pauses(milder: bool) -> None:
    times_B, premature_B = premature_every(9, 400)
    rr_B = np.diff(times_B, prepend=np.nan)
    found = runs_and_pauses(rr_B, ~premature_B, premature_B, milder, np.random.default_rng(3))
    assert found is not None
    early_K = premature_B[found.beat_K]
    assert len(early_K) == len(found.rr_K) >= BEATS_IN_RUNS
    assert early_K.mean() > premature_B.mean() * 2
    assert (found.rr_K > 0).all()
    usual = np.median(rr_B[1:][~premature_B[1:]])
    assert (found.rr_K[early_K] < usual).all()
    after_K = np.append(False, early_K[:-1]) & ~early_K
    assert (found.rr_K[after_K] >= usual).all()


def test_what_has_no_premature_beat_has_no_runs() -> None:
    times_B, premature_B = premature_every(9, 50)
    rr_B = np.diff(times_B, prepend=np.nan)
    none_B = np.zeros(50, dtype=bool)
    rng = np.random.default_rng(0)
    assert runs_and_pauses(rr_B, ~none_B, none_B, False, rng) is None
    assert runs_and_pauses(rr_B, none_B, premature_B, False, rng) is None
    assert irregular(rr_B, none_B, ~none_B, rng) is None


def test_irregular_rhythms_have_no_premature_beats() -> None:
    times_B, premature_B = premature_every(9, 900)
    rr_B = np.diff(times_B, prepend=np.nan)
    found = irregular(rr_B, ~premature_B, premature_B, np.random.default_rng(0))
    assert found is not None
    assert len(found.beat_K) == BEATS_IRREGULAR
    assert not premature_B[found.beat_K].any()
    assert (found.rr_K >= SHORTEST_S).all()
    assert np.std(np.log(found.rr_K)) > 0.05


def test_it_finds_what_was_rehearsed() -> None:
    """Runs of premature beats of an unseen patient, which no training recording has."""
    side_NM, class_N = examples()
    target_NC = np.eye(3, dtype=np.float32)[class_N]
    times_B, premature_B = premature_every(9, 400, seed=50)
    rr_B = np.diff(times_B, prepend=np.nan)
    copy = runs_and_pauses(rr_B, ~premature_B, premature_B, False, np.random.default_rng(9))
    assert copy is not None
    early_K = premature_B[copy.beat_K]
    held_KM = side_of(np.cumsum(copy.rr_K), early_K.astype(int))
    found = {}
    for copies in (0, 4):
        model = RehearsedRegression(INPUTS, 3, runs=copies, irregular=copies)
        model.fit(side_NM, target_NC, "multiclass", None, 0)
        with torch.inference_mode():
            found[copies] = model(torch.zeros(0), torch.from_numpy(held_KM)).argmax(1).numpy() == 1
    assert found[4][early_K].mean() > found[0][early_K].mean()
    assert found[4][early_K].mean() > 0.8


def test_the_state_is_the_model_and_the_seed_decides(tmp_path) -> None:
    side_NM, class_N = examples()
    target_NC = np.eye(3, dtype=np.float32)[class_N]
    models = [RehearsedRegression(INPUTS, 3) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        model.fit(side_NM, target_NC, "multiclass", None, seed)
    assert torch.equal(models[0].weight_CM, models[1].weight_CM)
    assert not torch.equal(models[0].weight_CM, models[2].weight_CM)
    # Intervals say what follows what, and nothing else.
    assert not models[0].weight_CM[:, :3].any()
    safetensors.torch.save_file(models[0].state_dict(), tmp_path / "weights.safetensors")
    other = RehearsedRegression(INPUTS, 3)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    rows_NM = torch.from_numpy(side_NM)
    with torch.inference_mode():
        torch.testing.assert_close(other(rows_NM, rows_NM), models[0](rows_NM, rows_NM))


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_columns_without_rhythm_are_not_rehearsed(kind) -> None:
    rng = np.random.default_rng(0)
    side_NM = rng.normal(size=(200, 2)).astype(np.float32)
    class_N = (side_NM[:, 0] > 0).astype(int)
    model = RehearsedRegression(ModelInputs(STANDARD_LEADS, 250, 100, ("a", "b")), 2, strength=1.0)
    model.fit(side_NM, np.eye(2, dtype=np.float32)[class_N], kind, None, 0)
    with torch.inference_mode():
        found = model(torch.zeros(0), torch.from_numpy(side_NM)).argmax(dim=1).numpy()
    assert (found == class_N).mean() > 0.95


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="strength above 0"):
        RehearsedRegression(INPUTS, 3, strength=0.0)
    with pytest.raises(ValueError, match="balance of 0 to 1"):
        RehearsedRegression(INPUTS, 3, balance=2.0)
    with pytest.raises(ValueError, match="side inputs"):
        RehearsedRegression(ModelInputs(STANDARD_LEADS, 250, 100), 3)
