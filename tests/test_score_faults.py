"""Scoring that is killed, cut off and begun again: the rows of an undisturbed run, byte for byte.

Every test that kills also checks that it did so before the end.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from full_disk import small_disk
from ray_processes import processes_below
from scored_archive import (
    FOLDERS,
    SIZE,
    archive,
    check_whole,
    checkpoint,
    contents,
    meanwhile,
    n_entered,
    score,
    undisturbed,
    wait_for,
    write_checkpoint,
    write_records,
)
from test_jobs import command

from rayecg.core.errors import DataError
from rayecg.core.experiment import ArchiveSettings, ScoreSettings
from rayecg.core.files import read_json
from rayecg.core.units import Units
from rayecg.pipeline.scoring import open_source
from rayecg.score.unit import UnitScorer

__all__ = ["archive", "checkpoint", "undisturbed"]  # fixtures

N, N_SLOW = 150, 480
#: Of a network that takes some hundredths of a second for a record.
SLOW_FILTERS = 256


@pytest.fixture(scope="module")
def slow_checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("slow-checkpoint") / "slow", n_filters=SLOW_FILTERS
    )


@pytest.fixture(scope="module")
def long_archive(tmp_path_factory) -> Path:
    return write_records(tmp_path_factory.mktemp("long-archive") / "records", N_SLOW)


def job(checkpoint: Path, archive: Path, out: Path | str, *more: str) -> list[str]:
    own = ("--checkpoint", checkpoint, "--archive", "wfdb", "--path", archive, "--out", out, *more)
    return command("score", *own)


@pytest.fixture(scope="module")
def undisturbed_job(slow_checkpoint, long_archive, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed-job") / "out"
    done = subprocess.run(job(slow_checkpoint, long_archive, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    check_whole(out, N_SLOW)
    return out


def writes(out: Path) -> bool:
    """Say whether rows are being written now; that is soon over, and may not be seen."""
    return any(out.glob("predictions/.*.part"))


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("moment", ["first entry", "part file"])
@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(
    checkpoint: Path, archive: Path, undisturbed: Path, tmp_path: Path, moment: str
) -> None:
    out = tmp_path / "out"

    def kill(over: threading.Event) -> None:
        wait_for(lambda: n_entered(out), over.is_set, "a first entry")
        if moment == "part file":
            wait_for(lambda: writes(out) or n_entered(out) > 2, over.is_set, "a part file")
        found = processes_below(os.getpid(), "ray::UnitActor")
        os.kill(found[0], signal.SIGKILL)
        assert n_entered(out) < n_entered(undisturbed)

    with meanwhile(kill):
        score(checkpoint, archive, out, actors=2)
    check_whole(out, N)
    assert contents(out) == contents(undisturbed)


@pytest.mark.usefixtures("ray")
@pytest.mark.slow
def test_a_worker_of_a_killed_job_may_go_on_writing(
    checkpoint: Path, archive: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    settings = ScoreSettings(1, records_per_unit=SIZE)
    source = open_source(ArchiveSettings("wfdb", str(archive)), None)
    plan = source.plan(None, SIZE, 1, None)
    decided = read_json(undisturbed / "plan.json")
    units = {"orphan": Units(out, decided["key"])}
    own = {"orphan": checkpoint}
    orphan = UnitScorer(source, own, units, {"orphan": decided}, settings)
    orphan.open()
    written = []

    def go_on(over: threading.Event) -> None:
        """Write as a worker does that its job left behind: every unit, again and again."""
        wait_for((out / "plan.parquet").exists, over.is_set, "the plan")
        while not over.is_set():
            unit = list(plan.rows)[len(written) % len(plan.rows)]
            try:
                orphan(source.payload(unit, plan))
                written.append(unit)
            except DataError as error:
                # The job clears unfinished files away at its end, and one may have been this one's.
                if "cannot be written (No such file or directory)" not in str(error):
                    raise

    with meanwhile(go_on):
        score(checkpoint, archive, out)
    assert written
    check_whole(out, N)
    assert contents(out) == contents(undisturbed)


@pytest.mark.slow
def test_a_job_that_is_killed_three_times_and_begun_again_at_once(
    slow_checkpoint: Path, long_archive: Path, undisturbed_job: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    own = job(slow_checkpoint, long_archive, out, "--actors", "2")
    n_units = n_entered(undisturbed_job)
    orphans: set[int] = set()
    for _ in range(3):
        before = n_entered(out)
        driver = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

        def at_work(driver=driver, before=before) -> list[int]:
            """List its workers, once new entries stand and, if that is seen, a file is being written."""
            n_new = n_entered(out) - before
            if n_new > 3 or (n_new and writes(out)):
                return processes_below(driver.pid, "ray::UnitActor.work")
            return []

        workers = wait_for(at_work, lambda own=driver: own.poll() is not None, "the kill")
        driver.kill()
        assert n_entered(out) < n_units
        # Its workers are left to themselves, and the next start does not wait for their end.
        orphans.update(pid for pid in workers if Path(f"/proc/{pid}").exists())
        driver.communicate()
    assert orphans
    entries = Units(out, read_json(out / "plan.json")["key"])
    n_done = sum(entry["n_input"] for entry in entries.finished(FOLDERS).values())
    last = subprocess.run(own, capture_output=True, text=True)
    assert last.returncode == 0, last.stderr
    manifest = check_whole(out, N_SLOW)
    assert 0 < manifest["n_scored"] <= N_SLOW - n_done
    assert contents(out) == contents(undisturbed_job)
    assert not list(out.rglob("*.part"))


@pytest.mark.slow
def test_a_second_job_is_refused_while_the_first_lives(
    slow_checkpoint: Path, long_archive: Path, undisturbed_job: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    own = job(slow_checkpoint, long_archive, out)
    first = subprocess.Popen(own, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: n_entered(out), lambda: first.poll() is not None, "a first entry")
    second = subprocess.run(own, capture_output=True, text=True)
    assert second.returncode == 1
    assert second.stderr == (
        f"score.py: {out}: another job is writing here; wait for it or use another\n"
    )
    assert first.poll() is None
    said = first.communicate()[1]
    assert first.returncode == 0, said
    check_whole(out, N_SLOW)
    assert contents(out) == contents(undisturbed_job)


NODE_DIES = """
    import sys, threading, time
    from pathlib import Path

    sys.path.insert(0, sys.argv.pop(1))

    from ray.cluster_utils import Cluster
    from ray_processes import processes_below
    from scored_archive import n_entered

    from rayecg import pipeline
    from rayecg.core.experiment import ArchiveSettings
    from rayecg.core.session import RaySettings

    checkpoint, archive, out = map(Path, sys.argv[1:])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]

    def at_work(node):
        raylet = node.all_processes["raylet"][0].process.pid
        return processes_below(raylet, "ray::UnitActor.work")

    def kill_a_node():
        while n_entered(out) < 3 or not all(map(at_work, nodes)):
            time.sleep(0.01)
        cluster.remove_node(nodes[0], allow_graceful=False)
        print("killed at", n_entered(out), flush=True)

    threading.Thread(target=kill_a_node, daemon=True).start()
    where = RaySettings(address=cluster.address)
    pipeline.score(checkpoint, ArchiveSettings("wfdb", str(archive)), out, ray=where)
    cluster.shutdown()
"""


@pytest.mark.slow
def test_a_node_that_dies_takes_no_unit_with_it(
    slow_checkpoint: Path, long_archive: Path, undisturbed_job: Path, tmp_path: Path
) -> None:
    out, script = tmp_path / "out", tmp_path / "node_dies.py"
    script.write_text(textwrap.dedent(NODE_DIES))
    environment = {name: value for name, value in os.environ.items() if name[:4] != "RAY_"}
    found = subprocess.run(
        [sys.executable, script, Path(__file__).parent, slow_checkpoint, long_archive, out],
        env=environment, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr[-4000:]
    (n_then,) = re.findall(r"^killed at (\d+)$", found.stdout, re.MULTILINE)
    assert 3 <= int(n_then) < n_entered(undisturbed_job)
    check_whole(out, N_SLOW)
    assert contents(out) == contents(undisturbed_job)


@pytest.mark.slow
def test_a_disk_that_is_full_stops_the_job_and_loses_nothing(
    slow_checkpoint: Path, long_archive: Path, undisturbed_job: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        own = job(slow_checkpoint, long_archive, disk.folder / "out")
        filler = disk.fill(leave=100 << 10)
        full = disk.run(own, capture_output=True, text=True)
        assert full.returncode == 1
        said = full.stderr.strip().splitlines()[-1]
        assert "Traceback" not in full.stderr, full.stderr
        assert said.startswith(f"score.py: {disk.folder}/out/")
        assert said.endswith("(no space left; free some, the same command continues)")
        out = disk.seen / "out"
        assert 0 < n_entered(out) < n_entered(undisturbed_job)
        assert not (out / "manifest.json").exists()
        assert not list(out.rglob("*.part"))
        filler.unlink()
        freed = disk.run(own, capture_output=True, text=True)
        assert freed.returncode == 0, freed.stderr
        assert check_whole(out, N_SLOW)["n_scored"] < N_SLOW
        assert contents(out) == contents(undisturbed_job)
