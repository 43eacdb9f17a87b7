"""`cluster.yaml`: valid for Ray itself, and no node that anybody else could use."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
START = ("head_start_ray_commands", "worker_start_ray_commands")


@pytest.fixture(scope="module")
def config():
    """What `ray up` works with before it asks AWS anything."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(prepared)
    return prepared


def start_command(config, key):
    (command,) = [command for command in config[key] if "ray start" in command]
    return command


def test_ray_schema_refuses_what_it_does_not_know(config):
    import jsonschema
    from ray.autoscaler._private.util import validate_config

    with pytest.raises(jsonschema.ValidationError):
        validate_config({**config, "head_start_commands": []})


def test_node_types(config):
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    cpu, gpu = types["cpu_worker"], types["gpu_worker"]
    assert cpu["min_workers"] == 0 < cpu["max_workers"] <= config["max_workers"]
    assert gpu["min_workers"] == gpu["max_workers"] == 0  # optional: switched on by hand
    assert gpu["node_config"]["InstanceType"].startswith(("g", "p"))


def test_image_and_project_agree(config):
    import ray

    # The nodes run the project's own Ray; the image's should at least be no other.
    assert f":{ray.__version__}-py311" in config["docker"]["image"]
    gpu = config["available_node_types"]["gpu_worker"]["docker"]["worker_image"]
    assert f":{ray.__version__}-py311" in gpu


@pytest.mark.parametrize("key", START)
def test_starts_from_the_project_with_the_token(config, key):
    command = start_command(config, key)
    assert command.startswith("cd ~/rayecg && . .venv/bin/activate && ")
    assert "RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$HOME/.ray/auth_token " in command
    assert ";" not in command  # a step that fails must not let an open Ray start


def test_dashboard_on_localhost_only(config):
    command = start_command(config, START[0])
    assert "--dashboard-host=127.0.0.1" in command
    assert "--autoscaling-config=~/ray_bootstrap_config.yaml" in command


@pytest.mark.parametrize("key", ["head_setup_commands", "worker_setup_commands"])
def test_installs_the_project_on_every_node(config, key):
    assert config["file_mounts"] == {"~/rayecg": ".", "~/.ray/auth_token": "~/.ray/auth_token"}
    assert {".venv", ".git"} <= set(config["rsync_exclude"])
    (command,) = [command for command in config[key] if "make setup" in command]
    assert command.startswith("cd ~/rayecg && ")
    assert command.endswith(" && make setup")


@pytest.mark.parametrize("key", ["head_setup_commands", "worker_setup_commands"])
def test_setup_closes_the_token_and_opens_shells(config, key, tmp_path):
    """The commands run here as they stand, twice, as on a node that is set up again."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("0" * 64)
    token.chmod(0o644)
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    mine = [command for command in config[key] if "auth_token" in command]
    for command in mine * 2:
        subprocess.run(["bash", "-c", command], env=env, check=True)
    assert token.stat().st_mode & 0o777 == 0o600
    told = subprocess.run(
        ["bash", "-c", ". ~/.bashrc; echo $RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $PATH"],
        env=env,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert told.startswith(f"token {token} {tmp_path}/rayecg/.venv/bin:")
    assert (tmp_path / ".bashrc").read_text().count("RAY_AUTH_MODE") == 1
