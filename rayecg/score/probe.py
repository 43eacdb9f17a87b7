"""What is fastest here: batch sizes and threads, tried for a few seconds on the records themselves."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from rayecg.core.errors import DataError
from rayecg.core.experiment import ScoreSettings
from rayecg.score.actors import open_predictor
from rayecg.score.sources import Source

BATCH_SIZES = (16, 32, 64, 128, 256)
#: How long (s) each is tried, after one batch that is not counted.
SECONDS = 0.5
#: Another batch size than the one that everything else uses must gain so much.
GAIN = 1.1
#: What of a plan is probed.
PROBED = ("batch_size", "threads")


def still_stands(standing: Mapping[str, Any], decided: Mapping[str, Any]) -> bool:
    """Say whether a plan that stands is as it would be decided now, but for what is probed."""
    return all(standing.get(name) == value for name, value in decided.items() if name not in PROBED)


def chosen_execution(
    checkpoint: Path, source: Source, settings: ScoreSettings, standing: Mapping[str, Any] | None
) -> ScoreSettings:
    """Give the settings with the fastest batch size and threads, or with those of an earlier start.

    Parameters
    ----------
    checkpoint
        The bundle.
    source
        What is to be scored; some of it is.
    settings
        What stands of them stays: back end and device.
    standing
        The plan that stands in the output.
    """
    if standing and standing.get("batch_size"):
        return replace(
            settings, batch_size=standing["batch_size"], num_cpus=float(standing["threads"])
        )
    import ray

    sample = source.sample(max(BATCH_SIZES))
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    rates: dict[tuple[int, int], float] = {}
    for n_actors, threads in [(1, 1)] if settings.num_gpus else ways(nodes):
        own = replace(settings, num_cpus=float(threads))
        task = ray.remote(num_cpus=threads, num_gpus=settings.num_gpus)(measure)
        calls = [task.remote(checkpoint, source, sample, own) for _ in range(n_actors)]
        for found in ray.get(calls):  # side by side, as they will be
            for size, rate in found.items():
                rates[threads, size] = rates.get((threads, size), 0.0) + rate
    threads, size = best(rates, settings.batch_size)
    return replace(settings, batch_size=size, num_cpus=float(threads))


def ways(cpus: Sequence[int]) -> list[tuple[int, int]]:
    """Give actors, and threads of each: one thread, or a whole node's, of nodes with so many CPUs."""
    # An actor is on one node: one with the threads of several would be waited for for ever.
    most = max(1, *cpus)
    found = {(sum(cpus), 1), (sum(n // most for n in cpus), most)}
    # A cluster that is still without workers gets one for what is tried.
    return sorted({(max(n_actors, 1), threads) for n_actors, threads in found}, reverse=True)


def best(rates: Mapping[tuple[int, int], float], usual: int) -> tuple[int, int]:
    """Choose threads and batch size by windows/s; the usual batch size unless another gains `GAIN`."""
    fastest = max(rates, key=lambda way: rates[way])
    own = max(
        (way for way in rates if way[1] == usual), key=lambda way: rates[way], default=fastest
    )
    return fastest if rates[fastest] >= GAIN * rates[own] else own


def measure(
    checkpoint: Path, source: Source, sample: dict[str, Any], settings: ScoreSettings
) -> dict[int, float]:
    """Give windows/s for each batch size.

    Raises
    ------
    DataError
        If no record of the sample can be read.
    """
    predictor = open_predictor(checkpoint, settings)
    parts = []
    for batch in source.batches(sample):
        parts.append(predictor.prepare_batch(batch).windows())
        if sum(len(x_WLT) for x_WLT, _ in parts) >= max(BATCH_SIZES):
            break
    if not any(len(x_WLT) for x_WLT, _ in parts):
        raise DataError("--probe: none of the records that were tried can be read; leave it away")
    x_WLT, side_WM = (np.concatenate(part) for part in zip(*parts, strict=True))
    sizes = sorted({*BATCH_SIZES, settings.batch_size})
    rates = {}
    for size in sizes:
        # As many windows as a batch holds, whatever the records gave.
        own = np.resize(np.arange(len(x_WLT)), size)
        x_BLT, side_BM = np.ascontiguousarray(x_WLT[own]), np.ascontiguousarray(side_WM[own])
        predictor.backend.batch_size = size
        predictor.backend.logits(x_BLT, side_BM)
        n, started = 0, time.perf_counter()
        while time.perf_counter() - started < SECONDS:
            predictor.backend.logits(x_BLT, side_BM)
            n += size
        rates[size] = n / (time.perf_counter() - started)
    return rates
