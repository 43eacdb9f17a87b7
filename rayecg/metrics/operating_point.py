"""Operating points: thresholds and calibrators, chosen on a stated split by a named rule.

Legend: N example, C label.

=================  ===========  ==================================================================
rule               tasks        a decision
=================  ===========  ==================================================================
`max_f1`           multilabel   at or above the threshold with the label's highest F1
`youden`           multilabel   at or above the one with the highest sensitivity + specificity - 1
`sensitivity`      multilabel   at or above the highest one that reaches the stated sensitivity
`argmax`           multiclass   for the class with the largest probability
`weighted_argmax`  multiclass   for the largest probability after the classes' weights
=================  ===========  ==================================================================

Weights of 1 / frequency in the training split decide as the largest probability would if all classes
were equally frequent: posterior over prior. They come on top of any weights in the loss.

Source: Youden 1950, Index for rating diagnostic tests; for the weights, Elkan 2001, The foundations
of cost-sensitive learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rayecg.core.errors import SettingsError
from rayecg.core.outputs import (
    DecisionWeights,
    Kind,
    OperatingPoint,
    probabilities,
)
from rayecg.core.train_settings import OperatingPointSettings
from rayecg.metrics.calibrators import fit_calibrator
from rayecg.metrics.curves import Curves, halfway

#: What fits a task; the second is what "auto" stands for.
RULES: dict[Kind, tuple[str, ...]] = {
    "multilabel": ("auto", "max_f1", "youden", "sensitivity"),
    "multiclass": ("auto", "argmax", "weighted_argmax"),
}
#: Of a label that there is nothing to choose by.
DEFAULT_THRESHOLD = 0.5


def check_operating_point(kind: Kind, settings: OperatingPointSettings) -> None:
    """Refuse a rule that does not fit the task, before anything is trained.

    Raises
    ------
    SettingsError
        If the rule belongs to the other kind of task.
    """
    if settings.rule not in RULES[kind]:
        raise SettingsError(
            f"train.operating_point.rule: expected one for a {kind} task "
            f"({', '.join(RULES[kind])}), came {settings.rule}"
        )


def decision_weights(
    targets_NC: np.ndarray, kind: Kind, settings: OperatingPointSettings, split: str = "train"
) -> DecisionWeights | None:
    """Take the classes' weights from the targets of a split, if the rule reads any.

    They are scaled so that the classes that occur average 1; one that does not occur gets 0 and is
    never decided for.
    """
    check_operating_point(kind, settings)
    if settings.rule != "weighted_argmax":
        return None
    n_C = np.asarray(targets_NC).sum(axis=0).astype(np.float64)
    power = 0.5 if settings.class_weights == "sqrt_inverse" else 1.0
    weights_C = np.where(n_C > 0, np.maximum(n_C, 1) ** -power, 0.0)
    weights_C *= np.sum(n_C > 0) / max(weights_C.sum(), np.finfo(float).tiny)
    return DecisionWeights(
        settings.class_weights, split, len(targets_NC), tuple(weights_C.tolist())
    )


def choose_operating_point(
    logits_NC: np.ndarray,
    targets_NC: np.ndarray,
    kind: Kind,
    split: str,
    settings: OperatingPointSettings | None = None,
    weights: DecisionWeights | None = None,
) -> OperatingPoint:
    """Choose decisions by a rule and fit a calibrator, on the same examples.

    Parameters
    ----------
    logits_NC, targets_NC
        Of the examples to choose on.
    split
        Whose these are; kept with what was chosen.
    settings
        Rule and calibrator.
    weights
        From `decision_weights`, for the rule that needs them.

    Raises
    ------
    SettingsError
        If the rule does not fit the task.
    ValueError
        If the rule needs weights and there are none, or the other way round.
    """
    settings = settings or OperatingPointSettings()
    check_operating_point(kind, settings)
    rule = RULES[kind][1] if settings.rule == "auto" else settings.rule
    if (rule == "weighted_argmax") != (weights is not None):
        raise ValueError(f"rule {rule}: expected weights for weighted_argmax alone, came {weights}")
    targets_NC = np.asarray(targets_NC, dtype=bool)
    thresholds_C, chosen_C = np.empty(0), np.empty(0, dtype=bool)
    if kind == "multilabel":
        probability_NC = probabilities(logits_NC, kind)
        thresholds_C, chosen_C = choose_thresholds(
            rule, targets_NC, probability_NC, settings.sensitivity
        )
    return OperatingPoint(
        kind=kind,
        calibrator=fit_calibrator(settings.calibrator, logits_NC, targets_NC, kind, split),
        thresholds_C=tuple(thresholds_C.tolist()),
        rule=rule,
        split=split,
        n_examples=len(targets_NC),
        n_positive_C=tuple(targets_NC.sum(axis=0).tolist()),
        chosen_C=tuple(chosen_C.tolist()),
        sensitivity=settings.sensitivity if rule == "sensitivity" else None,
        weights=weights,
    )


def choose_thresholds(
    rule: str, targets_NC: np.ndarray, probabilities_NC: np.ndarray, sensitivity: float
) -> tuple[np.ndarray, np.ndarray]:
    """Choose a threshold for every label: a decision is `probability >= threshold`.

    Those of `max_f1` and `youden` lie halfway between the lowest probability accepted and the highest
    refused; of equally good ones the highest is taken. That of `sensitivity` is the probability of a
    positive example.

    Parameters
    ----------
    rule
        `max_f1`, `youden` or `sensitivity`.
    targets_NC, probabilities_NC
        Of the examples to choose on.
    sensitivity
        What the rule of that name must reach.

    Returns
    -------
    tuple
        The thresholds, and whether each was chosen: without positives (for `youden`, also without
        negatives) there is nothing to choose by, and the threshold is 0.5.
    """
    curves = Curves.of(targets_NC, probabilities_NC)
    hits_CN, alarms_CN = curves.hits_CN, curves.alarms_CN
    n_positive_C: np.ndarray = np.asarray(targets_NC, dtype=np.int64).sum(axis=0)
    n_negative_C = len(targets_NC) - n_positive_C
    positive_C1, negative_C1 = n_positive_C[:, None], n_negative_C[:, None]
    chosen_C: np.ndarray = n_positive_C > 0
    if rule == "max_f1":
        worth_CN = 2 * hits_CN / (hits_CN + alarms_CN + positive_C1)
    elif rule == "youden":
        chosen_C &= n_negative_C > 0
        worth_CN = hits_CN * negative_C1 - alarms_CN * positive_C1  # in whole numbers, so exact
    else:
        worth_CN = hits_CN / np.maximum(positive_C1, 1) >= sensitivity
    thresholds_C = np.full(len(chosen_C), DEFAULT_THRESHOLD)
    if not chosen_C.any():
        return thresholds_C, chosen_C
    least = -np.inf if worth_CN.dtype.kind == "f" else np.iinfo(np.int64).min
    best_C = np.where(curves.last_CN, worth_CN, least).argmax(axis=1)
    after_C = np.minimum(best_C + 1, hits_CN.shape[1] - 1)
    every_C = np.arange(len(best_C))
    accepted_C = curves.scores_CN[every_C, best_C]
    refused_C = np.where(after_C > best_C, curves.scores_CN[every_C, after_C], 0.0)
    for label in np.flatnonzero(chosen_C):
        accepted, refused = float(accepted_C[label]), float(refused_C[label])
        thresholds_C[label] = accepted if rule == "sensitivity" else halfway(accepted, refused)
    return thresholds_C, chosen_C


def settings_of(points: Sequence[OperatingPoint]) -> OperatingPointSettings:
    """Give the settings that several runs' operating points share, for an ensemble of them.

    Where they do not share a rule with its parameters, or a calibrator, the default stands for it.
    """
    rules, default = [_rule_of(point) for point in points], OperatingPointSettings()
    shared = rules[0] if all(rule == rules[0] for rule in rules) else {}
    methods = {point.calibrator.method for point in points}
    method = methods.pop() if len(methods) == 1 else default.calibrator
    return OperatingPointSettings(**shared, calibrator=method)


def _rule_of(point: OperatingPoint) -> dict[str, Any]:
    said: dict[str, Any] = {"rule": point.rule}
    if point.sensitivity is not None:
        said["sensitivity"] = point.sensitivity
    if point.weights is not None:
        said["class_weights"] = point.weights.method
    return said


def mean_weights(points: Sequence[OperatingPoint]) -> DecisionWeights | None:
    """Give the mean of several runs' decision weights, for an ensemble; None if one has none.

    It names every split that they come from, and the fewest examples.
    """
    own = [point.weights for point in points if point.weights is not None]
    if len(own) < len(points):
        return None
    mean_C = np.mean([weights.weights_C for weights in own], axis=0)
    return DecisionWeights(
        method=own[0].method,
        split=", ".join(sorted({weights.split for weights in own})),
        n_examples=min(weights.n_examples for weights in own),
        weights_C=tuple(mean_C.tolist()),
    )
