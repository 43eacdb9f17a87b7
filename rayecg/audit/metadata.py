"""What stands in a record's row beside its signal, and how far it gives the labels away.

Legend: N example, C label, M column, R resample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from rayecg.core.errors import DataError
from rayecg.core.shard_format import SIGNAL, Layout, shard_files
from rayecg.metrics.classification import auroc
from rayecg.metrics.resamples import Resamples, label_values
from rayecg.signal.quality import FLAGS

#: What says how and where a record was made, which no finding of the heart explains.
DEVICE_LIKE = (
    "site",
    "device",
    "fs",
    "leads",
    "n_times",
    "gain",
    "baseline",
    "sample_type",
    "reading",
)
#: What is physiology as well: prevalence does depend on them.
PHYSIOLOGY = ("age", "sex")
#: Examples of a side that are used, at most.
MOST = 20_000
#: Values of a numeric column from which on it is cut into tenths.
MANY_VALUES = 20
#: A category with fewer training examples than this is put with the other rare ones.
LEAST_EXAMPLES = 10
N_RESAMPLES = 2000


def acquisition(shards: Path) -> pd.DataFrame:
    """Give the metadata of every record, one row each: ids, `DEVICE_LIKE` and `PHYSIOLOGY`.

    `reading` holds the flags of reading (derived leads, faulty headers) and not those of quality,
    which are measured on the signal.

    Raises
    ------
    DataError
        If a shard cannot be read.
    """
    names = [
        "record_id",
        "patient_id",
        "site",
        "device",
        "age",
        "sex",
        "gain",
        "baseline",
        "flags",
        "n_times",
    ]
    parts = []
    for file in shard_files(shards):
        try:
            table = pq.read_table(file, columns=names, partitioning=None)
            layout = Layout.from_field(pq.read_schema(file).field(SIGNAL))
        except (OSError, pa.ArrowInvalid, KeyError) as error:
            raise DataError(f"{file}: not a readable shard ({error})") from None
        rows = table.to_pandas()
        for name in ("gain", "baseline"):
            rows[name] = [" ".join(f"{value:g}" for value in values) for values in rows[name]]
        rows["reading"] = [
            " ".join(sorted(flag for flag in flags if flag.partition(":")[0] not in FLAGS))
            for flags in rows.pop("flags").map(lambda flags: () if flags is None else flags)
        ]
        rows["fs"], rows["sample_type"] = layout.fs, layout.dtype
        rows["leads"] = " ".join(layout.leads)
        parts.append(rows)
    rows = pd.concat(parts)
    first = rows.groupby("record_id", sort=False, as_index=False).first()
    # A record may be stored as several windows.
    first["n_times"] = rows.groupby("record_id", sort=False)["n_times"].sum().to_numpy()
    return first


@dataclass(frozen=True)
class LabelProbe:
    """How well metadata rank one label: AUROC on the evaluated side, its lower bound over patients."""

    label: str
    auroc: float
    low: float


def varying(rows: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    """Name the columns that are not the same in all rows."""
    return [name for name in columns if name in rows and rows[name].nunique(dropna=False) > 1]


def probe_labels(
    examples: pd.DataFrame, metadata: pd.DataFrame, columns: list[str], side: str
) -> list[LabelProbe]:
    """Fit the labels to metadata on training, and rank a side by it.

    A logistic regression on categories, numbers cut into tenths; nothing is tuned. The lower bounds
    hold for all labels together: each is the 5 % / (number of labels) quantile of 2,000 resamples of
    patients (Bonferroni).

    Parameters
    ----------
    examples
        `record_id, split` and targets.
    metadata
        Of every record: `record_id`, `patient_id` and the columns.
    columns
        Which to use.
    side
        Which side is ranked.

    Returns
    -------
    list
        One for each label that has both classes on both sides.
    """
    from sklearn.linear_model import LogisticRegression  # its import takes a second
    from sklearn.preprocessing import OneHotEncoder

    named = [name for name in examples if str(name).startswith("target_")]
    parts = []
    for split in ("train", side):
        own = examples.loc[examples["split"] == split, ["record_id", *named]]
        parts.append(own.sample(MOST, random_state=0) if len(own) > MOST else own)
    train, ranked = (part.merge(metadata, on="record_id", how="left") for part in parts)
    coded = [_categories(train, ranked, name) for name in columns]
    own_NM, side_NM = (np.stack([pair[i] for pair in coded], axis=1) for i in (0, 1))
    encoder = OneHotEncoder(
        handle_unknown="infrequent_if_exist", min_frequency=LEAST_EXAMPLES, sparse_output=True
    )
    x_NM, z_NM = encoder.fit_transform(own_NM), encoder.transform(side_NM)
    labels, scores, targets = [], [], []
    for name in named:
        y_N, t_N = train[name].to_numpy(), ranked[name].to_numpy()
        if min(len(np.unique(y_N)), len(np.unique(t_N))) < 2:
            continue
        model = LogisticRegression(max_iter=500).fit(x_NM, y_N)
        labels.append(str(name).removeprefix("target_"))
        scores.append(model.decision_function(z_NM))
        targets.append(t_N)
    if not labels:
        return []
    groups_N = ranked["patient_id"].fillna(ranked["record_id"]).to_numpy(dtype=str)
    targets_NC, scores_NC = np.stack(targets, axis=1), np.stack(scores, axis=1)
    resamples = Resamples.of(groups_N, N_RESAMPLES)
    values_RC = label_values("auroc", targets_NC, scores_NC, groups_N, resamples)
    low_C = np.nanquantile(values_RC, 0.05 / len(labels), axis=0)
    return [
        LabelProbe(label, float(auroc(targets_NC[:, c], scores_NC[:, c])), float(low_C[c]))
        for c, label in enumerate(labels)
    ]


def _categories(
    train: pd.DataFrame, side: pd.DataFrame, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Give a column of both sides as text; many numbers become tenths of the training side's."""
    own, other = train[name], side[name]
    if pd.api.types.is_numeric_dtype(own) and own.nunique() > MANY_VALUES:
        edges = np.unique(np.nanquantile(own.to_numpy(dtype=float), np.linspace(0.1, 0.9, 9)))
        own, other = (
            column.map(lambda v: "" if pd.isna(v) else str(np.searchsorted(edges, v)))
            for column in (own, other)
        )
    return _as_text(own), _as_text(other)


def _as_text(column: pd.Series) -> np.ndarray:
    return np.array(["" if pd.isna(value) else str(value) for value in column], dtype=object)


def determines(values: pd.Series, target: pd.Series) -> bool:
    """Say whether a column gives a label away: each of its values stands for one target alone.

    Where most values occur once (ids, measured numbers), it does if a threshold on it separates the
    targets. At least 20 known values, and ten of each target, count as evidence.
    """
    known = values.notna()
    values, target = values[known], target[known]
    counts = target.value_counts()
    if len(values) < 20 or len(counts) < 2 or counts.min() < 10:
        return False
    if values.nunique() <= len(values) / 5:
        return bool((target.groupby(values).nunique() == 1).all())
    if not pd.api.types.is_numeric_dtype(values):
        return False
    area = auroc(target.to_numpy(), values.to_numpy(dtype=float))
    return bool(area in (0.0, 1.0))
