"""Somebody else's predictions: one CSV or Parquet table, from any framework.

Expected columns: `record_id`, `patient_id`, `split`, and for each label `target_<label>` (0 or 1) and
`probability_<label>` (0 to 1). One row is one example of one run: a record, or the window or beat of it
at `offset` (samples). Rows of the training split say who was trained on; they may leave all their
probabilities empty. Further columns, where there are any:

==============================  ====================================================================
`run`                           name of the model, seed or fold that a row is of
`offset`                        where a window or beat stands in its record
`strat_fold`                    the archive's own fold
`decision_<label>`              0 or 1
`waveform_sha256`, `copy_of`    fingerprint of the samples; the record that this one is a copy of
`age`, `sex`, `site`, `device`  of the patient, and of the recording
`batch`                         name of the batch that the row was scored in
`threshold_source`,             what thresholds, calibrator, checkpoint (or settings) and class weights
`calibrator_source`,            were chosen on: names of splits, several with a plus, or `fixed`
`selection_source`,
`class_weights_source`
`interval_low_<metric>`,        ends of a published interval, and the figure published with it;
`interval_high_<metric>`,       `macro_auroc`, `macro_auprc`, `macro_f1`, `accuracy`, `auroc_<label>` and
`point_<metric>`                the like for `auprc`, `f1`, `sensitivity`, `ppv`
`interval_level`                0.95 if there is none
`resampling_unit`               what these intervals resampled: `patient`, `record`, `beat`, …
==============================  ====================================================================

What describes a run (from `threshold_source` on) has one value in all rows of a run; empty cells say
nothing.

Legend: N row, C label.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from rayecg.core.catalogue import nearest
from rayecg.core.errors import DataError
from rayecg.core.table_files import open_table

#: Words for each split, in any case.
SPLIT_WORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
#: The run of a table that names none.
ONLY_RUN = "table"
SOURCES = ("threshold_source", "calibrator_source", "selection_source", "class_weights_source")
METRICS = ("macro_auroc", "macro_auprc", "macro_f1", "accuracy")
LABEL_METRICS = ("auroc", "auprc", "f1", "sensitivity", "ppv")

_REQUIRED = ("record_id", "patient_id", "split")
_TEXTS = (
    *_REQUIRED,
    *("run", "waveform_sha256", "copy_of", "sex", "site", "device", "batch"),
    *SOURCES,
    "resampling_unit",
)
_NUMBERS = ("offset", "strat_fold", "age", "interval_level")
_PREFIXES = ("target_", "probability_", "decision_", "interval_low_", "interval_high_", "point_")
_OF_RUN = (*SOURCES, "resampling_unit", "interval_level")
_YES_NO = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


@dataclass(frozen=True)
class Published:
    """An interval as somebody gives it.

    Attributes
    ----------
    run, metric
        Whose it is, and of what.
    low, high, level
        Its ends, and the share that it is meant to hold.
    point
        The figure published with it; NaN if none is.
    slack
        Half a unit of the last digit that they are written with.
    """

    run: str
    metric: str
    low: float
    high: float
    level: float
    point: float
    slack: float


@dataclass(frozen=True)
class PredictionTable:
    """A table that was read and found whole.

    Attributes
    ----------
    name
        Of the file, without its folder.
    labels
        In the order of the columns `target_`, and of every `_C` axis.
    rows
        In the order of the file: `record_id, patient_id, split, run, offset` and what else it has of
        the columns that are known; `split` is train, validation or test, texts that are not there
        are None. Rows that describe the training side of all runs have an empty `run`.
    intervals
        The published ones.
    said
        Of each run, what it says of `SOURCES` and `resampling_unit`.
    unread
        Columns that mean nothing here.
    """

    name: str
    labels: tuple[str, ...]
    rows: pd.DataFrame
    intervals: tuple[Published, ...]
    said: Mapping[str, Mapping[str, str]]
    unread: tuple[str, ...]

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs in the order of the table."""
        return tuple(self.said)

    def of_run(self, run: str, split: str) -> pd.DataFrame:
        """Give the rows of a run in a split, in the order of the table."""
        own = (self.rows["run"] == run) & (self.rows["split"] == split)
        return self.rows[own]

    def stack(self, rows: pd.DataFrame, what: str) -> np.ndarray:
        """Give columns of all labels, `target`, `probability` or `decision`; (N, C)."""
        return rows[[f"{what}_{label}" for label in self.labels]].to_numpy(dtype=np.float64)

    @property
    def decides(self) -> bool:
        """Whether it has a decision on every label."""
        return all(f"decision_{label}" in self.rows for label in self.labels)


def read_prediction_table(path: str | Path) -> PredictionTable:
    """Read and check a table of predictions.

    Parameters
    ----------
    path
        CSV (comma, semicolon or tab; compressed or not) or Parquet. Only the columns that are listed
        above are read, and a CSV in blocks, so that other columns cost no memory.

    Raises
    ------
    SettingsError
        If there is no such file.
    DataError
        If it cannot be read, lacks columns, or holds what cannot be: the message is one line that
        names the column and the row.
    """
    source = open_table(Path(path))
    labels = _labels(source.names, source.name)
    wanted = [name for name in source.names if _is_known(name, labels)]
    choices = [name for name in wanted if name.startswith(("target_", "decision_"))]
    texts = [name for name in wanted if name in _TEXTS]
    table = source.read(wanted, texts, choices)
    if not table.num_rows:
        raise DataError(f"{source.name}: expected rows below the header, found none")
    rows = pd.DataFrame({name: _column(table, name, source.name) for name in wanted})
    rows["split"] = _splits(rows["split"], source.name)
    _check_probabilities(rows, labels, source.name)
    _add_runs(rows, labels, source.name)
    rows["offset"] = _whole(rows, "offset", source.name) if "offset" in rows else 0
    _check_once(rows, "offset" in wanted, source.name)
    said, intervals = _of_runs(rows, source.name)
    own = [name for name in map(str, rows) if not _of_run(name)]
    unread = tuple(name for name in source.names if name not in wanted)
    return PredictionTable(source.name, labels, rows[own], intervals, said, unread)


def _is_known(name: str, labels: Sequence[str]) -> bool:
    if name in _TEXTS or name in _NUMBERS:
        return True
    if name.startswith(("target_", "probability_", "decision_")):
        return name.split("_", 1)[1] in labels
    return name.startswith(_PREFIXES)


def _labels(names: Sequence[str], where: str) -> tuple[str, ...]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{where}: expected each column once, came twice: {', '.join(twice)}")
    lacking = [name for name in _REQUIRED if name not in names]
    labels = tuple(n.removeprefix("target_") for n in names if n.startswith("target_"))
    given = [n.removeprefix("probability_") for n in names if n.startswith("probability_")]
    if not labels:
        lacking.append("target_<label>")
    if not given:
        lacking.append("probability_<label>")
    elif labels:
        lacking += [f"probability_{label}" for label in labels if label not in given]
        lacking += [f"target_{label}" for label in given if label not in labels]
    if lacking:
        near = "; ".join(f"{name} ({nearest(name, names)})" for name in lacking[:3])
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise DataError(f"{where}: expected the columns {near}{more}")
    decided = {n.removeprefix("decision_") for n in names if n.startswith("decision_")}
    if decided and not decided >= set(labels):
        one = next(label for label in labels if label not in decided)
        raise DataError(
            f"{where}: expected a decision on every label or none, lacks decision_{one}"
        )
    return labels


def _column(table: pa.Table, name: str, where: str) -> Any:
    """Give a column: texts as str or None, choices as 0 and 1, numbers as float."""
    column = table[name]
    if name in _TEXTS:
        found = pd.Series(column.to_pandas(), dtype=object)
        found = found.where(found.notna(), None)
        if name in ("record_id", "split") and found.isna().any():
            raise DataError(f"{where}: {name}: expected a value, none in {_row(found.isna())}")
        return found
    if name.startswith(("target_", "decision_")):
        return _choices(column, name, where)
    values_N = column.to_numpy().astype(np.float64)
    if np.isinf(values_N).any():
        raise DataError(f"{where}: {name}: not finite in {_row(np.isinf(values_N))}")
    return values_N


def _choices(column: pa.ChunkedArray, name: str, where: str) -> np.ndarray:
    own = column.combine_chunks()
    own = own if pa.types.is_dictionary(own.type) else own.dictionary_encode()
    meant = [_YES_NO.get(str(value).strip().lower(), -1) for value in own.dictionary.to_pylist()]
    code_N = own.indices.to_numpy(zero_copy_only=False)
    value_N = np.full(len(own), -1.0)
    known_N = ~pd.isna(code_N)
    value_N[known_N] = np.array(meant, dtype=np.float64)[code_N[known_N].astype(int)]
    wrong_N = value_N < 0
    if name.startswith("decision_"):  # an example may be left undecided
        value_N[~known_N], wrong_N = np.nan, wrong_N & known_N
    if wrong_N.any():
        came = own[int(np.argmax(wrong_N))].as_py()
        came = "an empty cell" if came is None else repr(came)
        raise DataError(f"{where}: {name}: expected 0 or 1, came {came} in {_row(wrong_N)}")
    return value_N


def _row(wrong_N: Any) -> str:
    """Name the first row, counted from 1 without the header, and say how many more there are."""
    wrong_N = np.asarray(wrong_N, dtype=bool)
    more = int(wrong_N.sum()) - 1
    return f"row {int(np.argmax(wrong_N)) + 1}{f' and {more:,} more' if more else ''}"


def _splits(words: pd.Series, where: str) -> pd.Series:
    meant = {word: split for split, known in SPLIT_WORDS.items() for word in known}
    found = words.map({word: meant.get(word.strip().lower()) for word in words.unique()})
    if found.isna().any():
        came = words[found.isna()].iloc[0]
        accepted = "; ".join(f"{split}: {', '.join(w)}" for split, w in SPLIT_WORDS.items())
        raise DataError(
            f"{where}: split: expected one of {accepted}; came {came!r} in {_row(found.isna())}"
        )
    return found


def _check_probabilities(rows: pd.DataFrame, labels: Sequence[str], where: str) -> None:
    names = [f"probability_{label}" for label in labels]
    absent_NC = rows[names].isna().to_numpy()
    # Who was trained on matters also where nobody kept what was predicted for them.
    unscored_N = absent_NC.all(axis=1) & (rows["split"] == "train").to_numpy()
    for name, absent_N in zip(names, absent_NC.T, strict=True):
        lacking_N = absent_N & ~unscored_N
        if lacking_N.any():
            raise DataError(f"{where}: {name}: expected a number, none in {_row(lacking_N)}")
        outside_N = ((rows[name] < 0) | (rows[name] > 1)).to_numpy()
        if outside_N.any():
            came = rows[name][outside_N].iloc[0]
            raise DataError(
                f"{where}: {name}: expected 0 to 1, came {float(came)!r} in {_row(outside_N)}"
            )


def _add_runs(rows: pd.DataFrame, labels: Sequence[str], where: str) -> None:
    if "run" not in rows:
        rows["run"] = ONLY_RUN
        return
    shared = rows["run"].isna()
    wrong = shared & ~((rows["split"] == "train") & rows[f"probability_{labels[0]}"].isna())
    if wrong.any():
        raise DataError(
            f"{where}: run: expected a name (only training rows without probabilities may belong to "
            f"all runs), none in {_row(wrong)}"
        )
    if shared.all():
        raise DataError(f"{where}: run: expected a name in some rows, all are empty")
    rows["run"] = rows["run"].fillna("")


def _whole(rows: pd.DataFrame, name: str, where: str) -> pd.Series:
    wrong = rows[name].isna() | (rows[name] % 1 != 0)
    if wrong.any():
        raise DataError(f"{where}: {name}: expected a whole number, none in {_row(wrong)}")
    return rows[name].astype(np.int64)


def _check_once(rows: pd.DataFrame, has_offset: bool, where: str) -> None:
    # The same example on two sides is a matter for the audit, not for the reader.
    twice = rows.duplicated(["record_id", "offset", "split", "run"])
    if twice.any():
        first = rows[twice].iloc[0]
        what = f"record {first['record_id']!r}"
        what += f", offset {first['offset']}" if has_offset else ""
        what += f", run {first['run']!r}" if first["run"] not in ("", ONLY_RUN) else ""
        hint = "" if has_offset else "; windows or beats of a record need a column offset"
        raise DataError(
            f"{where}: expected one row for each example of a run, came twice: {what} in "
            f"{_row(twice)}{hint}"
        )


def _of_run(name: str) -> bool:
    return name in _OF_RUN or name.startswith(("interval_", "point_"))


def _of_runs(
    rows: pd.DataFrame, where: str
) -> tuple[dict[str, dict[str, str]], tuple[Published, ...]]:
    """Read what describes runs: one value in each, or none."""
    columns = [name for name in map(str, rows) if _of_run(name)]
    said: dict[str, dict[str, str]] = {}
    intervals: list[Published] = []
    for run in rows.loc[rows["run"] != "", "run"].unique():
        own = rows[rows["run"] == run]
        known: dict[str, Any] = {}
        for name in columns:
            values = own[name].dropna().unique()
            if len(values) > 1:
                raise DataError(
                    f"{where}: {name}: expected one value in all rows of run {run!r}, came "
                    f"{values[0]!s} and {values[1]!s}"
                )
            if len(values):
                known[name] = values[0]
        said[run] = {name: str(known[name]) for name in known if name in _TEXTS}
        intervals += _published(run, known, where)
    return said, tuple(intervals)


def _published(run: str, known: Mapping[str, Any], where: str) -> list[Published]:
    level = float(known.get("interval_level", 0.95))
    if not 0 < level < 1:
        raise DataError(
            f"{where}: interval_level: expected a share between 0 and 1, came {level:g}"
        )
    found = []
    ends = ("interval_low_", "interval_high_")
    metrics = {re.sub("^interval_(low|high)_", "", n) for n in known if n.startswith(ends)}
    for metric in sorted(metrics):
        names = [f"{end}{metric}" for end in ends]
        lacking = [name for name in names if name not in known]
        if lacking:
            raise DataError(f"{where}: {lacking[0]}: expected a value for run {run!r}, came none")
        low, high = (float(known[name]) for name in names)
        point = float(known.get(f"point_{metric}", np.nan))
        # Zeros at an end are lost (0.90), so the number with most digits says how all are written.
        slack = min(_half_digit(value) for value in (low, high, point) if value == value)
        found.append(Published(run, metric, low, high, level, point, slack))
    return found


def _half_digit(value: float) -> float:
    """Give half a unit of the last decimal that a number is written with."""
    single = np.float32(value)  # a column of these has digits that nobody wrote
    text = np.format_float_positional(single if single == value else value, trim="-")
    return float(0.5 * 10.0 ** -len(text.partition(".")[2]))
