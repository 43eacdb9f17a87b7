"""What tables, plots and page are made from: the benchmark with its runs evaluated."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import pandas as pd

from rayecg.report import tables
from rayecg.report.benchmark import Benchmark, Outputs
from rayecg.report.intervals import Intervals, intervals
from rayecg.report.runs import collect_runs, verdict, with_verdicts
from rayecg.report.subgroup_evaluation import subgroups
from rayecg.report.subgroup_figures import Subgroups
from rayecg.report.text import SYNTHETIC_LABEL, with_interval


class Results:
    """Runs, tables and the chosen run of one benchmark.

    Parameters
    ----------
    source
        The benchmark's output folder.
    findings
        The audit's `findings.json`.
    """

    def __init__(self, source: Path, findings: Path) -> None:
        self.benchmark = Benchmark(source, findings)

    @cached_property
    def figures(self) -> pd.DataFrame:
        """The runs evaluated, before the audit has said anything of them."""
        return collect_runs(self.benchmark)

    @cached_property
    def intervals(self) -> Intervals:
        """Where the figures lie with other patients."""
        return intervals(self.figures, self.benchmark)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The runs with the audit's word on each."""
        return with_verdicts(self.figures, self.benchmark.findings)

    @cached_property
    def summary(self) -> pd.DataFrame:
        """One row per architecture."""
        return tables.summary(self.runs, self.benchmark, self.intervals)

    @cached_property
    def per_class(self) -> pd.DataFrame:
        """One row per architecture and label."""
        return tables.per_class(self.runs, self.benchmark, self.architectures, self.intervals)

    @property
    def architectures(self) -> list[str]:
        """In the order of their validation figures, ensembles too; it also fixes their colours."""
        return list(self.summary["architecture"]) if len(self.summary) else []

    @property
    def done(self) -> pd.DataFrame:
        """The runs with test figures."""
        return self.runs[self.runs["status"] == "ok"]

    @property
    def single(self) -> pd.DataFrame:
        """The runs without the ensembles."""
        return self.runs[self.runs["n_members"].isna()]

    @cached_property
    def chosen(self) -> pd.Series | None:
        """The run with the best validation figure, or the first of the chosen architecture's."""
        found = self.runs[self.runs["chosen"]]
        return found.iloc[0] if len(found) else None

    @property
    def none_chosen(self) -> str:
        """Why nothing was chosen, where nothing was."""
        some = self.runs[f"validation_{self.benchmark.primary}"].notna().any()
        return "no architecture finished every fold" if some else "no run finished"

    @property
    def chosen_name(self) -> str:
        """What was chosen on validation: a run, or an architecture where there are folds."""
        if self.chosen is None:
            return ""
        if self.benchmark.n_folds == 1:
            return str(self.chosen["run"])
        return f"{self.chosen['architecture']}, mean of {int(self.runs['chosen'].sum())} runs"

    @cached_property
    def chosen_verdict(self) -> str:
        """The audit's word on the test figure of what was chosen."""
        own = self.done.loc[self.done["chosen"], "run"]
        return verdict(self.benchmark.findings, own) if len(own) else "no figures"

    def chosen_figure(self, part: str) -> float:
        """Give the primary metric of what was chosen, on `validation` or `test`."""
        own = self.runs.loc[self.runs["chosen"], f"{part}_{self.benchmark.primary}"]
        return float(own.mean())

    @property
    def chosen_test(self) -> str:
        """The primary metric of what was chosen on the test split, with its interval."""
        return with_interval(self.chosen_figure("test"), float("nan"), *self.intervals.chosen)

    @cached_property
    def chosen_outputs(self) -> Outputs | None:
        """What the chosen run gave for the test examples."""
        if self.chosen is None or self.chosen["status"] != "ok":
            return None
        return self.benchmark.outputs(self.chosen["run"])

    @cached_property
    def subgroups(self) -> Subgroups | None:
        """What was chosen in groups of recordings; None without a choice or the records' table."""
        return subgroups(self.figures, self.benchmark)

    @cached_property
    def verdict(self) -> str:
        """The audit's word on all figures together."""
        return verdict(self.benchmark.findings, self.done["run"])

    @property
    def warning(self) -> str:
        """What must stand on every figure: simulated data, violated rules."""
        parts = [SYNTHETIC_LABEL] if self.benchmark.synthetic else []
        if self.verdict.startswith("violated"):
            parts.append(f"audit: {self.verdict}")
        return "   |   ".join(parts)
