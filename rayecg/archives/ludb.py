"""Lobachevsky University Electrocardiography Database: 200 records of 12 leads, 10 s at 500 Hz.

Source: Kalyakulina et al. 2020, IEEE Access 8:186181-186190; PhysioNet release 1.0.1. Each lead has
a gain and a baseline of its own, which the headers state.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Any, ClassVar

import pyarrow as pa

from rayecg.archives.base import Archive
from rayecg.archives.cinc import age_in_years, sex_of, stated_in
from rayecg.archives.wfdb_header import MAX_HEADER_BYTES
from rayecg.core.errors import DataError, RecordError
from rayecg.core.shard_format import index_table

TABLE = "ludb.csv"
RECORDS = "RECORDS"
_PERSON = ("ID", "Sex", "Age")
_DIAGNOSES = "<diagnoses>:"


class Ludb(Archive):
    """The records of `RECORDS`, with what `ludb.csv` says of them, or else their own headers.

    `codes` holds every diagnosis in the words of `ludb.csv`. The records come from 200 subjects, so
    a record's name stands for its patient.
    """

    landmark = "data"
    releases: ClassVar = {"1.0.0, 1.0.1": 200}

    def index(self) -> pa.Table:
        """List the records in the order of `RECORDS`; without it, all headers below `data`.

        Raises
        ------
        DataError
            If there is none, or the table cannot be read.
        """
        paths = self._paths()
        if not paths:
            raise DataError(f"{self.folder}: expected records in data/, found none")
        paths = paths[: self.settings.limit]
        people = self._people()
        missing = [path for path in paths if _name(path) not in people]
        for path, stated in zip(missing, self.map_files(self._stated, missing), strict=True):
            people[_name(path)] = stated
        return index_table(
            [
                {
                    "record_id": _name(path),
                    "path": path,
                    "patient_id": _name(path),
                    **people[_name(path)],
                }
                for path in paths
            ]
        )

    def _paths(self) -> list[str]:
        if self.folder.has(RECORDS):
            return self._text(RECORDS).split()
        paths = [name.removesuffix(".hea") for name in self.folder.walk(".hea")]
        return sorted(
            (path for path in paths if path.startswith("data/")),
            key=lambda path: (len(path), path),
        )

    def _text(self, name: str) -> str:
        try:
            raw, _ = self.folder.read(name)
        except RecordError as error:
            raise DataError(error.message) from None
        return _decoded(raw)

    def _people(self) -> dict[str, dict[str, Any]]:
        """Read the table; its cells hold several lines, and some end in one."""
        if not self.folder.has(TABLE):
            return {}
        people: dict[str, dict[str, Any]] = {}
        with io.StringIO(self._text(TABLE), newline="") as stream:
            reader = csv.DictReader(stream, restval="")
            try:
                names = [name.strip() for name in reader.fieldnames or ()]
                if "ID" not in names:
                    raise DataError(f"{self.folder}/{TABLE}: expected the column ID")
                reader.fieldnames = names
                for row in reader:
                    lines = [
                        line
                        for name in names
                        if name not in _PERSON
                        for line in row[name].splitlines()
                    ]
                    # The first of two rows counts.
                    people.setdefault(
                        row["ID"].strip(),
                        {
                            "age": age_in_years(row.get("Age", "")),
                            "sex": sex_of(row.get("Sex", "")),
                            "codes": _codes(lines),
                        },
                    )
            except csv.Error as error:
                raise DataError(
                    f"{self.folder}/{TABLE}, line {reader.line_num + 1}: {error}"
                ) from None
        return people

    def _stated(self, path: str) -> dict[str, Any]:
        """Read what the comments of a header say: `#<age>: 51`, and a line for each diagnosis."""
        try:
            raw, _ = self.folder.read(f"{path}.hea", limit=MAX_HEADER_BYTES)
        except RecordError:  # the shards stage meets the same error and gives the record its row
            return {}
        text = _decoded(raw)
        comments = [line.strip()[1:] for line in text.splitlines() if line.startswith("#")]
        stated = stated_in(text)
        stated["codes"] = None
        if _DIAGNOSES in comments:
            stated["codes"] = _codes(comments[comments.index(_DIAGNOSES) + 1 :])
        return stated


def _codes(lines: Iterable[str]) -> list[str]:
    """Write diagnoses as `ludb.csv` does.

    Headers say `Rhythm: Sinus rhythm.` and `III degree AV-block.` where the table says `Sinus
    rhythm` and `Iii degree av-block`.
    """
    codes = (line.strip().removeprefix("Rhythm:").strip(" \t.").capitalize() for line in lines)
    return list(dict.fromkeys(code for code in codes if code))


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")
