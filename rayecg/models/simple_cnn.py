"""The simple CNNs of the patient-wise cross-validation study.

Legend: B record, L lead, T time.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs


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
        layers: list[nn.Module] = []
        width = len(inputs.leads)
        for n_filters, kernel in zip(filters, kernels, strict=True):
            layers += [
                nn.Conv1d(width, n_filters, kernel, padding=kernel // 2),
                nn.BatchNorm1d(n_filters),
                nn.ReLU(),
                nn.MaxPool1d(2),
            ]
            width = n_filters
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(
            nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_outputs)
        )

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.features(x_BLT).mean(dim=2))
