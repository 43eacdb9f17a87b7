"""Tables and the plot of groups of recordings: by age, sex, site, device and signal quality."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from rayecg.core.shard_format import RECORDS
from rayecg.metrics.bootstrap import FEW_GROUPS, FEW_POSITIVE_GROUPS, MACRO, N_RESAMPLES
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.style import INK, PALE, Plot, colour, new_figure, tidy
from rayecg.report.subgroup_figures import (
    DIFFERENCE,
    EVERYONE,
    FEWEST_PATIENTS,
    SHARED,
    SIGNIFICANT,
    GroupFigures,
    Subgroups,
)
from rayecg.report.text import (
    NOTHING,
    SYNTHETIC_LABEL,
    count,
    listed,
    metric_title,
    number,
    some,
    with_interval,
)

#: Beside the primary metric, on the page; `subgroups.csv` has them all.
SHOWN = ("macro_auroc", "macro_auprc", "macro_f1")
#: Of names in the plot.
LONGEST = 34


def subgroup_tables(results: Results) -> Iterator[Table]:
    """Lay out the figures of each group, and the labels in each."""
    if results.chosen_outputs is None:
        return
    if results.subgroups is None:
        reason = (
            f"the shards' table {RECORDS}, which states age, sex and quality, is not there; "
            "jobs/make_shards.py writes it"
        )
        yield Table(
            caption("Groups of recordings", results),
            ("groups", "reason"),
            [("not computed", reason)],
            section="subgroups",
        )
        return
    yield _figures_table(results, results.subgroups)
    yield _labels_table(results, results.subgroups)


def caption(text: str, results: Results) -> str:
    """End a caption with the label of simulated data where that is what it rests on."""
    return f"{text}, {SYNTHETIC_LABEL}" if results.benchmark.synthetic else text


def _name(group: GroupFigures) -> str:
    return group.name if group.by == EVERYONE else f"{group.by}: {group.name}"


def _figures_table(results: Results, found: Subgroups) -> Table:
    benchmark = results.benchmark
    primary, by_beat = benchmark.primary, benchmark.task["unit"] == "beat"
    others = [metric for metric in SHOWN if metric != primary]
    differ = any(group.without for group in found.groups) and any(found.shared.values())
    rows = []
    for group in found.groups:
        own = group.figure(primary)
        difference = group.difference
        shared = group.figure(f"{primary}_{SHARED}")
        rows.append(
            (
                _name(group),
                *((count(group.n_examples),) if by_beat else ()),
                count(group.n_records),
                count(group.n_patients),
                with_interval(own.point, np.nan, own.low, own.high),
                _signed(difference.point, difference.low, difference.high),
                number(group.p_holm),
                *((number(shared.point),) if differ else ()),
                *(number(group.figure(metric).point) for metric in others),
                group.warning,
            )
        )
    title = metric_title(primary)
    columns = (
        "group",
        *(("beats",) if by_beat else ()),
        "recordings",
        "patients",
        f"test {title}",
        "against the rest",
        "p (Holm)",
        *((f"{title}, shared labels",) if differ else ()),
        *(metric_title(metric) for metric in others),
        "remarks",
    )
    return Table(
        caption(f"Groups of recordings: {results.chosen_name}", results),
        columns,
        rows,
        frozenset(range(1, len(columns) - 1)),
        frozenset(i for i, group in enumerate(found.groups) if group in found.worse),
        _notes(results, found, differ),
        "subgroups",
    )


def _signed(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return NOTHING
    text = f"{value:+.3f}"
    return f"{text} ({low:+.3f} to {high:+.3f})" if np.isfinite(low) else text


def worst_sentence(results: Results) -> str:
    """Name the groups that are worse than the rest, or the lowest where none is."""
    found = results.subgroups
    if found is None or not found.compared:
        return ""
    compared, title = found.compared, metric_title(results.benchmark.primary)

    def said(group: GroupFigures) -> str:
        own = group.difference
        few = "only " if group.n_patients < FEW_GROUPS else ""
        figure = _signed(own.point, own.low, own.high)
        return f"{group.title}, {figure}, {few}{some(group.n_patients, 'patient')}"

    if found.worse:
        return (
            f"Worse than the rest in {title}, also after Holm's correction over "
            f"{some(len(compared), 'group')}: {'; '.join(said(group) for group in found.worse)}."
        )
    return (
        f"After Holm's correction over {some(len(compared), 'group')}, none is worse than the rest in "
        f"{title}; the lowest against it is {said(compared[0])}."
    )


def _notes(results: Results, found: Subgroups, differ: bool) -> tuple[str, ...]:
    benchmark = results.benchmark
    primary, over = metric_title(benchmark.primary), some(found.n_runs, "run")
    mean = (
        "" if found.n_runs == 1 else f"Figures are means over {over}, each on its own test side. "
    )
    notes = [
        worst_sentence(results),
        f"{mean}In brackets: 95 % intervals, from the standard errors over the same {N_RESAMPLES:,} "
        "resamples of the test split's patients. “Against the rest” is the group less all other test "
        f"{benchmark.unit}s in one resample"
        + (", over the labels that both have" if benchmark.primary in MACRO else "")
        + f"; its p is corrected by Holm over all groups compared, and {SIGNIFICANT} is the limit. "
        f"A group of fewer than {FEWEST_PATIENTS} patients has counts alone.",
    ]
    if any(group.by == "flag" for group in found.groups):
        notes.append("A recording with several flags is in several groups of “flag”.")
    if any(group.rare for group in found.groups):
        notes.append(
            f"“few patients with” names labels whose positives come from fewer than "
            f"{FEW_POSITIVE_GROUPS} patients: some resamples have none of them, and leave it out."
        )
    if differ:
        lacking = {
            by: labels for by, labels in found.shared.items() if len(labels) < len(benchmark.labels)
        }
        told = "; ".join(f"{by}: {listed(own) or 'none'}" for by, own in lacking.items())
        notes.append(
            f"The {primary} of a group leaves out the labels it is “without”, so it compares with "
            f"another's only on shared labels, those that all groups of a kind have ({told})."
        )
    missing = found.groups[0].n_missing
    if missing:
        notes.append(f"{some(missing, benchmark.unit)} without a probability count nowhere here.")
    if found.absent:
        notes.append(f"No test recording states: {listed(found.absent)}.")
    if results.chosen_verdict != "passed":
        notes.append(f"Audit of these figures: {results.chosen_verdict}.")
    return tuple(filter(None, notes))


def _labels_table(results: Results, found: Subgroups) -> Table:
    """Lay out what the primary metric averages, or the AUROC, of each label with its positives."""
    labels = results.benchmark.drawn_labels
    metric = MACRO.get(results.benchmark.primary, "auroc")

    def cell(group: GroupFigures, label: str) -> str:
        figure = group.figure(f"{metric}_{label}")
        return f"{number(figure.point)} ({count(group.n_positive[label])})"

    note = f"In brackets: positive {results.benchmark.unit}s.{results.benchmark.drawn_note}"
    return Table(
        caption(f"{metric_title(metric)} of each label by group", results),
        ("group", *labels),
        [(_name(group), *(cell(group, label) for label in labels)) for group in found.groups],
        frozenset(range(1, len(labels) + 1)),
        notes=(note,),
        section="subgroups",
    )


def subgroups_csv(results: Results) -> pd.DataFrame | None:
    """Give every figure of every group, one a row; None if there are none."""
    found, benchmark = results.subgroups, results.benchmark
    if found is None:
        return None
    rows = []
    for group in found.groups:
        # A group without figures has its counts beside the primary metric.
        for name in group.figures or (benchmark.primary,):
            metric, label = _parted(name, benchmark.labels)
            own = group.figure(name)
            rows.append(
                {
                    "by": group.by,
                    "group": group.name,
                    "metric": metric,
                    "label": label,
                    "value": own.point,
                    "low": own.low,
                    "high": own.high,
                    "n_undefined": own.n_undefined if np.isfinite(own.low) else None,
                    "p": own.p,
                    "p_holm": group.p_holm if name.endswith(DIFFERENCE) else np.nan,
                    "n_examples": group.n_examples,
                    "n_records": group.n_records,
                    "n_patients": group.n_patients,
                    "n_positive": group.n_positive.get(label),
                    "n_missing": group.n_missing,
                    "n_abstained": group.n_abstained,
                    "warning": group.warning,
                    "verdict": results.chosen_verdict,
                    "data": benchmark.data_label,
                }
            )
    table = pd.DataFrame(rows)
    for name in ("n_undefined", "n_positive"):
        table[name] = table[name].astype("Int64")
    return table


def _parted(name: str, labels: tuple[str, ...]) -> tuple[str, str]:
    """Part a metric's name from the label it is of, if it is of one."""
    own = [label for label in labels if name.endswith(f"_{label}")]
    label = max(own, key=len, default="")
    return (name.removesuffix(f"_{label}"), label) if label else (name, "")


def forest(results: Results) -> Iterator[Plot]:
    """Draw the primary metric of every group with its interval, about that of all."""
    found, primary = results.subgroups, results.benchmark.primary
    if found is None:
        return
    groups = [group for group in found.groups if group.by != EVERYONE]
    whole = found.groups[0].figure(primary)
    if not groups or not np.isfinite(whole.point):
        return
    # A kind's first row stands a little apart from the last of the one before.
    places, y = [], 0.0
    for before, group in zip([None, *groups], groups, strict=False):
        y += 1.0 if before is None or before.by == group.by else 1.6
        places.append(y)
    figure = new_figure(8.2, 1.2 + 0.235 * places[-1])
    axes = tidy(figure.add_subplot(), x=f"test {metric_title(primary)}", grid="x")
    if np.isfinite(whole.low):
        axes.axvspan(whole.low, whole.high, color=PALE, alpha=0.12, lw=0)
    axes.axvline(whole.point, color=INK, lw=1.2, ls=(0, (4, 3)))
    said = []
    for group, place in zip(groups, places, strict=True):
        own = group.figure(primary)
        text = with_interval(own.point, np.nan, own.low, own.high)
        few = group.n_patients < FEW_GROUPS
        if np.isfinite(own.point):
            shade = colour(1 if group in found.worse else 0)
            axes.plot([own.low, own.high], [place, place], color=shade, lw=1.8, zorder=3)
            face = "white" if few else shade
            axes.scatter(own.point, place, s=34, facecolors=face, edgecolors=shade, zorder=4)
        note = f"{text}  ({count(group.n_patients)})" if group.is_shown else group.warning
        axes.annotate(
            note,
            (1.015, place),
            xycoords=("axes fraction", "data"),
            fontsize=8.5,
            color=INK if group.is_shown else PALE,
            va="center",
            annotation_clip=False,
        )
        said.append(f"{group.title} {text} ({some(group.n_patients, 'patient')})")
    axes.set_yticks(places, [_cut(_name(group)) for group in groups])
    axes.set_ylim(places[-1] + 0.8, places[0] - 0.8)
    axes.margins(x=0.05)
    yield Plot(
        "subgroups",
        "subgroups",
        f"{metric_title(primary)[:1].upper()}{metric_title(primary)[1:]} by group",
        f"{results.chosen_name} (chosen on validation), test split, with 95 % intervals over patients; "
        f"patients in brackets, hollow where fewer than {FEW_GROUPS}. The dashed line and the band are "
        "all test examples. Orange: worse than the rest after Holm's correction. Groups that lack a "
        "label leave it out of a macro average.",
        f"Test {metric_title(primary)} by group; all {with_interval(whole.point, np.nan, whole.low, whole.high)}. "
        f"{'; '.join(said)}.",
        figure,
    )


def _cut(name: str) -> str:
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
