"""Tables of ectopic beats as ANSI/AAMI EC57 has them, for tasks on AAMI classes.

Legend: R record, C class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rayecg.metrics.ec57 import AAMI, DONT_CARE, BeatCounts, beat_matrices
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.runs import verdict
from rayecg.report.text import SYNTHETIC_LABEL, count, mean_and_spread, number, some

TITLES = {"S": "SVEB", "V": "VEB"}
#: Figures with don't-care cells and strictly; sensitivity is the same.
_FIGURES = ("sensitivity", "positive_predictivity", "false_positive_rate", "accuracy")
_STRICT = _FIGURES[1:]


def beat_tables(results: Results) -> Iterator[Table]:
    """Lay out the ectopic beats of every architecture, and of each record for the chosen run."""
    benchmark = results.benchmark
    labels = set(benchmark.labels)
    if benchmark.task["unit"] != "beat" or not set(DONT_CARE) <= labels <= set(AAMI):
        return
    rows = [row for name in results.architectures for row in _architecture_rows(results, str(name))]
    columns = (
        *("architecture", "beats", "statistic", "Se", "+P", "FPR", "accuracy"),
        *("+P strictly", "FPR strictly", "accuracy strictly", "don't care", "audit"),
    )
    yield Table(
        _caption(f"Ectopic beats (EC57), test split, mean over {benchmark.over}", benchmark),
        columns,
        rows,
        frozenset(range(3, len(columns) - 1)),
        notes=(*_notes(benchmark), *_undecided(results)),
        section="classes",
    )
    yield _record_table(results)


def _architecture_rows(results: Results, architecture: str) -> Iterator[tuple[str, ...]]:
    own = results.done[results.done["architecture"] == architecture]
    given = [results.benchmark.outputs(run) for run in own["run"]]
    each = [_matrices(results.benchmark, o)[1] for o in given if o is not None]
    each = [matrix_RCC for matrix_RCC in each if matrix_RCC.sum()]
    if not each:
        return
    labels, said = results.benchmark.labels, verdict(results.benchmark.findings, own["run"])
    for ectopic, title in TITLES.items():
        lax, strict = (
            [BeatCounts.of(matrix_RCC, labels, ectopic, strict) for matrix_RCC in each]
            for strict in (False, True)
        )
        for statistic in ("gross", "average"):
            cells = [
                *(_over_runs(lax, statistic, name) for name in _FIGURES),
                *(_over_runs(strict, statistic, name) for name in _STRICT),
            ]
            free = np.mean([counts.uncounted_R.sum() for counts in lax])
            yield (
                *(architecture, title, statistic, *cells),
                count(float(free)) if statistic == "gross" else "",
                said,
            )


def _over_runs(each: Sequence[BeatCounts], statistic: str, name: str) -> str:
    values = [
        counts.gross().figures()[name][0] if statistic == "gross" else counts.average()[name]
        for counts in each
    ]
    known = [value for value in values if not np.isnan(value)]
    sd = float(np.std(known, ddof=1)) if len(known) > 1 else float("nan")
    return mean_and_spread(float(np.mean(known)) if known else float("nan"), sd)


def _matrices(benchmark: Benchmark, outputs: Outputs) -> tuple[np.ndarray, np.ndarray]:
    own_N = outputs.decided
    records_N = benchmark.examples.loc[outputs.rows_N[own_N], "record_id"].to_numpy(dtype=np.str_)
    return beat_matrices(outputs.targets_NC[own_N], outputs.decisions_NC[own_N], records_N)


def _record_table(results: Results) -> Table:
    """Lay out each record's ectopic beats, as the chosen run decides, with don't-care cells."""
    names = ("TP", "FN", "FP", "Se", "+P", "FPR")
    each = [f"{title} {name}" for title in TITLES.values() for name in names]
    columns = ("record", "beats", *each, "audit")
    outputs, chosen, rows = results.chosen_outputs, results.chosen, []
    if outputs is not None and chosen is not None and outputs.decided.any():
        names_R, matrix_RCC = _matrices(results.benchmark, outputs)
        parts: list[np.ndarray] = [matrix_RCC.sum(axis=(1, 2))]
        for ectopic in TITLES:
            counts = BeatCounts.of(matrix_RCC, results.benchmark.labels, ectopic)
            figures = counts.figures()
            parts += [counts.tp_R, counts.fn_R, counts.fp_R, *(figures[n] for n in _FIGURES[:3])]
        said = verdict(results.benchmark.findings, [chosen["run"]])
        rows = [
            (str(name), *(_cell(part_R[r]) for part_R in parts), said)
            for r, name in enumerate(names_R)
        ]
    run = "" if chosen is None else f"run {chosen['run']} (chosen on validation), "
    return Table(
        _caption(f"Ectopic beats by record: {run}test split", results.benchmark),
        columns,
        rows,
        frozenset(range(1, len(columns) - 1)),
        notes=("With don't-care cells.",),
        section="classes",
    )


def _cell(value: float) -> str:
    """Write a figure, or a whole number of beats."""
    return number(value) if isinstance(value, float) else count(value)


def _caption(text: str, benchmark: Benchmark) -> str:
    return f"{text}, {SYNTHETIC_LABEL}" if benchmark.synthetic else text


def _notes(benchmark: Benchmark) -> tuple[str, ...]:
    free = [
        f"{true} decided {ectopic}"
        for ectopic, classes in DONT_CARE.items()
        for true in classes
        if true in benchmark.labels
    ]
    cells = (
        f"Don't-care cells, neither right nor wrong: {', '.join(free)}. Strictly, they are false "
        "positives."
        if free
        else "The task has no class F or Q, and so no don't-care cell: strictly is the same."
    )
    return (
        f"{cells} Sensitivity (Se), positive predictivity (+P), false positive rate (FPR) and accuracy "
        "are of one ectopic class against all others: gross of all beats together, average as the mean "
        "over the records that have the figure. Beats are annotated ones: none is missed or detected "
        "in excess.",
    )


def _undecided(results: Results) -> tuple[str, ...]:
    n = int(results.done["n_test_abstained"].max()) if len(results.done) else 0
    return (f"Up to {some(n, 'beat')} without a decision are left out.",) if n else ()
