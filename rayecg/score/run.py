"""Scoring: checkpoints x units of records, by Ray Data actors.

Every checkpoint reads the same prepared windows, so a unit is read and prepared once for all of them.
A unit's files are written beside and renamed, then its ledger entry; a killed job's next start skips
the units that have one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from rayecg.core.experiment import InputSettings, ScoreSettings
from rayecg.core.files import (
    MANIFEST,
    fingerprint,
    finished,
    write_json,
    write_table,
)
from rayecg.core.predictions import RECORD_COLUMNS, WINDOW_COLUMNS, label_fields, output_columns
from rayecg.core.progress import Progress
from rayecg.core.record import Record
from rayecg.core.session import cluster_cpus
from rayecg.core.units import Units, failure_as_row, raise_failures
from rayecg.core.versions import code_fingerprint, versions
from rayecg.models.checkpoint import read_card
from rayecg.models.predictor import Answer, Prediction, Predictor
from rayecg.score.sources import CHUNK, Item, Source, chunks
from rayecg.signal.prepare import Prepared

#: Rooms whose code decides what a score is.
ROOMS = ("archives", "core", "models", "score", "signal")
STATUSES = ("ok", "degraded", "quarantined")


def score(
    checkpoints: Mapping[str, Path],
    source: Source,
    out: Mapping[str, Path],
    settings: ScoreSettings,
) -> dict[str, dict[str, Any]]:
    """Score every record of a source with every checkpoint.

    Parameters
    ----------
    checkpoints
        Name to bundle folder.
    source
        Shards or a raw archive.
    out
        Name to output folder: gets `predictions/*.parquet` (one row per input record),
        `windows/*.parquet` (beats, and the windows of records that have several) and, last,
        `manifest.json`.
    settings
        Actors and batch shape.

    Returns
    -------
    dict
        Name to manifest.

    Raises
    ------
    DataError
        If the rows do not add up to the records of the source.
    """
    keys = {
        name: fingerprint(
            [read_card(folder), source.key, settings.batch_size, code_fingerprint(*ROOMS)]
        )
        for name, folder in checkpoints.items()
    }
    manifests: dict[str, dict[str, Any]] = {}
    for name, key in keys.items():
        standing = finished(out[name], key)
        if standing is not None:
            manifests[name] = standing
    waiting = [name for name in checkpoints if name not in manifests]
    progress = Progress("score", source.n_input * len(checkpoints), "rows")
    if waiting:
        units = {name: Units(out[name], keys[name]) for name in waiting}
        for own in units.values():
            own.open(("predictions", "windows"))
        work = source.units()
        started = time.perf_counter()
        done = source.n_input * len(manifests)
        _run_units(work, units, checkpoints, source, settings, progress, done)
        seconds = round((time.perf_counter() - started) / len(waiting), 3)
        for name in waiting:
            manifest = _finish(units[name], checkpoints[name], [u["unit"] for u in work], source)
            manifests[name] = {**manifest, "seconds": seconds}
            write_json(out[name] / MANIFEST, manifests[name])
    progress.done()
    return manifests


def _run_units(
    work: list[dict[str, Any]],
    units: Mapping[str, Units],
    checkpoints: Mapping[str, Path],
    source: Source,
    settings: ScoreSettings,
    progress: Progress,
    done: int,
) -> None:
    import ray.data

    waiting = [
        unit for unit in work if not all(own.is_finished(unit["unit"]) for own in units.values())
    ]
    if not waiting:
        return
    # Ray Data would infer one schema of rows that differ; a unit travels as one object.
    items = [{"item": [unit]} for unit in waiting]
    actors = settings.concurrency or max(int(cluster_cpus() / settings.num_cpus), 1)
    results = ray.data.from_items(items, override_num_blocks=len(items)).map(
        UnitScorer,
        fn_constructor_kwargs={
            "source": source,
            "checkpoints": {name: checkpoints[name] for name in units},
            "units": dict(units),
            "settings": settings,
        },
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
        num_cpus=settings.num_cpus,
        num_gpus=settings.num_gpus or None,
    )
    finished_units = {unit["unit"] for unit in work} - {unit["unit"] for unit in waiting}
    done += sum(own.n_done(finished_units) for own in units.values())
    progress.update(done)
    for result in raise_failures(results.iter_rows()):
        done += result["n_rows"] * len(units)
        progress.update(done)


class UnitScorer:
    """Scores units; one actor of the pool.

    Parameters
    ----------
    source, checkpoints, settings
        As for `score`.
    units
        Of each checkpoint: names the files and keeps the ledger.
    """

    def __init__(
        self,
        source: Source,
        checkpoints: Mapping[str, Path],
        units: Mapping[str, Units],
        settings: ScoreSettings,
    ) -> None:
        torch.set_num_threads(max(int(settings.num_cpus), 1))
        device = "cuda" if settings.num_gpus else "cpu"
        self.source, self.units = source, units
        self.predictors = {
            name: Predictor(folder, settings.batch_size, device)
            for name, folder in checkpoints.items()
        }

    @failure_as_row
    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Score one unit with every checkpoint; returns how many rows it has."""
        unit = row["item"][0]
        tables: dict[str, tuple[list[pa.Table], list[pa.Table]]] = {
            name: ([], []) for name in self.predictors
        }
        counts: dict[str, Counter[str]] = {name: Counter() for name in self.predictors}
        n_rows = 0
        for chunk in chunks(self.source.records(unit), CHUNK):
            n_rows += len(chunk)
            prepared: dict[tuple[InputSettings, str], list[Prepared | Exception]] = {}
            for name, predictor in self.predictors.items():
                kind = (predictor.input, predictor.unit)
                if kind not in prepared:
                    prepared[kind] = [_prepare(predictor, *item) for item in chunk]
                prediction = predictor.answer(prepared[kind])
                counts[name].update(prediction.status)
                records, windows = tables[name]
                records.append(record_table(chunk, prediction))
                windows.append(window_table(chunk, prediction, predictor.unit))
        for name, (records, windows) in tables.items():
            units = self.units[name]
            if records:
                write_table(units.file("predictions", unit["unit"]), pa.concat_tables(records))
                below = pa.concat_tables(windows)
                if below.num_rows:
                    write_table(units.file("windows", unit["unit"]), below)
            entry = {f"n_{status}": counts[name][status] for status in STATUSES}
            units.finish(unit["unit"], {"n_input": n_rows, **entry})
        return {"n_rows": n_rows}


def _prepare(
    predictor: Predictor, row: Mapping[str, Any], found: Record | Exception
) -> Prepared | Exception:
    if isinstance(found, Exception):
        return found
    try:
        return predictor.prepare(found.physical, found.fs, found.leads, found.beat_times, row)
    except Exception as error:  # one record's trouble is that record's row
        return error


def _outputs(labels: tuple[str, ...], answer: Answer) -> list[pa.Array]:
    return output_columns(
        labels, answer.logit, answer.probability, answer.calibrated, answer.decision
    )


def record_table(chunk: list[Item], prediction: Prediction) -> pa.Table:
    """Build the rows of `predictions/`: one per input record, whatever came of it."""
    n_windows = Counter(prediction.window_record.tolist())
    rows = []
    for i, (row, found) in enumerate(chunk):
        code, error = prediction.errors[i] or (None, None)
        read = None if isinstance(found, Exception) else found
        rows.append(
            {
                "record_id": row["record_id"],
                "path": row["path"],
                "patient_id": row["patient_id"],
                "status": prediction.status[i],
                "error_code": code,
                "error": error,
                "abstain": bool(prediction.abstain[i]),
                "limits": list(prediction.limits[i]),
                "flags": list(read.flags) if read else None,
                "leads": list(read.leads) if read else None,
                "fs": read.fs if read else None,
                "n_times": read.digital_LT.shape[1] if read else None,
                "n_windows": n_windows[i],
            }
        )
    left = pa.Table.from_pylist(rows, schema=pa.schema(RECORD_COLUMNS))
    schema = pa.schema([*RECORD_COLUMNS, *label_fields(prediction.labels)])
    columns = _outputs(prediction.labels, prediction.records)
    return pa.Table.from_arrays([*left.columns, *columns], schema=schema)


def window_table(chunk: list[Item], prediction: Prediction, unit: str) -> pa.Table:
    """Build the rows of `windows/`: beats, and the windows of records that have several."""
    owner_W = prediction.window_record
    record_ids = [chunk[i][0]["record_id"] for i in owner_W.tolist()]
    columns = _outputs(prediction.labels, prediction.windows)
    schema = pa.schema([*WINDOW_COLUMNS, *label_fields(prediction.labels)])
    offsets = pa.array(prediction.window_offset, type=pa.int64())
    arrays = [pa.array(record_ids, pa.string()), offsets, *columns]
    table = pa.Table.from_arrays(arrays, schema=schema)
    if unit == "beat":
        return table
    n_windows = Counter(owner_W.tolist())
    return table.filter(pa.array([n_windows[i] > 1 for i in owner_W.tolist()], pa.bool_()))


def _finish(units: Units, checkpoint: Path, names: list[str], source: Source) -> dict[str, Any]:
    card = read_card(checkpoint)
    totals = units.totals(names, source.n_input)
    units.remove_strays(("predictions", "windows"))
    return {
        "key": units.key,
        "stage": "score",
        "checkpoint_sha256": card["weights_sha256"],
        "architecture": card["architecture"],
        "task": card["task"]["name"],
        "source_key": source.key,
        **totals,
        "versions": versions(),
    }
