"""Training with other kernels: compiled, in mixed precision, images with channels last."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from fake_benchmark import write_benchmark
from test_training import INPUT, resident, run_of, weights

from rayecg.core.experiment import ImageSettings, TaskSettings
from rayecg.tasks.task import load_task
from rayecg.train import loop
from rayecg.train.loop import train_run


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_training_ends_near_eager_training(tmp_path: Path) -> None:
    work, task = write_benchmark(tmp_path / "fake") / "work", load_task(TaskSettings())
    windows, found = resident(work, task, tmp_path / "cache"), []
    compiled = []
    plain_compile = torch.compile

    def noting(model):
        compiled.append(model)
        return plain_compile(model)

    for compile_it in (False, True):
        run = run_of(task, "simple_cnn1d", INPUT, epochs=1, ema=0.5, compile=compile_it)
        folder = tmp_path / str(compile_it)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "compile", noting)
            train_run(run, windows, folder)
        found.append(weights(folder))
    assert len(compiled) == 1
    assert set(found[0]) == set(found[1])
    # Steps of Adam are of the learning rate's size, also where a gradient is next to nothing.
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-3, atol=4e-3, msg=key)


def test_mixed_precision_differs_a_little(tmp_path: Path) -> None:
    work, task = write_benchmark(tmp_path / "fake") / "work", load_task(TaskSettings())
    windows, loss = resident(work, task, tmp_path / "cache"), {}
    for precision in ("fp32", "bf16"):
        folder = tmp_path / precision
        folder.mkdir()
        run = run_of(task, "simple_cnn1d", INPUT, epochs=1, precision=precision)
        train_run(run, windows, folder, on_epoch=lambda row, p=precision: loss.update({p: row}))
        assert all(value.dtype != torch.bfloat16 for value in weights(folder).values())
    own, other = (loss[precision]["loss"] for precision in ("fp32", "bf16"))
    assert own != other
    assert other == pytest.approx(own, rel=0.02)


def test_networks_of_images_are_trained_with_channels_last(tmp_path: Path, monkeypatch) -> None:
    work, task = write_benchmark(tmp_path / "fake") / "work", load_task(TaskSettings())
    image = dataclasses.replace(INPUT, leads=("I", "II", "V2"), image=ImageSettings(size=32))
    windows = resident(work, task, tmp_path / "cache", image)
    formats: list[bool] = []
    plain_optimizer = loop._optimizer

    def noting(settings, model):
        for own in model.modules():
            if isinstance(own, torch.nn.Conv2d) and own.in_channels > 1 and own.kernel_size[0] > 1:
                formats.append(own.weight.is_contiguous(memory_format=torch.channels_last))
        return plain_optimizer(settings, model)

    monkeypatch.setattr(loop, "_optimizer", noting)
    (tmp_path / "run").mkdir()
    train_run(run_of(task, "resnet18", image, epochs=1), windows, tmp_path / "run")
    assert formats
    assert all(formats)
    assert all(value.is_contiguous() for value in weights(tmp_path / "run").values())
