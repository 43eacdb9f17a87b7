"""What benchmarks print: rows of figures, as JSON or as text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from rayecg.core.versions import versions


def print_rows(rows: Mapping[str, Mapping[str, Any]], as_json: bool, **facts: Any) -> None:
    """Print rows of figures by name, and what else is to be known of them.

    JSON also has the CPUs and the versions.
    """
    if as_json:
        found = {"cpus": os.cpu_count(), **facts, "versions": versions(), "rows": rows}
        print(json.dumps(found, indent=2))
        return
    if facts:
        print(_line(facts))
    width = max((len(name) for name in rows), default=0)
    for name, row in rows.items():
        print(f"{name:{width}s}  {_line(row)}")


def _line(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_figure(value)}" for name, value in row.items())


def _figure(value: Any) -> str:
    """Give three digits; from a thousand on, all before the point."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"
