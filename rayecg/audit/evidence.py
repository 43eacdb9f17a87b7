"""What the audit looks at: the files that the other stages left under `work`, read when asked for."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from rayecg.core.files import MANIFEST, read_json, read_table
from rayecg.core.shard_format import INDEX_NAMES
from rayecg.tasks.task import SPLITS


class Evidence:
    """The evidence of one benchmark, or of one of its folds; what was never written is None.

    Parameters
    ----------
    work
        The folder `OUT/work`.
    fold
        The fold whose evidence it is; None for all there is.
    """

    def __init__(self, work: Path, fold: int | None = None) -> None:
        self.work, self.fold = Path(work), fold

    @cached_property
    def folds(self) -> list[Evidence]:
        """The evidence of each fold; this one alone if there is one split.

        What is damaged raises when a rule asks for it, and not here.
        """
        found: list[Evidence] = []
        with suppress(Exception):
            every = self.every_example
            if every is not None and "fold" in every:
                folds = sorted(every["fold"].dropna().unique())
                found = [Evidence(self.work, int(fold)) for fold in folds]
        for name in ("task", "shards", "records", "every_example"):  # read once for all
            with suppress(Exception):
                value = getattr(self, name)
                for one in found:
                    one.__dict__[name] = value
        return found or [self]

    @cached_property
    def task(self) -> dict[str, Any] | None:
        """The task as a tree."""
        return _json(self.work / "task.json")

    @cached_property
    def shards(self) -> dict[str, Any] | None:
        """The manifest of the shards."""
        return _json(self.work / "shards" / MANIFEST)

    @cached_property
    def records(self) -> pd.DataFrame | None:
        """One row per record of the shards: the index and the waveform's fingerprint."""
        folder = self.work / "shards" / "records"
        if not any(folder.glob("*.parquet")):
            return None
        columns = [*INDEX_NAMES, "waveform_sha256"]
        return read_table(folder, columns=columns).to_pandas()

    @cached_property
    def every_example(self) -> pd.DataFrame | None:
        """One row per example of the task and split."""
        file = self.work / "examples.parquet"
        return read_table(file).to_pandas() if file.exists() else None

    @cached_property
    def examples(self) -> pd.DataFrame | None:
        """One row per example of the task."""
        every = self.every_example
        return every if every is None or self.fold is None else every[every["fold"] == self.fold]

    @cached_property
    def sides(self) -> pd.DataFrame | None:
        """One row per record and split it has examples in: `patient_id`, `n_examples`.

        The patient is the one that the shards state, where they hold the record.
        """
        if self.examples is None:
            return None
        used = self.examples[self.examples["split"].isin(SPLITS)]
        sides = (
            used.groupby(["record_id", "split"], sort=False)
            .agg(patient_id=("patient_id", "first"), n_examples=("split", "size"))
            .reset_index()
        )
        if self.records is not None:
            stated = self.records.set_index("record_id")["patient_id"]
            held = sides["record_id"].isin(stated.index)
            own = sides["record_id"].map(stated)
            sides["patient_id"] = own.where(held, sides["patient_id"])
        return sides

    @cached_property
    def cards(self) -> dict[str, dict[str, Any] | None]:
        """The checkpoint card of each run that trained to its end; None if it has none.

        `runs.json` lists the runs of the experiment; others are left from earlier ones. Of a fold,
        its own runs.
        """
        listed = self.work / "runs.json"
        own = set(read_json(listed, list)) if listed.exists() else None
        found = {}
        for file in sorted((self.work / "train").glob("*/run.json")):
            said = read_json(file)
            mine = own is None or file.parent.name in own
            mine &= self.fold is None or said.get("fold") == self.fold
            if mine and said.get("status") == "ok":
                found[file.parent.name] = _json(file.parent / "checkpoint" / "card.json")
        return found

    def validated(self, run: str) -> set[tuple[str, int]] | None:
        """Give record and offset of the examples that a run was validated on."""
        file = self.work / "train" / run / "validation.parquet"
        if not file.exists():
            return None
        table = read_table(file, columns=["record_id", "offset"])
        return set(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
