"""A small archive, a checkpoint of random weights, and what a scored output must come to."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pandas as pd
import pytest
import torch

from rayecg import pipeline
from rayecg.archives.synthetic import SyntheticSettings, write_archive
from rayecg.core.destination import Destination, open_destination
from rayecg.core.experiment import STANDARD_LEADS, ArchiveSettings, InputSettings, ScoreSettings
from rayecg.core.settings import to_tree
from rayecg.core.units import Units
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.models.checkpoint import save_checkpoint

#: Records of a unit.
SIZE = 16
FOLDERS = ("predictions", "windows")


def write_records(folder: Path, n: int, duration_s: float = 3.0, n_defective: int = 3) -> Path:
    """Write an archive of WFDB records side by side, a few of them damaged."""
    settings = SyntheticSettings(
        n_records=n, fs=100, duration_s=duration_s, seed=5, n_defective=n_defective
    )
    made = write_archive(folder.with_name(f"{folder.name}-as-made"), settings)
    folder.mkdir()
    for file in sorted(made.glob("records100/*/*")):
        file.rename(folder / file.name)
    shutil.rmtree(made)
    return folder


def write_checkpoint(folder: Path, seed: int = 0, n_filters: int = 4, scale: float = 1.0) -> Path:
    """Write a checkpoint that reads two seconds, so that a longer record has several windows.

    With many filters it is slow, which leaves time to disturb it. `scale` multiplies the filters.
    """
    own = InputSettings(fs=100, duration_s=2.0, leads=STANDARD_LEADS)
    hyperparameters = {"filters": [n_filters] * 3, "kernels": [7, 5, 3], "hidden": 4}
    torch.manual_seed(seed)
    model = build_model("simple_cnn1d", ModelInputs.of(own), 2, hyperparameters)
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, torch.nn.Conv1d):
                layer.weight *= scale
    card = {
        "architecture": "simple_cnn1d",
        "hyperparameters": hyperparameters,
        "input": to_tree(own),
        "task": {"name": "mine", "labels": ["A", "B"], "unit": "record"},
        "operating_point": {
            "kind": "multilabel",
            "calibrator": {
                "method": "temperature",
                "split": "validation",
                "n_examples": 10,
                "temperature": 1.5,
            },
            "thresholds_C": [0.5, 0.5],
            "rule": "max_f1",
            "split": "validation",
            "n_examples": 10,
        },
    }
    save_checkpoint(folder, model, card)
    return folder


def score(
    checkpoint: Path, archive: Path | str, out: Path | str, actors: int = 1, **options: Any
) -> dict[str, Any]:
    """Score a WFDB archive in small units on the Ray that runs."""
    settings = ScoreSettings(actors, records_per_unit=SIZE)
    return pipeline.score(
        checkpoint, ArchiveSettings("wfdb", str(archive)), out, settings, **options
    )


def contents(out: Path | str) -> dict[str, bytes]:
    """Give the bytes of an output's rows, by the names of their files."""
    place = open_destination(out)
    return {name: place.read(name) for folder in FOLDERS for name in place.names(folder)}


def rows(out: Path | str) -> pd.DataFrame:
    """Give the rows of `predictions/`."""
    place = open_destination(out)
    parts = [pd.read_parquet(io.BytesIO(place.read(name))) for name in place.names("predictions")]
    return pd.concat(parts, ignore_index=True)


def n_entered(out: Path | str | Destination) -> int:
    """Give how many units the ledger holds."""
    place = out if isinstance(out, Destination) else open_destination(out)
    return len(place.names("ledger"))


def check_whole(out: Path | str, n: int) -> dict[str, Any]:
    """Check that each of so many records has one row, in all accounts; gives the manifest."""
    manifest = Units(out, "").manifest()
    assert manifest is not None
    frame = rows(out)
    assert len(frame) == frame["record_id"].nunique() == manifest["n_input"] == n
    statuses = frame["status"].value_counts()
    for status in ("ok", "degraded", "quarantined"):
        assert manifest[f"n_{status}"] == statuses.get(status, 0)
    place = open_destination(out)
    assert len(place.names("predictions")) == n_entered(out)
    assert place.exists("summary.json")
    return manifest


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "own")


@pytest.fixture(scope="module")
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of as many records as the module's `N` says; tests change copies of it."""
    return write_records(tmp_path_factory.mktemp("archive") / "records", request.module.N)


@pytest.fixture(scope="module")
def undisturbed(
    request: pytest.FixtureRequest,
    ray: None,
    checkpoint: Path,
    archive: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Scores of the archive; tests change copies of them."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    score(checkpoint, archive, out)
    check_whole(out, request.module.N)
    return out


def wait_for(reached: Callable[[], Any], ended: Callable[[], Any], what: str) -> Any:
    """Wait for something that must come before the work ends; gives what was reached."""
    while not (found := reached()):
        assert not ended(), f"the work ended before {what}"
        time.sleep(0.001)
    return found


@contextmanager
def meanwhile(work: Callable[[Event], None]):
    """Run something beside a block, which waits for it in the end; its error is raised there.

    The event says that the block has ended.
    """
    over, failed = Event(), []

    def run() -> None:
        try:
            work(over)
        except BaseException as error:
            failed.append(error)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
    if failed:
        raise failed[0]
