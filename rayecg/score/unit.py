"""Scoring of one unit: its records through every checkpoint, to files and an entry in the ledger."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.core.batch import Batch
from rayecg.core.errors import DataError
from rayecg.core.experiment import InputSettings, ScoreSettings
from rayecg.core.predictions import STATUSES
from rayecg.core.units import Units
from rayecg.models.backends import torch_backend, verify
from rayecg.models.checkpoint import ONNX, ONNX_INT8, identity
from rayecg.models.predictor import Predictor
from rayecg.score.actors import open_predictor
from rayecg.score.sources import Source
from rayecg.score.tables import Stamps, record_table, window_table
from rayecg.signal.prepare import Windows

#: Windows on which a back end is held against the reference before it is used.
N_VERIFIED = 32


def checkpoint_facts(card: Mapping[str, Any], settings: ScoreSettings) -> dict[str, str | None]:
    """Give what of a checkpoint decides rows: the card, and the exported file that is run, if any."""
    name = {"onnx": ONNX, "onnx_int8": ONNX_INT8}.get(settings.backend)
    file = card.get("exports", {}).get(name, {}).get("sha256") if name else None
    return {"checkpoint": identity(card), "backend_file": file}


@dataclass
class Scored:
    """What was scored: of each checkpoint, tables of records and of windows, and the statuses."""

    rows: dict[str, list[pa.Table]]
    windows: dict[str, list[pa.Table]]
    statuses: dict[str, Counter[str]]
    n_records: int = 0

    @classmethod
    def of(cls, names: Collection[str]) -> Scored:
        """Begin with nothing of these checkpoints."""
        return cls({n: [] for n in names}, {n: [] for n in names}, {n: Counter() for n in names})

    def add(self, other: Scored) -> None:
        """Append what another has, of the same checkpoints."""
        self.n_records += other.n_records
        for name in self.rows:
            self.rows[name] += other.rows[name]
            self.windows[name] += other.windows[name]
            self.statuses[name] += other.statuses[name]


class UnitScorer:
    """Scores units.

    Parameters
    ----------
    source, checkpoints, settings, hash_key
        As for `score`.
    units
        Of each checkpoint: names the files and keeps the ledger.
    plans
        Of each checkpoint: what decides its rows.
    """

    def __init__(
        self,
        source: Source,
        checkpoints: Mapping[str, Path],
        units: Mapping[str, Units],
        plans: Mapping[str, Mapping[str, Any]],
        settings: ScoreSettings,
        hash_key: bytes | None = None,
    ) -> None:
        self.source, self.checkpoints, self.units = source, checkpoints, units
        self.plans, self.settings, self.hash_key = plans, settings, hash_key
        self.predictors: dict[str, Predictor] = {}
        self.stamps: dict[str, Stamps] = {}
        #: Back ends that were not yet held against the reference.
        self.unverified: set[str] = set()

    def open(self, first: dict[str, Any] | None = None) -> None:
        """Load the checkpoints, and hold their back ends against the reference on a unit's records.

        Without such a unit, or a window in it, that is done at the first window that comes.

        Raises
        ------
        DataError
            If a checkpoint is not the one that the job was started with.
        """
        for name, folder in self.checkpoints.items():
            predictor = open_predictor(folder, self.settings)
            plan, now = self.plans[name], checkpoint_facts(predictor.card, self.settings)
            if any(plan[key] != value for key, value in now.items()):
                raise DataError(
                    f"{folder}: the checkpoint was replaced while the job was under way"
                )
            self.predictors[name] = predictor
            self.stamps[name] = Stamps(plan["checkpoint"], plan["code"], self.hash_key)
            if self.settings.backend != "eager":
                self.unverified.add(name)
        if first is None or not self.unverified:
            return
        for batch in self.source.batches(first):
            for name in list(self.unverified):
                self._verify(name, self.predictors[name].prepare_batch(batch))
            if not self.unverified:
                return

    def _verify(self, name: str, windows: Windows) -> None:
        """Hold a back end against eager torch, if there is a window that this has an answer for."""
        predictor = self.predictors[name]
        x_WLT, side_WM = windows.windows(N_VERIFIED)
        device = predictor.backend.device
        model = predictor.model.to(device)
        reference = torch_backend("eager", model, self.settings.batch_size, device)
        try:
            finite_W = np.isfinite(reference.logits(x_WLT, side_WM)).all(axis=1)
        except Exception:  # a record's trouble, which is found when it is scored
            return
        if finite_W.any():
            own = predictor.backend, reference, x_WLT[finite_W], side_WM[finite_W]
            verify(*own, predictor.card)
            self.unverified.remove(name)

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Score one unit with every checkpoint, and write its files."""
        return self.write(payload["unit"], self.scored(self.source.batches(payload)))

    def write(self, unit: str, found: Scored) -> dict[str, Any]:
        """Write a unit's files and enter it; returns its counts, quarantined rows of all."""
        for name, units in self.units.items():
            files = []
            if found.n_records:
                table = pa.concat_tables(found.rows[name])
                files += units.write("predictions", unit, table, self.settings.partition)
                windows = pa.concat_tables(found.windows[name])
                if windows.num_rows:
                    files += units.write("windows", unit, windows)
            counts = {f"n_{status}": found.statuses[name][status] for status in STATUSES}
            units.finish(unit, {"n_input": found.n_records, **counts}, files)
        refused = sum(own["quarantined"] for own in found.statuses.values())
        return {"n_input": found.n_records, "n_quarantined": refused}

    def scored(self, batches: Iterable[Batch]) -> Scored:
        """Score batches with every checkpoint."""
        found = Scored.of(self.predictors)
        for batch in batches:
            found.n_records += len(batch)
            prepared: dict[tuple[InputSettings, str], Windows] = {}
            for name, predictor in self.predictors.items():
                kind = (predictor.input, predictor.unit)
                if kind not in prepared:
                    prepared[kind] = predictor.prepare_batch(batch)
                if name in self.unverified:
                    self._verify(name, prepared[kind])
                prediction = predictor.answer(prepared[kind])
                found.statuses[name].update(prediction.status)
                stamps = self.stamps[name]
                table = record_table(batch, prediction, stamps)
                found.rows[name].append(_with_column(table, batch, self.settings.partition))
                below = window_table(batch, prediction, stamps, predictor.unit)
                found.windows[name].append(below)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"predictors": {}, "stamps": {}}


def _with_column(table: pa.Table, batch: Batch, name: str | None) -> pa.Table:
    """Add what rows are parted by, if they have it not."""
    if name is None or name in table.column_names:
        return table
    return table.append_column(name, batch.index[name])
