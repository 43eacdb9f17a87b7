"""Work units and their ledger: what a killed job finished is not done again.

A stage's output is made of units. Each unit's files are written beside and renamed, and then its
ledger entry, which names them: an entry stands for whole files, and what no entry names is nobody's.
File names carry the plan's key: a worker of a killed job, still alive while another plan is under
way, cannot overwrite that plan's files.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rayecg.core.destination import Destination, open_destination
from rayecg.core.errors import DataError
from rayecg.core.files import MANIFEST, as_json, check_totals, read_json

COUNTS = ("n_input", "n_ok", "n_degraded", "n_quarantined")
PLAN = "plan.json"
_OWN = ("ledger", ".lock", ".claims", PLAN, MANIFEST)
#: How a folder names the lack of a value; pandas and DuckDB read it so.
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def as_parquet(table: pa.Table) -> pa.Buffer:
    """Give a Parquet file's bytes; texts alone have a dictionary, which numbers do not repay."""
    texts = [
        f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name
        for field in table.schema
        if pa.types.is_list(field.type) or pa.types.is_string(field.type)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, use_dictionary=texts)
    return sink.getvalue()


def read_parquet(data: bytes) -> pa.Table:
    """Read a Parquet file from its bytes."""
    return pq.read_table(pa.BufferReader(data))


def unit_suffix(key: str) -> str:
    """Give the end of the names of a plan's files."""
    return f".{key[:8]}.parquet"


def unit_files(out: Path, folder: str, key: str | None = None) -> list[Path]:
    """List a plan's files in one of the output's folders, in order; by default the finished plan's."""
    key = key or read_json(out / MANIFEST)["key"]
    return sorted((out / folder).glob(f"*{unit_suffix(key)}"))


def _parts(table: pa.Table, partition: str) -> dict[str, pa.Table]:
    """Part rows by a column's values, as the names of folders say them; the column itself goes."""
    column, found = table[partition], {}
    table = table.drop_columns([partition])
    for value in pc.unique(column).to_pylist():
        own = pc.is_null(column) if value is None else pc.equal(column, value)
        text = _NO_VALUE if value is None else quote(str(value), safe="")
        if text in found:
            raise DataError(f"two values of {partition!r} would share the folder {text!r}")
        found[text] = table.filter(pc.fill_null(own, False))
    return found


def failure_as_row(
    work: Callable[..., dict[str, Any]],
) -> Callable[..., dict[str, Any]]:
    """Let a unit's work give a `DataError` as a row: Ray loses what an exception was, on its way back.

    `raise_failures` raises it again.
    """

    @functools.wraps(work)
    def wrapped(*given: Any) -> dict[str, Any]:
        try:
            return {**work(*given), "failure": ""}
        except DataError as error:
            return {"failure": str(error)}

    return wrapped


def raise_failures(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass on what units gave, and raise the first failure.

    Raises
    ------
    DataError
        The one that stopped a unit.
    """
    for row in rows:
        if row["failure"]:
            raise DataError(row["failure"])
        yield row


class Units:
    """The units of one plan in an output folder, or in an object store.

    Parameters
    ----------
    out
        Where the output goes.
    key
        Fingerprint of the plan: inputs, settings and code.
    """

    def __init__(self, out: str | Path | Destination, key: str) -> None:
        self.out = out if isinstance(out, Destination) else open_destination(out)
        self.key = key

    def open(self, outputs: Iterable[str], plan: Mapping[str, Any] | None = None) -> bool:
        """Keep what this plan finished here; remove what another plan left.

        Parameters
        ----------
        outputs
            Names of the stage's files and folders in the output folder.
        plan
            What `plan.json` says beside the key.

        Returns
        -------
        bool
            Whether it is this plan's, so that what it finished stands.

        Raises
        ------
        DataError
            If the folder holds anything else.
        """
        standing = self.plan()
        if standing is not None and standing["key"] == self.key:
            return True
        known = {*outputs, *_OWN}
        names = self.out.names()
        earlier = standing is not None or self.manifest() is not None
        # Names alone prove nothing: another's folder may hold `records`, too.
        kept = known if earlier else {".lock"}
        strangers = sorted({top for name in names if (top := name.split("/")[0]) not in kept})
        if strangers:
            raise DataError(
                f"{self.out}: expected an empty folder or an earlier output, found {strangers[0]!r}"
            )
        if earlier:
            # First what says that the rest is whole: a kill in between leaves nothing to trust, and
            # the mark that this is an output.
            self.out.remove(MANIFEST)
            self._write_json(PLAN, {"key": ""})
            for name in names:
                if name not in (".lock", PLAN):
                    # A worker of a killed job may be writing here; its files bear another key.
                    self.out.remove(name)
        self._write_json(PLAN, {"key": self.key, **(plan or {})})
        return False

    def plan(self) -> dict[str, Any] | None:
        """Give what `plan.json` says, None if there is none."""
        return self._mark(PLAN)

    def manifest(self) -> dict[str, Any] | None:
        """Give the manifest of whatever finished here last, None if there is none."""
        return self._mark(MANIFEST)

    def name(self, folder: str, unit: str) -> str:
        """Name a unit's Parquet file below one of the output's folders."""
        return f"{folder}/{unit}{unit_suffix(self.key)}"

    def file(self, folder: str, unit: str) -> Path:
        """Give the place of a unit's Parquet file in an output folder on disk."""
        assert self.out.folder is not None
        return self.out.folder / self.name(folder, unit)

    def write(
        self, folder: str, unit: str, table: pa.Table, partition: str | None = None
    ) -> list[str]:
        """Write a unit's Parquet file, whole or not at all; gives its name.

        With `partition`, one file for each value of that column, in folders that name it.
        """
        if partition is None:
            parts = {self.name(folder, unit): table}
        else:
            parts = {
                self.name(f"{folder}/{partition}={text}", unit): own
                for text, own in _parts(table, partition).items()
            }
        for name, own in parts.items():
            self.out.write(name, as_parquet(own))
        return list(parts)

    def finish(self, unit: str, entry: dict[str, Any], files: Iterable[str]) -> None:
        """Enter a unit; `entry` holds its counts, `files` names all it wrote, which are in place."""
        self._write_json(f"{self._ledger}/{unit}.json", {**entry, "files": sorted(files)})

    def finished(self, folders: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Read the entries of the units whose files are all in these folders of the output."""
        there = {name for folder in folders for name in self.out.names(folder)}
        found = {}
        for name in self.out.names(self._ledger):
            entry = json.loads(self.out.read(name))
            if there.issuperset(entry["files"]):
                found[name.rpartition("/")[2].removesuffix(".json")] = entry
        return found

    def totals(self, folders: Sequence[str], units: Sequence[str], n_input: int) -> dict[str, int]:
        """Add up the entries of all units, which must account for every record.

        What lies in the folders and belongs to none of these units is removed: files of an attempt
        that was cut off, or that another plan's last worker wrote.

        Raises
        ------
        DataError
            If they do not.
        """
        found = self.finished(folders)
        lost = [unit for unit in units if unit not in found]
        if lost:
            raise DataError(
                f"{self.out}: files of {len(lost)} of {len(units)} units are gone (the first unit: "
                f"{lost[0]}); the same command makes them again"
            )
        entries = {unit: found[unit] for unit in units}
        totals = {name: sum(entry[name] for entry in entries.values()) for name in COUNTS}
        check_totals(totals, str(self.out))
        if totals["n_input"] != n_input:
            raise DataError(f"{self.out}: {n_input} records planned, {totals['n_input']} done")
        kept = {name for entry in entries.values() for name in entry["files"]}
        kept |= {f"{self._ledger}/{unit}.json" for unit in units}
        for folder in (*folders, "ledger"):
            for name in self.out.names(folder):
                if name not in kept:
                    self.out.remove(name)
        return totals

    @property
    def _ledger(self) -> str:
        return f"ledger/{self.key[:8]}"

    def _mark(self, name: str) -> dict[str, Any] | None:
        """Read what marks this as an output; somebody else's file of that name is none."""
        if not self.out.exists(name):
            return None
        try:
            found = json.loads(self.out.read(name))
        except ValueError:
            return None
        return found if isinstance(found, dict) and "key" in found else None

    def _write_json(self, name: str, value: dict[str, Any]) -> None:
        self.out.write(name, as_json(value).encode())
