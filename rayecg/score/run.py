"""Scoring: checkpoints x units of records, by Ray actors.

Every checkpoint reads the same prepared windows, so a unit is read and prepared once for all of them.
A unit's files are written whole, then its ledger entry; a killed job's next start skips the units
that have one. What decides a row's bits (back end, batch shape, threads) is fixed at the first start
and kept in `plan.json`, what belongs to a unit in `plan.parquet`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from rayecg.core.batch import Batch
from rayecg.core.destination import Destination
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import InputSettings, ScoreSettings
from rayecg.core.files import MANIFEST, as_json, fingerprint
from rayecg.core.hashing import hashed
from rayecg.core.progress import Progress
from rayecg.core.session import KEEPS_MEMORY, cluster_cpus
from rayecg.core.units import Units, as_parquet, failure_as_row, raise_failures, read_parquet
from rayecg.core.versions import code_fingerprint, versions
from rayecg.models.backends import open_backend, verify
from rayecg.models.checkpoint import ONNX, ONNX_INT8, identity, read_card
from rayecg.models.predictor import Predictor
from rayecg.score.plan import Plan
from rayecg.score.pool import run_on_actors
from rayecg.score.sources import Source
from rayecg.score.tables import Stamps, record_table, window_table

#: Rooms whose code decides what a score is.
ROOMS = ("archives", "core", "models", "score", "signal")
STATUSES = ("ok", "degraded", "quarantined")
FOLDERS = ("predictions", "windows")
PLAN_ROWS = "plan.parquet"
SUMMARY = ("summary.json", "summary.md")
#: Windows on which a back end is held against the reference before it is used.
N_VERIFIED = 32


def score(
    checkpoints: Mapping[str, Path],
    source: Source,
    out: Mapping[str, Path | Destination],
    settings: ScoreSettings,
    hash_key: bytes | None = None,
    replace: bool = True,
) -> dict[str, dict[str, Any]]:
    """Score every record of a source with every checkpoint.

    Parameters
    ----------
    checkpoints
        Name to bundle folder.
    source
        Shards or a raw archive.
    out
        Name to output: gets `predictions/*.parquet` (one row per input record), `windows/*.parquet`
        (beats, and the windows of records that have several) and, last, `manifest.json`.
    settings
        Back end, actors, batch shape.
    hash_key
        Hashes the ids of records and patients.
    replace
        Whether an output of another checkpoint, source, setting or code is replaced, or refused.

    Returns
    -------
    dict
        Name to manifest.

    Raises
    ------
    DataError
        If the rows do not add up to the records of the source.
    SettingsError
        If another output stands there, and is not to be replaced.
    """
    cards = {name: read_card(folder) for name, folder in checkpoints.items()}
    plans = {name: _decides(card, source, settings, hash_key) for name, card in cards.items()}
    units = {name: Units(out[name], fingerprint(plan)) for name, plan in plans.items()}
    earlier = None
    for name, own in units.items():
        standing = own.plan()
        if standing is not None and standing["key"] not in ("", own.key) and not replace:
            _refuse(own, standing, plans[name])
        if standing is not None and standing["key"] == own.key:
            earlier = _plan_rows(own)
    plan = source.plan(earlier, settings.records_per_unit, hash_key, replace)
    names = source.units(plan)
    content = fingerprint(names)
    manifests: dict[str, dict[str, Any]] = {}
    for name, own in units.items():
        standing = own.manifest()
        if standing and (standing["key"], standing.get("units")) == (own.key, content):
            manifests[name] = standing
    waiting = {name: own for name, own in units.items() if name not in manifests}
    progress = Progress("score", source.n_input * len(checkpoints), "rows")
    scored, seconds = 0, 0.0
    if waiting:
        for name, own in waiting.items():
            own.open((*FOLDERS, PLAN_ROWS, *SUMMARY), plans[name])
            own.out.remove(MANIFEST)  # records have come: what it said is no longer all
            if plan is not None:
                own.out.write(PLAN_ROWS, as_parquet(plan.table, compression="zstd"))
        of = {name: Path(checkpoints[name]).resolve() for name in waiting}
        worker = UnitScorer(source, of, waiting, settings, hash_key)
        done = source.n_input * len(manifests)
        scored, seconds = _run_units(worker, names, plan, progress, done)
    for own in units.values():
        # Finished ones, too: a killed job's last worker may have written after they were.
        own.remove_strays(FOLDERS, names)
    for name, own in waiting.items():
        totals = own.totals(names, source.n_input)
        manifests[name] = {
            "key": own.key,
            "stage": "score",
            "checkpoint_sha256": cards[name]["weights_sha256"],
            "architecture": cards[name]["architecture"],
            "task": cards[name]["task"]["name"],
            "source_key": source.key,
            "units": content,
            **plans[name],
            **totals,
            "seconds": round(seconds / len(waiting), 3),
            "n_scored": scored,
            "actors": _n_actors(settings),
            "versions": versions(),
        }
        own.out.write(MANIFEST, as_json(manifests[name]).encode())
    refused = sum(manifest["n_quarantined"] for manifest in manifests.values())
    progress.done(f"{refused} quarantined" if refused else "")
    return manifests


def _decides(
    card: Mapping[str, Any], source: Source, settings: ScoreSettings, hash_key: bytes | None
) -> dict[str, Any]:
    """Give all that decides the rows, but which records there are."""
    return {
        "checkpoint": identity(card),
        "source": source.key,
        "backend": settings.backend,
        "backend_file": _export_key(card, settings.backend),
        "batch_size": settings.batch_size,
        "threads": settings.threads,
        "device": "cuda" if settings.num_gpus else "cpu",
        "partition": settings.partition,
        # Tells keys apart, and nothing else of them.
        "hash_key": None if hash_key is None else hashed("rayecg", hash_key)[:16],
        "code": code_fingerprint(*ROOMS),
    }


def _export_key(card: Mapping[str, Any], backend: str) -> str | None:
    """Give the SHA-256 of the exported file that a back end runs, None if it runs none."""
    name = {"onnx": ONNX, "onnx_int8": ONNX_INT8}.get(backend)
    return card.get("exports", {}).get(name, {}).get("sha256") if name else None


def _refuse(units: Units, standing: Mapping[str, Any], plan: Mapping[str, Any]) -> None:
    names = [name for name, value in plan.items() if standing.get(name) != value]
    said = ", ".join(f"{name} {standing.get(name)} there and {plan[name]} here" for name in names)
    raise SettingsError(
        f"{units.out}: holds scores that were made otherwise ({said}); use another output folder, "
        "or --replace"
    )


def _plan_rows(units: Units) -> pa.Table | None:
    if not units.out.exists(PLAN_ROWS):
        return None
    return read_parquet(units.out.read(PLAN_ROWS))


def _run_units(
    worker: UnitScorer, names: list[str], plan: Plan | None, progress: Progress, done: int
) -> tuple[int, float]:
    """Have the units scored that are not finished.

    Returns
    -------
    tuple
        How many records these are, and the seconds since the first actor was ready.
    """
    import ray

    settings, source = worker.settings, worker.source
    finished = {name: own.finished() for name, own in worker.units.items()}
    waiting = [unit for unit in names if not all(unit in own for own in finished.values())]
    quarantined = 0
    entries = [
        own.entry(unit) for name, own in worker.units.items() for unit in set(names) - set(waiting)
    ]
    done += sum(entry["n_input"] for entry in entries)
    quarantined += sum(entry["n_quarantined"] for entry in entries)
    progress.update(done)
    if not waiting:
        return 0, 0.0
    scorer = ray.put(worker)
    actor = ray.remote(UnitActor)
    options = {
        "num_cpus": settings.num_cpus,
        "num_gpus": settings.num_gpus,
        "max_restarts": 0,
        "runtime_env": {"env_vars": KEEPS_MEMORY},
    }
    first = source.payload(waiting[0], plan)
    n_now = 0
    ready_at: list[float] = []
    results = run_on_actors(
        lambda: actor.options(**options).remote(scorer, first),
        waiting,
        lambda unit: source.payload(unit, plan),
        _n_actors(settings),
        lambda: ready_at.append(time.perf_counter()),
    )
    # A failure ends the actors here, not when the generator is collected: Ray may be gone by then.
    with closing(results):
        for result in raise_failures(results):
            n_now += result["n_input"]
            done += result["n_input"] * len(worker.units)
            quarantined += result["n_quarantined"]
            progress.update(done, f"{quarantined} quarantined" if quarantined else "")
    return n_now, time.perf_counter() - ready_at[0]


def _n_actors(settings: ScoreSettings) -> int:
    return settings.concurrency or max(int(cluster_cpus() / settings.num_cpus), 1)


class UnitActor:
    """A Ray actor that scores units; `first` is one that back ends are verified on."""

    def __init__(self, scorer: UnitScorer, first: dict[str, Any]) -> None:
        self.scorer, self.first = scorer, first

    @failure_as_row
    def ready(self) -> dict[str, Any]:
        """Load the checkpoints, and hold their back ends against the reference."""
        self.scorer.open(self.first)
        return {}

    @failure_as_row
    def work(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Score a unit."""
        return self.scorer(payload)


class UnitScorer:
    """Scores units.

    Parameters
    ----------
    source, checkpoints, settings, hash_key
        As for `score`.
    units
        Of each checkpoint: names the files and keeps the ledger.
    """

    def __init__(
        self,
        source: Source,
        checkpoints: Mapping[str, Path],
        units: Mapping[str, Units],
        settings: ScoreSettings,
        hash_key: bytes | None = None,
    ) -> None:
        self.source, self.checkpoints, self.units = source, checkpoints, units
        self.settings, self.hash_key = settings, hash_key
        self.predictors: dict[str, Predictor] = {}
        self.stamps: dict[str, Stamps] = {}

    def open(self, first: dict[str, Any]) -> None:
        """Load the checkpoints; back ends but the reference are verified on a unit's first records."""
        settings = self.settings
        torch.set_num_threads(settings.threads)
        device = "cuda" if settings.num_gpus else "cpu"
        for name, folder in self.checkpoints.items():
            predictor = Predictor(
                folder, settings.batch_size, device, settings.backend, settings.threads
            )
            if settings.backend != "eager":
                self._verify(predictor, folder, first)
            self.predictors[name] = predictor
            code = code_fingerprint(*ROOMS)
            self.stamps[name] = Stamps(identity(predictor.card), code, self.hash_key)

    def _verify(self, predictor: Predictor, folder: Path, first: dict[str, Any]) -> None:
        reference = open_backend(
            "eager", folder, predictor.model, self.settings.batch_size, predictor.device
        )
        for batch in self.source.batches(first):
            x_WLT, side_WM = predictor.prepare_batch(batch).windows(N_VERIFIED)
            if len(x_WLT):
                verify(predictor.backend, reference, x_WLT, side_WM, predictor.card)
                return

    def __call__(self, payload: dict[str, Any]) -> dict[str, Any]:
        """Score one unit with every checkpoint; returns its counts, quarantined rows of all."""
        if not self.predictors:
            self.open(payload)
        unit = payload["unit"]
        rows: dict[str, list[pa.Table]] = {name: [] for name in self.predictors}
        below: dict[str, list[pa.Table]] = {name: [] for name in self.predictors}
        counts: dict[str, Counter[str]] = {name: Counter() for name in self.predictors}
        n_rows = 0
        for batch in self.source.batches(payload):
            n_rows += len(batch)
            prepared: dict[tuple[InputSettings, str], Any] = {}
            for name, predictor in self.predictors.items():
                kind = (predictor.input, predictor.unit)
                if kind not in prepared:
                    prepared[kind] = predictor.prepare_batch(batch)
                prediction = predictor.answer(prepared[kind])
                counts[name].update(prediction.status)
                stamps = self.stamps[name]
                table = record_table(batch, prediction, stamps)
                rows[name].append(_with_column(table, batch, self.settings.partition))
                below[name].append(window_table(batch, prediction, stamps, predictor.unit))
        for name, units in self.units.items():
            if rows[name]:
                table = pa.concat_tables(rows[name])
                units.write("predictions", unit, table, self.settings.partition)
                windows = pa.concat_tables(below[name])
                if windows.num_rows:
                    units.write("windows", unit, windows)
            entry = {f"n_{status}": counts[name][status] for status in STATUSES}
            units.finish(unit, {"n_input": n_rows, **entry})
        refused = sum(own["quarantined"] for own in counts.values())
        return {"n_input": n_rows, "n_quarantined": refused}

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"predictors": {}, "stamps": {}}


def _with_column(table: pa.Table, batch: Batch, name: str | None) -> pa.Table:
    """Add what rows are parted by, if they have it not."""
    if name is None or name in table.column_names:
        return table
    return table.append_column(name, batch.index[name])
