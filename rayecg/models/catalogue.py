"""Architectures: `name -> "module:class or function"`, one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from rayecg.core.catalogue import look_up, nearest
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ArchitectureSettings, ImageSettings, InputSettings
from rayecg.core.settings import Overrides
from rayecg.signal.side import side_names

ARCHITECTURES = {
    # The systems of the field's reference projects.
    "hmt_ecgnet": "rayecg.models.hmt_ecgnet:HmtEcgNet",
    "resnet1d": "rayecg.models.resnet1d:ResNet1d",
    "simple_cnn1d": "rayecg.models.simple_cnn:SimpleCnn1d",
    "simple_cnn2d": "rayecg.models.simple_cnn:SimpleCnn2d",
    "resconv_bilstm_attention": "rayecg.models.resconv_bilstm_attention:ResConvBiLstmAttention",
    "gru": "rayecg.models.recurrent:gru",
    "bigru": "rayecg.models.recurrent:bigru",
    "lstm": "rayecg.models.recurrent:lstm",
    "bilstm": "rayecg.models.recurrent:bilstm",
    "bigru_attention": "rayecg.models.recurrent:bigru_attention",
    "bilstm_attention": "rayecg.models.recurrent:bilstm_attention",
    "cnn1d_rnn": "rayecg.models.recurrent:cnn1d_rnn",
    "alexnet": "rayecg.models.image_alexnet:alexnet",
    "alexnet_channel": "rayecg.models.image_alexnet:alexnet_channel",
    "alexnet_spatial": "rayecg.models.image_alexnet:alexnet_spatial",
    "alexnet_cbam": "rayecg.models.image_alexnet:alexnet_cbam",
    "alexnet_self_attention": "rayecg.models.image_alexnet:alexnet_self_attention",
    "vgg": "rayecg.models.image_vgg:vgg",
    "resnet18": "rayecg.models.image_resnet:resnet18",
    "joint_fusion": "rayecg.models.joint_fusion:JointFusion",
    "ecg_transnet": "rayecg.models.ecg_transnet:EcgTransnet",
    # The field's yardsticks.
    "xresnet1d18": "rayecg.models.xresnet1d:xresnet1d18",
    "xresnet1d50": "rayecg.models.xresnet1d:xresnet1d50",
    "xresnet1d101": "rayecg.models.xresnet1d:xresnet1d101",
    "inception1d": "rayecg.models.inception1d:Inception1d",
    "resnet1d_wang": "rayecg.models.resnet1d_wang:ResNet1dWang",
    "fcn_wang": "rayecg.models.fcn_wang:FcnWang",
    "lstm_wang": "rayecg.models.recurrent:lstm_wang",
    "bilstm_wang": "rayecg.models.recurrent:bilstm_wang",
    "s4": "rayecg.models.s4:S4",
    "random_encoder": "rayecg.models.random_encoder:RandomEncoder",
    "feature_boosting": "rayecg.models.feature_boosting:FeatureBoosting",
    "linear_discriminant": "rayecg.models.linear_discriminant:LinearDiscriminant",
    "rehearsed_regression": "rayecg.models.rehearsed_regression:RehearsedRegression",
}

M = TypeVar("M", bound=Callable[..., nn.Module])


@dataclass(frozen=True)
class ModelInputs:
    """What goes into an architecture: windows of `leads` by `n_times` at `fs` Hz, in mV.

    `side` names the columns of numbers that come beside each window; `image` says what images a 2-D
    network makes of it.
    """

    leads: tuple[str, ...]
    n_times: int
    fs: float
    side: tuple[str, ...] = ()
    image: ImageSettings | None = None

    @classmethod
    def of(cls, settings: InputSettings) -> ModelInputs:
        """Give what the prepared windows of these settings look like."""
        return cls(
            settings.leads, settings.n_times, settings.fs, side_names(settings), settings.image
        )


@dataclass(frozen=True)
class Reads:
    """What an architecture declares of its input; `side` says that it can read side inputs."""

    input: InputSettings = field(default_factory=InputSettings)
    side: bool = False


def reads(side: bool = False, **fields: Any) -> Callable[[M], M]:
    """Declare the input of an architecture: decorates its class or function.

    Parameters
    ----------
    side
        Whether it reads columns beside the window; taken as True if `metadata` or `features` are
        declared.
    fields
        Those of `InputSettings` that differ from its defaults. Without `image`, it makes none.
    """
    declared = InputSettings(**fields)
    side = side or bool(declared.metadata or declared.features)

    def mark(make: M) -> M:
        make.reads = Reads(declared, side)  # type: ignore[attr-defined]
        return make

    return mark


def declared_reads(name: str) -> Reads:
    """Give what an architecture declares of its input.

    Raises
    ------
    SettingsError
        If the name is unknown.
    """
    make = look_up(ARCHITECTURES, name, "architecture")
    found: Reads = getattr(make, "reads", Reads())
    return found


def input_of(
    architecture: ArchitectureSettings, offered: Overrides[InputSettings]
) -> InputSettings:
    """Give the input of an architecture in an experiment.

    What it declares, changed by what the experiment offers to all, as far as it reads that, and then
    by its own.

    Raises
    ------
    SettingsError
        If the values do not fit together, or its own ask for what it cannot read.
    """
    declared = declared_reads(architecture.name)
    unread = {"image"} if declared.input.image is None else set()
    unread |= set() if declared.side else {"metadata", "features"}
    for key in unread & set(architecture.input):
        if architecture.input[key]:
            raise SettingsError(f"architectures: {architecture.title} reads no {key}")
    common = {key: value for key, value in offered.items() if key not in unread}
    origin = f"architectures: {architecture.title}"
    found = Overrides[InputSettings](common).applied_to(declared.input, origin, "input")
    return architecture.input.applied_to(found, origin, "input")


def build_model(
    name: str, inputs: ModelInputs, n_outputs: int, hyperparameters: Mapping[str, Any]
) -> nn.Module:
    """Build an architecture by name, weights drawn from torch's current random state.

    Raises
    ------
    SettingsError
        If the name or a hyperparameter is unknown, or a value does not fit.
    """
    make: Callable[..., nn.Module] = look_up(ARCHITECTURES, name, "architecture")
    known = [p for p in inspect.signature(make).parameters if p not in ("inputs", "n_outputs")]
    for key in hyperparameters:
        if key not in known:
            raise SettingsError(
                f"architectures: {name} has no hyperparameter {key!r} ({nearest(key, known)})"
            )
    try:
        return make(inputs, n_outputs, **hyperparameters)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise SettingsError(f"architectures: {name}: {error}") from None


def example_batch(inputs: ModelInputs, n_windows: int) -> tuple[torch.Tensor, ...]:
    """Draw a batch that fits: windows, and the columns beside them if there are any."""
    x_BLT = torch.randn(n_windows, len(inputs.leads), inputs.n_times)
    return (x_BLT, torch.randn(n_windows, len(inputs.side))) if inputs.side else (x_BLT,)


def check_side(side_BM: torch.Tensor | None, wanted: bool) -> None:
    """Refuse side inputs that a network has no branch for, and a branch without them.

    Raises
    ------
    ValueError
        Saying which.
    """
    if (side_BM is not None) != wanted:
        expected, came = ("some", "none") if wanted else ("none", "some")
        raise ValueError(f"side inputs: expected {expected}, came {came}")


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters, or what a network without gradients says it has."""
    own: int | None = getattr(model, "n_parameters", None)
    if own is not None:
        return own
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
