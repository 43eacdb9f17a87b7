"""Training on windows that memory does not hold: private memory, and the rate with little memory.

    python benchmarks/streaming.py [--json] [--records 12000]

`private_mib`: the largest private memory of a process that has the windows built and trains an epoch,
beside what it has after its imports, for a quarter of the records and for all of them: it must not
grow with them. `limited`: records/s of the second epoch of a process that, from its imports on, has
`LIMIT_MIB` of memory for its work and for cached files, over those without a limit, in turns; what it
does not work with is less than `windows_mib`. Limits need a memory control group that this user may make (Linux, v1 or v2); without one that
row is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from printing import print_rows

from rayecg import pipeline
from rayecg.core.experiment import ArchitectureSettings, ArchiveSettings, Experiment
from rayecg.core.folders import Folders
from rayecg.core.session import ray_session
from rayecg.core.train_settings import TrainSettings
from rayecg.train.loop import train_run
from rayecg.train.resident import build_windows, resident_windows

#: Memory that a limited process has for its work, about 280 MiB, and for cached files.
LIMIT_MIB = 400
TURNS = 3
GROUPS = Path("/sys/fs/cgroup")


def experiment(records: int) -> Experiment:
    """Give two epochs of a small network on simulated records."""
    training = TrainSettings(epochs=2, schedule="constant", patience=None)
    return Experiment(
        archive=ArchiveSettings("synthetic", n_records=records),
        architectures=(ArchitectureSettings("simple_cnn1d"),),
        seeds=(0,),
        train=training,
    )


@contextmanager
def watched_private() -> Iterator[list[float]]:
    """Have the largest private memory of this process, MiB, in a list of one."""
    most, done = [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            most[0] = max(most[0], private_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        done.set()
        thread.join()


def private_mib() -> float:
    """Give the private memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


def one_process(records: int, out: Path, group: Path | None) -> dict[str, float]:
    """Build the windows if they are not there, and train; what a child process does.

    `group` is a control group to be limited by, from the imports on.
    """
    torch.set_num_threads(1)
    folders = Folders.of_training(out)
    asked = experiment(records)
    task = pipeline.load_task(asked.task, asked.archive.kind)
    key = json.loads((folders.shards / "manifest.json").read_text())["key"]
    run = pipeline.plan_runs(asked, task, key, True)[0]
    before = private_mib()
    if group is not None:
        limit(group, LIMIT_MIB)
    with watched_private() as most, tempfile.TemporaryDirectory() as place:
        folder = build_windows(run, folders.shards, folders.examples, out / ".resident")
        windows = resident_windows(run, folders.shards, folders.examples, out / ".resident")
        rates: list[float] = []
        train_run(
            run, windows, Path(place), on_epoch=lambda row: rates.append(row["examples_per_s"])
        )
    return {
        "private_mib": most[0] - before,
        "windows_mib": (folder / "x.npy").stat().st_size / 2**20,
        "records_per_s": rates[-1],
    }


def limit(group: Path, mib: int) -> None:
    """Put this process into a control group of limited memory."""
    for name in ("memory.max", "memory.limit_in_bytes"):
        if (group / name).exists():
            (group / name).write_text(str(mib * 2**20))
    (group / "cgroup.procs").write_text(str(os.getpid()))


@contextmanager
def control_group() -> Iterator[Path | None]:
    """Make a memory control group; None where this user may not."""
    parent = GROUPS / "memory" if (GROUPS / "memory").is_dir() else GROUPS
    group = parent / f"rayecg-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        yield None
        return
    try:
        yield group if any(group.glob("memory.*max*")) else None
    finally:
        time.sleep(0.2)  # the last process leaves
        group.rmdir()


def child(records: int, out: Path, group: Path | None = None) -> dict[str, float]:
    """Run `one_process` in a process of its own."""
    command = [sys.executable, __file__, "--records", str(records), "--child", str(out)]
    command += ["--group", str(group)] if group else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--records", type=int, default=12_000, help="simulated records (12000)")
    for name in ("--child", "--group"):  # of this script's own calls
        parser.add_argument(name, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(one_process(given.records, given.child, given.group)))
        return
    load = os.getloadavg()[0]
    rows: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        private = {}
        for records in (given.records // 4, given.records):
            out = Path(folder) / str(records)
            with ray_session():
                pipeline.prepare(experiment(records), Folders.of_training(out))
            private[records] = child(records, out)
        rows["private_mib"] = {str(n): found["private_mib"] for n, found in private.items()}
        rows["windows_mib"] = {str(n): found["windows_mib"] for n, found in private.items()}
        with control_group() as group:
            if group is not None:
                turns = [(child(records, out, group), child(records, out)) for _ in range(TURNS)]
                rates = [[one["records_per_s"] for one in turn] for turn in turns]
                rows["limited"] = {
                    "ratio": statistics.median(a / b for a, b in rates),
                    "records_per_s": statistics.median(a for a, _ in rates),
                    "unlimited_records_per_s": statistics.median(b for _, b in rates),
                    "limit_mib": LIMIT_MIB,
                    "windows_mib": turns[0][0]["windows_mib"],
                }
    print_rows(rows, given.json, load_before=load)


if __name__ == "__main__":
    main()
