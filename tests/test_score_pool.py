"""Pools of real Ray actors: some die at their work, and every unit is worked on to its end."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rayecg.core.errors import DataError
from rayecg.score.pool import DEATHS, run_on_actors


def worker() -> type:
    """Give a class that travels by value: the tests are no package that a worker could import."""

    class Worker:
        """Dies at `unit` so often as the folder says."""

        def __init__(self, folder: Path) -> None:
            self.folder = folder

        def ready(self) -> dict[str, Any]:
            self._die("ready")
            return {"failure": ""}

        def work(self, payload: dict[str, Any]) -> dict[str, Any]:
            (self.folder / f"{payload['unit']}.{os.getpid()}").touch()
            self._die(payload["unit"])
            return {"unit": payload["unit"], "failure": ""}

        def _die(self, what: str) -> None:
            for token in sorted(self.folder.glob(f"die-{what}-*"))[:1]:
                token.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    return Worker


def run(folder: Path, units: list[str], n_actors: int) -> Counter[str]:
    import ray

    start = ray.remote(worker()).options(num_cpus=0, max_restarts=0).remote
    found = run_on_actors(lambda: start(folder), units, lambda unit: {"unit": unit}, n_actors)
    return Counter(result["unit"] for result in found)


def deaths(folder: Path, what: str, n: int) -> None:
    for i in range(n):
        (folder / f"die-{what}-{i}").touch()


@pytest.mark.usefixtures("ray")
def test_every_unit_ends_once_though_actors_die(tmp_path: Path) -> None:
    units = [f"{i:02d}" for i in range(12)]
    deaths(tmp_path, "03", DEATHS - 1)
    deaths(tmp_path, "07", 1)
    deaths(tmp_path, "ready", 1)
    assert run(tmp_path, units, 2) == Counter(units)
    assert not list(tmp_path.glob("die-*"))
    tried = Counter(file.name[:2] for file in tmp_path.iterdir())
    assert tried["03"] == DEATHS


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("what", ["01", "ready"])
def test_what_kills_every_actor_ends_the_job_with_its_name(tmp_path: Path, what: str) -> None:
    # A dying actor may take the answer for the unit before with it, which is blamed then.
    deaths(tmp_path, what, 3 * DEATHS)
    with pytest.raises(DataError, match="the start" if what == "ready" else f"unit {what}"):
        run(tmp_path, ["00", "01", "02"], 1)


@pytest.mark.usefixtures("ray")
def test_there_may_be_more_actors_than_units_and_no_units(tmp_path: Path) -> None:
    assert run(tmp_path, ["00"], 3) == Counter(["00"])
    assert run(tmp_path, [], 3) == Counter()
