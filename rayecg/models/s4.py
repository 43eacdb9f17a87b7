"""S4: structured state space models, in their diagonal form.

Legend: B record, L lead, T time, F feature, N mode, S direction in time, R real and
imaginary part.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from rayecg.models.catalogue import ModelInputs
from rayecg.models.pooling import gate, steady


class DiagonalStateSpace(nn.Module):
    """A linear state space model for each feature, in both directions of time, as a convolution.

    Each feature has states x that follow `x' = A x + u`, A diagonal, and gives `2 Re(C x) + D u`: a sum
    of damped oscillations. A state per conjugate pair is kept, so `d_state` is twice their number.
    Held between samples (zero-order hold, with a learned step), the model is a convolution with

        K[t] = 2 Re sum_n C_n (exp(step A_n) - 1) / A_n exp(step A_n t),   t = 0, 1, ...

    computed by FFT. Backward in time, the same A with a C of its own begins one sample later, so that
    the present counts once. All parameters are real: complex ones are kept as pairs.
    """

    def __init__(self, n_features: int, d_state: int, steps: tuple[float, float]) -> None:
        super().__init__()
        if d_state < 2 or d_state % 2:
            raise ValueError(f"d_state: expected an even number, 2 or more, came {d_state}")
        low, high = (math.log(step) for step in steps)
        n_modes = d_state // 2
        self.log_step_F = nn.Parameter(low + (high - low) * torch.rand(n_features))
        # S4D-Inv: the closed form that comes close to the frequencies of HiPPO-LegS.
        order_N = torch.arange(n_modes)
        frequency_N = d_state / math.pi * (d_state / (2 * order_N + 1) - 1)
        self.log_decay_FN = nn.Parameter(torch.full((n_features, n_modes), math.log(0.5)))
        self.frequency_FN = nn.Parameter(frequency_N.repeat(n_features, 1))
        self.output_SFNR = nn.Parameter(torch.randn(2, n_features, n_modes, 2) * 0.5**0.5)
        self.direct_F = nn.Parameter(torch.randn(n_features))
        for parameter in self.parameters():
            parameter.no_decay = True  # type: ignore[attr-defined]  # as the source trains them

    def kernels(self, n_times: int) -> torch.Tensor:
        """Give the impulse responses forward and backward: two by features by `n_times`."""
        step_F1 = self.log_step_F.exp()[:, None]
        a_FN = torch.complex(-self.log_decay_FN.exp(), self.frequency_FN)
        weight_SFN = torch.view_as_complex(self.output_SFNR) * torch.expm1(step_F1 * a_FN) / a_FN
        times_T = torch.arange(n_times, device=a_FN.device)
        modes_FNT = torch.exp((step_F1 * a_FN)[:, :, None] * times_T)
        return 2 * torch.einsum("sfn,fnt->sft", weight_SFN, modes_FNT).real

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        """Filter every feature of a signal by its own model, in the type of the parameters."""
        n_times = x_BFT.shape[2]
        # Long enough that neither direction comes round to the other end.
        n_fft = 1 << (2 * n_times - 1).bit_length()
        # No FFT is defined for the short types of mixed precision.
        x_BFT = x_BFT.to(self.direct_F.dtype)
        forward_FT, backward_FT = self.kernels(n_times)
        kernel_FT = functional.pad(forward_FT, (0, n_fft - n_times))
        kernel_FT = kernel_FT + functional.pad(backward_FT.flip(1), (n_fft - n_times, 0))
        spectrum = _product(torch.fft.rfft(x_BFT, n_fft), torch.fft.rfft(kernel_FT))
        y_BFT = torch.fft.irfft(spectrum, n_fft)[:, :, :n_times]
        return y_BFT + self.direct_F[:, None] * x_BFT


def _product(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Multiply complex numbers by real arithmetic, whose bits are the same at any place in a batch."""
    return torch.complex(
        first.real * second.real - first.imag * second.imag,
        first.real * second.imag + first.imag * second.real,
    )


class _Layer(nn.Module):
    """State space, GELU, a gated linear unit over the features, residual sum, layer norm."""

    def __init__(
        self, d_model: int, d_state: int, steps: tuple[float, float], dropout: float, prenorm: bool
    ) -> None:
        super().__init__()
        self.space = DiagonalStateSpace(d_model, d_state, steps)
        self.mix = nn.Conv1d(d_model, 2 * d_model, 1)
        self.norm = nn.LayerNorm(d_model)
        # Whole features are dropped, as a signal's neighbours in time tell the same.
        self.dropout = nn.Dropout1d(dropout)
        self.prenorm = prenorm

    def forward(self, x_BFT: torch.Tensor) -> torch.Tensor:
        inner_BFT = self.space(self._normed(x_BFT) if self.prenorm else x_BFT)
        inner_BFT = self.dropout(steady(functional.gelu, inner_BFT))
        value_BFT, logit_BFT = self.mix(inner_BFT).chunk(2, dim=1)
        x_BFT = x_BFT + self.dropout(value_BFT * gate(logit_BFT))
        return x_BFT if self.prenorm else self._normed(x_BFT)

    def _normed(self, x_BFT: torch.Tensor) -> torch.Tensor:
        return self.norm(x_BFT.transpose(1, 2)).transpose(1, 2)


class S4(nn.Module):
    """Stacked bidirectional state space layers, averaged over time.

    12 leads and 5 outputs make 2,167,813 parameters.

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    d_model
        Width: so many features, each with its own state space model in every layer.
    d_state
        Size of a state, counting both of each conjugate pair: half as many oscillations.
    n_layers
        How many layers.
    dropout
        Share of the features that is dropped, twice in each layer.
    prenorm
        Whether the layer norm stands before the state space model, or after the residual sum.
    steps
        Between what steps (time constants of the state, per sample) those of the features are drawn,
        evenly on a logarithmic scale.

    Notes
    -----
    Source: Mehari and Strodthoff 2023 (Towards quantitative precision for ECG analysis: leveraging
    state space models, self-supervision and patient metadata, IEEE JBHI), after Gu et al. 2022
    (Efficiently modeling long sequences with structured state spaces, ICLR). Differs from the source
    by a diagonal state matrix (S4D with S4D-Inv frequencies; Gu et al. 2022, On the parameterization
    and initialization of diagonal state space models, NeurIPS) where that has a diagonal plus low-rank
    one of HiPPO-LegS, and by an input weight of 1, which C takes up.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        d_model: int = 512,
        d_state: int = 8,
        n_layers: int = 4,
        dropout: float = 0.2,
        prenorm: bool = False,
        steps: tuple[float, float] = (0.001, 0.1),
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv1d(len(inputs.leads), d_model, 1)
        self.layers = nn.Sequential(
            *(_Layer(d_model, d_state, steps, dropout, prenorm) for _ in range(n_layers))
        )
        self.head = nn.Linear(d_model, n_outputs)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.layers(self.encoder(x_BLT)).mean(dim=2))
