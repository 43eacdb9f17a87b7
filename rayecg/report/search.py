"""What is written of a search: a table and a plot of all trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayecg.core.files import replacing, write_table, write_text
from rayecg.report.style import COLOURS, INK, PALE, new_figure, png, stamp, tidy, whole_numbers
from rayecg.report.text import (
    NOTHING,
    SYNTHETIC_LABEL,
    count,
    markdown_table,
    mean_and_spread,
    metric_title,
    number,
    shorten_paths,
)

BEST, STOPPED, OTHER = COLOURS[1], PALE, COLOURS[0]
#: Of the trials' table in `search.md`; the rest is in `trials.csv`.
MOST_ROWS = 50
_TITLES = {"ok": "trained to the end", "stopped": "given up early"}


@dataclass(frozen=True)
class _Search:
    """What the report says of a search: the manifest that `rayecg.search.run.search` gives."""

    title: str
    metric: str
    unit: str
    synthetic: bool
    space: Mapping[str, Mapping[str, Any]]
    folds: Sequence[int | None]
    best: int
    trials: Sequence[Mapping[str, Any]]
    key: str = ""

    @property
    def ranges(self) -> dict[str, tuple[str, Sequence[Any]]]:
        """Of each setting the kind of its range, and the edges or choices."""
        return {
            name: next((kind, edges) for kind, edges in own.items() if edges is not None)
            for name, own in self.space.items()
        }

    @property
    def examples(self) -> str:
        """What training draws."""
        return "beats" if self.unit == "beat" else "windows of records"

    @property
    def examples_seen(self) -> int:
        """Training examples that all trials drew, those of the failed ones included."""
        return sum(_seen(trial) for trial in self.trials)

    @property
    def without_stopping(self) -> int:
        """What they would have drawn if each had been as long as the best one."""
        whole = _seen(self.trials[self.best])
        return sum(max(_seen(trial), whole) for trial in self.trials)


def write_search(manifest: Mapping[str, Any], findings: Sequence[str], out: Path) -> str:
    """Write `trials.parquet`, `trials.csv`, `trials.png` and `search.md`; gives the latter's text.

    It is not called `summary.md`, which a benchmark of `best.yaml` in the same folder writes.
    """
    outcome = _Search(**manifest)
    table = _trial_table(outcome)
    write_table(out / "trials.parquet", pa.Table.from_pandas(table, preserve_index=False))
    write_text(out / "trials.csv", table.to_csv(index=False))
    figure = _draw_trials(outcome)
    if outcome.synthetic:
        stamp(figure, SYNTHETIC_LABEL)
    with replacing(out / "trials.png") as beside:
        beside.write_bytes(png(figure))
    text = _summary(outcome, table, findings)
    write_text(out / "search.md", text)
    return text


def _trial_table(outcome: _Search) -> pd.DataFrame:
    """Lay out a row for each trial, in the order they were begun.

    A setting's column holds numbers, or text where it was chosen from a list.
    """
    name = f"validation_{outcome.metric}"
    rows = []
    for i, trial in enumerate(outcome.trials):
        steps = trial["steps"]
        row: dict[str, Any] = {
            "trial": i + 1,
            "status": trial["status"],
            "error": trial["error"] and shorten_paths(trial["error"]),
            "epochs": len(steps),
            "examples_seen": int(_seen(trial)),
            name: steps[-1]["figure"] if steps else np.nan,
        }
        of_fold = trial["of_fold"] or [np.nan] * len(outcome.folds)
        if len(outcome.folds) > 1:
            row |= {
                f"{name}_fold{fold}": figure
                for fold, figure in zip(outcome.folds, of_fold, strict=True)
            }
        for setting, (kind, _) in outcome.ranges.items():
            value = trial["values"][setting]
            row[setting] = str(value) if kind == "choice" else value
        rows.append(row)
    return pd.DataFrame(rows).astype({"error": "string"})


def _draw_trials(outcome: _Search) -> Figure:
    """Draw the trials' figures by epoch, and against each setting."""
    n = 1 + len(outcome.space)
    n_columns = min(n, 3)
    n_rows = -(-n // n_columns)
    figure = new_figure(3.3 * n_columns, 2.7 * n_rows + 0.35)
    grid = list(figure.subplots(n_rows, n_columns, sharey=True, squeeze=False).flat)
    title = f"validation {metric_title(outcome.metric)}"
    for i, axes in enumerate(grid):
        axes.set_visible(i < n)
        tidy(axes, y=title if i % n_columns == 0 else "")
    _draw_curves(outcome, grid[0])
    for axes, name in zip(grid[1:], outcome.space, strict=False):
        _draw_setting(outcome, axes, name)
    handles, labels = grid[0].get_legend_handles_labels()
    own = dict(zip(labels, handles, strict=True))
    figure.legend(
        own.values(), own.keys(), loc="outside upper left", ncols=3, frameon=False, fontsize=9
    )
    return figure


def _draw_curves(outcome: _Search, axes: Axes) -> None:
    axes.set_xlabel("epoch", fontsize=10, color=INK)
    whole_numbers(axes)
    for i, trial in enumerate(outcome.trials):
        steps = trial["steps"]
        if not steps:
            continue
        look = _look(outcome, i)
        x, y = [step["epoch"] for step in steps], [step["figure"] for step in steps]
        axes.plot(x, y, color=look["color"], lw=2.2 if i == outcome.best else 1.0, alpha=0.85)
        axes.scatter(x[-1:], y[-1:], **look)


def _draw_setting(outcome: _Search, axes: Axes, name: str) -> None:
    kind, edges = outcome.ranges[name]
    axes.set_xlabel(name, fontsize=10, color=INK)
    places = {str(value): place for place, value in enumerate(edges)}
    if kind == "choice":
        axes.set_xticks(list(places.values()), list(places))
        axes.set_xlim(-0.5, len(places) - 0.5)
    else:
        if kind == "log_uniform":
            axes.set_xscale("log")
        axes.set_xlim(*edges)
    for i, trial in enumerate(outcome.trials):
        if trial["steps"]:
            value = trial["values"][name]
            x = places[str(value)] if kind == "choice" else value
            axes.scatter([x], [trial["steps"][-1]["figure"]], clip_on=False, **_look(outcome, i))


def _look(outcome: _Search, i: int) -> dict[str, Any]:
    """Give a trial's colour and mark; the best one lies above the others."""
    if i == outcome.best:
        return {"color": BEST, "marker": "D", "s": 42, "zorder": 5, "label": "the best"}
    status = outcome.trials[i]["status"]
    label = _TITLES.get(status, status)
    if status == "ok":
        return {"color": OTHER, "marker": "o", "s": 24, "zorder": 4, "label": label}
    return {"color": STOPPED, "marker": "x", "s": 22, "zorder": 3, "label": label}


def _seen(trial: Mapping[str, Any]) -> int:
    return trial["steps"][-1]["examples_seen"] if trial["steps"] else 0


def _summary(outcome: _Search, table: pd.DataFrame, findings: Sequence[str]) -> str:
    name = f"validation_{outcome.metric}"
    best, n = table.iloc[outcome.best], len(table)
    status = table["status"].value_counts()
    per_fold = [c for c in table.columns if c.startswith(f"{name}_fold")]
    spread = float(best[per_fold].std()) if per_fold else np.nan
    where = f", the mean of {len(per_fold)} folds (± their SD)" if per_fold else ""
    saved = outcome.without_stopping
    ranked = table.sort_values(name, ascending=False, kind="stable")
    ranked = pd.concat([ranked[ranked["status"] == "ok"], ranked[ranked["status"] != "ok"]])
    header = ["trial", "status", "epochs", "examples seen", *outcome.space, name]
    rows = [
        [
            str(row["trial"]),
            row["status"] if pd.isna(row["error"]) else f"{row['status']}: {row['error']}",
            str(row["epochs"]),
            count(row["examples_seen"]),
            *(_value(row[setting]) for setting in outcome.space),
            number(row[name]),
        ]
        for _, row in ranked.head(MOST_ROWS).iterrows()
    ]
    more = f"The first {MOST_ROWS} of {n}; " if n > MOST_ROWS else ""
    label = f"**{SYNTHETIC_LABEL}**\n\n" if outcome.synthetic else ""
    settings = "\n".join(f"- `{setting}`: {_value(best[setting])}" for setting in outcome.space)
    audit = "\n".join(findings)
    return (
        f"# {outcome.title}: a search of {n} trials\n\n{label}"
        f"The best is trial {best['trial']}, validation {metric_title(outcome.metric)} "
        f"{mean_and_spread(float(best[name]), spread)}{where}. It was chosen among {n}, so expect "
        "less on other data.\n\n"
        f"{settings}\n\n"
        "`best.yaml` is the experiment with these settings; run it with this folder as its `--out`, "
        "and the audit compares what the search read with the test split.\n\n"
        f"Cost: {count(outcome.examples_seen)} training examples seen ({outcome.examples}); without "
        f"giving up trials it would be {count(saved)}. Of the trials, {status.get('ok', 0)} came to their "
        f"end, {status.get('stopped', 0)} were given up early, and {status.get('failed', 0)} failed.\n\n"
        f"{audit}\n\n"
        f"![All trials](trials.png)\n\n{markdown_table(header, rows)}\n"
        f"{more}all columns: `trials.csv`, `trials.parquet`. The figures of trials that were given "
        "up are of fewer epochs, and stand below.\n"
    )


def _value(value: Any) -> str:
    return NOTHING if pd.isna(value) else str(value)
