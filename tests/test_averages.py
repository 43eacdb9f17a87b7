"""Metrics of all labels at once, their averages and Fmax: against scikit-learn and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

import rayecg.metrics
from rayecg.metrics.averages import DECISION_METRICS, SCORE_METRICS, average, hamming_loss
from rayecg.metrics.counts import Counts, ppv_at_prevalence
from rayecg.metrics.curves import Curves
from rayecg.metrics.fmax import f_at_threshold, fmax_optimistic, fmax_threshold

#: Both sides add up at most a few hundred float64 of at most 1.
EXACT = {"rtol": 0, "atol": 1e-12}
N_LABELS = 3

#: Rows of targets with scores of few distinct values, so that ties are many and labels are missing.
score = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(0, 1)
rows = st.lists(
    st.tuples(
        st.lists(st.booleans(), min_size=N_LABELS, max_size=N_LABELS),
        st.lists(score, min_size=N_LABELS, max_size=N_LABELS),
    ),
    min_size=1,
    max_size=25,
)


def unpacked(pairs) -> tuple[np.ndarray, np.ndarray]:
    return np.array([t for t, _ in pairs]), np.array([s for _, s in pairs])


def defined(metric: str, targets_N: np.ndarray, decisions_N: np.ndarray) -> bool:
    """Say whether a metric of a label has a value here."""
    if metric in ("auroc", "sensitivity_at_spec90", "sensitivity_at_spec95"):
        return bool(targets_N.any() and not targets_N.all())
    needs = {"specificity": ~targets_N, "ppv": decisions_N, "npv": ~decisions_N}
    return metric == "accuracy" or bool(needs.get(metric, targets_N).any())


def best_at(specificity: float):
    """Give the highest sensitivity at a specificity, one threshold after another."""

    def found(targets_N, scores_N):
        return max(
            np.mean(scores_N[targets_N] >= threshold)
            for threshold in [*scores_N, np.inf]
            if np.mean(scores_N[~targets_N] < threshold) >= specificity
        )

    return found


REFERENCE = {
    "auroc": reference.roc_auc_score,
    "auprc": reference.average_precision_score,
    "sensitivity_at_spec90": best_at(0.90),
    "sensitivity_at_spec95": best_at(0.95),
    "f1": reference.f1_score,
    "f2": lambda t, d: reference.fbeta_score(t, d, beta=2),
    "g2": lambda t, d: np.sum(t & d) / (np.sum(t | d) + np.sum(t & ~d)),
    "sensitivity": reference.recall_score,
    "specificity": lambda t, d: reference.recall_score(~t, ~d),
    "ppv": reference.precision_score,
    "npv": lambda t, d: reference.precision_score(~t, ~d),
    "accuracy": reference.accuracy_score,
}


def test_every_metric_is_compared():
    assert set(REFERENCE) == {*SCORE_METRICS, *DECISION_METRICS}


@pytest.mark.parametrize("metric", REFERENCE)
@settings(max_examples=40)  # of each metric; scikit-learn takes its time
@given(pairs=rows, threshold=st.floats(0, 1))
def test_labels_and_averages_are_scikit_learns(metric, pairs, threshold):
    targets_NC, scores_NC = unpacked(pairs)
    decisions_NC = scores_NC >= threshold
    if metric in SCORE_METRICS:
        values_NC, found_C = scores_NC, SCORE_METRICS[metric](Curves.of(targets_NC, scores_NC))
    else:
        values_NC = decisions_NC
        found_C = DECISION_METRICS[metric](Counts.of(targets_NC, decisions_NC))
    expected_C = np.full(N_LABELS, np.nan)
    for c in range(N_LABELS):
        if defined(metric, targets_NC[:, c], decisions_NC[:, c]):
            expected_C[c] = REFERENCE[metric](targets_NC[:, c], values_NC[:, c])
    np.testing.assert_allclose(found_C, expected_C, **EXACT)
    known_C = ~np.isnan(expected_C)
    found = {how: average(metric, how, targets_NC, values_NC) for how in ("macro", "weighted")}
    support_C = targets_NC.sum(axis=0)[known_C]
    if known_C.any():
        np.testing.assert_allclose(found["macro"], expected_C[known_C].mean(), **EXACT)
    else:
        assert np.isnan(found["macro"])
    if support_C.sum():
        expected = np.average(expected_C[known_C], weights=support_C)
        np.testing.assert_allclose(found["weighted"], expected, **EXACT)
    else:
        assert np.isnan(found["weighted"])
    micro = average(metric, "micro", targets_NC, values_NC)
    if defined(metric, targets_NC.ravel(), decisions_NC.ravel()):
        expected = REFERENCE[metric](targets_NC.ravel(), values_NC.ravel())
        np.testing.assert_allclose(micro, expected, **EXACT)
    else:
        assert np.isnan(micro)


def test_averages_are_those_that_scikit_learn_names():
    rng = np.random.default_rng(0)
    targets_NC = rng.random((400, 5)) < [0.5, 0.3, 0.1, 0.05, 0.02]
    scores_NC = np.round(rng.random((400, 5)) + 0.3 * targets_NC, 2)
    decisions_NC = scores_NC > 0.6
    assert targets_NC.any(axis=0).all()
    for how in ("macro", "micro", "weighted"):
        for metric, other in (
            ("auroc", reference.roc_auc_score),
            ("auprc", reference.average_precision_score),
        ):
            expected = other(targets_NC, scores_NC, average=how)
            found = average(metric, how, targets_NC, scores_NC)
            np.testing.assert_allclose(found, expected, **EXACT)
        for metric, other in (
            ("f1", reference.f1_score),
            ("ppv", reference.precision_score),
            ("sensitivity", reference.recall_score),
        ):
            expected = other(targets_NC, decisions_NC, average=how)
            found = average(metric, how, targets_NC, decisions_NC)
            np.testing.assert_allclose(found, expected, **EXACT)
    micro, weighted = (
        average("sensitivity", how, targets_NC, decisions_NC) for how in ("micro", "weighted")
    )
    np.testing.assert_allclose(micro, weighted, **EXACT)


def test_an_unknown_metric_or_average_is_refused():
    with pytest.raises(ValueError, match="no metric of a label is named 'auc'; known: auroc, "):
        average("auc", "macro", np.eye(2), np.eye(2))
    with pytest.raises(ValueError, match="expected macro, micro or weighted, came 'samples'"):
        average("f1", "samples", np.eye(2), np.eye(2))  # type: ignore[arg-type]
    for metric in ("auroc", "f1"):
        with pytest.raises(ValueError, match=r"one shape \(N, C\), came \(2, 2\) and \(3, 2\)"):
            average(metric, "macro", np.eye(2), np.zeros((3, 2)))


@settings(max_examples=40)
@given(rows, st.floats(0, 1))
def test_counts_and_hamming_loss_are_scikit_learns(pairs, threshold):
    targets_NC, scores_NC = unpacked(pairs)
    decisions_NC = scores_NC >= threshold
    found = Counts.of(targets_NC, decisions_NC)
    expected_C22 = reference.multilabel_confusion_matrix(targets_NC, decisions_NC)
    own = np.array([[found.tn_C, found.fp_C], [found.fn_C, found.tp_C]])
    np.testing.assert_array_equal(own.transpose(2, 0, 1), expected_C22)
    np.testing.assert_array_equal(found.n_positive, targets_NC.sum(axis=0))
    np.testing.assert_allclose(
        hamming_loss(targets_NC, decisions_NC),
        reference.hamming_loss(targets_NC, decisions_NC),
        **EXACT,
    )


def test_weights_count_examples_as_often():
    rng = np.random.default_rng(1)
    targets_NC, decisions_NC = rng.random((2, 30, 4)) < 0.4
    times_N = rng.integers(0, 4, 30)
    weighted = Counts.of(targets_NC, decisions_NC, times_N)
    repeated = Counts.of(targets_NC.repeat(times_N, axis=0), decisions_NC.repeat(times_N, axis=0))
    for name in ("tp_C", "fp_C", "fn_C", "tn_C"):
        np.testing.assert_array_equal(getattr(weighted, name), getattr(repeated, name))
    with pytest.raises(ValueError, match=r"a weight for each of 30 examples, came \(29,\)"):
        Counts.of(targets_NC, decisions_NC, times_N[1:])


def test_no_example_has_no_figure():
    nothing = np.zeros((0, 2))
    for metric in REFERENCE:
        for how in ("macro", "micro", "weighted"):
            assert np.isnan(average(metric, how, nothing, nothing))
    assert np.isnan(hamming_loss(nothing, nothing))
    assert Counts.of(nothing, nothing).tp_C.tolist() == [0, 0]
    assert fmax_threshold(nothing, nothing) == 0.5
    assert np.isnan(f_at_threshold(nothing, nothing, 0.5))


def test_decisions_and_whole_numbers_are_scores_too():
    targets_N = np.array([0, 1, 0, 1])
    for type_ in (bool, np.uint8, np.int8, np.float32, np.float64):
        scores_N = np.array([0, 1, 1, 1]).astype(type_)
        assert rayecg.metrics.auroc(targets_N, scores_N) == 0.75


def test_f_and_g_by_hand():
    targets_N, decisions_N = [1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 1, 0, 0, 0, 0]
    assert rayecg.metrics.f_beta(targets_N, decisions_N, 2) == 5 / (5 + 1 + 8)
    assert rayecg.metrics.g_beta(targets_N, decisions_N, 2) == 1 / (1 + 1 + 4)
    jaccard = reference.jaccard_score(targets_N, decisions_N)
    assert rayecg.metrics.g_beta(targets_N, decisions_N, 1) == jaccard
    assert rayecg.metrics.specificity(targets_N, decisions_N) == 4 / 5
    assert rayecg.metrics.npv(targets_N, decisions_N) == 4 / 6
    # Nobody has it: no figure, however many are given it.
    assert np.isnan(rayecg.metrics.f_beta([0, 0], [0, 1]))
    assert np.isnan(rayecg.metrics.g_beta([0, 0], [0, 1]))
    for function in (rayecg.metrics.f_beta, rayecg.metrics.g_beta):
        with pytest.raises(ValueError, match="beta must be more than 0, not 0"):
            function(targets_N, decisions_N, 0)


def test_sensitivity_at_a_specificity():
    scores_N = np.arange(1, 21) / 20
    targets_N = np.zeros(20, dtype=int)
    targets_N[[4, 14, 18, 19]] = 1  # three of the 16 negatives lie above the second of them
    at = rayecg.metrics.sensitivity_at_specificity
    assert at(targets_N, scores_N, 1.0) == 0.5
    assert at(targets_N, scores_N, 13 / 16) == 0.75
    assert at(targets_N, scores_N, 0.0) == 1.0
    # A specificity is met by what equals it, also where it is no binary fraction.
    ten_N = np.array([1] + 10 * [0])
    assert at(ten_N, np.array([0.5, 0.6] + 9 * [0.1]), 0.9) == 1.0
    assert at(ten_N, np.array([0.5, 0.6] + 9 * [0.1]), 0.95) == 0.0
    # Of equal scores none can be accepted alone.
    assert at([1, 1, 0], [0.5, 0.7, 0.5], 0.9) == 0.5
    for wrong in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="specificity must lie between 0 and 1"):
            at(targets_N, scores_N, wrong)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_the_ppv_at_the_datas_own_prevalence_is_the_ppv(tp, fp, fn, tn):
    counts = Counts(*(np.array([n]) for n in (tp, fp, fn, tn)))
    prevalence = (tp + fn) / (tp + fp + fn + tn)
    found = ppv_at_prevalence(counts.sensitivity(), counts.specificity(), prevalence)
    np.testing.assert_allclose(found, counts.ppv(), **EXACT)


def test_ppv_at_a_prevalence_by_hand():
    # Of 10,000, 100 are ill and 90 of them found; 990 of 9,900 are alarms for nothing.
    np.testing.assert_allclose(ppv_at_prevalence(0.9, 0.9, 0.01), 90 / 1080, **EXACT)
    found = ppv_at_prevalence([0.9, np.nan, 0.0], [1.0, 0.5, 1.0], 0.3)
    np.testing.assert_array_equal(found, [1.0, np.nan, np.nan])
    assert ppv_at_prevalence(0.9, 0.9, 0.0) == 0
    with pytest.raises(ValueError, match="prevalence must lie between 0 and 1, not 30"):
        ppv_at_prevalence(0.9, 0.9, 30)
    with pytest.raises(ValueError, match="sensitivity must lie between 0 and 1, not -1"):
        ppv_at_prevalence([0.5, -1], 0.9, 0.3)


def f_by_hand(targets_NC, probabilities_NC, threshold) -> float:
    """The sample-centric F, one example after another."""
    precisions, recalls = [], []
    for true, probability in zip(targets_NC, probabilities_NC, strict=True):
        given_ = {c for c, p in enumerate(probability) if p >= threshold}
        own = {c for c, is_it in enumerate(true) if is_it}
        if given_:
            precisions.append(len(given_ & own) / len(given_))
        if own:
            recalls.append(len(given_ & own) / len(own))
    if not recalls:
        return float("nan")
    precision, recall = np.mean(precisions) if precisions else 0.0, np.mean(recalls)
    return 2 * precision * recall / (precision + recall) if recall else 0.0


@given(rows)
def test_the_threshold_of_fmax_has_the_highest_f(pairs):
    targets_NC, scores_NC = unpacked(pairs)
    threshold = fmax_threshold(targets_NC, scores_NC)
    if not targets_NC.any():
        assert threshold == 0.5
        assert np.isnan(fmax_optimistic(targets_NC, scores_NC))
        return
    each = [f_by_hand(targets_NC, scores_NC, value) for value in np.unique(scores_NC)]
    np.testing.assert_allclose(fmax_optimistic(targets_NC, scores_NC), max(each), **EXACT)
    found = f_at_threshold(targets_NC, scores_NC, threshold)
    np.testing.assert_allclose(found, max(each), **EXACT)
    assert 0 <= threshold <= 1


@given(rows, score)
def test_f_at_a_threshold_is_that_of_a_loop(pairs, threshold):
    targets_NC, scores_NC = unpacked(pairs)
    found = f_at_threshold(targets_NC, scores_NC, threshold)
    np.testing.assert_allclose(found, f_by_hand(targets_NC, scores_NC, threshold), **EXACT)


def test_f_is_of_scikit_learns_sample_averages_where_all_have_labels():
    rng = np.random.default_rng(2)
    targets_NC = rng.random((200, 6)) < 0.3
    targets_NC[:, 0] |= ~targets_NC.any(axis=1)
    scores_NC = rng.random((200, 6))
    scores_NC[np.arange(200), rng.integers(0, 6, 200)] = 0.9
    precision, recall, _, _ = reference.precision_recall_fscore_support(
        targets_NC, scores_NC >= 0.6, average="samples"
    )
    expected = 2 * precision * recall / (precision + recall)
    np.testing.assert_allclose(f_at_threshold(targets_NC, scores_NC, 0.6), expected, **EXACT)


def test_the_threshold_of_fmax_lies_halfway():
    targets_NC = [[1, 0], [1, 1]]
    scores_NC = [[0.9, 0.3], [0.8, 0.7]]
    assert fmax_threshold(targets_NC, scores_NC) == pytest.approx(0.5, abs=1e-15)
    assert f_at_threshold(targets_NC, scores_NC, 0.5) == 1.0
    assert f_at_threshold(targets_NC, scores_NC, 0.95) == 0.0
    for function in (fmax_threshold, lambda t, p: f_at_threshold(t, p, 0.5)):
        with pytest.raises(ValueError, match=r"one shape \(N, C\)"):
            function(targets_NC, scores_NC[:1])


def test_fmax_of_the_same_examples_is_too_high():
    """With labels that cannot be told, the maximum over thresholds is above what others give."""
    rng = np.random.default_rng(3)
    optimistic, honest = [], []
    for _ in range(30):
        targets_NC = rng.random((2, 40, 3)) < 0.3
        scores_NC = rng.random((2, 40, 3))
        threshold = fmax_threshold(targets_NC[0], scores_NC[0])
        honest.append(f_at_threshold(targets_NC[1], scores_NC[1], threshold))
        optimistic.append(fmax_optimistic(targets_NC[1], scores_NC[1]))
        assert optimistic[-1] >= honest[-1]
    assert np.mean(optimistic) > np.mean(honest)


def test_the_fields_names_are_at_hand():
    for name in rayecg.metrics.__all__:
        assert getattr(rayecg.metrics, name)
