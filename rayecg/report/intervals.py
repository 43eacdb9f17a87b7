"""Intervals of test figures over patients.

Legend: N example, C label, R resample.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from rayecg.metrics.bootstrap import (
    FEW_POSITIVE_GROUPS,
    MACRO,
    N_RESAMPLES,
    few_groups,
    holds,
    mean_of_known,
    percentiles,
    rare_labels,
)
from rayecg.metrics.resamples import BY_SCORE, Resamples, accuracy_values, label_values
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.runs import METRICS
from rayecg.report.text import listed, some

#: Metrics of a label that have an interval.
LABEL_METRICS = ("auroc", "f1")
_NOWHERE = (float("nan"), float("nan"))


@dataclass(frozen=True)
class Intervals:
    """Where the means over runs lie with other patients of the same kind.

    Attributes
    ----------
    metrics
        Those of whole runs that have an interval.
    ends
        By architecture and metric (`macro_auroc`, or `auroc_<label>`): the interval of the mean over
        its finished runs.
    n_patients
        By architecture: those with a scored test example.
    n_drawn
        Patients with a test example, scored or not, in any fold.
    rare
        Labels whose positives come from too few of them.
    missed
        Figures that lie outside their interval, in words.
    chosen
        The interval of the primary metric of what was chosen: a run, or an architecture's runs.
    """

    metrics: tuple[str, ...]
    ends: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    n_patients: Mapping[str, int] = field(default_factory=dict)
    n_drawn: int = 0
    rare: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    chosen: tuple[float, float] = _NOWHERE

    def of(self, architecture: str, metric: str) -> tuple[float, float]:
        """Give the ends of an interval; NaN if there is none."""
        return self.ends.get(architecture, {}).get(metric, _NOWHERE)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the intervals must know."""
        if not self.ends:
            return ()
        parts = [
            "95 % interval: where the middle 95 % of the means over runs lie in "
            f"{N_RESAMPLES:,} resamples of {some(self.n_drawn, 'patient')} with test examples, each "
            "drawn with all of them. It says what other patients of the same kind could change, not "
            "what other seeds could."
        ]
        if few := few_groups(self.n_drawn):
            parts.append(f"It {few}, and is likely too narrow.")
        if self.rare:
            parts.append(
                f"The positives of {listed(self.rare)} come from fewer than {FEW_POSITIVE_GROUPS} "
                "patients: some resamples have none of them, and leave the label out."
            )
        if self.missed:
            parts.append(f"It does not contain its figure for {listed(self.missed)}.")
        return (" ".join(parts),)


def intervals(runs: pd.DataFrame, benchmark: Benchmark) -> Intervals:
    """Resample the patients of the test split, for each architecture with a finished run.

    Every run is evaluated on its own test examples, of a fold where there are several, in the same
    draws of patients. Where one of its metrics is undefined, the mean is over the other runs.
    """
    done = runs[runs["status"] == "ok"]
    wanted = {benchmark.primary, "macro_auroc", "macro_f1"}
    metrics = tuple(metric for metric in METRICS if metric in wanted)
    if not len(done):
        return Intervals(metrics)
    test = benchmark.split_examples("test")
    patients_N = benchmark.patients(test)
    resamples = Resamples.of(patients_N, N_RESAMPLES)
    ends: dict[str, dict[str, tuple[float, float]]] = {}
    n_patients, missed = {}, []
    chosen = _Mean(resamples.n_resamples)
    for name, own in done.groupby("architecture", sort=False):
        means: dict[str, _Mean] = {}
        scored: set[str] = set()
        for run, is_chosen in zip(own["run"], own["chosen"], strict=True):
            outputs = benchmark.outputs(run)
            if outputs is None or not len(outputs.targets_NC):
                continue
            scored |= set(np.unique(outputs.patients_N).tolist())
            for metric, values_R in _values(outputs, metrics, resamples):
                means.setdefault(metric, _Mean(resamples.n_resamples)).add(values_R)
                if is_chosen and metric == benchmark.primary:
                    chosen.add(values_R)
        architecture = str(name)
        ends[architecture] = {metric: percentiles(mean.values()) for metric, mean in means.items()}
        n_patients[architecture] = len(scored)
        missed += [
            f"{metric} of {architecture}"
            for metric, (low, high) in ends[architecture].items()
            if not holds(low, high, own[f"test_{metric}"].mean())
        ]
    targets_NC = test[[f"target_{label}" for label in benchmark.labels]].to_numpy()
    rare_C = rare_labels(targets_NC, patients_N)
    rare = tuple(label for label, is_it in zip(benchmark.labels, rare_C, strict=True) if is_it)
    return Intervals(
        metrics,
        ends,
        n_patients,
        len(resamples.names_G),
        rare,
        tuple(missed),
        percentiles(chosen.values()),
    )


class _Mean:
    """The mean over runs in each resample, of those that have the metric there."""

    def __init__(self, n_resamples: int) -> None:
        self._sum_R, self._n_R = np.zeros(n_resamples), np.zeros(n_resamples)

    def add(self, values_R: np.ndarray) -> None:
        known_R = ~np.isnan(values_R)
        self._sum_R[known_R] += values_R[known_R]
        self._n_R += known_R

    def values(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray(self._sum_R / self._n_R)


def _values(
    outputs: Outputs, metrics: tuple[str, ...], resamples: Resamples
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield metrics of a run in every resample; those of decisions where there are any."""
    decided_N = outputs.decided
    decided = (
        outputs.targets_NC[decided_N],
        outputs.decisions_NC[decided_N],
        outputs.patients_N[decided_N],
    )
    for macro, metric in MACRO.items():
        if macro not in metrics and metric not in LABEL_METRICS:
            continue
        if metric in BY_SCORE:
            examples = outputs.targets_NC, outputs.probabilities_NC, outputs.patients_N
        else:
            examples = decided
        if not len(examples[0]):
            continue
        values_RC = label_values(metric, *examples, resamples)
        if macro in metrics:
            yield macro, mean_of_known(values_RC, axis=1)
        if metric in LABEL_METRICS:
            for label, values_R in zip(outputs.labels, values_RC.T, strict=True):
                yield f"{metric}_{label}", values_R
    if "accuracy" in metrics and len(decided[0]):
        yield "accuracy", accuracy_values(*decided, resamples)
