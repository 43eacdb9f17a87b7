"""`rayecg.core.session`: a local Ray that is ours alone, and what happens around it."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap

import pytest

from rayecg.core.session import RaySettings

SETTINGS = "RaySettings(num_cpus=1, object_store_memory=100_000_000)"

#: Sessions one after the other and inside one another, and strangers at the door.
SESSIONS = f"""
    import json, os, stat, subprocess, sys
    from pathlib import Path
    from rayecg.core.session import RaySettings, cluster_cpus, ray_session

    def mode(path):
        return oct(stat.S_IMODE(os.stat(path).st_mode))

    def stranger(address, **env):
        code = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
        clean = {{k: v for k, v in os.environ.items() if not k.startswith("RAY_")}}
        done = subprocess.run([sys.executable, "-c", code, address], env=clean | env,
                              capture_output=True, text=True)
        return "joined" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    environment = {{k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}}
    told = {{"sessions": []}}
    for _ in range(2):
        with ray_session({SETTINGS}):
            import ray
            with ray_session():
                told["nested"] = ray.is_initialized()
            told["outlives_nested"] = ray.is_initialized()
            where = ray.remote(lambda: __import__("rayecg.core").core.__file__)
            told["sessions"].append([cluster_cpus(), ray.get(where.remote())])
            token = os.environ["RAY_AUTH_TOKEN_PATH"]
            address = ray.get_runtime_context().gcs_address
            if "nobody" not in told:
                told["nobody"] = stranger(address)
                told["wrong"] = stranger(address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
                told["owner"] = stranger(
                    address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=token)
            told["rows"] = ray.data.range(8, override_num_blocks=2).count()
        told["after"] = ray.is_initialized()
    told["modes"] = [mode(Path(token).parent), mode(token)]
    told["folder"] = str(Path(token).parent)
    told["environment_kept"] = environment == {{
        k: v for k, v in os.environ.items() if k.startswith("RAY_AUTH")}}
    print(json.dumps(told))
"""


def start(script, home, **env):
    """Run a driver in a process of its own, from a folder that is not the project's."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=home,
        env={**clean, "HOME": str(home), **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    # As on a machine whose owner had switched authentication off: local sessions have it anyway.
    process = start(SESSIONS, home, RAY_AUTH_MODE="disabled")
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    return {**json.loads(out.splitlines()[-1]), "home": home, "out": out, "err": err}


def test_token_and_folder_are_the_owners_alone(told):
    assert told["modes"] == ["0o700", "0o600"]


def test_home_is_not_touched(told):
    assert list(told["home"].iterdir()) == []


def test_strangers_are_refused(told):
    assert "AuthenticationError" in told["nobody"]
    assert "AuthenticationError" in told["wrong"]
    assert told["owner"] == "joined"


def test_nested_session_uses_the_outer_one(told):
    assert told["nested"]
    assert told["outlives_nested"]
    assert not told["after"]


def test_two_sessions_in_a_row(told):
    assert [n_cpus for n_cpus, _ in told["sessions"]] == [1, 1]
    import rayecg.core

    assert {path for _, path in told["sessions"]} == {rayecg.core.__file__}
    assert told["environment_kept"]


def test_quiet_and_gone_afterwards(told):
    assert told["rows"] == 8
    assert told["out"].count("\n") == 1  # the one line printed above
    assert told["err"] == ""
    assert not os.path.exists(told["folder"])


@pytest.mark.slow
def test_starts_again_after_a_kill(tmp_path):
    """At once, with the killed one's Ray still dying, and where HOME cannot be written."""
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    script = f"""
        import os, time
        from rayecg.core.session import RaySettings, ray_session
        with ray_session({SETTINGS}):
            print(os.environ["RAY_AUTH_TOKEN_PATH"], flush=True)
            time.sleep(float(os.environ["SLEEP"]))
    """
    killed = start(script, home, SLEEP="100")
    left = killed.stdout.readline().strip()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert os.path.exists(left)
    again = start(script, home, SLEEP="0")
    out, err = again.communicate(timeout=120)
    assert again.returncode == 0, err
    assert out.strip() != left
    assert not os.path.exists(left)  # swept by the second start


def test_import_needs_no_ray():
    code = "import sys, rayecg.core.session; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_wrong_addresses_are_named(tmp_path):
    """In a process of its own: where Ray runs already, no address is looked at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # and nobody listens
        deaf = f"127.0.0.1:{free.getsockname()[1]}"
        script = f"""
            import os
            from rayecg.core.errors import SettingsError
            from rayecg.core.session import RaySettings, ray_session

            for variable, setting in [("http://127.0.0.1:8265", None), (None, "rubbish"),
                                      (None, "{deaf}")]:
                os.environ.pop("RAY_ADDRESS", None)
                if variable:
                    os.environ["RAY_ADDRESS"] = variable
                try:
                    with ray_session(RaySettings(address=setting)):
                        pass
                except SettingsError as error:
                    print(error)
        """
        process = start(script, tmp_path)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    dashboard, rubbish, refused = out.splitlines()
    assert dashboard.startswith("RAY_ADDRESS: ")
    assert "ray job submit" in dashboard
    assert rubbish.startswith("ray.address: ")
    assert "rubbish" in rubbish
    assert deaf in refused
    assert "refused" in refused


@pytest.mark.parametrize("wrong", [{"num_cpus": 0}, {"num_gpus": -1}, {"object_store_memory": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RaySettings(**wrong)
