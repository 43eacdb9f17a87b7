"""From logits to probabilities, calibrated probabilities and decisions.

Legend: N example, C label. Both kinds of task go through here, in training, scoring and prediction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import expit, softmax

Kind = Literal["multilabel", "multiclass"]


def probabilities(logits_NC: np.ndarray, kind: Kind) -> np.ndarray:
    """Give sigmoid (multilabel) or softmax (multiclass) of the logits, in float64."""
    logits_NC = np.asarray(logits_NC, dtype=np.float64)
    return expit(logits_NC) if kind == "multilabel" else softmax(logits_NC, axis=1)


@dataclass(frozen=True)
class OperatingPoint:
    """How a checkpoint calibrates and decides, and on what that was chosen.

    Attributes
    ----------
    kind
        The task's.
    temperature
        Logits are divided by it before the calibrated probability.
    thresholds_C
        Multilabel: a decision is `probability >= threshold`. Empty for multiclass tasks, which
        decide for the largest probability.
    rule
        Name of the rule that chose the decisions.
    split, n_examples
        Where thresholds and temperature were chosen.
    """

    kind: Kind
    temperature: float
    thresholds_C: tuple[float, ...]
    rule: str
    split: str
    n_examples: int

    def decide(self, probabilities_NC: np.ndarray) -> np.ndarray:
        """Give 0/1 decisions."""
        if self.kind == "multilabel":
            return (probabilities_NC >= np.array(self.thresholds_C)).astype(np.int8)
        chosen_N = np.argmax(probabilities_NC, axis=1)
        return np.eye(probabilities_NC.shape[1], dtype=np.int8)[chosen_N]

    def calibrate(self, logits_NC: np.ndarray) -> np.ndarray:
        """Give calibrated probabilities."""
        return probabilities(np.asarray(logits_NC, np.float64) / self.temperature, self.kind)

    @classmethod
    def from_tree(cls, tree: dict[str, Any]) -> OperatingPoint:
        """Read it back from a card."""
        return cls(**{**tree, "thresholds_C": tuple(tree["thresholds_C"])})
