"""Training and validation windows, decoded once and kept as memory-mapped arrays.

Legend: W window, L lead, T time, M side column, C label.

All runs with the same input share the files, also those of other folds, and all workers of a node
their pages. Examples that no run trains or validates on are dropped as their records are read.
"""

from __future__ import annotations

import hashlib
import mmap
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.errors import DataError, RecordError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import (
    fingerprint,
    read_json,
    read_table,
    replacing_folder,
    write_json,
    write_table,
)
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import (
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.core.versions import code_fingerprint
from rayecg.signal.prepare import prepare
from rayecg.signal.side import side_names
from rayecg.tasks.task import target_matrix
from rayecg.train.run import Run

#: The splits that training may read.
READ = ("train", "validation")
#: What names an example.
KEYS = ["record_id", "offset"]


@dataclass(frozen=True)
class Windows:
    """The windows of one split.

    Attributes
    ----------
    all_WLT, all_WM
        float32 memory maps of the windows of all splits, and of the columns beside them.
    row_W
        Which of them are this split's.
    target_WC
        0/1 targets of the example each window belongs to.
    example_W
        Row of `examples` each window belongs to, rising.
    examples
        The split's examples: `record_id`, `offset`, `patient_id`, targets.
    shards
        Folder of the shards that the windows are of, if known.
    """

    all_WLT: np.ndarray
    all_WM: np.ndarray
    row_W: np.ndarray
    target_WC: np.ndarray
    example_W: np.ndarray
    examples: pa.Table
    shards: Path | None = None

    def __len__(self) -> int:
        return len(self.row_W)

    @property
    def n_used(self) -> int:
        """How many of the examples have a window; the others' records could not be prepared."""
        return len(np.unique(self.example_W))

    def take(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Copy some of the windows, and the columns beside them, out of the files."""
        rows = self.row_W[windows]
        self._read_together(rows)
        return self.all_WLT[rows], self.all_WM[rows]

    def _read_together(self, rows: np.ndarray) -> None:
        """Have the system read rows that memory does not hold all at once, not one after another."""
        own = self.all_WLT
        if not isinstance(own, np.memmap) or not own.size:
            return
        pages: mmap.mmap = own._mmap  # type: ignore[attr-defined]
        # numpy maps from the page that holds the first row.
        first, size = own.offset % mmap.ALLOCATIONGRANULARITY, own.strides[0]
        for row in rows.tolist():
            start = (first + row * size) // mmap.PAGESIZE * mmap.PAGESIZE
            pages.madvise(mmap.MADV_WILLNEED, start, first + (row + 1) * size - start)


def resident_windows(run: Run, shards: Path, examples: Path, cache: Path) -> dict[str, Windows]:
    """Open the windows of a run's training and validation split, building the files if need be.

    Parameters
    ----------
    run
        What is trained: its task says what the examples mean, its input what of them is read.
    shards
        Folder of shards.
    examples
        `examples.parquet`.
    cache
        Where the arrays are kept, each under a fingerprint of what it was made from.

    Raises
    ------
    DataError
        If a split has no usable example.
    """
    folder, task = build_windows(run, shards, examples, cache), run.task
    table = _read_examples(examples)
    if task.split.fold is not None:
        table = table.filter(pc.field("fold") == task.split.fold)
    dropped = read_json(folder / "windows.json")["dropped"]
    all_WLT, all_WM = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "side"))
    windows = read_table(folder / "windows.parquet").to_pandas()
    found = {}
    for split in READ:
        own = table.filter(pc.field("split") == split)
        place = own.select(KEYS).to_pandas().reset_index(names="example")
        here = windows.reset_index(names="row").merge(place, on=KEYS, how="inner")
        here = here.sort_values(["example", "row"])
        if not len(here):
            why = f" ({dropped[0][1]})" if dropped else ""
            raise DataError(f"{examples}: the split {split!r} has no example that can be used{why}")
        example_W = here["example"].to_numpy()
        target_WC = target_matrix(task, own)[example_W]
        row_W = here["row"].to_numpy()
        found[split] = Windows(all_WLT, all_WM, row_W, target_WC, example_W, own, shards)
    return found


def build_windows(run: Run, shards: Path, examples: Path, cache: Path) -> Path:
    """Have the files of `resident_windows`; gives their folder."""
    code = code_fingerprint("core", "signal", "tasks")
    # Folds share most of their examples, so the files hold those of all folds once.
    wanted = _read_examples(examples).select(KEYS).to_pandas().drop_duplicates()
    content = hashlib.sha256("\n".join(wanted["record_id"]).encode())
    content.update(wanted["offset"].to_numpy().tobytes())
    folder = cache / fingerprint(
        [run.shards_key, to_tree(run.input), run.task.unit, content.hexdigest(), code]
    )
    if not (folder / "windows.json").exists():
        with replacing_folder(folder) as beside:
            _build(shards, wanted, run.task.unit, run.input, beside)
    return folder


def _read_examples(examples: Path) -> pa.Table:
    return read_table(examples).filter(pc.field("split").isin(list(READ)))


def _build(
    shards: Path, wanted: pd.DataFrame, unit: str, settings: InputSettings, folder: Path
) -> None:
    """Prepare every window; an example whose record cannot be prepared is listed as dropped."""
    offsets_of: dict[str, list[int]] = defaultdict(list)
    for record_id, offset in zip(wanted["record_id"], wanted["offset"], strict=True):
        offsets_of[record_id].append(offset)
    owners: list[pd.DataFrame] = []
    dropped = []
    with (
        GrowingArray(folder / "x.npy", len(settings.leads), settings.n_times) as x_WLT,
        GrowingArray(folder / "side.npy", len(side_names(settings))) as side_WM,
    ):
        for file in shard_files(shards):
            for row, record in read_records(file, set(offsets_of)):
                offsets = np.array(offsets_of[row["record_id"]])
                beats = offsets if unit == "beat" else None
                try:
                    made = prepare(
                        record.physical,
                        record.fs,
                        record.leads,
                        settings,
                        beats,
                        record.beat_times,
                        row,
                    )
                except RecordError as error:
                    dropped.append((row["record_id"], error.message))
                    continue
                x_WLT.append(made.x_WLT)
                side_WM.append(made.side_WM)
                n = len(made.x_WLT)
                offset_W = offsets if unit == "beat" else np.full(n, offsets[0])
                owners.append(pd.DataFrame({"record_id": row["record_id"], "offset": offset_W}))
    schema = pa.schema([("record_id", pa.string()), ("offset", pa.int64())])
    owner_W = pd.concat(owners) if owners else pd.DataFrame({name: [] for name in KEYS})
    write_table(folder / "windows.parquet", pa.Table.from_pandas(owner_W, schema, False))
    write_json(folder / "windows.json", {"dropped": dropped})


class GrowingArray:
    """A float32 `.npy` file that grows by rows: memory holds no more than those of one record."""

    def __init__(self, path: Path, *shape: int) -> None:
        self._path, self._shape, self._n = path, shape, 0

    def __enter__(self) -> GrowingArray:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.seek(0)
        self._write_header()
        self._file.close()

    def append(self, rows: np.ndarray) -> None:
        """Write rows after those that are there; ValueError if they have another shape."""
        if rows.shape[1:] != self._shape:
            raise ValueError(f"{self._path.name}: expected rows {self._shape}, came {rows.shape}")
        self._file.write(np.ascontiguousarray(rows, dtype=np.float32).data)
        self._n += len(rows)

    def _write_header(self) -> None:
        """Write it at the start; numpy leaves room in it for any number of rows."""
        what = {"descr": "<f4", "fortran_order": False, "shape": (self._n, *self._shape)}
        np.lib.format.write_array_header_1_0(self._file, what)
