"""How fast patients are resampled: `bootstrap_interval` against a loop over `roc_auc_score`.

    python benchmarks/bootstrap.py [--json] [--loop 20]

Macro AUROC of 71 labels on 2,203 records of 1,900 patients, 2,000 resamples of patients. The labels'
shares fall from a half to three records, as diagnostic statements do; scores are drawn, without ties.
The loop writes out the records of a resample and calls scikit-learn for each label with positives and
negatives; as it takes minutes, only the first `--loop` resamples are timed and scaled to all, in turns
with ours. On those both are compared: the largest difference is printed, and above 1e-9 an error.

The ratio is the loop's time over ours, the median over the turns; the same of processor time, which a
machine with more to do than this disturbs less, is `ratio_of_cpu_time`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from printing import print_rows
from sklearn.metrics import roc_auc_score

from rayecg.metrics import bootstrap_interval
from rayecg.metrics.bootstrap import mean_of_known
from rayecg.metrics.resamples import Resamples, label_values

N_RECORDS, N_LABELS, N_PATIENTS, N_RESAMPLES = 2203, 71, 1900, 2000
TURNS = 5


def records() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw targets (N, C), scores (N, C) and patients (N,)."""
    rng = np.random.default_rng(0)
    n_positive_C = np.geomspace(N_RECORDS / 2, 3, N_LABELS).astype(int)
    rank_NC = rng.random((N_RECORDS, N_LABELS)).argsort(axis=0)
    targets_NC = rank_NC < n_positive_C
    scores_NC = rng.normal(size=targets_NC.shape) + 1.5 * targets_NC
    return targets_NC, scores_NC, rng.integers(N_PATIENTS, size=N_RECORDS)


def loop(
    targets_NC: np.ndarray, scores_NC: np.ndarray, groups_N: np.ndarray, counts_GR: np.ndarray
) -> np.ndarray:
    """Compute macro AUROC of some resamples, one after the other; (R,)."""
    place_N = np.unique(groups_N, return_inverse=True)[1]
    every_N = np.arange(len(groups_N))
    found = []
    for counts_G in counts_GR.T:
        own = np.repeat(every_N, counts_G[place_N])
        columns = zip(targets_NC[own].T, scores_NC[own].T, strict=True)
        found.append(np.mean([roc_auc_score(t, s) for t, s in columns if 0 < t.sum() < len(t)]))
    return np.array(found)


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Time a call: by the clock, and of the processor."""
    start, start_cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - start_cpu


def compare(n_loop: int) -> dict[str, Any]:
    """Take turns with the loop."""
    examples = records()
    resamples = Resamples.of(examples[2], N_RESAMPLES)
    some_GR = resamples.counts_GR[:, :n_loop]
    # Also the warm-up.
    own_R = mean_of_known(label_values("auroc", *examples, resamples), axis=1)
    difference = float(np.abs(own_R[:n_loop] - loop(*examples, some_GR)).max())
    if difference > 1e-9:
        raise SystemExit(f"expected the same to 1e-9, came a difference of {difference}")
    found = bootstrap_interval("macro_auroc", *examples, N_RESAMPLES, method="percentile")
    if (found.low, found.high) != tuple(np.quantile(own_R, [0.025, 0.975])):
        raise SystemExit("expected the ends of the resamples that were compared")
    parts = np.array_split(np.arange(n_loop), TURNS)
    rows = []
    for part in parts:
        own = seconds(lambda: bootstrap_interval("macro_auroc", *examples, N_RESAMPLES))
        slow = seconds(lambda part=part: loop(*examples, some_GR[:, part]))  # type: ignore[misc]
        scaled = [taken * N_RESAMPLES / len(part) for taken in slow]
        rows.append((scaled[0] / own[0], scaled[1] / own[1], own[0], scaled[0]))
    ratio, ratio_cpu, own_s, loop_s = (
        statistics.median(column) for column in zip(*rows, strict=True)
    )
    return {
        "ratio": ratio,
        "ratio_of_cpu_time": ratio_cpu,
        "s": own_s,
        "loop_s": loop_s,
        "loop_resamples": n_loop,
        "largest_difference": difference,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--loop", type=int, default=20, help="resamples that the loop makes (20)")
    arguments = parser.parse_args()
    if arguments.loop < TURNS:
        parser.error(f"--loop: at least {TURNS}")
    load = os.getloadavg()[0]
    rows = {"macro_auroc_bootstrap": compare(arguments.loop)}
    print_rows(rows, arguments.json, load_before=load)


if __name__ == "__main__":
    main()
