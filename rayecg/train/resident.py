"""Training and validation windows, decoded once and kept as memory-mapped arrays.

Legend: W window, L lead, T time, C label.

All runs with the same input share the files, and all workers of a node their pages. Records of other
splits are dropped as they are read.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.errors import DataError, RecordError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import fingerprint, read_json, read_table, replacing_folder, write_json
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import read_records, shard_files
from rayecg.core.versions import code_fingerprint
from rayecg.signal.prepare import prepare
from rayecg.tasks.task import Task, target_matrix

#: The splits that training may read.
READ = ("train", "validation")


@dataclass(frozen=True)
class Windows:
    """The windows of one split.

    Attributes
    ----------
    x_WLT
        float32 memory map.
    target_WC
        0/1 targets of the example each window belongs to.
    example_W
        Row of `examples` each window belongs to, rising.
    examples
        The split's examples: `record_id`, `offset`, `patient_id`, targets.
    """

    x_WLT: np.ndarray
    target_WC: np.ndarray
    example_W: np.ndarray
    examples: pa.Table

    def __len__(self) -> int:
        return len(self.x_WLT)

    @property
    def n_used(self) -> int:
        """How many of the examples have a window; the others' records could not be prepared."""
        return len(np.unique(self.example_W))


def resident_windows(
    shards: Path, shards_key: str, examples: Path, task: Task, settings: InputSettings, cache: Path
) -> dict[str, Windows]:
    """Open the windows of the training and validation split, building the files if need be.

    Parameters
    ----------
    shards, shards_key
        Folder of shards, and the key of its manifest.
    examples
        `examples.parquet`.
    task, settings
        What the examples mean, and what of them a network reads.
    cache
        Where the arrays are kept, each under a fingerprint of what it was made from.

    Raises
    ------
    DataError
        If a split has no usable example.
    """
    folder = build_windows(shards, shards_key, examples, task, settings, cache)
    table = _read_examples(examples)
    dropped = read_json(folder / "windows.json")["dropped"]
    found = {}
    for split in READ:
        own = table.filter(pc.field("split") == split)
        x_WLT = np.load(folder / f"{split}_x.npy", mmap_mode="r")
        example_W = np.load(folder / f"{split}_example.npy")
        if not len(x_WLT):
            why = f" ({dropped[0][1]})" if dropped else ""
            raise DataError(f"{examples}: the split {split!r} has no example that can be used{why}")
        found[split] = Windows(x_WLT, target_matrix(task, own)[example_W], example_W, own)
    return found


def build_windows(
    shards: Path, shards_key: str, examples: Path, task: Task, settings: InputSettings, cache: Path
) -> Path:
    """Have the files of `resident_windows`; gives their folder."""
    code = code_fingerprint("core", "signal", "tasks")
    folder = cache / fingerprint([shards_key, to_tree(settings), to_tree(task), code])
    if not (folder / "windows.json").exists():
        with replacing_folder(folder) as beside:
            _build(shards, _read_examples(examples), task, settings, beside)
    return folder


def _read_examples(examples: Path) -> pa.Table:
    return read_table(examples).filter(pc.field("split").isin(list(READ)))


def _build(
    shards: Path, table: pa.Table, task: Task, settings: InputSettings, folder: Path
) -> None:
    """Prepare every window; an example whose record cannot be prepared is listed as dropped."""
    place: dict[str, tuple[str, list[int]]] = {}
    for split in READ:
        own = table.filter(pc.field("split") == split)
        rows_of: dict[str, list[int]] = defaultdict(list)
        for i, record_id in enumerate(own["record_id"].to_pylist()):
            rows_of[record_id].append(i)
        place |= {record_id: (split, rows) for record_id, rows in rows_of.items()}
    offsets = {split: _offsets(table, split) for split in READ}
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {split: [] for split in READ}
    dropped = []
    for file in shard_files(shards):
        for row, record in read_records(file, set(place)):
            split, rows = place[row["record_id"]]
            beats = offsets[split][rows] if task.unit == "beat" else None
            try:
                made = prepare(
                    record.physical, record.fs, record.leads, settings, beats, record.beat_times
                )
            except RecordError as error:
                dropped.append((row["record_id"], error.message))
                continue
            n = len(made.x_WLT)
            owner_W = np.array(rows) if task.unit == "beat" else np.full(n, rows[0])
            parts[split].append((made.x_WLT, owner_W))
    shape = (0, len(settings.leads), settings.n_times)
    for split, found in parts.items():
        found.sort(key=lambda part: part[1][0])
        x_WLT = np.concatenate([x for x, _ in found]) if found else np.empty(shape, np.float32)
        owner_W = np.concatenate([o for _, o in found]) if found else np.empty(0, np.int64)
        np.save(folder / f"{split}_x.npy", x_WLT)
        np.save(folder / f"{split}_example.npy", owner_W)
    write_json(folder / "windows.json", {"dropped": dropped})


def _offsets(table: pa.Table, split: str) -> np.ndarray:
    column: Any = table.filter(pc.field("split") == split)["offset"]
    return column.to_numpy()
