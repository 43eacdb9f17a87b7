"""How fast archives are scored: from shards, from raw records, and at growing sizes.

    python benchmarks/scoring.py [--json] [--records 60000] [--turns 3] [--compression none]
        [--scale 20000,100000,400000 [--only-scale] [--out DIR]] [--work DIR]

Makes its own data (simulated records, distinct files) and trains its networks on some of them, for one
short run each: how fast a network is does not depend on how good it is.

`shards_NAME_BACKEND`: records/s of scoring shards in steady state (without the first and the last unit of
every actor) over those of the same back end looping over batches that lie in memory, one process for
each actor, side by side. `raw_simple_cnn1d`: records/s of scoring distinct raw 100 Hz records with default
checks and flags, by the faster back end, over a loop of `wfdb.rdsamp` and eager torch in batches of 64 in
one process; `whole_ratio` counts starting and ending, too. The sides take turns; `a_a_control` is the
baseline against itself. `profile_shards`, `profile_raw`: what each step takes of the processor, in
microseconds a record, in one process alone, by eager torch on one thread: reading (from raw files with
measuring quality), mV and windows (`prepare`), the network (`logits`), what is made of its logits
(`answer`), the tables of rows, and their files with the ledger (`write`). `scale_N`: the whole job from
index to manifest without the start of Ray, and the largest private memory of a worker and of the driver.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch
import wfdb
from ingest import peak_memory
from printing import print_rows

from rayecg import pipeline
from rayecg.archives.synthetic import SyntheticSettings, write_archive
from rayecg.core.experiment import (
    ArchitectureSettings,
    ArchiveSettings,
    Experiment,
    ScoreSettings,
    ShardSettings,
)
from rayecg.core.session import KEEPS_MEMORY, RaySettings, ray_session
from rayecg.core.settings import Overrides
from rayecg.core.train_settings import TrainSettings
from rayecg.core.units import Units
from rayecg.models.backends import empty_windows
from rayecg.models.predictor import Predictor
from rayecg.pipeline.scoring import open_source
from rayecg.score.sources import Source
from rayecg.score.tables import Stamps, record_table, window_table

ARCHITECTURES = ("simple_cnn1d", "hmt_ecgnet")
BACKENDS = ("eager", "onnx_int8")
BATCH = 64
#: Windows that a loop in memory goes over again and again, and for how long (s).
N_WINDOWS, LOOP_S = 32 * BATCH, 4.0
#: Share of the records that each scores from shards: hmt_ecgnet takes longer for one.
SHARE = {"simple_cnn1d": 1.0, "hmt_ecgnet": 0.15}
#: Records that the slow side reads in a turn; its rate does not depend on how many.
SLOW = 512
#: Units of a job for every actor, so that one knows where the steady state begins and ends.
UNITS_EACH = 12
#: Records of a profile, and how often it goes over them.
PROFILED, PROFILES = 8192, 3
ACTORS = os.cpu_count() or 1


def simulate(folder: Path, n_records: int, seed: int) -> None:
    """Write an archive of distinct 100 Hz records without defects, in a process that ends."""
    settings = SyntheticSettings(n_records=n_records, fs=100, seed=seed, n_defective=0)
    with _processes(1) as pool:
        pool.submit(write_archive, folder, settings).result()


def _processes(n: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn"))


def checkpoints(names: Sequence[str], out: Path) -> dict[str, Path]:
    """Train and export networks."""
    asked = Experiment(
        name="scoring",
        archive=ArchiveSettings("synthetic", n_records=600, rate=100),
        architectures=tuple(ArchitectureSettings(name) for name in names),
        seeds=(0,),
        train=TrainSettings(epochs=2),
        # As the records are: hmt_ecgnet's own rate would have every record resampled.
        input=Overrides(fs=100, duration_s=10.0),
    )
    pipeline.train(asked, out)
    found = {name: out / f"{name}-seed0" / "checkpoint" for name in names}
    for folder in found.values():
        pipeline.export(folder)
    return found


def loop_in_memory(checkpoint: Path, backend: str) -> float:
    """Give records/s of a back end over batches in memory; one process of several."""
    torch.set_num_threads(1)
    own = Predictor(checkpoint, BATCH, backend=backend, threads=1).backend
    x_WLT = empty_windows((N_WINDOWS, 12, 1000))
    x_WLT[:] = np.random.default_rng(0).normal(0, 0.3, x_WLT.shape)
    side_WM = np.empty((N_WINDOWS, 0), dtype=np.float32)
    starts = range(0, N_WINDOWS, BATCH)

    def batch(start: int) -> None:
        own.logits(x_WLT[start : start + BATCH], side_WM[start : start + BATCH])

    for start in starts[:4]:
        batch(start)
    n, started = 0, time.perf_counter()
    while time.perf_counter() - started < LOOP_S:
        batch(starts[n // BATCH % len(starts)])
        n += BATCH
    return n / (time.perf_counter() - started)


def in_memory(checkpoint: Path, backend: str) -> float:
    """Give records/s of as many processes as there are actors, side by side."""
    os.environ |= KEEPS_MEMORY  # as the actors have it
    with _processes(ACTORS) as pool:
        calls = [pool.submit(loop_in_memory, checkpoint, backend) for _ in range(ACTORS)]
        return sum(call.result() for call in calls)


def scored(checkpoint: Path, backend: Any, out: Path, **source: Any) -> tuple[float, float]:
    """Score; gives records/s in steady state, and seconds from start to end."""
    archive = source.pop("archive", None)
    started = time.perf_counter()
    settings = ScoreSettings(backend=backend, batch_size=BATCH)
    pipeline.score(checkpoint, archive, out, settings, replace=True, **source)
    whole_s = time.perf_counter() - started
    entries = [
        (file.stat().st_mtime, json.loads(file.read_text())["n_input"])
        for file in out.glob("ledger/*/*.json")
    ]
    entries.sort()
    # Each actor's first unit waits for its start, and after the last but one of all some are idle.
    n = sum(count for _, count in entries[ACTORS:-ACTORS])
    return n / (entries[-ACTORS - 1][0] - entries[ACTORS - 1][0]), whole_s


def from_shards(
    name: str, backend: str, checkpoint: Path, shards: Path, out: Path, turns: int
) -> Any:
    """Take turns between scoring shards and looping in memory."""
    by_hand, again, own = [], [], []
    for turn in range(turns):
        by_hand.append(in_memory(checkpoint, backend))
        place = out / f"{name}-{backend}-{turn}"
        own.append(scored(checkpoint, backend, place, shards=shards)[0])
        again.append(in_memory(checkpoint, backend))
    both = [(a + b) / 2 for a, b in zip(by_hand, again, strict=True)]
    return {
        "ratio": statistics.median(a / b for a, b in zip(own, both, strict=True)),
        "records_per_s": statistics.median(own),
        "in_memory_records_per_s": statistics.median(both),
        "a_a_control": statistics.median(a / b for a, b in zip(by_hand, again, strict=True)),
    }


def wfdb_loop(root: Path, names: Sequence[str], predictor: Predictor) -> float:
    """Give records/s of `wfdb.rdsamp` and eager torch, batch by batch."""
    model, started = predictor.model, time.perf_counter()
    with torch.inference_mode():
        for start in range(0, len(names), BATCH):
            batch = [wfdb.rdsamp(str(root / name))[0].T for name in names[start : start + BATCH]]
            model(torch.from_numpy(np.stack(batch).astype(np.float32))).numpy()
    return len(names) / (time.perf_counter() - started)


def from_raw(checkpoint: Path, root: Path, backend: str, out: Path, turns: int) -> dict[str, float]:
    """Take turns between scoring a raw archive and the loop that one would write first."""
    names = sorted(str(file.relative_to(root))[:-4] for file in root.rglob("*.hea"))
    predictor = Predictor(checkpoint, BATCH)
    archive = ArchiveSettings("wfdb", str(root))
    slow, again, steady, whole = [], [], [], []
    rng = np.random.default_rng(0)
    for turn in range(turns):
        one, other = (rng.choice(names, SLOW, replace=False).tolist() for _ in range(2))
        slow.append(wfdb_loop(root, one, predictor))
        rate, seconds = scored(checkpoint, backend, out / f"raw-{backend}-{turn}", archive=archive)
        steady.append(rate)
        whole.append(len(names) / seconds)
        again.append(wfdb_loop(root, other, predictor))
    both = [(a + b) / 2 for a, b in zip(slow, again, strict=True)]
    return {
        "ratio": statistics.median(a / b for a, b in zip(steady, both, strict=True)),
        "whole_ratio": statistics.median(a / b for a, b in zip(whole, both, strict=True)),
        "records_per_s": statistics.median(steady),
        "wfdb_and_torch_records_per_s": statistics.median(both),
        "a_a_control": statistics.median(a / b for a, b in zip(slow, again, strict=True)),
        "records": len(names),
    }


def scale(sizes: Sequence[int], checkpoint: Path, root: Path, backend: str, out: Path) -> Any:
    """Measure time and memory of whole jobs over the first records of an archive."""
    rows = {}
    for n_records in sizes:
        archive = ArchiveSettings("wfdb", str(root), limit=n_records)
        with peak_memory() as peak:
            rate, seconds = scored(checkpoint, backend, out / f"scale-{n_records}", archive=archive)
        rows[f"scale_{n_records}"] = {
            "records": n_records,
            "seconds": seconds,
            "records_per_s": n_records / seconds,
            "steady_records_per_s": rate,
            "worker_mib": peak["worker"] / 2**20,
            "driver_mib": peak["driver"] / 2**20,
        }
    return rows


def profile(
    checkpoint: Path, source: Source, payloads: Sequence[Any], out: Path
) -> dict[str, float]:
    """Time the steps of scoring a source's units, `PROFILED` records; what a process of its own does."""
    torch.set_num_threads(1)
    predictor = Predictor(checkpoint, BATCH, threads=1)
    network, stamps, units = predictor.backend, Stamps("", ""), Units(out, "0" * 16)
    spent: defaultdict[str, float] = defaultdict(float)

    def timed(step: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def own(*given: Any) -> Any:
            started = time.thread_time()
            try:
                return work(*given)
            finally:
                spent[step] += time.thread_time() - started

        return own

    def rows(batch: Any, prediction: Any) -> tuple[pa.Table, pa.Table]:
        below = window_table(batch, prediction, stamps, predictor.unit)
        return record_table(batch, prediction, stamps), below

    def write(parts: list[tuple[pa.Table, pa.Table]]) -> None:
        tables = [pa.concat_tables(own) for own in zip(*parts, strict=True)]
        files = units.write("predictions", "profile", tables[0])
        if tables[1].num_rows:
            files += units.write("windows", "profile", tables[1])
        units.finish("profile", {"n_input": tables[0].num_rows}, files)

    def score() -> int:
        n = 0
        for payload in payloads:
            batches, parts = source.batches(payload), []
            while (batch := timed("read", next)(batches, None)) is not None:
                windows = timed("prepare", predictor.prepare_batch)(batch)
                parts.append(timed("rows", rows)(batch, timed("answer", predictor.answer)(windows)))
                n += len(batch)
            if parts:
                timed("write", write)(parts)
            if n >= PROFILED:
                break
        return n

    found = []
    with mock.patch.object(network, "logits", timed("logits", network.logits)):
        score()  # has everything loaded
        for _ in range(PROFILES):
            spent.clear()
            n = score()
            spent["answer"] -= spent["logits"]  # which is a part of it
            found.append({step: seconds / n * 1e6 for step, seconds in spent.items()})
    steps = ("read", "prepare", "logits", "answer", "rows", "write")
    row = {f"{step}_us": statistics.median(own[step] for own in found) for step in steps}
    return {**row, "all_us": statistics.median(sum(own.values()) for own in found), "records": n}


def profiles(
    checkpoint: Path, shards: Path, archive: ArchiveSettings, out: Path
) -> dict[str, dict[str, float]]:
    """Time the steps from shards and from raw records, one after the other."""
    os.environ |= KEEPS_MEMORY  # as the actors have it
    lying, raw = open_source(None, shards), open_source(archive, None)
    units = {
        "profile_shards": (lying, [lying.payload(unit) for unit in lying.units()]),
        "profile_raw": (raw, [raw.sample(PROFILED)]),
    }
    found = {}
    for name, own in units.items():
        with _processes(1) as pool:
            found[name] = pool.submit(profile, checkpoint, *own, out / name).result()
    return found


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure what is asked for."""
    only, sizes = arguments.only_scale, arguments.scale
    root = folder / "archive"
    simulate(root, max(sizes if only else [arguments.records, *sizes]), seed=1)
    with ray_session(RaySettings()):
        found = checkpoints(ARCHITECTURES[:1] if only else ARCHITECTURES, folder / "train")
        rows = {} if only else speeds(arguments, found, root, folder)
        rows |= scale(sizes, found[ARCHITECTURES[0]], root, "onnx_int8", folder / "scores")
    return rows


def speeds(
    arguments: argparse.Namespace, found: dict[str, Path], root: Path, folder: Path
) -> dict[str, Any]:
    """Measure all but `--scale`."""
    rows: dict[str, Any] = {}
    archive, out = ArchiveSettings("wfdb", str(root)), folder / "scores"
    for name, checkpoint in found.items():
        n, shards = round(arguments.records * SHARE[name]), folder / f"shards-{name}"
        each = max(math.ceil(n / (UNITS_EACH * ACTORS)), BATCH)
        settings = ShardSettings(compression=arguments.compression, records_per_shard=each)
        pipeline.make_shards(replace(archive, limit=n), settings, shards)
        for backend in BACKENDS:
            row = from_shards(name, backend, checkpoint, shards, out, arguments.turns)
            rows[f"shards_{name}_{backend}"] = {**row, "records": n}
    name = ARCHITECTURES[0]
    rates = {own: rows[f"shards_{name}_{own}"]["records_per_s"] for own in BACKENDS}
    faster = max(rates, key=lambda own: rates[own])
    raw = from_raw(found[name], root, faster, out, arguments.turns)
    rows[f"raw_{name}"] = {"backend": faster, **raw}
    shards = folder / f"shards-{name}"
    return rows | profiles(found[name], shards, archive, folder / "profiles")


def fewest(share: float = 1.0) -> int:
    """Give how many records have a steady state: units beyond the first and last of each actor."""
    return math.ceil((2 * ACTORS + 2) * BATCH / share)


def sizes_of(text: str) -> list[int]:
    """Read the sizes of `--scale`."""
    sizes = [int(size) for size in text.split(",")]
    if min(sizes) < fewest():
        raise argparse.ArgumentTypeError(f"expected {fewest()} records or more, came {min(sizes)}")
    return sizes


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--records",
        type=int,
        default=60_000,
        help="simulated records (60000), of which shards are made; raw_* and --scale go over the "
        "same archive, and raw_* over all of it, which --scale may make larger",
    )
    parser.add_argument("--turns", type=int, default=3, help="of the two sides (3)")
    parser.add_argument(
        "--compression", choices=("none", "zstd", "lz4"), default="none", help="of shards (none)"
    )
    parser.add_argument(
        "--scale",
        type=sizes_of,
        default=[],
        metavar="N,N,…",
        help="also: whole jobs at these sizes",
    )
    parser.add_argument("--only-scale", action="store_true", help="nothing but these")
    parser.add_argument("--work", type=Path, help="where the data are made (a temporary folder)")
    parser.add_argument("--out", type=Path, help="folder for the table and plot of --scale")
    arguments = parser.parse_args()
    if (arguments.out or arguments.only_scale) and not arguments.scale:
        parser.error("--out, --only-scale: expected with --scale")
    least = max(fewest(min(SHARE.values())), SLOW)
    if not arguments.only_scale and (arguments.records < least or arguments.turns < 1):
        parser.error(f"expected --records of {least} or more, and --turns of 1 or more")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        rows = measure(arguments, Path(work))
    how = {"turns": arguments.turns, "compression": arguments.compression, "load_before": load}
    print_rows(rows, arguments.json, **how)
    if arguments.out:
        write_scale(rows, arguments.out)


def write_scale(rows: dict[str, Any], out: Path) -> None:
    """Write the rows of `--scale` as a table and a plot."""
    import matplotlib.pyplot as plt
    import pandas as pd

    out.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame([row for name, row in rows.items() if name.startswith("scale_")])
    table.round(1).to_csv(out / "scale.csv", index=False)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    thousands = table["records"] / 1000
    left.plot(thousands, table["seconds"], "o-", color="#0072B2")
    left.plot(
        thousands,
        table["records"] * table["seconds"].iloc[-1] / table["records"].iloc[-1],
        ":",
        color="#5d6b7a",
        label="in proportion to the largest",
    )
    left.set(xlabel="thousand records", ylabel="seconds", title="Index to manifest", ylim=0)
    left.legend(frameon=False)
    for name, dash in (("worker", "o-"), ("driver", "s--")):
        right.plot(thousands, table[f"{name}_mib"], dash, label=name)
    right.set(xlabel="thousand records", ylabel="MiB", title="Largest private memory")
    right.legend(frameon=False, loc="lower right")
    right.margins(y=0.1)
    right.set_ylim(bottom=0)
    figure.savefig(out / "scale.png", dpi=150)


if __name__ == "__main__":
    main()
