"""Choosing records by a condition in SQL on the columns of the index."""

from __future__ import annotations

import numpy as np

from rayecg.core.errors import SettingsError
from rayecg.core.index_file import ROW, IndexFile
from rayecg.core.shard_format import INDEX_NAMES


def select_rows(index: IndexFile, condition: str) -> np.ndarray:
    """Give the numbers of the rows that a condition is true of, in their order.

    Parameters
    ----------
    index
        The index of an archive.
    condition
        What could follow WHERE, as in `age >= 65 AND sex = 'F'`; DuckDB evaluates it, with no access
        to files or to anything but the table.

    Raises
    ------
    SettingsError
        If it is no such condition, or true of no record.
    """
    import duckdb

    if not condition.strip():
        raise SettingsError("--select: expected a condition, came none")
    base = duckdb.connect()
    try:
        # Registered first: then nothing outside the table can be reached.
        base.register("records", index.dataset(INDEX_NAMES))
        base.execute("SET enable_external_access = false; SET lock_configuration = true")
        # Parsed as one expression: pasted into a query's text it could close the bracket before it,
        # and add rows.
        chosen = base.table("records").filter(condition).order(ROW).project(ROW)
        rows_N = chosen.to_arrow_table()[ROW].to_numpy()
    except duckdb.Error as error:
        said = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"--select {condition!r}: {said} (columns: {', '.join(INDEX_NAMES)})"
        ) from None
    finally:
        base.close()
    if not len(rows_N):
        raise SettingsError(f"--select {condition!r}: true of none of {len(index)} records")
    return rows_N
