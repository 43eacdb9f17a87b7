"""Archive to shards: Ray tasks read, check and write units of records.

A unit is a run of consecutive records of the index. A task reads it, writes its Parquet files under
the unit's number, and last its entry in the ledger; a killed job's next start skips the units that
have one. The rows and their order depend on the index alone, not on the number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayecg.archives.base import Archive
from rayecg.core.errors import DataError
from rayecg.core.experiment import ShardSettings
from rayecg.core.files import (
    MANIFEST,
    fingerprint,
    finished,
    read_table,
    replacing,
    write_json,
    write_table,
)
from rayecg.core.progress import Progress
from rayecg.core.session import cluster_cpus
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import (
    DUPLICATE,
    INDEX_FIELDS,
    QUARANTINE_SCHEMA,
    RECORD_FIELDS,
    RECORDS,
)
from rayecg.core.units import Units, raise_failures, unit_files
from rayecg.core.versions import code_fingerprint, versions
from rayecg.shards.unit import UnitWriter

#: Rooms whose code decides what a shard holds.
ROOMS = ("archives", "core", "shards", "signal")
#: Of the units' files.
FOLDERS = ("records", "quarantine")
#: Records of a unit, where the settings leave it open: enough units for every worker, and few
#: enough that their own cost (a task, a file) does not count.
UNITS, SMALLEST, LARGEST = 24, 256, 8192


def make_shards(archive: Archive, settings: ShardSettings, out: str | Path) -> dict[str, Any]:
    """Turn an archive into shards.

    Parameters
    ----------
    archive
        What to read.
    settings
        Rate, shard size, compression, checks.
    out
        Gets `records/*.parquet`, `records.parquet` (the same without samples),
        `quarantine.parquet` and, last, `manifest.json`. Shards that stand
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
    if not (out / MANIFEST).exists():
        _start_workers()
    index = archive.checked_index()
    plan = {
        "stage": "shards",
        "archive": {**to_tree(archive.settings), "path": archive.name},
        "synthetic": archive.synthetic,
        "official_split": archive.official_split,
        "releases": archive.releases,
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
    units.open(("records", "quarantine", "quarantine.parquet", RECORDS))
    size = settings.records_per_shard or min(max(-(-index.num_rows // UNITS), SMALLEST), LARGEST)
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
    """Have the units that are not finished written, each by a task of its own.

    Plain tasks, not Ray Data: its executor looks for finished tasks every tenth of a second, a third
    of a unit's time, and there is nothing here to stream from one operator to the next.
    """
    import ray

    progress = Progress("shards", n_records, "records")
    finished = units.finished(FOLDERS)
    waiting = {unit: rows for unit, rows in work.items() if unit not in finished}
    done = n_records - sum(rows.num_rows for rows in waiting.values())
    quarantined = 0
    progress.update(done)
    write_unit = ray.remote(UnitWriter.__call__)
    writer = ray.put(UnitWriter(archive, settings, units))
    tasks = [
        write_unit.remote(writer, {"unit": unit, "rows": as_bytes(rows)})
        for unit, rows in waiting.items()
    ]
    for result in raise_failures(_as_they_end(tasks)):
        done += result["n_input"]
        quarantined += result["n_quarantined"]
        progress.update(done, f"{quarantined} quarantined" if quarantined else "")
    progress.done()


def _as_they_end(tasks: list[Any]) -> Iterator[dict[str, Any]]:
    import ray
    from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

    try:
        while tasks:
            ended, tasks = ray.wait(tasks)
            yield from ray.get(ended)
    except (NodeDiedError, OutOfMemoryError, WorkerCrashedError) as error:
        raise DataError(
            f"shards: a worker died each time it was started again ({type(error).__name__}); "
            "the same command continues"
        ) from None
    finally:
        for task in tasks:
            ray.cancel(task, force=True)


def _start_workers() -> None:
    """Let the workers start and import while the archive is indexed; returns at once."""
    import ray

    def start() -> None:
        import rayecg.shards.unit as unit
        from rayecg.core.record import Record

        nothing = np.zeros((1, 64), dtype=np.int16)
        unit.assess([Record(nothing, np.ones(1), np.zeros(1, np.int64), 100.0, ("I",))])

    task = ray.remote(start)
    for _ in range(int(cluster_cpus())):
        task.remote()


def as_bytes(rows: pa.Table) -> bytes:
    """Give index rows as an Arrow stream, which travels to a worker as one value."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


def _finish(out: Path, plan: dict[str, Any], units: Units, names: list[str]) -> dict[str, Any]:
    manifest = {
        "key": units.key,
        **plan,
        **units.totals(FOLDERS, names, plan["n_input"]),
        "versions": versions(),
    }
    parts = sorted((out / "quarantine").glob("*.parquet"))
    quarantine = read_table(out / "quarantine") if parts else QUARANTINE_SCHEMA.empty_table()
    write_table(out / "quarantine.parquet", quarantine)
    if not manifest["n_ok"]:
        first = quarantine.slice(0, 1).to_pylist()[0]
        raise DataError(
            f"no record of the archive can be read ({manifest['n_input']} tried); the first, "
            f"{first['record_id']}: {first['error']}"
        )
    files = unit_files(out, "records", units.key)
    manifest["n_duplicates"] = write_records(files, out / RECORDS)
    stored = (pq.read_metadata(out / RECORDS).num_rows, quarantine.num_rows)
    if stored != (manifest["n_ok"], manifest["n_quarantined"]):
        raise DataError(
            f"{out}: {manifest['n_ok']} records read and {manifest['n_quarantined']} quarantined, "
            f"but {stored[0]} and {stored[1]} rows stand there; remove the folder and start again"
        )
    write_json(out / MANIFEST, manifest)
    return manifest


def write_records(files: list[Path], to: Path) -> int:
    """Write the table of all records without their samples, and mark exact duplicates.

    The later, in the order of the shards, of two records with the same waveform is flagged
    `duplicate:ID` with the first one's id. Only then are all waveforms known, so the flag stands in
    this table alone.

    Parameters
    ----------
    files
        The shards, in order.
    to
        The table: the columns of a shard without `signal`, one row a record, and one row group for
        each shard.

    Returns
    -------
    int
        How many records are duplicates of another.
    """
    names = [field.name for field in (*INDEX_FIELDS, *RECORD_FIELDS)]
    schema = pa.schema([*INDEX_FIELDS, *RECORD_FIELDS])
    earlier = _earlier(files)
    duplicates = 0
    with replacing(to) as beside, pq.ParquetWriter(beside, schema, compression="zstd") as writer:
        for file in files:
            table = pq.read_table(file, columns=names, partitioning=None)
            table = _without_windows(table).cast(schema)
            flags = table["flags"].to_pylist() if earlier else []
            for i, record_id in enumerate(table["record_id"].to_pylist() if earlier else ()):
                if record_id in earlier:
                    flags[i] = [*(flags[i] or ()), f"{DUPLICATE}{earlier[record_id]}"]
                    duplicates += 1
            if flags:
                field = schema.field("flags")
                column = pa.array(flags, field.type)
                table = table.set_column(names.index("flags"), field, column)
            # A row group for each shard says which records are where.
            writer.write_table(table, row_group_size=table.num_rows)
    return duplicates


def _earlier(files: list[Path]) -> dict[str, str]:
    """Give the first record with the same waveform, for every record that is not the first."""
    columns = ["record_id", "waveform_sha256", "offset"]
    table = pa.concat_tables(
        pq.read_table(file, columns=columns, partitioning=None) for file in files
    )
    table = table.filter(pc.equal(table["offset"], 0))
    if pc.count_distinct(table["waveform_sha256"]).as_py() == table.num_rows:
        return {}
    first: dict[str, str] = {}
    earlier = {}
    pairs = zip(table["record_id"].to_pylist(), table["waveform_sha256"].to_pylist(), strict=True)
    for record_id, waveform in pairs:
        if first.setdefault(waveform, record_id) != record_id:
            earlier[record_id] = first[waveform]
    return earlier


def _without_windows(table: pa.Table) -> pa.Table:
    """Let the first of a record's windows stand for all, `n_times` being theirs together."""
    first = np.flatnonzero(table["offset"].to_numpy() == 0)
    if len(first) == table.num_rows:
        return table
    n_times = np.add.reduceat(table["n_times"].to_numpy(), first)
    place = table.schema.get_field_index("n_times")
    field = table.schema.field(place)
    return table.take(first).set_column(place, field, pa.array(n_times, field.type))
