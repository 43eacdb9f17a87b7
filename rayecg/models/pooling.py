"""Heads, and ways to make one vector of many times, that several families share.

Legend: B record, F feature, T time.
"""

from __future__ import annotations

import torch
from torch import nn


def mean_and_max(x_BFT: torch.Tensor) -> torch.Tensor:
    """Give mean and maximum over time side by side, records by twice the features."""
    return torch.cat([x_BFT.mean(dim=2), x_BFT.amax(dim=2)], dim=1)


class NormHead(nn.Module):
    """Batch norm, dropout, one linear layer.

    Source: a layer of the head of fastai's models, used for ECGs by Strodthoff et al. 2021.
    """

    def __init__(self, n_features: int, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(n_features, n_outputs)

    def forward(self, x_BF: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.linear(self.dropout(self.norm(x_BF)))


class ConcatPoolHead(NormHead):
    """Mean and maximum over time side by side, then a `NormHead`."""

    def __init__(self, n_features: int, n_outputs: int, dropout: float) -> None:
        super().__init__(2 * n_features, n_outputs, dropout)

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return super().forward(mean_and_max(x_BFT))


class AttentionPool(nn.Module):
    """Additive attention over time: a weighted mean, its weights learnt from the features.

    Source: Bahdanau, Cho and Bengio 2015 (ICLR), with a learnt vector in place of a query (Yang et
    al. 2016, NAACL).
    """

    def __init__(self, n_features: int, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(n_features, width)
        # A bias would shift all times alike, which the softmax takes back.
        self.score = nn.Linear(width, 1, bias=False)

    def weights(self, x_BTF: torch.Tensor) -> torch.Tensor:
        """Give the weight of each time, records by times; those of a record add up to 1."""
        return self.score(torch.tanh(self.project(x_BTF))).squeeze(2).softmax(dim=1)

    def forward(self, x_BTF: torch.Tensor) -> torch.Tensor:
        """Give the weighted mean, records by features."""
        return torch.bmm(self.weights(x_BTF).unsqueeze(1), x_BTF).squeeze(1)
