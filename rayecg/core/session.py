"""The one place that starts Ray or joins it.

On its own, a job starts a Ray that no other user of the machine can reach. Every Ray process listens
on all interfaces and makes its own folder writable for everybody (mode 0777), so the folder lies
inside one of mode 0700 and every request must carry a token of this process. Neither
`~/.ray/auth_token` nor `/tmp/ray` is read or written.

Inside `ray job submit`, or with an address, the job joins that cluster with the authentication that
the environment states: the cluster chose it.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import secrets
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayecg.core.errors import SettingsError

#: Private folders of this project begin with this name.
_PREFIX = "rayecg-"
_TOKEN = "token"
_RAY = "r"  # short: a socket's whole path may have 103 characters on macOS, 107 on Linux
# /r + /session_2026-01-01_00-00-00_000000_1234567 + /sockets/plasma_store
_SOCKET_TAIL = len(_PREFIX) + 8 + 1 + 2 + 46 + 21


#: Environment of workers that go through large arrays: glibc gives large blocks back as they are freed,
#: and the next step would have each page zeroed anew; Arrow's own allocator does so, too.
KEEPS_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


@dataclass(frozen=True)
class RaySettings:
    """Which Ray to use, and how much of the machine; the names are `ray.init`'s own.

    Parameters
    ----------
    address
        The cluster to join ("auto", "host:port" or "ray://host:port"), or "local" to start one.
        None joins the cluster that `RAY_ADDRESS` names (`ray job submit` sets it) and otherwise
        starts a local Ray.
    num_cpus, num_gpus, object_store_memory
        Resources of a local Ray (object store in bytes); None leaves them to Ray: all cores, all
        GPUs, 30 % of the free memory. A cluster has its own, so they are not used there.
    include_dashboard
        Whether a local Ray serves its dashboard (on 127.0.0.1, behind the token).
    log_to_driver
        Whether what workers print is shown.
    enable_progress_bars
        Whether Ray Data shows its progress bars and notes (`DataContext`'s name for it); jobs print
        progress lines of their own.
    """

    address: str | None = None
    num_cpus: int | None = None
    num_gpus: int | None = None
    object_store_memory: int | None = None
    include_dashboard: bool = False
    log_to_driver: bool = False
    enable_progress_bars: bool = False

    def __post_init__(self) -> None:
        limits = {"num_cpus": 1, "num_gpus": 0, "object_store_memory": 75 * 2**20}  # Ray's own
        for name, least in limits.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name}: expected at least {least}, came {value}")


@contextmanager
def ray_session(settings: RaySettings | None = None) -> Iterator[None]:
    """Have Ray running inside a `with` block; see `RaySettings.address` for which.

    Where Ray is already initialised (an outer session, a test's own), that one is used and left
    running.

    Raises
    ------
    SettingsError
        If the cluster named by the settings or by `RAY_ADDRESS` cannot be joined.
    """
    settings = settings or RaySettings()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = settings.address or os.environ.get("RAY_ADDRESS") or "local"
    with _local_ray(settings) if address == "local" else _joined_ray(settings, address):
        _quiet_data(settings.enable_progress_bars)
        yield


def own_node() -> dict[str, Any]:
    """Give Ray's options for what only waits or hands out, and must outlive every other node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    node = ray.get_runtime_context().get_node_id()
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "scheduling_strategy": strategy}


def cluster_cpus() -> int:
    """Give the CPUs of the nodes alive now (a cluster that scales may still grow)."""
    import ray

    return int(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> float:
    """Give the GPUs of the nodes alive now."""
    import ray

    return float(ray.cluster_resources().get("GPU", 0))


def may_grow() -> bool:
    """Say whether nodes may come to the Ray that runs: not to one that this process started."""
    from ray._private import worker

    node = worker._global_node
    return node is None or not node.is_head()


@contextmanager
def _local_ray(settings: RaySettings) -> Iterator[None]:
    import ray

    folder = _private_folder()
    token = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / _TOKEN),
        # Ray warns at four times this many processes, by default as many as cores: on two cores a
        # queue, two trainers and their workers already are eight.
        "RAY_worker_maximum_startup_concurrency": "8",
    }
    with _environment(token, unset="RAY_AUTH_TOKEN"):  # which would be preferred to the file
        _reload_authentication()
        try:
            ray.init(
                address="local",
                num_cpus=settings.num_cpus,
                num_gpus=settings.num_gpus,
                object_store_memory=settings.object_store_memory,
                include_dashboard=settings.include_dashboard,
                _temp_dir=str(folder / _RAY),
                **_log_arguments(settings),
            )
            yield
        finally:
            ray.shutdown()


@contextmanager
def _joined_ray(settings: RaySettings, address: str) -> Iterator[None]:
    import ray
    from ray.exceptions import AuthenticationError

    origin = "ray.address" if settings.address else "RAY_ADDRESS"
    if address.startswith(("http://", "https://")):
        raise SettingsError(
            f"{origin}: expected host:port of a Ray cluster, came {address}, a dashboard; "
            "send the job there with `ray job submit`"
        )
    _reload_authentication()
    try:
        _knock(address)
        ray.init(address=address, **_log_arguments(settings))
    except (AuthenticationError, OSError, ValueError) as error:
        raise SettingsError(
            f"{origin}: cannot join the Ray cluster at {address}: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Fail at once, with the reason, where nothing listens or the token is refused.

    `ray.init` tries for up to a minute, then says that it failed to connect.
    """
    from ray._raylet import GcsClient

    scheme, _, place = address.rpartition("://")
    host, colon, port = place.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        if not scheme:
            GcsClient(address=place)


def _log_arguments(settings: RaySettings) -> dict[str, Any]:
    return {"log_to_driver": settings.log_to_driver, "logging_level": logging.WARNING}


def _quiet_data(enable_progress_bars: bool) -> None:
    import ray.data  # sets its logger's level, so it comes first

    ray.data.DataContext.get_current().enable_progress_bars = enable_progress_bars
    if not enable_progress_bars:
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        # It warns of bars that are off.
        logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def _reload_authentication() -> None:
    """Make Ray read mode and token from the environment as it is now, not as it was at import."""
    from ray._raylet import AuthenticationTokenLoader, Config

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(values: dict[str, str], unset: str) -> Iterator[None]:
    """Set and unset environment variables for a block; Ray's processes inherit them."""
    before = {name: os.environ.pop(name, None) for name in (*values, unset)}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@functools.cache
def _private_folder() -> Path:
    """Make this process's folder (0700) with its token (0600) and remove it at exit.

    One a process, not one a session: threads of a Ray that was just shut down may still read the
    token, and abort the process if it is gone.
    """
    base = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    if "RAY_TMPDIR" not in os.environ and len(str(base)) + _SOCKET_TAIL > 103:
        base = Path("/tmp")
    base.mkdir(parents=True, exist_ok=True)
    _sweep(base)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=base))  # mkdtemp's mode is 0700
    unlocked = folder / "new"
    file = os.open(unlocked, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(file, secrets.token_hex(32).encode())
    # The lock tells other starts that this folder is in use. It falls with the process, however that
    # ends, so the file stays open; and it holds before the file has its name.
    _lock(file)
    unlocked.rename(folder / _TOKEN)
    atexit.register(_remove, folder, os.getpid())
    return folder


def _sweep(base: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in base.glob(_PREFIX + "*"):
        try:
            status = folder.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
                continue  # another user's, or a link that another user laid here
            file = os.open(folder / _TOKEN, os.O_WRONLY)
        except OSError:
            continue  # one that is being made, or is gone by now
        try:
            if _lock(file):
                _remove(folder)
        finally:
            os.close(file)


def _lock(file: int) -> bool:
    import fcntl  # not on Windows, where importing this module must still work

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove(folder: Path, owner: int | None = None) -> None:
    if owner is not None and owner != os.getpid():
        return  # a forked child runs the handlers of its parent
    shutil.rmtree(folder / _RAY, ignore_errors=True)
    if not (folder / _RAY).exists():  # else a dying Ray process still wrote: a later start sweeps
        shutil.rmtree(folder, ignore_errors=True)
