"""Recurrent networks: GRU and LSTM, one way or both, with attention, behind a small CNN.

Legend: B record, L lead, T time, F feature.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs, reads
from rayecg.models.pooling import AttentionPool, NormHead

Cell = Literal["gru", "lstm"]

three_leads = reads(leads=("I", "II", "V2"))


class RecurrentLayers(nn.Module):
    """Stacked GRU or LSTM layers, with dropout between them.

    Parameters
    ----------
    n_in
        Leads, or features, at each time.
    cell
        "gru" or "lstm".
    bidirectional
        Whether a second one reads backwards; doubles the features.
    hidden
        Features of a direction.
    n_layers
        How many layers.
    dropout
        Between layers.

    Raises
    ------
    ValueError
        If there is no such cell.
    """

    def __init__(
        self,
        n_in: int,
        cell: Cell,
        bidirectional: bool,
        hidden: int,
        n_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if cell not in ("gru", "lstm"):
            raise ValueError(f"cell: expected gru or lstm, came {cell}")
        make = nn.GRU if cell == "gru" else nn.LSTM
        self.rnn = make(
            n_in,
            hidden,
            n_layers,
            batch_first=True,
            dropout=dropout if n_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )
        self.hidden = hidden
        self.n_features = hidden * (1 + bidirectional)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give the last layer's states, records by times by features."""
        states_BTF, _ = self.rnn(x_BLT.transpose(1, 2))
        return states_BTF

    def last(self, states_BTF: torch.Tensor) -> torch.Tensor:
        """Give each direction's state after it has read all, records by features.

        That of the backward direction stands at the first time.
        """
        return torch.cat([states_BTF[:, -1, : self.hidden], states_BTF[:, 0, self.hidden :]], dim=1)


class RecurrentEncoder(nn.Module):
    """Recurrent layers over a window, made one vector.

    Parameters
    ----------
    n_leads
        Leads of a window.
    cell, bidirectional, hidden, n_layers, dropout
        See `RecurrentLayers`.
    attention
        False gives the last states; True gives additive attention over all of them.
    filters, kernels
        Of convolutions before the recurrent layers, each with batch norm, ReLU and a halving of the
        rate; none by default.
    """

    def __init__(
        self,
        n_leads: int,
        cell: Cell = "gru",
        bidirectional: bool = False,
        attention: bool = False,
        hidden: int = 128,
        n_layers: int = 2,
        dropout: float = 0.3,
        filters: tuple[int, ...] = (),
        kernels: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        front: list[nn.Module] = []
        width = n_leads
        for n_filters, kernel in zip(filters, kernels, strict=True):
            front += [
                nn.Conv1d(width, n_filters, kernel, padding=kernel // 2, bias=False),
                nn.BatchNorm1d(n_filters),
                nn.ReLU(inplace=True),
                nn.MaxPool1d(2),
            ]
            width = n_filters
        self.front = nn.Sequential(*front)
        self.layers = RecurrentLayers(width, cell, bidirectional, hidden, n_layers, dropout)
        self.n_features = self.layers.n_features
        self.attention = AttentionPool(self.n_features, hidden) if attention else None

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give features, records by `n_features`."""
        states_BTF = self.layers(self.front(x_BLT))
        return (
            self.layers.last(states_BTF) if self.attention is None else self.attention(states_BTF)
        )


class Recurrent(nn.Module):
    """A recurrent encoder, dropout and one linear layer.

    The plain variants classify from the last layer's last state (`gru`, `lstm`), or from the last
    states of both directions (`bigru`, `bilstm`); those with attention from a weighted mean of all.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    cell, bidirectional, attention, hidden, n_layers, filters, kernels
        See `RecurrentEncoder`.
    dropout
        Between recurrent layers and before the linear one.

    Notes
    -----
    Source: the recurrent networks of one of the project's five reference systems (multi-modal
    signals and images): hidden 128, two layers, dropout 0.3, three leads for 10 s at 100 Hz.
    Differs from the source by nothing that is known; which state is classified, the form of
    attention (additive, as wide as a direction's state) and the front end and cell of `cnn1d_rnn`
    are not stated there.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        cell: Cell,
        bidirectional: bool,
        attention: bool,
        hidden: int,
        n_layers: int,
        dropout: float,
        filters: tuple[int, ...] = (),
        kernels: tuple[int, ...] = (),
    ) -> None:
        super().__init__()
        self.encoder = RecurrentEncoder(
            len(inputs.leads),
            cell,
            bidirectional,
            attention,
            hidden,
            n_layers,
            dropout,
            filters,
            kernels,
        )
        self.head = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(self.encoder.n_features, n_outputs)
        )

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.encoder(x_BLT))


@three_leads
def gru(
    inputs: ModelInputs, n_outputs: int, hidden: int = 128, n_layers: int = 2, dropout: float = 0.3
) -> Recurrent:
    """GRU, last state; see `Recurrent`."""
    return Recurrent(inputs, n_outputs, "gru", False, False, hidden, n_layers, dropout)


@three_leads
def bigru(
    inputs: ModelInputs, n_outputs: int, hidden: int = 128, n_layers: int = 2, dropout: float = 0.3
) -> Recurrent:
    """GRU both ways, last states; see `Recurrent`."""
    return Recurrent(inputs, n_outputs, "gru", True, False, hidden, n_layers, dropout)


@three_leads
def lstm(
    inputs: ModelInputs, n_outputs: int, hidden: int = 128, n_layers: int = 2, dropout: float = 0.3
) -> Recurrent:
    """LSTM, last state; see `Recurrent`."""
    return Recurrent(inputs, n_outputs, "lstm", False, False, hidden, n_layers, dropout)


@three_leads
def bilstm(
    inputs: ModelInputs, n_outputs: int, hidden: int = 128, n_layers: int = 2, dropout: float = 0.3
) -> Recurrent:
    """LSTM both ways, last states; see `Recurrent`."""
    return Recurrent(inputs, n_outputs, "lstm", True, False, hidden, n_layers, dropout)


@three_leads
def bigru_attention(
    inputs: ModelInputs, n_outputs: int, hidden: int = 128, n_layers: int = 2, dropout: float = 0.3
) -> Recurrent:
    """GRU both ways, attention over time; see `Recurrent`."""
    return Recurrent(inputs, n_outputs, "gru", True, True, hidden, n_layers, dropout)


@three_leads
def bilstm_attention(
    inputs: ModelInputs, n_outputs: int, hidden: int = 128, n_layers: int = 2, dropout: float = 0.3
) -> Recurrent:
    """LSTM both ways, attention over time; see `Recurrent`."""
    return Recurrent(inputs, n_outputs, "lstm", True, True, hidden, n_layers, dropout)


@three_leads
def cnn1d_rnn(
    inputs: ModelInputs,
    n_outputs: int,
    cell: Cell = "gru",
    filters: tuple[int, ...] = (32, 64),
    kernels: tuple[int, ...] = (7, 5),
    hidden: int = 128,
    n_layers: int = 2,
    dropout: float = 0.3,
) -> Recurrent:
    """Two convolutions, each halving the rate, then a GRU or LSTM, last state; see `Recurrent`."""
    return Recurrent(
        inputs, n_outputs, cell, False, False, hidden, n_layers, dropout, filters, kernels
    )


class LstmWang(nn.Module):
    """LSTM layers; last state, maximum and mean over time side by side; one linear layer.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    bidirectional
        Whether a second one reads backwards.
    hidden, n_layers
        Features of a direction, and layers.
    dropout
        In the head.

    Notes
    -----
    Source: Strodthoff et al. 2021 (IEEE JBHI 25:1519): two layers, hidden 256, concat pooling.
    Differs from the source by one linear layer after pooling instead of a two-layer head, its dropout
    and the weights that training begins with (see `pooling.ConcatPoolHead`), and by taking the
    backward direction's last state where that direction ends, at the first time.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        bidirectional: bool,
        hidden: int,
        n_layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.layers = RecurrentLayers(len(inputs.leads), "lstm", bidirectional, hidden, n_layers)
        self.head = NormHead(3 * self.layers.n_features, n_outputs, dropout)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        states_BTF = self.layers(x_BLT)
        pooled = [self.layers.last(states_BTF), states_BTF.amax(dim=1), states_BTF.mean(dim=1)]
        return self.head(torch.cat(pooled, dim=1))


def lstm_wang(
    inputs: ModelInputs, n_outputs: int, hidden: int = 256, n_layers: int = 2, dropout: float = 0.25
) -> LstmWang:
    """LSTM with concat pooling; see `LstmWang`."""
    return LstmWang(inputs, n_outputs, False, hidden, n_layers, dropout)


def bilstm_wang(
    inputs: ModelInputs, n_outputs: int, hidden: int = 256, n_layers: int = 2, dropout: float = 0.25
) -> LstmWang:
    """LSTM both ways with concat pooling; see `LstmWang`."""
    return LstmWang(inputs, n_outputs, True, hidden, n_layers, dropout)
