"""Metrics against scikit-learn and brute force; operating points against what made the data."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn import metrics as reference

from rayecg.core.outputs import OperatingPoint, probabilities
from rayecg.metrics import classification as ours
from rayecg.metrics.calibrators import fit_temperature
from rayecg.metrics.operating_point import choose_operating_point

#: Both sides add up at most a few hundred float64 of at most 1.
EXACT = {"rtol": 0, "atol": 1e-12}

#: Targets with scores; few distinct scores, so that ties are many.
examples = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=60,
)


def unpacked(pairs: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([t for t, _ in pairs], dtype=np.int8), np.array([s for _, s in pairs])


@given(examples)
def test_auroc_is_scikit_learns(pairs):
    targets_N, scores_N = unpacked(pairs)
    if len(set(targets_N)) < 2:
        assert np.isnan(ours.auroc(targets_N, scores_N))
    else:
        expected = reference.roc_auc_score(targets_N, scores_N)
        np.testing.assert_allclose(ours.auroc(targets_N, scores_N), expected, **EXACT)


@given(examples)
def test_auprc_is_scikit_learns(pairs):
    targets_N, scores_N = unpacked(pairs)
    if not targets_N.any():
        assert np.isnan(ours.auprc(targets_N, scores_N))
    else:
        expected = reference.average_precision_score(targets_N, scores_N)
        np.testing.assert_allclose(ours.auprc(targets_N, scores_N), expected, **EXACT)


@given(examples, st.floats(0, 1))
def test_f1_sensitivity_and_ppv_are_scikit_learns(pairs, threshold):
    targets_N, scores_N = unpacked(pairs)
    decisions_N = (scores_N >= threshold).astype(np.int8)
    for own, other, known in (
        (ours.f1, reference.f1_score, targets_N.any()),
        (ours.sensitivity, reference.recall_score, targets_N.any()),
        (ours.ppv, reference.precision_score, decisions_N.any()),
    ):
        found = own(targets_N, decisions_N)
        if known:
            np.testing.assert_allclose(found, other(targets_N, decisions_N), **EXACT)
        else:
            assert np.isnan(found)


def test_many_examples():
    rng = np.random.default_rng(0)
    targets_N = rng.random(20_000) < 0.03
    scores_N = np.round(expit(rng.normal(size=20_000) + targets_N), 3)
    for own, other in (
        (ours.auroc, reference.roc_auc_score),
        (ours.auprc, reference.average_precision_score),
    ):
        np.testing.assert_allclose(own(targets_N, scores_N), other(targets_N, scores_N), **EXACT)


def test_known_values():
    targets_N = [0, 0, 1, 1]
    assert ours.auroc(targets_N, [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert ours.auroc(targets_N, [0.5] * 4) == 0.5
    assert ours.auroc(targets_N, [0.9, 0.8, 0.1, 0.2]) == 0.0
    assert ours.auprc(targets_N, [0.5] * 4) == 0.5
    assert ours.auprc(targets_N, [0.1, 0.2, 0.3, 0.4]) == 1.0
    assert ours.f1(targets_N, [1, 0, 1, 0]) == 0.5
    assert ours.f1(targets_N, [0, 0, 0, 0]) == 0.0


def test_macro_averages_leave_out_labels_that_cannot_be_computed():
    rng = np.random.default_rng(1)
    targets_NC = (rng.random((50, 3)) < 0.5).astype(np.int8)
    targets_NC[:, 1] = 0
    scores_NC = rng.random((50, 3))
    decisions_NC = (scores_NC > 0.5).astype(np.int8)
    for macro, single, values_NC in (
        (ours.macro_auroc, ours.auroc, scores_NC),
        (ours.macro_auprc, ours.auprc, scores_NC),
        (ours.macro_f1, ours.f1, decisions_NC),
    ):
        each = [single(targets_NC[:, c], values_NC[:, c]) for c in range(3)]
        assert np.isnan(each[1])
        np.testing.assert_allclose(macro(targets_NC, values_NC), (each[0] + each[2]) / 2, **EXACT)
        assert np.isnan(macro(0 * targets_NC, values_NC))


def test_evaluate_names_every_metric_of_every_label():
    rng = np.random.default_rng(2)
    targets_NC = np.eye(3, dtype=np.int8)[rng.integers(0, 3, 40)]
    scores_NC = softmax(rng.normal(size=(40, 3)), axis=1)
    decisions_NC = np.eye(3, dtype=np.int8)[scores_NC.argmax(axis=1)]
    found = ours.evaluate(targets_NC, scores_NC, decisions_NC, ("a", "b", "c"))
    assert found["accuracy"] == np.mean(targets_NC.argmax(axis=1) == scores_NC.argmax(axis=1))
    expected = reference.f1_score(targets_NC, decisions_NC, average="macro")
    np.testing.assert_allclose(found["macro_f1"], expected, **EXACT)
    expected = reference.roc_auc_score(targets_NC, scores_NC, average="macro")
    np.testing.assert_allclose(found["macro_auroc"], expected, **EXACT)
    assert found["auprc_b"] == ours.auprc(targets_NC[:, 1], scores_NC[:, 1])
    assert found["n_positive_c"] == targets_NC[:, 2].sum()
    expected = reference.precision_score(targets_NC, decisions_NC, average="weighted")
    np.testing.assert_allclose(found["weighted_ppv"], expected, **EXACT)
    expected = reference.average_precision_score(targets_NC, scores_NC, average="micro")
    np.testing.assert_allclose(found["micro_auprc"], expected, **EXACT)
    expected = reference.hamming_loss(targets_NC, decisions_NC)
    np.testing.assert_allclose(found["hamming_loss"], expected, **EXACT)
    assert found["tp_a"] + found["fn_a"] == found["n_positive_a"]
    by_score = ours.evaluate_scores(targets_NC, scores_NC, ("a", "b", "c"))
    by_decision = ours.evaluate_decisions(targets_NC, decisions_NC, ("a", "b", "c"))
    assert found == by_score | by_decision
    assert not set(by_score) & set(by_decision)
    nothing = ours.evaluate(targets_NC[:0], scores_NC[:0], decisions_NC[:0], ("a", "b", "c"))
    assert np.isnan(nothing["macro_auroc"])
    assert np.isnan(nothing["accuracy"])
    assert nothing["n_positive_a"] == 0


def drawn(kind: str, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw targets from known logits, and give the logits made too large by `temperature`."""
    rng = np.random.default_rng(5)
    logits_NC = rng.normal(size=(40_000, 4)) * 1.5
    if kind == "multilabel":
        targets_NC = rng.random(logits_NC.shape) < expit(logits_NC)
    else:
        gumbel_NC = rng.gumbel(size=logits_NC.shape)
        targets_NC = np.eye(4, dtype=bool)[(logits_NC + gumbel_NC).argmax(axis=1)]
    return logits_NC * temperature, targets_NC.astype(np.int8)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.0])
def test_the_temperature_is_the_scaling_of_the_logits(kind, temperature):
    logits_NC, targets_NC = drawn(kind, temperature)
    found = fit_temperature(logits_NC, targets_NC, kind)
    # The standard error of log temperature is 1 / sqrt(n x Fisher information). An example has
    # 0.52 of it (multiclass: the mean variance of its logits under softmax; multilabel has more),
    # so five standard errors of 40,000 examples are 0.035.
    assert abs(np.log(found / temperature)) < 0.035


def test_a_temperature_keeps_to_its_limits():
    logits_NC, targets_NC = drawn("multilabel", 1.0)
    assert fit_temperature(logits_NC * 1e-3, targets_NC, "multilabel") == pytest.approx(
        0.1, rel=1e-3
    )
    assert fit_temperature(logits_NC * 1e3, targets_NC, "multilabel") == pytest.approx(
        10.0, rel=1e-3
    )
    assert fit_temperature(logits_NC[:0], targets_NC[:0], "multilabel") == 1.0
    extreme = np.array([[800.0, -800.0], [-800.0, 800.0]])
    for kind in ("multilabel", "multiclass"):
        assert np.isfinite(fit_temperature(extreme, np.eye(2), kind))


def test_sigmoid_and_softmax():
    logits_NC = np.array([[0.0, 2.0, -800.0], [800.0, 1.0, 1.0]], dtype=np.float32)
    multilabel = probabilities(logits_NC, "multilabel")
    np.testing.assert_allclose(multilabel, expit(logits_NC.astype(np.float64)), **EXACT)
    multiclass = probabilities(logits_NC, "multiclass")
    np.testing.assert_allclose(multiclass.sum(axis=1), 1.0, **EXACT)
    np.testing.assert_allclose(multiclass[0, :2], expit([-2.0, 2.0]), **EXACT)
    assert multilabel.dtype == multiclass.dtype == np.float64


def test_decisions_of_a_multilabel_point():
    targets_NC = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    probability_NC = np.array([[0.9, 0.2], [0.7, 0.35], [0.3, 0.1], [0.6, 0.3]])
    point = choose_operating_point(logit(probability_NC), targets_NC, "multilabel", "validation")
    np.testing.assert_allclose(point.thresholds_C, [0.65, 0.25], **EXACT)
    assert (point.rule, point.split, point.n_examples) == ("max_f1", "validation", 4)
    np.testing.assert_array_equal(point.decide(probability_NC), targets_NC)
    at_the_threshold = np.array([point.thresholds_C])
    np.testing.assert_array_equal(point.decide(at_the_threshold), [[1, 1]])
    assert point.decide(probability_NC).dtype == np.int8


def test_decisions_of_a_multiclass_point():
    logits_NC, targets_NC = drawn("multiclass", 1.0)
    point = choose_operating_point(logits_NC, targets_NC, "multiclass", "validation")
    assert (point.thresholds_C, point.rule) == ((), "argmax")
    decisions_NC = point.decide(probabilities(logits_NC, "multiclass"))
    np.testing.assert_array_equal(decisions_NC.argmax(axis=1), logits_NC.argmax(axis=1))
    assert (decisions_NC.sum(axis=1) == 1).all()


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_an_operating_point_survives_its_card(kind):
    logits_NC, targets_NC = drawn(kind, 2.0)
    point = choose_operating_point(logits_NC[:500], targets_NC[:500], kind, "validation")
    again = OperatingPoint.from_tree(json.loads(json.dumps(asdict(point))))
    assert again == point
    few_NC = logits_NC[:50]
    np.testing.assert_array_equal(again.calibrate(few_NC), point.calibrate(few_NC))
    np.testing.assert_allclose(
        again.calibrate(few_NC), probabilities(few_NC / point.calibrator.temperature, kind), **EXACT
    )
