"""The file of published intervals: the report writes it, and the audit reads it."""

from __future__ import annotations

INTERVALS = "intervals.csv"
#: A row is an interval. `runs` names the runs that the figure is of, with spaces between; `unit` is
#: what was resampled, if it is said, and `n_units` how many of them there were; `slack` is half a unit
#: of the last digit that point and ends are written with.
INTERVAL_COLUMNS = (
    *("name", "runs", "metric", "point", "low", "high"),
    *("level", "unit", "n_units", "slack"),
)
