"""2-D networks: sizes, parts, attention, and what goes into them."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn

from rayecg.core.experiment import STANDARD_LEADS, ImageSettings
from rayecg.models.catalogue import ModelInputs, count_parameters
from rayecg.models.image_alexnet import (
    ChannelAttention,
    SelfAttention,
    SpatialAttention,
    alexnet,
    alexnet_cbam,
    alexnet_channel,
    alexnet_self_attention,
    alexnet_spatial,
)
from rayecg.models.image_resnet import resnet18
from rayecg.models.image_vgg import vgg
from rayecg.models.joint_fusion import JointFusion
from rayecg.models.simple_cnn import SimpleCnn2d

Maker = Callable[..., nn.Module]

THREE = ("I", "II", "V2")
#: Trainable parameters for three leads and five labels, whatever the size of the images.
PARAMETERS: dict[Maker, int] = {
    alexnet: 2_472_133,
    alexnet_channel: 2_485_445,
    alexnet_spatial: 2_472_427,
    alexnet_cbam: 2_485_739,
    alexnet_self_attention: 2_554_374,
    vgg: 9_225_797,
    resnet18: 11_179_077,
    JointFusion: 11_807_045,
}
every_network = pytest.mark.parametrize("make", PARAMETERS, ids=lambda make: make.__name__)


def inputs(size: int = 32, kind: str = "gasf", leads: tuple[str, ...] = THREE) -> ModelInputs:
    return ModelInputs(leads, 250, 100, image=ImageSettings(kind, size))  # type: ignore[arg-type]


def built(make: Maker, *arguments: object, **hyperparameters: object) -> nn.Module:
    torch.manual_seed(0)
    return make(*arguments, **hyperparameters).eval()


@every_network
def test_networks_are_as_large_as_documented(make):
    assert count_parameters(built(make, inputs(), 5)) == PARAMETERS[make]
    assert count_parameters(built(make, inputs(224), 5)) == PARAMETERS[make]
    assert f"3 leads and 5 outputs make {PARAMETERS[make]:,} parameters" in (make.__doc__ or "")


@every_network
def test_networks_read_three_leads_and_their_images(make):
    declared = make.reads.input  # type: ignore[attr-defined]
    assert declared.leads == THREE
    assert declared.image == ImageSettings("gasf", 224)
    assert (declared.n_times, declared.fs) == (1000, 100)


@every_network
@pytest.mark.parametrize("size", [32, 33, 64, 224])
def test_networks_read_images_of_many_sizes(make, size):
    with torch.inference_mode():
        logits_BC = built(make, inputs(size), 5)(torch.randn(2, 3, 250))
    assert logits_BC.shape == (2, 5)
    assert torch.isfinite(logits_BC).all()


@every_network
@pytest.mark.parametrize("kind", get_args(get_type_hints(ImageSettings)["kind"]))
def test_networks_read_every_kind_of_image(make, kind):
    model = built(make, inputs(kind=kind, leads=STANDARD_LEADS), 1)
    with torch.inference_mode():
        logits_BC = model(torch.randn(2, 12, 250))
    assert logits_BC.shape == (2, 1)
    assert torch.isfinite(logits_BC).all()


@every_network
def test_networks_need_images_that_fit(make):
    with pytest.raises(ValueError, match="image: expected a kind and a size, came none"):
        make(ModelInputs(THREE, 250, 100), 5)
    with pytest.raises(ValueError, match=r"image\.size: expected at most the window's 250 samples"):
        make(inputs(251), 5)


@pytest.mark.parametrize("make", [make for make in PARAMETERS if make.__name__.startswith("alex")])
def test_alexnet_needs_images_of_7_pixels(make):
    assert built(make, inputs(7), 5)(torch.randn(2, 3, 250)).shape == (2, 5)
    for size in (1, 4, 6):
        with pytest.raises(ValueError, match=rf"image\.size: expected 7 or more, came {size}"):
            make(inputs(size), 5)


@pytest.mark.parametrize(
    ("make", "hyperparameters", "expected"),
    [
        (alexnet_spatial, {"kernel": 4}, "kernel: expected an odd one, came 4"),
        (alexnet_cbam, {"kernel": 4}, "kernel: expected an odd one, came 4"),
        (alexnet_channel, {"reduction": 0}, "reduction: expected 1 to 64, came 0"),
        (alexnet_channel, {"reduction": 128}, "reduction: expected 1 to 64, came 128"),
        (alexnet_cbam, {"reduction": -1}, "reduction: expected 1 to 64, came -1"),
        (alexnet_self_attention, {"reduction": 512}, "reduction: expected 1 to 256, came 512"),
    ],
)
def test_attention_that_does_not_fit_is_refused(make, hyperparameters, expected):
    with pytest.raises(ValueError, match=expected):
        make(inputs(), 5, **hyperparameters)


def weighted_layers(model: nn.Module) -> int:
    """Count the layers that a network's name counts: without shortcuts and attention."""
    return sum(
        isinstance(module, (nn.Conv2d, nn.Linear))
        for path, module in model.named_modules()
        if "shortcut" not in path
    )


def test_networks_are_as_deep_as_their_names_say():
    assert weighted_layers(built(resnet18, inputs(), 5)) == 18
    # One layer classifies where the sources have three.
    assert weighted_layers(built(vgg, inputs(), 5)) == 11 - 2
    assert weighted_layers(built(alexnet, inputs(), 5)) == 8 - 2


@pytest.mark.parametrize(
    ("make", "kind", "n_parts"),
    [
        (alexnet_channel, ChannelAttention, 3),
        (alexnet_spatial, SpatialAttention, 3),
        (alexnet_cbam, ChannelAttention, 3),
        (alexnet_cbam, SpatialAttention, 3),
        (alexnet_self_attention, SelfAttention, 1),
    ],
)
def test_attention_changes_what_a_network_says(make, kind, n_parts):
    model = built(make, inputs(), 5)
    x_BLT = torch.randn(2, 3, 250)
    parts = [part for part in model.modules() if isinstance(part, kind)]
    assert len(parts) == n_parts
    with torch.inference_mode():
        for part in parts:
            if isinstance(part, SelfAttention):
                part.share.fill_(0.5)
            attended_BC = model(x_BLT)
            for parameter in part.parameters():
                parameter.zero_()
            assert not torch.allclose(model(x_BLT), attended_BC, rtol=1e-6, atol=0)


def test_channel_attention_weighs_channels_by_mean_and_maximum():
    torch.manual_seed(0)
    part = ChannelAttention(32)
    x_BFHW = torch.rand(2, 32, 5, 4)
    weight_BFHW = (part(x_BFHW) / x_BFHW).detach()
    assert weight_BFHW.amin() > 0
    assert weight_BFHW.amax() < 1
    torch.testing.assert_close(weight_BFHW, weight_BFHW[:, :, :1, :1].expand_as(weight_BFHW))
    first, _, second = part.perceptron
    expected_BF = torch.zeros(2, 32)
    for pooled_BF in (x_BFHW.mean(dim=(2, 3)), x_BFHW.amax(dim=(2, 3))):
        expected_BF += (pooled_BF @ first.weight.T).clamp_min(0) @ second.weight.T
    torch.testing.assert_close(weight_BFHW[:, :, 0, 0], expected_BF.sigmoid().detach())
    assert first.weight.shape == (2, 32)  # a reduction of 16


def test_spatial_attention_weighs_places_by_their_surroundings():
    torch.manual_seed(0)
    part = SpatialAttention()
    x_BFHW = torch.rand(1, 8, 20, 20)
    weight_BFHW = (part(x_BFHW) / x_BFHW).detach()
    assert weight_BFHW.amin() > 0
    assert weight_BFHW.amax() < 1
    torch.testing.assert_close(weight_BFHW, weight_BFHW[:, :1].expand_as(weight_BFHW))
    moved_BFHW = x_BFHW.clone()
    moved_BFHW[0, 3, 10, 10] += 5
    changed_HW = ((part(moved_BFHW) / moved_BFHW).detach() - weight_BFHW)[0, 0].abs() > 1e-5
    # Kernel 7 sees three places to each side.
    rows, columns = np.nonzero(changed_HW.numpy())
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (7, 13, 7, 13)


def test_self_attention_adds_what_similar_places_hold():
    torch.manual_seed(0)
    part = SelfAttention(16)
    x_BFHW = torch.randn(2, 16, 3, 5)
    assert torch.equal(part(x_BFHW), x_BFHW)  # its share starts at 0
    part.share.data.fill_(0.7)

    def each_place(layer: nn.Conv2d, x_FP: torch.Tensor) -> torch.Tensor:
        return layer.weight[:, :, 0, 0] @ x_FP + layer.bias[:, None]  # type: ignore[index]

    for x_FHW, found_FHW in zip(x_BFHW, part(x_BFHW), strict=True):
        x_FP = x_FHW.flatten(1)
        query_FP, key_FP, value_FP = (
            each_place(layer, x_FP) for layer in (part.query, part.key, part.value)
        )
        for p in range(15):
            likeness_P = torch.stack([query_FP[:, p] @ key_FP[:, other] for other in range(15)])
            expected_F = x_FP[:, p] + 0.7 * value_FP @ likeness_P.softmax(dim=0)
            torch.testing.assert_close(found_FHW.flatten(1)[:, p], expected_F)


@pytest.mark.parametrize("make", [ChannelAttention, lambda _: SpatialAttention(), SelfAttention])
def test_attention_does_not_see_the_batch(make):
    """Also not where a map of 7 x 7 places leaves vector registers half full."""
    part = built(make, 64)
    x_BFHW = torch.randn(5, 64, 7, 7)
    with torch.inference_mode():
        assert torch.equal(part(x_BFHW.flip(0)).flip(0), part(x_BFHW))


@pytest.mark.parametrize("signal_encoder", ["bilstm", "gru", "cnn1d"])
@pytest.mark.parametrize("image_encoder", ["resnet18", "alexnet", "vgg"])
def test_fusion_rests_on_the_signal_and_on_its_images(signal_encoder, image_encoder):
    model = built(
        JointFusion, inputs(), 5, signal_encoder=signal_encoder, image_encoder=image_encoder
    )
    n_signal = {"bilstm": 256, "gru": 128, "cnn1d": 128}[signal_encoder]
    n_image = {"resnet18": 512, "alexnet": 256, "vgg": 512}[image_encoder]
    assert (model.signal.n_features, model.image.n_features) == (n_signal, n_image)
    x_BLT = torch.randn(2, 3, 250)
    with torch.inference_mode():
        both_BC = model(x_BLT)
        assert both_BC.shape == (2, 5)
        # Angular fields do not see the scale of a signal, the signal encoder does.
        assert torch.allclose(model.image(4 * x_BLT), model.image(x_BLT), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(4 * x_BLT), both_BC, rtol=1e-3)
        kept = model.head[0].weight.clone()
        for part in (slice(None, n_signal), slice(n_signal, None)):
            model.head[0].weight[:, part] = 0
            assert not torch.allclose(model(x_BLT), both_BC, rtol=1e-3)
            model.head[0].weight.copy_(kept)


def test_fusion_refuses_encoders_it_does_not_know():
    with pytest.raises(
        ValueError, match="signal_encoder: expected one of bilstm, gru, cnn1d, came"
    ):
        JointFusion(inputs(), 5, signal_encoder="transformer")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="image_encoder: expected one of alexnet, resnet18, vgg"):
        JointFusion(inputs(), 5, image_encoder="resnet50")  # type: ignore[arg-type]


@pytest.mark.parametrize(("n_leads", "n_times"), [(12, 1000), (1, 100), (3, 2200)])
def test_simple_cnn2d_is_the_reference_system(n_leads, n_times):
    model = built(SimpleCnn2d, ModelInputs(STANDARD_LEADS[:n_leads], n_times, 100), 5)
    assert count_parameters(model) == 6_613
    assert model(torch.randn(2, n_leads, n_times)).shape == (2, 5)


def test_simple_cnn2d_sees_the_record_as_one_picture():
    model = built(SimpleCnn2d, ModelInputs(("I", "II"), 512, 100), 5)
    seen: list[torch.Tensor] = []
    model.features.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x_BLT = torch.stack([torch.arange(512.0), torch.zeros(512)])[None]
    model(x_BLT)
    assert seen[0].shape == (1, 1, 64, 256)
    # Half the rate: a column averages over samples either side; at the ends it lies inside. Rows fade
    # from lead I to lead II.
    column_W = 2 * torch.arange(256) + 0.5
    share_H = ((63 - 2 * torch.arange(64.0)) / 64 + 0.5).clamp(0, 1)
    expected_HW = share_H[:, None] * column_W
    torch.testing.assert_close(seen[0][0, 0, :, 1:-1], expected_HW[:, 1:-1])


@pytest.mark.parametrize("n_times", [100, 1000, 2200])
def test_simple_cnn2d_sees_every_sample(n_times):
    model = built(SimpleCnn2d, ModelInputs(STANDARD_LEADS, n_times, 100), 5)
    x_BLT = torch.randn(1, 12, n_times, requires_grad=True)
    seen: list[torch.Tensor] = []
    model.features.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(x_BLT)
    seen[0].sum().backward()
    assert (x_BLT.grad > 0).all()
