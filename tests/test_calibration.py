"""The figures of calibration, against scikit-learn, scipy and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from rayecg.metrics import calibration as ours
from rayecg.metrics.decision_curves import THRESHOLDS_T, decision_curves
from rayecg.metrics.resamples import Resamples

#: Both sides add up at most a few thousand float64 of at most 1.
EXACT = {"rtol": 0, "atol": 1e-12}

#: Targets with probabilities; few distinct ones, on edges of bins too, so that ties are many.
examples = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=60,
)


def columns(pairs: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[t] for t, _ in pairs], dtype=np.int8), np.array([[p] for _, p in pairs])


@given(examples)
def test_brier_score_is_scikit_learns(pairs):
    target_N1, value_N1 = columns(pairs)
    expected = brier_score_loss(target_N1[:, 0], value_N1[:, 0], labels=[0, 1])
    np.testing.assert_allclose(ours.brier(target_N1, value_N1), [expected], **EXACT)


@pytest.mark.parametrize(("bins", "strategy"), [("width", "uniform"), ("mass", "quantile")])
@given(pairs=examples, n_bins=st.integers(1, 12))
def test_the_reliability_curve_is_scikit_learns(bins, strategy, pairs, n_bins):
    target_N1, value_N1 = columns(pairs)
    share, mean = calibration_curve(
        target_N1[:, 0], value_N1[:, 0], n_bins=n_bins, strategy=strategy, pos_label=1
    )
    curve = ours.reliability(target_N1, value_N1, n_bins, bins)
    used = curve.count_B > 0
    np.testing.assert_allclose(curve.share_B[used], share, **EXACT)
    np.testing.assert_allclose(curve.mean_B[used], mean, **EXACT)
    assert curve.count_B.sum() == len(pairs)
    assert np.isnan(curve.share_B[~used]).all()
    gap = np.abs(mean - share) @ curve.count_B[used] / len(pairs)
    np.testing.assert_allclose(ours.ece(target_N1, value_N1, n_bins, bins), [gap], **EXACT)


def test_errors_by_hand():
    target_NC = np.array([[1, 0], [0, 0], [1, 1], [1, 0]])
    value_NC = np.array([[0.9, 0.1], [0.85, 0.3], [0.35, 0.8], [0.31, 0.3]])
    # Of the first label, two bins: (0.875 against 0.5) and (0.33 against 1), two examples each.
    # Of the second: 0.1 and 0.3 are the upper ends of their bins; 0.1, 0.6 / 2 against 0, 0.8.
    expected = [(0.375 + 0.67) / 2, (0.1 + 0.6 + 0.2) / 4]
    np.testing.assert_allclose(ours.ece(target_NC, value_NC), expected, **EXACT)
    # Two bins of equal mass: the second label's median is 0.3, and belongs below.
    expected = [(0.375 + 0.67) / 2, (0.7 + 0.2) / 4]
    np.testing.assert_allclose(ours.ece(target_NC, value_NC, 2, "mass"), expected, **EXACT)


def test_the_order_of_examples_does_not_matter():
    rng = np.random.default_rng(0)
    value_NC = rng.choice([0.1, 0.2, 0.4, 0.9], (200, 3))
    target_NC = rng.random((200, 3)) < value_NC
    order = rng.permutation(200)
    for bins in ("width", "mass"):
        np.testing.assert_allclose(
            ours.ece(target_NC[order], value_NC[order], 7, bins),
            ours.ece(target_NC, value_NC, 7, bins),
            **EXACT,
        )


def test_top_label_by_hand():
    value_NC = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.75, 0.15]])
    target_NC = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0]])
    right_N1, largest_N1 = ours.top_label(target_NC, value_NC)
    assert right_N1.tolist() == [[True], [False], [True]]
    assert largest_N1.tolist() == [[0.7], [0.4], [0.75]]
    found = ours.evaluate_calibration(target_NC, value_NC, "multiclass")
    assert found.top_label_ece == pytest.approx((0.3 + 0.4 + 0.25) / 3, abs=1e-12)
    assert np.isnan(ours.evaluate_calibration(target_NC, value_NC, "multilabel").top_label_ece)


def test_recalibration_finds_what_distorted_the_log_odds():
    rng = np.random.default_rng(3)
    true_NC = rng.normal(-1, 1.5, (40_000, 3))
    target_NC = rng.random(true_NC.shape) < expit(true_NC)
    slope_C, shift_C = np.array([1.0, 2.5, 0.5]), np.array([0.0, 1.0, -0.5])
    found, intercept = ours.recalibration(target_NC, expit(slope_C * true_NC + shift_C))
    # Standard errors of the undistorted slope and intercept are about 0.012 and 0.018 (Fisher
    # information of an example 0.16 x variance 2.25); four of them, scaled as the slope is.
    np.testing.assert_allclose(found * slope_C, 1.0, atol=0.05)
    np.testing.assert_allclose(intercept + found * shift_C, 0.0, atol=0.08)


def test_recalibration_is_the_maximum_of_the_likelihood():
    rng = np.random.default_rng(7)
    odds_NC = rng.normal(-0.5, 3, (400, 3))
    own_NC = rng.random((400, 3)) < expit(odds_NC / 2 - 0.3)
    slope_C, intercept_C = ours.recalibration(own_NC, expit(odds_NC))
    error_NC = expit(slope_C * odds_NC + intercept_C) - own_NC
    # There both derivatives are 0: sums of 400 terms of at most 12, to rounding.
    np.testing.assert_allclose(error_NC.sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose((error_NC * odds_NC).sum(axis=0), 0.0, atol=1e-9)
    for label in range(3):
        fit = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000)
        fit.fit(odds_NC[:, [label]], own_NC[:, label])
        # Of scikit-learn's, whose stopping rule bounds the gradient's mean, not the estimate.
        np.testing.assert_allclose(slope_C[label], fit.coef_[0, 0], rtol=1e-5)
        np.testing.assert_allclose(intercept_C[label], fit.intercept_[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("target", "value"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3]),  # no positive
        ([1, 1, 1], [0.1, 0.2, 0.3]),  # no negative
        ([0, 0, 1], [0.1, 0.2, 0.3]),  # told apart
        ([1, 0, 0], [0.1, 0.2, 0.3]),  # told apart the wrong way round
        ([0, 1, 0, 1], [0.1, 0.2, 0.2, 0.3]),  # but for a tie
        ([0, 1, 0, 1], [0.2, 0.2, 0.2, 0.2]),  # all alike
    ],
)
def test_no_slope_is_made_up(target, value):
    found = ours.recalibration(np.array([target]).T, np.array([value]).T)
    assert np.isnan(found).all()


def test_recalibration_takes_certainty_for_nearly_that():
    slope_C, _ = ours.recalibration(
        np.array([[0], [1], [1], [0]]), np.array([[0.0], [0.3], [1.0], [0.6]])
    )
    assert np.isfinite(slope_C).all()


def test_macro_averages_are_over_labels_with_both_sides():
    target_NC = np.array([[1, 0, 1], [0, 0, 0], [1, 0, 0], [0, 0, 1]])
    value_NC = np.array([[0.9, 0.4, 0.2], [0.2, 0.4, 0.1], [0.7, 0.4, 0.3], [0.4, 0.4, 0.4]])
    found = ours.evaluate_calibration(target_NC, value_NC, "multilabel")
    assert found.both_C.tolist() == [True, False, True]
    assert found.n_positive_C.tolist() == [2, 0, 2]
    assert found.macro("brier") == pytest.approx(np.mean(found.brier_C[[0, 2]]))
    assert np.isnan(found.slope_C[:2]).all()  # the first label's sides are told apart
    assert found.macro("slope") == pytest.approx(found.slope_C[2])
    among_C = np.array([True, True, False])
    assert found.macro("brier", among_C) == pytest.approx(found.brier_C[0])
    assert np.isnan(found.macro("slope", among_C))


@given(st.integers(0, 40), st.integers(0, 40), st.sampled_from([0.8, 0.95]))
def test_wilson_interval_is_scipys(hits, misses, level):
    if not hits + misses:
        assert np.isnan(ours.wilson(0, 0)).all()
        return
    expected = binomtest(hits, hits + misses).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(ours.wilson(hits, hits + misses, level), expected, **EXACT)


def test_a_reliability_curve_over_patients_draws_them_whole():
    rng = np.random.default_rng(5)
    patient_N = np.repeat(np.arange(40), 6)
    value_N = np.clip(rng.normal(0.5, 0.2, 40)[patient_N] + rng.normal(0, 0.1, 240), 0, 1)
    target_N = rng.random(240) < value_N
    resamples = Resamples.of(patient_N, 300)
    curve = ours.reliability(target_N, value_N, 5, groups_N=patient_N, resamples=resamples)
    place_N = np.searchsorted(curve.edges_B, value_N)
    shares = np.full((300, 5), np.nan)
    for r, counts_G in enumerate(resamples.counts_GR.T):
        drawn_N = np.repeat(np.arange(240), counts_G[patient_N])
        for b in range(5):
            own = drawn_N[place_N[drawn_N] == b]
            if len(own):
                shares[r, b] = target_N[own].mean()
    low_B, high_B = np.nanquantile(shares, [0.025, 0.975], axis=0)
    differs = low_B < high_B
    assert differs.sum() >= 3
    np.testing.assert_allclose(curve.low_B[differs], low_B[differs], **EXACT)
    np.testing.assert_allclose(curve.high_B[differs], high_B[differs], **EXACT)
    assert np.isnan(curve.low_B[~differs]).all()


def test_no_interval_is_made_of_resamples_that_cannot_differ():
    target_N, value_N = np.array([0, 0, 1, 0]), np.array([0.1, 0.2, 0.7, 0.8])
    curve = ours.reliability(target_N, value_N, 2, groups_N=["a", "b", "c", "c"])
    assert curve.share_B.tolist() == [0.0, 0.5]
    assert np.isnan(curve.low_B).all()
    # Wilson's takes examples for independent, and says something.
    alone = ours.reliability(target_N, value_N, 2)
    assert (alone.low_B < alone.high_B).all()


@settings(max_examples=50)
@given(examples, st.booleans())
def test_net_benefit_by_counting(pairs, standardised):
    target_N1, value_N1 = columns(pairs)
    curves = decision_curves(target_N1, value_N1, standardised=standardised)
    n, prevalence = len(pairs), target_N1.mean()
    for i in (0, 9, 24, 49, 69, 98):
        t = THRESHOLDS_T[i]
        acted_N = value_N1[:, 0] >= t
        hits = (acted_N & (target_N1[:, 0] == 1)).sum() / n
        alarms = (acted_N & (target_N1[:, 0] == 0)).sum() / n
        expected = hits - alarms * t / (1 - t), prevalence - (1 - prevalence) * t / (1 - t)
        if standardised:
            expected = tuple(e / prevalence if prevalence else np.nan for e in expected)
        found = curves.model_TC[i, 0], curves.treat_all_TC[i, 0]
        # Sums of at most 99 at the last threshold, over a prevalence of 1/60 or more.
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_decision_curves_at_their_corners():
    target_N1 = np.array([[1], [0], [0], [1], [0]])
    perfect = decision_curves(target_N1, target_N1.astype(float), [0.0, 0.4, 0.9], True)
    np.testing.assert_allclose(perfect.model_TC, [[1.0], [1.0], [1.0]], **EXACT)
    # At the prevalence, acting on everybody is worth as little as acting on nobody.
    np.testing.assert_allclose(perfect.treat_all_TC[:2], [[1.0], [0.0]], **EXACT)
    assert perfect.prevalence_C.tolist() == [0.4]
    certain = decision_curves(target_N1, np.ones((5, 1)))
    np.testing.assert_allclose(certain.model_TC, certain.treat_all_TC, **EXACT)
    nobody = decision_curves(target_N1, np.zeros((5, 1)))
    np.testing.assert_array_equal(nobody.model_TC, 0.0)


@pytest.mark.parametrize(
    ("target", "value", "text"),
    [
        ([[1], [0]], [[0.2], [1.2]], "probabilities must lie in 0 to 1"),
        ([[1], [0]], [[0.2], [np.nan]], "probabilities must lie in 0 to 1"),
        ([[2], [0]], [[0.2], [0.1]], "targets must be 0 or 1"),
        ([1, 0], [0.2, 0.1], r"expected targets and probabilities \(N, C\), came \(2,\)"),
        ([[1, 0]], [[0.2]], r"came \(1, 2\), \(1, 1\)"),
        (np.empty((0, 2)), np.empty((0, 2)), "there is no example"),
    ],
)
def test_what_no_figure_can_be_computed_of_is_refused(target, value, text):
    for function in (ours.ece, ours.brier, ours.recalibration, ours.top_label, decision_curves):
        with pytest.raises(ValueError, match=text):
            function(target, value)


def test_settings_of_figures_are_checked():
    target_N1, value_N1 = np.array([[1], [0]]), np.array([[0.4], [0.1]])
    with pytest.raises(ValueError, match="n_bins must be a whole number of at least 1, not 0"):
        ours.ece(target_N1, value_N1, 0)
    with pytest.raises(ValueError, match="bins must be width or mass, not 'equal'"):
        ours.ece(target_N1, value_N1, 5, "equal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level must lie between 0 and 1, not 95"):
        ours.reliability(target_N1, value_N1, level=95)
    with pytest.raises(ValueError, match="thresholds must be numbers from 0 up to, and without, 1"):
        decision_curves(target_N1, value_N1, [0.5, 1.0])
