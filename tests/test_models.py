"""Architectures: what every entry of the catalogue keeps to, whatever its family."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from rayecg.core.catalogue import look_up
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import STANDARD_LEADS, InputSettings
from rayecg.models.catalogue import ARCHITECTURES, ModelInputs, build_model, count_parameters
from rayecg.models.predictor import window_logits

INPUTS = ModelInputs(STANDARD_LEADS, 250, 100)
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)


def seeded(name: str, seed: int = 0, inputs: ModelInputs = INPUTS, n_outputs: int = 5) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, inputs, n_outputs, {})


def trained_a_little(name: str) -> nn.Module:
    """Give a network whose running statistics are not those of its birth, in evaluation mode."""
    model = seeded(name).train()
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    x_BLT = torch.randn(4, 12, 250)
    for _ in range(2):
        optimizer.zero_grad()
        model(x_BLT).square().mean().backward()
        optimizer.step()
    return model.eval()


@every_architecture
def test_its_docstring_names_its_source(name):
    texts = [look_up(ARCHITECTURES, name, "architecture"), type(seeded(name))]
    docstrings = [" ".join((inspect.getdoc(text) or "").split()) for text in texts]
    assert docstrings[0]
    assert any("Source" in text for text in docstrings)
    assert any("Differs from the source" in text for text in docstrings)


@every_architecture
def test_its_constructor_has_the_common_shape(name):
    parameters = inspect.signature(look_up(ARCHITECTURES, name, "architecture")).parameters
    assert list(parameters)[:2] == ["inputs", "n_outputs"]
    for parameter in list(parameters.values())[2:]:
        assert parameter.default is not inspect.Parameter.empty
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD


@every_architecture
@pytest.mark.parametrize(
    ("n_leads", "n_times", "fs"), [(12, 1000, 100), (1, 360, 120), (2, 257, 250)]
)
@pytest.mark.parametrize("n_outputs", [1, 5])
def test_it_gives_a_logit_for_each_output(name, n_leads, n_times, fs, n_outputs):
    inputs = ModelInputs(STANDARD_LEADS[:n_leads], n_times, fs)
    model = seeded(name, inputs=inputs, n_outputs=n_outputs).eval()
    with torch.inference_mode():
        logits_BC = model(torch.randn(3, n_leads, n_times))
    assert logits_BC.shape == (3, n_outputs)
    assert logits_BC.dtype == torch.float32
    assert torch.isfinite(logits_BC).all()


@every_architecture
def test_every_parameter_gets_a_finite_gradient(name):
    model = seeded(name).train()
    loss = nn.functional.binary_cross_entropy_with_logits(
        model(torch.randn(4, 12, 250)), torch.randint(0, 2, (4, 5)).float()
    )
    loss.backward()
    for path, parameter in model.named_parameters():
        assert parameter.grad is not None, path
        assert torch.isfinite(parameter.grad).all(), path
    assert any(parameter.grad.abs().max() > 0 for parameter in model.parameters())


@every_architecture
def test_its_state_is_all_that_tells_two_apart(name):
    first, second = trained_a_little(name), seeded(name, seed=1).eval()
    x_BLT = torch.randn(2, 12, 250)
    with torch.inference_mode():
        assert not torch.equal(first(x_BLT), second(x_BLT))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x_BLT), second(x_BLT))


@every_architecture
def test_the_seed_decides_the_weights(name):
    first, again, other = (seeded(name, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@every_architecture
def test_evaluation_has_no_chance_and_changes_nothing(name):
    model = trained_a_little(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    x_BLT = torch.randn(2, 12, 250)
    kept_BLT = x_BLT.clone()
    with torch.inference_mode():
        first, second = model(x_BLT), model(x_BLT)
    assert torch.equal(first, second)
    assert torch.equal(x_BLT, kept_BLT)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@every_architecture
def test_a_window_s_output_does_not_depend_on_its_neighbours(name):
    model = trained_a_little(name)
    x_WLT = np.random.default_rng(0).normal(size=(9, 12, 250)).astype(np.float32)
    cpu = torch.device("cpu")
    together_WC = window_logits(model, x_WLT, 4, cpu)
    assert together_WC.shape == (9, 5)
    assert together_WC.dtype == np.float64
    # The same batch shape is the same arithmetic, so the place in the batch changes nothing.
    for w in (0, 3, 5, 8):
        alone_C = window_logits(model, x_WLT[w : w + 1], 4, cpu)[0]
        np.testing.assert_array_equal(alone_C, together_WC[w])
    reversed_WC = window_logits(model, x_WLT[::-1], 4, cpu)
    np.testing.assert_array_equal(reversed_WC[::-1], together_WC)
    spoilt_WLT = x_WLT.copy()
    spoilt_WLT[1] = np.nan
    spoilt_WC = window_logits(model, spoilt_WLT, 4, cpu)
    assert np.isnan(spoilt_WC[1]).all()
    rest = np.arange(9) != 1
    np.testing.assert_array_equal(spoilt_WC[rest], together_WC[rest])


def test_no_windows_no_logits():
    empty_WLT = np.empty((0, 12, 250), np.float32)
    model = seeded("simple_cnn1d").eval()
    assert window_logits(model, empty_WLT, 4, torch.device("cpu")).shape == (0, 5)


def test_simple_cnn1d_is_the_reference_system():
    model = seeded("simple_cnn1d", inputs=ModelInputs(STANDARD_LEADS, 1000, 100))
    assert count_parameters(model) == 46_757
    model.head.requires_grad_(False)
    assert count_parameters(model) < 46_757


@pytest.mark.parametrize(
    ("name", "depth"), [("xresnet1d18", 18), ("xresnet1d50", 50), ("xresnet1d101", 101)]
)
def test_xresnets_are_as_deep_as_their_name_says(name, depth):
    layers = [m for m in seeded(name).modules() if isinstance(m, (nn.Conv1d, nn.Linear))]
    # Names count neither the two more convolutions of the stem nor those of the shortcuts.
    shortcuts = [
        conv
        for path, block in seeded(name).named_modules()
        if path.endswith("shortcut")
        for conv in block.modules()
        if isinstance(conv, nn.Conv1d)
    ]
    assert len(layers) - 2 - len(shortcuts) == depth


def test_model_inputs_are_those_of_the_settings():
    settings = InputSettings(fs=120, duration_s=3.0, leads=("MLII",))
    assert ModelInputs.of(settings) == ModelInputs(("MLII",), 360, 120)


@pytest.mark.parametrize(
    ("name", "hyperparameters", "expected"),
    [
        ("xresnet1d_101", {}, r"no architecture is named 'xresnet1d_101' \(nearest: xresnet1d101"),
        ("transformer", {}, r"no architecture is named 'transformer' \((known|nearest): "),
        ("simple_cnn1d", {"hiden": 3}, r"has no hyperparameter 'hiden' \(nearest: hidden\)"),
        ("simple_cnn1d", {"n_outputs": 3}, "has no hyperparameter 'n_outputs'"),
        ("simple_cnn1d", {"dropout": 2.0}, "simple_cnn1d: dropout probability has to be"),
        ("simple_cnn1d", {"filters": [1, 2]}, "simple_cnn1d: zip"),
        ("simple_cnn1d", {"hidden": "wide"}, "simple_cnn1d: "),
    ],
)
def test_what_cannot_be_built_is_refused(name, hyperparameters, expected):
    with pytest.raises(SettingsError, match=expected):
        build_model(name, INPUTS, 5, hyperparameters)
