"""What an architecture costs: parameters, multiply-adds, and its speed beside another's.

Legend: B record, L lead, T time.
"""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from rayecg.core.catalogue import look_up
from rayecg.models.catalogue import (
    ARCHITECTURES,
    ModelInputs,
    build_model,
    count_parameters,
    declared_reads,
    example_batch,
)

#: What every architecture is compared with.
BASE = "simple_cnn1d"
N_OUTPUTS = 5
TRAINING_BATCH, SCORING_BATCH = 16, 64
#: Turns of an architecture and the base, and the least time of one (s).
TURNS, TURN_S = 5, 0.25


def multiply_adds(model: nn.Module, inputs: ModelInputs) -> int:
    """Count the multiply-adds of one record's logits: convolutions, products and recurrent layers.

    Sums, activations and Fourier transforms are left out.
    """
    recurrent = 0

    def count(layer: nn.RNNBase, given: tuple[torch.Tensor, ...], result: Any) -> None:
        nonlocal recurrent
        n_steps = given[0].shape[1] if layer.batch_first else given[0].shape[0]
        weights = [p.numel() for name, p in layer.named_parameters() if "weight" in name]
        recurrent += n_steps * sum(weights)

    layers = [layer for layer in model.modules() if isinstance(layer, nn.RNNBase)]
    # Whether the counter sees into a recurrent layer, and into attention, depends on the kernel:
    # the first are counted by themselves, apart from the rest, and the second is made of products.
    hooks = [layer.register_forward_hook(count) for layer in layers]
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH), counter:
        model.eval()(*example_batch(inputs, 1))
    for hook in hooks:
        hook.remove()
    seen = counter.get_flop_counts()
    names = [name for name, layer in model.named_modules() if layer in layers]
    inside = sum(sum(seen.get(f"{type(model).__name__}.{name}", {}).values()) for name in names)
    return (sum(seen.get("Global", {}).values()) - inside) // 2 + recurrent  # trees have none


def _training_step(model: nn.Module, inputs: ModelInputs) -> Callable[[], None]:
    """Give what one batch of training does: forward, backward, AdamW."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    batch = example_batch(inputs, TRAINING_BATCH)
    target_BC = torch.randint(0, 2, (TRAINING_BATCH, N_OUTPUTS)).float()

    def step() -> None:
        model.train()
        loss = nn.functional.binary_cross_entropy_with_logits(model(*batch), target_BC)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def _scoring_step(model: nn.Module, inputs: ModelInputs) -> Callable[[], None]:
    batch = example_batch(inputs, SCORING_BATCH)

    def step() -> None:
        with torch.inference_mode():
            model.eval()(*batch)

    return step


def _seconds(step: Callable[[], None]) -> float:
    """Time a step: its mean over at least `TURN_S`."""
    n, started = 0, time.perf_counter()
    while not n or time.perf_counter() - started < TURN_S:
        step()
        n += 1
    return (time.perf_counter() - started) / n


def _speed(step: Callable[[], None], base: Callable[[], None]) -> float:
    """Give how often `step` runs in the time of `base`, by turns."""
    for first in (step, base):  # makes buffers and plans
        first()
    return float(np.median([_seconds(base) / _seconds(step) for _ in range(TURNS)]))


def cost(name: str) -> dict[str, Any]:
    """Measure an architecture at its declared input, five outputs, against `simple_cnn1d` at its own.

    Returns
    -------
    dict
        `architecture`, `parameters` (trainable), `multiply_adds` of a record, `input` in words,
        `training` and `scoring`: records/s as shares of the base's, by turns, and `source` from its
        docstring. `parameters` and `training` are None for an architecture that is fitted without
        gradients: its size is the data's.
    """
    torch.manual_seed(0)
    inputs, base_inputs = (ModelInputs.of(declared_reads(n).input) for n in (name, BASE))
    model = build_model(name, inputs, N_OUTPUTS, {})
    base = build_model(BASE, base_inputs, N_OUTPUTS, {})
    fitted = hasattr(model, "fit")
    found: dict[str, Any] = {
        "architecture": name,
        "parameters": None if fitted else count_parameters(model),
        "multiply_adds": multiply_adds(model, inputs),
        "input": input_in_words(inputs),
        "training": None,
    }
    found["scoring"] = _speed(_scoring_step(model, inputs), _scoring_step(base, base_inputs))
    if not fitted:
        found["training"] = _speed(_training_step(model, inputs), _training_step(base, base_inputs))
    return found | {"source": source_of(name)}


def input_in_words(inputs: ModelInputs) -> str:
    """Say what goes in: `12 x 1000 at 100 Hz`, and what is made of it or comes beside it."""
    text = f"{len(inputs.leads)} x {inputs.n_times} at {inputs.fs:g} Hz"
    if inputs.image is not None:
        text += f", {inputs.image.kind.upper()} {inputs.image.size} px"
    if inputs.side:
        names = ", ".join(inputs.side) if len(inputs.side) < 4 else f"{len(inputs.side)} features"
        text += f", {names}"
    return text


def source_of(name: str) -> str:
    """Give the source that an architecture's docstring names."""
    make = look_up(ARCHITECTURES, name, "architecture")
    inputs = ModelInputs.of(declared_reads(name).input)
    with torch.device("meta"):
        built = type(build_model(name, inputs, N_OUTPUTS, {}))
    for documented in (make, built):
        text = " ".join((inspect.getdoc(documented) or "").split())
        found = re.search(r"Source: (.*?)\.?(?: Differs from the source|$)", text)
        if found:
            return found[1]
    return ""
