"""Work units and their ledger: what a killed job finished is not done again.

A stage's output is made of units. Each unit's files are written beside and renamed, and then its
ledger entry, so an entry stands for whole files. File names carry the plan's key: a worker of a
killed job, still alive while another plan is under way, cannot overwrite that plan's files.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rayecg.core.errors import DataError
from rayecg.core.files import MANIFEST, check_totals, read_json, write_json

COUNTS = ("n_input", "n_ok", "n_degraded", "n_quarantined")
_OWN = ("ledger", "plan.json", ".lock", MANIFEST)


def unit_suffix(key: str) -> str:
    """Give the end of the names of a plan's files."""
    return f".{key[:8]}.parquet"


def unit_files(out: Path, folder: str, key: str | None = None) -> list[Path]:
    """List a plan's files in one of the output's folders, in order; by default the finished plan's."""
    key = key or read_json(out / MANIFEST)["key"]
    return sorted((out / folder).glob(f"*{unit_suffix(key)}"))


def failure_as_row(
    work: Callable[[Any, dict[str, Any]], dict[str, Any]],
) -> Callable[[Any, dict[str, Any]], dict[str, Any]]:
    """Let a unit's work give a `DataError` as a row: Ray loses what an exception was, on its way back.

    `raise_failures` raises it again.
    """

    @functools.wraps(work)
    def wrapped(self: Any, item: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**work(self, item), "failure": ""}
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
    """The units of one plan in an output folder.

    Parameters
    ----------
    out
        The output folder.
    key
        Fingerprint of the plan: inputs, settings and code.
    """

    def __init__(self, out: Path, key: str) -> None:
        self.out, self.key = out, key

    def open(self, outputs: Iterable[str]) -> None:
        """Keep what this plan finished here; remove what another plan left.

        Parameters
        ----------
        outputs
            Names of the stage's files and folders in the output folder.

        Raises
        ------
        DataError
            If the folder holds anything else.
        """
        plan = self.out / "plan.json"
        if plan.exists() and read_json(plan).get("key") == self.key:
            return
        known = {*outputs, *_OWN}
        found = sorted(path.name for path in self.out.iterdir()) if self.out.exists() else []
        earlier = _is_output(plan) or _is_output(self.out / MANIFEST)
        # Names alone prove nothing: another's folder may hold `records`, too.
        strangers = [name for name in found if not _ours(name, known if earlier else {".lock"})]
        if strangers:
            raise DataError(
                f"{self.out}: expected an empty folder or an earlier output, found {strangers[0]!r}"
            )
        if earlier:
            # First what says that the rest is whole: a kill in between leaves nothing to trust, and
            # the mark that this is an output.
            (self.out / MANIFEST).unlink(missing_ok=True)
            write_json(plan, {"key": ""})
            for child in [self.out / "ledger", *self.out.iterdir()]:
                if child.is_dir():
                    # A worker of a killed job may be writing here; its files bear another key.
                    shutil.rmtree(child, ignore_errors=True)
                elif child.name not in (".lock", "plan.json"):
                    child.unlink(missing_ok=True)
        write_json(plan, {"key": self.key})

    def begin(self, folders: Iterable[str], unit: str) -> None:
        """Remove what an earlier attempt at a unit wrote, which need not be what the next will."""
        for folder in folders:
            for file in (self.out / folder).glob(f"{unit}*{unit_suffix(self.key)}"):
                file.unlink(missing_ok=True)

    def file(self, folder: str, unit: str) -> Path:
        """Name a unit's Parquet file in one of the output's folders."""
        return self.out / folder / f"{unit}{unit_suffix(self.key)}"

    def is_finished(self, unit: str) -> bool:
        """Say whether a unit has its entry."""
        return self._entry(unit).exists()

    def n_done(self, units: Iterable[str]) -> int:
        """Count the records of the units that are finished."""
        return sum(read_json(self._entry(u))["n_input"] for u in units if self.is_finished(u))

    def finish(self, unit: str, entry: dict[str, Any]) -> None:
        """Enter a unit whose files are all in place; `entry` holds its counts."""
        write_json(self._entry(unit), entry)

    def totals(self, units: Sequence[str], n_input: int) -> dict[str, int]:
        """Add up the entries of all units, which must account for every record.

        Raises
        ------
        DataError
            If they do not.
        """
        entries = [read_json(self._entry(unit)) for unit in units]
        totals = {name: sum(entry[name] for entry in entries) for name in COUNTS}
        check_totals(totals, self.out)
        if totals["n_input"] != n_input:
            raise DataError(f"{self.out}: {n_input} records planned, {totals['n_input']} done")
        return totals

    def remove_strays(self, folders: Iterable[str]) -> None:
        """Remove what another plan's last worker or a killed writer left among the files."""
        for folder in folders:
            for file in (self.out / folder).glob("*"):
                if not file.name.endswith(unit_suffix(self.key)):
                    file.unlink(missing_ok=True)

    def _entry(self, unit: str) -> Path:
        return self.out / "ledger" / self.key[:8] / f"{unit}.json"


def _is_output(file: Path) -> bool:
    try:
        return "key" in read_json(file)
    except DataError:
        return False


def _ours(name: str, known: set[str]) -> bool:
    # A killed writer leaves its unfinished file, `.NAME.….part`.
    return name in known or (name.startswith(".") and name.endswith(".part"))
