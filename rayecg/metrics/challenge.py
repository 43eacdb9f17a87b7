"""Scores of the PhysioNet/CinC challenges 2020 and 2021.

Sources: Perez Alday et al. 2020, Classification of 12-lead ECGs: the PhysioNet/Computing in Cardiology
Challenge 2020, Physiol Meas 41:124003; Reyna et al. 2022, Issues in the automated classification of
multilead ECGs using heterogeneous labels and populations, Physiol Meas 43:084001.

Legend: N example, C label; of a `_CC` matrix the rows are what is true.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rayecg.metrics.averages import mean_of_labels
from rayecg.metrics.counts import Counts

#: The label that the challenge's inactive classifier gives to everybody, as `cinc_snomed` names it.
NORMAL = "NSR"


def challenge_score(
    targets_NC: Any, decisions_NC: Any, weights_CC: np.ndarray, normal: int
) -> float:
    """Give the score that pays partly for mistaking a diagnosis for one of like treatment or risk.

    Every pair of a true and a given label earns its weight over the number of labels that the example
    has or is given. 1 is a perfect classifier, 0 one that gives everybody the normal label alone;
    worse ones are negative.

    Parameters
    ----------
    targets_NC, decisions_NC
        (N, C), 0 or 1.
    weights_CC
        What each pair earns, such as `challenge_weights` gives.
    normal
        Place of the normal label.

    Returns
    -------
    float
        NaN where the two that it is scaled by are equal: nobody has a label, or all the normal alone.
        (The challenge's own program gives 0 there.)

    Raises
    ------
    ValueError
        If shapes do not match, a weight is not finite, or `normal` is no place of a label.
    """
    targets_NC = np.asarray(targets_NC, dtype=bool)
    decisions_NC = np.asarray(decisions_NC, dtype=bool)
    weights_CC = np.asarray(weights_CC, dtype=np.float64)
    if targets_NC.ndim != 2 or targets_NC.shape != decisions_NC.shape:
        raise ValueError(
            "expected targets and decisions of one shape (N, C), came "
            f"{targets_NC.shape} and {decisions_NC.shape}"
        )
    n_labels = targets_NC.shape[1]
    if weights_CC.shape != (n_labels, n_labels):
        raise ValueError(
            f"expected a weight for each pair of {n_labels} labels, came {weights_CC.shape}"
        )
    if not np.isfinite(weights_CC).all():
        raise ValueError("weights must be finite numbers")
    if not 0 <= normal < n_labels:
        raise ValueError(f"normal: expected the place of one of {n_labels} labels, came {normal}")
    inactive_NC = np.zeros_like(targets_NC)
    inactive_NC[:, normal] = True
    own, perfect, inactive = (
        _earned(targets_NC, given_NC, weights_CC)
        for given_NC in (decisions_NC, targets_NC, inactive_NC)
    )
    if np.isclose(perfect, inactive, rtol=1e-12, atol=0.0):
        return float("nan")
    return (own - inactive) / (perfect - inactive)


def _earned(targets_NC: np.ndarray, given_NC: np.ndarray, weights_CC: np.ndarray) -> float:
    n_N = np.maximum(np.count_nonzero(targets_NC | given_NC, axis=1), 1)
    pairs_CC = (targets_NC / n_N[:, None]).T @ given_NC
    return float((weights_CC * pairs_CC).sum())


def challenge_weights(labels: Sequence[str], path: str | Path | None = None) -> np.ndarray:
    """Give the weights of pairs of labels in the order asked for.

    Parameters
    ----------
    labels
        Names of the table; `cinc_snomed` has those of the published one.
    path
        A table as CSV, its first row and first column the names, `#` before remarks; None: the
        published weights of the 2021 challenge, which lie beside this module.

    Returns
    -------
    np.ndarray
        (C, C); rows are what is true.

    Raises
    ------
    ValueError
        If rows and columns have other names, a weight is no number, or a label is not there.
    """
    if path is None:
        what = "the weights of the 2021 challenge"
        own = resources.files("rayecg.metrics") / "cinc2021_weights.csv"
        text = own.read_text(encoding="utf-8")
    else:
        what, text = Path(path).name, Path(path).read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    table = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    names = table[0][1:] if table else []
    if names != [row[0] for row in table[1:]] or len(set(names)) < len(names):
        raise ValueError(f"{what}: expected the same names over the columns and beside the rows")
    absent = [label for label in labels if label not in names]
    if absent:
        raise ValueError(f"{what}: no row for {', '.join(absent)}; there are {', '.join(names)}")
    values_CC = np.array([_numbers(row, len(names), what) for row in table[1:]])
    order = [names.index(label) for label in labels]
    return values_CC[np.ix_(order, order)]


def _numbers(row: list[str], n: int, what: str) -> list[float]:
    try:
        values = [float(cell) for cell in row[1:]]
    except ValueError:
        values = []
    if len(values) != n or not np.isfinite(values).all():
        raise ValueError(f"{what}: expected {n} numbers in row {row[0]}, came {','.join(row[1:])}")
    return values


def beta_measures(targets_NC: Any, decisions_NC: Any, beta: float = 2.0) -> tuple[float, float]:
    """Give the macro F-beta and G-beta of the 2020 challenge's first phase, as on PTB-XL's benchmark.

    Every example weighs 1 over the number of labels that it has (1 where it has none). A label that
    nobody has and some are given counts 0, one that nobody has or is given is left out: so the
    challenge's program has it, unlike `Counts.f_beta`.

    Returns
    -------
    tuple
        F-beta and G-beta; NaN if no label has or is given.

    Raises
    ------
    ValueError
        If shapes are not (N, C), both, or `beta` is not more than 0.
    """
    n_labels_N = np.count_nonzero(np.asarray(targets_NC, dtype=bool), axis=1)
    counts = Counts.of(targets_NC, decisions_NC, 1 / np.maximum(n_labels_N, 1))
    f_C, g_C = counts.raw_f_beta(beta), counts.raw_g_beta(beta)
    return mean_of_labels(f_C), mean_of_labels(g_C)
