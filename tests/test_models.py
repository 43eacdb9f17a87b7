"""Architectures: what every entry of the catalogue keeps to, whatever its family."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from rayecg.core.catalogue import look_up
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import (
    STANDARD_LEADS,
    ArchitectureSettings,
    ImageSettings,
    InputSettings,
)
from rayecg.core.settings import Overrides
from rayecg.models.backends import window_logits
from rayecg.models.catalogue import (
    ARCHITECTURES,
    ModelInputs,
    build_model,
    count_parameters,
    example_batch,
    input_of,
    reads,
)

INPUTS = ModelInputs(STANDARD_LEADS, 250, 100)
#: Fitted to features, not trained by gradients: tests of its own say what holds of it.
FITTED = ("feature_boosting", "linear_discriminant", "rehearsed_regression")
every_architecture = pytest.mark.parametrize("name", ARCHITECTURES)
every_network = pytest.mark.parametrize("name", [n for n in ARCHITECTURES if n not in FITTED])


def small_inputs(name: str, n_leads: int = 12, n_times: int = 250, fs: int = 100) -> ModelInputs:
    """Give what an architecture declares, but of this size and with small images."""
    offered: Overrides[InputSettings] = Overrides(
        leads=STANDARD_LEADS[:n_leads], fs=fs, duration_s=n_times / fs, image={"size": 32}
    )
    return ModelInputs.of(input_of(ArchitectureSettings(name), offered))


def seeded(
    name: str, seed: int = 0, inputs: ModelInputs | None = None, n_outputs: int = 5
) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(name, inputs or small_inputs(name), n_outputs, {})


def trained_a_little(name: str) -> nn.Module:
    """Give a network whose running statistics are not those of its birth, in evaluation mode."""
    model = seeded(name).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, 1e-2)
    batch = example_batch(small_inputs(name), 4)
    for _ in range(2):
        optimizer.zero_grad()
        model(*batch).square().mean().backward()
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
    inputs = small_inputs(name, n_leads, n_times, fs)
    assert (len(inputs.leads), inputs.n_times) == (n_leads, n_times)
    model = seeded(name, inputs=inputs, n_outputs=n_outputs).eval()
    with torch.inference_mode():
        logits_BC = model(*example_batch(inputs, 3))
    assert logits_BC.shape == (3, n_outputs)
    assert logits_BC.dtype == torch.float32
    assert torch.isfinite(logits_BC).all()


@every_network
def test_every_parameter_gets_a_finite_gradient(name):
    model = trained_a_little(
        name
    ).train()  # some branches start at zero, and open with the first step
    batch = example_batch(small_inputs(name), 4)
    model.zero_grad()
    loss = nn.functional.binary_cross_entropy_with_logits(
        model(*batch), torch.randint(0, 2, (4, 5)).float()
    )
    loss.backward()
    for path, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, path
            assert torch.isfinite(parameter.grad).all(), path
            assert parameter.grad.abs().max() > 0, path


@every_network
def test_its_state_is_all_that_tells_two_apart(name):
    first, second = trained_a_little(name), seeded(name, seed=1).eval()
    batch = example_batch(small_inputs(name), 2)
    with torch.inference_mode():
        assert not torch.equal(first(*batch), second(*batch))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(*batch), second(*batch))


@every_network
def test_the_seed_decides_the_weights(name):
    first, again, other = (seeded(name, seed).state_dict() for seed in (7, 7, 8))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not all(torch.equal(first[key], other[key]) for key in first)


@every_network
def test_evaluation_has_no_chance_and_changes_nothing(name):
    model = trained_a_little(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    batch = example_batch(small_inputs(name), 2)
    kept = [values.clone() for values in batch]
    with torch.inference_mode():
        first, second = model(*batch), model(*batch)
    assert torch.equal(first, second)
    assert all(torch.equal(*pair) for pair in zip(batch, kept, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.fixture(params=[1, 3], ids="{}_threads".format)
def threads(request) -> Iterator[None]:
    """Share work among threads: three leave each a share that fills no vector registers."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@every_network
@pytest.mark.usefixtures("threads")
def test_a_window_s_output_does_not_depend_on_its_neighbours(name):
    model = trained_a_little(name)
    rng = np.random.default_rng(0)
    x_WLT = rng.normal(size=(9, 12, 250)).astype(np.float32)
    side_WM = rng.normal(size=(9, len(small_inputs(name).side))).astype(np.float32)

    def logits(windows: np.ndarray | slice) -> np.ndarray:
        cpu = torch.device("cpu")
        return window_logits(model, x_WLT[windows], side_WM[windows], 4, cpu)

    together_WC = logits(slice(None))
    assert together_WC.shape == (9, 5)
    assert together_WC.dtype == np.float64
    # The same batch shape is the same arithmetic, so the place in the batch changes nothing.
    for w in (0, 3, 5, 8):
        np.testing.assert_array_equal(logits(slice(w, w + 1))[0], together_WC[w])
    np.testing.assert_array_equal(logits(slice(None, None, -1))[::-1], together_WC)
    x_WLT[1] = np.nan
    spoilt_WC = logits(slice(None))
    assert np.isnan(spoilt_WC[1]).all()
    rest = np.arange(9) != 1
    np.testing.assert_array_equal(spoilt_WC[rest], together_WC[rest])


def test_no_windows_no_logits():
    empty_WLT, no_side = np.empty((0, 12, 250), np.float32), np.empty((0, 0), np.float32)
    model = seeded("simple_cnn1d").eval()
    assert window_logits(model, empty_WLT, no_side, 4, torch.device("cpu")).shape == (0, 5)


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


TOY = """
from torch import nn

class Toy(nn.Module):
    \"\"\"One linear layer.\"\"\"

    def __init__(self, inputs, n_outputs, scale=1.0):
        super().__init__()
        self.linear = nn.Linear(len(inputs.leads), n_outputs)
        self.scale = scale

    def forward(self, x_BLT):
        return self.scale * self.linear(x_BLT.std(dim=2))
"""


def test_a_new_architecture_is_one_file_and_one_line(tmp_path, monkeypatch):
    (tmp_path / "toy_family.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ARCHITECTURES, "toy", "toy_family:Toy")
    model = seeded("toy")
    assert count_parameters(model) == 12 * 5 + 5
    assert model(*example_batch(small_inputs("toy"), 3)).shape == (3, 5)
    with pytest.raises(SettingsError, match=r"toy has no hyperparameter 'skale' \(nearest: scale"):
        build_model("toy", INPUTS, 5, {"skale": 2})
    # The whole way, from settings to a checkpoint that scores, is `test_a_toy_runs_the_whole_way`.


def declaring(monkeypatch: pytest.MonkeyPatch, **declared: object) -> ArchitectureSettings:
    """List an architecture that declares its input."""

    @reads(**declared)
    def make(inputs, n_outputs):
        return nn.Identity()

    monkeypatch.setattr("rayecg.models.simple_cnn.declaring", make, raising=False)
    monkeypatch.setitem(ARCHITECTURES, "declaring", "rayecg.models.simple_cnn:declaring")
    return ArchitectureSettings("declaring")


def test_an_architecture_s_input_is_what_it_declares_then_what_is_offered_then_its_own(monkeypatch):
    settings = declaring(monkeypatch, fs=250, duration_s=8.8)
    assert input_of(settings, Overrides()) == InputSettings(fs=250, duration_s=8.8)
    offered: Overrides[InputSettings] = Overrides(duration_s=4.0, normalisation="record")
    found = input_of(settings, offered)
    assert found == InputSettings(fs=250, duration_s=4.0, normalisation="record")
    own = ArchitectureSettings("declaring", input=Overrides(duration_s=2.0))
    assert input_of(own, offered).duration_s == 2.0
    assert input_of(own, offered).normalisation == "record"
    with pytest.raises(SettingsError, match="declaring: input: fs x duration_s: expected 8"):
        input_of(settings, Overrides(duration_s=0.001))


def test_what_is_offered_reaches_those_that_read_it(monkeypatch):
    offered: Overrides[InputSettings] = Overrides(
        metadata=["age"], features=["rhythm"], image={"size": 64}
    )
    plain = input_of(declaring(monkeypatch), offered)
    assert plain == InputSettings()
    side = input_of(declaring(monkeypatch, side=True), offered)
    assert (side.metadata, side.features, side.image) == (("age",), ("rhythm",), None)
    image = input_of(declaring(monkeypatch, image=ImageSettings("mtf")), offered)
    assert (image.metadata, image.image) == ((), ImageSettings("mtf", 64))


@pytest.mark.parametrize("asked", [{"metadata": ["age"]}, {"image": {"size": 64}}])
def test_what_an_architecture_cannot_read_cannot_be_asked_of_it(monkeypatch, asked):
    declaring(monkeypatch)
    own = ArchitectureSettings("declaring", input=Overrides(asked))
    with pytest.raises(SettingsError, match=f"declaring reads no {next(iter(asked))}"):
        input_of(own, Overrides())


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
        ("simple_cnn1d", {"filters": [], "kernels": []}, "simple_cnn1d: "),
        ("resnet1d", {"widths": []}, "resnet1d: "),
        ("ecg_transnet", {"n_heads": 0}, "ecg_transnet: "),
        ("hmt_ecgnet", {"kernels": [8, 7, 3]}, "hmt_ecgnet: kernels: expected odd ones, came 8"),
    ],
)
def test_what_cannot_be_built_is_refused(name, hyperparameters, expected):
    with pytest.raises(SettingsError, match=expected):
        build_model(name, INPUTS, 5, hyperparameters)
