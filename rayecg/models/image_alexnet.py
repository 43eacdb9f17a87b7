"""AlexNet over images of signals, plain and with attention to channels, places, or both.

Legend: B record, F feature, P place (a pixel of a map); H, W rows and columns of an image.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from rayecg.models.catalogue import ModelInputs
from rayecg.models.image_cnn import ImageClassifier, ImageFeatures, conv_norm, three_lead_images
from rayecg.models.pooling import gate

#: Makes the attention after a stage of so many features.
Attention = Callable[[int], nn.Module]


#: Pixels a side that the first convolution needs.
SMALLEST = 7


def _reduced(n_features: int, reduction: int) -> int:
    if not 1 <= reduction <= n_features:
        raise ValueError(f"reduction: expected 1 to {n_features}, came {reduction}")
    return n_features // reduction


class ChannelAttention(nn.Module):
    """Weigh each channel by what its mean and its maximum over all places say together.

    Source: Woo et al. 2018 (ECCV, CBAM): a perceptron with one hidden layer, reduction 16, shared by
    both poolings.
    """

    def __init__(self, n_features: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = _reduced(n_features, reduction)
        self.perceptron = nn.Sequential(
            nn.Linear(n_features, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, n_features, bias=False),
        )

    def forward(self, x_BFHW: torch.Tensor) -> torch.Tensor:
        """Give the map, weighed."""
        mean_BF, peak_BF = x_BFHW.mean(dim=(2, 3)), x_BFHW.amax(dim=(2, 3))
        weight_BF = gate(self.perceptron(mean_BF) + self.perceptron(peak_BF))
        return x_BFHW * weight_BF[:, :, None, None]


class SpatialAttention(nn.Module):
    """Weigh each place by what the mean and the maximum over all channels say around it.

    Source: Woo et al. 2018 (ECCV, CBAM): one convolution with kernel 7.
    """

    def __init__(self, kernel: int = 7) -> None:
        super().__init__()
        if kernel % 2 == 0:  # what it gives would not fit the map
            raise ValueError(f"kernel: expected an odd one, came {kernel}")
        self.conv = nn.Conv2d(2, 1, kernel, padding=kernel // 2, bias=False)

    def forward(self, x_BFHW: torch.Tensor) -> torch.Tensor:
        """Give the map, weighed."""
        pooled_B2HW = torch.stack([x_BFHW.mean(dim=1), x_BFHW.amax(dim=1)], dim=1)
        return x_BFHW * gate(self.conv(pooled_B2HW))


class SelfAttention(nn.Module):
    """Add to each place what the places most like it hold; starts at adding nothing.

    Source: Zhang et al. 2019 (ICML, SAGAN): queries and keys of an eighth of the width, a learnt share
    of the result that starts at 0.
    """

    def __init__(self, n_features: int, reduction: int = 8) -> None:
        super().__init__()
        narrow = _reduced(n_features, reduction)
        self.query = nn.Conv2d(n_features, narrow, 1)
        self.key = nn.Conv2d(n_features, narrow, 1)
        self.value = nn.Conv2d(n_features, n_features, 1)
        self.share = nn.Parameter(torch.zeros(1))

    def forward(self, x_BFHW: torch.Tensor) -> torch.Tensor:
        """Give the map with what was found added."""
        query_BFP, key_BFP, value_BFP = (
            layer(x_BFHW).flatten(2) for layer in (self.query, self.key, self.value)
        )
        weight_BPP = (query_BFP.mT @ key_BFP).softmax(dim=2)
        found_BFP = value_BFP @ weight_BPP.mT
        return x_BFHW + self.share * found_BFP.view_as(x_BFHW)


def alexnet_features(
    inputs: ModelInputs, attention: Attention | None = None, after: tuple[int, ...] = (0, 1, 2)
) -> ImageFeatures:
    """Give the five convolutions of `alexnet` and the mean over their last map.

    Parameters
    ----------
    inputs
        Leads and times of a window, and what images are made of them.
    attention
        Makes the attention of a stage.
    after
        Stages whose last map it reads, before pooling.

    Raises
    ------
    ValueError
        If the images are too small for the first convolution.
    """
    if inputs.image is not None and inputs.image.size < SMALLEST:
        raise ValueError(f"image.size: expected {SMALLEST} or more, came {inputs.image.size}")
    n_leads = len(inputs.leads)
    stages = (
        conv_norm(n_leads, 64, 11, stride=4, padding=2),
        conv_norm(64, 192, 5),
        nn.Sequential(
            *conv_norm(192, 384, 3),
            nn.ReLU(inplace=True),
            *conv_norm(384, 256, 3),
            nn.ReLU(inplace=True),
            *conv_norm(256, 256, 3),
        ),
    )
    layers: list[nn.Module] = []
    for i, (stage, width) in enumerate(zip(stages, (64, 192, 256), strict=True)):
        layers += [*stage, nn.ReLU(inplace=True)]
        if attention is not None and i in after:
            layers.append(attention(width))
        # The padding leaves a pixel of the smallest images.
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return ImageFeatures(inputs, nn.Sequential(*layers), 256)


@three_lead_images
def alexnet(inputs: ModelInputs, n_outputs: int, dropout: float = 0.5) -> ImageClassifier:
    """AlexNet on images of the leads.

    3 leads and 5 outputs make 2,472,133 parameters, at any size of the images.

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
    Source: Krizhevsky, Sutskever and Hinton 2012 (NIPS), with the widths of Krizhevsky 2014
    (arXiv:1404.5997), in one of the project's five reference systems (multi-modal signals and
    images). Differs from the source by batch norm in place of local response normalisation, pooling
    with padding, which images of 32 pixels need, and the mean over the last map and one linear layer
    in place of three, which would have 55 million parameters.
    """
    return ImageClassifier(alexnet_features(inputs), n_outputs, dropout)


@three_lead_images
def alexnet_channel(
    inputs: ModelInputs, n_outputs: int, dropout: float = 0.5, reduction: int = 16
) -> ImageClassifier:
    """`alexnet` with channel attention.

    3 leads and 5 outputs make 2,485,445 parameters.

    Source: as `alexnet` and `ChannelAttention`. Differs from the source by the same; where attention
    stands is not stated there: here before each of the three poolings.
    """
    features = alexnet_features(inputs, lambda width: ChannelAttention(width, reduction))
    return ImageClassifier(features, n_outputs, dropout)


@three_lead_images
def alexnet_spatial(
    inputs: ModelInputs, n_outputs: int, dropout: float = 0.5, kernel: int = 7
) -> ImageClassifier:
    """`alexnet` with spatial attention.

    3 leads and 5 outputs make 2,472,427 parameters.

    Source: as `alexnet` and `SpatialAttention`. Differs from the source by the same; where attention
    stands is not stated there: here before each of the three poolings.
    """
    features = alexnet_features(inputs, lambda _: SpatialAttention(kernel))
    return ImageClassifier(features, n_outputs, dropout)


@three_lead_images
def alexnet_cbam(
    inputs: ModelInputs,
    n_outputs: int,
    dropout: float = 0.5,
    reduction: int = 16,
    kernel: int = 7,
) -> ImageClassifier:
    """`alexnet` with channel attention, then spatial attention.

    3 leads and 5 outputs make 2,485,739 parameters.

    Source: as `alexnet`, and Woo et al. 2018 for the order of the two. Differs from the source by the
    same; where attention stands is not stated there: here before each of the three poolings.
    """

    def attention(width: int) -> nn.Module:
        return nn.Sequential(ChannelAttention(width, reduction), SpatialAttention(kernel))

    return ImageClassifier(alexnet_features(inputs, attention), n_outputs, dropout)


@three_lead_images
def alexnet_self_attention(
    inputs: ModelInputs, n_outputs: int, dropout: float = 0.5, reduction: int = 8
) -> ImageClassifier:
    """`alexnet` with self-attention among the places of the last map before its pooling.

    3 leads and 5 outputs make 2,554,374 parameters.

    Source: as `alexnet` and `SelfAttention`. Differs from the source by the same; the form and the
    place of attention are not stated there.
    """
    features = alexnet_features(inputs, lambda width: SelfAttention(width, reduction), after=(2,))
    return ImageClassifier(features, n_outputs, dropout)
