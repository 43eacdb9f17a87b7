"""Gradient boosting on hand-made features: what a network should be compared with.

Legend: B record, L lead, T time, M side column, N example, C label, I tree, K node of a tree,
R tree of any label.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs, reads
from rayecg.models.fitting import NEVER, check_columns, check_examples


@reads(features=("measurements",))
class FeatureBoosting(nn.Module):
    """Trees that scikit-learn grows and torch evaluates; the window itself is not read.

    The trees are buffers, padded to the capacity that the hyperparameters allow, so that they are
    the module's state and load as any weights do. There is nothing for gradients to train: `fit`
    takes the place of the training loop. Before it every tree is one leaf of 0, and so are the
    logits.

    Parameters
    ----------
    inputs
        Names of the side columns. NaN there is "not known", and the trees learn where that leads.
    n_outputs
        Number of labels.
    max_iter
        Trees of each label.
    learning_rate
        What each tree's values are multiplied by.
    max_leaf_nodes, max_depth
        Size of a tree; shallow ones carry over to other patients better.
    min_samples_leaf
        Examples that a leaf must hold.
    l2_regularization
        Penalty on the values of leaves.
    max_features
        Share of the columns that each split may choose from.

    Notes
    -----
    Source: Friedman 2001, Ann. Stat. 29(5):1189-1232, with the histograms of Ke et al. 2017
    (LightGBM, NeurIPS 30), as scikit-learn's `HistGradientBoostingClassifier` has them. Differs from
    the source by smaller trees, a penalty, and columns drawn for each split; without early stopping,
    which would hold back single beats of the patients that are trained on.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        max_iter: int = 200,
        learning_rate: float = 0.1,
        max_leaf_nodes: int = 15,
        max_depth: int = 8,
        min_samples_leaf: int = 20,
        l2_regularization: float = 1.0,
        max_features: float = 0.5,
    ) -> None:
        super().__init__()
        check_columns(inputs)
        if min(max_iter, max_depth, min_samples_leaf) < 1 or max_leaf_nodes < 2:
            raise ValueError(
                "expected max_iter, max_depth and min_samples_leaf of 1 or more and max_leaf_nodes "
                f"of 2 or more, came {max_iter}, {max_depth}, {min_samples_leaf}, {max_leaf_nodes}"
            )
        if learning_rate <= 0 or l2_regularization < 0 or not 0 < max_features <= 1:
            raise ValueError(
                "expected learning_rate above 0, l2_regularization of 0 or more and max_features "
                f"above 0 up to 1, came {learning_rate}, {l2_regularization}, {max_features}"
            )
        self.settings: dict[str, Any] = {
            "max_iter": max_iter,
            "learning_rate": learning_rate,
            "max_leaf_nodes": max_leaf_nodes,
            "max_depth": max_depth,
            "min_samples_leaf": min_samples_leaf,
            "l2_regularization": l2_regularization,
            "max_features": max_features,
        }
        shape_CIK = (n_outputs, max_iter, 2 * max_leaf_nodes - 1)
        self.feature_CIK: torch.Tensor
        self.threshold_CIK: torch.Tensor
        self.missing_left_CIK: torch.Tensor
        self.child_CIK2: torch.Tensor
        self.value_CIK: torch.Tensor
        self.baseline_C: torch.Tensor
        self.register_buffer("feature_CIK", torch.zeros(shape_CIK, dtype=torch.int64))
        self.register_buffer("threshold_CIK", torch.zeros(shape_CIK, dtype=torch.float64))
        self.register_buffer("missing_left_CIK", torch.zeros(shape_CIK, dtype=torch.bool))
        self.register_buffer("child_CIK2", torch.zeros((*shape_CIK, 2), dtype=torch.int64))
        self.register_buffer("value_CIK", torch.zeros(shape_CIK, dtype=torch.float64))
        self.register_buffer("baseline_C", torch.zeros(n_outputs, dtype=torch.float64))
        self._forget()

    @property
    def n_parameters(self) -> int:
        """Thresholds and leaf values of the trees as they are; none is trained by gradients."""
        own_K = torch.arange(self.child_CIK2.shape[2], device=self.child_CIK2.device)
        n_splits = int((self.child_CIK2[..., 0] != own_K).sum())
        n_trees = self.child_CIK2.shape[0] * self.child_CIK2.shape[1]
        return 2 * n_splits + n_trees

    def forward(self, x_BLT: torch.Tensor, side_BM: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels.

        Comparisons and sums are in float64, as scikit-learn's are.
        """
        n_outputs, n_trees, n_nodes = self.value_CIK.shape
        side_BM = side_BM.double()
        feature, threshold = self.feature_CIK.flatten(), self.threshold_CIK.flatten()
        missing_left, child_2 = self.missing_left_CIK.flatten(), self.child_CIK2.reshape(-1, 2)
        root_R = torch.arange(n_outputs * n_trees, device=side_BM.device) * n_nodes
        node_BR = root_R.expand(side_BM.shape[0], -1)
        for _ in range(self.settings["max_depth"]):  # a leaf's children are itself
            read_BR = side_BM.gather(1, feature[node_BR])
            left_BR = torch.where(
                read_BR.isnan(), missing_left[node_BR], read_BR <= threshold[node_BR]
            )
            node_BR = root_R + child_2[node_BR, (~left_BR).long()]
        value_BCI = self.value_CIK.flatten()[node_BR].reshape(-1, n_outputs, n_trees)
        return (self.baseline_C + value_BCI.sum(dim=2)).float()

    def fit(
        self,
        side_NM: np.ndarray,
        target_NC: np.ndarray,
        kind: Literal["multilabel", "multiclass"],
        weight_C: np.ndarray | None,
        seed: int,
    ) -> None:
        """Grow the trees on training examples; earlier ones are forgotten.

        A label without a positive example gets the logit `NEVER`, one without a negative `-NEVER`.

        Parameters
        ----------
        side_NM
            Side columns of the examples; NaN is "not known".
        target_NC
            1 where the example has the label; exactly one a row if `kind` is "multiclass".
        kind
            "multilabel" grows trees for each label by itself, "multiclass" for all together.
        weight_C
            Weight of an example of each class, or of each label's positives; None for 1.
        seed
            Decides which columns each split may choose from.

        Raises
        ------
        ValueError
            See `check_examples`.
        """
        n_outputs = len(self.baseline_C)
        positive_NC, weight_C = check_examples(side_NM, target_NC, weight_C, n_outputs)
        self._forget()
        if kind == "multilabel":
            for label in range(n_outputs):
                own_N = positive_NC[:, label]
                if own_N.all() or not own_N.any():
                    self.baseline_C[label] = -NEVER if own_N.any() else NEVER
                else:
                    weight_N = np.where(own_N, weight_C[label], 1.0)
                    self._grow(side_NM, own_N.astype(np.int64), weight_N, [label], seed)
            return
        class_N = positive_NC.argmax(axis=1)
        present = np.unique(class_N)
        self.baseline_C[:] = NEVER
        self.baseline_C[torch.as_tensor(present)] = 0.0
        if len(present) > 1:
            # Of two classes scikit-learn scores the second, against 0 for the first.
            scored = present.tolist() if len(present) > 2 else present[1:].tolist()
            self._grow(side_NM, class_N, weight_C[class_N], scored, seed)

    def _forget(self) -> None:
        """Make every tree one leaf of 0."""
        for buffer in self.buffers():
            buffer.zero_()
        own_K = torch.arange(self.child_CIK2.shape[2], device=self.child_CIK2.device)
        self.child_CIK2[:] = own_K[:, None]

    def _grow(
        self,
        side_NM: np.ndarray,
        class_N: np.ndarray,
        weight_N: np.ndarray,
        labels: list[int],
        seed: int,
    ) -> None:
        """Train one estimator and copy its trees, one series for each of `labels`."""
        from sklearn.ensemble import HistGradientBoostingClassifier  # its import is slow

        # scikit-learn fails on a column without any value; one that never changes is never chosen.
        side_NM = np.where(np.isnan(side_NM).all(axis=0), 0.0, side_NM)
        estimator = HistGradientBoostingClassifier(
            **self.settings, early_stopping=False, random_state=seed
        ).fit(side_NM, class_N, sample_weight=weight_N)
        for own, label in enumerate(labels):
            self.baseline_C[label] = float(estimator._baseline_prediction.flat[own])
            for i, trees in enumerate(estimator._predictors):
                self._copy(label, i, trees[own].nodes)

    def _copy(self, label: int, i: int, nodes: np.ndarray) -> None:
        """Copy a tree from scikit-learn's table of nodes, whose first is the root."""
        leaf_K = nodes["is_leaf"].astype(bool)
        own_K = np.arange(len(nodes))
        columns = {
            self.feature_CIK: np.where(leaf_K, 0, nodes["feature_idx"]),
            self.threshold_CIK: nodes["num_threshold"],
            self.missing_left_CIK: nodes["missing_go_to_left"].astype(bool),
            self.value_CIK: nodes["value"],
            self.child_CIK2: np.stack(
                [
                    np.where(leaf_K, own_K, nodes[side].astype(np.int64))
                    for side in ("left", "right")
                ],
                axis=1,
            ),
        }
        for buffer, column in columns.items():
            buffer[label, i, : len(nodes)] = torch.from_numpy(np.ascontiguousarray(column))
