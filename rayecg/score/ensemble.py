"""Ensembles: the mean of several runs' probabilities, kept in the files that a run has.

Every seed of an architecture, or every run of all architectures, of each fold. An ensemble has a
card without weights, an operating point of its own and predictions, so that report and audit read it
like a run.

Legend: M member, N example, C label.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayecg.core.errors import DataError
from rayecg.core.files import (
    MANIFEST,
    check_totals,
    fingerprint,
    finished,
    read_json,
    replacing_folder,
    write_json,
    write_table,
)
from rayecg.core.outputs import OperatingPoint, probabilities
from rayecg.core.predictions import STATUSES
from rayecg.core.progress import Progress
from rayecg.core.settings import to_tree
from rayecg.core.versions import code_fingerprint, versions
from rayecg.metrics.classification import evaluate
from rayecg.metrics.operating_point import choose_operating_point, mean_weights, settings_of
from rayecg.models.checkpoint import read_card, write_card
from rayecg.score.average import EXAMPLE, RECORD, Labels, averaged, targets_of, worst_of

#: Rooms whose code decides what an ensemble says.
ROOMS = ("core", "metrics", "score")


@dataclass(frozen=True)
class Places:
    """Where runs and ensembles have their folders, and who the examples are."""

    train: Path
    scores: Path
    examples: Path


@dataclass(frozen=True)
class Ensemble:
    """Whose probabilities are averaged.

    Attributes
    ----------
    name
        Of its folders; no run can have it, as those end with their seed.
    title
        Stands where a run has its architecture's; with its spaces no architecture can have it.
    fold
        Of all its members; None where there is one split.
    members
        Names of the runs.
    """

    name: str
    title: str
    fold: int | None
    members: tuple[str, ...]


def plan_ensembles(kinds: Sequence[str], reports: Sequence[Mapping[str, Any]]) -> list[Ensemble]:
    """List the ensembles of some runs, given by their reports (`run.json`), failed ones included.

    `kinds` is `Experiment.ensembles`. One run alone makes no ensemble of seeds, and one architecture
    alone none of architectures.
    """
    planned = []
    folds = list(dict.fromkeys(report["fold"] for report in reports))
    titles = list(dict.fromkeys(report["architecture"] for report in reports))
    groups = [[title] for title in titles] if "seeds" in kinds else []
    groups += [titles] if "architectures" in kinds and len(titles) > 1 else []
    for group in groups:
        name, title = ("", "all architectures") if len(group) > 1 else (f"{group[0]}-", group[0])
        for fold in folds:
            own = [r for r in reports if r["fold"] == fold and r["architecture"] in group]
            if len(own) > 1:
                planned.append(
                    Ensemble(
                        name=f"{name}{'' if fold is None else f'fold{fold}-'}ensemble",
                        title=f"{title} ensemble",
                        fold=fold,
                        members=tuple(r["run"] for r in own),
                    )
                )
    return planned


def make_ensembles(
    kinds: Sequence[str], reports: Sequence[Mapping[str, Any]], places: Places
) -> list[dict[str, Any]]:
    """Make the ensembles of scored runs that are not made yet.

    Each gets what a run has: `run.json`, `validation.parquet` and `checkpoint/card.json` below
    `places.train`, predictions and `manifest.json` below `places.scores`.

    Parameters
    ----------
    kinds, reports
        As for `plan_ensembles`.
    places
        The files of the runs.

    Returns
    -------
    list
        Each ensemble's report. One whose members did not all finish is `not made`; one whose members
        do not fit together is `failed`. Both say why.
    """
    planned = plan_ensembles(kinds, reports)
    if not planned:
        return []
    said_of = {report["run"]: report for report in reports}
    progress = Progress("ensemble", len(planned), "ensembles")
    found = []
    for i, ensemble in enumerate(planned):
        own = [said_of[run] for run in ensemble.members]
        lacking = [report["run"] for report in own if report["status"] != "ok"]
        if lacking:
            error = f"needs all its members, and {', '.join(lacking)} did not finish"
            report = _leave(ensemble, own, places, "not made", error)
        else:
            try:
                report = _made(ensemble, own, places)
            except DataError as error:
                report = _leave(ensemble, own, places, "failed", str(error))
        found.append(report)
        progress.update(i + 1, ensemble.name)
    n_without = sum(report["status"] != "ok" for report in found)
    progress.done(f"{n_without} not made" if n_without else "")
    return found


def _made(ensemble: Ensemble, own: Sequence[Mapping[str, Any]], places: Places) -> dict[str, Any]:
    """Give an ensemble's report; what it reports is made if it is not there."""
    cards = {run: read_card(places.train / run / "checkpoint") for run in ensemble.members}
    scored = [read_json(places.scores / run / MANIFEST) for run in ensemble.members]
    weights = {run: card["weights_sha256"] for run, card in cards.items()}
    key = fingerprint(
        [
            ensemble.title,
            weights,
            [report["key"] for report in own],
            [manifest["key"] for manifest in scored],
            code_fingerprint(*ROOMS),
        ]
    )
    folder = places.train / ensemble.name
    if (folder / "run.json").exists() and finished(places.scores / ensemble.name, key):
        report: dict[str, Any] = read_json(folder / "run.json")
        if report.get("key") == key:
            return report
    task = Labels.of(cards[ensemble.members[0]]["task"])
    files = {run: places.train / run / "validation.parquet" for run in ensemble.members}
    validation = averaged(files, EXAMPLE, task, alike=True)
    target_NC = targets_of(places.examples, ensemble.fold, validation.rows, task)
    points = [OperatingPoint.from_tree(card["operating_point"]) for card in cards.values()]
    settings, weights_C = settings_of(points), mean_weights(points)
    if settings.rule != "weighted_argmax":
        weights_C = None
    point = choose_operating_point(
        validation.logit_NC, target_NC, task.kind, "validation", settings, weights_C
    )
    probability_NC = probabilities(validation.logit_NC, task.kind)
    card = _card(ensemble, cards, weights, point)
    _score(ensemble, card, point, scored[0], key, places.scores)
    report = {
        **_report(ensemble, own),
        "members": weights,
        "n_parameters": card["n_parameters"],
        "validation": evaluate(target_NC, probability_NC, point.decide(probability_NC), task.names),
        "key": key,
    }
    # After the scores, for `run.json` is what says that an ensemble is there.
    with replacing_folder(folder) as beside:
        write_json(beside / "run.json", report)
        write_table(beside / "validation.parquet", validation.table(point, task))
        (beside / "checkpoint").mkdir()
        write_card(beside / "checkpoint", card)
    return report


def _leave(
    ensemble: Ensemble, own: Sequence[Mapping[str, Any]], places: Places, status: str, error: str
) -> dict[str, Any]:
    """Leave a report that says why there is no such ensemble, and nothing of an earlier one."""
    report = {**_report(ensemble, own), "status": status, "error": error}
    report["members"] = dict.fromkeys(ensemble.members)
    shutil.rmtree(places.scores / ensemble.name, ignore_errors=True)
    folder = places.train / ensemble.name
    if not (folder / "run.json").exists() or read_json(folder / "run.json") != report:
        with replacing_folder(folder) as beside:
            write_json(beside / "run.json", report)
    return report


def _report(ensemble: Ensemble, own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "run": ensemble.name,
        "architecture": ensemble.title,
        "task": own[0]["task"],
        "split": own[0]["split"],
        "fold": ensemble.fold,
        "seed": None,
        "status": "ok",
        "error": None,
    }


def _card(
    ensemble: Ensemble,
    cards: Mapping[str, Mapping[str, Any]],
    weights: Mapping[str, str],
    point: OperatingPoint,
) -> dict[str, Any]:
    """Make the card, which names the members where a checkpoint's has what its network is made of."""
    training = [card["training"] for card in cards.values()]
    return {
        "architecture": ensemble.title,
        "members": dict(weights),
        "n_parameters": sum(card["n_parameters"] for card in cards.values()),
        "task": cards[ensemble.members[0]]["task"],
        "operating_point": to_tree(point),
        "training": {
            "seed": None,
            "split": training[0]["split"],
            "fold": ensemble.fold,
            "selection": _said_of_all(training, "selection", ("metric", "split")),
            "class_weights": _said_of_all(training, "class_weights", ("split",)),
            **_pretraining(training),
            "shards_key": training[0]["shards_key"],
            "synthetic": any(each["synthetic"] for each in training),
        },
        "versions": versions(),
        # It has no weights of its own; this stands for its members'.
        "weights_sha256": hashlib.sha256("".join(weights.values()).encode()).hexdigest(),
    }


def _pretraining(training: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put together what the members were pretrained on; nothing if one of them does not say."""
    if any("pretraining" not in each for each in training):
        return {}
    stated = [each["pretraining"] for each in training if each["pretraining"] is not None]
    if not stated:
        return {"pretraining": None}
    lists = {
        name: [
            one if isinstance(one, list) else [one] for one in (s.get(name) for s in stated) if one
        ]
        for name in ("archives", "record_ids", "waveform_sha256", "manifest")
    }
    return {
        "pretraining": {
            name: sorted(set(itertools.chain(*own))) for name, own in lists.items() if own
        }
    }


def _said_of_all(
    training: Sequence[Mapping[str, Any]], name: str, parts: Sequence[str]
) -> dict[str, str] | None:
    """Put together what the members' cards say of one matter, so that no split goes unsaid."""
    said = [each[name] for each in training if each[name] is not None]
    return {part: ", ".join(sorted({s[part] for s in said})) for part in parts} if said else None


def _score(
    ensemble: Ensemble,
    card: Mapping[str, Any],
    point: OperatingPoint,
    scored: Mapping[str, Any],
    key: str,
    scores: Path,
) -> None:
    """Write the predictions: of records, and of windows where these are the examples."""
    task, members = Labels.of(card["task"]), ensemble.members
    records = averaged({run: scores / run / "predictions" for run in members}, RECORD, task, True)
    left = worst_of([scores / run / "predictions" for run in members], records.rows)
    statuses = left["status"].to_pylist()
    manifest = {
        "key": key,
        "stage": "score",
        "checkpoint_sha256": card["weights_sha256"],
        "architecture": card["architecture"],
        "members": card["members"],
        "task": card["task"]["name"],
        "source_key": scored["source_key"],
        "n_input": scored["n_input"],
        **{f"n_{status}": statuses.count(status) for status in STATUSES},
        "versions": versions(),
    }
    check_totals(manifest, ensemble.name)
    with replacing_folder(scores / ensemble.name) as beside:
        write_table(beside / "predictions" / "all.parquet", records.table(point, task, left))
        if task.unit == "beat":
            # A record that a member could not cut into beats has no rows of that member.
            files = {run: scores / run / "windows" for run in members}
            windows = averaged(files, EXAMPLE, task, alike=False)
            write_table(beside / "windows" / "all.parquet", windows.table(point, task))
        write_json(beside / MANIFEST, manifest)
