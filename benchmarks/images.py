"""How fast signals become images: `rayecg.signal.images` against `pyts`, and a plain memory write.

    python benchmarks/images.py [--json] [--images 96] [--threads 2]

Both sides start at the same float32 signals (random walks of 1,000 samples) and end in a float32
array of the same shape, 224 pixels a side. They are measured in turns, each turn some calls in a row
after one that does not count, as in use: fresh pages cost more than the pixels on them, and whether a
call gets any depends on what was freed before it. The ratio is `pyts`' time over ours, the median over
the turns. `a_a_control` is `pyts` against itself: how far from 1 it lies, the rest may err.
`of_a_plain_write` is the time of setting memory of the same size to a constant, over ours: 1 would be
what memory bandwidth allows. `pyts` computes on one thread, whatever it is given.

Threads that wait for another sleep (`OMP_WAIT_POLICY=passive`, unless it is set): on a machine that
has more to do than this, spinning ones wait for the rest of a time slice, at every operation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is loaded

import numpy as np
import torch
from printing import print_rows
from pyts.approximation import PiecewiseAggregateApproximation
from pyts.image import GramianAngularField, MarkovTransitionField, RecurrencePlot

from rayecg.core.experiment import ImageSettings
from rayecg.signal.images import signal_images

SIZE = 224
N_BINS = 5
PYTS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "gaf": ("gasf", GramianAngularField(SIZE).transform),
    "mtf": ("mtf", MarkovTransitionField(SIZE, N_BINS).transform),
    "recurrence": (
        "recurrence",
        lambda x_NT: RecurrencePlot().transform(
            PiecewiseAggregateApproximation(None, SIZE, overlapping=False).transform(x_NT)
        ),
    ),
}
TURNS, CALLS = 11, 3


def seconds(function: Callable[[], object]) -> float:
    """Time a call, as the mean of some after one that does not count."""
    function()
    start = time.perf_counter()
    for _ in range(CALLS):
        function()
    return (time.perf_counter() - start) / CALLS


def compare(x_BLT: torch.Tensor, name: str, n_threads: int) -> dict[str, Any]:
    """Take turns with `pyts` at one kind of image, with all threads and with one."""
    kind, transform = PYTS[name]
    settings = ImageSettings(kind, SIZE, N_BINS)  # type: ignore[arg-type]
    x_NT = x_BLT.flatten(0, 1).numpy()
    n_images = len(x_NT)

    def own() -> np.ndarray:
        return signal_images(x_BLT, settings).numpy()

    def slow() -> np.ndarray:
        return transform(x_NT).astype(np.float32)

    def write() -> torch.Tensor:
        return torch.empty(n_images, SIZE, SIZE).fill_(1.0)

    # Also the warm-up. A distance is as exact as float32 is at its size.
    np.testing.assert_allclose(own()[:, 0], slow(), rtol=1e-6, atol=1e-5)
    write()
    turns: dict[str, list[float]] = {
        name: [] for name in ("slow", "write", "own", "write_again", "again", "one_thread")
    }
    for _ in range(TURNS):
        turns["slow"].append(seconds(slow))
        turns["write"].append(seconds(write))
        turns["own"].append(seconds(own))
        turns["write_again"].append(seconds(write))
        turns["again"].append(seconds(slow))
        torch.set_num_threads(1)
        turns["one_thread"].append(seconds(own))
        torch.set_num_threads(n_threads)
    taken = {name: np.array(times) for name, times in turns.items()}
    slow_s = (taken["slow"] + taken["again"]) / 2
    write_s = (taken["write"] + taken["write_again"]) / 2
    return {
        "ratio": statistics.median(slow_s / taken["own"]),
        "ratio_on_one_thread": statistics.median(slow_s / taken["one_thread"]),
        "a_a_control": statistics.median(taken["slow"] / taken["again"]),
        "of_a_plain_write": statistics.median(write_s / taken["own"]),
        "us_per_image": statistics.median(taken["own"]) / n_images * 1e6,
        "pyts_us_per_image": statistics.median(slow_s) / n_images * 1e6,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--images", type=int, default=96, help="made by a call (96)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps_BLT = np.random.default_rng(0).normal(size=(arguments.images, 1, 1000))
    x_BLT = torch.from_numpy(steps_BLT.cumsum(axis=2).astype(np.float32) * 0.1)
    load = os.getloadavg()[0]
    rows = {kind: compare(x_BLT, kind, arguments.threads) for kind in PYTS}
    print_rows(
        rows, arguments.json, images=arguments.images, threads=arguments.threads, load_before=load
    )


if __name__ == "__main__":
    main()
