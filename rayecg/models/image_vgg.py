"""VGG over images of signals."""

from __future__ import annotations

from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.image_cnn import ImageClassifier, ImageFeatures, conv_norm, three_lead_images

#: Widths of the convolutions of each stage: configuration A.
_STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


def vgg_features(inputs: ModelInputs) -> ImageFeatures:
    """Give the eight convolutions of `vgg` and the mean over their last map."""
    layers: list[nn.Module] = []
    width = len(inputs.leads)
    for stage in _STAGES:
        for n_out in stage:
            layers += [*conv_norm(width, n_out, 3), nn.ReLU(inplace=True)]
            width = n_out
        # Rounding up leaves a pixel of the smallest images.
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    return ImageFeatures(inputs, nn.Sequential(*layers), width)


@three_lead_images
def vgg(inputs: ModelInputs, n_outputs: int, dropout: float = 0.5) -> ImageClassifier:
    """VGG-11 with batch norm on images of the leads.

    3 leads and 5 outputs make 9,225,797 parameters, at any size of the images.

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
    Source: Simonyan and Zisserman 2015 (ICLR), configuration A, in one of the project's five
    reference systems (multi-modal signals and images), which does not state the depth. Differs from
    the source by batch norm after every convolution, and by the mean over the last map and one linear
    layer in place of three, which would have 120 million parameters.
    """
    return ImageClassifier(vgg_features(inputs), n_outputs, dropout)
