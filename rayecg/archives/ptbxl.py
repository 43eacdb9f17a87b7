"""PTB-XL in its publisher's layout, whole or a subset, and the synthetic archive that shares it.

Source: Wagner et al. 2020, PTB-XL, Scientific Data 7:154; PhysioNet release 1.0.3.
"""

from __future__ import annotations

import ast
import csv
import functools
import io
from collections.abc import Mapping
from typing import Any, ClassVar

import pyarrow as pa

from rayecg.archives.base import SYNTHETIC_MARKER, Archive
from rayecg.core.errors import DataError, RecordError
from rayecg.core.shard_format import index_table

DATABASE = "ptbxl_database.csv"
_REQUIRED = ("ecg_id", "patient_id", "scp_codes", "strat_fold", "filename_lr", "filename_hr")

#: Release 1.0.3 writes 300 for "over 89"; the index holds the lowest age that can be meant.
OVER_89, OVER_89_AS = 300.0, 90.0


class PtbXl(Archive):
    """Records and statements of `ptbxl_database.csv`.

    `settings.rate` 100 reads the publisher's 100 Hz files (`filename_lr`), any other the
    `filename_hr` ones, which are also the default. `codes` holds every SCP statement of a record
    and `likelihoods` its stated likelihood in percent (0 means "not stated").
    """

    landmark = DATABASE
    rates: ClassVar[tuple[int, ...] | None] = (100, 500)
    releases: ClassVar = {"1.0.0, 1.0.1": 21_837, "1.0.2": 21_801, "1.0.3": 21_799}
    official_split: ClassVar = {
        "by": "strat_fold",
        "train": [1, 2, 3, 4, 5, 6, 7, 8],
        "validation": [9],
        "test": [10],
    }

    def index(self) -> pa.Table:
        """List the records in the order of the database file.

        Raises
        ------
        DataError
            If a column is missing or a row cannot be read; the message names the line.
        """
        file = f"{self.folder}/{DATABASE}"
        column = "filename_lr" if self.settings.rate == 100 else "filename_hr"
        rows: list[dict[str, Any]] = []
        try:
            text = self.folder.read(DATABASE)[0].decode("utf-8")
        except (RecordError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read as UTF-8 text ({error})") from None
        with io.StringIO(text, newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in _REQUIRED if name not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{file}: expected the columns {', '.join(missing)}")
            for number, row in enumerate(reader, start=2):
                if self.settings.limit and len(rows) == self.settings.limit:
                    break
                try:
                    rows.append(self._row(row, column))
                except (ValueError, SyntaxError, TypeError, AttributeError, csv.Error) as error:
                    raise DataError(f"{file}, line {number}: {error}") from None
        if rows and not any(row["path"] for row in rows):
            raise DataError(f"{file}: names no files in {column} (archive.rate chooses the column)")
        return index_table(rows)

    @staticmethod
    def _row(row: Mapping[str, str], column: str) -> dict[str, Any]:
        codes, likelihoods = _statements(row["scp_codes"])
        age = _number(row.get("age"))
        return {
            "record_id": row["ecg_id"],
            "path": row[column],
            "patient_id": str(int(float(row["patient_id"]))),
            "strat_fold": int(row["strat_fold"]),
            "age": OVER_89_AS if age == OVER_89 else age,
            "sex": {"0": "M", "1": "F"}.get(row.get("sex") or ""),
            "site": _whole(row.get("site")),
            "device": (row.get("device") or "").strip() or None,
            "codes": codes,
            "likelihoods": likelihoods,
        }


class Synthetic(PtbXl):
    """The project's own simulated archive; never evidence of clinical worth."""

    landmark = SYNTHETIC_MARKER
    rates: ClassVar[tuple[int, ...] | None] = None
    releases: ClassVar = {}


@functools.lru_cache(4096)  # most recordings share their statements with others
def _statements(text: str) -> tuple[list[str], list[float]]:
    statements = ast.literal_eval(text)
    return [str(code) for code in statements], [float(value) for value in statements.values()]


def _number(text: str | None) -> float | None:
    return float(text) if text else None


def _whole(text: str | None) -> str | None:
    return str(int(float(text))) if text else None
