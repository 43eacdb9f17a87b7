"""Choosing records by a condition in SQL on the columns of the index."""

from __future__ import annotations

import pyarrow as pa

from rayecg.core.errors import SettingsError


def select_rows(index: pa.Table, condition: str) -> pa.Table:
    """Give the rows of a table that a condition is true of, in their order.

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
    numbered = index.append_column("row_", pa.array(range(index.num_rows), pa.int64()))
    base = duckdb.connect()
    try:
        # Registered first: then nothing outside the table can be reached.
        base.register("records", numbered)
        base.execute("SET enable_external_access = false; SET lock_configuration = true")
        # Parsed as one expression: pasted into a query's text it could close the bracket before it,
        # and add rows.
        chosen = base.table("records").filter(condition).order("row_").project("row_")
        rows = chosen.to_arrow_table()["row_"]
    except duckdb.Error as error:
        said = str(error).strip().partition("\n")[0]
        raise SettingsError(
            f"--select {condition!r}: {said} (columns: {', '.join(index.column_names)})"
        ) from None
    finally:
        base.close()
    if not len(rows):
        raise SettingsError(f"--select {condition!r}: true of none of {index.num_rows} records")
    return index.take(rows)
