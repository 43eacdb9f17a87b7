"""Architectures: `name -> "module:class or function"`, one line each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rayecg.core.catalogue import look_up, nearest
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import InputSettings

ARCHITECTURES = {
    "resnet1d_wang": "rayecg.models.resnet1d_wang:ResNet1dWang",
    "simple_cnn1d": "rayecg.models.simple_cnn:SimpleCnn1d",
    "xresnet1d18": "rayecg.models.xresnet1d:xresnet1d18",
    "xresnet1d50": "rayecg.models.xresnet1d:xresnet1d50",
    "xresnet1d101": "rayecg.models.xresnet1d:xresnet1d101",
}


@dataclass(frozen=True)
class ModelInputs:
    """What goes into an architecture: windows of `leads` by `n_times` at `fs` Hz, in mV."""

    leads: tuple[str, ...]
    n_times: int
    fs: float

    @classmethod
    def of(cls, settings: InputSettings) -> ModelInputs:
        """Give what the prepared windows of these settings look like."""
        return cls(settings.leads, settings.n_times, settings.fs)


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
    except (TypeError, ValueError, RuntimeError) as error:
        raise SettingsError(f"architectures: {name}: {error}") from None


def count_parameters(model: nn.Module) -> int:
    """Count the trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
