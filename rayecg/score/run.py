"""Scoring: checkpoints x units of records, by Ray actors.

Every checkpoint reads the same prepared windows, so a unit is read and prepared once for all of them.
A unit's files are written whole, then its ledger entry; a killed job's next start skips the units
that have one and all its files. What decides a row's bits (back end, batch shape, threads) is fixed at the first start
and kept in `plan.json`, what belongs to a unit in `plan.parquet`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayecg.core.destination import Destination
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ScoreSettings
from rayecg.core.files import MANIFEST, as_json, fingerprint
from rayecg.core.hashing import hashed
from rayecg.core.progress import Progress
from rayecg.core.session import cluster_cpus, cluster_gpus
from rayecg.core.units import Units, failure_as_row, raise_failures
from rayecg.core.versions import code_fingerprint, versions
from rayecg.models.checkpoint import read_card
from rayecg.score.actors import actor_options, n_actors
from rayecg.score.careful import score_each
from rayecg.score.plan import Plan
from rayecg.score.pool import run_on_actors
from rayecg.score.sources import Source
from rayecg.score.unit import UnitScorer, checkpoint_facts

#: Rooms whose code decides what a score is.
ROOMS = ("archives", "core", "models", "score", "signal")
FOLDERS = ("predictions", "windows")
PLAN_ROWS = "plan.parquet"
SUMMARY = ("summary.json", "summary.md")
#: Marks a unit that workers died at, one after another.
CAREFUL = "careful"


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
    plans = {name: decides(card, source, settings, hash_key) for name, card in cards.items()}
    units = {name: Units(out[name], fingerprint(plan)) for name, plan in plans.items()}
    earlier = None
    for name, own in units.items():
        standing = own.plan()
        if standing is not None and standing["key"] == own.key:
            earlier = own.out.read(PLAN_ROWS) if own.out.exists(PLAN_ROWS) else None
        elif not replace:
            _refuse_to_replace(own, standing, plans[name])
    most = n_actors(settings, cluster_cpus(), cluster_gpus())
    plan = source.plan(earlier, settings.records_per_unit, most, hash_key, replace)
    names = source.units(plan)
    content = fingerprint(names)
    entries = {name: own.finished(FOLDERS) for name, own in units.items()}
    manifests: dict[str, dict[str, Any]] = {}
    for name, own in units.items():
        standing = own.manifest()
        whole = all(unit in entries[name] for unit in names)
        if whole and standing and (standing["key"], standing.get("units")) == (own.key, content):
            manifests[name] = standing
    waiting = {name: own for name, own in units.items() if name not in manifests}
    progress = Progress("score", source.n_input * len(checkpoints), "rows")
    done = source.n_input * len(manifests)
    for name, own in waiting.items():
        if not own.open((*FOLDERS, PLAN_ROWS, *SUMMARY), plans[name]):
            entries[name] = {}
        own.out.remove(MANIFEST)  # records have come: what it said is no longer all
        if plan is not None:
            own.out.write(PLAN_ROWS, plan.stored)
    of = {name: Path(checkpoints[name]).resolve() for name in waiting}
    worker = UnitScorer(source, of, waiting, plans, settings, hash_key)
    started = _run_units(worker, names, entries, plan, most, progress, done)
    for name, own in units.items():
        # Of finished ones, too: a killed job's last worker may have written after they were.
        totals = own.totals(FOLDERS, names, source.n_input)
        if name in manifests:
            continue
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
            "seconds": round(started.seconds / len(waiting), 3),
            "n_scored": started.n_records,
            "actors": started.n_actors,
            "versions": versions(),
        }
        own.out.write(MANIFEST, as_json(manifests[name]).encode())
    refused = sum(manifest["n_quarantined"] for manifest in manifests.values())
    progress.done(f"{refused} quarantined" if refused else "")
    return manifests


def decides(
    card: Mapping[str, Any], source: Source, settings: ScoreSettings, hash_key: bytes | None
) -> dict[str, Any]:
    """Give all that decides the rows, but which records there are."""
    return {
        **checkpoint_facts(card, settings),
        "source": source.key,
        "backend": settings.backend,
        "batch_size": settings.batch_size,
        "threads": settings.threads,
        "device": settings.device,
        "partition": settings.partition,
        # Tells keys apart, and nothing else of them.
        "hash_key": None if hash_key is None else hashed("", hash_key, "key")[:16],
        "code": code_fingerprint(*ROOMS),
        # Another version may add in another order.
        "runtime": versions()["onnxruntime" if settings.backend.startswith("onnx") else "torch"],
    }


def _refuse_to_replace(
    units: Units, standing: Mapping[str, Any] | None, plan: Mapping[str, Any]
) -> None:
    """Refuse an output that stands and was made otherwise.

    Raises
    ------
    SettingsError
        If one does.
    """
    if standing is None and units.manifest() is None:
        return
    if standing is not None and not standing["key"]:
        return  # its removal was under way
    if standing is None:
        said = "no plan.json says how"
    else:
        said = ", ".join(
            f"{name} {standing.get(name)} there and {value} here"
            for name, value in plan.items()
            if standing.get(name) != value
        )
    raise SettingsError(
        f"{units.out}: holds scores that were made otherwise ({said}); use another output folder, "
        "or --replace"
    )


@dataclass(frozen=True)
class _Start:
    """What one start of a job did: records, seconds since the first actor was ready, actors."""

    n_records: int = 0
    seconds: float = 0.0
    n_actors: int = 0


def _run_units(
    worker: UnitScorer,
    names: list[str],
    entries: Mapping[str, Mapping[str, Any]],
    plan: Plan | None,
    most: int,
    progress: Progress,
    done: int,
) -> _Start:
    """Have the units scored that are not finished; `entries` are those of each output that are."""
    import ray

    settings, source = worker.settings, worker.source
    own = [entries[name] for name in worker.units]
    waiting = [unit for unit in names if not all(unit in entry for entry in own)]
    left = set(waiting)
    kept = [entry[unit] for entry in own for unit in names if unit not in left]
    done += sum(entry["n_input"] for entry in kept)
    quarantined = sum(entry["n_quarantined"] for entry in kept)
    progress.update(done)
    if not waiting:
        return _Start()
    scorer = ray.put(worker)
    actor = ray.remote(UnitActor)
    options = actor_options(settings)
    first = source.payload(waiting[0], plan)
    n_now, most = 0, min(most, len(waiting))
    ready_at: list[float] = []
    results = run_on_actors(
        lambda: actor.options(**options).remote(scorer, first),
        waiting,
        lambda unit: source.payload(unit, plan),
        most,
        lambda: ready_at.append(time.perf_counter()),
        lambda: progress.update(
            done,
            f"no worker is ready yet; each waits for {settings.num_cpus:g} CPUs"
            + (f" and {settings.num_gpus:g} GPUs" if settings.num_gpus else ""),
        ),
        lambda unit: source.payload(unit, plan) | {CAREFUL: True},
    )
    # A failure ends the actors here, not when the generator is collected: Ray may be gone by then.
    with closing(results):
        for result in raise_failures(results):
            n_now += result["n_input"]
            done += result["n_input"] * len(worker.units)
            quarantined += result["n_quarantined"]
            progress.update(done, f"{quarantined} quarantined" if quarantined else "")
            for units in worker.units.values():
                units.out.check_held()
    return _Start(n_now, time.perf_counter() - ready_at[0], most)


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
        if not payload.get(CAREFUL):
            return self.scorer(payload)
        return self.scorer.write(payload["unit"], score_each(self.scorer, payload))
