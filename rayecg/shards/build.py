"""Archive to shards: Ray Data reads, checks and writes units of records.

A unit is a run of consecutive records of the index. A task reads it, writes its Parquet files under
the unit's number, and last its entry in the ledger; a killed job's next start skips the units that
have one. The rows and their order depend on the index alone, not on the number of workers.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.archives.base import Archive
from rayecg.core.errors import DataError, record_error
from rayecg.core.experiment import ShardSettings
from rayecg.core.files import (
    MANIFEST,
    fingerprint,
    finished,
    read_table,
    write_json,
    write_table,
)
from rayecg.core.progress import Progress
from rayecg.core.record import Record, invalid_value
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import QUARANTINE_SCHEMA, Layout, index_table, shard_table
from rayecg.core.units import Units
from rayecg.core.versions import code_fingerprint, versions
from rayecg.signal.prepare import bridge, resample

#: A shard of long records is closed at this size, before the unit's number of records is reached: they
#: must fit into memory, and Parquet counts the bytes of a page in 32 bits.
MAX_FILE_BYTES = 2**28
#: Rooms whose code decides what a shard holds.
ROOMS = ("archives", "core", "shards", "signal")


def make_shards(archive: Archive, settings: ShardSettings, out: str | Path) -> dict[str, Any]:
    """Turn an archive into shards.

    Parameters
    ----------
    archive
        What to read.
    settings
        Rate, shard size, compression, checks.
    out
        Gets `records/*.parquet`, `quarantine.parquet` and, last, `manifest.json`. Shards that stand
        there for the same archive, settings and code are left as they are; those of another are
        replaced.

    Returns
    -------
    dict
        The manifest.

    Raises
    ------
    DataError
        If no record of the archive can be read, or the totals do not add up.
    """
    out = Path(out).resolve()  # a worker may have another current folder
    index = archive.checked_index()
    plan = {
        "stage": "shards",
        "archive": {**to_tree(archive.settings), "path": archive.name},
        "synthetic": archive.synthetic,
        "official_split": archive.official_split,
        "settings": to_tree(settings),
        "n_input": index.num_rows,
        "input_fingerprint": archive.fingerprint(index),
        "code_fingerprint": code_fingerprint(*ROOMS),
    }
    key = fingerprint(plan)
    standing = finished(out, key)
    if standing is not None:
        return standing
    units = Units(out, key)
    units.open(("records", "quarantine", "quarantine.parquet"))
    size = settings.records_per_shard
    work = {
        f"{i:06d}": index.slice(start, size)
        for i, start in enumerate(range(0, index.num_rows, size))
    }
    _run_units(work, archive, settings, units, index.num_rows)
    return _finish(out, plan, units, list(work))


def _run_units(
    work: dict[str, pa.Table],
    archive: Archive,
    settings: ShardSettings,
    units: Units,
    n_records: int,
) -> None:
    import ray.data

    progress = Progress("shards", n_records, "records")
    waiting = {unit: rows for unit, rows in work.items() if not units.is_finished(unit)}
    done = n_records - sum(rows.num_rows for rows in waiting.values())
    quarantined = 0
    if waiting:
        items = [{"unit": unit, "rows": rows.to_pylist()} for unit, rows in waiting.items()]
        writer = UnitWriter(archive, settings, units)
        # A block for each unit: units spread over the cluster, and each is counted as it ends.
        results = ray.data.from_items(items, override_num_blocks=len(items)).map(writer)
        for result in results.iter_rows():
            done += result["n_input"]
            quarantined += result["n_quarantined"]
            progress.update(done, f"{quarantined} quarantined" if quarantined else "")
    progress.done()


class UnitWriter:
    """Reads the records of a unit and writes its files; called by Ray Data for each unit.

    Parameters
    ----------
    archive, settings
        As for `make_shards`.
    units
        Names the files and keeps the ledger.
    """

    def __init__(self, archive: Archive, settings: ShardSettings, units: Units) -> None:
        self.archive, self.settings, self.units = archive, settings, units

    # Ray Data asks a callable for its name.
    __name__ = "UnitWriter"

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Write one unit; returns its ledger entry."""
        unit = item["unit"]
        groups: dict[Layout, tuple[list[dict[str, Any]], list[Record]]] = {}
        refused, part = [], itertools.count()
        for row in item["rows"]:
            try:
                record = self.archive.read(row, self.settings.checks)
                if self.settings.fs is not None:
                    record = resample_record(record, self.settings.fs)
                layout = Layout.of(record)
            except Exception as error:  # a record that cannot be read is a row, whatever the reason
                code, text = record_error(error)
                refused.append({**row, "error_code": code, "error": text})
                continue
            rows, records = groups.setdefault(layout, ([], []))
            rows.append({**row, "status": "ok"})
            records.append(record)
            if len(records) * record.digital_LT.nbytes >= MAX_FILE_BYTES:
                self._write(f"{unit}-{next(part):04d}", *groups.pop(layout))
        for rows, records in groups.values():
            self._write(f"{unit}-{next(part):04d}", rows, records)
        if refused:
            extra = list(QUARANTINE_SCHEMA)[-2:]
            table = index_table(refused, extra)
            write_table(self.units.file("quarantine", unit), table)
        entry = {
            "n_input": len(item["rows"]),
            "n_ok": len(item["rows"]) - len(refused),
            "n_degraded": 0,
            "n_quarantined": len(refused),
        }
        self.units.finish(unit, entry)
        return entry

    def _write(self, name: str, rows: list[dict[str, Any]], records: list[Record]) -> None:
        write_table(
            self.units.file("records", name),
            shard_table(rows, records),
            compression=self.settings.compression,
            compression_level=1 if self.settings.compression == "zstd" else None,
            use_dictionary=False,
            # Statistics of the samples are of no use and cost their size again.
            write_statistics=["record_id", "patient_id", "strat_fold"],
            row_group_size=64,
        )


def resample_record(record: Record, fs: int) -> Record:
    """Resample a record, its values rounded back to its own ADC units.

    The error of the rounding is at most half a unit (0.5 / gain mV). Values that leave the type are
    held at its ends and flagged, as is a rate that was lower; the neighbourhood of an invalid sample
    stays invalid.
    """
    if record.fs == fs:
        return record
    dtype = record.digital_LT.dtype
    limits = np.iinfo(dtype)
    invalid_LT = record.digital_LT == invalid_value(dtype)
    values_LT = record.digital_LT.astype(np.float64)  # which holds every int32
    flags = list(record.flags)
    if record.fs < fs:
        flags.append(f"up_sampled:{record.fs:g}")
    if invalid_LT.any():
        values_LT = bridge(values_LT, invalid_LT)
    out_LT = np.round(resample(values_LT, record.fs, fs))
    if out_LT.max() > limits.max or out_LT.min() <= limits.min:
        flags.append("out_of_range")
    stored_LT = np.clip(out_LT, limits.min + 1, limits.max).astype(dtype)
    if invalid_LT.any():
        share_LT = resample(invalid_LT.astype(np.float32), record.fs, fs)
        stored_LT[np.abs(share_LT) > 0.01] = limits.min
    beats = record.beat_times
    if beats is not None:
        beats = np.round(beats * (fs / record.fs)).astype(np.int64).clip(max=stored_LT.shape[1] - 1)
    return dataclasses.replace(
        record,
        digital_LT=stored_LT,
        fs=float(fs),
        flags=tuple(flags),
        beat_times=beats,
    )


def _finish(out: Path, plan: dict[str, Any], units: Units, names: list[str]) -> dict[str, Any]:
    manifest = {
        "key": units.key,
        **plan,
        **units.totals(names, plan["n_input"]),
        "versions": versions(),
    }
    units.remove_strays(("records", "quarantine"))
    parts = sorted((out / "quarantine").glob("*.parquet"))
    quarantine = read_table(out / "quarantine") if parts else QUARANTINE_SCHEMA.empty_table()
    write_table(out / "quarantine.parquet", quarantine)
    if not manifest["n_ok"]:
        first = quarantine.slice(0, 1).to_pylist()[0]
        raise DataError(
            f"no record of the archive can be read ({manifest['n_input']} tried); the first, "
            f"{first['record_id']}: {first['error']}"
        )
    write_json(out / MANIFEST, manifest)
    return manifest
