"""What a job would do and how long it would take, from its index and a few of its records."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path

import torch

from rayecg.core.experiment import ScoreSettings
from rayecg.score.actors import check_room, n_actors, open_predictor
from rayecg.score.sources import Source

#: Records that are read and scored for it.
N_SAMPLE = 256


def estimate(checkpoint: Path, source: Source, settings: ScoreSettings) -> str:
    """Say how many records there are, what comes of a sample of them, and how long all would take.

    The sample is scored twice in this process, by as many threads as an actor has; the second time
    counts. The estimate is for the actors of this machine.

    Raises
    ------
    SettingsError
        If this machine has no room for an actor.
    """
    cpus, gpus = os.cpu_count() or 1, torch.cuda.device_count()
    check_room(settings, cpus, gpus)
    predictor = open_predictor(checkpoint, settings)
    sample = source.sample(N_SAMPLE)
    for _ in range(2):
        counts: Counter[str] = Counter()
        started = time.perf_counter()
        for batch in source.batches(sample):
            counts.update(predictor.answer(predictor.prepare_batch(batch)).status)
            if counts.total() >= N_SAMPLE:
                break
        seconds = time.perf_counter() - started
    rate = counts.total() / seconds
    most = n_actors(settings, cpus, gpus)
    plan = source.plan(None, settings.records_per_unit, most, None)
    actors = min(most, len(source.units(plan)))
    came = ", ".join(f"{n} {status}" for status, n in counts.most_common())
    return (
        f"{source.n_input:,} records, {source.n_bytes() / 1e6:,.0f} MB of files\n"
        f"{counts.total()} of them were read and scored: {came}\n"
        f"one actor: {rate:,.0f} records/s; {actors} of them: about "
        f"{source.n_input / rate / actors:,.0f} s, and some seconds to start\n"
        "nothing was written"
    )
