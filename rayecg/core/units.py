"""Work units and their ledger: what a killed job finished is not done again.

A stage's output is made of units. Each unit's files are written beside and renamed, and then its
ledger entry, so an entry stands for whole files. File names carry the plan's key: a worker of a
killed job, still alive while another plan is under way, cannot overwrite that plan's files.
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


def as_parquet(table: pa.Table, **options: Any) -> pa.Buffer:
    """Give a Parquet file's bytes."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
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

    def open(self, outputs: Iterable[str], plan: Mapping[str, Any] | None = None) -> None:
        """Keep what this plan finished here; remove what another plan left.

        Parameters
        ----------
        outputs
            Names of the stage's files and folders in the output folder.
        plan
            What `plan.json` says beside the key.

        Raises
        ------
        DataError
            If the folder holds anything else.
        """
        if (self.plan() or {}).get("key") == self.key:
            return
        known = {*outputs, *_OWN}
        names = self.out.names()
        earlier = self.plan() is not None or self.manifest() is not None
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

    def plan(self) -> dict[str, Any] | None:
        """Give what `plan.json` says, None if there is none."""
        return self._mark(PLAN)

    def manifest(self) -> dict[str, Any] | None:
        """Give the manifest of whatever finished here last, None if there is none."""
        return self._mark(MANIFEST)

    def begin(self, folders: Iterable[str], unit: str) -> None:
        """Remove what an earlier attempt at a unit wrote, which need not be what the next will."""
        for folder in folders:
            for name in self.out.names(folder):
                base = name.rpartition("/")[2]
                if base.startswith(unit) and base.endswith(unit_suffix(self.key)):
                    self.out.remove(name)

    def name(self, folder: str, unit: str) -> str:
        """Name a unit's Parquet file below one of the output's folders."""
        return f"{folder}/{unit}{unit_suffix(self.key)}"

    def file(self, folder: str, unit: str) -> Path:
        """Give the place of a unit's Parquet file in an output folder on disk."""
        assert self.out.folder is not None
        return self.out.folder / self.name(folder, unit)

    def write(self, folder: str, unit: str, table: pa.Table, partition: str | None = None) -> None:
        """Write a unit's Parquet file, whole or not at all.

        With `partition`, one file for each value of that column, in folders that name it.
        """
        if partition is None:
            self.out.write(self.name(folder, unit), as_parquet(table))
            return
        column = table[partition]
        table = table.drop_columns([partition])
        for value in pc.unique(column).to_pylist():
            own = pc.is_null(column) if value is None else pc.equal(column, value)
            text = _NO_VALUE if value is None else quote(str(value), safe="")
            name = self.name(f"{folder}/{partition}={text}", unit)
            self.out.write(name, as_parquet(table.filter(pc.fill_null(own, False))))

    def finished(self) -> set[str]:
        """List the units that have their entry."""
        names = self.out.names(self._ledger)
        return {name.rpartition("/")[2].removesuffix(".json") for name in names}

    def entry(self, unit: str) -> dict[str, Any]:
        """Read a unit's entry."""
        return json.loads(self.out.read(f"{self._ledger}/{unit}.json"))

    def finish(self, unit: str, entry: dict[str, Any]) -> None:
        """Enter a unit whose files are all in place; `entry` holds its counts."""
        self._write_json(f"{self._ledger}/{unit}.json", entry)

    def totals(self, units: Sequence[str], n_input: int) -> dict[str, int]:
        """Add up the entries of all units, which must account for every record.

        Raises
        ------
        DataError
            If they do not.
        """
        entries = [self.entry(unit) for unit in units]
        totals = {name: sum(entry[name] for entry in entries) for name in COUNTS}
        check_totals(totals, str(self.out))
        if totals["n_input"] != n_input:
            raise DataError(f"{self.out}: {n_input} records planned, {totals['n_input']} done")
        return totals

    def remove_strays(self, folders: Iterable[str], units: Iterable[str] | None = None) -> None:
        """Remove what another plan's last worker left among the files; `units` are those that stay."""
        own = None if units is None else set(units)
        for folder in (*folders, self._ledger):
            suffix = ".json" if folder == self._ledger else unit_suffix(self.key)
            for name in self.out.names(folder):
                base = name.rpartition("/")[2]
                stays = base.endswith(suffix)
                if not stays or (own is not None and base.removesuffix(suffix) not in own):
                    self.out.remove(name)

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
