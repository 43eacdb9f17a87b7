"""Signals and their images, each through its own encoder, classified together.

Legend: B record, L lead, T time, F feature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.image_alexnet import alexnet_features
from rayecg.models.image_cnn import ImageFeatures, three_lead_images
from rayecg.models.image_resnet import resnet18_features
from rayecg.models.image_vgg import vgg_features
from rayecg.models.recurrent import RecurrentEncoder
from rayecg.models.simple_cnn import ConvolutionEncoder

_IMAGE_ENCODERS: dict[str, Callable[[ModelInputs], ImageFeatures]] = {
    "alexnet": alexnet_features,
    "resnet18": resnet18_features,
    "vgg": vgg_features,
}


@three_lead_images
class JointFusion(nn.Module):
    """A signal encoder and an image encoder side by side, and a small head over both.

    3 leads and 5 outputs make 11,807,045 parameters, at any size of the images.

    Parameters
    ----------
    inputs
        Leads and times of a window, and what images are made of them.
    n_outputs
        Number of labels.
    signal_encoder
        "bilstm" and "gru" as the architectures of these names, "cnn1d" as `simple_cnn1d`.
    image_encoder
        "resnet18", "alexnet" or "vgg", as the architectures of these names.
    hidden, n_layers
        Features of a direction of the recurrent encoders, and their layers.
    width
        Of the head.
    dropout
        Between recurrent layers, and before the last layer.

    Raises
    ------
    ValueError
        If there is no such encoder.

    Notes
    -----
    Source: the fusion of one of the project's five reference systems (multi-modal signals and
    images): both encoders' features concatenated and classified. Differs from the source by nothing
    that is known; which encoders are joined, and the width of the head, are not stated there.
    """

    def __init__(
        self,
        inputs: ModelInputs,
        n_outputs: int,
        signal_encoder: Literal["bilstm", "gru", "cnn1d"] = "bilstm",
        image_encoder: Literal["resnet18", "alexnet", "vgg"] = "resnet18",
        hidden: int = 128,
        n_layers: int = 2,
        width: int = 128,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if image_encoder not in _IMAGE_ENCODERS:
            known = ", ".join(_IMAGE_ENCODERS)
            raise ValueError(f"image_encoder: expected one of {known}, came {image_encoder}")
        if signal_encoder not in ("bilstm", "gru", "cnn1d"):
            raise ValueError(
                f"signal_encoder: expected one of bilstm, gru, cnn1d, came {signal_encoder}"
            )
        n_leads = len(inputs.leads)
        if signal_encoder == "cnn1d":
            self.signal: ConvolutionEncoder | RecurrentEncoder = ConvolutionEncoder(n_leads)
        else:
            two_ways = signal_encoder == "bilstm"
            self.signal = RecurrentEncoder(
                n_leads,
                "lstm" if two_ways else "gru",
                two_ways,
                hidden=hidden,
                n_layers=n_layers,
                dropout=dropout,
            )
        self.image = _IMAGE_ENCODERS[image_encoder](inputs)
        self.head = nn.Sequential(
            nn.Linear(self.signal.n_features + self.image.n_features, width),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(width, n_outputs),
        )

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(torch.cat([self.signal(x_BLT), self.image(x_BLT)], dim=1))
