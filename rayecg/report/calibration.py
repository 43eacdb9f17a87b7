"""Tables of calibration: how far probabilities mean what they say, before and after the calibrator.

Legend: C label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from rayecg.core.errors import DataError
from rayecg.core.outputs import Isotonic, OperatingPoint, Platt
from rayecg.metrics.calibration import N_BINS, CalibrationFigures, evaluate_calibration
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.runs import verdict
from rayecg.report.subgroups import caption
from rayecg.report.text import NOTHING, count, counted, listed, mean_and_spread, number

FIGURES = {
    "ece": "ECE",
    "adaptive_ece": "adaptive ECE",
    "brier": "Brier score",
    "slope": "slope",
    "intercept": "intercept",
}
STATES = ("raw", "calibrated")
#: How rules and calibrators are called in tables.
CALIBRATORS = {
    "none": "none",
    "temperature": "temperature",
    "platt": "Platt, by label",
    "isotonic": "isotonic, by label",
}


def operating_point(benchmark: Benchmark, run: str) -> OperatingPoint | None:
    """Give how a run decides and calibrates; None if its card does not say, or in other words."""
    try:
        return OperatingPoint.from_tree(benchmark.cards[run]["operating_point"])
    except (DataError, KeyError):
        return None


def calibrator_name(point: OperatingPoint | None) -> str:
    """Give the calibrator's name in tables."""
    return "not stated" if point is None else CALIBRATORS[point.calibrator.method]


def both_states(outputs: Outputs, benchmark: Benchmark) -> tuple[CalibrationFigures, ...]:
    """Evaluate probabilities before and after the calibrator."""
    kind = benchmark.task["kind"]
    return tuple(
        evaluate_calibration(outputs.targets_NC, own_NC, kind)
        for own_NC in (outputs.probabilities_NC, outputs.calibrated_NC)
    )


def calibration_tables(results: Results) -> Iterator[Table]:
    """Lay out every architecture's and ensemble's calibration, and the chosen run's by label."""
    found = _evaluated(results)
    if not found:
        return
    yield _overview(results, found)
    chosen = results.chosen
    if chosen is not None and chosen["run"] in found:
        yield _by_label(results, str(chosen["run"]), found[chosen["run"]])


def _evaluated(results: Results) -> dict[str, tuple[CalibrationFigures, ...]]:
    found = {}
    for run in results.done["run"]:
        outputs = results.benchmark.outputs(run)
        if outputs is not None and len(outputs.targets_NC):
            found[run] = both_states(outputs, results.benchmark)
    return found


def _overview(results: Results, found: Mapping[str, tuple[CalibrationFigures, ...]]) -> Table:
    benchmark, chosen = results.benchmark, results.chosen
    multiclass = benchmark.task["kind"] == "multiclass"
    done = results.done[results.done["run"].isin(list(found))]
    groups: list[tuple[str, str, list[str], bool]] = []
    if chosen is not None and benchmark.n_folds == 1 and chosen["run"] in found:
        groups.append((f"{chosen['run']}, the chosen run", "1", [str(chosen["run"])], True))
    for name in results.architectures:
        own = done[done["architecture"] == name]
        if len(own):
            marked = benchmark.n_folds > 1 and bool(own["chosen"].all())
            runs = counted(len(own), own["n_members"].max())
            groups.append((name, runs, own["run"].tolist(), marked))
    rows: list[tuple[str, ...]] = []
    marked_rows: list[int] = []
    for name, runs, members, marked in groups:
        points = [operating_point(benchmark, run) for run in members]
        methods = dict.fromkeys(calibrator_name(point) for point in points)
        for state in range(len(STATES)):
            top_label = [found[run][state].top_label_ece for run in members]
            top = [mean_of(top_label)] if multiclass else []
            marked_rows += [len(rows)] if marked else []
            rows.append(
                (
                    name,
                    runs,
                    STATES[state],
                    listed(list(methods)) if state else NOTHING,
                    *(
                        mean_of([_macro(found[run], state, figure) for run in members])
                        for figure in FIGURES
                    ),
                    *top,
                    verdict(benchmark.findings, members),
                )
            )
    extra = ("top-label ECE",) if multiclass else ()
    columns = ("run or architecture", "runs", "probabilities", "calibrator", *FIGURES.values())
    columns += (*extra, "audit")
    return Table(
        caption(
            f"Calibration on the test split, macro averages, mean over {benchmark.over}", results
        ),
        columns,
        rows,
        frozenset({1, *range(4, len(columns) - 1)}),
        frozenset(marked_rows),
        tuple(_overview_notes(benchmark, found)),
        "calibration",
    )


def _macro(states: Sequence[CalibrationFigures], state: int, figure: str) -> float:
    """Average over the labels that have the figure before and after the calibrator."""
    values = [getattr(own, f"{figure}_C") for own in states]
    known_C = np.logical_and.reduce(np.isfinite(values))
    return states[state].macro(figure, known_C)


def mean_of(values: Sequence[float]) -> str:
    """Write the mean of what is known, and its spread where there are several."""
    known = np.array([value for value in values if np.isfinite(value)])
    if not len(known):
        return NOTHING
    return mean_and_spread(known.mean(), known.std(ddof=1) if len(known) > 1 else float("nan"))


def _overview_notes(
    benchmark: Benchmark, found: Mapping[str, tuple[CalibrationFigures, ...]]
) -> Iterator[str]:
    versus = "" if benchmark.task["kind"] == "multilabel" else ", each class against all others"
    yield (
        f"Expected calibration error (ECE): how far the mean probability and the share of positives are "
        f"apart in {N_BINS} bins of equal width, weighted by their examples; adaptive: of equal mass. "
        "Slope and intercept are those of the targets on the log-odds of the probabilities, fitted "
        "together: 1 and 0 if calibrated, a slope below 1 if probabilities are too extreme. Of each "
        f"label{versus}, then averaged. Calibrators were fitted on validation."
    )
    figures = [state for states in found.values() for state in states]
    lacking = _named(benchmark, [~own.both_C for own in figures])
    if lacking:
        yield (
            f"The averages leave out {listed(lacking)}: without positives or without negatives among "
            "the scored test examples of some or all runs."
        )
    apart = _named(benchmark, [own.both_C & np.isnan(own.slope_C) for own in figures])
    if apart:
        yield (
            f"Those of slope and intercept also leave out {listed(apart)}: in some or all runs, all "
            "positives lie to one side of all negatives there before or after the calibrator, and no "
            "finite slope is the best."
        )


def _named(benchmark: Benchmark, flags: Sequence[np.ndarray]) -> list[str]:
    own_C = np.logical_or.reduce(list(flags))
    return [label for label, own in zip(benchmark.labels, own_C, strict=True) if own]


def _by_label(results: Results, run: str, states: tuple[CalibrationFigures, ...]) -> Table:
    benchmark = results.benchmark
    point = operating_point(benchmark, run)
    raw, calibrated = states
    extra = _point_columns(benchmark, point) if point is not None else {}
    rows = [
        (
            label,
            count(raw.n_positive_C[i]),
            *(cells[i] for cells in extra.values()),
            *(
                f"{number(getattr(raw, f'{figure}_C')[i])} → "
                f"{number(getattr(calibrated, f'{figure}_C')[i])}"
                for figure in FIGURES
            ),
        )
        for i, label in enumerate(benchmark.labels)
    ]
    titles = ("label", "positive in test", *extra, *FIGURES.values())
    return Table(
        caption(f"Operating point and calibration of {run} by label, on the test split", results),
        titles,
        rows,
        frozenset(range(1, len(titles))),
        notes=tuple(_point_notes(benchmark, point)),
        section="calibration",
    )


def _point_columns(benchmark: Benchmark, point: OperatingPoint) -> dict[str, list[str]]:
    """Give what the card says of each label, a column under its title."""
    columns = {}
    if point.n_positive_C:
        columns[f"positive in {point.split}"] = [count(n) for n in point.n_positive_C]
    if point.thresholds_C and benchmark.task["kind"] == "multilabel":
        chosen_C = point.chosen_C or (True,) * len(point.thresholds_C)
        columns["threshold"] = [
            f"{number(value)}{'' if chosen else ', by default'}"
            for value, chosen in zip(point.thresholds_C, chosen_C, strict=True)
        ]
    if point.weights is not None:
        columns["weight"] = [number(value) for value in point.weights.weights_C]
    return columns


def _point_notes(benchmark: Benchmark, point: OperatingPoint | None) -> Iterator[str]:
    if point is None:
        yield "Figures are raw → calibrated. The card does not say how this run decides and calibrates."
        return
    yield f"{_rule_in_words(point)} (rule {point.rule})."
    calibrator = point.calibrator
    yield (
        f"Figures are raw → calibrated; calibrator: {CALIBRATORS[calibrator.method]}, fitted to "
        f"{calibrator.n_examples:,} examples of the {calibrator.split} split. Decisions rest on raw "
        "probabilities."
    )
    default = [
        label for label, own in zip(benchmark.labels, point.chosen_C, strict=False) if not own
    ]
    if default:
        yield (
            f"There was nothing to choose the threshold of {listed(default)} by: it is the default."
        )
    fitted_C: Sequence[object] = ()
    if isinstance(calibrator, Platt):
        fitted_C = calibrator.fitted_C
    elif isinstance(calibrator, Isotonic):
        fitted_C = calibrator.log_odds_CK
    left = [label for label, own in zip(benchmark.labels, fitted_C, strict=False) if not own]
    if left:
        yield f"There was nothing to fit a calibrator to for {listed(left)}: left as they are."


def _rule_in_words(point: OperatingPoint) -> str:
    if not point.thresholds_C:
        text = "Decisions are for the class with the largest probability"
        if point.weights is None:
            return text
        power = "inverse" if point.weights.method == "inverse" else "square root of the inverse"
        return (
            f"{text} times its weight, the {power} of the classes' frequencies among "
            f"{point.weights.n_examples:,} examples of the {point.weights.split} split"
        )
    least = number(point.sensitivity, 2)
    rules = {
        "max_f1": "has the highest F1",
        "youden": "has the highest sensitivity + specificity - 1",
        "sensitivity": f"is the highest that reaches a sensitivity of {least}",
    }
    what = rules.get(point.rule, "was chosen")
    return f"Each label's threshold {what} among {point.n_examples:,} examples of the {point.split} split"
