"""Which records belong to which unit of work: fixed when they are first seen, kept ever after.

A unit is a run of records of the index. The plan in the output folder says which, and what each
record's files were; a later start keeps the units whose records are as they were, and makes new units
of the others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from rayecg.core.errors import SettingsError
from rayecg.core.hashing import hashed

#: Records of a unit, where the settings leave it open: enough units for every worker, and few enough
#: that a unit's own cost (a call, two files) does not count.
UNITS, SMALLEST, LARGEST = 24, 16, 4096

SCHEMA = pa.schema(
    [
        pa.field("unit", pa.string(), nullable=False),
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("facts", pa.uint64(), nullable=False),
    ]
)
#: What pandas hashes texts under where nothing is said.
_NO_KEY = "0123456789123456"
#: What of the index decides a record's row, beside its files.
_DECIDES = ("record_id", "path", "patient_id", "strat_fold", "age", "sex", "site", "device")


@dataclass(frozen=True)
class Plan:
    """Units by name, each with its rows of the index, and what became of an earlier plan.

    Attributes
    ----------
    rows
        For each unit the index rows that it scores, in order.
    table
        What is stored: `SCHEMA`.
    n_new, n_changed
        Records that the earlier plan did not have, or had with other files.
    """

    rows: dict[str, np.ndarray]
    table: pa.Table
    n_new: int
    n_changed: int


def record_facts(index: pa.Table, files: np.ndarray, key: bytes | None = None) -> np.ndarray:
    """Fingerprint each record by its index row and its files.

    Parameters
    ----------
    index
        With the columns of `rayecg.core.shard_format.INDEX_FIELDS`.
    files
        int64, records by numbers: size and time of each file.
    key
        Under which ids are hashed: without it nobody can try which record a fingerprint is of.

    Returns
    -------
    np.ndarray
        uint64.
    """
    frame = index.select(_DECIDES).to_pandas()
    frame[[f"file{i}" for i in range(files.shape[1])]] = files
    # Missing numbers and texts hash alike wherever they stand.
    own = hashed("facts", key)[:16] if key else _NO_KEY
    return pd.util.hash_pandas_object(frame, index=False, hash_key=own).to_numpy()


def unit_size(n_records: int) -> int:
    """Choose how many records a unit has."""
    return min(max(-(-n_records // UNITS), SMALLEST), LARGEST)


def make_plan(
    record_ids: Sequence[str],
    facts: np.ndarray,
    size: int | None,
    earlier: pa.Table | None = None,
    replace: bool = False,
) -> Plan:
    """Plan the units of an archive.

    Parameters
    ----------
    record_ids
        Of the index, each once; hashed if ids are.
    facts
        Of `record_facts`.
    size
        Records of a unit; None chooses by their number.
    earlier
        The plan that stands in the output.
    replace
        Whether a plan whose records are gone is replaced, or refused.

    Raises
    ------
    SettingsError
        If records of the earlier plan are gone, and it is not to be replaced.
    """
    own = pd.DataFrame({"record_id": record_ids, "facts": facts})
    own["row"] = np.arange(len(own))
    kept = own.iloc[:0].assign(unit="")
    n_changed, first = 0, 0
    if earlier is not None and earlier.num_rows:
        before = earlier.to_pandas()
        both = before.merge(own, on="record_id", how="left", suffixes=("_before", ""))
        gone = both["row"].isna()
        if gone.any() and replace:
            return make_plan(record_ids, facts, size)
        if gone.any():
            one = both.loc[gone, "record_id"].iloc[0]
            raise SettingsError(
                f"{gone.sum()} records that were scored here are not among the records to score "
                f"now (the first: {one}); use another output folder, or --replace"
            )
        same = both["facts"].astype("uint64") == both["facts_before"]
        whole = same.groupby(both["unit"]).transform("all")
        kept = both.loc[whole, ["unit", "record_id", "facts", "row"]]
        n_changed = int((~same).sum())
        first = int(before["unit"].max().partition("-")[0]) + 1
    left = own[~own["row"].isin(kept["row"])]
    n_new = len(own) - (earlier.num_rows if earlier is not None else 0)
    size = size or unit_size(len(left))
    names = [
        _name(first + i, left.iloc[start : start + size])
        for i, start in enumerate(range(0, len(left), size))
    ]
    left = left.assign(unit=np.repeat(names, size)[: len(left)].astype(object))
    planned = pd.concat([kept, left])
    rows = {str(unit): part.to_numpy(np.int64) for unit, part in planned.groupby("unit")["row"]}
    table = pa.Table.from_pandas(
        planned[["unit", "record_id", "facts"]], schema=SCHEMA, preserve_index=False
    )
    return Plan(rows, table, n_new, n_changed)


def _name(number: int, records: pd.DataFrame) -> str:
    """Name a unit by its contents, too: other records never pass for these."""
    digest = hashlib.sha256("\n".join(records["record_id"]).encode())
    digest.update(records["facts"].to_numpy().astype("<u8").tobytes())
    return f"{number:06d}-{digest.hexdigest()[:8]}"
