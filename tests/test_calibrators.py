"""Calibrators: what they promise of every probability, and scikit-learn's and hand-made fits."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit, logit, softmax
from sklearn.isotonic import IsotonicRegression

from rayecg.core.errors import DataError
from rayecg.core.outputs import (
    Isotonic,
    Kind,
    OperatingPoint,
    Platt,
    log_odds,
    probabilities,
)
from rayecg.metrics.calibration import evaluate_calibration
from rayecg.metrics.calibrators import fit_calibrator, fit_isotonic, fit_platt, logistic_fit

#: Both sides add up at most a few hundred float64 of at most 1.
EXACT = {"rtol": 0, "atol": 1e-12}
METHODS = ("none", "temperature", "platt", "isotonic")
KINDS: tuple[Kind, ...] = ("multilabel", "multiclass")


def drawn(kind: Kind, n: int = 400, n_labels: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Draw logits that are too large and biased, and targets; the last label has no positive."""
    rng = np.random.default_rng(7)
    true_NC = rng.normal(-0.5, 1.5, (n, n_labels))
    true_NC[:, -1] = -40.0
    if kind == "multilabel":
        target_NC = rng.random(true_NC.shape) < expit(true_NC)
    else:
        cut_N1 = softmax(true_NC, axis=1).cumsum(axis=1) < rng.random((n, 1))
        target_NC = np.eye(n_labels, dtype=bool)[cut_N1.sum(axis=1).clip(max=n_labels - 2)]
    true_NC[:, -1] = rng.normal(-2, 1, n)
    return 2.0 * true_NC + 0.7, target_NC


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", METHODS)
def test_calibrated_probabilities_are_probabilities(kind, method):
    logit_NC, target_NC = drawn(kind)
    fitted = fit_calibrator(method, logit_NC, target_NC, kind, "validation")
    assert (fitted.method, fitted.split, fitted.n_examples) == (method, "validation", 400)
    # Beyond what it was fitted to, and where probabilities round to 0 and 1.
    far_NC = np.concatenate([logit_NC, 1e3 * logit_NC, np.zeros((1, 4)), 1e-9 * logit_NC])
    found_NC = fitted.apply(far_NC, kind)
    assert ((found_NC >= 0) & (found_NC <= 1)).all()
    if kind == "multiclass":
        np.testing.assert_allclose(found_NC.sum(axis=1), 1.0, **EXACT)
    lost_NC = np.where(np.arange(len(far_NC))[:, None] == 3, np.nan, far_NC)
    again_NC = fitted.apply(lost_NC, kind)
    assert np.isnan(again_NC[3]).all()
    np.testing.assert_array_equal(np.delete(again_NC, 3, axis=0), np.delete(found_NC, 3, axis=0))
    np.testing.assert_allclose(fitted.apply(far_NC[:7], kind), found_NC[:7], rtol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    method=st.sampled_from(METHODS),
    values=st.lists(st.floats(-30, 30), min_size=2, max_size=30),
    seed=st.integers(0, 99),
)
def test_calibrated_probabilities_rise_with_the_logit(method, values, seed):
    rng = np.random.default_rng(seed)
    logit_NC = rng.normal(0, 3, (60, 2))
    target_NC = rng.random((60, 2)) < expit(rng.choice([-1, 1]) * logit_NC)
    fitted = fit_calibrator(method, logit_NC, target_NC, "multilabel", "validation")
    own_NC = np.sort(np.concatenate([values, logit_NC[:, 0]]))[:, None].repeat(2, axis=1)
    assert (np.diff(fitted.apply(own_NC, "multilabel"), axis=0) >= 0).all()
    # Of a class, with the others' logits held; sums and quotients round.
    one_NC = np.eye(2, dtype=bool)[target_NC[:, 0].astype(int)]
    fitted = fit_calibrator(method, logit_NC, one_NC, "multiclass", "validation")
    own_NC[:, 1] = rng.normal()
    assert (np.diff(fitted.apply(own_NC, "multiclass")[:, 0]) >= -1e-14).all()


@pytest.mark.parametrize("kind", KINDS)
def test_each_calibrator_mends_what_it_was_fitted_to(kind):
    logit_NC, target_NC = drawn(kind, 4000)
    before = evaluate_calibration(target_NC, probabilities(logit_NC, kind), kind)
    for method in ("platt", "isotonic"):
        fitted = fit_calibrator(method, logit_NC, target_NC, kind, "validation")
        after = evaluate_calibration(target_NC, fitted.apply(logit_NC, kind), kind)
        assert after.macro("ece") < before.macro("ece") / 2
        assert after.macro("brier") < before.macro("brier")
    if kind == "multilabel":
        platt = fit_calibrator("platt", logit_NC, target_NC, kind, "validation")
        after = evaluate_calibration(target_NC, platt.apply(logit_NC, kind), kind)
        # What is left is Platt's prior, of the order of 1 / number of positives.
        np.testing.assert_allclose(after.slope_C[:3], 1.0, atol=0.01)
        np.testing.assert_allclose(after.intercept_C[:3], 0.0, atol=0.01)


@given(st.lists(st.tuples(st.booleans(), st.integers(-9, 9) | st.floats(-9, 9)), min_size=1))
def test_isotonic_is_scikit_learns(pairs):
    target_N = np.array([float(t) for t, _ in pairs])
    # scikit-learn takes values that differ by less than 1e-15 for one.
    x_N = np.round([x for _, x in pairs], 9)
    expected = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(x_N, target_N)
    knots = fit_isotonic(x_N, target_N)
    fitted = Isotonic("validation", len(pairs), (knots[0],), (knots[1],))
    at_N = np.concatenate([x_N, np.linspace(-12, 12, 61)])
    found_N = fitted.apply(at_N[:, None], "multilabel")[:, 0]
    np.testing.assert_allclose(found_N, expected.predict(at_N), **EXACT)


def test_platt_is_the_maximum_of_its_likelihood():
    logit_NC, target_NC = drawn("multilabel")
    slope_C, intercept_C = fit_platt(logit_NC[:, :3], target_NC[:, :3])
    n_positive_C = target_NC[:, :3].sum(axis=0)
    soft_NC = np.where(
        target_NC[:, :3],
        (n_positive_C + 1) / (n_positive_C + 2),
        1 / (400 - n_positive_C + 2),
    )
    error_NC = expit(slope_C * logit_NC[:, :3] + intercept_C) - soft_NC
    np.testing.assert_allclose(error_NC.sum(axis=0), 0.0, atol=1e-9)
    np.testing.assert_allclose((error_NC * logit_NC[:, :3]).sum(axis=0), 0.0, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
def test_platt_is_finite_where_all_are_told_apart(scale):
    odds_N1 = scale * np.array([[-3.0], [-2.0], [-1.0], [1.0], [2.0]])
    target_N1 = odds_N1 > 0
    slope_C, intercept_C = fit_platt(odds_N1, target_N1)
    assert np.isfinite([slope_C, intercept_C]).all()
    # Slopes answer for the unit.
    unit_C, same_C = fit_platt(odds_N1 / scale, target_N1)
    np.testing.assert_allclose(slope_C * scale, unit_C, rtol=1e-6)
    np.testing.assert_allclose(intercept_C, same_C, rtol=1e-6)
    found_N1 = expit(slope_C * odds_N1 + intercept_C)
    assert found_N1[3:].min() > 0.5 > found_N1[:3].max()
    assert 0 < found_N1.min() < found_N1.max() < 1


def test_platt_turns_nothing_round():
    odds_N1 = np.array([[-2.0], [-1.0], [0.5], [1.0], [2.0]])
    slope_C, intercept_C = fit_platt(odds_N1, odds_N1 < 0)
    assert slope_C == [0.0]
    # Targets are 3/4 twice and 1/5 three times.
    np.testing.assert_allclose(expit(intercept_C), [(2 * 0.75 + 3 * 0.2) / 5], **EXACT)


def test_a_predictor_that_never_changes_has_no_slope():
    slope_C, intercept_C = logistic_fit(
        np.full((4, 1), 3.0), np.array([[1.0], [0.0], [0.0], [0.0]])
    )
    np.testing.assert_allclose([slope_C, intercept_C], [[0.0], [logit(0.25)]], **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_a_label_with_one_side_is_left_as_it_is(kind):
    logit_NC, target_NC = drawn(kind)
    platt = fit_calibrator("platt", logit_NC, target_NC, kind, "validation")
    isotonic = fit_calibrator("isotonic", logit_NC, target_NC, kind, "validation")
    assert isinstance(platt, Platt)
    assert isinstance(isotonic, Isotonic)
    assert platt.fitted_C == (True, True, True, False)
    assert [bool(knots) for knots in isotonic.log_odds_CK] == [True, True, True, False]
    if kind == "multilabel":
        for fitted in (platt, isotonic):
            found_NC = fitted.apply(logit_NC, kind)
            np.testing.assert_array_equal(found_NC[:, 3], expit(logit_NC[:, 3]))
    nothing = np.empty((0, 4))
    for method in METHODS:
        none = fit_calibrator(method, nothing, nothing, kind, "validation")
        np.testing.assert_allclose(
            none.apply(logit_NC, kind), probabilities(logit_NC, kind), **EXACT
        )


def test_classes_that_all_curves_deny_stay_as_they_are():
    curve = ((-1.0, 1.0), (0.0, 1.0))
    fitted = Isotonic("validation", 9, (curve[0],) * 3, (curve[1],) * 3)
    logit_NC = np.array([[0.0, 0.1, 0.05], [5.0, 0.0, 0.0], [-0.3, -0.3, -0.4]])
    odds_NC = log_odds(logit_NC, "multiclass")
    each_NC = np.interp(odds_NC, *curve)
    found_NC = fitted.apply(logit_NC, "multiclass")
    for row in range(3):
        total = each_NC[row].sum()
        raw = probabilities(logit_NC, "multiclass")[row]
        np.testing.assert_allclose(found_NC[row], each_NC[row] / total if total else raw, **EXACT)
    three = Isotonic("validation", 9, ((0.0, 1.0),) * 3, ((0.0, 1.0),) * 3)
    even_NC = np.zeros((1, 3))
    np.testing.assert_allclose(three.apply(even_NC, "multiclass"), [[1 / 3] * 3], **EXACT)


def test_log_odds_are_those_of_the_probabilities():
    logit_NC, _ = drawn("multiclass")
    odds_NC = log_odds(logit_NC, "multiclass")
    # Of probabilities near 1, their own rounding of 1e-16 shows beside 1 - p.
    np.testing.assert_allclose(odds_NC, logit(softmax(logit_NC, axis=1)), rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(log_odds(logit_NC, "multilabel"), logit_NC)
    extreme = log_odds(np.array([[900.0, -900.0, 3.0], [2.0, 2.0, -800.0]]), "multiclass")
    np.testing.assert_allclose(extreme[0], [897.0, -1800.0, -897.0], rtol=1e-12)
    np.testing.assert_allclose(extreme[1, :2], 0.0, atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrator_survives_its_card(kind, method):
    logit_NC, target_NC = drawn(kind)
    fitted = fit_calibrator(method, logit_NC, target_NC, kind, "validation")
    point = OperatingPoint(kind, fitted, (), "argmax", "validation", 400)
    tree = json.loads(json.dumps(dataclasses.asdict(point)))
    told = {name: tree["calibrator"][name] for name in ("method", "split", "n_examples")}
    assert told == {"method": method, "split": "validation", "n_examples": 400}
    again = OperatingPoint.from_tree(tree)
    assert again == point
    np.testing.assert_array_equal(again.calibrate(logit_NC), point.calibrate(logit_NC))


FITTED = {"split": "validation", "n_examples": 12}
TREE = {
    "kind": "multilabel",
    "calibrator": {"method": "temperature", **FITTED, "temperature": 1.6},
    "thresholds_C": [0.3, 0.6],
    "rule": "max_f1",
    **FITTED,
}


@pytest.mark.parametrize(
    "wrong",
    [
        {**TREE, "knobs": 3},
        {name: value for name, value in TREE.items() if name != "rule"},
        # As before there were calibrators.
        {name: value for name, value in TREE.items() if name != "calibrator"} | {"temperature": 2},
        {**TREE, "calibrator": {"method": "magic", **FITTED}},
        {**TREE, "calibrator": {"method": "platt", **FITTED}},
        {**TREE, "calibrator": 3},
        None,
    ],
)
def test_an_operating_point_of_other_fields_is_refused(wrong):
    OperatingPoint.from_tree(TREE).check(2)
    with pytest.raises(DataError, match="operating_point: expected the fields of a card"):
        OperatingPoint.from_tree(wrong)


PLATT = {"method": "platt", **FITTED, "slope_C": [1, 1], "intercept_C": [0, 0]}
PLATT["fitted_C"] = [True, True]
KNOTS = {"method": "isotonic", **FITTED, "log_odds_CK": [[], [1, 2]], "calibrated_CK": [[], [0, 1]]}
WEIGHTS = {"method": "inverse", **FITTED, "weights_C": [1.0]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"thresholds_C": [0.5]}, "thresholds_C: expected 2, one for each label, came 1"),
        ({"thresholds_C": []}, "thresholds_C: expected 2, one for each label, came 0"),
        ({"thresholds_C": 0.5}, "thresholds_C: expected 2, one for each label, came 0.5"),
        ({"thresholds_C": [0.5, "x"]}, r"thresholds_C: expected numbers, came \(0.5, 'x'\)"),
        ({"n_positive_C": [1]}, "n_positive_C: expected 2"),
        ({"calibrator": PLATT | {"slope_C": [1]}}, "slope_C: expected 2"),
        ({"calibrator": PLATT | {"intercept_C": []}}, "intercept_C: expected 2"),
        ({"calibrator": KNOTS | {"log_odds_CK": [[]]}}, "log_odds_CK: expected 2"),
        ({"calibrator": TREE["calibrator"] | {"temperature": 0}}, "a number above 0, came 0"),
        ({"calibrator": TREE["calibrator"] | {"temperature": "x"}}, "number above 0, came 'x'"),
        ({"kind": "multiclass", "weights": WEIGHTS}, "weights_C: expected 2"),
        ({"kind": "both"}, "kind: expected multilabel or multiclass, came 'both'"),
    ],
)
def test_an_operating_point_fits_its_labels(changes, expected):
    for kept in ({"calibrator": PLATT}, {"calibrator": KNOTS}, {"kind": "multiclass"}):
        OperatingPoint.from_tree(TREE | kept).check(2)
    OperatingPoint.from_tree(TREE | {"kind": "multiclass", "thresholds_C": []}).check(2)
    with pytest.raises(DataError, match=expected):
        OperatingPoint.from_tree(TREE | changes).check(2)


def test_an_unknown_method_is_refused():
    logit_NC, target_NC = drawn("multilabel", 9)
    with pytest.raises(ValueError, match="expected none, temperature, platt or isotonic, came 'be"):
        fit_calibrator("beta", logit_NC, target_NC, "multilabel", "validation")
