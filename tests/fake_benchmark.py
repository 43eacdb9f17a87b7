"""The files of a finished benchmark without its Ray and training: small, invented, true to schema.

Two kinds: `recordings` (PTB-XL's superclasses on twelve leads) and `beats` (MIT-BIH's AAMI classes).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayecg.core.experiment import STANDARD_LEADS, TaskSettings
from rayecg.core.files import read_json, read_table, write_json, write_table, write_text
from rayecg.core.outputs import OperatingPoint, Temperature, probabilities
from rayecg.core.predictions import RECORD_COLUMNS, WINDOW_COLUMNS, label_fields, output_columns
from rayecg.core.record import Record
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import QUARANTINE_SCHEMA, SIGNAL, Layout, index_table, shard_batch
from rayecg.core.units import unit_suffix
from rayecg.metrics.classification import evaluate
from rayecg.models.checkpoint import CARD, write_card
from rayecg.report.published import publish_intervals
from rayecg.report.results import Results
from rayecg.tasks.permute import permuted_examples
from rayecg.tasks.task import Task, example_table, load_task, target_matrix

RUNS = {"wide-seed0": ("wide", 0), "wide-seed1": ("wide", 1), "deep-seed0": ("deep", 0)}
FAILED = "broken-seed0"
PERMUTED = "wide-seed0-permuted"
#: Ensembles of them: of one's seeds, and of all.
BOTH, SEEDS, EVERYONE = ("seeds", "architectures"), "wide-ensemble", "ensemble"
EVIL = "<script>alert('x')</script> in /home/somebody/private/place/loop.py, line 3"
#: Of the test split, in `recordings`: one is quarantined by scoring, one degraded.
KEY = "0123456789abcdef"
LOST, DEGRADED = "r019", "r039"


def write_benchmark(out: Path, kind: str = "recordings", synthetic: bool = True) -> Path:
    """Write a benchmark that violates no rule but those that the data's nature violates."""
    work = out / "work"
    task = load_task(
        TaskSettings("mitbih_aami5" if kind == "beats" else "ptbxl_superdiagnostic"), None
    )
    rows, records = _beat_records() if kind == "beats" else _recordings()
    batch = shard_batch(index_table(rows), records, Layout.of(records[0]))
    table = pa.Table.from_batches([batch])
    half = len(rows) // 2
    for i, part in enumerate((table.slice(0, half), table.slice(half))):
        write_table(work / "shards" / "records" / f"{i:06d}{unit_suffix(KEY)}", part)
    bad = {"record_id": "r900", "path": "r900", "error_code": "bad_header"}
    bad |= {"error": "/mnt/archive/r900.hea: not a header"}
    write_table(
        work / "shards" / "quarantine.parquet", pa.Table.from_pylist([bad], QUARANTINE_SCHEMA)
    )
    n = len(rows)
    official = (
        {"by": "record_id"} | {s: list(getattr(task.split, s)) for s in ("train", "test")}
        if kind == "beats"
        else {"by": "strat_fold", "train": list(range(1, 9)), "test": [10]}
    )
    official["validation"] = list(task.split.validation)
    write_json(
        work / "shards" / "manifest.json",
        {
            "key": KEY,
            "stage": "shards",
            "archive": {"kind": "synthetic", "path": "/mnt/archive/my-archive"},
            "synthetic": synthetic,
            "official_split": official,
            **{"n_input": n + 1, "n_ok": n, "n_degraded": 0, "n_quarantined": 1},
            "versions": {"python": "3.11.0", "numpy": "2.0.0"},
        },
    )
    tree = to_tree(task)
    write_json(work / "task.json", tree)
    write_table(work / "examples.parquet", example_table(task, table.drop_columns([SIGNAL])))
    write_json(work / "search" / KEY / "read.json", {"record_ids": []})
    write_text(
        out / "experiment.yaml",
        "title: A fake & its <b>title</b>\narchive: {kind: synthetic, path: my-archive}\n"
        "architectures: [{name: wide}, {name: deep}, {name: broken}]\nseeds: [0]\n"
        "input: {leads: [MLII], duration_s: 1.0}\n",
    )
    for run, (architecture, seed) in RUNS.items():
        _write_run(work, task, run, architecture, seed, synthetic)
    _write_json_run(work, task, FAILED, "broken", 0, status="failed", error=EVIL)
    write_json(work / "runs.json", [*RUNS, FAILED])
    _write_probes(work, task, synthetic)
    write_json(out / "ledger.json", [_look(work, run) for run in RUNS])
    publish_intervals(Results(out, out / "findings.json"), out)
    return out


def _look(work: Path, run: str) -> dict[str, Any]:
    card = read_json(work / "train" / run / "checkpoint" / "card.json")
    return {
        "run": run,
        "checkpoint_sha256": card["weights_sha256"],
        "task": card["task"]["name"],
        "task_version": card["task"]["version"],
        "shards_key": KEY,
        "split": "test",
        "fold": None,
        "evaluation": "the only one",
    }


def _recordings() -> tuple[list[dict[str, Any]], list[Record]]:
    """Sixty recordings of thirty patients, six in each fold, every tenth without a label."""
    codes = ["NORM", "IMI", "NDT", "CRBBB", "LVH"]
    rows, records = [], []
    for i in range(60):
        fold = i % 20 // 2 + 1
        own = [codes[(i + i // 20) % 5]] + ([codes[(i // 20 + 2) % 5]] if i % 7 == 0 else [])
        rows.append(
            {
                "record_id": f"r{i:03d}",
                "path": f"records/r{i:03d}",
                "patient_id": f"p{i % 20}",
                "strat_fold": fold,
                "codes": [] if i == 1 else sorted(set(own)),
                "likelihoods": [] if i == 1 else [100.0] * len(set(own)),
                "status": "ok",
            }
        )
        records.append(_record(i, STANDARD_LEADS, 100.0, 1000))
    return rows, records


def _beat_records() -> tuple[list[dict[str, Any]], list[Record]]:
    rows, records = [], []
    for i, name in enumerate(["101", "106", "108", "114", "118", "100", "103", "105", "102"]):
        times = np.arange(200, 7000, 300)
        times += np.random.default_rng(i).integers(-60, 61, len(times))
        symbols = [("N", "A", "V", "N")[(k + i) % 4] for k in range(len(times))]
        if name != "105":
            symbols[3] = "F"
        rows.append({"record_id": name, "path": name, "patient_id": name, "status": "ok"})
        records.append(_record(i, ("MLII", "V1"), 360.0, 7200, times, tuple(symbols)))
    return rows, records


def _record(
    seed: int,
    leads: tuple[str, ...],
    fs: float,
    n_times: int,
    beat_times: np.ndarray | None = None,
    beat_symbols: tuple[str, ...] | None = None,
) -> Record:
    noise = np.random.default_rng(seed).normal(0, 40, (len(leads), n_times))
    # Beats at times and of shapes of their own, so that no two recordings look alike.
    rng = np.random.default_rng(1000 + seed)
    peaks = np.cumsum(rng.uniform(0.6, 1.0, 40)) * fs if beat_times is None else beat_times
    away = np.abs(np.arange(n_times)[:, None] - peaks).min(axis=1) / fs
    size = rng.uniform(400, 1200, (len(leads), 1)) * rng.choice([-1, 1], (len(leads), 1))
    wave = size * np.exp(-((away / rng.uniform(0.015, 0.04)) ** 2))
    return Record(
        digital_LT=(noise + wave).astype(np.int16),
        gain_L=np.full(len(leads), 1000.0),
        baseline_L=np.zeros(len(leads), dtype=np.int64),
        fs=fs,
        leads=leads,
        beat_times=beat_times,
        beat_symbols=beat_symbols,
    )


def _outputs(task: Task, examples: pa.Table, seed: int) -> tuple[np.ndarray, OperatingPoint]:
    target_NC = target_matrix(task, examples)
    noise = np.random.default_rng(seed + 100).normal(0, 1.2, target_NC.shape)
    n_validation = int((np.array(examples["split"].to_pylist()) == "validation").sum())
    many = task.kind == "multilabel"
    point = OperatingPoint(
        kind=task.kind,
        calibrator=Temperature("validation", n_validation, 1.5),
        thresholds_C=(0.5,) * target_NC.shape[1] if many else (),
        rule="max_f1" if many else "argmax",
        split="validation",
        n_examples=n_validation,
    )
    return 2.0 * target_NC - 1 + noise, point


def _arrays(task: Task, logit_NC: np.ndarray, point: OperatingPoint, kept: np.ndarray) -> list[Any]:
    """Give the output columns; a row that is not `kept` has probabilities and no decision."""
    probability_NC = probabilities(logit_NC, task.kind)
    decision_NC = np.where(kept[:, None], point.decide(probability_NC), -1)
    calibrated_NC = point.calibrate(logit_NC)
    return output_columns(task.label_names, logit_NC, probability_NC, calibrated_NC, decision_NC)


def _write_run(
    work: Path, task: Task, run: str, architecture: str, seed: int, synthetic: bool
) -> None:
    labels, folder = task.label_names, work / "train" / run
    examples = read_table(work / "examples.parquet")
    logit_NC, point = _outputs(task, examples, seed + 10 * len(architecture))
    everything = np.ones(len(logit_NC), dtype=bool)
    fields = label_fields(labels)
    windows = pa.Table.from_arrays(
        [
            *(examples[name].combine_chunks() for name in ("record_id", "offset")),
            *_arrays(task, logit_NC, point, everything),
        ],
        schema=pa.schema([*WINDOW_COLUMNS, *fields]),
    )
    chosen = np.array(examples["split"].to_pylist()) == "validation"
    write_table(folder / "validation.parquet", windows.filter(pa.array(chosen)))
    lines = [f"{e},{0.7 - e / 10},0.001,{0.6 + e / 10},{0.65 - e / 20},1000" for e in range(3)]
    header = f"epoch,loss,learning_rate,validation_{task.primary_metric},validation_loss,"
    write_text(folder / "curves.csv", "\n".join([f"{header}examples_per_s", *lines]) + "\n")
    write_card(folder / "checkpoint", _card(task, point, architecture, seed, synthetic))
    probability_NC = probabilities(logit_NC[chosen], task.kind)
    found = evaluate(
        target_matrix(task, examples)[chosen], probability_NC, point.decide(probability_NC), labels
    )
    _write_json_run(work, task, run, architecture, seed, validation=found)
    weights = f"{architecture}{seed}"
    _write_scores(work / "score" / run, task, examples, logit_NC, point, windows, weights)


def _write_probes(work: Path, task: Task, synthetic: bool) -> None:
    """Write what runs leave for the audit alone: scores in other batches, a run on permuted labels."""
    for run, (architecture, seed) in RUNS.items():
        found = {"probability": 1e-8, "record_id": "r018", "offset": 0, "n_lost": 0}
        said = {"checkpoint_sha256": f"{architecture}{seed}", "source_key": KEY, "device": "cpu"}
        said |= {"batch_size": 64, "circumstances": [{"name": "alone", "batch_size": 1, **found}]}
        write_json(work / "audit" / "batches" / f"{run}.json", said)
    place = work / "audit" / "permuted"
    write_json(place / "plan.json", {"runs": [PERMUTED], "error": None})
    examples = read_table(work / "examples.parquet")
    write_table(place / "examples.parquet", permuted_examples(examples))
    _write_json_run(place, task, PERMUTED, "wide", 0)
    _, point = _outputs(task, examples, 0)
    card = {**_card(task, point, "wide", 0, synthetic), "weights_sha256": PERMUTED}
    write_card(place / "train" / PERMUTED / "checkpoint", card)
    chance_NC = np.zeros((examples.num_rows, len(task.labels)))  # all alike: an AUROC of 0.5
    columns = _arrays(task, chance_NC, point, np.ones(len(chance_NC), dtype=bool))
    keys = [examples[name].combine_chunks() for name in ("record_id", "offset")]
    schema = pa.schema([*WINDOW_COLUMNS, *label_fields(task.label_names)])
    windows = pa.Table.from_arrays([*keys, *columns], schema=schema)
    scores = place / "score" / PERMUTED
    _write_scores(scores, task, examples, chance_NC, point, windows, PERMUTED)


def _card(
    task: Task, point: OperatingPoint, architecture: str, seed: int, synthetic: bool
) -> dict[str, Any]:
    return {
        "architecture": architecture,
        "n_parameters": 1234,
        "task": {
            **{name: getattr(task, name) for name in ("name", "version", "kind", "unit")},
            "labels": list(task.label_names),
        },
        "input": {"leads": ["MLII"] if task.unit == "beat" else list(STANDARD_LEADS)},
        "operating_point": to_tree(point),
        "training": {
            "seed": seed,
            "split": task.split.name,
            "fold": None,
            "shards_key": KEY,
            "selection": {"metric": task.primary_metric, "split": "validation"},
            "class_weights": {"split": "train", "values": [1.0] * len(task.label_names)},
            "pretraining": None,
            "synthetic": synthetic,
        },
        "versions": {"python": "3.11.0", "torch": "2.6.0"},
        "weights_sha256": f"{architecture}{seed}",
    }


def _write_json_run(
    work: Path,
    task: Task,
    run: str,
    architecture: str,
    seed: int,
    status: str = "ok",
    error: str | None = None,
    validation: Mapping[str, float] | None = None,
) -> None:
    said: dict[str, Any] = {
        "run": run,
        "architecture": architecture,
        "task": task.name,
        "split": task.split.name,
        "fold": None,
        "seed": seed,
        "status": status,
        "error": error,
    }
    if validation is not None:
        said |= {"n_parameters": 1234, "epochs": 3, "best_epoch": 2, "validation": dict(validation)}
        said |= {"seconds": 12.5, "examples_per_s": 1000.0}
    write_json(work / "train" / run / "run.json", {**said, "key": "k"})


def _write_scores(
    folder: Path,
    task: Task,
    examples: pa.Table,
    logit_NC: np.ndarray,
    point: OperatingPoint,
    windows: pa.Table,
    weights: str,
) -> None:
    fields = label_fields(task.label_names)
    ids = list(dict.fromkeys(examples["record_id"].to_pylist()))
    status = {i: "quarantined" if i == LOST else "degraded" if i == DEGRADED else "ok" for i in ids}
    if task.unit == "beat":
        write_table(folder / "windows" / "0.parquet", windows)
        # A record's own decision means nothing where beats are decided on.
        logit_NC = np.zeros((len(ids), len(task.labels)))
        kept = np.zeros(len(ids), dtype=bool)
    else:
        kept = np.array([status[i] == "ok" for i in ids])
        logit_NC = np.where(np.array([i == LOST for i in ids])[:, None], np.nan, logit_NC)
    left = pa.Table.from_pylist(
        [
            {"record_id": i, "path": i, "status": status[i], "abstain": status[i] != "ok"}
            | {"n_windows": 1, "error_code": "not_finite" if i == LOST else None}
            for i in ids
        ],
        schema=pa.schema(RECORD_COLUMNS),
    )
    columns = _arrays(task, logit_NC, point, kept)
    schema = pa.schema([*RECORD_COLUMNS, *fields])
    table = pa.Table.from_arrays([*left.columns, *columns], schema=schema)
    write_table(folder / "predictions" / "0.parquet", table.slice(0, 20))
    write_table(folder / "predictions" / "1.parquet", table.slice(20))
    counts = {f"n_{s}": list(status.values()).count(s) for s in ("ok", "degraded", "quarantined")}
    made_of = {"key": weights, "checkpoint_sha256": weights, "source_key": KEY}
    write_json(folder / "manifest.json", {**made_of, "n_input": len(ids), **counts, "seconds": 1.0})


def add_ensembles(
    out: Path, kinds: tuple[str, ...] = BOTH, runs: tuple[str, ...] = tuple(RUNS)
) -> list[dict[str, Any]]:
    """Make ensembles of runs, and list them among these as the pipeline does; gives their reports."""
    from rayecg.score.ensemble import Places, make_ensembles

    work = out / "work"
    reports = [read_json(work / "train" / run / "run.json") for run in runs]
    places = Places(work / "train", work / "score", work / "examples.parquet")
    found = make_ensembles(kinds, reports, places)
    write_json(work / "runs.json", [*runs, *(report["run"] for report in found)])
    return found


def edit_json(file: Path, edit: Callable[[Any], None]) -> None:
    """Change a JSON file in place; a checkpoint's card is signed anew."""
    tree = read_json(file, object)
    edit(tree)
    if file.name == CARD:
        write_card(file.parent, tree)
    else:
        write_text(file, json.dumps(tree))


def edit_table(file: Path, edit: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """Change a Parquet file, its schema kept."""
    table = pq.read_table(file)
    changed = edit(table.to_pandas())
    pq.write_table(pa.Table.from_pandas(changed, table.schema, preserve_index=False), file)


def card_of(out: Path, run: str) -> Path:
    """Give the card of a run's checkpoint."""
    return out / "work" / "train" / run / "checkpoint" / "card.json"
