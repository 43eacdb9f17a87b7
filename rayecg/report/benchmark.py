"""The files of a finished benchmark, read when asked for.

Legend: N example, C label.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from rayecg.core.errors import DataError
from rayecg.core.files import MANIFEST, read_json, read_table
from rayecg.core.predictions import label_fields
from rayecg.core.shard_format import RECORDS
from rayecg.metrics.classification import evaluate_decisions, evaluate_scores
from rayecg.report.text import SYNTHETIC_LABEL

#: More labels than these are too many for one plot.
MOST_DRAWN = 12


@dataclass(frozen=True)
class Outputs:
    """What a run gave for the scored examples of one split.

    Attributes
    ----------
    labels
        In the order of every `_C` axis.
    targets_NC, probabilities_NC, calibrated_NC
        Of the examples with a probability.
    decisions_NC
        0 or 1; NaN where the run abstained.
    patients_N
        Whose they are, as `Benchmark.patients` names them.
    n_examples, n_missing
        Examples of the split, and those without a probability (their record was quarantined, or
        the prediction tables do not hold them).
    rows_N
        Which rows of `Benchmark.examples` they are.
    """

    labels: tuple[str, ...]
    targets_NC: np.ndarray
    probabilities_NC: np.ndarray
    calibrated_NC: np.ndarray
    decisions_NC: np.ndarray
    patients_N: np.ndarray
    n_examples: int
    n_missing: int
    rows_N: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def part(self, own_N: np.ndarray) -> Outputs:
        """Give the outputs for some of the examples with a probability; `own_N` says which."""
        axes = {
            name: getattr(self, name)[own_N]
            for name in ("targets_NC", "probabilities_NC", "calibrated_NC", "decisions_NC")
        }
        each = {"patients_N": self.patients_N[own_N], "rows_N": self.rows_N[own_N]}
        return replace(self, **axes, **each, n_examples=int(own_N.sum()), n_missing=0)

    @property
    def decided(self) -> np.ndarray:
        """Whether an example has decisions."""
        return ~np.isnan(self.decisions_NC).any(axis=1)

    def metrics(self) -> dict[str, float]:
        """Evaluate: probabilities on all scored examples, decisions where there are any."""
        own_N = self.decided
        return {
            **evaluate_scores(self.targets_NC, self.probabilities_NC, self.labels),
            **evaluate_decisions(self.targets_NC[own_N], self.decisions_NC[own_N], self.labels),
        }


class Benchmark:
    """A benchmark's folder.

    Parameters
    ----------
    source
        Holds `experiment.yaml` and `work/`.
    findings
        The audit's `findings.json`, which may lie elsewhere.
    """

    def __init__(self, source: Path, findings: Path) -> None:
        self.source, self.findings_file = Path(source), Path(findings)
        self.work = self.source / "work"

    @cached_property
    def experiment_text(self) -> str:
        """The settings as they were written down."""
        file = self.source / "experiment.yaml"
        return file.read_text(encoding="utf-8") if file.exists() else ""

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """The settings as a tree; empty if there are none."""
        return yaml.safe_load(self.experiment_text) or {}

    @cached_property
    def task(self) -> dict[str, Any]:
        """The task as a tree."""
        task: dict[str, Any] = read_json(self.work / "task.json")
        return task

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of the task."""
        return tuple(self.task["labels"])

    @cached_property
    def drawn_labels(self) -> tuple[str, ...]:
        """The labels that plots show: of many, those with most positives in the test split."""
        if len(self.labels) <= MOST_DRAWN:
            return self.labels
        test = self.split_examples("test")
        order = sorted(self.labels, key=lambda label: -test[f"target_{label}"].sum())
        return tuple(label for label in self.labels if label in order[:MOST_DRAWN])

    @property
    def drawn_note(self) -> str:
        """Says in captions what is left out of a plot; empty if nothing is."""
        n, all_ = len(self.drawn_labels), len(self.labels)
        return (
            "" if n == all_ else f" The {n} of {all_} labels with most positives in the test split."
        )

    @property
    def title(self) -> str:
        """The experiment's title, or its name."""
        return str(self.experiment.get("title") or self.experiment.get("name") or "Benchmark")

    @property
    def primary(self) -> str:
        """The metric that runs are chosen by."""
        return str(self.task["primary_metric"])

    @property
    def unit(self) -> str:
        """What an example is, in words."""
        return "recording" if self.task["unit"] == "record" else "beat"

    @cached_property
    def shards(self) -> dict[str, Any]:
        """The manifest of the shards."""
        manifest: dict[str, Any] = read_json(self.work / "shards" / MANIFEST)
        return manifest

    @cached_property
    def quarantine(self) -> pd.DataFrame:
        """The records that could not be read."""
        return read_table(self.work / "shards" / "quarantine.parquet").to_pandas()

    @cached_property
    def records(self) -> pd.DataFrame | None:
        """A row for each record of the shards, without samples and beats; None if it is not there."""
        file = self.work / "shards" / RECORDS
        if not file.exists():
            return None
        table = read_table(file)
        kept = [name for name in table.column_names if not name.startswith("beat_")]
        records: pd.DataFrame = table.select(kept).to_pandas()
        return records

    @cached_property
    def examples(self) -> pd.DataFrame:
        """The examples of the task; where there are folds, one row for each of them."""
        found: pd.DataFrame = read_table(self.work / "examples.parquet").to_pandas()
        return found if "fold" in found else found.assign(fold=None)

    @property
    def n_folds(self) -> int:
        """How many splits there are."""
        return max(self.examples["fold"].nunique(), 1)

    @cached_property
    def tests_once(self) -> bool:
        """Whether no example is in the test split of two folds, so that counts add up over folds."""
        return not self.split_examples("test").duplicated(["record_id", "offset"]).any()

    @property
    def over(self) -> str:
        """What means are taken over, in words."""
        return "seeds" if self.n_folds == 1 else "seeds and folds"

    def split_examples(self, split: str, fold: int | None = None) -> pd.DataFrame:
        """Give the examples of a split, of one fold where there are several."""
        own = self.examples["split"] == split
        return self.examples[own if fold is None else own & (self.examples["fold"] == fold)]

    def patients(self, examples: pd.DataFrame) -> np.ndarray:
        """Name the persons of examples, as splits tell them apart.

        Ids that the task knows as aliases are one person; a record without an id is its own.
        """
        return examples["record_id"].map(self._persons).to_numpy(dtype=np.str_)

    @cached_property
    def _persons(self) -> dict[str, str]:
        known = {alias: group[0] for group in self.task.get("aliases") or () for alias in group}
        records = self.examples.drop_duplicates("record_id")
        pairs = zip(records["record_id"].tolist(), records["patient_id"].tolist(), strict=True)
        return {
            record: f"record {record}"
            if pd.isna(patient)
            else f"patient {known.get(patient, patient)}"
            for record, patient in pairs
        }

    @cached_property
    def findings(self) -> list[dict[str, Any]] | None:
        """The audit's findings; None without an audit."""
        return read_json(self.findings_file, list) if self.findings_file.exists() else None

    @cached_property
    def looks(self) -> list[dict[str, Any]] | None:
        """The ledger of evaluations on the test split."""
        file = self.source / "ledger.json"
        return read_json(file, list) if file.exists() else None

    @cached_property
    def run_files(self) -> dict[str, dict[str, Any]]:
        """What each run's `run.json` says, in the order of their names.

        `runs.json` lists the runs of the experiment; others are left from earlier ones.
        """
        listed = self.work / "runs.json"
        own = set(read_json(listed, list)) if listed.exists() else None
        files = sorted((self.work / "train").glob("*/run.json"))
        named = {file.parent.name: file for file in files}
        return {run: read_json(f) for run, f in named.items() if own is None or run in own}

    @cached_property
    def cards(self) -> dict[str, dict[str, Any]]:
        """The checkpoint cards of the runs that have one."""
        files = {
            run: self.work / "train" / run / "checkpoint" / "card.json" for run in self.run_files
        }
        return {run: read_json(file) for run, file in files.items() if file.exists()}

    @cached_property
    def synthetic(self) -> bool:
        """Whether anything that figures rest on was simulated."""
        trained = [card["training"].get("synthetic", False) for card in self.cards.values()]
        return bool(self.shards.get("synthetic")) or any(trained)

    @property
    def data_label(self) -> str:
        """What the column `data` of a table says."""
        return SYNTHETIC_LABEL if self.synthetic else "recorded"

    def curves(self, run: str) -> pd.DataFrame | None:
        """Give a run's training curves."""
        file = self.work / "train" / run / "curves.csv"
        return pd.read_csv(file) if file.exists() else None

    def _is_scored(self, run: str) -> bool:
        """Say whether the scores are of the run's own checkpoint, and of these shards."""
        file = self.work / "score" / run / MANIFEST
        if not file.exists() or run not in self.cards:
            return False
        scored = read_json(file)
        return scored.get("checkpoint_sha256") == self.cards[run].get(
            "weights_sha256"
        ) and scored.get("source_key") == self.shards.get("key")

    def outputs(self, run: str, split: str = "test") -> Outputs | None:
        """Give what a run's scoring says of a split; None if it was not scored.

        Raises
        ------
        DataError
            If a prediction stands twice.
        """
        folder = self.work / "score" / run
        if not self._is_scored(run):
            return None
        by_beat = self.task["unit"] == "beat"
        keys = ["record_id", "offset"] if by_beat else ["record_id"]
        fields = [field.name for field in label_fields(self.labels)]
        place = folder / ("windows" if by_beat else "predictions")
        given = read_table(place, columns=[*keys, *fields]).to_pandas()
        if given.duplicated(keys).any():
            twice = given.loc[given.duplicated(keys), "record_id"].iloc[0]
            raise DataError(f"score/{run}: record {twice!r} has more than one row for one example")
        examples = self.split_examples(split, self.run_files[run].get("fold"))
        rows = examples.merge(given, on=keys, how="left", validate="many_to_one")

        def stack(output: str) -> np.ndarray:
            names = [f"{output}_{label}" for label in self.labels]
            return rows[names].to_numpy(dtype=np.float64, na_value=np.nan)

        scored_N = ~np.isnan(stack("probability")).any(axis=1)
        return Outputs(
            labels=self.labels,
            targets_NC=stack("target")[scored_N].astype(bool),
            probabilities_NC=stack("probability")[scored_N],
            calibrated_NC=stack("calibrated")[scored_N],
            decisions_NC=stack("decision")[scored_N],
            patients_N=self.patients(rows)[scored_N],
            n_examples=len(rows),
            n_missing=int((~scored_N).sum()),
            rows_N=examples.index.to_numpy()[scored_N],
        )
