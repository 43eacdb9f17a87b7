"""Tasks: label spaces as data files, and the examples that they make of an archive's records.

An example is what a figure counts: a recording, or one beat of it. `examples.parquet` lists them
all with their split and targets; training, audit and report read it, so that there is one answer to
who belongs where.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rayecg.core.catalogue import nearest
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import TaskSettings
from rayecg.core.settings import build, read_yaml

#: What runs can be chosen by; `metrics.classification.evaluate` computes them.
PRIMARY_METRICS = ("macro_auroc", "macro_auprc", "macro_f1", "accuracy")
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Split:
    """Which values of a column belong to which split; other records belong to none.

    `name` is what tables call it.
    """

    name: str
    by: Literal["strat_fold", "record_id", "patient_id"]
    train: tuple[Any, ...]
    validation: tuple[Any, ...]
    test: tuple[Any, ...]

    def __post_init__(self) -> None:
        values = [*self.train, *self.validation, *self.test]
        kind = int if self.by == "strat_fold" else str  # a number never equals a record's name
        for value in values:
            if type(value) is not kind:
                raise ValueError(f"expected {self.by} as {kind.__name__}, came {value!r}")
            if values.count(value) > 1:
                raise ValueError(f"{self.by} {value!r} stands there twice")

    def of(self, row: Mapping[str, Any]) -> str:
        """Give the split of an index row: `train`, `validation`, `test` or `none`."""
        for split in SPLITS:
            if row[self.by] in getattr(self, split):
                return split
        return "none"


@dataclass(frozen=True)
class Task:
    """A label space with its population, split and primary metric.

    `labels` maps each label to the archive's codes (statements of a record, or symbols of a beat)
    that carry it. `minimum_likelihood` (percent) leaves out statements below it. `aliases` lists
    patient ids that are known to be one person.
    """

    name: str
    version: int
    title: str
    archives: tuple[str, ...]
    unit: Literal["record", "beat"]
    kind: Literal["multilabel", "multiclass"]
    labels: dict[str, tuple[str, ...]]
    split: Split
    primary_metric: str
    minimum_likelihood: float = 0.0
    aliases: tuple[tuple[str, ...], ...] = ()
    label_of: dict[str, int] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.primary_metric not in PRIMARY_METRICS:
            raise ValueError(f"primary_metric: expected one of {', '.join(PRIMARY_METRICS)}")
        for i, codes in enumerate(self.labels.values()):
            for code in codes:
                if code in self.label_of:
                    raise ValueError(f"labels: {code!r} stands under two labels")
                self.label_of[code] = i

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of every `_C` axis."""
        return tuple(self.labels)

    def targets(self, codes: Iterable[str], likelihoods: Iterable[float] | None) -> np.ndarray:
        """Give the 0/1 targets of one example from its codes."""
        target_C = np.zeros(len(self.labels), dtype=np.int8)
        codes = list(codes)
        stated = list(likelihoods) if likelihoods is not None else [100.0] * len(codes)
        for code, likelihood in zip(codes, stated, strict=True):
            if code in self.label_of and likelihood >= self.minimum_likelihood:
                target_C[self.label_of[code]] = 1
        return target_C


def task_names() -> list[str]:
    """List the tasks that lie beside this module."""
    folder = resources.files("rayecg.tasks")
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_task(settings: TaskSettings, archive_kind: str | None = None) -> Task:
    """Load a task by name, with the experiment's own minimum likelihood if it states one.

    Raises
    ------
    SettingsError
        If there is no such task, or it is not defined on the archive kind.
    """
    names = task_names()
    if settings.name not in names:
        raise SettingsError(
            f"task: no task is named {settings.name!r} ({nearest(settings.name, names)})"
        )
    with resources.as_file(resources.files("rayecg.tasks") / f"{settings.name}.yaml") as file:
        tree = read_yaml(file)
    if settings.minimum_likelihood is not None:
        tree["minimum_likelihood"] = settings.minimum_likelihood
    task = build(Task, tree, f"task {settings.name}")
    if archive_kind is not None and archive_kind not in task.archives:
        raise SettingsError(
            f"task: {task.name} is defined on {', '.join(task.archives)}, not on {archive_kind}"
        )
    return task


def example_rows(task: Task, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Give the examples of one record (an index row with `beat_times` and `beat_symbols`).

    A record without any label of the task, or outside the protocol, keeps its rows with split
    `none` and the reason: it is counted and still scored, but neither trained nor evaluated on.
    """
    common = {name: row[name] for name in ("record_id", "patient_id", "strat_fold")}
    split = task.split.of(row)
    if task.unit == "record":
        found = [(0, task.targets(row["codes"] or (), row["likelihoods"]))]
    else:
        beats = zip(row["beat_times"] or (), row["beat_symbols"] or (), strict=True)
        found = [(time, task.targets([symbol], None)) for time, symbol in beats]
    rows = []
    for offset, target_C in found:
        reason = None if target_C.any() else "no label of the task"
        if split == "none":
            reason = "outside the protocol"
        rows.append(
            {
                **common,
                "offset": int(offset),
                "split": "none" if reason else split,
                "reason": reason,
                **{f"target_{n}": int(t) for n, t in zip(task.label_names, target_C, strict=True)},
            }
        )
    return rows


def example_table(task: Task, records: pa.Table) -> pa.Table:
    """List the examples of all records (shard columns without the samples), in their order."""
    rows = [example for row in records.to_pylist() for example in example_rows(task, row)]
    schema = pa.schema(
        [
            pa.field("record_id", pa.string()),
            pa.field("patient_id", pa.string()),
            pa.field("strat_fold", pa.int16()),
            pa.field("offset", pa.int64()),
            pa.field("split", pa.string()),
            pa.field("reason", pa.string()),
            *(pa.field(f"target_{name}", pa.int8()) for name in task.label_names),
        ]
    )
    return pa.Table.from_pylist(rows, schema=schema)


def target_matrix(task: Task, examples: pa.Table) -> np.ndarray:
    """Give the targets of examples as a 0/1 array, examples by labels."""
    columns = [examples[f"target_{name}"].to_numpy() for name in task.label_names]
    return np.stack(columns, axis=1)
