"""Somebody else's predictions as evidence: what the table says, and what shards say of its records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rayecg.audit.evidence import Evidence, UnstatedError
from rayecg.audit.findings import Finding
from rayecg.audit.metadata import DEVICE_LIKE, PHYSIOLOGY
from rayecg.audit.run import findings_of, write_findings
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import TaskSettings
from rayecg.core.files import MANIFEST
from rayecg.core.prediction_table import SPLIT_WORDS, PredictionTable
from rayecg.core.shard_format import INDEX_NAMES
from rayecg.tasks.task import SPLITS, Task, load_task, task_names

#: What a table may say of a record, beside its patient.
_OF_RECORD = ("strat_fold", "age", "sex", "site", "device", "waveform_sha256")
#: Share of a table's ids that must be an archive's to take it for that archive.
MOSTLY = 0.9
#: Words of a `_source` column that say that nothing was chosen on data.
FIXED = ("fixed", "none", "default", "argmax")


def audit_table(
    table: PredictionTable,
    shards: Path | None,
    out: Path,
    aliases: Sequence[Sequence[str]] = (),
) -> list[Finding]:
    """Check somebody else's predictions against the rules.

    Parameters
    ----------
    table
        What `read_prediction_table` gives.
    shards
        A `make_shards` output of the same archive: it knows patients, waveforms and official folds.
    out
        Gets `findings.json`.
    aliases
        Groups of patient ids that are one person each, beside those that the tasks state of the archive.

    Returns
    -------
    list of Finding
        At least one for each rule; what the table does not say is `not checked`.

    Raises
    ------
    SettingsError
        If `shards` is no such output.
    DataError
        If it holds none of the table's records.
    """
    evidence = TableEvidence(table, shards, aliases=aliases)
    evidence.check_shards()
    findings = findings_of(evidence)
    write_findings(findings, out)
    return findings


class TableEvidence(Evidence):
    """The evidence of a table of predictions; what it does not say is None, or raises.

    Parameters
    ----------
    table
        What was read.
    shards
        A `make_shards` output, if there is one.
    fold
        Which of `assignments` it is the evidence of; None for all there is.
    aliases
        As for `audit_table`.
    """

    silence = "do not say it in the table"

    def __init__(
        self,
        table: PredictionTable,
        shards: Path | None = None,
        fold: int | None = None,
        aliases: Sequence[Sequence[str]] = (),
    ) -> None:
        # No stage wrote anything: below the name of a table no rule finds a file.
        super().__init__(Path(table.name), fold, Path(table.name))
        self.table, self.shards_given = table, shards
        self.aliases_given = [tuple(group) for group in aliases]
        self.shards_folder = self.work / "shards" if shards is None else Path(shards).resolve()

    @cached_property
    def folds(self) -> list[Evidence]:
        """The evidence of each assignment of examples to sides; this one alone if all runs share it.

        The runs of a cross-validation test each on its own part: what one trained on, another tests.
        """
        every = self.assignments
        if len(every) < 2:
            return [self]
        found: list[Evidence] = []
        for fold in range(len(every)):
            one = TableEvidence(self.table, self.shards_given, fold, self.aliases_given)
            for name in ("shards", "records", "assignments"):
                one.__dict__[name] = getattr(self, name)
            found.append(one)
        return found

    @cached_property
    def assignments(self) -> list[tuple[str, ...]]:
        """The runs of the table, those together that put the same examples on the same sides."""
        rows = self.table.rows
        keys = ["record_id", "offset", "split"]
        found: dict[int, list[str]] = {}
        for run in self.table.runs:
            own = rows.loc[rows["run"].isin([run, ""]), keys].sort_values(keys)
            mark = hash(pd.util.hash_pandas_object(own, index=False).to_numpy().tobytes())
            found.setdefault(mark, []).append(run)
        return [tuple(runs) for runs in found.values()]

    @property
    def runs(self) -> tuple[str, ...]:
        """The runs that it is the evidence of."""
        return self.table.runs if self.fold is None else self.assignments[self.fold]

    @cached_property
    def examples(self) -> pd.DataFrame | None:
        """One row per example and side, in the order of the table: the first run's, then the others'."""
        rows = self.table.rows
        own = rows[rows["run"].isin([*self.runs, ""])]
        own = own.drop_duplicates(["record_id", "offset", "split"])
        own = own.assign(fold=None, reason=None)
        if "strat_fold" not in own:
            records = self.records
            folds = (
                {} if records is None else records.set_index("record_id")["strat_fold"].to_dict()
            )
            own["strat_fold"] = own["record_id"].map(folds).astype("Float64")
        return own

    @property
    def every_example(self) -> pd.DataFrame | None:
        """The same: folds are told apart by run."""
        return self.examples

    @property
    def stated_splits(self) -> tuple[str, ...]:  # type: ignore[override]
        """The splits that the table has rows of."""
        there = set(self.table.rows["split"])
        return tuple(split for split in SPLITS if split in there)

    @property
    def sides(self) -> pd.DataFrame | None:
        """As for a benchmark, where the table says who was trained on and who tested.

        Raises
        ------
        UnstatedError
            If it does not.
        """
        lacking = [split for split in ("train", "test") if split not in self.stated_splits]
        if lacking:
            raise UnstatedError(f"the table has no rows of {' and '.join(lacking)}")
        return self.known_sides

    @cached_property
    def known_sides(self) -> pd.DataFrame | None:
        """What is known of `sides`, with the original of each copy where the table says it."""
        sides, rows = super().known_sides, self.table.rows
        if sides is None or "copy_of" not in rows:
            return sides
        original = rows.drop_duplicates("record_id").set_index("record_id")["copy_of"]
        return sides.assign(copy_of=sides["record_id"].map(original))

    @cached_property
    def records(self) -> pd.DataFrame | None:
        """One row per record: of the shards, or else what the table says of it."""
        if self.shards_given is not None:
            return super().records
        rows = self.table.rows
        said = [name for name in _OF_RECORD if name in rows]
        if not said:
            return None
        found = rows[["record_id", "patient_id", *said]].drop_duplicates("record_id")
        return found.reindex(columns=[*INDEX_NAMES, "waveform_sha256"]).reset_index(drop=True)

    @cached_property
    def task(self) -> dict[str, Any] | None:
        """What is known of the task: its labels, and who is known under several ids.

        Shards say which archive it is; without them, a table whose records or patients are mostly those
        that a task's split names.
        """
        tasks = [load_task(TaskSettings(name)) for name in task_names()]
        if self.shards is not None:
            kind = (self.shards.get("archive") or {}).get("kind")
            own = [task for task in tasks if kind in task.archives]
        else:
            own = [task for task in tasks if task.aliases and self._mostly_of(task)]
            if not own and not self.aliases_given:
                return None
        aliases = {group for task in own for group in task.aliases} | set(self.aliases_given)
        return {"labels": list(self.table.labels), "aliases": sorted(aliases)}

    def _mostly_of(self, task: Task) -> bool:
        """Say whether nine in ten of the records, or of the patients, are in a task's split."""
        split = task.split
        named = {str(one) for side in (split.train, split.validation, split.test) for one in side}
        ids = [set(self.table.rows[name].dropna()) for name in ("record_id", "patient_id")]
        return any(len(own & named) >= MOSTLY * len(own) > 0 for own in ids)

    @cached_property
    def acquisition(self) -> pd.DataFrame | None:
        """How and where each record was made, as the shards or else the table say."""
        if self.shards_given is not None:
            return super().acquisition
        rows = self.table.rows
        said = [name for name in (*DEVICE_LIKE, *PHYSIOLOGY) if name in rows]
        if not set(said) & set(DEVICE_LIKE):
            return None
        return rows[["record_id", "patient_id", *said]].drop_duplicates("record_id")

    @cached_property
    def cards(self) -> dict[str, dict[str, Any] | None]:
        """What each run says of where its choices come from, as a checkpoint's card would."""
        return {run: _card(self.table.said[run]) for run in self.runs}

    def validated(self, run: str) -> set[tuple[str, int]] | None:
        """Give None: the table's word is all there is."""
        return None

    @cached_property
    def intervals(self) -> pd.DataFrame | None:
        """The published intervals, as `Evidence.intervals` gives them."""
        from rayecg.audit.published import of_table

        return of_table(self.table, self.runs)

    def check_shards(self) -> None:
        """Refuse shards that are none, or of other records.

        Raises
        ------
        SettingsError, DataError
            As for `audit_table`.
        """
        if self.shards_given is None:
            return
        if not (self.shards_folder / MANIFEST).exists():
            raise SettingsError(
                f"{self.shards_given}: expected the output folder of make_shards, with {MANIFEST}"
            )
        records = self.records
        if records is None:
            raise DataError(f"{self.shards_given}: expected shards below records/, found none")
        if not set(records["record_id"]) & set(self.table.rows["record_id"]):
            first = self.table.rows["record_id"].iloc[0]
            raise DataError(
                f"{self.table.name}: none of its records is in the shards; they have ids like "
                f"{records['record_id'].iloc[0]!r}, it has {first!r}"
            )


def _card(said: Any) -> dict[str, Any]:
    """Give a card's sections; what is not said is left out, so that rules find nothing there."""
    card: dict[str, Any] = {"operating_point": {}, "training": {}}
    point, training = card["operating_point"], card["training"]
    for name, value in said.items():
        split = _split_of(value)
        if split == "":
            continue
        source: dict[str, Any] | None = None if split is None else {"split": split}
        if name == "threshold_source":
            point |= {"split": split, "n_examples": None}
        elif name == "calibrator_source":
            point["calibrator"] = {"split": split, "n_examples": None}
        elif name == "selection_source":
            training["selection"] = source
        elif name == "class_weights_source":
            training["class_weights"] = source
    return card


def _split_of(said: str) -> str | None:
    """Give the splits of a source, or None if nothing was chosen; empty if it names none."""
    words = [word for word in re.split(r"[\s,;+&/]+|\band\b", said.strip().lower()) if word]
    words = [word for word in words if word not in ("the", "set", "split", "data")] or words
    if words and all(word in FIXED for word in words):
        return None
    meant = [split for word in words for split, known in SPLIT_WORDS.items() if word in known]
    if "test" not in meant and len(meant) < len(words):
        return ""
    return " and ".join(dict.fromkeys(meant))
