"""Residual convolutions, a bidirectional LSTM, attention over time, and the patient's metadata.

Legend: B record, L lead, T time, F feature, M side column.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs, check_side, reads
from rayecg.models.pooling import AttentionPool
from rayecg.models.recurrent import RecurrentLayers
from rayecg.models.resnet1d import ResidualBlock1d


@reads(metadata=("age", "sex"))
class ResConvBiLstmAttention(nn.Module):
    """A signal branch and, where there are side inputs, a small branch for them.

    Side inputs are read as `rayecg.signal.side` gives them, what is not known (NaN) as 0. Age and sex
    are scaled for that: 0 is a usual age and neither sex. `features` that an experiment may add are
    not: an unknown heart rate reads as one of 0/s.

    Parameters
    ----------
    inputs
        Leads and times of a window; names of its side inputs, none of which makes no branch.
    n_outputs
        Number of labels.
    filters, kernels
        Of the residual blocks, each followed by a pooling that halves the rate.
    hidden
        Features of a direction of the LSTM; also the width of the attention.
    dense, side_dense, combined_dense
        Widths of the layers after attention, after the side inputs, and after both together.
    dropout
        After the LSTM, and after every layer but the side inputs' and the last.

    Notes
    -----
    Source: one of the project's five reference systems (residual CNN, BiLSTM, attention and
    metadata). Differs from the source by nothing that is known; not stated there, and chosen here:
    batch norm and two convolutions in a block, max pooling by two after each, additive attention,
    and where dropout stands.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        filters: tuple[int, ...] = (256, 128),
        kernels: tuple[int, ...] = (3, 7),
        hidden: int = 128,
        dense: int = 256,
        side_dense: int = 16,
        combined_dense: int = 128,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = len(inputs.leads)
        for n_filters, kernel in zip(filters, kernels, strict=True):
            layers += [ResidualBlock1d(width, n_filters, (kernel, kernel)), nn.MaxPool1d(2)]
            width = n_filters
        self.convs = nn.Sequential(*layers)
        self.lstm = RecurrentLayers(width, "lstm", bidirectional=True, hidden=hidden)
        self.dropout = nn.Dropout(dropout)
        self.attention = AttentionPool(self.lstm.n_features, hidden)
        self.signal = nn.Sequential(
            nn.Linear(self.lstm.n_features, dense), nn.ReLU(), nn.Dropout(dropout)
        )
        self.side: nn.Module | None = None
        if inputs.side:
            self.side = nn.Sequential(nn.Linear(len(inputs.side), side_dense), nn.ReLU())
            dense += side_dense
        self.head = nn.Sequential(
            nn.Linear(dense, combined_dense),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(combined_dense, n_outputs),
        )

    def forward(self, x_BLT: torch.Tensor, side_BM: torch.Tensor | None = None) -> torch.Tensor:
        """Give logits, records by labels.

        Raises
        ------
        ValueError
            If there are side inputs and no branch for them, or the other way round.
        """
        check_side(side_BM, self.side is not None)
        states_BTF = self.dropout(self.lstm(self.convs(x_BLT)))
        x_BF = self.signal(self.attention(states_BTF))
        if self.side is not None and side_BM is not None:
            side_BF = self.side(torch.nan_to_num(side_BM, nan=0.0))
            x_BF = torch.cat([x_BF, side_BF], dim=1)
        return self.head(x_BF)
