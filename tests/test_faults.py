"""Workers and nodes that are killed while they train: nothing is lost, nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pandas as pd
import pytest
from ray_processes import processes_below

from rayecg.core.files import read_json

pytestmark = pytest.mark.slow

EPOCHS = 6
#: A job of two runs on a cluster of a head and two nodes, of which one dies after the first epochs.
NODE_DIES = f"""
    import json, sys, threading, time
    from pathlib import Path

    import ray
    from ray.cluster_utils import Cluster

    from rayecg import pipeline
    from rayecg.core.experiment import ArchitectureSettings, ArchiveSettings, Experiment
    from rayecg.core.session import RaySettings
    from rayecg.core.train_settings import TrainSettings

    out = Path(sys.argv[1])
    cluster = Cluster(initialize_head=True, head_node_args={{"num_cpus": 0}})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    experiment = Experiment(
        archive=ArchiveSettings("synthetic", n_records=300),
        architectures=(ArchitectureSettings("xresnet1d18"),),
        seeds=(0, 1),
        train=TrainSettings(epochs={EPOCHS}, batch_size=32),
        ray=RaySettings(address=cluster.address),
    )

    def kill_a_node():
        while len(list(out.glob("*/state.pt"))) < 2:
            time.sleep(0.05)
        cluster.remove_node(nodes[0], allow_graceful=False)
        (out / "killed").write_text(str(time.time()))

    threading.Thread(target=kill_a_node, daemon=True).start()
    reports = pipeline.train(experiment, out)
    (out / "reports.json").write_text(json.dumps(reports))
    cluster.shutdown()
"""


def whole(out: Path, runs: list[str]) -> None:
    """Check that every run has each epoch once, and a result."""
    for run in runs:
        report = read_json(out / run / "run.json")
        assert (report["status"], report["error"]) == ("ok", None)
        assert report["epochs"] == EPOCHS
        curves = pd.read_csv(out / run / "curves.csv")
        assert curves["epoch"].tolist() == list(range(EPOCHS))


def test_a_node_that_dies_takes_no_run_with_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = tmp_path / "job.py"
    script.write_text(textwrap.dedent(NODE_DIES))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    found = subprocess.run(
        [sys.executable, str(script), str(out)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    killed = float((out / "killed").read_text())
    runs = ["xresnet1d18-seed0", "xresnet1d18-seed1"]
    whole(out, runs)
    assert any((out / run / "run.json").stat().st_mtime > killed for run in runs)
    assert len(json.loads((out / "reports.json").read_text())) == 2


def test_a_worker_that_dies_continues_and_ends_in_the_same_weights(tmp_path: Path) -> None:
    root = Path(__file__).parents[1]
    settings = [
        *("--experiment", str(root / "jobs" / "experiments" / "demo.yaml")),
        *("--set", "archive.n_records=300"),
        *("--set", "archive.rate=100"),
        *("--set", "architectures=[xresnet1d18]"),
        *("--set", "seeds=[0]"),
        *("--set", f"train.epochs={EPOCHS}"),
    ]
    hashes = []
    for name in ("undisturbed", "killed"):
        out = tmp_path / name
        job = [sys.executable, str(root / "jobs" / "train.py"), *settings, "--out", str(out)]
        process = subprocess.Popen(
            job, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        n_killed = 0
        while process.poll() is None:
            if name == "killed" and not n_killed and (out / "xresnet1d18-seed0/state.pt").exists():
                n_killed = kill_train_workers(process.pid)
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
        assert process.returncode == 0, process.stderr.read() if process.stderr else ""
        assert n_killed == (name == "killed")
        whole(out, ["xresnet1d18-seed0"])
        card = read_json(out / "xresnet1d18-seed0" / "checkpoint" / "card.json")
        hashes.append(card["weights_sha256"])
    assert hashes[0] == hashes[1]


def kill_train_workers(driver: int) -> int:
    """Kill the processes that train for a driver; gives how many there were."""
    found = processes_below(driver, "TrainWorker")
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    return len(found)
