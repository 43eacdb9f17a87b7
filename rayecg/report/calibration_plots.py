"""Plots of calibration: reliability and decision curves of the chosen run.

Legend: N example, C label, B bin, T threshold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from rayecg.core.outputs import Temperature
from rayecg.metrics.bootstrap import few_groups
from rayecg.metrics.calibration import N_BINS, Reliability, reliability, top_label
from rayecg.metrics.decision_curves import decision_curves
from rayecg.report.benchmark import Outputs
from rayecg.report.calibration import STATES, calibrator_name, operating_point
from rayecg.report.results import Results
from rayecg.report.style import Plot, colour, legend, new_figure, tidy
from rayecg.report.text import number, some

#: Panels of decision curves in a row, at most.
ACROSS = 4


def _chosen(results: Results) -> tuple[Outputs, pd.Series] | None:
    outputs, chosen = results.chosen_outputs, results.chosen
    if outputs is None or chosen is None or not len(outputs.targets_NC):
        return None
    return outputs, chosen


def reliability_plot(results: Results) -> Iterator[Plot]:
    """Draw how often what was said with a probability came true, raw and calibrated."""
    found = _chosen(results)
    if found is None:
        return
    outputs, chosen = found
    multilabel = results.benchmark.task["kind"] == "multilabel"
    figure = new_figure(5.6, 5.8)
    upper, lower = figure.subplots(2, 1, height_ratios=[4, 1], sharex=True)
    tidy(upper, y="share that carries the label" if multilabel else "share that is right")
    tidy(lower, "probability" if multilabel else "largest probability", "count")
    upper.plot([0, 1], [0, 1], color="#9aa5b1", lw=1, ls=(0, (4, 3)))
    said = []
    edges = np.linspace(0, 1, N_BINS + 1)
    width = 0.42 / N_BINS
    series = zip(STATES, (outputs.probabilities_NC, outputs.calibrated_NC), strict=True)
    for i, (name, values_NC) in enumerate(series):
        curve = _curve(outputs, values_NC, multilabel)
        used = curve.count_B > 0
        _draw_curve(upper, curve, i, name)
        offset = (i - 0.5) * width
        lower.bar((edges[:-1] + edges[1:]) / 2 + offset, curve.count_B, width, color=colour(i))
        pairs = zip(curve.mean_B[used], curve.share_B[used], strict=True)
        said.append(f"{name}: " + ", ".join(f"{m:.2f} → {s:.2f}" for m, s in pairs))
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    lower.set_yscale("log")
    lower.set_ylim(0.7, 2.5 * max(lower.get_ylim()[1], 10))
    lower.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    lower.yaxis.set_major_locator(LogLocator(numticks=4))
    lower.yaxis.set_minor_locator(NullLocator())
    legend(upper, loc="upper left")
    what = "all labels together" if multilabel else "the class with the largest probability"
    point = operating_point(results.benchmark, chosen["run"])
    method = calibrator_name(point)
    if point is not None:
        if isinstance(point.calibrator, Temperature):
            method += f" {point.calibrator.temperature:.2f}"
        method += f", fitted on {point.calibrator.split}"
    n_patients = len(np.unique(outputs.patients_N))
    few = few_groups(n_patients)
    warning = f" It {few}, and is rough." if few else ""
    yield Plot(
        "reliability",
        "calibration",
        "Reliability",
        f"Run {chosen['run']} (chosen on validation), test split, {what}, {N_BINS} bins of equal width. "
        f"Calibrator: {method}. On the diagonal, probabilities mean what "
        f"they say. Bars are the 95 % interval of the share in resamples of {some(n_patients, 'patient')}; "
        f"there is none where all examples of a bin agree or are one patient's.{warning} Below: examples in each bin.",
        f"Reliability of {chosen['run']}, mean probability → observed share. {'; '.join(said)}.",
        figure,
    )


def _curve(outputs: Outputs, values_NC: np.ndarray, multilabel: bool) -> Reliability:
    target_NC, patients_N = outputs.targets_NC, outputs.patients_N
    if multilabel:
        patients_N = np.repeat(patients_N, values_NC.shape[1])
    else:
        target_NC, values_NC = top_label(target_NC, values_NC)
    return reliability(target_NC.ravel(), values_NC.ravel(), groups_N=patients_N)


def _draw_curve(axes: Axes, curve: Reliability, i: int, name: str) -> None:
    used = curve.count_B > 0
    mean, share = curve.mean_B[used], curve.share_B[used]
    # An interval may miss its share, and lengths must not be below 0.
    lengths = np.fmax([share - curve.low_B[used], curve.high_B[used] - share], 0.0)
    style: dict[str, Any] = {"color": colour(i), "marker": "os"[i], "ms": 5, "lw": 1.6}
    style |= {"ls": "-" if i else "--", "elinewidth": 1.0, "capsize": 2.5}
    axes.errorbar(mean, share, lengths, label=name, **style)


def decision_plot(results: Results) -> Iterator[Plot]:
    """Draw the net benefit of acting on the chosen run's probabilities, a panel for each label."""
    found = _chosen(results)
    if found is None:
        return
    outputs, chosen = found
    raw, calibrated = (
        decision_curves(outputs.targets_NC, values_NC, standardised=True)
        for values_NC in (outputs.probabilities_NC, outputs.calibrated_NC)
    )
    labels = [
        label
        for label in results.benchmark.drawn_labels
        if raw.prevalence_C[outputs.labels.index(label)] > 0
    ]
    if not labels:
        return
    n_down = math.ceil(len(labels) / ACROSS)
    n_across = math.ceil(len(labels) / n_down)
    figure = new_figure(0.9 + 2.3 * n_across, 1.0 + 2.15 * n_down)
    panels = figure.subplots(n_down, n_across, sharex=True, sharey=True, squeeze=False)
    said = []
    for place, axes in enumerate(panels.flat):
        if place >= len(labels):
            axes.set_visible(False)
            continue
        label = labels[place]
        i = outputs.labels.index(label)
        tidy(
            axes,
            "threshold" if place + n_across >= len(labels) else "",
            "net benefit / prevalence" if place % n_across == 0 else "",
        )
        axes.axhline(0, color="#9aa5b1", lw=1.0, label="act on nobody")
        everybody = {"color": "#5d6b7a", "lw": 1.2, "ls": (0, (2, 2)), "label": "act on everybody"}
        axes.plot(raw.thresholds_T, raw.treat_all_TC[:, i], **everybody)
        for state, curves in enumerate((raw, calibrated)):
            style = {"color": colour(state), "lw": 1.6, "ls": "-" if state else "--"}
            axes.plot(curves.thresholds_T, curves.model_TC[:, i], label=STATES[state], **style)
        axes.set(xlim=(0, 1), ylim=(-0.25, 1.05))
        axes.set_title(f"{label}  ({number(raw.prevalence_C[i])})", fontsize=9.5, loc="left")
        axes.tick_params(labelbottom=place + n_across >= len(labels))
        above = np.maximum(calibrated.treat_all_TC[:, i], 0) < calibrated.model_TC[:, i]
        text = f"{label} {above.sum()} of {len(above)}"
        said.append(text)
    handles, names = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=4, fontsize=8.5, frameon=False)
    n = len(raw.thresholds_T)
    yield Plot(
        "decision_curves",
        "calibration",
        "Decision curves",
        f"Run {chosen['run']} (chosen on validation), test split; in brackets each label's prevalence. "
        "Whoever acts from a probability t on takes t / (1 - t) needless acts for as bad as one omitted; "
        "net benefit is hits less needless acts at that price, for each example, here in units of the "
        "prevalence, the most there is to gain. Acting on the run's probabilities is worth it where "
        f"its line lies above both grey ones.{results.benchmark.drawn_note}",
        f"Decision curves of {chosen['run']}. Thresholds of {n}, 0.01 to 0.99, at which calibrated "
        f"probabilities are worth more than acting on everybody or nobody: {'; '.join(said)}.",
        figure,
    )
