"""What all 2-D networks share: signals become images inside the network, images become features.

Legend: B record, L lead, T time, F feature; H, W rows and columns of an image.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.core.experiment import ImageSettings
from rayecg.models.catalogue import ModelInputs, reads
from rayecg.signal.images import signal_images

#: What the reference system of signals and images reads: three leads, an image of each.
three_lead_images = reads(leads=("I", "II", "V2"), image=ImageSettings("gasf", 224))


class SignalImages(nn.Module):
    """Windows in, images out, one a lead; no parameters.

    Raises
    ------
    ValueError
        If the inputs say nothing of images, or the images have more pixels a side than the window
        has samples.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        super().__init__()
        if inputs.image is None:
            raise ValueError("image: expected a kind and a size, came none")
        if inputs.image.size > inputs.n_times:
            raise ValueError(
                f"image.size: expected at most the window's {inputs.n_times} samples, "
                f"came {inputs.image.size}"
            )
        self.settings = inputs.image

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give image_BLHW, see `rayecg.signal.images.signal_images`."""
        return signal_images(x_BLT, self.settings)


class ImageFeatures(nn.Module):
    """Images of a window, a 2-D network over them, and the mean over its last map.

    Parameters
    ----------
    inputs
        Leads and times of a window, and what images are made of them.
    network
        Reads image_BLHW, gives a map of `n_features` channels.
    n_features
        Features of a record.
    """

    def __init__(self, inputs: ModelInputs, network: nn.Module, n_features: int) -> None:
        super().__init__()
        self.images = SignalImages(inputs)
        self.network = network
        self.n_features = n_features

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give features, records by `n_features`."""
        return self.network(self.images(x_BLT)).mean(dim=(2, 3))


class ImageClassifier(nn.Module):
    """Features of images, dropout, one linear layer."""

    def __init__(self, features: ImageFeatures, n_outputs: int, dropout: float) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(features.n_features, n_outputs))

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give logits, records by labels."""
        return self.head(self.features(x_BLT))


def conv_norm(
    n_in: int, n_out: int, kernel: int, stride: int = 1, padding: int | None = None
) -> nn.Sequential:
    """Give a convolution without bias and batch norm, its weights drawn for ReLU layers.

    Source of the weights: He et al. 2015 (ICCV), by the number of outputs.
    """
    padding = kernel // 2 if padding is None else padding
    conv = nn.Conv2d(n_in, n_out, kernel, stride, padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(n_out))
