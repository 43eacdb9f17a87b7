"""A new architecture is one file and one line: in a copy of the project, the whole way."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from test_models import TOY

from rayecg.core.files import read_json

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_toy_runs_the_whole_way(tmp_path: Path) -> None:
    for name in ("rayecg", "jobs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "rayecg" / "models" / "toy.py").write_text(TOY)
    catalogue = tmp_path / "rayecg" / "models" / "catalogue.py"
    start = "ARCHITECTURES = {\n"
    text = catalogue.read_text()
    assert text.count(start) == 1
    catalogue.write_text(text.replace(start, f'{start}    "toy": "rayecg.models.toy:Toy",\n'))
    smoke = tmp_path / "jobs" / "experiments" / "smoke.yaml"
    command = [sys.executable, tmp_path / "jobs" / "benchmark.py", "--experiment", smoke]
    command += ["--set", "architectures=[{name: toy, hyperparameters: {scale: 2.0}}]"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [*command, "--out", tmp_path / "out"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    runs = pd.read_parquet(tmp_path / "out" / "runs.parquet").set_index("run")
    assert runs.loc["toy-seed0", "status"] == "ok"
    assert runs.loc["toy-seed0", "n_parameters"] == 12 * 5 + 5
    assert 0 <= runs.loc["toy-seed0", "test_macro_auroc"] <= 1
    card = read_json(tmp_path / "out" / "work" / "train" / "toy-seed0" / "checkpoint" / "card.json")
    assert card["hyperparameters"] == {"scale": 2.0}
