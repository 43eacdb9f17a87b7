"""Pools of real Ray actors: some die at their work, and every unit is worked on to its end."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rayecg.core.errors import DataError
from rayecg.score import pool
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
            if not payload.get("careful"):
                self._die(payload["unit"])
            self._die(f"careful-{payload['unit']}")
            until = time.monotonic() + payload.get("wait_s", 0)
            while len(list(self.folder.iterdir())) < 2 and time.monotonic() < until:
                time.sleep(0.01)
            return {"unit": payload["unit"], "failure": ""}

        def _die(self, what: str) -> None:
            for token in sorted(self.folder.glob(f"die-{what}-*"))[:1]:
                token.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    return Worker


def run(
    folder: Path, units: list[str], n_actors: int, num_cpus: float = 0, **more: Any
) -> Counter[str]:
    import ray

    start = ray.remote(worker()).options(num_cpus=num_cpus, max_restarts=0).remote
    give = {"payload": lambda unit: {"unit": unit}, **more}
    with closing(run_on_actors(lambda: start(folder), units, n_actors=n_actors, **give)) as found:
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


@pytest.mark.usefixtures("ray")
def test_actors_that_die_now_and_then_before_they_are_ready_end_nothing(tmp_path: Path) -> None:
    """Each time that one is ready in between, the next death is the first."""
    units = [f"{i:02d}" for i in range(2 * DEATHS)]
    for unit in units[: DEATHS + 1]:
        deaths(tmp_path, unit, 1)

    def payload(unit: str) -> dict[str, Any]:
        # Its actor dies at the unit, and then the one that takes its place, before it is ready.
        if list(tmp_path.glob(f"die-{unit}-*")):
            deaths(tmp_path, "ready", 1)
        return {"unit": unit}

    assert run(tmp_path, units, 1, payload=payload) == Counter(units)
    assert not list(tmp_path.glob("die-*"))


@pytest.mark.usefixtures("ray")
def test_few_units_are_shared_among_the_actors(tmp_path: Path) -> None:
    def payload(unit: str) -> dict[str, Any]:
        return {"unit": unit, "wait_s": 10}  # for the other unit to be begun

    assert run(tmp_path, ["00", "01"], 2, payload=payload) == Counter(["00", "01"])
    assert len({file.suffix for file in tmp_path.iterdir()}) == 2


@pytest.mark.usefixtures("ray")
def test_actors_that_find_no_room_are_spoken_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "SILENT_S", 0.1)

    class SaidError(Exception):
        pass

    def late() -> None:
        raise SaidError

    with pytest.raises(SaidError):
        run(tmp_path, ["00"], 1, num_cpus=1000, late=late)


@pytest.mark.usefixtures("ray")
def test_a_unit_that_kills_is_worked_on_with_care(tmp_path: Path) -> None:
    units = ["00", "01", "02", "03"]
    deaths(tmp_path, "01", 3 * DEATHS)
    deaths(tmp_path, "careful-01", 1)

    def careful(unit: str) -> dict[str, Any]:
        return {"unit": unit, "careful": True}

    assert run(tmp_path, units, 2, careful=careful) == Counter(units)
    assert not list(tmp_path.glob("die-careful-*"))
    deaths(tmp_path, "careful-01", 3 * DEATHS)
    with pytest.raises(DataError, match=f"unit 01: {2 * DEATHS} workers died at it"):
        run(tmp_path, ["01"], 1, careful=careful)
