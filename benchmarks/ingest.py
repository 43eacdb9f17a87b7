"""How fast archives become tensors: reading, `make_shards`, and loading shards.

    python benchmarks/ingest.py [--json] [--records 60000] [--scale 20000,100000,400000]

Makes its own data (simulated records, distinct files) in a temporary folder. Both sides of a ratio end
in arrays of mV, or in the same integers, and are measured in turns; the ratio is the median over the
turns. `a_a_control` is the baseline against itself: how far from 1 it lies, the rest may err.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import wfdb
from printing import print_rows

from rayecg.archives.base import Archive
from rayecg.archives.catalogue import open_archive
from rayecg.archives.synthetic import SyntheticSettings, write_archive
from rayecg.archives.wfdb_header import parse_header, read_header
from rayecg.core.experiment import ArchiveSettings, ShardSettings
from rayecg.core.session import RaySettings, ray_session
from rayecg.core.shard_format import (
    ROW_GROUP_BYTES,
    Layout,
    shard_batch,
    shard_files,
)
from rayecg.core.shard_reader import row_groups
from rayecg.core.units import Units
from rayecg.shards.build import as_bytes, make_shards
from rayecg.shards.unit import UnitWriter
from rayecg.signal.assessment import assess

TURNS = 5
#: Records that the slow side reads in a turn; its rate does not depend on how many.
SLOW = 250


def seconds(function: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def wfdb_loop(root: str, names: Sequence[str]) -> Callable[[], float]:
    """Give a loop over records with `wfdb.rdrecord`, ending in mV."""

    def loop() -> float:
        return sum(float(wfdb.rdrecord(f"{root}/{name}").p_signal[-1, -1]) for name in names)

    return loop


def own_loop(archive: Archive, rows: Sequence[dict[str, Any]]) -> Callable[[], float]:
    """Give a loop over records with the archive's reader and its default checks, ending in mV."""

    def loop() -> float:
        return sum(
            float(record.physical[-1, -1])
            for record in archive.read_each(rows)
            if not isinstance(record, Exception)
        )

    return loop


def simulated(folder: Path, n_records: int, fs: int, seed: int) -> Archive:
    """Write an archive of distinct records without defects, and open it as plain WFDB."""
    settings = SyntheticSettings(n_records=n_records, fs=fs, seed=seed, n_defective=0)
    write_archive(folder, settings)
    return open_archive(ArchiveSettings(kind="wfdb", path=str(folder)))


def decode(folder: Path, fs: int) -> dict[str, Any]:
    """Compare the reader with `wfdb.rdrecord` in this process."""
    archive = simulated(folder, 3000, fs, seed=fs)
    rows = archive.index().to_pylist()
    names = [row["path"] for row in rows]
    own_loop(archive, rows[:200])()
    wfdb_loop(archive.folder.root, names[:20])()
    ratios, own_rates, slow_rates, control = [], [], [], []
    for turn in range(TURNS):
        some = names[turn * SLOW : (turn + 1) * SLOW]
        slow = SLOW / seconds(wfdb_loop(archive.folder.root, some))
        own = len(rows) / seconds(own_loop(archive, rows))
        again = SLOW / seconds(wfdb_loop(archive.folder.root, some))
        own_rates.append(own)
        slow_rates.append((slow + again) / 2)
        ratios.append(own / slow_rates[-1])
        control.append(again / slow)
    return {
        "ratio": statistics.median(ratios),
        "records_per_s": statistics.median(own_rates),
        "wfdb_records_per_s": statistics.median(slow_rates),
        "a_a_control": statistics.median(control),
    }


def build(archive: Archive, out: Path, settings: ShardSettings) -> float:
    """Time `make_shards`, from the index to the manifest, in seconds."""
    shutil.rmtree(out, ignore_errors=True)
    return seconds(lambda: make_shards(archive, settings, out))


def shards(folder: Path, n_records: int, out: Path) -> dict[str, dict[str, Any]]:
    """Compare `make_shards` on two cores with a `wfdb.rdrecord` loop."""
    archive = simulated(folder, n_records, 100, seed=1)
    names = [row["path"] for row in archive.index().to_pylist()]
    kinds = {
        "make_shards_100hz": ShardSettings(),
        "make_shards_100hz_no_flags": ShardSettings(quality=False),
    }
    rates: dict[str, list[float]] = {kind: [] for kind in kinds}
    ratios: dict[str, list[float]] = {kind: [] for kind in kinds}
    slow_rates = []
    warm = open_archive(ArchiveSettings(kind="wfdb", path=str(folder), limit=2000))
    build(warm, out, ShardSettings())
    for turn in range(3):
        for kind, settings in kinds.items():
            some = names[turn * SLOW : (turn + 1) * SLOW]
            slow = SLOW / seconds(wfdb_loop(archive.folder.root, some))
            own = n_records / build(archive, out, settings)
            slow_rates.append(slow)
            rates[kind].append(own)
            ratios[kind].append(own / slow)
    return {
        kind: {
            "ratio": statistics.median(ratios[kind]),
            "records_per_s": statistics.median(rates[kind]),
            "wfdb_records_per_s": statistics.median(slow_rates),
            "records": n_records,
            "compression": kinds[kind].compression,
        }
        for kind in kinds
    }


def profile(folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Time the steps of one worker, each by itself and alone, in microseconds a record."""
    archive = open_archive(ArchiveSettings(kind="wfdb", path=str(folder), limit=2000))
    index = archive.checked_index()
    rows = index.to_pylist()
    read = archive.folder.read
    records = [record for record in archive.read_each(rows) if not isinstance(record, Exception)]
    assessments = assess(records)
    layout = Layout.of(records[0])

    def batches() -> list[pa.RecordBatch]:
        step = ROW_GROUP_BYTES // records[0].digital_LT.nbytes
        return [
            shard_batch(
                index.slice(i, step), records[i : i + step], layout, assessments[i : i + step]
            )
            for i in range(0, len(records), step)
        ]

    made = batches()

    def write(compression: str) -> None:
        with pq.ParquetWriter(
            out, made[0].schema, compression=compression, use_dictionary=False
        ) as writer:
            for batch in made:
                writer.write_batch(batch)

    writer = UnitWriter(archive, ShardSettings(), Units(folder / "profile", "0" * 16))
    item = {"unit": "000000", "rows": as_bytes(index)}
    headers = [(read_header(archive.folder, row["path"])).text for row in rows]
    steps: dict[str, Callable[[], object]] = {
        "open and read two files": lambda: [
            (read(f"{row['path']}.hea"), read(f"{row['path']}.dat")) for row in rows
        ],
        "parse the header": lambda: [parse_header(text) for text in headers],
        "all of reading, with checks": lambda: list(archive.read_each(rows)),
        "measure quality": lambda: assess(records),
        # A record keeps its hash, so that each is asked of a copy.
        "hash the waveform": lambda: [dataclasses.replace(record).sha256 for record in records],
        "build the row group": batches,
        "write Parquet, zstd": lambda: write("zstd"),
        "write Parquet, uncompressed": lambda: write("none"),
        "the whole unit": lambda: writer(item),
    }
    found = {}
    for name, step in steps.items():
        step()
        best = min(seconds(step) for _ in range(5))
        found[f"profile: {name}"] = {"us_per_record": best / len(rows) * 1e6}
    return found


def load(folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Compare loading shards with copying the same samples out of `np.load(mmap_mode="r")`."""
    archive = open_archive(ArchiveSettings(kind="wfdb", path=str(folder), limit=20_000))
    rows: dict[str, dict[str, Any]] = {}
    for name, compression in (("load_shards", "none"), ("load_shards_default", "zstd")):
        build(archive, out, ShardSettings(compression=compression, quality=False))  # type: ignore[arg-type]
        files = shard_files(out)
        copies = []
        for i, file in enumerate(files):
            copies.append(out / f"copy{i}.npy")
            np.save(copies[-1], np.concatenate([x_NLT for _, x_NLT, _ in row_groups(file)]))
        n_bytes = sum(copy.stat().st_size for copy in copies)

        def from_shards(files: list[Path] = files) -> list[np.ndarray]:
            return [x_NLT for file in files for _, x_NLT, _ in row_groups(file, columns=())]

        def from_copies(copies: list[Path] = copies) -> list[np.ndarray]:
            return [np.array(np.load(copy, mmap_mode="r")) for copy in copies]

        found = [from_shards(), from_copies()]
        assert sum(len(x) for x in found[0]) == sum(len(x) for x in found[1])
        assert all(
            (a == b).all()
            for a, b in zip(np.concatenate(found[0]), np.concatenate(found[1]), strict=True)
        )
        n_records = sum(len(x) for x in found[0])
        found.clear()
        ratios, rates, control = [], [], []
        for _ in range(9):
            slow, own, again = seconds(from_copies), seconds(from_shards), seconds(from_copies)
            ratios.append((slow + again) / 2 / own)
            rates.append(n_records / own)
            control.append(slow / again)
        size = sum(file.stat().st_size for file in files) / n_bytes
        rows[name] = {
            "ratio": statistics.median(ratios),
            "records_per_s": statistics.median(rates),
            "a_a_control": statistics.median(control),
            "compression": compression,
            "size_of_shards": size,
            "records": n_records,
        }
    return rows


def scale(sizes: Sequence[int], folder: Path, out: Path) -> dict[str, dict[str, Any]]:
    """Measure time and peak memory of `make_shards` over archives of several sizes."""
    simulated(folder, max(sizes), 100, seed=2)
    rows = {}
    for n_records in sizes:
        archive = open_archive(ArchiveSettings(kind="wfdb", path=str(folder), limit=n_records))
        with peak_memory() as peak:
            took = build(archive, out, ShardSettings())
        rows[f"scale_{n_records}"] = {
            "records": n_records,
            "seconds": took,
            "records_per_s": n_records / took,
            "worker_mib": peak["worker"] / 2**20,
            "driver_mib": peak["driver"] / 2**20,
        }
    return rows


@contextlib.contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Watch the private memory of this process and of the largest Ray worker, in bytes."""
    peak, stop = {"worker": 0, "driver": 0}, threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            for process in os.listdir("/proc"):
                if not process.isdecimal():
                    continue
                try:
                    title = Path(f"/proc/{process}/cmdline").read_bytes()
                    kind = "driver" if int(process) == os.getpid() else "worker"
                    if kind == "worker" and not title.startswith(b"ray::"):
                        continue
                    status = Path(f"/proc/{process}/status").read_text()
                except OSError:  # it ended meanwhile
                    continue
                anonymous = next(row for row in status.splitlines() if row.startswith("RssAnon"))
                peak[kind] = max(peak[kind], int(anonymous.split()[1]) * 1024)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--records", type=int, default=60_000, help="of make_shards (60000)")
    parser.add_argument("--scale", metavar="N,N,…", help="also: memory and time at these sizes")
    parser.add_argument("--work", type=Path, help="where the data are made (a temporary folder)")
    arguments = parser.parse_args()
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        folder = Path(work)
        for fs in (100, 500):
            rows[f"decode_{fs}hz"] = decode(folder / f"decode{fs}", fs)
            shutil.rmtree(folder / f"decode{fs}")
        with ray_session(RaySettings()):
            rows |= shards(folder / "archive", arguments.records, folder / "shards")
            rows |= load(folder / "archive", folder / "shards")
            rows |= profile(folder / "archive", folder / "profile.parquet")
            if arguments.scale:
                shutil.rmtree(folder / "archive")
                sizes = [int(size) for size in arguments.scale.split(",")]
                rows |= scale(sizes, folder / "archive", folder / "shards")
    print_rows(rows, arguments.json)


if __name__ == "__main__":
    main()
