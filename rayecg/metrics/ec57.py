"""Tables of ectopic beats as ANSI/AAMI EC57 has them, for annotated beats and AAMI classes.

The standard counts ventricular (VEB: V) and supraventricular (SVEB: S) ectopic beats against all
others. What it does not ask of an algorithm is a don't-care cell, neither right nor wrong:

    ectopic   don't care                              still wrong
    VEB       F decided V, Q decided V                V decided F or Q (missed)
    SVEB      Q decided S                             S decided F or Q (missed), F decided S

So don't-care cells lower the number of false positives, and never change sensitivity. In the strict
form there are none. Beats are annotated ones, so that none is missed or detected in excess, which the
standard counts besides.

    sensitivity               TP / (TP + FN)
    positive predictivity     TP / (TP + FP)
    false positive rate       FP / (TN + FP)
    accuracy                  (TP + TN) / (TP + TN + FP + FN)

The standard has figures for each record, gross ones of all beats together, and averages over records
that weigh every record the same.

Sources: ANSI/AAMI EC57:1998 as George Moody's `bxb` (WFDB applications) implements it, for these
cells; de Chazal, O'Dwyer and Reilly 2004, Automatic classification of heartbeats using ECG morphology
and heartbeat interval features, IEEE Trans Biomed Eng 51:1196-1206, for the false positive rate and
accuracy of SVEB in the same manner.

Legend: N beat, C class, R record; of a `_RCC` matrix the last axis is what was decided.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rayecg.metrics.averages import mean_of_labels
from rayecg.metrics.curves import ratio

#: The AAMI classes: normal, supraventricular, ventricular, fusion, unknown.
AAMI = ("N", "S", "V", "F", "Q")
#: True classes whose beats may be decided for an ectopic class without being counted.
DONT_CARE = {"V": ("F", "Q"), "S": ("Q",)}


@dataclass(frozen=True, eq=False)
class BeatCounts:
    """Counts of one ectopic class, of each record (R,) or of all (1,).

    Attributes
    ----------
    tp_R, fn_R, fp_R, tn_R
        Beats.
    uncounted_R
        In don't-care cells.
    """

    tp_R: np.ndarray
    fn_R: np.ndarray
    fp_R: np.ndarray
    tn_R: np.ndarray
    uncounted_R: np.ndarray

    @classmethod
    def of(
        cls, matrix_RCC: Any, classes: Sequence[str], ectopic: str, strict: bool = False
    ) -> BeatCounts:
        """Count in confusion matrices.

        Parameters
        ----------
        matrix_RCC
            (R, C, C), or (C, C) of one record or all together; rows are what is true.
        classes
            Names of the C classes, of `AAMI`; F or Q may be absent.
        ectopic
            "V" or "S".
        strict
            Without don't-care cells.

        Raises
        ------
        ValueError
            If a class is none of the AAMI classes or not there, or shapes do not match.
        """
        if ectopic not in DONT_CARE:
            raise ValueError(f"ectopic: expected V or S, came {ectopic!r}")
        if set(classes) - set(AAMI) or len(set(classes)) < len(classes) or ectopic not in classes:
            raise ValueError(
                f"expected each of {', '.join(AAMI)} once at most, {ectopic} among them, came "
                f"{', '.join(classes)}"
            )
        matrix_RCC = np.asarray(matrix_RCC)
        if matrix_RCC.ndim == 2:
            matrix_RCC = matrix_RCC[None]
        if matrix_RCC.ndim != 3 or matrix_RCC.shape[1:] != (len(classes), len(classes)):
            raise ValueError(
                f"expected matrices of {len(classes)} by {len(classes)} classes, came "
                f"{matrix_RCC.shape}"
            )
        place = list(classes).index(ectopic)
        others = [i for i in range(len(classes)) if i != place]
        excused = () if strict else DONT_CARE[ectopic]
        free = [i for i in others if classes[i] in excused]
        tp_R, given_R = matrix_RCC[:, place, place], matrix_RCC[:, others, place].sum(axis=1)
        uncounted_R = matrix_RCC[:, free, place].sum(axis=1)
        fn_R = matrix_RCC[:, place, others].sum(axis=1)
        tn_R = matrix_RCC.sum(axis=(1, 2)) - tp_R - fn_R - given_R
        return cls(tp_R, fn_R, given_R - uncounted_R, tn_R, uncounted_R)

    def gross(self) -> BeatCounts:
        """Add up the records."""
        parts = (self.tp_R, self.fn_R, self.fp_R, self.tn_R, self.uncounted_R)
        return BeatCounts(*(part_R.sum(keepdims=True) for part_R in parts))

    def figures(self) -> dict[str, np.ndarray]:
        """Give `sensitivity`, `positive_predictivity`, `false_positive_rate` and `accuracy`; (R,).

        NaN where there is nothing to divide by: no ectopic beat, none decided, no other beat.
        """
        right_R, wrong_R = self.tp_R + self.tn_R, self.fn_R + self.fp_R
        return {
            "sensitivity": ratio(self.tp_R, self.tp_R + self.fn_R),
            "positive_predictivity": ratio(self.tp_R, self.tp_R + self.fp_R),
            "false_positive_rate": ratio(self.fp_R, self.fp_R + self.tn_R),
            "accuracy": ratio(right_R, right_R + wrong_R),
        }

    def average(self) -> dict[str, float]:
        """Give the mean over records of each figure; records without it are left out of it."""
        return {name: mean_of_labels(values_R) for name, values_R in self.figures().items()}


def beat_matrices(
    targets_NC: Any, decisions_NC: Any, records_N: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Count the beats of each record by true and decided class.

    Parameters
    ----------
    targets_NC, decisions_NC
        (N, C), 0 or 1, one class for each beat.
    records_N
        Whose beat it is.

    Returns
    -------
    tuple
        The records, sorted, and their matrices (R, C, C), rows what is true.

    Raises
    ------
    ValueError
        If shapes do not match, or a beat has not exactly one class.
    """
    targets_NC = np.asarray(targets_NC, dtype=bool)
    decisions_NC = np.asarray(decisions_NC, dtype=bool)
    if targets_NC.ndim != 2 or targets_NC.shape != decisions_NC.shape:
        raise ValueError(
            "expected targets and decisions of one shape (N, C), came "
            f"{targets_NC.shape} and {decisions_NC.shape}"
        )
    n_beats, n_classes = targets_NC.shape
    if len(records_N) != n_beats:
        raise ValueError(f"expected a record for each of {n_beats} beats, came {len(records_N)}")
    for name, values_NC in (("true", targets_NC), ("decided", decisions_NC)):
        wrong_N = np.count_nonzero(values_NC, axis=1) != 1
        if wrong_N.any():
            raise ValueError(
                f"expected one {name} class for each beat, came "
                f"{np.count_nonzero(values_NC[wrong_N][0])} for beat {np.argmax(wrong_N)}"
            )
    names_R, place_N = np.unique(np.asarray(records_N), return_inverse=True)
    shape = (len(names_R), n_classes, n_classes)
    cells = place_N, targets_NC.argmax(axis=1), decisions_NC.argmax(axis=1)
    flat_N = np.ravel_multi_index(cells, shape) if n_beats else np.zeros(0, dtype=np.int64)
    return names_R, np.bincount(flat_N, minlength=int(np.prod(shape))).reshape(shape)
