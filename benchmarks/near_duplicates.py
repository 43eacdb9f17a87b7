"""How fast near copies are found among 20,000 records, how many of them, and with how many false alarms.

    python benchmarks/near_duplicates.py [--json] [--records 20000] [--fs 100] [--copies 100]
    python benchmarks/near_duplicates.py --shards DIR [--json]

Simulated 12-lead records of 10 s, nine in ten in training, one in ten in the test; beside the test
records, `--copies` of each kind are planted whose originals are in training: another gain and offset; a
lag of up to 2 s either way, as if the same recording had been cut elsewhere; a crop to 8 s; another
rate (360 Hz); noise of 20 % of the RMS; and all of these together, the noise then 10 %. A copy that is not
matched with its original is missed; any other pair that is called a copy is a false alarm.

The ratio is the time that confirming every pair would take (scaled from 20,000 pairs) over that of
screening and confirming what is left. With `--shards`, nothing is planted: of 300 windows of a
`make_shards` output, how much the closest of another patient correlates.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from rayecg.archives.morphology import LEADS
from rayecg.archives.synthesis import BLOCK, draw_block, simulate
from rayecg.audit.copies import CopySearch, align, candidates, line_up
from rayecg.core.files import MANIFEST, read_table, write_json, write_table
from rayecg.core.record import Record
from rayecg.core.shard_format import Layout, index_table, shard_batch
from rayecg.core.units import unit_suffix
from rayecg.core.versions import versions
from rayecg.signal.filters import resample

KINDS = ("gain", "lag", "crop", "resampled", "noise", "all")
#: Longer than a record, so that a copy can begin earlier or later: s.
DRAWN_S, RECORD_S, MOST_LAG_S = 14.0, 10.0, 2.0
OTHER_FS, UNITS_PER_MV = 360, 1000.0
N_DISTANT, KEY = 300, "0123456789abcdef"


def recordings(n_records: int, fs: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield id and 14 s in mV of each record; the records of a patient follow one another."""
    for block in range(-(-n_records // BLOCK)):
        n = min(BLOCK, n_records - block * BLOCK)
        for i, x_LT in enumerate(simulate(draw_block(0, block), fs, DRAWN_S, n)):
            yield f"r{block * BLOCK + i:05d}", x_LT


def cut(x_LT: np.ndarray, fs: int, start_s: float, length_s: float) -> np.ndarray:
    """Cut a stretch."""
    first = round(start_s * fs)
    return x_LT[:, first : first + round(length_s * fs)]


def copy_of(x_LT: np.ndarray, fs: int, kind: str, rng: np.random.Generator) -> Record:
    """Make a copy of the middle 10 s of a drawn record."""
    every = kind == "all"
    start_s, length_s, gain, offset = (DRAWN_S - RECORD_S) / 2, RECORD_S, 1.0, 0.0
    if kind in ("lag", "all"):
        start_s += rng.uniform(0.5, MOST_LAG_S) * rng.choice([-1, 1])
    if kind in ("crop", "all"):
        length_s -= 2.0
        start_s += rng.choice([0.0, 2.0])
    y_LT, rate = cut(x_LT, fs, start_s, length_s).astype(np.float64), fs
    if kind in ("resampled", "all"):
        y_LT, rate = resample(y_LT, fs, OTHER_FS), OTHER_FS
    if kind in ("noise", "all"):
        share = 0.1 if every else 0.2
        rms_L1 = y_LT.std(axis=1, keepdims=True)
        y_LT = y_LT + share * rms_L1 * rng.normal(size=y_LT.shape)
    if kind in ("gain", "all"):
        gain, offset = float(np.exp(rng.uniform(-1, 1))), float(rng.uniform(-0.5, 0.5))
    return as_record(gain * y_LT + offset, rate)


def as_record(x_LT: np.ndarray, fs: int) -> Record:
    """Write mV as integers of 1 uV."""
    digital_LT = np.clip(np.rint(x_LT * UNITS_PER_MV), -32767, 32767).astype(np.int16)
    n_leads = len(LEADS)
    gain_L, baseline_L = np.full(n_leads, UNITS_PER_MV), np.zeros(n_leads, np.int64)
    return Record(digital_LT, gain_L, baseline_L, float(fs), tuple(LEADS))


def write_shard(folder: Path, name: str, own: dict[str, Record]) -> None:
    """Write records of one layout, padded to the longest."""
    records = list(own.values())
    layout = max((Layout.of(record) for record in records), key=lambda one: one.n_times)
    index = index_table([{"record_id": record_id, "path": record_id} for record_id in own])
    batch = shard_batch(index, records, layout)
    table = pa.Table.from_batches([batch])
    write_table(folder / "records" / f"{name}{unit_suffix(KEY)}", table, row_group_size=64)


def plant(folder: Path, n_records: int, fs: int, n_copies: int) -> dict[str, tuple[str, str]]:
    """Write the shards; gives original and kind of each copy."""
    rng = np.random.default_rng(0)
    n_training = round(0.9 * n_records)
    chosen = rng.permutation(n_training)[: n_copies * len(KINDS)]
    kind_of = {int(place): KINDS[i % len(KINDS)] for i, place in enumerate(chosen)}
    planted: dict[str, tuple[str, str]] = {}
    held: dict[str, Record] = {}
    copies: dict[tuple[float, int], dict[str, Record]] = {}
    n_shards = 0
    for place, (record_id, x_LT) in enumerate(recordings(n_records, fs)):
        held[record_id] = as_record(cut(x_LT, fs, (DRAWN_S - RECORD_S) / 2, RECORD_S), fs)
        if place in kind_of:
            made = copy_of(x_LT, fs, kind_of[place], rng)
            name = f"c{len(planted):05d}"
            planted[name] = (record_id, kind_of[place])
            copies.setdefault((made.fs, made.digital_LT.shape[1]), {})[name] = made
        if len(held) == 4 * BLOCK or place == n_records - 1:
            write_shard(folder, f"{n_shards:06d}", held)
            held, n_shards = {}, n_shards + 1
    for i, own in enumerate(copies.values()):
        write_shard(folder, f"{900000 + i}", own)
    write_json(folder / MANIFEST, {"key": KEY})
    return planted


def compare(folder: Path, n_records: int, fs: int, n_copies: int) -> dict[str, Any]:
    """Plant, look, and count."""
    planted = plant(folder, n_records, fs, n_copies)
    ids = [f"r{place:05d}" for place in range(n_records)]
    training = frozenset(ids[: round(0.9 * n_records)])
    test = frozenset(ids) - training | frozenset(planted)
    start, start_cpu = time.perf_counter(), time.process_time()
    search = CopySearch(folder, training | test)
    n_windows = len(search.windows)
    read_s = time.perf_counter() - start
    found = search.between(test, training)
    seconds, cpu = time.perf_counter() - start, time.process_time() - start_cpu
    called = {(pair.second, pair.first) for pair in found if pair.is_copy}
    recall = {
        kind: sum(
            (name, planted[name][0]) in called for name in planted if planted[name][1] == kind
        )
        / max(sum(own == kind for _, own in planted.values()), 1)
        for kind in KINDS
    }
    false = [pair for pair in called if planted.get(pair[0], ("",))[0] != pair[1]]
    others = [p for p in found if planted.get(p.second, ("",))[0] != p.first]
    place_of = {record_id: i for i, record_id in enumerate(search.windows.record_ids)}
    missed = {name: first for name, (first, _) in planted.items() if (name, first) not in called}
    unscreened = 0
    for name, first in missed.items():
        windows, pair = search.windows, [place_of[name], place_of[first]]
        x_LT, y_LT = windows.x_NLT[pair].astype(np.float32)
        unscreened += (alone := align(x_LT, y_LT, *windows.used_N[pair])).correlation >= alone.least
    some = np.random.default_rng(1).integers(n_windows, size=(20, 1000))
    start_every = time.perf_counter()
    for query, among_K in enumerate(some):
        list(line_up(search.windows, query, among_K, 0.95))
    every_s = (time.perf_counter() - start_every) / some.size * len(test) * len(training)
    return {
        "ratio": every_s / (seconds - read_s),
        "records": n_records + len(planted),
        "pairs": len(test) * len(training),
        "s": seconds,
        "read_s": read_s,
        "cpu_s": cpu,
        "largest_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "recall": recall,
        "missed": len(missed),
        "missed_in_screening": unscreened,
        "false_alarms": len(false),
        "closest_of_no_copy": [one.as_evidence() for one in others[:8]],
    }


def strangers(folder: Path) -> dict[str, Any]:
    """Say how close the closest record of another patient comes, in shards as they are."""
    table = read_table(
        folder / "records", columns=["record_id", "patient_id", "offset"]
    ).to_pandas()
    patient = table[table["offset"] == 0].set_index("record_id")["patient_id"]
    search = CopySearch(folder, patient.index)
    windows = search.windows
    person_N = patient.loc[list(windows.record_ids)].to_numpy(dtype=str)[windows.record_N]
    rng = np.random.default_rng(0)
    queries = np.sort(rng.permutation(len(windows))[:N_DISTANT])
    closest = []
    for query, among_K in candidates(search.embedding, queries, np.arange(len(windows))):
        others_K = among_K[person_N[among_K] != person_N[query]]
        found = [one.correlation for _, one in line_up(windows, query, others_K, 0.0)]
        closest.append(max(found, default=0.0))
    marks = (0.5, 0.9, 0.99, 1.0)
    return {
        "windows": len(windows),
        "queries": len(closest),
        "closest_of_another_patient": {
            f"{mark:g}": float(np.quantile(closest, mark)) for mark in marks
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--records", type=int, default=20_000, help="how many (20,000)")
    parser.add_argument("--fs", type=int, default=100, help="their rate, Hz (100)")
    parser.add_argument("--copies", type=int, default=100, help="of each kind (100)")
    parser.add_argument("--shards", type=Path, help="a make_shards output to look at instead")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    if arguments.shards:
        rows = {"strangers": strangers(arguments.shards)}
    else:
        with tempfile.TemporaryDirectory() as folder:
            settings = arguments.records, arguments.fs, arguments.copies
            rows = {"near_duplicates": compare(Path(folder), *settings)}
    if arguments.json:
        found = {"cpus": os.cpu_count(), "load_before": load, "versions": versions(), "rows": rows}
        json.dump(found, sys.stdout, indent=2)
        print()
        return
    print(f"load before {load:.2f}")
    for name, row in rows.items():
        for key, value in row.items():
            print(f"{name}, {key}: {value:,.4g}" if isinstance(value, float) else f"{key}: {value}")


if __name__ == "__main__":
    main()
