"""What architectures cost: multiply-adds by hand, and the job's table."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from rayecg import pipeline
from rayecg.core.errors import SettingsError
from rayecg.models.catalogue import ARCHITECTURES, ModelInputs
from rayecg.train import cost

INPUTS = ModelInputs(("I", "II", "V2"), 100, 50)


class Sequence(nn.Module):
    """A recurrent network of one output a step."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        return self.head(self.lstm(x_BLT.mT)[0][:, -1])


def test_multiply_adds_by_hand():
    convolution = nn.Sequential(nn.Conv1d(3, 8, 5, padding=2), nn.Flatten(), nn.Linear(800, 5))
    assert cost.multiply_adds(convolution, INPUTS) == 100 * 8 * 3 * 5 + 800 * 5
    # Each of two directions: four gates of 8 read 3 inputs, then 16, and 8 states.
    steps = 100 * 2 * 4 * 8 * ((3 + 8) + (16 + 8))
    assert cost.multiply_adds(Sequence(), INPUTS) == steps + 16 * 5


def test_every_architecture_names_its_source():
    assert [name for name in ARCHITECTURES if not cost.source_of(name)] == []


def test_the_job_writes_a_table(tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "TURNS", 1)
    monkeypatch.setattr(cost, "TURN_S", 0.0)
    names = ["simple_cnn1d", "simple_cnn2d", "feature_boosting"]
    text = pipeline.measure_architectures(tmp_path, names)
    assert text in (tmp_path / "summary.md").read_text()
    table = pd.read_csv(tmp_path / "architectures.csv", index_col="architecture")
    assert list(table.index) == names
    assert table["parameters"].tolist()[:2] == [46_757, 6_613]
    # Three convolutions at 1000, 500 and 250 samples, and two linear layers.
    by_hand = 1000 * 32 * 12 * 7 + 500 * 64 * 32 * 5 + 250 * 128 * 64 * 3 + 128 * 64 + 64 * 5
    assert table["multiply_adds"]["simple_cnn1d"] == by_hand
    fitted = table.loc["feature_boosting"]
    assert fitted[["parameters", "training"]].isna().all()
    assert fitted["scoring"] > 0
    assert table["source"].notna().all()


def test_unknown_names_are_refused_before_anything_is_measured(tmp_path):
    with pytest.raises(SettingsError, match="resnet1d"):
        pipeline.measure_architectures(tmp_path / "out", ["resnet1dd"])
    assert not (tmp_path / "out").exists()
