"""Residual networks over images of signals.

Legend: B record, F feature; H, W rows and columns of an image.
"""

from __future__ import annotations

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.image_cnn import ImageClassifier, ImageFeatures, conv_norm, three_lead_images

_WIDTHS = (64, 128, 256, 512)


class _Block(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            *conv_norm(n_in, n_out, 3, stride), nn.ReLU(inplace=True), *conv_norm(n_out, n_out, 3)
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or n_in != n_out:
            self.shortcut = conv_norm(n_in, n_out, 1, stride)

    def forward(self, x_BFHW: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.convs(x_BFHW) + self.shortcut(x_BFHW))


def resnet18_features(inputs: ModelInputs) -> ImageFeatures:
    """Give the 17 convolutions of `resnet18` and the mean over their last map."""
    layers: list[nn.Module] = [
        *conv_norm(len(inputs.leads), _WIDTHS[0], 7, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, padding=1),
    ]
    width = _WIDTHS[0]
    for stage, n_out in enumerate(_WIDTHS):
        layers += [_Block(width, n_out, 2 if stage else 1), _Block(n_out, n_out, 1)]
        width = n_out
    return ImageFeatures(inputs, nn.Sequential(*layers), width)


@three_lead_images
def resnet18(inputs: ModelInputs, n_outputs: int, dropout: float = 0.0) -> ImageClassifier:
    """ResNet-18 on images of the leads.

    3 leads and 5 outputs make 11,179,077 parameters, at any size of the images.

    Parameters
    ----------
    inputs
        Leads and times of a window, and what images are made of them.
    n_outputs
        Number of labels.
    dropout
        Before the linear layer.

    Notes
    -----
    Source: He, Zhang, Ren and Sun 2016 (CVPR), in one of the project's five reference systems
    (multi-modal signals and images). Differs from the source by projections in place of zero padding
    where the width grows (the paper's option B), and by no weights from photographs.
    """
    return ImageClassifier(resnet18_features(inputs), n_outputs, dropout)
