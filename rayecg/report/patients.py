"""The patients whose test examples the chosen runs get most wrong.

Legend: N example, C label.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from rayecg.metrics.subgroups import NEAREST, log_loss
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.subgroup_evaluation import chosen_outputs
from rayecg.report.subgroups import caption
from rayecg.report.text import NOTHING, count, listed, number, some

#: Patients named.
WORST = 10


def worst_patients(results: Results) -> pd.DataFrame | None:
    """Order patients by the mean log loss of their test examples, and keep the worst.

    Of the calibrated probabilities, over the chosen runs. Decisions are counted in each of these
    runs, where there are any.

    Returns
    -------
    pd.DataFrame or None
        `patient` (as splits tell persons apart), `n_records`, `n_examples`, `log_loss` in nats,
        `n_decided` and of these `n_wrong` (with any label wrong), `missed` and `invented` (labels
        with their counts, the most frequent first), `records` (ids), `verdict`, `data`; its `attrs`
        have `n_patients` and `median` log loss of all patients. None without a chosen and scored run.
    """
    benchmark = results.benchmark
    given = chosen_outputs(results.runs, benchmark)
    if not given:
        return None
    exclusive = benchmark.task["kind"] != "multilabel"
    parts = []
    for outputs in given.values():
        decided_N = outputs.decided
        decision_NC = np.where(decided_N[:, None], outputs.decisions_NC, 0).astype(bool)
        missed_NC = outputs.targets_NC & ~decision_NC & decided_N[:, None]
        invented_NC = ~outputs.targets_NC & decision_NC
        loss_N = log_loss(outputs.targets_NC, outputs.calibrated_NC, exclusive)
        frame = benchmark.examples.loc[outputs.rows_N, ["record_id", "offset"]].assign(
            patient=outputs.patients_N,
            log_loss=loss_N,
            n_decided=decided_N,
            n_wrong=(missed_NC | invented_NC).any(axis=1),
        )
        for name, wrong_NC in (("missed", missed_NC), ("invented", invented_NC)):
            frame[[f"{name}_{label}" for label in benchmark.labels]] = wrong_NC
        parts.append(frame)
    rows = pd.concat(parts, ignore_index=True)
    each = rows.groupby("patient", sort=True)
    losses = each["log_loss"].mean()
    # Of equals the first by name.
    worst = losses.sort_values(ascending=False, kind="stable").index[:WORST]
    found = []
    for patient in worst:
        own = each.get_group(patient)
        found.append(
            {
                "patient": patient,
                "n_records": own["record_id"].nunique(),
                "n_examples": len(own.drop_duplicates(["record_id", "offset"])),
                "log_loss": losses[patient],
                "n_decided": int(own["n_decided"].sum()),
                "n_wrong": int(own["n_wrong"].sum()),
                "missed": _counted(own, "missed", benchmark.labels),
                "invented": _counted(own, "invented", benchmark.labels),
                "records": sorted(own["record_id"].unique(), key=lambda text: (len(text), text)),
                "verdict": results.chosen_verdict,
                "data": benchmark.data_label,
            }
        )
    table = pd.DataFrame(found)
    table.attrs = {"n_patients": len(losses), "median": float(losses.median())}
    return table


def _counted(own: pd.DataFrame, name: str, labels: Sequence[str]) -> str:
    """List labels with how often they were missed or invented."""
    counts = {label: int(own[f"{name}_{label}"].sum()) for label in labels}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return listed([f"{label} ({n:,})" for label, n in ordered if n], 6)


def worst_patients_csv(results: Results) -> pd.DataFrame | None:
    """Give the worst patients as `worst_patients.csv` has them; None if there are none."""
    worst = worst_patients(results)
    return None if worst is None else worst.assign(records=worst["records"].map("; ".join))


def worst_patients_table(results: Results) -> Iterator[Table]:
    """Lay out the worst patients."""
    worst = worst_patients(results)
    if worst is None:
        return
    benchmark = results.benchmark
    by_beat = benchmark.task["unit"] == "beat"
    rows = [
        (
            row["patient"],
            count(row["n_records"]),
            *((count(row["n_examples"]),) if by_beat else ()),
            number(row["log_loss"]),
            f"{count(row['n_wrong'])} of {count(row['n_decided'])}",
            row["missed"] or NOTHING,
            row["invented"] or NOTHING,
            listed(row["records"], 3),
        )
        for _, row in worst.iterrows()
    ]
    columns = (
        "patient",
        "recordings",
        *(("beats",) if by_beat else ()),
        "mean log loss",
        "decisions wrong",
        "missed",
        "invented",
        "records",
    )
    n_runs = len(chosen_outputs(results.runs, benchmark))
    runs = f" of {some(n_runs, 'run')}, decisions counted in each" if n_runs > 1 else ""
    mean = "" if benchmark.task["kind"] != "multilabel" else ", mean over labels"
    note = (
        f"The {some(len(worst), 'patient')} of {count(worst.attrs['n_patients'])} with the highest "
        f"mean log loss of their test {benchmark.unit}s, from calibrated probabilities{runs}{mean} (those "
        f"within {NEAREST:g} of 0 or 1 count as that near). The median patient has "
        f"{number(worst.attrs['median'])}. A decision is wrong if any label is; missed and invented "
        "labels have their counts in brackets. What the archive labels wrongly looks the same."
    )
    verdict = results.chosen_verdict
    yield Table(
        caption(f"Patients with the worst figures: {results.chosen_name}", results),
        columns,
        rows,
        frozenset(range(1, 5 if by_beat else 4)),
        notes=(note, *((f"Audit of these figures: {verdict}.",) if verdict != "passed" else ())),
        section="subgroups",
    )
