"""Differences of two models on the same resamples, their tests, and Holm's correction."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_bootstrap import decided, drawn, loop

from rayecg.metrics import classification
from rayecg.metrics.bootstrap import METHODS, Interval, holds
from rayecg.metrics.comparison import bootstrap_difference, difference, holm, p_value
from rayecg.metrics.delong import auroc_difference
from rayecg.metrics.resamples import Resamples, n_effective

#: Both sides add up at most some thousand float64 of at most 1.
EXACT = {"rtol": 0, "atol": 1e-9}
ONE = {"macro_auroc": "auroc", "macro_f1": "f1"}


def two_models(n: int = 120, n_groups: int = 30) -> tuple[np.ndarray, ...]:
    """Give targets, the scores of two models, and patients."""
    targets_NC, a_NC, groups_N = drawn(n, n_groups, ties=False)
    b_NC = a_NC + np.random.default_rng(9).normal(0, 0.4, a_NC.shape)
    return targets_NC, a_NC, b_NC, groups_N


@pytest.mark.parametrize("metric", ONE)
def test_both_are_evaluated_in_the_same_resamples(metric):
    targets_NC, a_NC, b_NC, groups_N = two_models(n_groups=8)
    if metric == "macro_f1":
        a_NC, b_NC = decided(a_NC), decided(b_NC)
    resamples = Resamples.of(groups_N, 60, seed=4)
    a_RC, b_RC = (
        loop(ONE[metric], (targets_NC, each_NC, groups_N), resamples) for each_NC in (a_NC, b_NC)
    )
    expected_R = np.nanmean(a_RC, axis=1) - np.nanmean(b_RC, axis=1)
    found = bootstrap_difference(
        metric, targets_NC, a_NC, b_NC, groups_N, 60, 0.9, seed=4, method="percentile"
    )
    assert isinstance(found, Interval)
    ends = np.quantile(expected_R, [0.05, 0.95])
    np.testing.assert_allclose([found.low, found.high], ends, **EXACT)
    function = getattr(classification, metric)
    point = function(targets_NC, a_NC) - function(targets_NC, b_NC)
    assert found.point == pytest.approx(point, abs=1e-12)
    known_C = ~np.isnan(a_RC).all(axis=0)
    assert found.n_undefined == np.isnan(a_RC[:, known_C]).any(axis=1).sum() > 0
    assert (found.n_groups, found.n_effective) == (8, n_effective(groups_N))
    assert "rests on few patients (8)" in found.warning


def test_a_label_that_one_lacks_is_left_out_for_both():
    """PPV is not there without a positive decision: of label 0, for `b` alone."""
    groups_N = np.arange(40)
    target_N = groups_N % 2 == 0
    a_N = groups_N < 30
    sparse_N = groups_N == 0
    found = bootstrap_difference("ppv", target_N, a_N, sparse_N, groups_N, 400, method="percentile")
    a_R, b_R = (
        loop("ppv", (target_N[:, None], each_N[:, None], groups_N), Resamples.of(groups_N, 400))[
            :, 0
        ]
        for each_N in (a_N, sparse_N)
    )
    assert found.n_undefined == np.isnan(b_R).sum() > 100
    np.testing.assert_allclose(
        [found.low, found.high], np.nanquantile(a_R - b_R, [0.025, 0.975]), **EXACT
    )


@pytest.mark.parametrize("method", METHODS)
def test_turning_it_round_changes_the_sign_alone(method):
    targets_NC, a_NC, b_NC, groups_N = two_models()
    found = bootstrap_difference(
        "macro_auroc", targets_NC, a_NC, b_NC, groups_N, 300, method=method
    )
    turned = bootstrap_difference(
        "macro_auroc", targets_NC, b_NC, a_NC, groups_N, 300, method=method
    )
    assert found.method == method
    assert found.low < found.point < found.high
    assert found.point > 0  # the second model is the first with noise
    assert [turned.point, turned.low, turned.high] == pytest.approx(
        [-found.point, -found.high, -found.low], abs=1e-9
    )
    assert turned.p_value == pytest.approx(found.p_value, abs=1e-9)
    same = bootstrap_difference("macro_auroc", targets_NC, a_NC, a_NC, groups_N, 50, method=method)
    assert (same.point, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert "no resample differs from another" in same.warning


def test_a_function_of_ones_own_is_compared_too():
    targets_NC, a_NC, b_NC, groups_N = two_models(60, 12)
    named, own = (
        bootstrap_difference(metric, targets_NC, a_NC, b_NC, groups_N, 40, method="bca")
        for metric in ("macro_auroc", lambda t, s: classification.macro_auroc(t, s))
    )
    for field in ("point", "low", "high", "p_value"):
        np.testing.assert_allclose(getattr(own, field), getattr(named, field), **EXACT)
    usual = bootstrap_difference(
        lambda t, s: classification.macro_auroc(t, s), targets_NC, a_NC, b_NC, groups_N, 40
    )
    assert usual.method == "percentile"


def test_it_agrees_with_delongs_test():
    """400 patients: standard errors differ by simulation (2,000 resamples: 1.6 %) and 1 / n."""
    rng = np.random.default_rng(3)
    groups_N = rng.integers(400, size=1600)
    target_N = rng.normal(size=400)[groups_N] + rng.normal(size=1600) > 0
    a_N = target_N + rng.normal(size=400)[groups_N] + rng.normal(size=1600)
    b_N = a_N + rng.normal(0, 0.5, 1600)
    exact = auroc_difference(target_N, a_N, b_N, groups_N)
    found = bootstrap_difference("auroc", target_N, a_N, b_N, groups_N)
    assert found.point == pytest.approx(exact.point, abs=1e-9)
    assert found.high - found.low == pytest.approx(exact.high - exact.low, rel=0.1)
    z = stats.norm.isf(exact.p_value / 2), stats.norm.isf(found.p_value / 2)
    assert z[1] == pytest.approx(z[0], rel=0.1)


@given(
    seed=st.integers(0, 10_000),
    shift=st.floats(-3, 3),
    method=st.sampled_from(METHODS),
    level=st.floats(0.5, 0.99),
)
def test_p_is_below_where_the_interval_leaves_out_zero(seed, shift, method, level):
    """Up to one resample: the interval's ends lie between two of them."""
    rng = np.random.default_rng(seed)
    values_R = rng.gamma(3, 0.5, 999) + shift - 1.5
    point = float(np.median(values_R)) + 0.1 * rng.normal()
    without_G = point + 0.05 * rng.gamma(2, 1, 40)
    found = difference(point, values_R, (40, 35.0), level=level, method=method, without_G=without_G)
    tail = {"student": 1e-9, "percentile": 2 / 1000, "bca": 0.02}[method]
    assert 0 <= found.p_value <= 1
    if found.method == method and abs(found.p_value - (1 - level)) > tail:
        assert (found.p_value < 1 - level) == (not found.low <= 0 <= found.high)


def test_p_is_counted_with_care():
    values_R = np.arange(-10, 90) / 100 + 0.005
    assert p_value("percentile", 0.4, values_R, 30.0) == pytest.approx(2 * 11 / 101)
    far_R = values_R + 1
    assert p_value("percentile", 1.4, far_R, 30.0) == pytest.approx(2 / 101)
    # Those at 0 count on both sides.
    tied_R = np.concatenate([np.zeros(50), np.ones(50)])
    assert p_value("percentile", 0.5, tied_R, 30.0) == pytest.approx(1.0)
    assert p_value("student", 0.0, values_R, 30.0) == 1
    error = values_R.std() * np.sqrt(30 / 29)
    expected = 2 * stats.t.sf(0.4 / error, 29)
    assert p_value("student", 0.4, values_R, 30.0) == pytest.approx(expected, abs=1e-12)
    nothing = difference(0.1, np.full(5, np.nan), (40, 40.0))
    assert np.isnan([nothing.low, nothing.p_value]).all()
    assert "no resample has the metric" in nothing.warning
    # Always the same difference: nothing says how much it varies.
    always = difference(0.1, np.full(5, 0.1), (40, 40.0))
    assert np.isnan(always.p_value)
    assert always.warning == "no resample differs from another"


@pytest.mark.parametrize("method", METHODS)
def test_it_contains_its_point_or_says_why_not(method):
    rng = np.random.default_rng(0)
    n_missed = 0
    for shift in (0.0, 0.5, 3.0, 9.0):
        values_R, without_G = rng.normal(size=200), rng.normal(size=40)
        found = difference(shift, values_R, (40, 40.0), method=method, without_G=without_G)
        inside = holds(found.low, found.high, shift)
        n_missed += not inside
        assert inside != ("does not contain its point" in found.warning)
        if method == "bca" and shift == 9:  # no resample lies above
            assert found.method == "percentile"
            assert "the bca interval is not defined" in found.warning
    assert (n_missed > 0) == (method != "student")


def test_it_refuses_what_the_intervals_refuse():
    targets_NC, a_NC, b_NC, groups_N = two_models()
    with pytest.raises(ValueError, match="no metric is named 'macro_auc'"):
        bootstrap_difference("macro_auc", targets_NC, a_NC, b_NC, groups_N)
    with pytest.raises(ValueError, match="expected targets and scores"):
        bootstrap_difference("macro_auroc", targets_NC, a_NC, b_NC[:5], groups_N)
    with pytest.raises(ValueError, match="no method is named 't'"):
        bootstrap_difference("macro_auroc", targets_NC, a_NC, b_NC, groups_N, method="t")


def test_holm_is_worked_through():
    """Four tests: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1, none below the one before."""
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, np.nan, 0.5]), [1.0, np.nan, 1.0])
    assert holm([]).shape == (0,)
    for wrong in ([0.5, 1.5], [-0.1], [[0.1]]):
        with pytest.raises(ValueError, match="p values from 0 to 1"):
            holm(wrong)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values):
    p_K, found_K = np.array(p_values), holm(p_values)
    order = np.argsort(p_K, kind="stable")
    assert (np.diff(found_K[order]) >= 0).all()
    assert (found_K >= p_K).all()
    assert (found_K <= np.minimum(p_K * len(p_K), 1)).all()
    shuffled = np.random.default_rng(0).permutation(len(p_K))
    np.testing.assert_allclose(holm(p_K[shuffled]), found_K[shuffled])


def test_a_difference_is_an_interval_with_a_test():
    names = [field.name for field in dataclasses.fields(Interval)]
    found = difference(0.1, np.linspace(0, 0.2, 50), (40, 38.5), n_undefined=3)
    assert [field.name for field in dataclasses.fields(found)] == [*names, "p_value"]
    assert (found.n_groups, found.n_effective, found.n_undefined) == (40, 38.5, 3)
    assert (found.n_resamples, found.level, found.warning) == (50, 0.95, "")
