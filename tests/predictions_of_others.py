"""Somebody else's table of predictions, invented: three labels, patients with several recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

LABELS = ("NORM", "MI", "STTC")


def prediction_rows(n_records: int = 300, n_patients: int = 100, seed: int = 0) -> pd.DataFrame:
    """Give a clean table: sides by patient, in the order of the records."""
    rng = np.random.default_rng(seed)
    patient_N = rng.integers(n_patients, size=n_records)
    side = np.array(["train"] * 6 + ["val"] * 2 + ["test"] * 2)
    rows = pd.DataFrame(
        {
            "record_id": [f"{i:04d}" for i in range(n_records)],
            "patient_id": [f"{p:03d}" for p in patient_N],
            "split": side[patient_N % 10],
        }
    )
    for label in LABELS:
        target_N = rng.random(n_records) < 0.4
        score_N = 2.0 * target_N - 1 + rng.normal(size=n_records)
        rows[f"target_{label}"] = target_N.astype(int)
        rows[f"probability_{label}"] = 1 / (1 + np.exp(-score_N))
    return rows


def beat_rows(n_patients: int = 30, n_beats: int = 40, seed: int = 1) -> pd.DataFrame:
    """Give test rows of beats in time, in runs of one kind; patients differ more than their beats."""
    rng = np.random.default_rng(seed)
    names = np.repeat([f"{i:03d}" for i in range(n_patients)], n_beats)
    kind_G, level_G = rng.integers(0, 2, n_patients), rng.normal(0, 1.5, n_patients)
    changed = (np.arange(n_beats) // 8 % 3) == 2  # eight beats of the other kind now and then
    target_N = np.concatenate([changed ^ bool(kind) for kind in kind_G])
    level_N = np.repeat(level_G, n_beats)
    score_N = target_N + level_N + rng.normal(0, 0.3, len(names))
    return pd.DataFrame(
        {
            "record_id": names,
            "patient_id": names,
            "offset": np.tile(np.arange(n_beats) * 300, n_patients),
            "split": "test",
            "target_V": target_N.astype(int),
            "probability_V": 1 / (1 + np.exp(-score_N)),
        }
    )


def as_csv(rows: pd.DataFrame, folder: Path, name: str = "predictions.csv") -> Path:
    """Write a table as pandas does."""
    file = folder / name
    rows.to_csv(file, index=False)
    return file
