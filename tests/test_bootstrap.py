"""Intervals by drawing patients: against a plain loop with scikit-learn, and what they cover."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn import metrics as reference

from rayecg.metrics import bootstrap_interval, classification
from rayecg.metrics import resamples as resamples_module
from rayecg.metrics.bootstrap import FEW_GROUPS, mean_of_known, percentiles, rare_labels
from rayecg.metrics.resamples import Resamples, accuracy_values, label_values

#: Both sides add up at most some thousand float64 of at most 1.
EXACT = {"rtol": 0, "atol": 1e-9}
REFERENCE = {
    "auroc": reference.roc_auc_score,
    "auprc": reference.average_precision_score,
    "f1": reference.f1_score,
    "sensitivity": reference.recall_score,
    "ppv": reference.precision_score,
}
BY_SCORE = ("auroc", "auprc")
MACRO = {"macro_auroc": "auroc", "macro_auprc": "auprc", "macro_f1": "f1"}
Examples = tuple[np.ndarray, np.ndarray, np.ndarray]


def drawn(n: int = 90, n_groups: int = 25, ties: bool = True, seed: int = 0) -> Examples:
    """Draw targets, scores and patients of unequal size; some labels are rare, some not there."""
    rng = np.random.default_rng(seed)
    share_C = np.array([0.4, 0.04, 0.9, 0.0, 1.0, 0.15])
    targets_NC = rng.random((n, 6)) < share_C
    scores_NC = rng.random((n, 6)) + 0.4 * targets_NC
    scores_NC = np.round(scores_NC, 1) if ties else scores_NC
    weights = np.arange(1, n_groups + 1) ** 2.0
    groups_N = rng.choice(n_groups, size=n, p=weights / weights.sum())
    return targets_NC, scores_NC, np.array([f"p{g:03d}" for g in groups_N])


def decided(scores_NC: np.ndarray) -> np.ndarray:
    return (scores_NC > 0.8).astype(np.int8)


def one_by_scikit_learn(metric: str, target_N: np.ndarray, score_N: np.ndarray) -> float:
    """Give NaN where this package says that a metric of a label is undefined."""
    known = {"auroc": 0 < target_N.sum() < len(target_N), "ppv": score_N.any()}
    if not len(target_N) or not known.get(metric, target_N.any()):
        return float("nan")
    return float(REFERENCE[metric](target_N, score_N))


def loop(metric: str, examples: Examples, resamples: Resamples) -> np.ndarray:
    """Compute a label metric of every resample, from the examples written out."""
    targets_NC, scores_NC, groups_N = examples
    place_N = resamples.index(groups_N)
    rows = []
    for counts_G in resamples.counts_GR.T:
        own = np.repeat(np.arange(len(place_N)), counts_G[place_N])
        columns = zip(targets_NC[own].T, scores_NC[own].T, strict=True)
        rows.append([one_by_scikit_learn(metric, t, s) for t, s in columns])
    return np.array(rows)


@pytest.mark.parametrize("metric", REFERENCE)
@pytest.mark.parametrize(("n", "n_groups"), [(90, 25), (90, 4), (60, 1000), (400, 8)])
@pytest.mark.parametrize("ties", [True, False])
def test_label_metrics_are_those_of_a_loop(metric, n, n_groups, ties):
    targets_NC, scores_NC, groups_N = drawn(n, n_groups, ties)
    values_NC = scores_NC if metric in BY_SCORE else decided(scores_NC)
    resamples = Resamples.of(groups_N, 60, seed=3)
    found_RC = label_values(metric, targets_NC, values_NC, groups_N, resamples)
    expected_RC = loop(metric, (targets_NC, values_NC, groups_N), resamples)
    np.testing.assert_allclose(found_RC, expected_RC, **EXACT)
    # Some are always there, some in some resamples, some never.
    assert not np.isnan(found_RC[:, 0]).all()
    assert metric == "ppv" or np.isnan(found_RC[:, 3]).all()
    assert np.isnan(found_RC[:, 4]).all() == (metric == "auroc")


@pytest.mark.parametrize("macro", MACRO)
@pytest.mark.parametrize("n_groups", [4, 30])
def test_macro_metrics_leave_out_what_a_resample_lacks(macro, n_groups):
    targets_NC, scores_NC, groups_N = drawn(n_groups=n_groups)
    values_NC = decided(scores_NC) if macro == "macro_f1" else scores_NC
    resamples = Resamples.of(groups_N, 200, seed=5)
    expected_RC = loop(MACRO[macro], (targets_NC, values_NC, groups_N), resamples)
    expected_R = np.nanmean(expected_RC, axis=1)
    examples = targets_NC, values_NC, groups_N
    found = bootstrap_interval(macro, *examples, 200, 0.9, seed=5, method="percentile")
    ends = np.quantile(expected_R, [0.05, 0.95])
    np.testing.assert_allclose([found.low, found.high], ends, **EXACT)
    assert found.point == getattr(classification, macro)(targets_NC, values_NC)
    whole_C = [
        not np.isnan(one_by_scikit_learn(MACRO[macro], t, s))
        for t, s in zip(targets_NC.T, values_NC.T, strict=True)
    ]
    assert found.n_undefined == np.isnan(expected_RC[:, whole_C]).any(axis=1).sum() > 0
    sizes_G = np.unique(groups_N, return_counts=True)[1]
    assert found.n_groups == len(sizes_G)
    assert found.n_effective == pytest.approx(sizes_G.sum() ** 2 / (sizes_G**2).sum())
    assert 1 <= found.n_effective < found.n_groups
    assert (found.n_resamples, found.level) == (200, 0.9)


@pytest.mark.parametrize("metric", [*REFERENCE, *MACRO, "accuracy"])
def test_what_is_quick_is_what_is_looped_over(metric):
    """A function by its name, as itself, and as a stranger."""
    targets_NC, scores_NC, groups_N = drawn(n_groups=12)
    by_score = metric in (*BY_SCORE, "macro_auroc", "macro_auprc")
    values_NC = scores_NC if by_score else decided(scores_NC)
    pair = (targets_NC[:, 0], values_NC[:, 0]) if metric in REFERENCE else (targets_NC, values_NC)
    function = getattr(classification, metric)
    for method in ("percentile", "bca"):
        named, itself, stranger = (
            bootstrap_interval(each, *pair, groups_N, 50, method=method)
            for each in (metric, function, lambda t, s: function(t, s))
        )
        assert named == itself
        assert named.method == method
        assert named.low < named.high
        for field in ("point", "low", "high"):
            np.testing.assert_allclose(getattr(stranger, field), getattr(named, field), **EXACT)
    if metric == "accuracy":
        right_N = (targets_NC == values_NC).all(axis=1)
        assert named.point == right_N.mean()


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("ties", [False, True])
def test_pairs_of_groups_and_sums_of_examples_agree(monkeypatch, turned, ties):
    targets_NC, scores_NC, groups_N = drawn(300, 40, ties)
    targets_NC = ~targets_NC if turned else targets_NC
    resamples = Resamples.of(groups_N, 100)
    found = []
    for pays in (True, False):
        monkeypatch.setattr(resamples_module._Steps, "pays_by_group", lambda *_, p=pays: p)
        found.append(label_values("auroc", targets_NC, scores_NC, groups_N, resamples))
    np.testing.assert_allclose(*found, **EXACT)
    assert not np.isnan(found[0][:, 0]).any()


def test_the_cheaper_way_depends_on_the_number_of_groups():
    targets_NC, scores_NC, _ = drawn(2000, ties=False)
    ways = {}
    for n_groups in (20, 2000):
        steps = resamples_module._Steps.of(
            scores_NC[:, 0], targets_NC[:, 0], np.arange(2000) % n_groups, n_groups, 0.5, float
        )
        ways[n_groups] = steps.pays_by_group(2000)
    assert ways == {20: True, 2000: False}


@pytest.mark.parametrize("metric", ["macro_auroc", "macro_auprc", "macro_f1"])
def test_blocks_do_not_show(monkeypatch, metric):
    targets_NC, scores_NC, groups_N = drawn(200, 60)
    values_NC = decided(scores_NC) if metric == "macro_f1" else scores_NC
    whole = bootstrap_interval(metric, targets_NC, values_NC, groups_N, 101)
    monkeypatch.setattr(resamples_module, "_BLOCK", 1000)
    assert bootstrap_interval(metric, targets_NC, values_NC, groups_N, 101) == whole


def test_many_beats_of_few_patients():
    """Counts of pairs beyond what float32 holds."""
    rng = np.random.default_rng(0)
    groups_N = rng.integers(6, size=30_000)
    target_N = rng.random(30_000) < 0.4
    score_N = np.round(rng.normal(size=30_000) + target_N + 0.3 * groups_N, 2)
    resamples = Resamples.of(groups_N, 4, seed=1)
    examples = target_N[:, None], score_N[:, None], groups_N
    for metric in BY_SCORE:
        expected_RC = loop(metric, examples, resamples)
        found_RC = label_values(metric, *examples, resamples)
        np.testing.assert_allclose(found_RC, expected_RC, **EXACT)


def test_resamples_are_drawn_with_replacement():
    resamples = Resamples.of(np.repeat(["a", "b", "c", "d"], [5, 1, 1, 1]), 4000, seed=2)
    counts_GR = resamples.counts_GR
    assert counts_GR.shape == (4, 4000)
    assert (counts_GR.sum(axis=0) == 4).all()
    # A multinomial of four draws: mean 1, variance 4 * 1/4 * 3/4; five standard errors of each.
    np.testing.assert_allclose(counts_GR.mean(axis=1), 1.0, atol=5 * np.sqrt(0.75 / 4000))
    np.testing.assert_allclose(counts_GR.var(axis=1), 0.75, atol=0.12)


def test_a_seed_gives_the_same_and_another_gives_another():
    examples = drawn()
    first = bootstrap_interval("macro_auroc", *examples, n_resamples=300)
    assert bootstrap_interval("macro_auroc", *examples, n_resamples=300, seed=0) == first
    other = bootstrap_interval("macro_auroc", *examples, n_resamples=300, seed=1)
    assert (other.point, other.n_groups) == (first.point, first.n_groups)
    assert (other.low, other.high) != (first.low, first.high)
    narrow = bootstrap_interval("macro_auroc", *examples, n_resamples=300, level=0.5)
    assert first.low < narrow.low < narrow.high < first.high


def test_order_and_names_do_not_matter():
    targets_NC, scores_NC, groups_N = drawn(ties=False)
    first = bootstrap_interval("macro_auroc", targets_NC, scores_NC, groups_N, 300)
    order = np.random.default_rng(1).permutation(len(groups_N))
    names, number_N = np.unique(groups_N, return_inverse=True)
    for other in (
        bootstrap_interval(
            "macro_auroc", targets_NC[order], scores_NC[order], groups_N[order], 300
        ),
        bootstrap_interval("macro_auroc", targets_NC, scores_NC, number_N * 10 - 7, 300),
        bootstrap_interval("macro_auroc", targets_NC, scores_NC, list(groups_N), 300),
        bootstrap_interval("macro_auroc", targets_NC, scores_NC, groups_N.astype(object), 300),
    ):
        assert dataclasses.asdict(other) == pytest.approx(dataclasses.asdict(first), abs=1e-12)
    assert len(names) == first.n_groups


def test_without_groups_each_example_is_its_own():
    targets_NC, scores_NC, _ = drawn()
    found = bootstrap_interval("macro_auprc", targets_NC, scores_NC, n_resamples=50)
    each = bootstrap_interval("macro_auprc", targets_NC, scores_NC, np.arange(90), 50)
    assert found == each
    assert (found.n_groups, found.n_effective) == (90, 90)


def test_runs_share_their_resamples_of_patients():
    """Of a part of the examples, the same patients are drawn; some resamples have none of them."""
    targets_NC, scores_NC, groups_N = drawn(200, 30)
    resamples = Resamples.of(groups_N, 80)
    for part in (np.arange(200) % 3 == 0, np.isin(groups_N, resamples.names_G[:2])):
        examples = targets_NC[part], scores_NC[part], groups_N[part]
        for metric in BY_SCORE:
            expected_RC = loop(metric, examples, resamples)
            np.testing.assert_allclose(label_values(metric, *examples, resamples), expected_RC)
        found_R = accuracy_values(examples[0], decided(examples[1]), examples[2], resamples)
        empty_R = resamples.counts_GR[np.unique(resamples.index(groups_N[part]))].sum(axis=0) == 0
        np.testing.assert_array_equal(np.isnan(found_R), empty_R)
    assert empty_R.any()
    with pytest.raises(ValueError, match="'stranger' is none of those drawn from"):
        label_values("f1", targets_NC[:1], targets_NC[:1], ["stranger"], resamples)


def test_averages_and_ends_leave_out_what_is_not_there():
    values = np.array([[1.0, np.nan, 2.0], [np.nan, np.nan, 4.0]])
    np.testing.assert_array_equal(mean_of_known(values, 0), [1.0, np.nan, 3.0])
    assert percentiles(np.array([np.nan, 0.0, 1.0, np.nan]), 0.5) == (0.25, 0.75)
    assert np.isnan(percentiles(np.full(3, np.nan))).all()


def test_it_warns_of_few_patients():
    rng = np.random.default_rng(0)
    for n_groups in (FEW_GROUPS - 1, FEW_GROUPS):
        groups_N = np.arange(600) % n_groups
        target_N = rng.random(600) < 0.5
        score_N = rng.random(600) + 0.5 * target_N
        found = bootstrap_interval("auroc", target_N, score_N, groups_N, 200)
        few = f"rests on few patients ({n_groups})"
        assert found.warning == (few if n_groups < FEW_GROUPS else "")


def test_it_warns_of_labels_that_few_patients_have():
    rng = np.random.default_rng(0)
    groups_N = np.arange(600) % 100
    score_N = rng.random(600)
    text = "the positives of 1 label come from fewer than 5 patients"
    for n_positive, expected in ((4, text), (5, "")):
        target_N = groups_N < n_positive
        assert bootstrap_interval("auroc", target_N, score_N, groups_N, 300).warning == expected
        targets_NC = np.stack([target_N, groups_N % 2 == 0, np.zeros(600, bool)], axis=1)
        assert rare_labels(targets_NC, groups_N).tolist() == [bool(expected), False, False]
        scores_NC = np.stack([score_N] * 3, axis=1)
        found = bootstrap_interval("macro_auroc", targets_NC, scores_NC, groups_N, 300)
        assert found.warning == expected
    # Accuracy rests on no label's positives.
    guessed_NC = targets_NC ^ (rng.random(targets_NC.shape) < 0.1)
    assert not bootstrap_interval("accuracy", targets_NC, guessed_NC, groups_N, 300).warning


def test_it_warns_if_the_interval_misses_its_point():
    groups_N = np.arange(200)

    def different(targets_N: np.ndarray, _: np.ndarray) -> float:
        return len(np.unique(targets_N)) / len(targets_N)  # at its highest where none is twice

    found = bootstrap_interval(different, groups_N, groups_N, groups_N, 100)
    assert found.high < found.point == 1.0
    assert found.warning == "the interval does not contain its point"
    never = bootstrap_interval(lambda *_: float("nan"), groups_N, groups_N, groups_N, 10)
    assert np.isnan([never.point, never.low, never.high]).all()
    assert (never.n_undefined, never.warning) == (10, "no resample has the metric")


GOOD = {
    "metric": "macro_auroc",
    "targets_NC": np.array([[0, 1], [1, 0], [1, 1]]),
    "probabilities_NC": np.array([[0.1, 0.9], [0.8, 0.3], [0.6, 0.7]]),
    "groups_N": np.array([0, 1, 2]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "macro_auc"}, "no metric is named 'macro_auc'; known: macro_auroc"),
        ({"metric": "auroc"}, r"expected targets and scores \(N,\), came \(3, 2\)"),
        ({"targets_NC": np.zeros((2, 2))}, r"came \(2, 2\), \(3, 2\)"),
        ({"targets_NC": np.zeros((0, 2)), "probabilities_NC": np.zeros((0, 2))}, "no example"),
        ({"targets_NC": GOOD["targets_NC"] + 0.5}, "targets must be 0 or 1"),
        ({"targets_NC": np.full((3, 2), np.nan)}, "targets hold NaN"),
        ({"probabilities_NC": np.full((3, 2), np.nan)}, "scores hold NaN"),
        ({"probabilities_NC": np.full((3, 2), "a")}, "scores must be numbers"),
        ({"metric": "macro_f1"}, "decisions must be 0 or 1"),
        ({"metric": "accuracy"}, "decisions must be 0 or 1"),
        ({"groups_N": np.array([0, 1])}, "a group for each of 3 examples, came 2"),
        ({"groups_N": np.zeros((3, 1))}, "one axis"),
        ({"groups_N": np.array([0, np.nan, 1])}, "example 1 has no group"),
        ({"groups_N": ["a", "b", np.nan]}, "example 2 has no group"),
        ({"groups_N": ["a", None, "b"]}, "example 1 has no group"),
        ({"groups_N": ["a", 1, "b"]}, "one type, came int and str"),
        ({"n_resamples": 0}, "at least 1, not 0"),
        ({"n_resamples": 1.5}, "at least 1, not 1.5"),
        ({"level": 95}, "between 0 and 1, not 95"),
        ({"level": 0.0}, "between 0 and 1"),
    ],
)
def test_wrong_input_is_refused_in_a_line(change, message):
    bootstrap_interval(**GOOD)
    with pytest.raises(ValueError, match=message) as caught:
        bootstrap_interval(**{**GOOD, **change})
    assert "\n" not in str(caught.value)


def test_label_values_refuse_what_they_cannot_use():
    targets_NC, scores_NC, groups_N = drawn()
    resamples = Resamples.of(groups_N, 5)
    with pytest.raises(ValueError, match="no metric of a label is named 'macro_f1'"):
        label_values("macro_f1", targets_NC, scores_NC, groups_N, resamples)
    with pytest.raises(ValueError, match="decisions must be 0 or 1"):
        label_values("f1", targets_NC, scores_NC, groups_N, resamples)
    with pytest.raises(ValueError, match="a group for each of 90 examples, came 89"):
        label_values("auroc", targets_NC, scores_NC, groups_N[1:], resamples)
    with pytest.raises(ValueError, match="no example to draw from"):
        Resamples.of([], 5)


@pytest.mark.slow
def test_patients_cover_what_records_do_not():
    """Forty patients of ten records that share most of what a model sees of them.

    Of 300 trials with a coverage of 0.95, 0.9 lies four standard errors off; forty patients and the
    percentile interval cost some more.
    """
    rng = np.random.default_rng(0)
    n_patients, each, n_trials = 40, 10, 300
    groups_N = np.repeat(np.arange(n_patients), each)

    def trial() -> tuple[np.ndarray, np.ndarray]:
        target_N = (np.arange(n_patients) % 2 == 0)[groups_N]
        own_G = rng.normal(0, 1.0, n_patients)
        return target_N, target_N + own_G[groups_N] + rng.normal(0, 0.5, len(groups_N))

    # Both sides are normal of variance 1.25, their means 1 apart: AUROC is Phi(1 / sqrt(2.5)).
    truth = 0.736455
    simulated = np.mean([classification.auroc(*trial()) for _ in range(2000)])
    assert simulated == pytest.approx(truth, abs=0.01)
    covered = {"patients": 0, "records": 0}
    for seed in range(n_trials):
        pair = trial()
        for name, groups in (("patients", groups_N), ("records", None)):
            found = bootstrap_interval("auroc", *pair, groups, 500, seed=seed)
            covered[name] += found.low <= truth <= found.high
    assert covered["patients"] / n_trials > 0.88
    assert covered["records"] / n_trials < 0.6
