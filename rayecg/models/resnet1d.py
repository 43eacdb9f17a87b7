"""ResNet-18 in one dimension, and the residual block that several families share.

Legend: B record, L lead, F feature, T time.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs, reads


class ResidualBlock1d(nn.Module):
    """Two convolutions around a shortcut, which is a pointwise convolution where shapes differ.

    Parameters
    ----------
    n_in, width
        Features that come and go.
    kernels
        Of the two convolutions, odd.
    stride
        Of the first one.

    Raises
    ------
    ValueError
        If a kernel is even: what it gives would not fit the shortcut.
    """

    def __init__(self, n_in: int, width: int, kernels: tuple[int, int], stride: int = 1) -> None:
        super().__init__()
        first, second = kernels
        if not (first % 2 and second % 2):
            raise ValueError(f"kernels: expected odd ones, came {first} and {second}")
        self.convs = nn.Sequential(
            nn.Conv1d(n_in, width, first, stride=stride, padding=first // 2, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Conv1d(width, width, second, padding=second // 2, bias=False),
            nn.BatchNorm1d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != width:
            self.shortcut = nn.Sequential(
                nn.Conv1d(n_in, width, 1, stride=stride, bias=False), nn.BatchNorm1d(width)
            )

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        """Give features, records by `width` by times."""
        return torch.relu(self.convs(x_BFT) + self.shortcut(x_BFT))


@reads(fs=250, duration_s=8.8)
class ResNet1d(nn.Module):
    """A residual network whose stages halve the rate and double the width.

    12 leads and 5 outputs make 8,739,973 parameters.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    blocks, widths
        Residual blocks of each stage, and its filters.
    kernel, stem_kernel
        Of the blocks' convolutions, and of the one before them; odd.

    Notes
    -----
    Source: He et al. 2016 (CVPR), ResNet-18, in one dimension with kernels 15 and 7: the baseline
    of 8.7 million parameters of one of the project's five reference systems (hierarchical
    multi-lead). Differs from the source by no bias before the first batch norm.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        blocks: tuple[int, ...] = (2, 2, 2, 2),
        widths: tuple[int, ...] = (64, 128, 256, 512),
        kernel: int = 7,
        stem_kernel: int = 15,
    ) -> None:
        super().__init__()
        n_in = widths[0]
        self.stem = nn.Sequential(
            nn.Conv1d(
                len(inputs.leads), n_in, stem_kernel, stride=2, padding=stem_kernel // 2, bias=False
            ),
            nn.BatchNorm1d(n_in),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(3, stride=2, padding=1),
        )
        layers: list[nn.Module] = []
        for stage, (n_blocks, width) in enumerate(zip(blocks, widths, strict=True)):
            for i in range(n_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(ResidualBlock1d(n_in, width, (kernel, kernel), stride))
                n_in = width
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Linear(n_in, n_outputs)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.blocks(self.stem(x_BLT)).mean(dim=2))
