"""Side inputs: columns of numbers that a network reads beside a window.

Legend: W window, L lead, T time, M column.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rayecg.core.experiment import InputSettings

#: Fixed, so that nothing is fitted to data: years around which, and over which, ages are spread.
AGE_CENTRE, AGE_SPREAD = 60.0, 20.0
SEXES = {"F": 1.0, "M": -1.0}


def metadata_columns(row: Mapping[str, Any] | None, fields: tuple[str, ...]) -> np.ndarray:
    """Encode what is known of a patient; NaN where it is not.

    Parameters
    ----------
    row
        `age` in years, `sex` "F" or "M".
    fields
        Which of them, in order.

    Returns
    -------
    np.ndarray
        float32: (age - 60) / 20; 1 for female, -1 for male.
    """
    row = row or {}
    found = np.full(len(fields), np.nan, dtype=np.float32)
    for i, name in enumerate(fields):
        value = row.get(name)
        if name == "age" and value is not None:
            found[i] = (float(value) - AGE_CENTRE) / AGE_SPREAD
        elif name == "sex":
            found[i] = SEXES.get(str(value), np.nan)
    return found


def side_names(settings: InputSettings) -> tuple[str, ...]:
    """Name the columns beside each window: metadata first, then features."""
    if not settings.features:
        return settings.metadata
    from rayecg.signal.features import feature_names  # most inputs need none

    return (*settings.metadata, *feature_names(settings.features, settings.leads))


def side_columns(
    settings: InputSettings,
    x_LT: np.ndarray,
    n_windows: int,
    row: Mapping[str, Any] | None,
    beat_W: np.ndarray | None,
    rhythm: np.ndarray | None,
) -> np.ndarray:
    """Give the columns beside each window of a recording; NaN where something is not known.

    Parameters
    ----------
    settings
        What the network reads.
    x_LT
        The recording as windows are cut from it, leads by times at `settings.fs`.
    n_windows
        How many windows there are.
    row
        What is known of the patient; see `metadata_columns`.
    beat_W, rhythm
        R peaks of the windows, and all of the recording, samples at `settings.fs`, not necessarily
        whole; None where windows are no beats.

    Returns
    -------
    np.ndarray
        float32, windows by columns.

    Raises
    ------
    ValueError
        If the features need beats and there are none.
    """
    known_M = metadata_columns(row, settings.metadata)
    found_WM = np.repeat(known_M[None], n_windows, axis=0)
    if not settings.features:
        return found_WM
    from rayecg.signal.features import feature_columns

    features = feature_columns(settings.features, x_LT, settings.fs, settings.leads, beat_W, rhythm)
    features_WM = np.broadcast_to(features, (n_windows, features.shape[1]))
    return np.concatenate([found_WM, features_WM], axis=1, dtype=np.float32)
