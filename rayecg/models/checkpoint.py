"""Checkpoints as bundles, loadable without running any code from them.

`model.safetensors` (weights, as arrays), `card.json` (what they are the weights of) and, once
`jobs/export.py` was there, exports. The card states the SHA-256 of every other file and of itself. What
is read is arrays, JSON and ONNX: ONNX Runtime is given no operators but its own, and refuses weights in
other files. Each file is read once, and what was hashed is what is used. The `.pt2` program is for
others: `torch.export.load` unpickles parts of it, which can run code, so nothing here opens one that it
did not just write.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from rayecg.core.errors import DataError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import file_sha256, fingerprint, read_json, replacing_folder, write_json
from rayecg.core.outputs import OperatingPoint
from rayecg.core.settings import build
from rayecg.models.catalogue import ModelInputs, build_model

FORMAT_VERSION = 2
WEIGHTS, CARD = "model.safetensors", "card.json"
#: Exports: ONNX in float32, ONNX in int8, a `torch.export` program.
ONNX, ONNX_INT8, PROGRAM = "model.onnx", "model_int8.onnx", "model.pt2"


def save_checkpoint(folder: str | Path, model: nn.Module, card: dict[str, Any]) -> dict[str, Any]:
    """Write a bundle, whole or not at all.

    Parameters
    ----------
    folder
        Replaced if it is there.
    model
        The network whose weights are stored.
    card
        What `load_checkpoint` and readers need; the format version, the weights' SHA-256 and the
        card's own fingerprint are added.

    Returns
    -------
    dict
        The card as written.
    """
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    with replacing_folder(folder) as beside:
        safetensors.torch.save_file(state, beside / WEIGHTS)
        return write_card(beside, {**card, "weights_sha256": file_sha256(beside / WEIGHTS)})


def write_card(folder: str | Path, card: Mapping[str, Any]) -> dict[str, Any]:
    """Write a card with its format version and fingerprint, and give it back with them."""
    # As it will be read: the fingerprint is of lists and text keys, not of what they were made from.
    signed: dict[str, Any] = json.loads(json.dumps({"format_version": FORMAT_VERSION, **card}))
    signed["fingerprint"] = _fingerprint(signed)
    write_json(Path(folder) / CARD, signed)
    return signed


def _fingerprint(card: Mapping[str, Any]) -> str:
    """Give the SHA-256 of a card without its fingerprint: of its JSON, keys sorted, no spaces."""
    rest = {key: value for key, value in card.items() if key != "fingerprint"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def read_card(folder: str | Path, expected: str | None = None) -> dict[str, Any]:
    """Read a bundle's card.

    Parameters
    ----------
    folder
        The bundle.
    expected
        The beginning of the fingerprint that it must have. The fingerprint is kept beside what it
        stands for: alone it tells damage and careless edits, against a forger it must be known from
        elsewhere.

    Raises
    ------
    DataError
        If there is none, it is of another format version, does not fit its fingerprint or the one
        expected, or is an ensemble's.
    """
    path = Path(folder) / CARD
    card: dict[str, Any] = read_json(path)
    version = card.get("format_version")
    if type(version) is not int:
        raise DataError(f"{path}: expected a format_version, came {version!r}")
    if version > FORMAT_VERSION:
        raise DataError(
            f"{path}: made by a newer rayecg (format {version}, this one reads "
            f"{FORMAT_VERSION}): update rayecg"
        )
    if version < FORMAT_VERSION:
        raise DataError(
            f"{path}: made by an older rayecg (format {version}, this one reads "
            f"{FORMAT_VERSION}): train it again, or read it with the version that made it"
        )
    stated = str(card.get("fingerprint"))
    if stated != _fingerprint(card):
        raise DataError(
            f"{path}: tampered with or damaged: its fingerprint {stated[:12]}… is not that of its "
            f"content ({_fingerprint(card)[:12]}…)"
        )
    if expected is not None and not (expected and stated.startswith(expected)):
        raise DataError(f"{path}: expected fingerprint {expected!r}, came {stated[:12]}…")
    if "members" in card:
        names = card["members"] if isinstance(card["members"], dict) else ()
        raise DataError(
            f"{folder}: an ensemble has no weights of its own; load its members: "
            f"{', '.join(names) or 'it names none'}"
        )
    return card


def identity(card: Mapping[str, Any]) -> str:
    """Give what changes with anything that a checkpoint says of records, and not with its exports."""
    rest = {k: value for k, value in card.items() if k not in ("exports", "fingerprint")}
    return fingerprint(rest)


def add_exports(
    folder: str | Path, made: str | Path, exports: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Move exports into a bundle and state them in its card; others that it has stay.

    Whenever this is cut off, the bundle holds either the file that its card states or states none.

    Parameters
    ----------
    folder
        The bundle.
    made
        Where the files stand now, on the same file system.
    exports
        File name to what the card says of it; its `sha256` and `size` in bytes are added.

    Returns
    -------
    dict
        The card as written.
    """
    folder, made, card = Path(folder), Path(made), read_card(folder)
    stated = {
        name: {**said, "sha256": file_sha256(made / name), "size": (made / name).stat().st_size}
        for name, said in exports.items()
    }
    others = {name: said for name, said in card.get("exports", {}).items() if name not in stated}
    write_card(folder, {**card, "exports": others})
    for name in stated:
        os.replace(made / name, folder / name)
    return write_card(folder, {**card, "exports": {**others, **stated}})


def exported(folder: str | Path, card: Mapping[str, Any], name: str) -> bytes:
    """Give the content of an export's file: what its SHA-256 was looked at of.

    Raises
    ------
    DataError
        If there is none, or it is not the one of the card.
    """
    path, said = Path(folder) / name, card.get("exports", {}).get(name)
    if said is None or not path.exists():
        raise DataError(f"{path}: not exported yet: run jobs/export.py --checkpoint {folder}")
    return _read(path, said.get("sha256"))


def _read(path: Path, stated: Any) -> bytes:
    """Read a file once: a second look at its path could find another than the one of this SHA-256."""
    expected = str(stated)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise DataError(
            f"{path}: tampered with or damaged: not the file of its card (expected SHA-256 "
            f"{expected[:12]}…, came {found[:12]}…)"
        )
    return content


def load_checkpoint(
    folder: str | Path, expected: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a bundle: the network in evaluation mode, and its card; `expected` as for `read_card`.

    Raises
    ------
    DataError
        If a part is missing, the weights are not the ones of the card, they do not fit, or the card
        does not say how answers are made of outputs.
    """
    folder = Path(folder)
    card = read_card(folder, expected)
    weights = folder / WEIGHTS
    if not weights.exists():
        raise DataError(f"{weights}: expected the weights of the checkpoint, found nothing")
    content = _read(weights, card.get("weights_sha256"))
    try:
        _check_answers(card)
        inputs = ModelInputs.of(input_settings(card))
        # Building draws random weights; the caller's random state is none of its business.
        with torch.random.fork_rng(devices=[]):
            model = build_model(
                card["architecture"], inputs, len(card["task"]["labels"]), card["hyperparameters"]
            )
        model.load_state_dict(safetensors.torch.load(content))
    except KeyError as error:
        raise DataError(f"{folder / CARD}: expected a field {error}") from None
    except DataError as error:
        raise DataError(f"{folder / CARD}: {error}") from None
    except Exception as error:  # networks that are asked for the impossible raise what they like
        raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())})") from None
    return model.eval(), card


def _check_answers(card: Mapping[str, Any]) -> None:
    """Fail unless a card says which labels the outputs are of, of what, and how they are decided."""
    labels, unit = card["task"]["labels"], card["task"]["unit"]
    # Their order is that of the outputs. Keys of an object have none: the fingerprint sorts them.
    names = isinstance(labels, list) and all(isinstance(label, str) for label in labels)
    if not names or not labels or len(set(labels)) < len(labels):
        raise DataError(f"task.labels: expected a list of distinct names, came {labels!r:.100}")
    if unit not in ("record", "beat"):
        raise DataError(f"task.unit: expected record or beat, came {unit!r:.100}")
    OperatingPoint.from_tree(card["operating_point"]).check(len(labels))


def input_settings(card: dict[str, Any]) -> InputSettings:
    """Give the input settings that a card states."""
    return build(InputSettings, card["input"], "card", "input")
