"""The training loop without Ray: schedules, resident windows, side inputs, fitted models."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch
from fake_benchmark import write_benchmark
from tensorboardX.proto.event_pb2 import Event

from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import (
    ArchitectureSettings,
    InputSettings,
    SplitSettings,
    TaskSettings,
)
from rayecg.core.files import read_table, write_table
from rayecg.core.train_settings import TrainSettings
from rayecg.models.checkpoint import load_checkpoint
from rayecg.models.predictor import Predictor, combine_logits
from rayecg.tasks.split import splits_of
from rayecg.tasks.task import Task, example_table, load_task
from rayecg.train.average import move_average
from rayecg.train.loop import made_ahead, train_run
from rayecg.train.resident import GrowingArray, Windows, resident_windows
from rayecg.train.run import Run, Workers
from rayecg.train.schedule import learning_rate, n_plateaus
from rayecg.train.trackers import PACKAGES, check_trackers, trackers

INPUT = InputSettings(fs=50, duration_s=4.0)
METADATA = dataclasses.replace(INPUT, metadata=("age", "sex"))
QUICK = TrainSettings(epochs=2, batch_size=8, examples_per_epoch=16)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("fake") / "out") / "work"


@pytest.fixture
def task() -> Task:
    return load_task(TaskSettings())


def resident(work: Path, task: Task, cache: Path, settings: InputSettings = INPUT) -> dict:
    run = run_of(task, "simple_cnn1d", settings)
    return resident_windows(run, work / "shards", work / "examples.parquet", cache)


def run_of(task: Task, architecture: str, settings: InputSettings, **changes: object) -> Run:
    training = dataclasses.replace(QUICK, **changes)
    own = ArchitectureSettings(architecture)
    return Run("one", "key", own, 0, task, settings, training, "shards", True)


def test_a_file_that_grows_by_rows_is_an_array_of_all_of_them(tmp_path):
    rows = np.random.default_rng(0).normal(size=(1234, 2, 3)).astype(np.float32)
    with GrowingArray(tmp_path / "x.npy", 2, 3) as x_WLT:
        for start in range(0, len(rows), 100):
            x_WLT.append(rows[start : start + 100])
        with pytest.raises(ValueError, match=r"x.npy: expected rows \(2, 3\), came \(4, 3\)"):
            x_WLT.append(np.zeros((4, 3)))
    assert np.array_equal(np.load(tmp_path / "x.npy", mmap_mode="r"), rows)
    with GrowingArray(tmp_path / "side.npy", 0) as side_WM:
        side_WM.append(np.empty((5, 0), dtype=np.float32))
    assert np.load(tmp_path / "side.npy", mmap_mode="r").shape == (5, 0)


def test_batches_that_are_made_ahead_keep_their_order_and_their_errors():
    made = []

    def call(i: int) -> tuple:
        made.append(i)
        if i == 5:
            raise DataError("the sixth")
        return (i,)

    batches = made_ahead(functools.partial(call, i) for i in range(8))
    assert [next(batches) for _ in range(5)] == [(i,) for i in range(5)]
    with pytest.raises(DataError, match="the sixth"):
        next(batches)
    assert made == list(range(len(made)))


def test_a_plateau_is_so_many_epochs_without_a_better_one():
    assert n_plateaus([], 2) == 0
    assert n_plateaus([0.5, 0.4, 0.5], 2) == 1  # no better than the best is not better
    assert n_plateaus([0.5, 0.4, 0.6, 0.5], 2) == 0
    assert n_plateaus([0.5, 0.4, 0.4, 0.4, 0.4], 2) == 2
    settings = TrainSettings(
        schedule="plateau", learning_rate=1.0, plateau_factor=0.5, plateau_patience=1
    )
    assert learning_rate(settings, 0.9) == 1.0
    assert learning_rate(settings, 0.9, [0.5, 0.4, 0.3]) == 0.25


def test_schedules_start_and_end_where_they_say():
    one_cycle = TrainSettings(learning_rate=1.0)
    assert learning_rate(one_cycle, 0.0) == pytest.approx(1 / 25)
    assert learning_rate(one_cycle, 0.25) == pytest.approx(1.0)
    assert learning_rate(one_cycle, 1.0) == pytest.approx(1e-4)
    cosine = TrainSettings(schedule="cosine", learning_rate=1.0)
    assert [learning_rate(cosine, p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.5, 0.0])


def test_windows_of_a_split_are_its_examples_in_order(work, task, tmp_path):
    windows = resident(work, task, tmp_path)
    examples = read_table(work / "examples.parquet").to_pandas()
    for split, own in windows.items():
        mine = examples[examples["split"] == split]
        assert own.examples["record_id"].to_pylist() == mine["record_id"].to_list()
        assert own.n_used == len(mine)
        # Ten seconds are two windows of four and one that ends with the record.
        assert np.bincount(own.example_W).tolist() == [3] * len(mine)
        assert own.target_WC.shape == (len(own), 5)
        x_WLT, side_WM = own.take(np.array([4, 0, 4]))
        assert x_WLT.shape == (3, 12, 200)
        assert side_WM.shape == (3, 0)
        np.testing.assert_array_equal(x_WLT[0], own.all_WLT[own.row_W[4]])
        np.testing.assert_array_equal(x_WLT[0], x_WLT[2])


def test_folds_share_the_files_and_keep_apart_who_trains(work, task, tmp_path):
    splits = splits_of(task, SplitSettings("kfold", k=3))
    records = read_table(work / "shards" / "records").drop_columns(["signal"])
    folds = tmp_path / "work"
    folds.mkdir()
    (folds / "shards").symlink_to(work / "shards")
    write_table(folds / "examples.parquet", example_table(task, records, splits))
    of_fold = [
        resident(folds, dataclasses.replace(task, split=split), tmp_path / "cache")
        for split in splits
    ]
    assert len(list((tmp_path / "cache").iterdir())) == 1
    validated: list[str] = []
    for own in of_fold:
        sides = {s: set(w.examples["patient_id"].to_pylist()) for s, w in own.items()}
        assert not sides["train"] & sides["validation"]
        validated += own["validation"].examples["record_id"].to_pylist()
    assert len(validated) == len(set(validated))
    assert len(of_fold[0]["train"].all_WLT) == 3 * len(validated)


def test_side_inputs_come_with_their_windows(work, task, tmp_path):
    windows = resident(work, task, tmp_path, METADATA)
    assert windows["train"].all_WM.shape == (len(windows["train"].all_WLT), 2)


def test_logits_of_windows_combine_by_mean_or_maximum():
    logit_WC = np.array([[1.0, -1.0], [3.0, 5.0], [7.0, 0.0]])
    start_N = np.array([0, 2])
    np.testing.assert_array_equal(combine_logits(logit_WC, start_N, "mean"), [[2, 2], [7, 0]])
    np.testing.assert_array_equal(combine_logits(logit_WC, start_N, "max"), [[3, 5], [7, 0]])


def test_the_best_epoch_by_loss_is_not_that_by_metric(work, task, tmp_path):
    windows = resident(work, task, tmp_path)
    rows: dict[str, list[dict[str, float]]] = {"metric": [], "loss": []}
    best = {}
    for monitor, seen in rows.items():
        run = run_of(task, "simple_cnn1d", INPUT, monitor=monitor, epochs=6)
        folder = tmp_path / monitor
        folder.mkdir()
        best[monitor] = train_run(run, windows, folder, on_epoch=seen.append)["best_epoch"]
        selection = load_checkpoint(folder / "checkpoint")[1]["training"]["selection"]
        assert selection["metric"] == {"metric": "macro_auroc", "loss": "loss"}[monitor]
    aurocs = [row["validation_macro_auroc"] for row in rows["metric"]]
    losses = [row["validation_loss"] for row in rows["loss"]]
    assert best == {"metric": int(np.argmax(aurocs)), "loss": int(np.argmin(losses))}


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "plateau", "plateau_patience": 1, "monitor": "loss"},
        {"ema": 0.9, "accumulate": 2},
    ],
    ids=["plateau", "ema"],
)
def test_a_run_continued_ends_in_the_same_weights(work, task, tmp_path, changes):
    windows = resident(work, task, tmp_path)
    run = run_of(task, "simple_cnn1d", INPUT, epochs=5, examples_per_epoch=24, **changes)

    class KilledError(Exception):
        pass

    def die(row: dict[str, float]) -> None:
        if row["epoch"] == 2:
            raise KilledError

    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
    train_run(run, windows, tmp_path / "whole")
    with pytest.raises(KilledError):
        train_run(run, windows, tmp_path / "broken", on_epoch=die)
    train_run(run, windows, tmp_path / "broken")
    states = [weights(tmp_path / name) for name in ("whole", "broken")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "checkpoint")[0].state_dict()


def test_two_batches_that_are_accumulated_are_one_of_twice_the_size(work, task, tmp_path):
    windows, found = resident(work, task, tmp_path), []
    plain = ArchitectureSettings("gru", hyperparameters={"dropout": 0.0, "n_layers": 1})
    for batch_size, accumulate in ((16, 1), (8, 2)):
        run = run_of(task, "gru", INPUT, epochs=1, batch_size=batch_size, accumulate=accumulate)
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        train_run(dataclasses.replace(run, architecture=plain), windows, folder)
        found.append(weights(folder))
    # One step of Adam moves a weight by the learning rate, whatever its gradient's size.
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-5, msg=key)


def test_the_last_step_of_an_epoch_is_the_mean_of_the_batches_it_has(work, task, tmp_path):
    windows, found = resident(work, task, tmp_path), []
    plain = ArchitectureSettings("gru", hyperparameters={"dropout": 0.0, "n_layers": 1})
    for accumulate in (2, 9):  # of two batches, the second asks for more than there are
        run = run_of(task, "gru", INPUT, epochs=1, accumulate=accumulate)
        folder = tmp_path / str(accumulate)
        folder.mkdir()
        train_run(dataclasses.replace(run, architecture=plain), windows, folder)
        found.append(weights(folder))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_moving_average_by_hand():
    model, average = torch.nn.BatchNorm1d(1), torch.nn.BatchNorm1d(1)
    for n_steps, value in enumerate((1.0, 2.0, 3.0)):
        with torch.no_grad():
            model.weight.fill_(value)
            model.running_mean.fill_(-value)
            model.num_batches_tracked.fill_(7 + n_steps)
        move_average(average, model, 0.15, n_steps)
    # Decays 0.1, 0.15 (2 / 11 is more), 0.15, from 1 and from 0.
    by_hand = ((1.0 * 0.15 + 2.0 * 0.85) * 0.15) + 3.0 * 0.85
    assert average.weight.item() == pytest.approx(by_hand)
    assert average.running_mean.item() == pytest.approx(
        -(((0.9 * 0.15 + 2.0 * 0.85) * 0.15) + 3.0 * 0.85)
    )
    assert int(average.num_batches_tracked) == 9


def test_the_average_is_what_is_kept(work, task, tmp_path):
    windows = resident(work, task, tmp_path)
    found = {}
    for ema in (None, 0.999):
        folder = tmp_path / str(ema)
        folder.mkdir()
        train_run(run_of(task, "simple_cnn1d", INPUT, epochs=1, ema=ema), windows, folder)
        found[ema] = weights(folder)
    assert any(not torch.equal(found[None][key], found[0.999][key]) for key in found[None])


def test_trackers_get_the_curves(work, task, tmp_path):
    run = run_of(task, "simple_cnn1d", INPUT)
    rows = [{"epoch": 0, "loss": 0.5}, {"epoch": 1, "loss": 0.25}]
    with trackers(("tensorboard",), run, tmp_path) as (track,):
        for row in rows:
            track(row)
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, seen = file.read_bytes(), []
    while data:  # length, its checksum, an event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        seen += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert seen == [("loss", 0, 0.5), ("loss", 1, 0.25)]


def test_mlflow_goes_on_in_the_run_that_was_begun(task, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for epoch in range(2):
        with trackers(("mlflow",), run_of(task, "simple_cnn1d", INPUT), tmp_path) as (track,):
            track({"epoch": epoch, "loss": 0.5})
    (file,) = tmp_path.glob("mlruns/*/*/metrics/loss")
    assert [line.split()[1:] for line in file.read_text().splitlines()] == [
        ["0.5", "0"],
        ["0.5", "1"],
    ]


def test_trackers_that_are_not_installed_are_refused(monkeypatch):
    monkeypatch.setitem(PACKAGES, "mlflow", "no_such_package")
    with pytest.raises(SettingsError, match=r"train\.trackers: mlflow needs .* no_such_package"):
        check_trackers(("tensorboard", "mlflow"))


def fitted_windows(windows: dict[str, Windows]) -> dict[str, Windows]:
    """Replace what the fake recordings give, which is noise, by one column that tells."""
    found = {}
    for split, own in windows.items():
        side = np.zeros((len(own.all_WM), 2), np.float32)
        side[own.row_W] = own.target_WC[:, 1:3]  # the first has no positive in validation
        found[split] = dataclasses.replace(own, all_WM=side)
    return found


def test_a_fitted_model_goes_the_same_way(work, task, tmp_path):
    windows = fitted_windows(resident(work, task, tmp_path, METADATA))
    run = run_of(task, "feature_boosting", METADATA)
    seen: list[dict[str, float]] = []
    summary = train_run(run, windows, tmp_path, on_epoch=seen.append)
    assert len(seen) == summary["epochs"] == 1
    assert summary["n_parameters"] >= 5 * 200  # a leaf a tree, at least
    assert summary["validation"][f"auroc_{task.label_names[1]}"] == 1.0
    assert Predictor(tmp_path / "checkpoint").input == METADATA
    assert (tmp_path / "curves.csv").read_text().startswith("epoch,loss,learning_rate")


def test_a_loss_that_is_not_finite_in_any_worker_ends_the_run_in_all(work, task, tmp_path):
    windows = resident(work, task, tmp_path)
    elsewhere = Workers(mean=lambda own: (own + np.nan) / 2)
    with pytest.raises(DataError, match="run one: the training loss is not finite in epoch 0"):
        train_run(run_of(task, "simple_cnn1d", INPUT), windows, tmp_path, elsewhere)
