"""Checkpoints as bundles: `model.safetensors` and `card.json`, loadable without running their code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import file_sha256, read_json, replacing_folder, write_json
from rayecg.core.settings import build
from rayecg.models.catalogue import ModelInputs, build_model

FORMAT_VERSION = 1
WEIGHTS, CARD = "model.safetensors", "card.json"


def save_checkpoint(folder: str | Path, model: nn.Module, card: dict[str, Any]) -> dict[str, Any]:
    """Write a bundle, whole or not at all.

    Parameters
    ----------
    folder
        Replaced if it is there.
    model
        The network whose weights are stored.
    card
        What `load_checkpoint` and readers need; the format version and the weights' SHA-256 are
        added.

    Returns
    -------
    dict
        The card as written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing_folder(folder) as beside:
        safetensors.torch.save_file(state, beside / WEIGHTS)
        card = {
            "format_version": FORMAT_VERSION,
            **card,
            "weights_sha256": file_sha256(beside / WEIGHTS),
        }
        write_json(beside / CARD, card)
    return card


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read a bundle's card.

    Raises
    ------
    DataError
        If there is none, it is of another format version, or an ensemble's.
    """
    card = read_json(Path(folder) / CARD)
    version = card.get("format_version")
    if version != FORMAT_VERSION:
        raise DataError(f"{folder}: expected a card of format {FORMAT_VERSION}, came {version}")
    if "members" in card:
        raise DataError(
            f"{folder}: an ensemble has no weights of its own; load its members: "
            f"{', '.join(card['members'])}"
        )
    return card


def load_checkpoint(folder: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load a bundle: the network in evaluation mode, and its card.

    Raises
    ------
    DataError
        If a part is missing, the weights are not the ones of the card, or they do not fit.
    """
    folder = Path(folder)
    card = read_card(folder)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise DataError(f"{weights}: expected the weights of the checkpoint, found nothing")
    expected, found = str(card.get("weights_sha256")), file_sha256(weights)
    if found != expected:
        raise DataError(
            f"{weights}: not the weights of its card (expected SHA-256 {expected[:12]}…, "
            f"came {found[:12]}…)"
        )
    try:
        inputs = ModelInputs.of(input_settings(card))
        # Building draws random weights; the caller's random state is none of its business.
        with torch.random.fork_rng(devices=[]):
            model = build_model(
                card["architecture"], inputs, len(card["task"]["labels"]), card["hyperparameters"]
            )
        model.load_state_dict(safetensors.torch.load_file(weights))
    except KeyError as error:
        raise DataError(f"{folder / CARD}: expected a field {error}") from None
    except (
        AttributeError,
        RuntimeError,
        SettingsError,
        TypeError,
        safetensors.SafetensorError,
    ) as error:
        raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())})") from None
    return model.eval(), card


def input_settings(card: dict[str, Any]) -> InputSettings:
    """Give the input settings that a card states."""
    return build(InputSettings, card["input"], "card", "input")
