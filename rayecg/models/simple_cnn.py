"""The simple CNNs of the patient-wise cross-validation study.

Legend: B record, L lead, T time; H, W rows and columns of an image.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs

_LAYERS: dict[int, tuple[type[nn.Module], type[nn.Module], type[nn.Module]]] = {
    1: (nn.Conv1d, nn.BatchNorm1d, nn.MaxPool1d),
    2: (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d),
}


def convolutions(
    n_in: int, filters: tuple[int, ...], kernels: tuple[int, ...], n_axes: int = 1
) -> nn.Sequential:
    """Stack convolutions over one or two axes, each with batch norm, ReLU and a halving."""
    conv, norm, pool = _LAYERS[n_axes]
    layers: list[nn.Module] = []
    for n_filters, kernel in zip(filters, kernels, strict=True):
        layers += [
            conv(n_in, n_filters, kernel, padding=kernel // 2),
            norm(n_filters),
            nn.ReLU(),
            pool(2),
        ]
        n_in = n_filters
    return nn.Sequential(*layers)


class ConvolutionEncoder(nn.Sequential):
    """Convolutions over a window, and the mean over time.

    Parameters
    ----------
    n_leads
        Leads of a window.
    filters, kernels
        See `convolutions`.
    """

    def __init__(
        self,
        n_leads: int,
        filters: tuple[int, ...] = (32, 64, 128),
        kernels: tuple[int, ...] = (7, 5, 3),
    ) -> None:
        super().__init__(*convolutions(n_leads, filters, kernels))
        self.n_features = filters[-1]

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give features, records by `n_features`."""
        return super().forward(x_BLT).mean(dim=2)


def _head(width: int, hidden: int, n_outputs: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_outputs)
    )


class SimpleCnn1d(nn.Module):
    """Three convolutions, global average pooling and a small head.

    12 leads and 5 outputs make 46,757 parameters.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    filters, kernels
        Of the three convolutions.
    hidden
        Width of the head.
    dropout
        Before the last layer.

    Notes
    -----
    Source: one of the project's five reference systems (simple 1-D and 2-D CNNs with patient-wise
    cross-validation on PTB-XL). Differs from the source by nothing that is known; where dropout
    stands is not stated there.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        filters: tuple[int, ...] = (32, 64, 128),
        kernels: tuple[int, ...] = (7, 5, 3),
        hidden: int = 64,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.features = ConvolutionEncoder(len(inputs.leads), filters, kernels)
        self.head = _head(self.features.n_features, hidden, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.features(x_BLT))


class SimpleCnn2d(nn.Module):
    """The record as one picture, a row a lead, stretched to one size; three convolutions over it.

    5 outputs make 6,613 parameters, whatever the leads and times.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    size
        Rows and columns that leads and times are interpolated to, bilinearly, and averaged over where
        they become fewer: no sample goes unseen.
    filters, kernels
        Of the three convolutions.
    hidden
        Width of the head.
    dropout
        Before the last layer.

    Notes
    -----
    Source: one of the project's five reference systems (simple 1-D and 2-D CNNs with patient-wise
    cross-validation on PTB-XL). Differs from the source by nothing that is known; where dropout
    stands, and how the record becomes 64 x 256, are not stated there.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        size: tuple[int, int] = (64, 256),
        filters: tuple[int, ...] = (8, 16, 32),
        kernels: tuple[int, ...] = (3, 3, 3),
        hidden: int = 16,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        self.size = tuple(size)
        self.features = convolutions(1, filters, kernels, n_axes=2)
        self.head = _head(filters[-1], hidden, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        image_B1HW = nn.functional.interpolate(
            x_BLT[:, None], size=self.size, mode="bilinear", antialias=True
        )
        return self.head(self.features(image_B1HW).mean(dim=(2, 3)))
