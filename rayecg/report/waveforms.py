"""Plots of the recordings themselves, from the training split of the shards.

Legend: L lead, T time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from rayecg.core.files import read_table
from rayecg.core.record import Record
from rayecg.core.shard_format import (
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.report.benchmark import Benchmark
from rayecg.report.results import Results
from rayecg.report.style import INK, Plot, colour, new_figure, tidy
from rayecg.report.text import some

#: The usual page: three rows of four leads for 2.5 s each, and one lead for 10 s.
PAGE = (("I", "aVR", "V1", "V4"), ("II", "aVL", "V2", "V5"), ("III", "aVF", "V3", "V6"))
RHYTHM = "II"
PAGE_S, MM_PER_S, MM_PER_MV = 10.0, 25.0, 10.0

#: Beats drawn of each label, out of so many records at most.
N_BEATS, N_RECORDS = 40, 8


def waveforms(results: Results) -> Iterator[Plot]:
    """Draw one recording, or some beats, of every label."""
    benchmark = results.benchmark
    if benchmark.task["unit"] == "beat":
        yield from beats(benchmark)
    else:
        yield from recordings(benchmark)


def read_some(benchmark: Benchmark, record_ids: set[str]) -> dict[str, Record]:
    """Read the named records from the shards."""
    found: dict[str, Record] = {}
    for file in shard_files(benchmark.work / "shards"):
        here = record_ids & set(read_table(file, columns=["record_id"])["record_id"].to_pylist())
        if here:
            found |= {row["record_id"]: record for row, record in read_records(file, here)}
        if len(found) == len(record_ids):
            break
    return found


def recordings(benchmark: Benchmark) -> Iterator[Plot]:
    """Draw the first training recording that carries a label, and no other if there is one."""
    training = benchmark.split_examples("train").drop_duplicates(["record_id", "offset"])
    targets = training[[f"target_{label}" for label in benchmark.labels]]
    first: dict[str, str] = {}
    for label in benchmark.drawn_labels:
        carries = training[f"target_{label}"] == 1
        alone = carries & (targets.sum(axis=1) == 1)
        rows = training[alone] if alone.any() else training[carries]
        if len(rows):
            first[label] = str(rows["record_id"].iloc[0])
    records = read_some(benchmark, set(first.values()))
    for label, record_id in first.items():
        if record_id not in records:
            continue
        record = records[record_id]
        n_times = record.digital_LT.shape[1]
        yield Plot(
            f"example_{_file_name(label)}",
            "data",
            f"A recording with {label}",
            f"Record {record_id} of the training split, {record.fs:g} Hz, {n_times / record.fs:g} s; "
            f"{MM_PER_S:g} mm/s, {MM_PER_MV:g} mm/mV; not filtered.",
            f"Electrocardiogram of {some(len(record.leads), 'lead')} labelled {label}.",
            _page(record),
        )


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in label)


def _page(record: Record) -> Figure:
    """Lay a recording out on millimetre paper."""
    if {lead for row in PAGE for lead in row} <= set(record.leads):
        rows: list[Sequence[str]] = [*PAGE, (RHYTHM,)]
    else:
        rows = [(lead,) for lead in record.leads[:6]]
    signal_LT = record.physical
    duration = min(signal_LT.shape[1] / record.fs, PAGE_S)
    width_mm = PAGE_S * MM_PER_S
    pieces = []
    for i, row in enumerate(rows):
        for j, lead in enumerate(row):
            span = duration / len(row)
            start, stop = (round(t * record.fs) for t in (j * span, (j + 1) * span))
            y_T = signal_LT[record.leads.index(lead), start:stop] * MM_PER_MV
            y_T = y_T - (np.nanmedian(y_T) if np.isfinite(y_T).any() else 0.0)
            pieces.append((i, lead, np.arange(start, stop) / record.fs * MM_PER_S, y_T))
    row_mm = _row_height([y_T for *_, y_T in pieces])
    above = _reach([y_T for i, _, _, y_T in pieces if i == 0], 0.55 * row_mm)
    below = _reach([-y_T for i, _, _, y_T in pieces if i == len(rows) - 1], 0.45 * row_mm)
    height_mm = row_mm * len(rows) + above + below
    figure = new_figure(10.2, 10.08 * height_mm / width_mm + 0.12)
    axes = figure.add_subplot()
    _paper(axes, width_mm, height_mm)
    for i, lead, x_T, y_T in pieces:
        middle = height_mm - above - row_mm * (i + 0.55)
        axes.plot(x_T, middle + y_T, color=INK, lw=0.9, solid_joinstyle="round")
        axes.text(
            x_T[0] + 1.5,
            middle + row_mm * 0.42,
            lead,
            fontsize=9,
            weight="bold",
            color=INK,
            va="center",
            bbox={"facecolor": "#fffaf9", "edgecolor": "none", "pad": 1.0, "alpha": 0.8},
            zorder=1.5,  # below the trace, which a label must not hide
        )
    return figure


def _row_height(traces: Sequence[np.ndarray]) -> float:
    """Give rows room for what most traces reach, between 20 and 35 mm."""
    reach = [np.nanpercentile(np.abs(y), 99.5) for y in traces if np.isfinite(y).any()]
    wanted = 2.1 * max(reach, default=9.0)
    return float(np.clip(np.ceil(wanted / 5) * 5, 20.0, 35.0))


def _reach(traces: Sequence[np.ndarray], room: float) -> float:
    """Give the paper that outer traces need beyond their row, in whole squares up to 20 mm."""
    highest = max((float(np.nanmax(y)) for y in traces if np.isfinite(y).any()), default=0.0)
    return float(np.clip(np.ceil((highest - room) / 5) * 5, 0.0, 20.0))


def _paper(axes: Axes, width_mm: float, height_mm: float) -> None:
    """Rule millimetres and squares of five; as few drawn objects, for ticks would take seconds."""
    axes.set(xlim=(0, width_mm), ylim=(0, height_mm), aspect="equal", facecolor="#fffaf9")
    axes.set(xticks=[], yticks=[])
    for step, ink, width in ((1, "#fbe7e3", 0.35), (5, "#f2c4bb", 0.6)):
        style: dict[str, Any] = {"colors": ink, "linewidths": width, "zorder": 1}
        axes.vlines(np.arange(0, width_mm + 1, step), 0, height_mm, **style)
        axes.hlines(np.arange(0, height_mm + 1, step), 0, width_mm, **style)
    for spine in axes.spines.values():
        spine.set_color("#f2c4bb")


def beats(benchmark: Benchmark) -> Iterator[Plot]:
    """Draw training beats of every label over one another, with their median."""
    training = benchmark.split_examples("train").drop_duplicates(["record_id", "offset"])
    picked = {
        label: _pick(training[training[f"target_{label}"] == 1]) for label in benchmark.drawn_labels
    }
    picked = {label: rows for label, rows in picked.items() if len(rows)}
    if not picked:
        return
    records = read_some(benchmark, {r for rows in picked.values() for r in rows["record_id"]})
    wanted = benchmark.experiment.get("input") or {}
    leads = _leads_to_draw(records, wanted.get("leads") or ())
    half = min(float(wanted.get("duration_s") or 0.8), 1.0) / 2
    n_columns = len(picked)
    figure = new_figure(1.0 + 1.75 * n_columns, 0.9 + 1.9 * len(leads))
    grid = figure.subplots(len(leads), n_columns, sharex=True, sharey="row", squeeze=False)
    said = []
    for j, (label, rows) in enumerate(picked.items()):
        for i, lead in enumerate(leads):
            axes = tidy(grid[i][j], "s from the R peak" if i == len(leads) - 1 else "")
            n_drawn = _overlay(axes, rows, records, lead, half, colour(j))
            if i == 0:
                axes.set_title(f"{label}  ({n_drawn})", fontsize=10, color=INK, loc="left")
                said.append(f"{n_drawn} of {label}")
            if j == 0:
                axes.set_ylabel(f"{lead}, mV", fontsize=10, color=INK)
    yield Plot(
        "beats",
        "data",
        "Beats of each label",
        f"Training split: at most {N_BEATS} beats of each label from at most {N_RECORDS} records "
        "(number drawn in brackets), each window's median subtracted, not filtered; the dark line is "
        "their median.",
        f"Beats drawn over one another: {', '.join(said)}.",
        figure,
    )


def _leads_to_draw(records: dict[str, Record], wanted: Sequence[str]) -> list[str]:
    """Give the leads that the checkpoints read; without that, what the first record has."""
    there = {lead for record in records.values() for lead in record.leads}
    leads = [lead for lead in wanted if lead in there]
    return leads[:2] or list(next(iter(records.values())).leads[:1])


def _pick(rows: pd.DataFrame) -> pd.DataFrame:
    """Pick beats evenly, out of records picked evenly."""
    ids = rows["record_id"].unique()
    kept = ids[np.unique(np.linspace(0, len(ids) - 1, N_RECORDS).astype(int))] if len(ids) else ids
    rows = rows[rows["record_id"].isin(kept)]
    if not len(rows):
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, N_BEATS).astype(int))]


def _overlay(
    axes: Axes, rows: pd.DataFrame, records: dict[str, Record], lead: str, half: float, ink: str
) -> int:
    """Draw the beats of one label on one lead; gives how many there were."""
    drawn: list[np.ndarray] = []
    for record_id, own in rows.groupby("record_id", sort=False):
        record = records.get(str(record_id))
        if record is None or lead not in record.leads:
            continue
        n_half = round(half * record.fs)
        time_T = np.arange(-n_half, n_half + 1) / record.fs
        trace_T = record.physical[record.leads.index(lead)]
        for peak in own["offset"]:
            if peak < n_half or peak + n_half >= len(trace_T):
                continue
            beat_T = trace_T[peak - n_half : peak + n_half + 1]
            beat_T = beat_T - np.nanmedian(beat_T)
            axes.plot(time_T, beat_T, color=ink, lw=0.6, alpha=0.35)
            drawn.append(beat_T)
    if drawn and len({len(beat) for beat in drawn}) == 1:
        axes.plot(time_T, np.nanmedian(np.stack(drawn), axis=0), color=INK, lw=1.6)
    return len(drawn)
