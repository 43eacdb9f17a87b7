"""Images of signals: equal to those of `pyts`, true to their definitions, each by itself."""

from __future__ import annotations

from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from rayecg.core.experiment import STANDARD_LEADS, ImageSettings
from rayecg.models.catalogue import ModelInputs
from rayecg.models.image_cnn import SignalImages
from rayecg.signal import images
from rayecg.signal.images import signal_images

KINDS = get_args(get_type_hints(ImageSettings)["kind"])
every_kind = pytest.mark.parametrize("kind", KINDS)


def walks(*shape: int, seed: int = 0) -> torch.Tensor:
    steps = np.random.default_rng(seed).normal(size=shape)
    return torch.from_numpy(steps.cumsum(axis=-1).astype(np.float32) * 0.1)


def by_pyts(x_NT: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Call `pyts` as its users do."""
    from pyts.approximation import PiecewiseAggregateApproximation
    from pyts.image import GramianAngularField, MarkovTransitionField, RecurrencePlot

    if settings.kind == "mtf":
        return MarkovTransitionField(settings.size, settings.n_bins).transform(x_NT)
    if settings.kind == "recurrence":
        aggregate = PiecewiseAggregateApproximation(None, settings.size, overlapping=False)
        return RecurrencePlot().transform(aggregate.transform(x_NT))
    method = {"gasf": "summation", "gadf": "difference"}[settings.kind]
    return GramianAngularField(settings.size, (-1, 1), method).transform(x_NT)


def assert_as_pyts(x_BLT: torch.Tensor, settings: ImageSettings) -> None:
    found = signal_images(x_BLT, settings).flatten(0, 1).numpy()
    expected = by_pyts(x_BLT.flatten(0, 1).numpy(), settings)
    # 1e-5 is what was asked of values around 1; distances are as large as the signal, and float32
    # has 24 bits of them.
    largest = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * largest)


def signal(shape: str, n_times: int, rng: np.random.Generator) -> np.ndarray:
    white, time = rng.normal(size=n_times), np.arange(n_times)
    return {
        "walk": white.cumsum(),
        "white": white,
        # Many samples are equal, and some quantiles with them.
        "digitised": np.round(white.cumsum() / 2),
        "few values": rng.choice([0.0, 0.1, 7.0], size=n_times, p=[0.8, 0.15, 0.05]),
        "constant": np.full(n_times, white[0]),
        "nearly constant": white[0] + 1e-6 * np.round(white),
        "spikes": np.where(time % 50 == 7, 1.0 + 0.01 * white, 0.0),
        # Samples close to the extremes, where the angle's sine is the root of little.
        "smooth": np.sin(2 * np.pi * (time + rng.random()) / n_times),
        "steps": np.repeat(rng.normal(size=n_times // 8 + 1), 8)[:n_times],
    }[shape]


SHAPES = ("walk", "white", "digitised", "few values", "constant", "nearly constant", "spikes")
SHAPES += ("smooth", "steps")


@st.composite
def signals_and_settings(draw: st.DrawFn) -> tuple[torch.Tensor, dict[str, int]]:
    n_times = draw(st.integers(8, 400))
    size = draw(st.integers(1, min(n_times, 60)) | st.sampled_from([n_times]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    scale = 10.0 ** draw(st.integers(-3, 3))
    offset = draw(st.sampled_from([0.0, 0.0, 1.0, -300.0]))
    x_LT = np.stack([signal(shape, n_times, rng) for shape in shapes]) * scale + offset
    x_BLT = torch.from_numpy(x_LT.astype(np.float32))[None]
    return x_BLT, {"size": size, "n_bins": draw(st.integers(2, 12))}


@every_kind
@hypothesis_settings(max_examples=25)
@given(drawn=signals_and_settings())
@pytest.mark.filterwarnings("ignore:Some quantiles are equal")
def test_images_are_those_of_pyts(kind, drawn):
    x_BLT, fields = drawn
    assert_as_pyts(x_BLT, ImageSettings(kind, **fields))


@every_kind
@pytest.mark.parametrize("n_times", [1000, 1120, 2200])
def test_images_of_full_size_are_those_of_pyts(kind, n_times):
    assert_as_pyts(walks(1, 3, n_times), ImageSettings(kind, 224, 8))


@every_kind
def test_signals_in_float64_keep_their_digits(kind):
    # In float32 these would be a constant and two values.
    x_BLT = 1000 + 1e-5 * walks(1, 2, 200).double()
    assert_as_pyts(x_BLT, ImageSettings(kind, 50))


def test_signals_are_cut_where_pyts_cuts_them():
    from pyts.utils import segmentation

    cpu = torch.device("cpu")
    for n_times in (8, 9, 100, 250, 360, 1000, 1001, 2200):
        for size in range(1, min(n_times, 300) + 1):
            start, end, _ = segmentation(n_times, 1, False, size)
            segment_T, length_S = images._segments(n_times, size, cpu)
            np.testing.assert_array_equal(length_S, end - start)
            np.testing.assert_array_equal(segment_T, np.repeat(np.arange(size), end - start))


@every_kind
def test_the_pyts_backend_is_pyts(kind):
    x_BLT = walks(2, 3, 250)
    settings = ImageSettings(kind, 30, backend="pyts")
    found = signal_images(x_BLT, settings)
    assert found.shape == (2, 3, 30, 30)
    expected = by_pyts(x_BLT.flatten(0, 1).numpy(), settings).astype(np.float32)
    np.testing.assert_array_equal(found.flatten(0, 1).numpy(), expected)


def test_angular_fields_are_sums_and_differences_of_angles():
    x_BLT = walks(1, 1, 40)
    x = x_BLT[0, 0].double().numpy()
    angle = np.arccos(np.clip(2 * (x - x.min()) / np.ptp(x) - 1, -1, 1))
    for kind, expected in (
        ("gasf", np.cos(angle[:, None] + angle)),
        ("gadf", np.sin(angle[:, None] - angle)),
    ):
        found = signal_images(x_BLT, ImageSettings(kind, 40))[0, 0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_transition_field_holds_the_probabilities_of_transitions():
    # With two bins the edge is the median, 1: the signal goes low, low, high, low, high, high, ...
    x_BLT = torch.tensor([[[0.0, 1.0, 2.0, 0.5, 3.0, 3.0, 1.0, 0.0, 2.0]]])
    high = np.array([0, 0, 1, 0, 1, 1, 0, 0, 1])
    # From low: to low twice, to high three times. From high: to low twice, to high once.
    probability = np.array([[2 / 5, 3 / 5], [2 / 3, 1 / 3]])
    found = signal_images(x_BLT, ImageSettings("mtf", 9, 2))[0, 0].numpy()
    np.testing.assert_allclose(found, probability[high[:, None], high], rtol=0, atol=1e-7)
    smaller = signal_images(x_BLT, ImageSettings("mtf", 3, 2))[0, 0].numpy()
    blocks = found.reshape(3, 3, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(smaller, blocks, rtol=0, atol=1e-7)


def test_a_recurrence_plot_holds_distances():
    x_BLT = torch.tensor([[[0.0, 2.0, 1.0, 1.0, -3.0, -5.0]]])
    found = signal_images(x_BLT, ImageSettings("recurrence", 3))[0, 0].numpy()
    np.testing.assert_allclose(found, [[0, 0, 5], [0, 0, 5], [5, 5, 0]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "pyts"])
@pytest.mark.parametrize(
    ("kind", "value"), [("gasf", 1.0), ("gadf", 0.0), ("mtf", 1.0), ("recurrence", 0.0)]
)
def test_a_constant_signal_has_an_image_of_one_value(kind, value, backend, recwarn):
    for constant in (0.0, 0.3, -1e6):
        x_BLT = torch.full((1, 2, 100), constant)
        found = signal_images(x_BLT, ImageSettings(kind, 24, backend=backend))
        torch.testing.assert_close(found, torch.full((1, 2, 24, 24), value), rtol=0, atol=1e-7)
    assert not [str(warning.message) for warning in recwarn]


@every_kind
@pytest.mark.parametrize("backend", ["torch", "pyts"])
@pytest.mark.parametrize("spoilt", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_own_image_alone(kind, backend, spoilt):
    x_BLT = walks(2, 2, 100)
    settings = ImageSettings(kind, 24, backend=backend)
    expected = signal_images(x_BLT, settings)
    x_BLT[1, 0, 17] = spoilt
    found = signal_images(x_BLT, settings)
    assert found[1, 0].isnan().all()
    found[1, 0] = expected[1, 0]
    assert torch.equal(found, expected)
    assert signal_images(x_BLT[1:, :1], settings).isnan().all()


@every_kind
def test_an_image_depends_on_its_own_signal_alone(kind, monkeypatch):
    x_BLT = walks(9, 3, 250)
    settings = ImageSettings(kind, 45)
    together = signal_images(x_BLT, settings)
    for b in range(9):
        assert torch.equal(signal_images(x_BLT[b : b + 1], settings)[0], together[b])
    assert torch.equal(signal_images(x_BLT.flip(0, 1), settings).flip(0, 1), together)
    for pixels in (1, 45**2 * 4):  # made one by one, and four at a time
        monkeypatch.setattr(images, "_PIXELS", pixels)
        assert torch.equal(signal_images(x_BLT, settings), together)


@every_kind
def test_images_are_made_in_float32_without_touching_the_signal(kind):
    x_BLT = walks(2, 3, 120)
    settings = ImageSettings(kind, 32)
    expected = signal_images(x_BLT, settings)
    assert expected.shape == (2, 3, 32, 32)
    assert expected.dtype == torch.float32
    assert expected.is_contiguous()
    kept_BLT = x_BLT.clone()
    asks_BLT = x_BLT.clone().requires_grad_()
    strided_BLT = torch.stack([x_BLT, -x_BLT], dim=-1)[..., 0]
    for same_BLT in (asks_BLT, strided_BLT):
        found = signal_images(same_BLT, settings)
        assert torch.equal(found, expected)
        assert not found.requires_grad
    with torch.inference_mode():
        assert torch.equal(signal_images(x_BLT, settings), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(signal_images(x_BLT, settings), expected)
    assert torch.equal(x_BLT, kept_BLT)
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        found = signal_images(x_BLT.to(dtype), settings)
        assert torch.equal(found, signal_images(x_BLT.to(dtype).float(), settings))
        assert found.dtype == torch.float32


@every_kind
def test_no_records_no_images(kind):
    assert signal_images(torch.empty(0, 3, 100), ImageSettings(kind, 32)).shape == (0, 3, 32, 32)


def test_images_have_the_symmetry_of_their_kind():
    x_BLT = walks(1, 2, 300)
    for kind, sign in (("gasf", 1), ("recurrence", 1), ("gadf", -1)):
        image = signal_images(x_BLT, ImageSettings(kind, 100))
        torch.testing.assert_close(image, sign * image.mT, rtol=0, atol=1e-6)


def test_an_image_has_no_more_pixels_a_side_than_the_signal_has_samples():
    with pytest.raises(ValueError, match=r"at most the signal's 100 samples, came 101"):
        signal_images(torch.zeros(1, 1, 100), ImageSettings("gasf", 101))


def test_networks_make_images_without_parameters():
    settings = ImageSettings("mtf", 40, 6)
    make = SignalImages(ModelInputs(STANDARD_LEADS[:3], 120, 100, image=settings))
    assert not list(make.parameters())
    assert make.state_dict() == {}
    x_BLT = walks(2, 3, 120)
    assert torch.equal(make(x_BLT), signal_images(x_BLT, settings))
    with pytest.raises(ValueError, match=r"image: expected a kind and a size, came none"):
        SignalImages(ModelInputs(STANDARD_LEADS, 120, 100))
    with pytest.raises(ValueError, match=r"at most the window's 39 samples, came 40"):
        SignalImages(ModelInputs(STANDARD_LEADS, 39, 100, image=settings))
