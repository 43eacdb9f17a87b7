"""Distributed batch scoring and benchmarking of ECG classifiers on Ray."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayecg.core.record import Record
    from rayecg.models.predictor import Predictor

__all__ = ["load", "read_record"]
try:
    __version__ = metadata.version("rayecg")
except metadata.PackageNotFoundError:  # a source tree that is not installed
    __version__ = "0+unknown"


def load(checkpoint_dir: str | Path) -> Predictor:
    """Load a checkpoint for prediction; the same code scores archives.

    Parameters
    ----------
    checkpoint_dir
        Folder with `model.safetensors` and `card.json`.

    Returns
    -------
    Predictor
        Its `predict(signal_BLT, fs, leads, metadata=None)` scores recordings in mV.
    """
    from rayecg.models.predictor import Predictor

    return Predictor(checkpoint_dir)


def read_record(path: str | Path) -> Record:
    """Read one WFDB record: `digital`, `physical` (mV), `fs` (Hz), `leads`, `flags`.

    The leads have standard names and order; limb leads that two others give are derived and flagged.

    Parameters
    ----------
    path
        Path of the record, with or without `.hea`.
    """
    from rayecg.archives.folder import read_one

    return read_one(path)
