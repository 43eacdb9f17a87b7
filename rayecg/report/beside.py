"""Several benchmarks beside one another: the same metric under different protocols, with the audit.

Test sets differ between protocols, so that no difference is tested: rows stand beside one another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rayecg.core.errors import DataError
from rayecg.core.files import replacing, write_text
from rayecg.report.results import Results
from rayecg.report.style import INK, Plot, colour, legend, new_figure, png, stamp, tidy
from rayecg.report.text import (
    NOTHING_NOTE,
    SPREAD_NOTE,
    SYNTHETIC_LABEL,
    count,
    interval,
    markdown_table,
    mean_and_spread,
    metric_title,
    number,
    some,
    with_interval,
)

#: Metrics of whole runs in the table, after the primary one.
METRICS = ("macro_f1", "accuracy", "macro_auroc")
#: Findings are quoted up to this length.
LONGEST = 200


def write_beside(sources: Mapping[str, tuple[Path, Path]], out: Path) -> str:
    """Write `summary.md`, `summary.csv`, `per_class.csv` and `plots/beside.png`; gives the table.

    Parameters
    ----------
    sources
        Name, as in links, to a benchmark's output folder and the folder of its report.
    out
        Holds the reports as `<name>/`, which get their benchmarks' settings and ledgers.

    Raises
    ------
    DataError
        If their labels, their primary metric or the unit of their examples differ.
    """
    every = {
        name: Results(source, report / "findings.json")
        for name, (source, report) in sources.items()
    }
    _check(every)
    for name, (source, _) in sources.items():  # settings and looks belong to the figures
        for file in ("experiment.yaml", "ledger.json"):
            if (source / file).exists():
                write_text(out / name / file, (source / file).read_text(encoding="utf-8"))
    summary, per_class = _joined(every, "summary"), _joined(every, "per_class")
    for name, table in (("summary", summary), ("per_class", per_class)):
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.6g")
        write_text(out / f"{name}.csv", text)
    plot = draw_beside(every, per_class, summary)
    if any(results.benchmark.synthetic for results in every.values()):
        stamp(plot.figure, SYNTHETIC_LABEL)
    with replacing(out / "plots" / f"{plot.name}.png") as beside:
        beside.write_bytes(png(plot.figure))
    columns, rows = _summary_rows(every, summary)
    write_text(out / "summary.md", _markdown(every, per_class, (columns, rows), plot))
    return markdown_table(columns, rows)


def _check(every: Mapping[str, Results]) -> None:
    first, *others = every.values()
    for name, results in zip(list(every)[1:], others, strict=True):
        for what in ("labels", "primary", "unit"):
            expected, came = (getattr(one.benchmark, what) for one in (first, results))
            if expected != came:
                raise DataError(f"{name}: expected the {what} {expected} of the first, came {came}")


def _joined(every: Mapping[str, Results], name: str) -> pd.DataFrame:
    """Put tables below one another, without ensembles."""
    parts = []
    for title, results in every.items():
        table: pd.DataFrame = getattr(results, name)
        if not len(table):
            continue
        averaged = results.summary["n_members"].notna()
        alone = results.summary.loc[~averaged, "architecture"]
        own = table[table["architecture"].isin(alone)].copy()
        own.insert(0, "benchmark", title)
        own.insert(1, "split", results.benchmark.task["split"]["name"])
        parts.append(own)
    if not parts:
        raise DataError("expected a benchmark with runs, came none")
    return pd.concat(parts, ignore_index=True)


def _summary_rows(
    every: Mapping[str, Results], summary: pd.DataFrame
) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    primary = next(iter(every.values())).benchmark.primary
    others = [metric for metric in METRICS if metric != primary]
    rows = []
    for _, row in summary.iterrows():
        results = every[row["benchmark"]]
        rows.append(
            (
                results.benchmark.title,
                str(row["split"]),
                str(row["architecture"]),
                str(row["n_seeds"]),
                _count(row["n_test_patients"]),
                _count(row["n_test"]),
                mean_and_spread(row[f"test_{primary}_mean"], row[f"test_{primary}_sd"]),
                interval(row[f"test_{primary}_low"], row[f"test_{primary}_high"]),
                *(
                    mean_and_spread(row[f"test_{metric}_mean"], row[f"test_{metric}_sd"])
                    for metric in others
                ),
                str(row["verdict"]),
            )
        )
    unit = next(iter(every.values())).benchmark.unit
    columns = (
        *("benchmark", "split", "architecture", "seeds", "test patients", f"test {unit}s"),
        f"test {metric_title(primary)}",
        "95 % interval",
        *(f"test {metric_title(metric)}" for metric in others),
        "audit",
    )
    return columns, rows


def _count(value: Any) -> str:
    return count(None if pd.isna(value) else float(value))


def _class_rows(every: Mapping[str, Results], per_class: pd.DataFrame) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for label in next(iter(every.values())).benchmark.labels:
        for _, row in per_class[per_class["label"] == label].iterrows():
            rows.append(
                (
                    label,
                    every[row["benchmark"]].benchmark.title,
                    str(row["architecture"]),
                    _count(row["n_positive"]),
                    with_interval(row["f1_mean"], row["f1_sd"], row["f1_low"], row["f1_high"]),
                    mean_and_spread(row["sensitivity_mean"], row["sensitivity_sd"]),
                    mean_and_spread(row["ppv_mean"], row["ppv_sd"]),
                )
            )
    return rows


def _audit_rows(every: Mapping[str, Results]) -> list[tuple[str, ...]]:
    """Lay out the rules that are violated by one of the benchmarks, with what each says."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for name, results in every.items():
        for finding in results.benchmark.findings or ():
            found.setdefault(finding["rule_id"], {}).setdefault(name, []).append(finding)
    rows = []
    for rule_id, of in found.items():
        if any(f["verdict"] == "violated" for own in of.values() for f in own):
            rows.append((rule_id, *(_said(of.get(name, [])) for name in every)))
    return rows


def _said(findings: Sequence[Mapping[str, Any]]) -> str:
    fired = [f for f in findings if f["verdict"] == "violated"]
    # Of several, what the test figures rest on.
    worst = sorted(fired, key=lambda f: "test" not in f["taints"]) or list(findings)
    if not worst:
        return "not checked"
    text = str(worst[0]["evidence"]["text"])
    cut = text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
    return f"{worst[0]['verdict']}: {cut}"


def _violated(results: Results) -> list[str]:
    found = [f["rule_id"] for f in results.benchmark.findings or () if f["verdict"] == "violated"]
    return list(dict.fromkeys(found))


def draw_beside(
    every: Mapping[str, Results], per_class: pd.DataFrame, summary: pd.DataFrame
) -> Plot:
    """Draw the F1 of each label, and the primary metric, with intervals, by benchmark."""
    benchmark = next(iter(every.values())).benchmark
    primary = benchmark.primary
    labels = list(benchmark.drawn_labels)
    lines = [metric_title(primary), *(f"F1 {label}" for label in labels)]
    drawn = summary[summary["n_seeds"] > 0]
    series = [
        (name, architecture)
        for name, architecture in drawn[["benchmark", "architecture"]].itertuples(index=False)
    ]
    height = 1.2 + len(lines) * (0.16 + 0.17 * len(series))
    figure = new_figure(7.6, height)
    axes = tidy(figure.add_subplot(), x="test figure, mean over runs", grid="x")
    said = []
    for i, (name, architecture) in enumerate(series):
        whole = _one(summary, name, architecture)
        columns = [(whole, f"test_{primary}")]
        for label in labels:
            own = per_class[per_class["label"] == label]
            columns.append((_one(own, name, architecture), "f1"))
        mean, low, high = (
            np.array([row[f"{metric}_{end}"] for row, metric in columns], dtype=float)
            for end in ("mean", "low", "high")
        )
        y = np.arange(len(lines)) + (i - (len(series) - 1) / 2) * 0.17
        fired = _violated(every[name])
        note = f" ({some(len(fired), 'rule')} violated)" if fired else ""
        title = f"{every[name].benchmark.title}, {architecture}{note}"
        axes.hlines(y, low, high, color=colour(i), lw=2.2, alpha=0.45)
        axes.scatter(
            mean,
            y,
            s=34,
            color="white" if fired else colour(i),
            edgecolors=colour(i),
            linewidths=1.6,
            zorder=3,
            label=title,
        )
        said.append(f"{title}: {metric_title(primary)} {number(float(mean[0]))}")
    axes.set_yticks(range(len(lines)), lines, color=INK)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    legend(axes, loc="lower left", bbox_to_anchor=(0, 1.01))
    return Plot(
        name="beside",
        section="results",
        title="The same metrics under each protocol",
        caption=f"Dots: means over runs, hollow where an audit rule is violated. Lines: 95 % intervals "
        f"over patients.{benchmark.drawn_note}",
        alt="; ".join(said),
        figure=figure,
    )


def _one(table: pd.DataFrame, name: str, architecture: str) -> pd.Series:
    own = table[(table["benchmark"] == name) & (table["architecture"] == architecture)]
    return own.iloc[0] if len(own) else pd.Series(dtype=float).reindex(table.columns)


def _markdown(
    every: Mapping[str, Results],
    per_class: pd.DataFrame,
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    plot: Plot,
) -> str:
    titles = [results.benchmark.title for results in every.values()]
    parts = [f"# {' | '.join(titles)}\n"]
    if any(results.benchmark.synthetic for results in every.values()):
        parts.append(f"**{SYNTHETIC_LABEL[0].upper()}{SYNTHETIC_LABEL[1:]}.**\n")
    parts += [markdown_table(*table)]
    parts.append(f"![{plot.alt}](plots/{plot.name}.png)\n\n{plot.title}. {plot.caption}\n")
    parts.append("## Labels on the test split\n")
    columns = ("label", "benchmark", "architecture", "positive", "F1", "sensitivity", "PPV")
    parts.append(markdown_table(columns, _class_rows(every, per_class)))
    parts.append("In brackets: the 95 % interval over patients.\n")
    parts.append("## What the audit says\n")
    for name, results in every.items():
        fired = _violated(results)
        said = (
            f"violates {some(len(fired), 'rule')}: {', '.join(fired)}" if fired else "violates none"
        )
        parts.append(f"- [{results.benchmark.title}]({name}/index.html) {said}.")
    rows = _audit_rows(every)
    if rows:
        parts.append("\n" + markdown_table(("rule", *titles), rows))
    for results in every.values():
        parts += [f"\n{results.benchmark.title}. {note}" for note in results.intervals.notes]
    parts.append(f"\n{SPREAD_NOTE} {NOTHING_NOTE}\n")
    return "\n".join(parts)
