"""How intervals are made of resamples: Student's t on log odds, BCa against scipy, what they warn of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit
from test_bootstrap import drawn

from rayecg.metrics import bootstrap_interval, classification
from rayecg.metrics.bootstrap import (
    METHODS,
    Measured,
    bca_ends,
    ends,
    holds,
    student_ends,
    units_of_labels,
)
from rayecg.metrics.resamples import Resamples, n_effective, n_effective_of_labels

#: Both sides add up at most some thousand float64 of at most 1.
EXACT = 1e-9


def test_leaving_out_is_evaluating_the_others():
    """Also a label that one patient alone has, which is then left out of the mean."""
    targets_NC, scores_NC, groups_N = drawn(90, 12)
    targets_NC[:, 1] = (groups_N == groups_N[0]) & (np.arange(90) % 2 == 0)
    found_G = Measured.of("macro_auroc", targets_NC, scores_NC, groups_N).without_one()
    expected_G = [
        classification.macro_auroc(targets_NC[groups_N != name], scores_NC[groups_N != name])
        for name in np.unique(groups_N)
    ]
    np.testing.assert_allclose(found_G, expected_G, rtol=0, atol=EXACT)


def test_leaving_out_comes_in_parts(monkeypatch):
    groups_N = np.arange(30)
    whole = [part.counts_GR for part in Resamples.leaving_one_out(groups_N)]
    assert len(whole) == 1
    np.testing.assert_array_equal(whole[0], 1 - np.eye(30))
    monkeypatch.setattr("rayecg.metrics.resamples._BLOCK", 200)
    parts = [part.counts_GR for part in Resamples.leaving_one_out(groups_N)]
    assert len(parts) == 5
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole[0])
    np.testing.assert_array_equal(Resamples.whole([3, 1, 3]).counts_GR, [[1], [1]])


def test_bca_is_scipys():
    """The mean of skewed numbers; scipy draws for itself, so that both ends have an error.

    An end is a quantile of 20,000 resamples at about 0.05: sqrt(0.05 * 0.95 / 20,000) / density, the
    density of a normal at its 0.05 quantile 0.103 / SE: 0.015 SE; five such for each side, with
    sqrt(2), are 0.11 SE.
    """
    values_N = np.random.default_rng(1).exponential(size=40)

    def mean(values: np.ndarray, _: np.ndarray | None = None) -> float:
        return float(np.mean(values))

    found = bootstrap_interval(mean, values_N, values_N, None, 20_000, 0.9, 3, method="bca")
    known = stats.bootstrap(
        (values_N,),
        np.mean,
        n_resamples=20_000,
        confidence_level=0.9,
        rng=np.random.default_rng(7),
        method="BCa",
    )
    close = 0.11 * known.standard_error
    assert found.method == "bca"
    assert found.low == pytest.approx(known.confidence_interval.low, abs=close)
    assert found.high == pytest.approx(known.confidence_interval.high, abs=close)
    plain = bootstrap_interval(mean, values_N, values_N, None, 20_000, 0.9, 3)
    assert plain.method == "percentile"
    assert found.high - plain.high > 2 * close  # skewed: both ends are moved up


def test_bca_without_bias_and_skewness_is_the_percentile_interval():
    values_R = np.arange(-500, 501) / 1000
    without_G = np.array([-1.0, 1.0, -2.0, 2.0])
    assert bca_ends(0.0, values_R, without_G, 0.9) == pytest.approx((-0.45, 0.45), abs=1e-12)
    low, high = bca_ends(0.1, values_R, without_G, 0.9)
    # Efron 1987, formula 2.3 with a = 0: percentiles at Phi(2 z0 + z).
    z0 = stats.norm.ppf(600.5 / 1001)
    at = stats.norm.cdf(2 * z0 + stats.norm.ppf([0.05, 0.95]))
    assert (low, high) == pytest.approx(np.quantile(values_R, at), abs=1e-12)


def test_student_is_its_formula():
    targets_NC, scores_NC, groups_N = drawn(300, 40)
    target_N, score_N = targets_NC[:, 0], scores_NC[:, 0]
    found = bootstrap_interval("auroc", target_N, score_N, groups_N, 500, 0.9)
    assert found.method == "student"
    values_R = Measured.of("auroc", target_N, score_N, groups_N).values(Resamples.of(groups_N, 500))
    names = np.unique(groups_N)
    sizes = [
        np.array([(own & (groups_N == name)).sum() for name in names])
        for own in (target_N, ~target_N)
    ]
    n = min(float(own.sum() ** 2 / (own**2).sum()) for own in sizes)
    assert n == n_effective_of_labels(targets_NC, groups_N)[0] < found.n_effective
    error = values_R.std() * np.sqrt(n / (n - 1)) / (found.point * (1 - found.point))
    reach = stats.t.ppf(0.95, n - 1) * error
    assert logit(found.low) == pytest.approx(logit(found.point) - reach, abs=EXACT)
    assert logit(found.high) == pytest.approx(logit(found.point) + reach, abs=EXACT)
    assert student_ends(0.7, values_R, 9.0, 0.9, bounded=False) == pytest.approx(
        stats.t.interval(0.9, 8, 0.7, values_R.std() * np.sqrt(9 / 8)), abs=EXACT
    )


def test_what_the_spread_is_known_from():
    """Label by label the rarer class; of several labels the one with most; never more than there are."""
    groups_N = np.repeat(np.arange(12), 5)
    targets_NC = np.stack([groups_N < 3, groups_N >= 5, groups_N < 0, groups_N >= 0], axis=1)
    np.testing.assert_allclose(n_effective_of_labels(targets_NC, groups_N), [3, 5, 12, 12])
    assert units_of_labels(targets_NC[:, :2], groups_N) == 5
    assert units_of_labels(targets_NC, groups_N) == n_effective(groups_N) == 12
    # Records of one patient in fifty: the positives are spread more evenly than all records are.
    groups_N = np.concatenate([np.zeros(450, dtype=int), np.arange(1, 51)])
    target_NC = (groups_N > 0)[:, None]
    assert units_of_labels(target_NC, groups_N) < 50
    scores_N = np.random.default_rng(0).normal(size=500)
    many = Measured.of("auroc", target_NC[:, 0], scores_N, groups_N)
    assert Measured.of("accuracy", target_NC, target_NC, groups_N).n_units == n_effective(groups_N)
    assert many.n_units <= n_effective(groups_N)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("metric", ["macro_auroc", "accuracy", "auroc", "sensitivity"])
def test_an_interval_contains_its_point_or_says_why_not(method, metric):
    for seed in range(20):
        targets_NC, scores_NC, groups_N = drawn(60, 8 + seed, seed=seed)
        values_NC = scores_NC if "auroc" in metric else scores_NC > 0.8
        if not metric.startswith(("macro", "acc")):
            targets_NC, values_NC = targets_NC[:, 1], values_NC[:, 1]
        found = bootstrap_interval(metric, targets_NC, values_NC, groups_N, 100, method=method)
        assert "rests on few patients" in found.warning
        if np.isnan(found.point):
            continue
        inside = holds(found.low, found.high, found.point)
        assert inside != ("does not contain its point" in found.warning)
        assert inside or method != "student"
        assert (found.method != method) <= ("is not defined" in found.warning) or (
            "no resample differs" in found.warning
        )


def test_where_a_method_is_not_defined_percentiles_stand_and_it_is_said():
    values_R, without_G = np.linspace(0.4, 0.6, 101), np.array([0.4, 0.6])
    for method, point, n_units in (("student", 1.0, 9.0), ("student", 0.5, 1.0), ("bca", 0.7, 9.0)):
        low, high, used = ends(method, point, values_R, n_units, 0.9, without_G)
        assert used == "percentile"
        assert (low, high) == pytest.approx((0.41, 0.59))
    # Not even skewed: leaving out changes nothing.
    assert ends("bca", 0.5, values_R, 9.0, 0.9, np.array([0.5, 0.5]))[2] == "percentile"
    groups_N = np.repeat(np.arange(40), 2)
    perfect_N = groups_N % 2 == 0
    for method in METHODS:
        found = bootstrap_interval("auroc", perfect_N, perfect_N * 1.0, groups_N, 50, method=method)
        assert (found.low, found.point, found.high) == (1.0, 1.0, 1.0)
        assert found.warning == "no resample differs from another"
    # All scores of one patient: with it alone in a resample, nothing is defined.
    low = bootstrap_interval("f1", perfect_N, perfect_N, np.zeros(80), 20, method="bca")
    assert low.method == "percentile"
    with pytest.raises(
        ValueError, match=r"no method is named 'bc'; known: student, percentile, bca"
    ):
        bootstrap_interval("f1", perfect_N, perfect_N, groups_N, 20, method="bc")


@given(
    point=st.floats(0.001, 0.999),
    spread=st.floats(1e-6, 0.5),
    n_units=st.floats(1.01, 1e6),
    level=st.floats(0.01, 0.999),
)
def test_student_stays_within_bounds_around_its_point(point, spread, n_units, level):
    values_R = point + spread * np.array([-1.0, 1.0])
    low, high = student_ends(point, values_R, n_units, level)
    assert 0 <= low <= point <= high <= 1
    wider = student_ends(point, values_R, n_units, (1 + level) / 2)
    assert wider[0] <= low <= high <= wider[1]
