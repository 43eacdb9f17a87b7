"""Evaluates the chosen runs in groups of the test recordings.

Every group is resampled with the same draws of patients, those of the whole test split, so that a
group and the rest of the examples can be compared in each.

Legend: N example, C label, R resample, E row of the benchmark's examples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from rayecg.metrics.bootstrap import (
    MACRO,
    N_RESAMPLES,
    ROUNDING,
    ends,
    mean_of_known,
    rare_labels,
)
from rayecg.metrics.comparison import difference, holm
from rayecg.metrics.resamples import Resamples, n_effective, n_effective_of_labels
from rayecg.metrics.subgroups import (
    DECISION_METRICS,
    SCORE_METRICS,
    difference_values,
    values_of,
    with_point,
)
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.groups import Group, groups_of
from rayecg.report.subgroup_figures import (
    DIFFERENCE,
    EVERYONE,
    FEWEST_PATIENTS,
    SHARED,
    Figure,
    GroupFigures,
    Subgroups,
)

#: With more positives than these, tens of thousands of beats as a rule, AUPRC is given without an
#: interval unless runs are chosen by it: every resample takes a step for each of them.
MOST_POSITIVES = 10_000


def chosen_outputs(runs: pd.DataFrame, benchmark: Benchmark) -> dict[str, Outputs]:
    """Give what each chosen run gave for its test examples; of folds all, otherwise one."""
    done = runs.loc[runs["chosen"] & (runs["status"] == "ok"), "run"]
    found = {str(run): benchmark.outputs(run) for run in done}
    return {run: own for run, own in found.items() if own is not None and len(own.targets_NC)}


def subgroups(runs: pd.DataFrame, benchmark: Benchmark) -> Subgroups | None:
    """Evaluate the chosen runs in each group of recordings.

    Returns
    -------
    Subgroups or None
        None if no run is chosen and scored, or the shards' table of records is not there.
    """
    given = chosen_outputs(runs, benchmark)
    if not given or benchmark.records is None:
        return None
    test = benchmark.split_examples("test")
    resamples = Resamples.of(benchmark.patients(test), N_RESAMPLES)
    ids = pd.Index(test["record_id"].unique())
    record_E = ids.get_indexer(benchmark.examples["record_id"])
    everyone = Group(EVERYONE, "all test examples", np.ones(len(ids), dtype=bool))
    found, absent = groups_of(benchmark.records.set_index("record_id").reindex(ids))
    room = _Room(benchmark, list(given.values()), resamples)
    groups = []
    for group in (everyone, *found):
        own_E = group.own_N[record_E] & (record_E >= 0)
        groups.append(room.evaluate(group, own_E))
    shared = _shared(groups, benchmark)
    groups = [room.with_shared(group, shared.get(group.by, ())) for group in groups]
    return Subgroups(_corrected(groups), shared, tuple(absent), len(given))


class _Units:
    """How many patients of equal size figures of some examples are known from.

    Attributes
    ----------
    n_all
        Those of the examples.
    n_C
        Those that each label's metric is known from: see `n_effective_of_labels`.
    """

    def __init__(self, targets_NC: np.ndarray, patients_N: np.ndarray) -> None:
        self.n_all = n_effective(patients_N)
        self.n_C = np.fmin(n_effective_of_labels(targets_NC, patients_N), self.n_all)

    def of_mean(self, own_C: Sequence[int] | np.ndarray) -> float:
        """Give that of a mean over some labels, which is that of the one that has most."""
        return float(np.nanmax(self.n_C[own_C]))


class _Room:
    """What all groups are evaluated with."""

    def __init__(
        self, benchmark: Benchmark, given: Sequence[Outputs], resamples: Resamples
    ) -> None:
        self.benchmark, self.given, self.resamples = benchmark, given, resamples
        self.labels, self.primary = benchmark.labels, benchmark.primary
        #: The metric of a label that the primary one is the mean of, or accuracy.
        self.single = MACRO.get(self.primary, self.primary)
        self.is_macro = self.primary in MACRO
        #: By group: the primary metric's labels in every resample, means over runs.
        self.primary_RC: dict[tuple[str, str], np.ndarray] = {}
        self.units: dict[tuple[str, str], _Units] = {}

    def evaluate(self, group: Group, own_E: np.ndarray) -> GroupFigures:
        """Count the examples of a group, and give its figures if it has enough patients."""
        parts = [outputs.part(own_E[outputs.rows_N]) for outputs in self.given]
        parts = [part for part in parts if len(part.targets_NC)]
        own, targets_NC, patients_N = self._scored(own_E)
        rare_C = rare_labels(targets_NC, patients_N)
        found = GroupFigures(
            by=group.by,
            name=group.name,
            n_examples=len(own),
            n_records=own["record_id"].nunique(),
            n_patients=len(np.unique(patients_N)),
            n_positive=dict(zip(self.labels, targets_NC.sum(axis=0).tolist(), strict=True)),
            n_missing=self._n_missing(own_E),
            n_abstained=sum(int((~part.decided).sum()) for part in parts),
            figures={},
            without=(),
            rare=tuple(np.array(self.labels)[rare_C].tolist()),
        )
        if not found.is_shown:
            return found
        units = self.units[group.by, group.name] = _Units(targets_NC, patients_N)
        figures = self._figures(group, parts, units)
        names = [f"{self.single}_{label}" for label in self.labels] if self.is_macro else []
        lacking = [name for name in names if np.isnan(figures[name].point)]
        without = tuple(name.removeprefix(f"{self.single}_") for name in lacking)
        if group.by != EVERYONE:
            figures |= self._difference(own_E, units)
        return replace(found, figures=figures, without=without)

    def _scored(self, own_E: np.ndarray) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
        """Give the scored test examples among some rows, their targets and patients.

        Where folds test on the same examples, these come once.
        """
        rows_N = np.unique(np.concatenate([outputs.rows_N for outputs in self.given]))
        own = self.benchmark.examples.loc[rows_N[own_E[rows_N]]]
        own = own.drop_duplicates(["record_id", "offset"])
        targets_NC = own[[f"target_{label}" for label in self.labels]].to_numpy(dtype=bool)
        return own, targets_NC, self.benchmark.patients(own)

    def _n_missing(self, own_E: np.ndarray) -> int:
        """Count test examples without a probability, in each chosen run."""
        is_test_E = (self.benchmark.examples["split"] == "test").to_numpy()
        fold_E = self.benchmark.examples["fold"].to_numpy()
        n_missing = 0
        for outputs in self.given:
            here_E = own_E & is_test_E
            if self.benchmark.n_folds > 1:
                here_E &= fold_E == fold_E[outputs.rows_N[0]]
            n_missing += int(here_E.sum()) - int(own_E[outputs.rows_N].sum())
        return n_missing

    def _figures(self, group: Group, parts: Sequence[Outputs], units: _Units) -> dict[str, Figure]:
        """Evaluate, and give what can be resampled quickly its interval.

        That are the metrics of labels with their macro averages, accuracy, and micro averages of
        decisions.
        """
        points = pd.DataFrame([part.metrics() for part in parts]).mean()
        figures = {
            str(name): Figure(float(point))
            for name, point in points.items()
            if not str(name).startswith("n_positive_")
        }
        n_positive = sum(int(part.targets_NC.sum()) for part in parts)
        for metric in (*SCORE_METRICS, *DECISION_METRICS):
            if metric == "auprc" != self.single and n_positive > MOST_POSITIVES:
                continue
            taken = [_examples(part, metric) for part in parts]
            each_RC = [values_of(metric, *own, self.resamples) for own in taken]
            mean_RC = mean_of_known(np.stack(each_RC), axis=0)
            if metric == self.single:
                self.primary_RC[group.by, group.name] = mean_RC
            names = [f"{metric}_{label}" for label in self.labels]
            for name, values_R, n_units in zip(names, mean_RC.T, units.n_C, strict=True):
                figures |= _with_interval(figures, name, values_R, n_units)
            macro_R = _mean([mean_of_known(values_RC, axis=1) for values_RC in each_RC])
            known = [name in figures and not np.isnan(figures[name].point) for name in names]
            known_C = np.flatnonzero(known)
            if len(known_C):
                lacking_R = np.isnan(mean_RC[:, known_C]).any(axis=1)
                of_mean = units.of_mean(known_C)
                figures |= _with_interval(figures, f"macro_{metric}", macro_R, of_mean, lacking_R)
            if metric in DECISION_METRICS and f"micro_{metric}" in figures:
                micro_R = _mean(
                    [values_of(metric, *_together(*own), self.resamples)[:, 0] for own in taken]
                )
                figures |= _with_interval(figures, f"micro_{metric}", micro_R, units.n_all)
        decided = [_examples(part, "accuracy") for part in parts]
        right_R = _mean([values_of("accuracy", *own, self.resamples)[:, 0] for own in decided])
        return figures | _with_interval(figures, "accuracy", right_R, units.n_all)

    def _difference(self, own_E: np.ndarray, units: _Units) -> dict[str, Figure]:
        """Compare with the rest of the examples, over the labels that both sides have."""
        if self.single not in (*SCORE_METRICS, *DECISION_METRICS, "accuracy"):
            return {}
        _, targets_NC, patients_N = self._scored(~own_E)
        n_rest = len(np.unique(patients_N))
        if n_rest < FEWEST_PATIENTS:
            return {}
        resamples = with_point(self.resamples)
        each_RC = []
        for outputs in self.given:
            own_N = own_E[outputs.rows_N]
            own_N = own_N if self.single in SCORE_METRICS else own_N[outputs.decided]
            taken = _examples(outputs, self.single)
            each_RC.append(difference_values(self.single, *taken, own_N, resamples))
        mean_RC = mean_of_known(np.stack(each_RC), axis=0)
        values_R = mean_of_known(mean_RC, axis=1)
        if np.isnan(values_R[0]):
            return {}
        # The side with fewer patients is what the difference is uncertain by.
        known_C = np.flatnonzero(~np.isnan(mean_RC[0]))
        sides = units, _Units(targets_NC, patients_N)
        n_units = min(u.of_mean(known_C) if self.is_macro else u.n_all for u in sides)
        found = difference(float(values_R[0]), values_R[1:], (n_rest, n_units))
        lacking_R = np.isnan(mean_RC[1:, known_C]).any(axis=1)
        figure = Figure(found.point, found.low, found.high, int(lacking_R.sum()), found.p_value)
        return {f"{self.primary}_{DIFFERENCE}": figure}

    def with_shared(self, group: GroupFigures, labels: Sequence[str]) -> GroupFigures:
        """Add the primary metric over the labels that all groups beside it have."""
        if not labels or not group.is_shown:
            return group
        places = [self.labels.index(label) for label in labels]
        point = np.mean([group.figures[f"{self.single}_{label}"].point for label in labels])
        own_RC = self.primary_RC[group.by, group.name][:, places]
        figure = _figure(
            float(point),
            mean_of_known(own_RC, axis=1),
            self.units[group.by, group.name].of_mean(places),
            int(np.isnan(own_RC).any(axis=1).sum()),
        )
        return replace(group, figures={**group.figures, f"{self.primary}_{SHARED}": figure})


def _examples(outputs: Outputs, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give targets, what the metric is computed of, and patients; of decisions, where there are any."""
    if metric in SCORE_METRICS:
        return outputs.targets_NC, outputs.probabilities_NC, outputs.patients_N
    own_N = outputs.decided
    return outputs.targets_NC[own_N], outputs.decisions_NC[own_N], outputs.patients_N[own_N]


def _together(
    targets_NC: np.ndarray, decisions_NC: np.ndarray, patients_N: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Give the decisions on all labels as if on one, as micro averages take them."""
    n_labels = targets_NC.shape[1]
    return targets_NC.reshape(-1, 1), decisions_NC.reshape(-1, 1), np.repeat(patients_N, n_labels)


def _mean(each_R: Sequence[np.ndarray]) -> np.ndarray:
    """Average over runs, of those that have the metric in a resample."""
    return mean_of_known(np.stack(each_R), axis=0)


def _with_interval(
    figures: Mapping[str, Figure],
    name: str,
    values_R: np.ndarray,
    n_units: float,
    lacking_R: np.ndarray | None = None,
) -> dict[str, Figure]:
    """Give a figure that is there its interval, if it is defined."""
    if name not in figures or np.isnan(figures[name].point):
        return {}
    lacking_R = np.isnan(values_R) if lacking_R is None else lacking_R | np.isnan(values_R)
    return {name: _figure(figures[name].point, values_R, n_units, int(lacking_R.sum()))}


def _figure(point: float, values_R: np.ndarray, n_units: float, n_undefined: int) -> Figure:
    low, high, _ = ends("student", point, values_R, n_units)
    # Of one patient nobody knows what others are like; nor where no resample differs from another.
    if n_units <= 1 or high - low < ROUNDING:
        return Figure(point)
    return Figure(point, low, high, n_undefined)


def _shared(groups: Sequence[GroupFigures], benchmark: Benchmark) -> dict[str, tuple[str, ...]]:
    """Name, for each kind of groups, the labels that the primary metric has in all with figures."""
    if benchmark.primary not in MACRO:
        return {}
    shown = [group for group in groups if group.is_shown and group.by != EVERYONE]
    return {
        by: tuple(
            label
            for label in benchmark.labels
            if not any(label in group.without for group in shown if group.by == by)
        )
        for by in dict.fromkeys(group.by for group in shown)
    }


def _corrected(groups: Sequence[GroupFigures]) -> tuple[GroupFigures, ...]:
    """Correct the p of all differences together."""
    compared = [i for i, group in enumerate(groups) if not np.isnan(group.difference.p)]
    if not compared:
        return tuple(groups)
    p_holm = holm([groups[i].difference.p for i in compared])
    changed = dict(zip(compared, np.asarray(p_holm).tolist(), strict=True))
    return tuple(
        replace(group, p_holm=changed[i]) if i in changed else group
        for i, group in enumerate(groups)
    )
