"""The residual network of Wang et al. for time series, as used on ECGs.

Legend: B record, L lead, T time.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.pooling import ConcatPoolHead
from rayecg.models.resnet1d import ResidualBlock1d


class ResNet1dWang(nn.Module):
    """Three residual blocks of constant width.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    width
        Filters of every convolution.
    kernels
        Of the two convolutions of a block.
    stem_kernel, stem_stride
        Of the first convolution.
    dropout
        In the head.

    Notes
    -----
    Source: Wang, Yan and Oates 2017 (IJCNN), in the form of Strodthoff et al. 2021 (IEEE JBHI
    25:1519): width 128, kernels 5 and 3, stem 7, later blocks halving the rate. Differs from the
    source by one linear layer after pooling instead of a two-layer head, its dropout and the weights
    that training begins with: see `ConcatPoolHead`.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        width: int = 128,
        kernels: tuple[int, int] = (5, 3),
        stem_kernel: int = 7,
        stem_stride: int = 1,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv1d(
                len(inputs.leads),
                width,
                stem_kernel,
                stride=stem_stride,
                padding=stem_kernel // 2,
                bias=False,
            ),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
        )
        self.blocks = nn.Sequential(
            ResidualBlock1d(width, width, kernels, 1),
            ResidualBlock1d(width, width, kernels, 2),
            ResidualBlock1d(width, width, kernels, 2),
        )
        self.head = ConcatPoolHead(width, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.blocks(self.stem(x_BLT)))
