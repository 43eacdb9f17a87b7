"""What training through Ray costs: rates against a bare torch loop, and many small runs together.

    python benchmarks/training.py [--json] [--records 2000]

`ray_train_NAME`: records/s of one run of that architecture through Ray Train (one worker, one core,
resident shards; the median epoch, as `curves.csv` has it) over those of a bare loop in this process:
the same windows as tensors in memory, the same network, batch, loss, optimiser and one thread. The
sides take turns. `a_a_control` is the bare loop against itself. `start_up_s` is what a single run
takes before its first epoch and after its last one, `per_epoch_s` what an epoch takes beside its
training steps: validation, the state on disk, the report to Ray.

`packed_runs`: ten small runs one after another, each by a call of its own and so with its own start
of Ray Train, over the same ten in one call; shards, windows and Ray itself are there before.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from printing import print_rows
from torch import nn

from rayecg import pipeline
from rayecg.core.experiment import ArchitectureSettings, ArchiveSettings, Experiment
from rayecg.core.files import read_json
from rayecg.core.session import ray_session
from rayecg.core.settings import Overrides
from rayecg.core.train_settings import TrainSettings
from rayecg.models.catalogue import ModelInputs, build_model, input_of

ARCHITECTURES = ("simple_cnn1d", "hmt_ecgnet")
N_LABELS = 5
BATCH = 64
#: Examples of an epoch; fewer than there are to train on.
EXAMPLES = {"simple_cnn1d": 1024, "hmt_ecgnet": 256}
EPOCHS, TURNS = 4, 3
N_PACKED, PACKED_TURNS = 10, 1


def experiment(records: int, **changes: Any) -> Experiment:
    """Give plain training of simulated records, without schedules or augmentation."""
    training = TrainSettings(batch_size=BATCH, schedule="constant", patience=None)
    archive = ArchiveSettings("synthetic", n_records=records)
    plain = Experiment(name="training", archive=archive, train=training)
    return dataclasses.replace(plain, **changes)


def bare_loop(name: str, x_NLT: torch.Tensor, y_NC: torch.Tensor, n_examples: int) -> float:
    """Train one epoch as one would by hand; gives records/s."""
    settings = TrainSettings()
    inputs = ModelInputs.of(input_of(ArchitectureSettings(name), Overrides()))
    model = build_model(name, inputs, N_LABELS, {}).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    loss_of = nn.BCEWithLogitsLoss()
    order = torch.randperm(len(x_NLT))[:n_examples]
    assert len(order) == n_examples, f"{len(x_NLT)} windows are too few"
    started = time.perf_counter()
    for start in range(0, n_examples, BATCH):
        rows = order[start : start + BATCH]
        loss = loss_of(model(x_NLT[rows]), y_NC[rows])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.gradient_clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), settings.gradient_clip)
        optimizer.step()
    return n_examples / (time.perf_counter() - started)


def through_ray(name: str, turn: int, records: int, out: Path) -> dict[str, float]:
    """Train one run through the pipeline; gives its rate, and what it took beside its steps."""
    n_examples = EXAMPLES[name]
    asked = experiment(records, architectures=(ArchitectureSettings(name),), seeds=(turn,))
    training = dataclasses.replace(asked.train, epochs=EPOCHS, examples_per_epoch=n_examples)
    started = time.perf_counter()
    pipeline.train(dataclasses.replace(asked, train=training), out)
    whole_s = time.perf_counter() - started
    folder = out / f"{name}-seed{turn}"
    run_s = read_json(folder / "run.json")["seconds"]
    rates = pd.read_csv(folder / "curves.csv")["examples_per_s"]
    steps_s = (n_examples / rates).sum()
    return {
        "rate": rates.median(),
        "start_up_s": whole_s - run_s,
        "per_epoch_s": (run_s - steps_s) / EPOCHS,
    }


def compare(name: str, records: int, out: Path) -> dict[str, float]:
    """Take turns between Ray Train and the bare loop."""
    through_ray(name, TURNS, records, out)  # has the shards and the windows made
    inputs = ModelInputs.of(input_of(ArchitectureSettings(name), Overrides()))
    (file,) = [
        own
        for own in (out / ".resident").glob("*/x.npy")
        if np.load(own, mmap_mode="r").shape[1:] == (len(inputs.leads), inputs.n_times)
    ]
    x_NLT = torch.from_numpy(np.load(file))
    y_NC = torch.randint(0, 2, (len(x_NLT), N_LABELS)).float()
    bare_loop(name, x_NLT, y_NC, EXAMPLES[name])
    bare, again, ray = [], [], []
    for turn in range(TURNS):
        bare.append(bare_loop(name, x_NLT, y_NC, EXAMPLES[name]))
        ray.append(through_ray(name, turn, records, out))
        again.append(bare_loop(name, x_NLT, y_NC, EXAMPLES[name]))
    own = [turn["rate"] for turn in ray]
    by_hand = [(one + other) / 2 for one, other in zip(bare, again, strict=True)]
    return {
        "ratio": statistics.median(a / b for a, b in zip(own, by_hand, strict=True)),
        "records_per_s": statistics.median(own),
        "bare_records_per_s": statistics.median(by_hand),
        "a_a_control": statistics.median(a / b for a, b in zip(bare, again, strict=True)),
        "start_up_s": statistics.median(turn["start_up_s"] for turn in ray),
        "per_epoch_s": statistics.median(turn["per_epoch_s"] for turn in ray),
    }


def packed(records: int, out: Path) -> dict[str, float]:
    """Train ten small runs by ten calls, then other ten of the kind by one."""
    small = dataclasses.replace(experiment(records).train, epochs=2, examples_per_epoch=512)
    cnn = (ArchitectureSettings("simple_cnn1d"),)

    def seconds(seeds: tuple[int, ...]) -> float:
        asked = experiment(records, architectures=cnn, seeds=seeds, train=small)
        started = time.perf_counter()
        pipeline.train(asked, out)
        return time.perf_counter() - started

    seconds((10_000,))  # has the shards and the windows made
    turns = []
    for turn in range(PACKED_TURNS):
        first = 100 * (turn + 1)
        one_by_one = sum(seconds((first + i,)) for i in range(N_PACKED))
        together = seconds(tuple(range(first + 50, first + 50 + N_PACKED)))
        turns.append((one_by_one, together))
    return {
        "ratio": statistics.median(a / b for a, b in turns),
        "one_by_one_s": statistics.median(a for a, _ in turns),
        "together_s": statistics.median(b for _, b in turns),
        "runs": N_PACKED,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--records", type=int, default=2000, help="simulated records (2000)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder, ray_session():
        out = Path(folder) / "out"
        for name in ARCHITECTURES:
            rows[f"ray_train_{name}"] = compare(name, arguments.records, out)
            print(f"{name}: {rows[f'ray_train_{name}']}", file=sys.stderr)
        rows["packed_runs"] = packed(arguments.records, out)
    print_rows(rows, arguments.json, load_before=load)


if __name__ == "__main__":
    main()
