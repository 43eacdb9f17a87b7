"""What an untrained network gives: a frozen random encoder with a linear probe.

Legend: B record, L lead, T time, F feature.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.pooling import mean_and_max


class RandomEncoder(nn.Module):
    """Convolutions with the weights they were born with; a linear layer learns from their output.

    The seed of the run draws the encoder, and the checkpoint holds it, but it is not trained: the
    number of parameters counts the probe alone (5,125 for 5 outputs, whatever the leads).

    Parameters
    ----------
    inputs
        Leads and times of a window.
    n_outputs
        Number of labels.
    widths
        Filters of the convolutions, each of which halves the rate.
    kernel
        Of all of them.

    Notes
    -----
    Source: random convolutional features (Jarrett et al. 2009, ICCV; Saxe et al. 2011, ICML) under
    a linear probe (Alain and Bengio 2017), the yardstick that what is learnt must beat. Weights are
    drawn after He et al. 2015 (ICCV), which keeps the size of the signal through the layers without
    normalising it, so that amplitudes reach the probe. Mean and maximum over time are standardised
    by the statistics of the training batches, so that one learning rate suits all. Differs from the
    source by its layers, which are our choice.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        kernel: int = 7,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        n_in = len(inputs.leads)
        for width in widths:
            conv = nn.Conv1d(n_in, width, kernel, stride=2, padding=kernel // 2, bias=False)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            layers += [conv, nn.ReLU(inplace=True)]
            n_in = width
        self.encoder = nn.Sequential(*layers).requires_grad_(False)
        self.standardise = nn.BatchNorm1d(2 * n_in, affine=False)
        self.probe = nn.Linear(2 * n_in, n_outputs)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.probe(self.standardise(mean_and_max(self.encoder(x_BLT))))
