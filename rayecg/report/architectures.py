"""The table of architectures: what each costs, and where it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rayecg.core.files import write_text
from rayecg.core.versions import versions
from rayecg.report.text import NOTHING, markdown_table

COLUMNS = (
    "architecture",
    "parameters",
    "multiply-adds",
    "input",
    "training",
    "scoring",
    "source",
)


def write_architectures(
    rows: Sequence[Mapping[str, Any]], base: str, threads: int, out: Path
) -> str:
    """Write `architectures.csv` and `summary.md`; gives the latter's table.

    Parameters
    ----------
    rows
        Of each architecture what `rayecg.train.cost.cost` says.
    base
        Which of them `training` and `scoring` are shares of.
    threads
        How many threads torch used.
    """
    write_text(out / "architectures.csv", pd.DataFrame(list(rows)).to_csv(index=False))
    table = markdown_table(COLUMNS, [_cells(row) for row in rows])
    said = versions()
    text = (
        "# Architectures\n\n"
        "Each at the input that it declares, with five outputs. `training` and `scoring` are records/s "
        f"as shares of {base}'s, measured by turns on {threads} CPU threads with batches in memory "
        "(forward, backward and optimiser step; forward alone). Multiply-adds are those of one record's "
        "convolutions, matrix products and recurrent layers; Fourier transforms are not counted. Images "
        "are made inside the network, and counted; metadata and features are made before it, and not. "
        f"`{NOTHING}`: fitted without gradients, as large as the data ask for.\n\n"
        f"{table}\n\n"
        f"torch {said['torch']}, Python {said['python']}. Written by `python jobs/architectures.py`.\n"
    )
    write_text(out / "summary.md", text)
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    return [
        str(row["architecture"]),
        NOTHING if row["parameters"] is None else f"{row['parameters']:,}",
        _large(row["multiply_adds"]),
        str(row["input"]),
        _share(row["training"]),
        _share(row["scoring"]),
        str(row["source"]),
    ]


def _large(value: float) -> str:
    """Write a count of operations in millions, or in thousands if it is small."""
    if not value:
        return "0"
    return f"{value / 1e6:,.1f} M" if value >= 1e5 else f"{value / 1e3:,.1f} k"


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2g}"
