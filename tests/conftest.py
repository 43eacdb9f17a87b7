"""What several tests share: data, one Ray session, a store, and when slow tests run."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from rayecg.archives.synthetic import SyntheticSettings, write_archive
from rayecg.core.session import RaySettings, ray_session

if TYPE_CHECKING:
    from s3_store import Store

SLOW = "RAYECG_SLOW"

# A shell that starts the tests in the background has them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis would fail an example that takes 0.2 s; tests assert no times.
hypothesis.settings.register_profile(
    "rayecg", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("rayecg")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked slow, unless asked for."""
    if os.environ.get(SLOW) == "1":
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason=f"slow; {SLOW}=1 runs it"))


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Folder with the real databases `ptb-xl`, `mitdb` and `ludb`."""
    named = os.environ.get("RAYECG_DATA")
    folder = Path(named) if named else Path.home() / ".cache" / "rayecg-data"
    if not folder.is_dir():
        if named:  # somebody meant these tests to run
            pytest.fail(f"RAYECG_DATA names {folder}, which is not there")
        pytest.skip(f"no real databases: RAYECG_DATA is not set and {folder} is not there")
    return folder


@pytest.fixture(scope="session")
def synthetic_archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated archive of 60 records at 100 Hz, five of them damaged, one in each way."""
    settings = SyntheticSettings(n_records=60, fs=100, seed=11, n_defective=5)
    return write_archive(tmp_path_factory.mktemp("synthetic") / "archive", settings)


@pytest.fixture(scope="session")
def ray() -> Iterator[None]:
    """One Ray of two CPUs for every test that asks for it; never a cluster from the environment."""
    with ray_session(RaySettings(address="local", num_cpus=2)):
        yield


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """An S3 server on this machine, which does not narrate."""
    from s3_store import Store  # few tests need what it imports

    log = logging.getLogger("werkzeug")
    before = log.level
    log.setLevel(logging.ERROR)
    made = Store()
    yield made
    made.stop()
    log.setLevel(before)


@pytest.fixture
def front(store: Store) -> Iterator[int]:
    """Give the port of a `Front` without faults before the store."""
    from s3_store import running_front

    with running_front(store) as port:
        yield port


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a store that does not answer asked again at once, and given up soon."""
    monkeypatch.setattr("rayecg.core.remote.PATIENCE_S", (0.02, 0.05))
    monkeypatch.setattr("rayecg.core.remote.ANSWER_S", 0.5)
