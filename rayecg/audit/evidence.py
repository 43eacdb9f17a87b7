"""What the audit looks at: the files that the other stages left under `work`, read when asked for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from rayecg.audit.copies import CopySearch
from rayecg.audit.metadata import acquisition
from rayecg.audit.neighbours import Vectors, read_vectors
from rayecg.core.errors import DataError
from rayecg.core.files import MANIFEST, read_json, read_table
from rayecg.core.published import INTERVALS
from rayecg.core.shard_format import INDEX_NAMES
from rayecg.tasks.task import SPLITS


class UnstatedError(DataError):
    """What a rule asks for is not stated by its source; the message says what is missing."""


@dataclass(frozen=True)
class PermutedRun:
    """A run on permuted labels: what it was trained on, and what it says of the true test records.

    `problem` says why it cannot be used, and is empty otherwise. `keys` join `predictions` with
    examples.
    """

    name: str
    problem: str = ""
    labels: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    examples: pd.DataFrame = field(default_factory=pd.DataFrame)
    predictions: pd.DataFrame = field(default_factory=pd.DataFrame)


class Evidence:
    """The evidence of one benchmark, or of one of its folds; what was never written is None.

    Parameters
    ----------
    work
        The folder `OUT/work`.
    fold
        The fold whose evidence it is; None for all there is.
    published
        Where the report's figures stand; None if beside `work`.
    """

    #: The splits that the evidence lists rows of.
    stated_splits: tuple[str, ...] = SPLITS
    #: What is said of a run whose card says nothing of a matter.
    silence = "have no card that says"

    def __init__(self, work: Path, fold: int | None = None, published: Path | None = None) -> None:
        self.work, self.fold = Path(work), fold
        self.published = self.work.parent if published is None else Path(published)
        #: A `make_shards` output.
        self.shards_folder = self.work / "shards"

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
                found = [Evidence(self.work, int(fold), self.published) for fold in folds]
        for name in ("task", "shards", "records", "every_example", "copies"):  # read once for all
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
        return _json(self.shards_folder / MANIFEST)

    @cached_property
    def records(self) -> pd.DataFrame | None:
        """One row per record of the shards: the index and the waveform's fingerprint."""
        folder = self.shards_folder / "records"
        if not any(folder.glob("*.parquet")):
            return None
        columns = [*INDEX_NAMES, "waveform_sha256", "offset"]
        rows = read_table(folder, columns=columns).to_pandas()
        # The windows of a record are rows of their own; the first stands for it.
        return rows[rows["offset"] == 0].drop(columns="offset").reset_index(drop=True)

    @cached_property
    def every_example(self) -> pd.DataFrame | None:
        """One row per example of the task and split."""
        file = self.work / "examples.parquet"
        return read_table(file).to_pandas() if file.exists() else None

    @cached_property
    def copies(self) -> CopySearch | None:
        """The search for near copies among all records that any fold trains or evaluates on."""
        held = any((self.shards_folder / "records").glob("*.parquet"))
        if self.every_example is None or not held:
            return None
        used = self.every_example["split"].isin(SPLITS)
        return CopySearch(self.shards_folder, set(self.every_example.loc[used, "record_id"]))

    @cached_property
    def acquisition(self) -> pd.DataFrame | None:
        """How and where each record was made: ids, and columns of `rayecg.audit.metadata`."""
        held = any((self.shards_folder / "records").glob("*.parquet"))
        return acquisition(self.shards_folder) if held else None

    @cached_property
    def vectors(self) -> Vectors | None:
        """A sample of the examples of each side as vectors."""
        if self.examples is None or self.copies is None:
            return None
        by_beat = bool((self.examples["offset"] != 0).any())
        return read_vectors(self.shards_folder, self.examples, by_beat, self.copies)

    @cached_property
    def examples(self) -> pd.DataFrame | None:
        """One row per example of the task."""
        every = self.every_example
        return every if every is None or self.fold is None else every[every["fold"] == self.fold]

    @property
    def sides(self) -> pd.DataFrame | None:
        """One row per record and split it has examples in: `patient_id`, `n_examples`."""
        return self.known_sides

    @cached_property
    def known_sides(self) -> pd.DataFrame | None:
        """What is known of `sides`, which may not be all that a rule must know to say `passed`.

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

    def batches(self, run: str) -> dict[str, Any] | None:
        """Give what a run's scores did in other batches."""
        return _json(self.work / "audit" / "batches" / f"{run}.json")

    @cached_property
    def permuted(self) -> list[PermutedRun] | None:
        """The runs on permuted labels; None if none was asked for. Of a fold, its own."""
        folder = self.work / "audit" / "permuted"
        plan = _json(folder / "plan.json") or {}
        runs = {name: _json(folder / "train" / name / "run.json") for name in plan.get("runs", ())}
        found = []
        for name, said in runs.items():
            if said is None:
                why = plan["error"] or "it was not trained to its end"
                found.append(PermutedRun(name, why))
            elif self.fold is None or said["fold"] == self.fold:
                found.append(self._permuted(folder, name, said))
        return found or None

    def _permuted(self, folder: Path, name: str, said: dict[str, Any]) -> PermutedRun:
        card = _json(folder / "train" / name / "checkpoint" / "card.json")
        if said["status"] != "ok" or card is None:
            return PermutedRun(name, f"the run failed: {said.get('error')}")
        scores = folder / "score" / name
        manifest = _json(scores / MANIFEST)
        made_of = card["weights_sha256"], (self.shards or {}).get("key")
        if manifest is None or made_of != (manifest["checkpoint_sha256"], manifest["source_key"]):
            return PermutedRun(name, "its predictions are not there")
        labels, by_beat = card["task"]["labels"], card["task"]["unit"] == "beat"
        keys = ("record_id", "offset") if by_beat else ("record_id",)
        columns = [*keys, *(f"probability_{label}" for label in labels)]
        table = read_table(scores / ("windows" if by_beat else "predictions"), columns=columns)
        examples = read_table(folder / "examples.parquet").to_pandas()
        if self.fold is not None:
            examples = examples[examples["fold"] == self.fold]
        return PermutedRun(name, "", tuple(labels), keys, examples, table.to_pandas())

    @cached_property
    def ledger(self) -> list[dict[str, Any]] | None:
        """The evaluations on test splits that this output folder has seen."""
        file = self.work.parent / "ledger.json"
        return read_json(file, list) if file.exists() else None

    @cached_property
    def experiment(self) -> dict[str, Any]:
        """The settings as a tree; empty if there are none."""
        file = self.work.parent / "experiment.yaml"
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
        return tree if isinstance(tree, dict) else {}

    @cached_property
    def intervals(self) -> pd.DataFrame | None:
        """The published intervals: a row each, with the columns `INTERVAL_COLUMNS`."""
        file = self.published / INTERVALS
        return pd.read_csv(file) if file.exists() else None

    def validated(self, run: str) -> set[tuple[str, int]] | None:
        """Give record and offset of the examples that a run was validated on."""
        file = self.work / "train" / run / "validation.parquet"
        if not file.exists():
            return None
        table = read_table(file, columns=["record_id", "offset"])
        return set(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))


def _json(path: Path) -> dict[str, Any] | None:
    return read_json(path) if path.exists() else None
