"""`ray job submit`, really typed, against a really started head."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
JOB = ["python", "jobs/benchmark.py", "--experiment", "jobs/experiments/smoke.yaml"]


def free_ports(n):
    # Ray gives its workers 10002-19999 and refuses to share them.
    with contextlib.ExitStack() as stack:
        ports = []
        while len(ports) < n:
            listener = stack.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
            if port > 19999:
                ports.append(port)
    return ports


def stop(head):
    """End the head and all it started, and nothing else."""
    import ray  # noqa: F401  (it brings psutil)
    from psutil import NoSuchProcess, Process, wait_procs

    processes = Process(head.pid).children(recursive=True)
    os.killpg(head.pid, signal.SIGTERM)
    for process in wait_procs(processes, timeout=5)[1]:
        with contextlib.suppress(NoSuchProcess):
            process.kill()
    head.kill()
    head.wait()


@pytest.fixture(params=["no token file", "a token file from before"])
def cluster(request, tmp_path):
    """Environment of a shell in the project's folder, where `ray start --head` was typed."""
    home = tmp_path / "home"
    home.mkdir()
    folder = tempfile.mkdtemp(prefix="rs", dir="/tmp")  # short: sockets' paths have a limit
    env = {
        "HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # the venv is active
        "LANG": "C.UTF-8",
        # Keeps this Ray and others on the machine apart; the user sets nothing.
        "RAY_TMPDIR": folder,
    }
    if "before" in request.param:
        # What any plain `ray.init()` leaves behind, by the same function of Ray.
        generate = ["ray", "get-auth-token", "--generate"]
        subprocess.run(generate, env=env, check=True, capture_output=True)
        assert (home / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o644
    port, dashboard, agent, client = free_ports(4)
    log = tmp_path / "head.log"
    with log.open("w") as output:
        head = subprocess.Popen(
            f"ray start --head --block --num-cpus=2 --port={port} --dashboard-port={dashboard} "
            f"--dashboard-agent-listen-port={agent} --ray-client-server-port={client}".split(),
            cwd=ROOT,
            env=env,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 90
        while "Ray runtime started" not in log.read_text():
            assert head.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        assert ("authentication is enabled" in log.read_text()) == ("before" in request.param)
        yield env
    finally:
        stop(head)
        shutil.rmtree(folder, ignore_errors=True)


def test_typed_as_it_stands_and_with_working_dir(cluster, tmp_path):
    """With the token file this needs what `make setup` puts into the environment; see README."""
    page = tmp_path / "out" / "index.html"
    for form in ([], ["--working-dir", "."]):
        # The second job finds the first one's work done: the two forms share their output.
        page.unlink(missing_ok=True)
        job = subprocess.run(
            ["ray", "job", "submit", *form, "--", *JOB, "--out", str(page.parent)],
            cwd=ROOT,
            env=cluster,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=200,
        )
        assert job.returncode == 0, job.stdout
        assert "succeeded" in job.stdout
        assert page.exists(), job.stdout
