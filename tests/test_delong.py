"""AUROC's variance by formula: against pairs counted one by one, scikit-learn, and the bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import logit
from sklearn.metrics import roc_auc_score

from rayecg.metrics.bootstrap import Measured
from rayecg.metrics.delong import auroc_covariance, auroc_difference, auroc_interval
from rayecg.metrics.resamples import Resamples

#: Some thousand float64 of at most 1 are added up.
EXACT = 1e-12
Examples = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn(n: int = 120, n_groups: int = 30, seed: int = 0, ties: bool = True) -> Examples:
    """Draw targets, two sets of scores, and patients whose examples resemble one another."""
    rng = np.random.default_rng(seed)
    groups_N = rng.integers(n_groups, size=n)
    target_N = rng.normal(size=n_groups)[groups_N] + rng.normal(size=n) > 0.3
    own_N = rng.normal(size=n_groups)[groups_N]
    scores_2N = target_N + own_N + rng.normal(size=(2, n))
    return target_N, np.round(scores_2N, 1) if ties else scores_2N, groups_N


def by_pairs(target_N: np.ndarray, scores_SN: np.ndarray, groups_N: np.ndarray) -> np.ndarray:
    """Obuchowski's covariance from every pair of examples; DeLong's if each is its own group."""
    positives, negatives = np.flatnonzero(target_N), np.flatnonzero(~target_N)
    names = np.unique(groups_N)
    sums = []
    for scores_N in scores_SN:
        wins = scores_N[positives][:, None] - scores_N[negatives]
        kernel = np.where(wins > 0, 1.0, np.where(wins == 0, 0.5, 0.0))
        area = kernel.mean()
        sums.append(
            [
                [(placed - area)[groups_N[own] == name].sum() for name in names]
                for own, placed in ((positives, kernel.mean(1)), (negatives, kernel.mean(0)))
            ]
        )
    m, n = len(positives), len(negatives)
    n_with = [len(np.unique(groups_N[own])) for own in (positives, negatives)]
    found = np.zeros((len(sums), len(sums)))
    for i, (x_i, y_i) in enumerate(np.array(sums)):
        for j, (x_j, y_j) in enumerate(np.array(sums)):
            s10 = n_with[0] / ((n_with[0] - 1) * m) * (x_i @ x_j)
            s01 = n_with[1] / ((n_with[1] - 1) * n) * (y_i @ y_j)
            s11 = len(names) / (len(names) - 1) * (x_i @ y_j + x_j @ y_i)
            found[i, j] = s10 / m + s01 / n + s11 / (m * n)
    return found


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("n_groups", [4, 30, 1000])
def test_ranks_give_what_pairs_give(ties, n_groups):
    target_N, scores_2N, groups_N = drawn(n_groups=n_groups, ties=ties)
    for groups in (groups_N, None):
        auroc_S, covariance_SS, counts = auroc_covariance(target_N, scores_2N, groups)
        areas = [roc_auc_score(target_N, scores_N) for scores_N in scores_2N]
        np.testing.assert_allclose(auroc_S, areas, rtol=0, atol=EXACT)
        own = np.arange(120) if groups is None else groups
        np.testing.assert_allclose(
            covariance_SS, by_pairs(target_N, scores_2N, own), rtol=0, atol=EXACT
        )
        assert counts[0] == len(np.unique(own))
    names = np.array([f"p{g}" for g in groups_N])
    again = auroc_covariance(target_N, scores_2N, names)
    first = auroc_covariance(target_N, scores_2N, groups_N)
    np.testing.assert_allclose(again[1], first[1], rtol=0, atol=EXACT)


def test_a_patient_for_each_example_is_delongs_textbook_form():
    """The placements' sample variances, with their own n - 1; no factor is left between the two."""
    target_N, scores_2N, _ = drawn(ties=False)
    score_N = scores_2N[0]
    above = score_N[target_N][:, None] > score_N[~target_N]
    variance = above.mean(1).var(ddof=1) / target_N.sum()
    variance += above.mean(0).var(ddof=1) / (~target_N).sum()
    for groups in (None, np.arange(120), np.random.default_rng(0).permutation(120)):
        found = auroc_interval(target_N, score_N, groups)
        assert found.variance == pytest.approx(variance, abs=EXACT)
    assert (found.n_groups, found.n_effective, found.warning) == (120, 120, "")


def test_one_patient_twice_is_one_patient():
    """Copies of all examples in their own patients change nothing; as other patients they do."""
    target_N, scores_2N, groups_N = drawn()
    once = auroc_interval(target_N, scores_2N[0], groups_N)
    pair = np.tile(target_N, 2), np.tile(scores_2N[0], 2)
    twice = auroc_interval(*pair, np.tile(groups_N, 2))
    assert twice.variance == pytest.approx(once.variance, rel=1e-9)
    assert (
        auroc_interval(*pair).variance < 0.6 * auroc_interval(*pair, np.tile(groups_N, 2)).variance
    )


@pytest.mark.parametrize("groups", ["patients", "examples"])
def test_it_agrees_with_the_bootstrap(groups):
    """400 patients. The standard deviation of 4,000 resamples has an error of 1 / sqrt(8,000) = 1.1 %.

    Five such are 6 %; patients drawn twice add terms of the order of 1 / 400 times a few.
    """
    target_N, scores_2N, groups_N = drawn(2000, 400, ties=False)
    own_N = groups_N if groups == "patients" else np.arange(2000)
    resamples = Resamples.of(own_N, 4000, seed=1)
    values_2R = [
        Measured.of("auroc", target_N, scores_N, own_N).values(resamples)[:, 0]
        for scores_N in scores_2N
    ]
    for scores_N, values_R in zip(scores_2N, values_2R, strict=True):
        found = auroc_interval(target_N, scores_N, own_N)
        assert np.sqrt(found.variance) == pytest.approx(values_R.std(), rel=0.08)
    less = auroc_difference(target_N, *scores_2N, own_N)
    assert np.sqrt(less.variance) == pytest.approx(np.std(values_2R[0] - values_2R[1]), rel=0.08)
    other = auroc_interval(target_N, scores_2N[0], None if groups == "patients" else groups_N)
    assert abs(np.sqrt(other.variance) / values_2R[0].std() - 1) > 0.15


def test_scales_and_test_are_their_formulas():
    target_N, scores_2N, groups_N = drawn()
    z = stats.norm.ppf(0.95)
    odds = auroc_interval(target_N, scores_2N[0], groups_N, 0.9)
    plain = auroc_interval(target_N, scores_2N[0], groups_N, 0.9, scale="plain")
    error = np.sqrt(plain.variance)
    assert (plain.low, plain.high) == pytest.approx(
        (plain.point - z * error, plain.point + z * error), abs=EXACT
    )
    reach = z * error / (odds.point * (1 - odds.point))
    assert (logit(odds.low), logit(odds.high)) == pytest.approx(
        (logit(odds.point) - reach, logit(odds.point) + reach), abs=1e-10
    )
    assert np.isnan(odds.p_value)
    less = auroc_difference(target_N, *scores_2N, groups_N, 0.9)
    auroc_S, covariance_SS, _ = auroc_covariance(target_N, scores_2N, groups_N)
    assert less.point == pytest.approx(auroc_S[0] - auroc_S[1], abs=EXACT)
    assert less.variance == pytest.approx([1, -1] @ covariance_SS @ [1, -1], abs=EXACT)
    assert less.p_value == pytest.approx(
        2 * stats.norm.sf(abs(less.point) / np.sqrt(less.variance)), abs=EXACT
    )
    turned = auroc_difference(target_N, *scores_2N[::-1], groups_N, 0.9)
    assert (turned.point, turned.p_value) == pytest.approx((-less.point, less.p_value), abs=EXACT)
    assert (turned.low, turned.high) == pytest.approx((-less.high, -less.low), abs=EXACT)


def test_what_is_doubtful_is_said():
    groups_N = np.arange(40)
    target_N = groups_N < 20
    rng = np.random.default_rng(0)
    score_N = rng.normal(size=40)
    assert auroc_interval(target_N, score_N, groups_N).warning == ""
    assert "rests on few patients (10)" in auroc_interval(target_N, score_N, groups_N // 4).warning
    perfect = auroc_interval(target_N, target_N * 1.0, groups_N)
    assert (perfect.low, perfect.point, perfect.high, perfect.variance) == (1, 1, 1, 0)
    assert perfect.warning == "nothing varies, and the interval is its point"
    rare = auroc_interval(groups_N < 4, score_N, groups_N)
    assert rare.warning == "one class comes from fewer than 5 patients"
    single = auroc_interval(groups_N < 1, score_N, groups_N)
    assert np.isnan([single.variance, single.low, single.high]).all()
    assert "one class comes from a single patient" in single.warning
    none = auroc_interval(groups_N < 0, score_N, groups_N)
    assert np.isnan([none.point, none.low]).all()
    assert "there is only one class" in none.warning
    same = auroc_difference(target_N, score_N, 3 * score_N + 1, groups_N)
    assert (same.point, same.variance, same.p_value) == (0, 0, 1)
    sure = auroc_difference(target_N, target_N * 1.0, target_N * -1.0, groups_N)
    assert sure.point == 1
    assert np.isnan(sure.p_value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": "log"}, "no scale is named 'log'; known: logit, plain"),
        ({"level": 95}, "between 0 and 1, not 95"),
        ({"scores_N": np.zeros(3)}, r"came \(4,\), \(3,\)"),
        ({"targets_N": np.array([0, 1, 2, 1])}, "targets must be 0 or 1"),
        ({"groups_N": [0, 1]}, "a group for each of 4 examples, came 2"),
        ({"groups_N": [0, 1, None, 3]}, "example 2 has no group"),
    ],
)
def test_wrong_input_is_refused_in_a_line(change, message):
    good = {
        "targets_N": np.array([0, 1, 0, 1]),
        "scores_N": np.arange(4.0),
        "groups_N": [0, 1, 2, 3],
    }
    auroc_interval(**good)
    with pytest.raises(ValueError, match=message):
        auroc_interval(**{**good, **change})


@given(st.data())
def test_covariance_is_one_and_the_interval_holds_its_point(data):
    n = data.draw(st.integers(4, 40))
    target_N = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    groups_N = data.draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    score = st.lists(st.integers(-3, 3), min_size=n, max_size=n)
    scores_2N = np.array([data.draw(score), data.draw(score)], dtype=float)
    auroc_S, covariance_SS, _ = auroc_covariance(target_N, scores_2N, groups_N)
    assert np.isnan(auroc_S).all() == (len(set(target_N.tolist())) == 1)
    if not np.isnan(covariance_SS).any():
        np.testing.assert_allclose(covariance_SS, covariance_SS.T, rtol=0, atol=EXACT)
        for scale in ("logit", "plain"):
            found = auroc_interval(target_N, scores_2N[0], groups_N, scale=scale)
            assert found.variance >= 0
            assert 0 <= found.low <= found.point + EXACT
            assert found.point - EXACT <= found.high <= 1
