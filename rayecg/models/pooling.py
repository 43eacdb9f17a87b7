"""Heads, gates, and ways to make one vector of many times, that several families share.

Legend: B record, F feature, T time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


def steady(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Apply a function of single elements, the same for a record wherever it stands in its batch.

    On a CPU the last bit of a float32 depends on whether the element lies in a vector register or in
    the rest, which each thread has at the end of its share; that of a float64 is rounded away.
    """
    return function(x.double()).to(x.dtype) if x.device.type == "cpu" else function(x)


def gate(logit: torch.Tensor) -> torch.Tensor:
    """Give the sigmoid; see `steady`."""
    return steady(torch.sigmoid, logit)


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
    """Mean and maximum over time side by side, then a `NormHead`.

    Differs from the two-layer head of `ecg_ptbxl_benchmarking` (Strodthoff et al. 2021) also by a
    dropout of 0.25, where that has 0.5 before its last layer. The networks that have this head keep
    torch's weights but for norms that start at zero, where that code draws them after He et al.
    """

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
