"""ECG-TransNet: a residual network makes tokens of the signal, a Transformer encoder relates them.

Legend: B record, L lead, T time, F feature, N token, H attention head, M side column.
"""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

from rayecg.models.catalogue import ModelInputs, check_side, reads
from rayecg.models.resnet1d import ResidualBlock1d

#: Wavelengths of the position embedding in s: from the width of a QRS to more than any window.
WAVELENGTHS_S = (0.1, 30.0)
#: As batch norms have them: how fast side inputs' scale follows the batches, and what keeps it finite.
MOMENTUM, TINY = 0.1, 1e-5


class _Layer(nn.Module):
    """Self-attention and two linear layers, each with the layer norm before and a sum after."""

    def __init__(self, width: int, n_heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, hidden),
            nn.ReLU(),
            nn.Linear(hidden, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BNF: torch.Tensor) -> torch.Tensor:
        parts_BNF = self.query_key_value(self.norm(x_BNF)).chunk(3, dim=2)
        query, key, value = (
            part_BNF.unflatten(2, (self.n_heads, -1)).transpose(1, 2) for part_BNF in parts_BNF
        )
        seen_BHNF = functional.scaled_dot_product_attention(query, key, value)
        x_BNF = x_BNF + self.dropout(self.output(seen_BHNF.transpose(1, 2).flatten(2)))
        return x_BNF + self.dropout(self.feed_forward(x_BNF))


class _SideEncoder(nn.Module):
    """Columns beside the window, brought to one scale, and whether each is known, through one layer.

    The scale is that of a batch norm, but of the known values alone.
    """

    def __init__(self, n_columns: int, width: int) -> None:
        super().__init__()
        self.mean_M: torch.Tensor
        self.variance_M: torch.Tensor
        self.register_buffer("mean_M", torch.zeros(n_columns))
        self.register_buffer("variance_M", torch.ones(n_columns))
        self.linear = nn.Linear(2 * n_columns, width)

    def forward(self, side_BM: torch.Tensor) -> torch.Tensor:
        unknown_BM = torch.isnan(side_BM)
        known_BM = (~unknown_BM).to(side_BM.dtype)
        side_BM = side_BM.masked_fill(unknown_BM, 0.0)
        mean_M, variance_M = self.mean_M, self.variance_M
        if self.training:
            n_M = known_BM.sum(dim=0)
            mean_M = side_BM.sum(dim=0) / n_M.clamp_min(1)
            variance_M = ((side_BM - mean_M).square() * known_BM).sum(dim=0) / n_M.clamp_min(1)
            several_M = n_M > 1
            for held_M, own_M in ((self.mean_M, mean_M), (self.variance_M, variance_M)):
                held_M.lerp_(torch.where(several_M, own_M, held_M), MOMENTUM)
        scaled_BM = (side_BM - mean_M) * torch.rsqrt(variance_M + TINY) * known_BM
        return torch.relu(self.linear(torch.cat([scaled_BM, known_BM], dim=1)))


@reads(side=True)
class EcgTransnet(nn.Module):
    """A residual convolutional tokeniser, a Transformer encoder, pooling and a classifier.

    A token is made of every eighth sample. Positions are sinusoids of the time from the window's
    centre in s, so that a window of any length and rate has its own. What the classifier reads is the
    mean of all tokens, the mean of those around the centre (for beats, that is the beat which is
    meant), and the side inputs if there are any. 12 leads and 5 outputs make 610,885 parameters.

    Parameters
    ----------
    inputs
        Leads, times and rate of a window, and the columns beside it.
    n_outputs
        Number of labels.
    widths
        Filters of the tokeniser's residual stages, each of which halves the rate but for the first;
        the stem before them halves it too. The last is the width of a token.
    kernel
        Of the tokeniser's convolutions; odd.
    n_layers, n_heads
        Of the encoder.
    hidden
        Width between a layer's two linear ones.
    side_width
        Features that are made of the side inputs.
    centre_s
        Deviation (s) of the Gaussian that weighs the tokens around the centre.
    dropout
        In the encoder and before the last layer.

    Notes
    -----
    Source: one of the project's five reference systems (a CNN-Transformer on MIT-BIH: a 1-D ResNet as
    tokeniser, a Transformer encoder, global average pooling; windows of several beats, band-pass
    0.5-35 Hz and z-score per record). Differs from the source by the second mean around the centre,
    positions that count from it, and side inputs; by sizes, which are not stated there; and by layer
    norms that stand before each part (Xiong et al. 2020) instead of after it (Vaswani et al. 2017).
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        widths: tuple[int, ...] = (32, 64, 128),
        kernel: int = 5,
        n_layers: int = 3,
        n_heads: int = 4,
        hidden: int = 256,
        side_width: int = 32,
        centre_s: float = 0.15,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        width = widths[-1]
        if width % n_heads or width % 2:
            raise ValueError(
                f"widths: expected the last even and a multiple of n_heads ({n_heads}), came {width}"
            )
        self.fs, self.centre_s = inputs.fs, centre_s
        self.stride = 2 ** len(widths)
        self.tokeniser = nn.Sequential(
            nn.Conv1d(
                len(inputs.leads), widths[0], 2 * kernel + 1, stride=2, padding=kernel, bias=False
            ),
            nn.BatchNorm1d(widths[0]),
            nn.ReLU(),
            ResidualBlock1d(widths[0], widths[0], (kernel, kernel)),
            *(
                ResidualBlock1d(n_in, n_out, (kernel, kernel), stride=2)
                for n_in, n_out in itertools.pairwise(widths)
            ),
        )
        self.encoder = nn.Sequential(
            *(_Layer(width, n_heads, hidden, dropout) for _ in range(n_layers)), nn.LayerNorm(width)
        )
        n_columns = len(inputs.side)
        self.side = _SideEncoder(n_columns, side_width) if n_columns else None
        self.head = nn.Sequential(
            nn.Linear(2 * width + (side_width if n_columns else 0), width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, n_outputs),
        )

    def forward(self, x_BLT: torch.Tensor, side_BM: torch.Tensor | None = None) -> torch.Tensor:
        """Give logits, records by labels.

        Raises
        ------
        ValueError
            If there are side inputs and no branch for them, or the other way round.
        """
        check_side(side_BM, self.side is not None)
        token_BNF = self.tokeniser(x_BLT).transpose(1, 2)
        number_N = torch.arange(token_BNF.shape[1], device=x_BLT.device)
        # Seconds from the window's centre, where a beat's R peak stands.
        time_N = (number_N * self.stride - x_BLT.shape[2] // 2) / self.fs
        token_BNF = self.encoder(token_BNF + position_embedding(time_N, token_BNF.shape[2]))
        near_N = torch.softmax(-0.5 * (time_N / self.centre_s) ** 2, dim=0)
        features = [token_BNF.mean(dim=1), near_N @ token_BNF]
        if self.side is not None:
            features.append(self.side(side_BM))
        return self.head(torch.cat(features, dim=1))


def position_embedding(time_N: torch.Tensor, n_features: int) -> torch.Tensor:
    """Give sines and cosines of times (s) at geometrically spaced wavelengths: times by features."""
    longest, shortest = WAVELENGTHS_S[1], WAVELENGTHS_S[0]
    share = torch.linspace(0, 1, n_features // 2, device=time_N.device)
    angle_NF = 2 * torch.pi * time_N[:, None] / (longest * (shortest / longest) ** share)
    return torch.cat([angle_NF.sin(), angle_NF.cos()], dim=1)
