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
    ends,
    few_groups,
    holds,
    mean_of_known,
    rare_labels,
    units_of_labels,
)
from rayecg.metrics.comparison import Difference, difference
from rayecg.metrics.resamples import (
    BY_SCORE,
    Resamples,
    accuracy_values,
    label_values,
    n_effective,
)
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.runs import METRICS, complete
from rayecg.report.text import listed, number, some

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
    n_drawn, n_effective
        Patients with a test example, scored or not, in any fold; and how many with equally many
        examples would vary as much.
    rare
        Labels whose positives come from too few of them.
    missed
        Figures that lie outside their interval, in words.
    chosen
        The interval of the primary metric of what was chosen: a run, or an architecture's runs.
    reference
        The architecture of what was chosen; empty if nothing was.
    differences
        By architecture: its mean over runs in the primary metric less that of `reference`, paired.
    """

    metrics: tuple[str, ...]
    ends: Mapping[str, Mapping[str, tuple[float, float]]] = field(default_factory=dict)
    n_patients: Mapping[str, int] = field(default_factory=dict)
    n_drawn: int = 0
    n_effective: float = float("nan")
    rare: tuple[str, ...] = ()
    missed: tuple[str, ...] = ()
    chosen: tuple[float, float] = _NOWHERE
    reference: str = ""
    differences: Mapping[str, Difference] = field(default_factory=dict)

    def of(self, architecture: str, metric: str) -> tuple[float, float]:
        """Give the ends of an interval; NaN if there is none."""
        return self.ends.get(architecture, {}).get(metric, _NOWHERE)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the intervals must know."""
        if not self.ends:
            return ()
        parts = [
            "95 % interval: the mean over runs, give or take what it varies by in "
            f"{N_RESAMPLES:,} resamples of {some(self.n_drawn, 'patient')} with test examples, each "
            "drawn with all of them (on the scale of log odds, Student's t with as many degrees of "
            "freedom as there are patients of equal size: at most "
            f"{number(self.n_effective, 1)} here, fewer for a label that few have). It says what other "
            "patients of the same kind could change; what other seeds could is the ± beside it."
        ]
        if few := few_groups(self.n_drawn):
            parts.append(f"It {few}, and is rough.")
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
    targets_NC = test[[f"target_{label}" for label in benchmark.labels]].to_numpy(dtype=bool)
    drawn = _Drawn(benchmark, metrics, patients_N, targets_NC)
    primary = f"test_{benchmark.primary}"
    own_chosen = done[done["chosen"]]
    reference = str(own_chosen["architecture"].iloc[0]) if len(own_chosen) else ""
    # The chosen architecture comes first, so that the others need not wait for it in memory.
    order = sorted(done["architecture"].unique(), key=lambda name: name != reference)
    whole = complete(runs, done) if benchmark.n_folds > 1 else set(order)
    found: dict[str, dict[str, tuple[float, float]]] = {}
    n_patients, missed, chosen = {}, [], _NOWHERE
    differences: dict[str, Difference] = {}
    chosen_folds: dict[object, _Mean] = {}
    for name in order:
        own = done[done["architecture"] == name]
        of = drawn.evaluate(own)
        architecture = str(name)
        found[architecture] = {
            metric: drawn.ends(metric, own[f"test_{metric}"].mean(), mean.values())
            for metric, mean in of.means.items()
        }
        n_patients[architecture] = len(of.patients)
        missed += [
            f"{metric} of {architecture}"
            for metric, (low, high) in found[architecture].items()
            if not holds(low, high, own[f"test_{metric}"].mean())
        ]
        if architecture == reference:
            chosen_folds = of.folds
            chosen = drawn.ends(benchmark.primary, own_chosen[primary].mean(), of.chosen.values())
        elif (
            reference in whole and architecture in whole and of.folds.keys() == chosen_folds.keys()
        ):
            point = (
                own[primary].mean() - done.loc[done["architecture"] == reference, primary].mean()
            )
            differences[architecture] = drawn.difference(point, of.folds, chosen_folds)
    rare_C = rare_labels(targets_NC, patients_N)
    rare = tuple(label for label, is_it in zip(benchmark.labels, rare_C, strict=True) if is_it)
    return Intervals(
        metrics,
        found,
        n_patients,
        len(drawn.resamples.names_G),
        drawn.n_effective,
        rare,
        tuple(missed),
        chosen,
        reference,
        differences,
    )


class _Drawn:
    """The resamples of a benchmark's test patients, and what is made of runs in them."""

    def __init__(
        self,
        benchmark: Benchmark,
        metrics: tuple[str, ...],
        patients_N: np.ndarray,
        targets_NC: np.ndarray,
    ) -> None:
        self.benchmark, self.metrics = benchmark, metrics
        self.resamples = Resamples.of(patients_N, N_RESAMPLES)
        self.n_effective = n_effective(patients_N)
        self.n_rare = int(rare_labels(targets_NC, patients_N).sum())
        self._of_all = units_of_labels(targets_NC, patients_N)
        self._of_label = {
            label: units_of_labels(targets_NC[:, [c]], patients_N)
            for c, label in enumerate(benchmark.labels)
        }

    def evaluate(self, runs: pd.DataFrame) -> _Evaluated:
        """Evaluate the runs of an architecture in every resample."""
        found = _Evaluated(_Mean())
        primary = self.benchmark.primary
        for run, fold, chosen in zip(runs["run"], runs["fold"], runs["chosen"], strict=True):
            outputs = self.benchmark.outputs(run)
            if outputs is None or not len(outputs.targets_NC):
                continue
            found.patients |= set(np.unique(outputs.patients_N).tolist())
            for name, metric, values_RC in _values(outputs, self.metrics, self.resamples):
                values_R = mean_of_known(values_RC, axis=1)
                if name in self.metrics:
                    found.means.setdefault(name, _Mean()).add(values_R)
                if name == primary:
                    found.folds.setdefault(None if pd.isna(fold) else fold, _Mean()).add(values_RC)
                    if chosen:
                        found.chosen.add(values_R)
                if metric in LABEL_METRICS:
                    for label, own_R in zip(outputs.labels, values_RC.T, strict=True):
                        found.means.setdefault(f"{metric}_{label}", _Mean()).add(own_R)
        return found

    def units(self, metric: str) -> float:
        """Count the patients of equal size that the spread of a metric is known from."""
        if metric == "accuracy":
            return self.n_effective
        return self._of_label.get(metric.partition("_")[2], self._of_all)

    def ends(self, metric: str, point: float, values_R: np.ndarray) -> tuple[float, float]:
        """Give the ends of an interval; none where no resample differs, as that tells nothing."""
        low, high, _ = ends("student", point, values_R, self.units(metric))
        return (low, high) if high > low else _NOWHERE

    def difference(
        self, point: float, folds: Mapping[object, _Mean], others: Mapping[object, _Mean]
    ) -> Difference:
        """Compare two architectures: label by label and fold by fold, what both have."""
        less = [folds[fold].values() - others[fold].values() for fold in folds]
        values_R = mean_of_known(np.stack([mean_of_known(v, axis=1) for v in less]), axis=0)
        lacking_R = np.any([np.isnan(v[:, ~np.isnan(v).all(axis=0)]).any(axis=1) for v in less], 0)
        return difference(
            point,
            values_R,
            (len(self.resamples.names_G), self.n_effective),
            n_undefined=int((lacking_R | np.isnan(values_R)).sum()),
            n_rare=0 if self.benchmark.primary == "accuracy" else self.n_rare,
            n_units=self.units(self.benchmark.primary),
        )


class _Mean:
    """The mean over runs in each resample, of those that have the metric there."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self._n: np.ndarray | float = 0.0

    def add(self, values: np.ndarray) -> None:
        known = ~np.isnan(values)
        self._sum = self._sum + np.where(known, values, 0.0)
        self._n = self._n + known

    def values(self) -> np.ndarray:
        with np.errstate(invalid="ignore"):
            return np.asarray(np.true_divide(self._sum, self._n))


@dataclass
class _Evaluated:
    """An architecture's means over runs: of every metric, and of the primary one by fold and label."""

    chosen: _Mean
    means: dict[str, _Mean] = field(default_factory=dict)
    folds: dict[object, _Mean] = field(default_factory=dict)
    patients: set[str] = field(default_factory=set)


def _values(
    outputs: Outputs, metrics: tuple[str, ...], resamples: Resamples
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield metrics of a run in every resample, with that of their labels; (R, C).

    Metrics of decisions where there are any.
    """
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
        if len(examples[0]):
            yield macro, metric, label_values(metric, *examples, resamples)
    if "accuracy" in metrics and len(decided[0]):
        yield "accuracy", "", accuracy_values(*decided, resamples)[:, None]
