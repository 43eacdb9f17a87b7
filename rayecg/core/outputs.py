"""From logits to probabilities, calibrated probabilities and decisions.

Legend: N example, C label, K knot. Both kinds of task go through here, in training, scoring and
prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from scipy.special import expit, log_softmax, logsumexp, softmax

from rayecg.core.errors import DataError

Kind = Literal["multilabel", "multiclass"]


def probabilities(logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
    """Give sigmoid (multilabel) or softmax (multiclass) of the logits, in float64."""
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    return expit(logits_NC) if kind == "multilabel" else softmax(logits_NC, axis=1)


def log_odds(logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
    """Give the log-odds of the probabilities: the logits, or of each class against all others.

    They are finite wherever the logits are, also where a probability rounds to 0 or 1.
    """
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    if kind == "multilabel" or not len(logits_NC):
        return logits_NC
    log_p_NC = log_softmax(logits_NC, axis=1)
    every_N, top_N = np.arange(len(logits_NC)), logits_NC.argmax(axis=1)
    # Only the largest probability can be so near 1 that what is left of it is lost.
    rest_NC = logits_NC.copy()
    rest_NC[every_N, top_N] = -np.inf
    top_odds_N = logits_NC[every_N, top_N] - logsumexp(rest_NC, axis=1)
    log_p_NC[every_N, top_N] = -np.inf
    odds_NC = log_p_NC - np.log1p(-np.exp(log_p_NC))
    odds_NC[every_N, top_N] = top_odds_N
    return odds_NC


@dataclass(frozen=True)
class Uncalibrated:
    """Leaves probabilities as they are; `split` and `n_examples` as for any calibrator."""

    split: str
    n_examples: int
    method: Literal["none"] = "none"

    def apply(self, logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
        """Give the probabilities."""
        return probabilities(logits_NC, kind)


@dataclass(frozen=True)
class Temperature:
    """Divides all logits by one number.

    Attributes
    ----------
    split, n_examples
        What it was fitted on; so for every calibrator.
    temperature
        Above 0.
    """

    split: str
    n_examples: int
    temperature: float
    method: Literal["temperature"] = "temperature"

    def apply(self, logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
        """Give calibrated probabilities."""
        return probabilities(np.asarray(logits_NC, np.float64) / self.temperature, kind)


@dataclass(frozen=True)
class Platt:
    """A slope and an intercept for the log-odds of each label.

    Classes of a multiclass task are calibrated one against the rest, then divided by their sum.

    Attributes
    ----------
    slope_C, intercept_C
        The slopes are 0 or more, so that no order is turned round.
    fitted_C
        False for a label that lacked positives or negatives to fit to: its slope is 1, its
        intercept 0.
    """

    split: str
    n_examples: int
    slope_C: tuple[float, ...]
    intercept_C: tuple[float, ...]
    fitted_C: tuple[bool, ...]
    method: Literal["platt"] = "platt"

    def apply(self, logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
        """Give calibrated probabilities."""
        scaled_NC = log_odds(logits_NC, kind) * self.slope_C + np.array(self.intercept_C)
        return _renormalised(expit(scaled_NC), logits_NC, kind)


@dataclass(frozen=True)
class Isotonic:
    """A rising curve over the log-odds of each label: straight between its knots, flat beyond them.

    Classes of a multiclass task are calibrated one against the rest, then divided by their sum; where
    all curves say 0, probabilities stay as they are.

    Attributes
    ----------
    log_odds_CK, calibrated_CK
        Each label's knots, rising; a label that lacked positives or negatives to fit to has none and
        stays as it is.
    """

    split: str
    n_examples: int
    log_odds_CK: tuple[tuple[float, ...], ...]
    calibrated_CK: tuple[tuple[float, ...], ...]
    method: Literal["isotonic"] = "isotonic"

    def apply(self, logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
        """Give calibrated probabilities."""
        odds_NC = log_odds(logits_NC, kind)
        found_NC = expit(odds_NC)
        for label, knots in enumerate(zip(self.log_odds_CK, self.calibrated_CK, strict=True)):
            if knots[0]:
                found_NC[:, label] = _between(odds_NC[:, label], *map(np.array, knots))
        return _renormalised(found_NC, logits_NC, kind)


Calibrator = Uncalibrated | Temperature | Platt | Isotonic
_CALIBRATORS: dict[str, Any] = {
    own.method: own for own in (Uncalibrated, Temperature, Platt, Isotonic)
}


def _between(x_N: np.ndarray, x_K: np.ndarray, y_K: np.ndarray) -> np.ndarray:
    """Interpolate; rounding never leaves the two knots' values, so that what rises keeps rising."""
    above_N = np.clip(np.searchsorted(x_K, x_N), 1, max(len(x_K) - 1, 1))
    if len(x_K) == 1:
        return np.where(np.isnan(x_N), np.nan, y_K[0])
    low_N, high_N = y_K[above_N - 1], y_K[above_N]
    share_N = (x_N - x_K[above_N - 1]) / (x_K[above_N] - x_K[above_N - 1])
    return np.clip(low_N + np.clip(share_N, 0.0, 1.0) * (high_N - low_N), low_N, high_N)


def _renormalised(calibrated_NC: np.ndarray, logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
    if kind == "multilabel":
        return calibrated_NC
    sum_N1 = calibrated_NC.sum(axis=1, keepdims=True)
    return np.divide(calibrated_NC, sum_N1, out=probabilities(logits_NC, kind), where=sum_N1 > 0)


@dataclass(frozen=True)
class DecisionWeights:
    """What `weighted_argmax` multiplies the classes' probabilities by, and where it comes from.

    Attributes
    ----------
    method
        How they follow from the classes' frequencies.
    split, n_examples
        Whose frequencies these are.
    weights_C
        0 or more.
    """

    method: str
    split: str
    n_examples: int
    weights_C: tuple[float, ...]


@dataclass(frozen=True)
class OperatingPoint:
    """How a checkpoint calibrates and decides, and on what that was chosen.

    Attributes
    ----------
    kind
        The task's.
    calibrator
        Gives calibrated probabilities.
    thresholds_C
        Multilabel: a decision is `probability >= threshold`, of the probability that is not
        calibrated. Empty for multiclass tasks, which decide for the largest probability.
    rule
        Name of the rule that chose the decisions.
    split, n_examples
        Where thresholds were chosen.
    n_positive_C
        How many of the examples carry each label; empty in cards that do not say.
    chosen_C
        Multilabel: whether the threshold was chosen; false where the examples gave nothing to choose
        by, and it is 0.5. Empty in cards that do not say.
    sensitivity
        What the rule `sensitivity` was asked to reach.
    weights
        Those of the rule `weighted_argmax`.
    """

    kind: Kind
    calibrator: Calibrator
    thresholds_C: tuple[float, ...]
    rule: str
    split: str
    n_examples: int
    n_positive_C: tuple[int, ...] = ()
    chosen_C: tuple[bool, ...] = ()
    sensitivity: float | None = None
    weights: DecisionWeights | None = None

    def decide(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Give 0/1 decisions."""
        if self.kind == "multilabel":
            return (probabilities_NC >= np.array(self.thresholds_C)).astype(np.int8)
        if self.weights is not None:
            probabilities_NC = probabilities_NC * self.weights.weights_C
        chosen_N = np.argmax(probabilities_NC, axis=1)
        return np.eye(probabilities_NC.shape[1], dtype=np.int8)[chosen_N]

    def calibrate(self, logits_NC: np.ndarray) -> np.ndarray:
        """Give calibrated probabilities."""
        return self.calibrator.apply(logits_NC, self.kind)

    def check(self, n_labels: int) -> None:
        """Fail unless it states numbers, and as many as there are labels where it states one for each.

        Raises
        ------
        DataError
            With the first field that does not.
        """
        may_lack = {"n_positive_C", "chosen_C"}
        if self.kind == "multiclass":
            may_lack.add("thresholds_C")
        for part in (self, self.calibrator, *([self.weights] if self.weights else ())):
            for name, values in vars(part).items():
                if name == "temperature" and not (_are_numbers(values) and values > 0):
                    raise DataError(f"temperature: expected a number above 0, came {values!r}")
                by_label = name.endswith(("_C", "_CK"))
                if not by_label or (values == () and name in may_lack):
                    continue
                if not isinstance(values, tuple) or len(values) != n_labels:
                    n = len(values) if isinstance(values, tuple) else repr(values)
                    raise DataError(f"{name}: expected {n_labels}, one for each label, came {n}")
                if not _are_numbers(values):
                    raise DataError(f"{name}: expected numbers, came {values!r:.100}")

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> OperatingPoint:
        """Read it back from a card; `check` whether it fits the labels.

        Raises
        ------
        DataError
            If it has other fields, an unknown kind, or a calibrator of an unknown method.
        """
        try:
            own = {name: _tuples(value) for name, value in tree.items()}
            if own["kind"] not in get_args(Kind):
                expected = " or ".join(get_args(Kind))
                raise DataError(f"operating_point.kind: expected {expected}, came {own['kind']!r}")
            said = {name: _tuples(value) for name, value in own["calibrator"].items()}
            own["calibrator"] = _CALIBRATORS[said["method"]](**said)
            if own.get("weights") is not None:
                said = {name: _tuples(value) for name, value in own["weights"].items()}
                own["weights"] = DecisionWeights(**said)
            return cls(**own)
        except (AttributeError, KeyError, TypeError) as error:
            raise DataError(
                f"operating_point: expected the fields of a card of this version, came others "
                f"({type(error).__name__}: {error})"
            ) from None


def _are_numbers(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_are_numbers, value))
    return isinstance(value, (int, float))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value
