"""Tasks: label spaces as data files, and the examples that they make of an archive's records.

An example is what a figure counts: a recording, or one beat of it. `examples.parquet` lists them
all with their split and targets; training, audit and report read it, so that there is one answer to
who belongs where.

Legend: N example, K code, C label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.catalogue import nearest
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import TaskSettings
from rayecg.core.settings import build, read_yaml
from rayecg.tasks.split import OUTSIDE, SPLITS, Examples, Split, sides

#: What runs can be chosen by; `metrics.classification.evaluate` computes them.
PRIMARY_METRICS = ("macro_auroc", "macro_auprc", "macro_f1", "accuracy")


@dataclass(frozen=True)
class Codes:
    """Matches what carries one code of `any` or more, and none of `none`."""

    any: tuple[str, ...]
    none: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.any:
            raise ValueError("any: expected at least one code")
        both = set(self.any) & set(self.none)
        if both:
            raise ValueError(f"{min(both)!r} stands under any and under none")

    def match(self, carried_NK: np.ndarray, column_of: Mapping[str, int]) -> np.ndarray:
        """Tell which examples match, from the codes that each carries."""
        some_N, other_N = (
            np.any(carried_NK[:, [column_of[code] for code in codes]], axis=1)
            for codes in (self.any, self.none)
        )
        return np.asarray(some_N & ~other_N)


@dataclass(frozen=True)
class Task:
    """A label space with its population, split and primary metric.

    `labels` says which of the archive's codes (statements of a record, or symbols of a beat) make
    each label. The population are the examples with a label, and those without that match
    `negatives`. Statements below `minimum_likelihood` (percent) count as not stated, under `none` as
    well. `aliases` lists patient ids that are known to be one person.
    """

    name: str
    version: int
    title: str
    archives: tuple[str, ...]
    unit: Literal["record", "beat"]
    kind: Literal["multilabel", "multiclass"]
    labels: dict[str, Codes]
    split: Split
    primary_metric: str
    negatives: Codes | None = None
    minimum_likelihood: float = 0.0
    aliases: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.primary_metric not in PRIMARY_METRICS:
            raise ValueError(
                f"primary_metric: expected one of {', '.join(PRIMARY_METRICS)}, "
                f"came {self.primary_metric!r}"
            )
        if not self.labels:
            raise ValueError("labels: expected at least one")
        if self.kind == "multiclass" and self.negatives is not None:
            raise ValueError("negatives: expected of multilabel tasks alone")
        codes = [code for label in self.labels.values() for code in label.any]
        for code in codes:
            if codes.count(code) > 1:
                raise ValueError(f"labels: {code!r} stands under two labels")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The labels in the order of every `_C` axis."""
        return tuple(self.labels)

    @property
    def codes(self) -> tuple[str, ...]:
        """Every code that decides anything, each once."""
        named = [*self.labels.values(), *([self.negatives] if self.negatives else ())]
        return tuple(dict.fromkeys(code for each in named for code in (*each.any, *each.none)))


def task_names() -> list[str]:
    """List the tasks that lie beside this module."""
    folder = resources.files("rayecg.tasks")
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".yaml"))


def load_task(settings: TaskSettings, archive_kind: str | None = None) -> Task:
    """Load a task by name, with what the experiment states otherwise.

    Raises
    ------
    SettingsError
        If there is no such task or metric, or it is not defined on the archive kind.
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
    if settings.primary_metric is not None:
        tree["primary_metric"] = settings.primary_metric
    task = build_task(tree, f"task {settings.name}")
    if archive_kind is not None and archive_kind not in task.archives:
        raise SettingsError(
            f"task: {task.name} is defined on {', '.join(task.archives)}, not on {archive_kind}"
        )
    return task


def build_task(tree: Mapping[str, Any], origin: str) -> Task:
    """Fill a task from a tree, where a label may be a plain list of the codes that make it."""
    labels = tree.get("labels")
    if isinstance(labels, dict):
        in_full = {
            name: {"any": codes} if isinstance(codes, list) else codes
            for name, codes in labels.items()
        }
        tree = {**tree, "labels": in_full}
    return build(Task, tree, origin)


def example_table(task: Task, records: pa.Table, splits: Sequence[Split] = ()) -> pa.Table:
    """List the examples of all records, in their order, once for each split.

    A record without any label of the task, or outside the protocol, keeps its rows with split
    `none` and the reason: it is counted and still scored, but neither trained nor evaluated on.

    Parameters
    ----------
    task
        What is asked of the records.
    records
        Columns of the index, and `beat_times` and `beat_symbols` for a task of beats.
    splits
        The task's own if none is given.

    Returns
    -------
    pa.Table
        `record_id, patient_id, strat_fold, offset, fold, split, reason`, and a `target_` column of 0
        and 1 for each label. `fold` is null where there is one split.

    Raises
    ------
    DataError
        If there are fewer patients than groups to draw, a record's lists differ in length, or a split
        leaves out records that are not there.
    """
    examples = _examples(task, records)
    known = pa.table(
        {
            "record_id": examples.column("record_id").cast(pa.string()),
            "patient_id": examples.column("patient_id").cast(pa.string()),
            "strat_fold": examples.column("strat_fold").cast(pa.int16()),
            "offset": pa.array(examples.offset_N, pa.int64()),
        }
    )
    targets = {
        f"target_{name}": pa.array(column_N)
        for name, column_N in zip(task.label_names, examples.target_NC.T, strict=True)
    }
    names = pa.array([*SPLITS, "none"])
    reasons = pa.array([None, "no label of the task", "outside the protocol"], pa.string())
    parts = []
    for split in splits or (task.split,):
        _check_excluded(task, split, records)
        side_N = sides(split, examples)
        reason_N = np.where(side_N == OUTSIDE, 2, np.where(examples.belongs_N, 0, 1))
        side_N = np.where(reason_N > 0, OUTSIDE, side_N)
        columns = {
            "fold": pa.array([split.fold] * len(side_N), pa.int16()),
            "split": names.take(pa.array(side_N)),
            "reason": reasons.take(pa.array(reason_N)),
            **targets,
        }
        part = known
        for name, column in columns.items():
            part = part.append_column(name, column)
        parts.append(part)
    return pa.concat_tables(parts)


def _check_excluded(task: Task, split: Split, records: pa.Table) -> None:
    """Refuse to leave out what is not there; a task's own list is of the whole archive."""
    asked = set(split.exclude) - set(task.split.exclude)
    unknown = sorted(asked - set(records["record_id"].to_pylist())) if asked else []
    if unknown:
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise DataError(
            f"split.exclude: expected ids among the {records.num_rows} records that could be read, "
            f"came {', '.join(map(repr, unknown[:5]))}{more}"
        )


def _examples(task: Task, records: pa.Table) -> Examples:
    by_beat = task.unit == "beat"
    codes, row_N = _items(records, "beat_symbols" if by_beat else "codes", pa.string())
    kept = np.ones(len(codes), dtype=bool)
    if by_beat:
        times, _ = _items(records, "beat_times", pa.int64(), row_N)
        example, offset_N = np.arange(len(codes)), times.to_numpy()
    else:
        example, row_N = row_N, np.arange(records.num_rows)
        offset_N = np.zeros(records.num_rows, dtype=np.int64)
        kept = _likelihoods(records, example) >= task.minimum_likelihood
    column_of = {code: column for column, code in enumerate(task.codes)}
    found = pc.fill_null(pc.index_in(codes, value_set=pa.array(task.codes)), -1).to_numpy()
    kept &= found >= 0
    carried_NK = np.zeros((len(row_N), len(column_of)), dtype=bool)
    carried_NK[example[kept], found[kept]] = True
    target_NC = np.stack(
        [label.match(carried_NK, column_of) for label in task.labels.values()], axis=1
    )
    belongs_N = np.asarray(target_NC.any(axis=1))
    if task.negatives is not None:
        belongs_N = belongs_N | task.negatives.match(carried_NK, column_of)
    return Examples(records, row_N, offset_N, target_NC.astype(np.int8), belongs_N, task.aliases)


def _likelihoods(records: pa.Table, row_of_code: np.ndarray) -> np.ndarray:
    """Give the likelihood of every code in percent; where a record states none, they are certain."""
    stated_R = records["likelihoods"].is_valid().to_numpy()
    stated = stated_R[row_of_code]
    likelihoods, _ = _items(records, "likelihoods", pa.float64(), row_of_code[stated])
    found = np.full(len(row_of_code), 100.0)
    found[stated] = likelihoods.to_numpy(zero_copy_only=False)
    return found


def _items(
    records: pa.Table, name: str, kind: pa.DataType, rows: np.ndarray | None = None
) -> tuple[pa.Array, np.ndarray]:
    """Give the items of a column of lists, one after another, and the row of each.

    Raises
    ------
    DataError
        If they do not lie in the rows that are expected.
    """
    column = records[name].cast(pa.list_(kind)).combine_chunks()
    found = pc.list_parent_indices(column).to_numpy()
    if rows is not None and not np.array_equal(found, rows):
        came_R, expected_R = (np.bincount(each, minlength=len(column)) for each in (found, rows))
        first = int(np.flatnonzero(came_R != expected_R)[0])
        raise DataError(
            f"record {records['record_id'][first]}: expected {expected_R[first]} items in {name}, "
            f"came {came_R[first]}"
        )
    return column.flatten(), found


def target_matrix(task: Task, examples: pa.Table) -> np.ndarray:
    """Give the targets of examples as a 0/1 array, examples by labels."""
    columns = [examples[f"target_{name}"].to_numpy() for name in task.label_names]
    return np.stack(columns, axis=1)
