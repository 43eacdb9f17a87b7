"""Logistic regression that rehearses rhythms which its examples lack.

Legend: M side column, N example, C label, K beat of a rearranged recording, G group of examples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from rayecg.models.catalogue import ModelInputs, reads
from rayecg.models.fitting import check_examples
from rayecg.models.linear_discriminant import LinearDiscriminant
from rayecg.signal.features import INTERVALS
from rayecg.signal.prematurity import PREMATURITY, prematurity_columns
from rayecg.signal.rehearsal import Rearranged, irregular, recordings, runs_and_pauses

#: Standardised columns are cut off here, in the fit alone: no example decides by itself.
FURTHEST = 8.0
#: Fewer premature beats are not rearranged, and fewer beats make no recording.
FEWEST_PREMATURE, FEWEST_BEATS = 20, 100


@reads(features=("measurements",))
class RehearsedRegression(LinearDiscriminant):
    """Multinomial logistic regression on side columns and on rearranged copies of the examples.

    Where the columns hold `intervals` and `prematurity`, beats that follow one another are taken for a
    recording, and `fit` adds copies of it: runs of its premature beats parted by pauses, and its other
    beats at irregular intervals. Of a copy the columns `prematurity` are computed anew; those of shape
    stay, and those of `intervals` say what follows what, and weigh nothing.

    Parameters
    ----------
    inputs
        Names of the side columns. NaN there, "not known", is read as the column's mean.
    n_outputs
        Number of labels.
    strength
        Inverse of the penalty on the squared weights of standardised columns.
    balance
        Power of the inverse frequency, copies counted, that examples of a class weigh: 0 for 1 each,
        1 for equal classes. The weights of the loss multiply it.
    runs, irregular
        Copies of each recording: with runs of premature beats, every second milder, and irregular.
    ordinary, premature
        Which labels these are.

    Notes
    -----
    Source: the regression is Cox 1958, J. R. Stat. Soc. B 20(2):215-242; the copies follow domain
    randomisation (Tobin et al. 2017, IROS, 23-30). Differs from the source by what is drawn: rhythms of
    which training patients have few, a sick sinus, in which premature beats are the rule, and
    fibrillation. How they are drawn is the project's own.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        strength: float = 1e-3,
        balance: float = 0.1,
        runs: int = 4,
        irregular: int = 4,
        ordinary: int = 0,
        premature: int = 1,
    ) -> None:
        super().__init__(inputs, n_outputs)
        if strength <= 0 or not 0 <= balance <= 1 or min(runs, irregular) < 0:
            raise ValueError(
                "expected strength above 0, balance of 0 to 1, runs and irregular of 0 or more, came "
                f"{strength}, {balance}, {runs}, {irregular}"
            )
        self.strength, self.balance = strength, balance
        self.copies, self.labels = (runs, irregular), (ordinary, premature)
        self.side = inputs.side

    def fit(
        self,
        side_NM: np.ndarray,
        target_NC: np.ndarray,
        kind: Literal["multilabel", "multiclass"],
        weight_C: np.ndarray | None,
        seed: int,
    ) -> None:
        """Rehearse, then fit; as `LinearDiscriminant.fit`, but that `seed` decides on the copies.

        Raises
        ------
        ValueError
            See `check_examples`.
        """
        positive_NC, weight_C = check_examples(side_NM, target_NC, weight_C, len(self.bias_C))
        if kind == "multiclass" and {*INTERVALS[:2], *PREMATURITY} <= set(self.side):
            side_NM, row_N = self._rehearse(side_NM, positive_NC.argmax(axis=1), seed)
            target_NC, positive_NC = np.asarray(target_NC)[row_N], positive_NC[row_N]
        frequency_C = positive_NC.mean(axis=0)
        balance_C = np.maximum(frequency_C, 1 / len(side_NM)) ** -self.balance
        # The penalty stands beside a sum over examples, and means the same whatever their weights' unit.
        balance_C *= float(len(self.bias_C)) ** -self.balance
        super().fit(side_NM, target_NC, kind, weight_C * balance_C, seed)

    def _rehearse(
        self, side_NM: np.ndarray, class_N: np.ndarray, seed: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give columns of examples and copies, and the example that each is of."""
        rng = np.random.default_rng(seed)
        place = [self.side.index(name) for name in PREMATURITY]
        before_N, after_N = (side_NM[:, self.side.index(name)] for name in INTERVALS[:2])
        intervals = [self.side.index(name) for name in INTERVALS if name in self.side]
        found, rows = [np.array(side_NM, dtype=np.float32)], [np.arange(len(side_NM))]
        for own_B in recordings(before_N, after_N):
            rr_B = np.exp(before_N[own_B].astype(np.float64))
            ordinary_B, premature_B = (class_N[own_B] == label for label in self.labels)
            made: list[Rearranged | None] = []
            if premature_B.sum() >= FEWEST_PREMATURE:
                made += [
                    runs_and_pauses(rr_B, ordinary_B, premature_B, copy % 2 == 1, rng)
                    for copy in range(self.copies[0])
                ]
            if len(own_B) >= FEWEST_BEATS:
                made += [
                    irregular(rr_B, ordinary_B, premature_B, rng) for _ in range(self.copies[1])
                ]
            for copy in made:
                if copy is not None:
                    side_KM = found[0][own_B[copy.beat_K]]
                    times_K = np.cumsum(np.append(0.0, copy.rr_K))
                    side_KM[:, place] = prematurity_columns(times_K, 1.0)[1:]
                    found.append(side_KM)
                    rows.append(own_B[copy.beat_K])
        side_NM = np.concatenate(found)
        side_NM[:, intervals] = 0.0  # a column that never changes weighs nothing
        return side_NM, np.concatenate(rows)

    def _directions(
        self, side_NM: np.ndarray, groups: list[np.ndarray], weight_G: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give each group's weights and bias."""
        from sklearn.linear_model import LogisticRegression  # its import is slow

        group_N = np.stack(groups).argmax(axis=0)
        n_columns = side_NM.shape[1]
        if len(groups) == 1:
            return np.zeros((1, n_columns)), np.zeros(1)
        side_NM = np.clip(side_NM, -FURTHEST, FURTHEST)
        model = LogisticRegression(C=self.strength, max_iter=200)
        model.fit(side_NM, group_N, sample_weight=weight_G[group_N])
        direction_GM, bias_G = model.coef_, model.intercept_
        if len(groups) == 2:  # of two scikit-learn scores the second, against 0 for the first
            direction_GM = np.concatenate([np.zeros((1, n_columns)), direction_GM])
            bias_G = np.append(0.0, bias_G)
        return direction_GM, bias_G
