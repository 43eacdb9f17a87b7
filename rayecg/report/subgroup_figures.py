"""What the figures of groups of recordings are, and which groups are worse than the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rayecg.metrics.bootstrap import few_groups
from rayecg.report.text import listed

#: A group of fewer patients has counts and no figure: they would be named rather than described.
FEWEST_PATIENTS = 5
#: Below this, corrected by Holm over the groups compared, a group counts as worse than the rest.
SIGNIFICANT = 0.05
EVERYONE = "all"
SHARED, DIFFERENCE = "shared_labels", "difference"


@dataclass(frozen=True)
class Figure:
    """A metric of a group.

    Attributes
    ----------
    point, low, high
        The mean over the chosen runs, with its 95 % interval over patients (`student_ends`, whose n is
        that of the group, of a label in it, or of the smaller side of a difference); NaN where there
        is none.
    n_undefined
        Resamples in which the metric, or a label of its macro average, is not defined.
    p
        That the difference it states is 0; NaN for what is no difference.
    """

    point: float
    low: float = float("nan")
    high: float = float("nan")
    n_undefined: int = 0
    p: float = float("nan")


@dataclass(frozen=True)
class GroupFigures:
    """A group with its counts and figures.

    Attributes
    ----------
    by, name
        What is grouped by, and the group.
    n_examples, n_records, n_patients, n_positive
        Of the test examples with a probability, the last by label.
    n_missing, n_abstained
        Test examples without a probability, and without a decision; added up over the chosen runs.
    figures
        By the names that `rayecg.metrics.classification.evaluate` gives, and `<primary>_<SHARED>`,
        over the labels that all groups of `by` have, and `<primary>_<DIFFERENCE>`, from the
        rest of the examples, over the labels that both have.
    without, rare
        Labels that the primary metric does not have here, and those whose positives come from fewer
        than five patients.
    p_holm
        Of the difference, corrected; NaN where the group was not compared.
    """

    by: str
    name: str
    n_examples: int
    n_records: int
    n_patients: int
    n_positive: Mapping[str, int]
    n_missing: int
    n_abstained: int
    figures: Mapping[str, Figure]
    without: tuple[str, ...]
    rare: tuple[str, ...]
    p_holm: float = float("nan")

    @property
    def title(self) -> str:
        """Its name where it stands alone."""
        return self.name if self.by == EVERYONE else f"{self.by} {self.name}"

    @property
    def is_shown(self) -> bool:
        """Whether it has enough patients for figures."""
        return self.n_patients >= FEWEST_PATIENTS

    @property
    def warning(self) -> str:
        """Why its figures are missing or not to be trusted, in clauses; empty if nothing is amiss."""
        if not self.is_shown:
            return f"fewer than {FEWEST_PATIENTS} patients"
        parts = [few_groups(self.n_patients)]
        parts += [f"without {listed(self.without)}"] if self.without else []
        parts += [f"few patients with {listed(self.rare)}"] if self.rare else []
        return "; ".join(filter(None, parts))

    def figure(self, name: str) -> Figure:
        """Give a figure; NaN if there is none."""
        return self.figures.get(name, Figure(float("nan")))

    @property
    def difference(self) -> Figure:
        """From the rest of the test examples, in the primary metric."""
        return self.figure(next((n for n in self.figures if n.endswith(f"_{DIFFERENCE}")), ""))


@dataclass(frozen=True)
class Subgroups:
    """All groups.

    Attributes
    ----------
    groups
        The whole test split comes first, named `EVERYONE`.
    shared
        By what is grouped by: the labels that the primary metric has in all groups with figures.
    absent
        What no test recording states.
    n_runs
        Runs that figures are means over.
    """

    groups: tuple[GroupFigures, ...]
    shared: Mapping[str, tuple[str, ...]]
    absent: tuple[str, ...]
    n_runs: int

    @property
    def compared(self) -> list[GroupFigures]:
        """The groups compared with the rest, the worst first."""
        own = [group for group in self.groups if not np.isnan(group.p_holm)]
        return sorted(own, key=lambda group: group.difference.point)

    @property
    def worse(self) -> list[GroupFigures]:
        """The groups that are worse than the rest, also after Holm's correction."""
        return [g for g in self.compared if g.difference.point < 0 and g.p_holm < SIGNIFICANT]
