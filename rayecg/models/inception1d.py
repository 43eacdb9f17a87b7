"""InceptionTime: convolutions of several lengths side by side.

Legend: B record, L lead, F feature, T time.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.pooling import ConcatPoolHead

#: Modules that a shortcut goes around.
GROUP = 3


class _Module(nn.Module):
    """Convolutions of a bottleneck, and one of the pooled input, side by side."""

    def __init__(self, n_in: int, filters: int, kernels: tuple[int, ...], bottleneck: int) -> None:
        super().__init__()
        self.bottleneck = nn.Conv1d(n_in, bottleneck, 1, bias=False)
        self.convs = nn.ModuleList(
            nn.Conv1d(bottleneck, filters, kernel, padding=kernel // 2, bias=False)
            for kernel in kernels
        )
        self.pooled = nn.Sequential(
            nn.MaxPool1d(3, stride=1, padding=1), nn.Conv1d(n_in, filters, 1, bias=False)
        )
        self.norm = nn.BatchNorm1d(filters * (len(kernels) + 1))

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        narrow_BFT = self.bottleneck(x_BFT)
        parts = [*(conv(narrow_BFT) for conv in self.convs), self.pooled(x_BFT)]
        return torch.relu(self.norm(torch.cat(parts, dim=1)))


class _Group(nn.Module):
    """Modules one after the other, around a pointwise shortcut."""

    def __init__(self, modules: list[_Module], n_in: int, n_out: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(*modules)
        self.shortcut = nn.Sequential(nn.Conv1d(n_in, n_out, 1, bias=False), nn.BatchNorm1d(n_out))

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x_BFT) + self.shortcut(x_BFT))


class Inception1d(nn.Module):
    """Inception modules, every three around a shortcut, and a concat-pooling head.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    depth
        Number of modules, a multiple of three.
    filters
        Of each of a module's convolutions.
    kernels
        Of a module's convolutions, odd.
    bottleneck
        Features that they read.
    dropout
        In the head.

    Raises
    ------
    ValueError
        If depth or kernels are not as stated.

    Notes
    -----
    Source: Fawaz et al. 2020 (InceptionTime, Data Mining and Knowledge Discovery 34:1936), in the
    form of Strodthoff et al. 2021 (IEEE JBHI 25:1519): one network instead of an ensemble of five,
    kernels 40, 20 and 10 made odd, mean and maximum pooled. Differs from the source by one linear
    layer after pooling instead of a two-layer head, its dropout and the weights that training
    begins with: see `ConcatPoolHead`.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        depth: int = 6,
        filters: int = 32,
        kernels: tuple[int, ...] = (39, 19, 9),
        bottleneck: int = 32,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        if depth < GROUP or depth % GROUP:
            raise ValueError(f"depth: expected a multiple of {GROUP}, came {depth}")
        if not all(kernel % 2 for kernel in kernels):
            raise ValueError(f"kernels: expected odd ones, came {tuple(kernels)}")
        n_in, n_out = len(inputs.leads), filters * (len(kernels) + 1)
        groups = []
        for _ in range(depth // GROUP):
            widths = [n_in] + [n_out] * (GROUP - 1)
            modules = [_Module(width, filters, kernels, bottleneck) for width in widths]
            groups.append(_Group(modules, n_in, n_out))
            n_in = n_out
        self.features = nn.Sequential(*groups)
        self.head = ConcatPoolHead(n_out, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.features(x_BLT))
