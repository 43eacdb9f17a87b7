"""Heads that several families share.

Legend: B record, F feature, T time.
"""

from __future__ import annotations

import torch
from torch import nn


class ConcatPoolHead(nn.Module):
    """Mean and maximum over time side by side, batch norm, dropout, one linear layer.

    Source: the head of fastai's vision models, used for ECGs by Strodthoff et al. 2021.
    """

    def __init__(self, n_features: int, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(2 * n_features)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(2 * n_features, n_outputs)

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        pooled_BF = torch.cat([x_BFT.mean(dim=2), x_BFT.amax(dim=2)], dim=1)
        return self.linear(self.dropout(self.norm(pooled_BF)))
