"""What architectures cost: multiply-adds by hand, and the job's table."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from torch import nn

from rayecg import pipeline
from rayecg.core.errors import SettingsError
from rayecg.models.catalogue import ARCHITECTURES, ModelInputs, build_model
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


def test_multiply_adds_of_gated_units_and_attention_by_hand():
    gru = build_model("gru", INPUTS, 5, {"hidden": 8, "n_layers": 1})
    lstm = build_model("lstm", INPUTS, 5, {"hidden": 8, "n_layers": 1})
    # Three gates instead of four; the rest is the same.
    gate = 100 * 8 * (3 + 8)
    assert cost.multiply_adds(lstm, INPUTS) - cost.multiply_adds(gru, INPUTS) == gate
    assert cost.multiply_adds(gru, INPUTS) < 4 * gate
    layers = [
        cost.multiply_adds(build_model("ecg_transnet", INPUTS, 5, {"n_layers": n}), INPUTS)
        for n in (1, 2)
    ]
    n_tokens, width, hidden = 13, 128, 256  # every eighth of 100 samples
    linear = n_tokens * (4 * width**2 + 2 * width * hidden)
    assert layers[1] - layers[0] == linear + 2 * n_tokens**2 * width


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
