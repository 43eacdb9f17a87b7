"""1-D xresnets: residual networks with the "bag of tricks" stem and shortcuts.

Legend: B record, L lead, T time.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.pooling import ConcatPoolHead


def _conv(n_in: int, n_out: int, kernel: int, stride: int = 1, act: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [
        nn.Conv1d(n_in, n_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm1d(n_out),
    ]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if act else []))


class _Block(nn.Module):
    """Two convolutions (`expansion` 1) or a bottleneck of three, around a pooled shortcut."""

    def __init__(self, n_in: int, width: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        n_out = width * expansion
        if expansion == 1:
            convs = [_conv(n_in, width, kernel, stride), _conv(width, n_out, kernel, act=False)]
        else:
            convs = [
                _conv(n_in, width, 1),
                _conv(width, width, kernel, stride),
                _conv(width, n_out, 1, act=False),
            ]
        # A residual branch that starts at zero makes a deep network start as a shallow one.
        nn.init.zeros_(convs[-1].get_parameter("1.weight"))
        self.convs = nn.Sequential(*convs)
        shortcut: list[nn.Module] = []
        if stride > 1:
            shortcut.append(nn.AvgPool1d(2, ceil_mode=True))
        if n_in != n_out:
            shortcut.append(_conv(n_in, n_out, 1, act=False))
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convs(x_BLT) + self.shortcut(x_BLT))


class XResNet1d(nn.Module):
    """A 1-D xresnet with a concat-pooling head.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    blocks
        Residual blocks of each stage; every stage but the first halves the rate.
    expansion
        4 for bottleneck blocks, 1 for basic ones.
    width
        Filters of every stage before expansion.
    stem
        Filters of the three convolutions before the first pooling.
    kernel
        Of all convolutions that are not pointwise.
    dropout
        In the head.

    Notes
    -----
    Source: He et al. 2019 (Bag of Tricks for Image Classification with CNNs), in the 1-D form that
    Strodthoff et al. 2021 (IEEE JBHI 25:1519) benchmark on PTB-XL: constant width 64, kernel 5.
    Differs from the source by one linear layer after pooling instead of a two-layer head, its dropout
    and the weights that training begins with: see `ConcatPoolHead`.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        blocks: tuple[int, ...],
        expansion: int,
        width: int = 64,
        stem: tuple[int, int, int] = (32, 32, 64),
        kernel: int = 5,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = len(inputs.leads)
        for i, n_filters in enumerate(stem):
            layers.append(_conv(n_in, n_filters, kernel, stride=2 if i == 0 else 1))
            n_in = n_filters
        layers.append(nn.MaxPool1d(3, stride=2, padding=1))
        for stage, n_blocks in enumerate(blocks):
            for i in range(n_blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(_Block(n_in, width, expansion, kernel, stride))
                n_in = width * expansion
        self.features = nn.Sequential(*layers)
        self.head = ConcatPoolHead(n_in, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.features(x_BLT))


def xresnet1d18(inputs: ModelInputs, n_outputs: int, dropout: float = 0.25) -> XResNet1d:
    """Eight basic blocks in four stages; see `XResNet1d`."""
    return XResNet1d(inputs, n_outputs, (2, 2, 2, 2), expansion=1, dropout=dropout)


def xresnet1d50(inputs: ModelInputs, n_outputs: int, dropout: float = 0.25) -> XResNet1d:
    """Sixteen bottleneck blocks in four stages; see `XResNet1d`."""
    return XResNet1d(inputs, n_outputs, (3, 4, 6, 3), expansion=4, dropout=dropout)


def xresnet1d101(inputs: ModelInputs, n_outputs: int, dropout: float = 0.25) -> XResNet1d:
    """Thirty-three bottleneck blocks in four stages; see `XResNet1d`."""
    return XResNet1d(inputs, n_outputs, (3, 4, 23, 3), expansion=4, dropout=dropout)
