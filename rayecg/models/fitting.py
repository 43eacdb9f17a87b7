"""What models that are fitted to side columns, and not trained by gradients, have in common.

Legend: M side column, N example, C label.
"""

from __future__ import annotations

import numpy as np

from rayecg.models.catalogue import ModelInputs

#: Logit of a label that had no positive example: a probability of 1e-13, and finite.
NEVER = -30.0


def check_columns(inputs: ModelInputs) -> None:
    """Refuse with `ValueError` inputs without side columns."""
    if not inputs.side:
        raise ValueError("expected side inputs (features or metadata), came none")


def check_examples(
    side_NM: np.ndarray, target_NC: np.ndarray, weight_C: np.ndarray | None, n_outputs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Give which labels each example has, and the labels' weights (1 for None).

    Raises
    ------
    ValueError
        If the shapes do not fit, there is no example, or a label that occurs weighs 0.
    """
    if not len(side_NM) or target_NC.shape != (len(side_NM), n_outputs):
        raise ValueError(
            f"expected columns and {n_outputs} targets of at least one example, came shapes "
            f"{side_NM.shape} and {target_NC.shape}"
        )
    weight_C = np.ones(n_outputs) if weight_C is None else np.asarray(weight_C, np.float64)
    positive_NC = np.asarray(target_NC) > 0.5
    if (weight_C[positive_NC.any(axis=0)] <= 0).any():
        raise ValueError(f"expected weights above 0 of labels that occur, came {weight_C}")
    return positive_NC, weight_C
