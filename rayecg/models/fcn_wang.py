"""The fully convolutional network of Wang et al. for time series, as used on ECGs.

Legend: B record, L lead, T time.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.pooling import ConcatPoolHead


class FcnWang(nn.Module):
    """Three convolutions at full rate, then a concat-pooling head.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    filters, kernels
        Of the convolutions; an even kernel makes the window one sample shorter.
    dropout
        In the head.

    Notes
    -----
    Source: Wang, Yan and Oates 2017 (IJCNN), in the form of Strodthoff et al. 2021 (IEEE JBHI
    25:1519), which pools mean and maximum. Differs from the source by one linear layer after
    pooling instead of a two-layer head, its dropout and the weights that training begins with: see
    `ConcatPoolHead`.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        filters: tuple[int, ...] = (128, 256, 128),
        kernels: tuple[int, ...] = (8, 5, 3),
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = len(inputs.leads)
        for n_filters, kernel in zip(filters, kernels, strict=True):
            layers += [
                nn.Conv1d(width, n_filters, kernel, padding=(kernel - 1) // 2, bias=False),
                nn.BatchNorm1d(n_filters),
                nn.ReLU(inplace=True),
            ]
            width = n_filters
        self.features = nn.Sequential(*layers)
        self.head = ConcatPoolHead(width, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.features(x_BLT))
