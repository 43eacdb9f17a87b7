"""A fake benchmark whose shards state age, sex, site and quality of the recordings."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from fake_benchmark import RUNS, edit_table, write_benchmark

from rayecg.core.files import read_table, write_table
from rayecg.report.benchmark import Outputs
from rayecg.report.results import Results
from rayecg.report.subgroup_figures import GroupFigures

#: The first recordings, which are put into the test split beside the two of fold 10 after them.
FIRST = 41
AGES = (10.0,) * 3 + (30.0,) * 7 + (65.0,) * 6 + (90.0,) * 3 + (None,)


def stated(i: int) -> dict[str, Any]:
    """Say what the shards state of the i-th recording, whose patient is the (i mod 20)-th."""
    flags = ["noise:V1"] * (i % 5 == 0) + ["wander:II"] * (i % 10 == 0) + ["gaps"] * (i == 7)
    return {
        "age": AGES[i % 20],
        "sex": "MF"[i % 2],
        "site": "A" if i % 20 < 12 else "B",
        "flags": flags,
        "noise_mv": [0.001 * i] * 12,
    }


def write_records(out: Path, of: Callable[[int], dict[str, Any]]) -> None:
    """Write the shards' table of records with what is stated of each."""
    shards = out / "work" / "shards"
    table = read_table(shards / "records").drop_columns(["signal"])
    rows = [of(i) for i in range(table.num_rows)]
    for name in rows[0]:
        at = table.column_names.index(name)
        column = pa.array([row[name] for row in rows], table.schema.field(name).type)
        table = table.set_column(at, table.schema.field(name), column)
    write_table(shards / "records.parquet", table)


def make(out: Path) -> Path:
    """Write a benchmark whose twenty patients have two test recordings each, some of them three."""
    write_benchmark(out)

    def more(examples: pd.DataFrame) -> pd.DataFrame:
        other = examples["record_id"].str[1:].astype(int) < FIRST
        changed = examples.assign(split=np.where(other, "test", examples["split"]))
        return changed.assign(reason=None)

    edit_table(out / "work" / "examples.parquet", more)
    write_records(out, stated)
    return out


def results_of(out: Path) -> Results:
    return Results(out, out / "findings.json")


def group_of(results: Results, by: str, name: str) -> GroupFigures:
    assert results.subgroups is not None
    return next(g for g in results.subgroups.groups if (g.by, g.name) == (by, name))


def records_of(results: Results, outputs: Outputs) -> list[str]:
    return list(results.benchmark.examples.loc[outputs.rows_N, "record_id"])


def turned(out: Path, ids: Collection[str], runs: Collection[str] = tuple(RUNS)) -> None:
    """Have runs say the opposite of what they said of some recordings."""

    def edit(rows: pd.DataFrame) -> pd.DataFrame:
        own = rows["record_id"].isin(ids)
        for name in rows:
            if str(name).startswith(("probability_", "calibrated_")):
                rows.loc[own, name] = 1 - rows.loc[own, name]
            if str(name).startswith("decision_"):
                known = own & rows[name].notna()
                rows.loc[known, name] = 1 - rows.loc[known, name].astype(int)
        return rows

    for run in runs:
        for file in (out / "work" / "score" / run / "predictions").glob("*.parquet"):
            edit_table(file, edit)
