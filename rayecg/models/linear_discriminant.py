"""Linear discriminant analysis of hand-made features: the beat classifiers of the field's beginnings.

Legend: B record, L lead, T time, M side column, N example, C label.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs, reads
from rayecg.models.fitting import NEVER, check_columns, check_examples

#: Below this spread a column says nothing, and is only centred.
LEAST_SPREAD = 1e-6


@reads(features=("measurements",))
class LinearDiscriminant(nn.Module):
    """Classes as normal distributions of one covariance; the window itself is not read.

    What it learns is one direction for each label, so that it extrapolates: an interval shorter than
    any of the training patients' speaks for a premature beat more strongly, which trees cannot say.
    There is nothing for gradients to train: `fit` takes the place of the training loop.

    Parameters
    ----------
    inputs
        Names of the side columns. NaN there, "not known", is read as the column's mean.
    n_outputs
        Number of labels.
    shrinkage
        Share of the identity in the covariance of the standardised columns.

    Notes
    -----
    Source: Fisher 1936, Ann. Eugen. 7(2):179-188; on beats, de Chazal, O'Dwyer and Reilly 2004 (IEEE
    TBME 51(7):1196-1206) and Llamedo and Martínez 2011 (IEEE TBME 58(3):616-625), who give classes
    equal weight (here `loss.class_weights: inverse`) and read logarithms of RR intervals (here the
    features `intervals`) beside the beat's shape. Differs from the source by other measures
    of shape.
    """

    def __init__(self, inputs: ModelInputs, n_outputs: int, shrinkage: float = 1e-3) -> None:
        super().__init__()
        check_columns(inputs)
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage: expected 0 to 1, came {shrinkage}")
        self.shrinkage = shrinkage
        n_columns = len(inputs.side)
        self.mean_M: torch.Tensor
        self.weight_CM: torch.Tensor
        self.bias_C: torch.Tensor
        self.register_buffer("mean_M", torch.zeros(n_columns, dtype=torch.float64))
        self.register_buffer("weight_CM", torch.zeros(n_outputs, n_columns, dtype=torch.float64))
        self.absent_C: torch.Tensor
        self.register_buffer("bias_C", torch.zeros(n_outputs, dtype=torch.float64))
        self.register_buffer("absent_C", torch.zeros(n_outputs, dtype=torch.bool))

    @property
    def n_parameters(self) -> int:
        """Weights and biases; none is trained by gradients."""
        return self.weight_CM.numel() + self.bias_C.numel()

    def forward(self, x_BLT: torch.Tensor, side_BM: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        side_BM = side_BM.double()
        known_BM = torch.where(side_BM.isfinite(), side_BM, self.mean_M) - self.mean_M
        logit_BC = known_BM @ self.weight_CM.T + self.bias_C
        # Far from all examples every logit is low, and a class without examples must not win there.
        lowest_B1 = logit_BC.masked_fill(self.absent_C, torch.inf).amin(dim=1, keepdim=True)
        return torch.where(self.absent_C, lowest_B1 + NEVER, logit_BC).float()

    def fit(
        self,
        side_NM: np.ndarray,
        target_NC: np.ndarray,
        kind: Literal["multilabel", "multiclass"],
        weight_C: np.ndarray | None,
        seed: int,
    ) -> None:
        """Find means and covariance on training examples; earlier ones are forgotten.

        A label without a positive example gets the logit `NEVER` (below the lowest other, if only one
        can be right), one without a negative `-NEVER`.

        Parameters
        ----------
        side_NM
            Side columns of the examples; NaN is "not known".
        target_NC
            1 where the example has the label; exactly one a row if `kind` is "multiclass".
        kind
            "multilabel" sets each label against its absence, "multiclass" all against one another.
        weight_C
            Weight of an example of each class, or of each label's positives; None for 1.
        seed
            Not used: nothing is drawn.

        Raises
        ------
        ValueError
            See `check_examples`.
        """
        n_outputs, n_columns = self.weight_CM.shape
        positive_NC, weight_C = check_examples(side_NM, target_NC, weight_C, n_outputs)
        side_NM = np.where(np.isfinite(side_NM), side_NM, np.nan).astype(np.float64)
        known_M = (~np.isnan(side_NM)).sum(axis=0)
        mean_M = np.nansum(side_NM, axis=0) / np.maximum(known_M, 1)
        side_NM = np.where(np.isnan(side_NM), mean_M, side_NM) - mean_M
        spread_M = side_NM.std(axis=0)
        spread_M[spread_M < LEAST_SPREAD] = np.inf
        side_NM = side_NM / spread_M
        weight_CM, bias_C = np.zeros((n_outputs, n_columns)), np.full(n_outputs, NEVER)
        absent_C = np.zeros(n_outputs, dtype=bool)
        if kind == "multiclass":
            present = positive_NC.any(axis=0)
            groups = [positive_NC[:, label] for label in np.flatnonzero(present)]
            own = self._directions(side_NM, groups, weight_C[present])
            weight_CM[present], bias_C[present] = own
            absent_C = np.logical_not(present)
        else:
            for label, own_N in enumerate(positive_NC.T):
                if own_N.all():
                    bias_C[label] = -NEVER
                elif own_N.any():
                    directions_2M, bias_2 = self._directions(
                        side_NM, [own_N, ~own_N], np.array([weight_C[label], 1.0])
                    )
                    weight_CM[label] = directions_2M[0] - directions_2M[1]
                    bias_C[label] = bias_2[0] - bias_2[1]
        self.mean_M.copy_(torch.from_numpy(mean_M))
        self.weight_CM.copy_(torch.from_numpy(weight_CM / spread_M))
        self.bias_C.copy_(torch.from_numpy(bias_C))
        self.absent_C.copy_(torch.from_numpy(absent_C))

    def _directions(
        self, side_NM: np.ndarray, groups: list[np.ndarray], weight_G: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Give each group's weights and bias; groups count as their examples times their weight."""
        prior_G = np.array([own_N.sum() for own_N in groups]) * weight_G
        prior_G = prior_G / prior_G.sum()
        mean_GM = np.stack([side_NM[own_N].mean(axis=0) for own_N in groups])
        covariance_MM = np.zeros((side_NM.shape[1],) * 2)
        for own_N, mean_M, prior in zip(groups, mean_GM, prior_G, strict=True):
            centred_NM = side_NM[own_N] - mean_M
            covariance_MM += prior * (centred_NM.T @ centred_NM) / len(centred_NM)
        covariance_MM *= 1 - self.shrinkage
        # The identity also holds columns that never change, whose direction is then 0.
        covariance_MM += max(self.shrinkage, LEAST_SPREAD) * np.eye(len(covariance_MM))
        direction_GM = np.linalg.solve(covariance_MM, mean_GM.T).T
        bias_G = np.log(prior_G) - 0.5 * (direction_GM * mean_GM).sum(axis=1)
        return direction_GM, bias_G
