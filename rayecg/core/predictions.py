"""The tables that scoring writes: one row per input record, and one per window or beat.

`predictions/*.parquet` and `windows/*.parquet` share the columns of `label_fields`: per label
`logit_`, `probability_`, `calibrated_` (float64) and `decision_` (0/1), null where they do not
apply.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

#: What becomes of a record: an answer, a probability without a decision, or neither.
STATUSES = ("ok", "degraded", "quarantined")
OUTPUTS = ("logit", "probability", "calibrated", "decision")

RECORD_COLUMNS = [
    pa.field("record_id", pa.string(), nullable=False),
    pa.field("path", pa.string()),  # null where ids are hashed
    pa.field("patient_id", pa.string()),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error", pa.string()),
    pa.field("abstain", pa.bool_(), nullable=False),
    pa.field("limits", pa.list_(pa.string())),
    pa.field("flags", pa.list_(pa.string())),
    pa.field("leads", pa.list_(pa.string())),
    pa.field("fs", pa.float64()),
    pa.field("n_times", pa.int64()),
    pa.field("n_windows", pa.int32(), nullable=False),
    # Of one value each in a file, which Parquet stores once.
    pa.field("checkpoint", pa.string()),
    pa.field("code_version", pa.string()),
]

WINDOW_COLUMNS = [
    pa.field("record_id", pa.string(), nullable=False),
    pa.field("offset", pa.int64(), nullable=False),
]


def label_fields(labels: Sequence[str]) -> list[pa.Field]:
    """Give the output columns of a task's labels."""
    return [
        pa.field(f"{output}_{label}", pa.int8() if output == "decision" else pa.float64())
        for label in labels
        for output in OUTPUTS
    ]


def output_columns(
    labels: Sequence[str],
    logit_NC: np.ndarray,
    probability_NC: np.ndarray,
    calibrated_NC: np.ndarray,
    decision_NC: np.ndarray,
) -> list[pa.Array]:
    """Build the arrays of `label_fields`; NaN and a decision below 0 become null."""
    arrays = []
    for i in range(len(labels)):
        for values_NC in (logit_NC, probability_NC, calibrated_NC):
            values_N = np.ascontiguousarray(values_NC[:, i], dtype=np.float64)
            arrays.append(pa.array(values_N, mask=np.isnan(values_N)))
        decision_N = np.ascontiguousarray(decision_NC[:, i], dtype=np.int8)
        arrays.append(pa.array(decision_N, mask=decision_N < 0))
    return arrays


def stack_output(table: pa.Table, output: str, labels: Sequence[str]) -> np.ndarray:
    """Give one kind of output as an array, rows by labels; null is NaN."""
    columns = [
        table[f"{output}_{label}"].to_numpy(zero_copy_only=False).astype(np.float64)
        for label in labels
    ]
    return np.stack(columns, axis=1)
