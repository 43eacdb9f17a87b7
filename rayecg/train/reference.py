"""What a card says of the data behind its weights: figures, fingerprint, limits, and a reference.

The reference is what scoring compares a new archive with: the quality of the training records, and the
scores of the validation examples (those of training examples are surer than any new record's).

Legend: N example, C label.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayecg.core.files import MANIFEST, read_json
from rayecg.core.shard_format import SIGNAL, Layout, shard_files
from rayecg.core.storage import shown_path
from rayecg.metrics.bootstrap import Interval, bootstrap_interval
from rayecg.signal.prepare import MAX_INVALID
from rayecg.tasks.split import Examples, persons
from rayecg.tasks.task import target_matrix
from rayecg.train.resident import Windows
from rayecg.train.run import Run

#: Shares at which distributions are stated.
DECILES = np.arange(11) / 10
_COLUMNS = ("record_id", "waveform_sha256", "age", "sex", "flags", "offset", "n_times")
_MEASURED = ("invalid_fraction", "noise_mv")


def validation_metrics(
    run: Run,
    validation: Windows,
    rows_N: np.ndarray,
    target_NC: np.ndarray,
    probability_NC: np.ndarray,
    decision_NC: np.ndarray,
) -> dict[str, Any]:
    """Give the primary metric, and each label's AUROC (of a multiclass task F1), with intervals."""
    person_N = _persons(run, validation.examples)[rows_N]
    decided = run.task.kind == "multiclass"
    by_label, of_label = ("f1", decision_NC) if decided else ("auroc", probability_NC)
    primary = run.task.primary_metric
    of_all = decision_NC if primary in ("macro_f1", "accuracy") else probability_NC
    first = bootstrap_interval(primary, target_NC, of_all, person_N)
    labels = {
        label: _interval(bootstrap_interval(by_label, target_NC[:, c], of_label[:, c], person_N))
        for c, label in enumerate(run.task.label_names)
    }
    return {
        "split": "validation",
        "note": "the best epoch and the thresholds were chosen on these examples: other patients' "
        "figures are lower as a rule",
        "n_examples": len(target_NC),
        "n_patients": first.n_groups,
        "interval": f"{first.level:g}, over patients, {first.n_resamples} resamples",
        "primary": {"metric": primary, **_interval(first)},
        "label_metric": by_label,
        "labels": labels,
    }


def _interval(found: Interval) -> dict[str, Any]:
    # Without an end where no resample differs, as that tells nothing.
    low, high = (found.low, found.high) if found.high > found.low else (math.nan, math.nan)
    ends = {"point": _short(found.point), "low": _short(low), "high": _short(high)}
    return ends | ({"warning": found.warning} if found.warning else {})


def training_records(train: Windows) -> pd.DataFrame | None:
    """Read what the shards say of the records that train, without their samples.

    Returns
    -------
    pd.DataFrame or None
        A row a record, by id: `waveform_sha256`, `age`, `sex`, `flags` (names, without leads), `leads`,
        `fs` in Hz, `seconds`, and the means over leads of `invalid_fraction` and `noise_mv`. None
        where the shards are not at hand: windows that are built already train without them.
    """
    if train.shards is None or not (train.shards / MANIFEST).exists():
        return None
    used = set(_used(train)["record_id"].to_pylist())
    rows: dict[str, dict[str, Any]] = {}
    for file in shard_files(train.shards):
        layout = Layout.from_field(pq.read_schema(file).field(SIGNAL))
        table = pq.read_table(file, columns=[*_COLUMNS, *_MEASURED], partitioning=None)
        for row in table.to_pylist():
            if row["record_id"] not in used:
                continue
            seconds = row.pop("n_times") / layout.fs
            if row.pop("offset"):  # a further window of a long record
                rows[row["record_id"]]["seconds"] += seconds
                continue
            row |= {name: _mean(row[name]) for name in _MEASURED}
            row["flags"] = sorted({flag.partition(":")[0] for flag in row["flags"] or ()})
            row |= {"leads": " ".join(layout.leads), "fs": layout.fs, "seconds": seconds}
            rows[row["record_id"]] = row
    return pd.DataFrame([rows[record_id] for record_id in sorted(rows)]) if rows else None


def training_data(run: Run, train: Windows, records: pd.DataFrame | None) -> dict[str, Any]:
    """Count the training data, and give their fingerprints.

    `records_sha256` is of the sorted lines `record_id waveform_sha256`, `examples_sha256` is
    `examples_digest` of the whole split: also of what the counts leave out, as it has no window.
    """
    own, every = _used(train), train.examples
    ids, offsets = (every[name].to_pylist() for name in ("record_id", "offset"))
    found = {
        "n_records": len(set(own["record_id"].to_pylist())),
        "n_patients": len(np.unique(_persons(run, own))),
        "n_examples": own.num_rows,
        "examples_sha256": examples_digest(ids, offsets, target_matrix(run.task, every)),
    }
    if records is not None:
        waveforms = zip(records["record_id"], records["waveform_sha256"], strict=True)
        found["records_sha256"] = _digest(" ".join(pair) for pair in waveforms)
    return found


def examples_digest(
    record_ids: Iterable[str], offsets: Iterable[int], target_NC: np.ndarray
) -> str:
    """Give the SHA-256 of the sorted lines `record_id offset targets` of examples.

    Targets are 0 and 1 in the order of the labels.
    """
    targets = ("".join(map(str, row)) for row in target_NC.astype(int).tolist())
    rows = zip(record_ids, offsets, targets, strict=True)
    return _digest(" ".join(map(str, row)) for row in rows)


def limits(run: Run, train: Windows, records: pd.DataFrame | None) -> dict[str, Any]:
    """Say what scoring holds a record to, whom the training records are of, and what for."""
    own, beats = run.input, run.task.unit == "beat"
    enforced = {
        "leads": list(own.leads),
        "absent_leads": own.absent_leads,
        "least_fs": own.fs,  # Hz; below it `up_sampled`
        "least_seconds": None if beats else own.duration_s,
        "largest_invalid_share": MAX_INVALID,
        "beats": own.beats if beats else None,
    }
    trained_on: dict[str, Any] = {"synthetic": run.synthetic}
    if train.shards is not None and records is not None:
        archive = read_json(train.shards / MANIFEST)["archive"]
        name = shown_path(archive["path"]) if archive.get("path") else None
        sexes = records["sex"].fillna("not stated").value_counts()
        age_N = records["age"].to_numpy(dtype=float)
        trained_on |= {
            "archive": {"kind": archive["kind"], "name": name},
            "n_patients": len(np.unique(_persons(run, _used(train)))),
            "sexes": {str(sex): int(n) for sex, n in sexes.items()},
            "ages": {"n_stated": int(np.isfinite(age_N).sum()), "deciles": _deciles(age_N)},
        }
    where = "synthetic recordings" if run.synthetic else "one archive"
    return {
        "enforced": enforced,
        "trained_on": trained_on,
        "not_tested_on": "other archives, devices and hospitals; patients unlike those of "
        "`trained_on`; records that break what is enforced get no decision",
        "intended_use": "research and benchmarking; not a medical device, and no basis for a "
        f"patient's care. Trained on {where}"
        + (": says nothing of patients." if run.synthetic else "."),
    }


def quality_reference(records: pd.DataFrame) -> dict[str, Any]:
    """Describe the quality of the training records: shares of flags, layouts, lengths, noise."""
    n = len(records)
    flags = Counter(flag for own in records["flags"] for flag in own)
    leads, rates = records["leads"].value_counts(), records["fs"].value_counts().sort_index()
    return {
        "split": "train",
        "n_records": n,
        # Shards that were made without measuring have no flags; that is not good quality.
        "measured": bool(records["invalid_fraction"].notna().any()),
        "any_flag": _short(records["flags"].map(bool).mean()),
        "flags": {flag: _short(count / n) for flag, count in sorted(flags.items())},
        "leads": {str(names): int(count) for names, count in leads.items()},
        "fs": {f"{rate:g}": int(count) for rate, count in rates.items()},
        "seconds_deciles": _deciles(records["seconds"]),
        "invalid_fraction_mean": _short(records["invalid_fraction"].mean()),
        "noise_mv_deciles": _deciles(records["noise_mv"]),
    }


def score_reference(
    labels: Iterable[str],
    target_NC: np.ndarray,
    probability_NC: np.ndarray,
    calibrated_NC: np.ndarray,
    decision_NC: np.ndarray,
) -> dict[str, Any]:
    """Describe the scores of the validation examples.

    Of each label: `edges`, the distinct inner deciles of its probability, and `shares`, what part of the
    examples lies up to the first edge, above it and up to the second, and so on; these are not all a
    tenth where probabilities are tied. `positive` is the share of positive decisions.
    """
    found = {}
    for c, label in enumerate(labels):
        # Rounded before they are counted by, so that the shares are those of the edges as written.
        edges = sorted({_round(e) for e in np.quantile(probability_NC[:, c], DECILES[1:-1])})
        place_N = np.searchsorted(edges, probability_NC[:, c], side="left")
        shares = np.bincount(place_N, minlength=len(edges) + 1) / len(place_N)
        found[label] = {
            "edges": edges,
            "shares": [_round(share) for share in shares],
            "calibrated_mean": _short(calibrated_NC[:, c].mean()),
            "positive": _short((decision_NC[:, c] == 1).mean()),
            "prevalence": _short(target_NC[:, c].mean()),
        }
    return {"split": "validation", "n_examples": len(target_NC), "labels": found}


def _used(train: Windows) -> pa.Table:
    """Give the examples that have a window."""
    return train.examples.take(pa.array(np.unique(train.example_W)))


def _persons(run: Run, examples: pa.Table) -> np.ndarray:
    every = np.arange(examples.num_rows)
    targets = target_matrix(run.task, examples)
    return persons(Examples(examples, every, every, targets, every >= 0, run.task.aliases))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _mean(values: list[float] | None) -> float:
    known = [value for value in values or () if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _deciles(values: Any) -> list[float] | None:
    values = np.asarray(values, dtype=float)
    known = values[np.isfinite(values)]
    return [_round(value) for value in np.quantile(known, DECILES)] if len(known) else None


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def _short(value: float) -> float | None:
    """Give six digits; None for what is not defined, which JSON has no number for."""
    return _round(value) if math.isfinite(value) else None
