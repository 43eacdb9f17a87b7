"""Scores under other circumstances: the evidence that the audit's rule `batch-dependence` reads.

A sample of test windows is scored again by every checkpoint, in batches of other sizes, in another
order and beside other neighbours, and held against what the score stage wrote of the same windows.

Legend: W window, L lead, T time, M side column, C label.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.experiment import ScoreSettings
from rayecg.core.files import fingerprint, read_json, read_table, write_json
from rayecg.core.outputs import Kind, probabilities
from rayecg.core.predictions import stack_output
from rayecg.core.shard_format import (
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.core.versions import code_fingerprint
from rayecg.models.checkpoint import identity, read_card
from rayecg.models.predictor import Predictor
from rayecg.score.actors import open_predictor
from rayecg.score.run import ROOMS
from rayecg.score.sources import ShardSource
from rayecg.signal.prepare import Prepared

#: Draws the sample, its orders and the noise beside it.
SEED = 0
#: An odd size that no batch has by default, and another should it be the run's own.
ODD = (7, 5)
#: Of the noise that stands beside windows (mV): far above any recording, so that what is taken over
#: a batch would move with it.
NOISE_MV = 10.0


@dataclass(frozen=True)
class Sample:
    """Windows of test examples, as the score stage prepares them.

    `offset_W` is what `windows/` names them by; `single_W` says which are all that is read of their
    record, so that its row in `predictions/` is theirs.
    """

    record_W: tuple[str, ...]
    offset_W: np.ndarray
    single_W: np.ndarray
    items_W: tuple[Prepared, ...]

    def __len__(self) -> int:
        return len(self.record_W)


def batches_file(folder: Path, run: str) -> Path:
    """Name the file of a run."""
    return folder / f"{run}.json"


def probe_batches(
    checkpoints: Mapping[str, Path],
    source: ShardSource,
    scores: Mapping[str, Path],
    examples: Path,
    out: Path,
    settings: ScoreSettings,
    n_examples: int,
) -> None:
    """Score a sample of test windows again; what was done for the same checkpoints is kept.

    Parameters
    ----------
    checkpoints, scores
        Name to bundle folder, and to the finished output of `rayecg.score.run.score`.
    source
        The shards that were scored.
    examples
        `examples.parquet`.
    out
        Gets `<name>.json` for each checkpoint: the largest difference of logits and probabilities
        under each circumstance, and where.
    settings
        Of the scoring; the tasks take its CPUs and GPUs.
    n_examples
        How many test examples, of each fold, are drawn; as many windows are scored again.
    """
    import ray

    keys = {}
    for name, folder in checkpoints.items():
        parts = [identity(read_card(folder)), source.key, settings.batch_size, n_examples, SEED]
        keys[name] = fingerprint([*parts, code_fingerprint(*ROOMS)])
    waiting = [name for name in checkpoints if not _stands(batches_file(out, name), keys[name])]
    if not waiting:
        return
    table = read_table(examples).to_pandas()
    options = {"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus}
    prepare = ray.remote(num_cpus=settings.num_cpus)(prepare_sample)
    compare = ray.remote(**options)(compare_scores)
    shards = Path(source.folder.root)
    samples: dict[str, Any] = {}
    tasks = []
    for name in waiting:
        card = read_card(checkpoints[name])
        fold = card["training"]["fold"]
        kind = fingerprint([card["input"], card["task"]["unit"], fold])
        if kind not in samples:  # checkpoints that read the same share it
            wanted = draw_examples(table, fold, n_examples)
            samples[kind] = prepare.remote(shards, checkpoints[name], wanted, n_examples)
        place = checkpoints[name], samples[kind], scores[name], settings
        tasks.append(compare.remote(*place))
    for name, task in zip(waiting, tasks, strict=True):
        said = {"key": keys[name], "source_key": source.key, **ray.get(task)}
        write_json(batches_file(out, name), said)


def _stands(file: Path, key: str) -> bool:
    return file.exists() and read_json(file).get("key") == key


def draw_examples(
    examples: pd.DataFrame, fold: int | None, n_examples: int, split: str = "test"
) -> pd.DataFrame:
    """Draw examples of a fold's split: `record_id`, `offset`."""
    own = examples[examples["split"] == split]
    if fold is not None:
        own = own[own["fold"] == fold]
    chosen = np.random.default_rng(SEED).permutation(len(own))[:n_examples]
    return own.iloc[np.sort(chosen)][["record_id", "offset"]]


def prepare_sample(shards: Path, checkpoint: Path, wanted: pd.DataFrame, n_windows: int) -> Sample:
    """Prepare the windows of drawn examples, at most `n_windows` of them.

    A record that cannot be prepared has no window.
    """
    predictor = Predictor(checkpoint)
    records = set(wanted["record_id"])
    beats = {
        record_id: set(own["offset"].tolist()) for record_id, own in wanted.groupby("record_id")
    }
    found: list[tuple[str, int, bool, Prepared]] = []
    for file in shard_files(shards):
        for row, record in read_records(file, records):
            try:
                made = predictor.prepare(
                    record.physical, record.fs, record.leads, record.beat_times, row
                )
            except Exception:  # its row in `predictions/` says why
                continue
            record_id, single = row["record_id"], len(made.x_WLT) == 1
            for i, offset in enumerate(made.offset_W.tolist()):
                if predictor.unit == "record" or offset in beats[record_id]:
                    found.append((record_id, offset, single, _one(made, i)))
    kept = np.sort(np.random.default_rng(SEED).permutation(len(found))[:n_windows])
    rows = [found[i] for i in kept]
    return Sample(
        tuple(row[0] for row in rows),
        np.array([row[1] for row in rows], dtype=np.int64),
        np.array([row[2] for row in rows], dtype=bool) & (predictor.unit == "record"),
        tuple(row[3] for row in rows),
    )


def _one(made: Prepared, i: int) -> Prepared:
    own = slice(i, i + 1)
    return Prepared(made.x_WLT[own].copy(), made.offset_W[own], made.limits, made.side_WM[own])


def compare_scores(
    checkpoint: Path, sample: Sample, scores: Path, settings: ScoreSettings
) -> dict[str, Any]:
    """Score a sample under every circumstance, and compare with the score stage's files."""
    started = time.perf_counter()
    predictor = open_predictor(checkpoint, settings)
    stood_WC = standing_logits(scores, sample, predictor.labels)
    known_W = ~np.isnan(stood_WC).all(axis=1)
    kind = predictor.operating_point.kind
    circumstances = []
    for title, size, order, noise in _circumstances(len(sample), settings.batch_size):
        predictor.batch_size, error = size, None
        try:
            logit_WC = _scored(predictor, sample.items_W, order, noise)
        except Exception as found:  # a network that cannot do this batch has no scores in it
            logit_WC, error = np.full_like(stood_WC, np.nan), " ".join(str(found).split())
        said = _difference(sample, known_W, stood_WC, logit_WC, kind)
        circumstances.append({"name": title, "batch_size": size, **said, "error": error})
    return {
        "checkpoint_sha256": predictor.card["weights_sha256"],
        "batch_size": settings.batch_size,
        "device": settings.device,
        "n_windows": int(known_W.sum()),
        "n_records": len({r for r, known in zip(sample.record_W, known_W, strict=True) if known}),
        "circumstances": circumstances if known_W.any() else [],
        "record_ids": sorted(set(sample.record_W)),
        "seconds": round(time.perf_counter() - started, 3),
    }


def standing_logits(scores: Path, sample: Sample, labels: Sequence[str]) -> np.ndarray:
    """Give what the score stage wrote of the sample's windows, windows by labels; NaN for nothing."""
    stood_WC = np.full((len(sample), len(labels)), np.nan)
    row_of = {
        (record_id, -1 if single else offset): i
        for i, (record_id, offset, single) in enumerate(
            zip(sample.record_W, sample.offset_W.tolist(), sample.single_W.tolist(), strict=True)
        )
    }
    wanted = pa.array(sorted(set(sample.record_W)), pa.string())
    for folder in ("predictions", "windows"):
        if not any((scores / folder).glob("*.parquet")):
            continue
        table = read_table(scores / folder)
        table = table.filter(pc.is_in(table["record_id"], value_set=wanted))
        by_window = folder == "windows"
        offsets = table["offset"].to_pylist() if by_window else [-1] * table.num_rows
        logit_NC = stack_output(table, "logit", labels)
        for record_id, offset, logit_C in zip(
            table["record_id"].to_pylist(), offsets, logit_NC, strict=True
        ):
            i = row_of.get((record_id, offset))
            if i is not None:
                stood_WC[i] = logit_C
    return stood_WC


def _circumstances(n: int, batch_size: int) -> Iterator[tuple[str, int, np.ndarray, bool]]:
    """Yield title, batch size, order, and whether noise stands beside every window."""
    rng, straight = np.random.default_rng(SEED), np.arange(n)
    odd = next(size for size in ODD if size != batch_size)
    yield "one at a time", 1, straight, False
    yield f"{odd} at a time, in reverse", odd, straight[::-1], False
    yield "in another order", batch_size, rng.permutation(n), False
    yield "beside noise", batch_size, straight, True


def _scored(
    predictor: Predictor, items_W: Sequence[Prepared], order: np.ndarray, noise: bool
) -> np.ndarray:
    """Give the logits of the windows in their own order, windows by labels."""
    rng = np.random.default_rng(SEED)
    asked: list[Prepared] = []
    for i in order:
        item = items_W[i]
        asked.append(item)
        if noise:
            x_WLT = rng.normal(0, NOISE_MV, item.x_WLT.shape).astype(np.float32)
            side_WM = rng.normal(0, NOISE_MV, item.side_WM.shape).astype(np.float32)
            asked.append(Prepared(x_WLT, item.offset_W, item.limits, side_WM))
    # Of the back end itself: the predictor would go on without a window that the network refuses.
    answer_WC = predictor.backend.logits(
        np.concatenate([item.x_WLT for item in asked]),
        np.concatenate([item.side_WM for item in asked]),
    )[:: 2 if noise else 1]
    answer_WC[~np.isfinite(answer_WC).all(axis=1)] = np.nan
    logit_WC = np.empty_like(answer_WC)
    logit_WC[order] = answer_WC
    return logit_WC


def _difference(
    sample: Sample, known_W: np.ndarray, stood_WC: np.ndarray, logit_WC: np.ndarray, kind: Kind
) -> dict[str, Any]:
    """Say how far the scores of the windows that have one lie apart, and where most."""
    lost_W = known_W & np.isnan(logit_WC).any(axis=1)
    both_W = known_W & ~lost_W
    if not both_W.any():
        return {"logit": None, "probability": None, "n_lost": int(lost_W.sum())}
    was_WC, is_WC = (probabilities(values[both_W], kind) for values in (stood_WC, logit_WC))
    apart_W = np.abs(was_WC - is_WC).max(axis=1)
    worst = int(np.flatnonzero(both_W)[apart_W.argmax()])
    return {
        "logit": float(np.abs(stood_WC - logit_WC)[both_W].max()),
        "probability": float(apart_W.max()),
        "record_id": sample.record_W[worst],
        "offset": int(sample.offset_W[worst]),
        "n_lost": int(lost_W.sum()),
    }
