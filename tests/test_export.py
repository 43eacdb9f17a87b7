"""Exports: files that answer like the checkpoint, made from the right records, told in its card."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
import torch
from fake_benchmark import KEY, write_benchmark

from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import read_json, read_table, write_json, write_table
from rayecg.core.settings import to_tree
from rayecg.core.versions import versions
from rayecg.models.backends import Backend, onnx_backend, open_backend, torch_backend, verify
from rayecg.models.catalogue import (
    ModelInputs,
    build_model,
    declared_reads,
    example_batch,
)
from rayecg.models.checkpoint import (
    CARD,
    ONNX,
    ONNX_INT8,
    PROGRAM,
    WEIGHTS,
    identity,
    load_checkpoint,
    read_card,
    save_checkpoint,
    write_card,
)
from rayecg.models.export import OPSET, export_program, write_int8, write_onnx
from rayecg.pipeline.export import export
from rayecg.score import batches
from rayecg.train.reference import examples_digest

#: The figure that the cards name, which is not that of the tasks.
METRIC = "macro_auprc"
#: Files of a bundle without exports.
BUNDLE = (CARD, WEIGHTS)
KINDS = {
    "beats": ("multiclass", InputSettings(leads=("MLII",), fs=100, duration_s=1.0)),
    # Windows of 4 s of recordings of 10 s: three of each.
    "recordings": ("multilabel", InputSettings(leads=("I", "II", "V1"), fs=100, duration_s=4.0)),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On batches as small as these, threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=KINDS)
def finished(request, tmp_path_factory) -> Path:
    """A benchmark's output with a bundle that has learnt its training examples."""
    return make_finished(tmp_path_factory.mktemp("export") / "out", request.param)


def make_finished(out: Path, kind: str) -> Path:
    write_benchmark(out, kind)
    task = read_json(out / "work" / "task.json")
    reads = KINDS[kind][1]
    labels = tuple(task["labels"])
    torch.manual_seed(0)
    model = build_model("simple_cnn1d", ModelInputs.of(reads), len(labels), {"hidden": 8})
    examples = read_table(out / "work" / "examples.parquet").to_pandas()
    train = examples[examples["split"] == "train"]
    targets_NC = train[[f"target_{label}" for label in labels]].to_numpy()
    trained_on = examples_digest(train["record_id"], train["offset"], targets_NC)
    card = card_of(kind, task["name"], task["unit"], labels)
    card["training"]["data"] = {"examples_sha256": trained_on}
    card["metrics"] = {"primary": {"metric": METRIC}}
    bundle = out / "work" / "train" / "wide-seed0" / "checkpoint"
    save_checkpoint(bundle, model, card)
    wanted = batches.draw_examples(examples, None, 1000, "train")
    sample = batches.prepare_sample(out / "work" / "shards", bundle, wanted, 1000)
    x_WLT = torch.from_numpy(np.concatenate([item.x_WLT for item in sample.items_W[:64]]))
    # What the records' labels are does not matter here: the sign of a lead is easily learnt.
    target_W = (x_WLT[:, 0].mean(dim=1) > x_WLT[:, 0].mean(dim=1).median()).long()
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        loss = torch.nn.functional.cross_entropy(model(x_WLT), target_W)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    save_checkpoint(bundle, model, card)
    return bundle


def card_of(kind: str, name: str, unit: str, labels: Sequence[str]) -> dict[str, Any]:
    decides, reads = KINDS[kind]
    fitted = {"split": "validation", "n_examples": 10}
    point: dict[str, Any] = {"kind": decides, **fitted, "calibrator": {"method": "none", **fitted}}
    point["rule"] = "argmax" if decides == "multiclass" else "max_f1"
    point["thresholds_C"] = [] if decides == "multiclass" else [0.5] * len(labels)
    return {
        "architecture": "simple_cnn1d",
        "hyperparameters": {"hidden": 8},
        "input": to_tree(reads),
        "task": {"name": name, "kind": decides, "unit": unit, "labels": list(labels)},
        "operating_point": point,
        "training": {"fold": None, "shards_key": KEY},
    }


@pytest.fixture(scope="module")
def done(finished) -> tuple[Path, dict[str, Any], dict[str, list[str]], str]:
    """The bundle after its export, what was said, whose windows were read, and who it was before."""
    before = identity(read_card(finished))
    read: dict[str, list[str]] = {}
    prepare: Callable[..., batches.Sample] = batches.prepare_sample

    def note(shards: Path, checkpoint: Path, wanted: Any, n_windows: int) -> batches.Sample:
        sample = prepare(shards, checkpoint, wanted, n_windows)
        read["validation" if not read else "train"] = sorted(set(sample.record_W))
        return sample

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "prepare_sample", note)
        found = export(finished, n_calibration=40)
    return finished, found, read, before


def test_the_card_says_what_was_made(done):
    bundle, found, _, before = done
    card = read_card(bundle)
    assert found == {"exports": card["exports"], "left_out": {}}
    assert set(card["exports"]) == {PROGRAM, ONNX, ONNX_INT8}
    assert identity(card) == before
    # `.lock` stays wherever a job has written.
    assert {path.name for path in bundle.iterdir()} == {*card["exports"], *BUNDLE, ".lock"}
    for name, said in card["exports"].items():
        assert said["size"] == (bundle / name).stat().st_size
        assert said["made_by"].items() <= versions().items()
        assert set(said["latency_ms"]) == {"one_window", "eager", "threads"}
        agreement = said["agreement"]
        assert agreement["split"] == "validation"
        assert 0 <= agreement["same_decisions"] <= 1
        metric = agreement["metric"]
        assert set(metric) == {"name", "export", "eager"}
        assert metric["name"] == card["metrics"]["primary"]["metric"] == METRIC
        assert 0 <= metric["eager"] <= 1
        beats = card["task"]["unit"] == "beat"
        assert agreement["n_windows"] == agreement["n_examples"] * (1 if beats else 3)
        if name != ONNX_INT8:
            # Float32 sums in another order; see `backends.allowed`.
            assert agreement["max_dp"] < 1e-4
            assert agreement["same_decisions"] == 1.0
    calibration = card["exports"][ONNX_INT8]["calibration"]
    assert (calibration["split"], calibration["n_windows"]) == ("train", 40)
    assert 0 < card["exports"][ONNX_INT8]["agreement"]["mean_dp"] < 0.05
    assert card["exports"][ONNX_INT8]["size"] < card["exports"][ONNX]["size"]


def test_calibration_reads_training_records_and_agreement_validation_ones(done):
    bundle, _, read, _ = done
    examples = read_table(bundle.parents[2] / "examples.parquet").to_pandas()
    for split, records in read.items():
        assert records
        assert set(records) <= set(examples[examples["split"] == split]["record_id"])
    assert set(read) == {"train", "validation"}


def test_the_back_ends_of_the_exports_pass_their_verification(done):
    bundle, *_ = done
    model, card = load_checkpoint(bundle)
    work = bundle.parents[2]
    examples = read_table(work / "examples.parquet").to_pandas()
    wanted = batches.draw_examples(examples, None, 30, "validation")
    sample = batches.prepare_sample(work / "shards", bundle, wanted, 30)
    x_WLT = np.concatenate([item.x_WLT for item in sample.items_W])
    no_side = np.empty((len(x_WLT), 0), dtype=np.float32)
    eager = open_backend("eager", bundle, model, 4)
    for name in ("onnx", "onnx_int8"):
        verify(open_backend(name, bundle, model, 4), eager, x_WLT, no_side, card)


def test_the_onnx_files_stand_alone_with_a_free_batch(done):
    bundle, *_ = done
    for name in (ONNX, ONNX_INT8):
        model = onnx.load(bundle / name, load_external_data=False)
        assert {o.domain: o.version for o in model.opset_import}[""] == OPSET
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        assert all(t.data_location != t.EXTERNAL for t in model.graph.initializer)
    kinds = {node.op_type for node in onnx.load(bundle / ONNX_INT8).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_the_program_runs_by_itself(done):
    bundle, *_ = done
    model, card = load_checkpoint(bundle)
    program = torch.export.load(bundle / PROGRAM).module()
    for n in (1, 5):
        x_BLT = torch.randn(n, len(card["input"]["leads"]), int(100 * card["input"]["duration_s"]))
        with torch.inference_mode():
            # Other kernels may add float32 in another order.
            torch.testing.assert_close(program(x_BLT), model(x_BLT), rtol=1e-4, atol=1e-5)


def test_without_training_records_nothing_is_quantised(tmp_path):
    alone = tmp_path / "checkpoint"
    inputs = ModelInputs.of(KINDS["beats"][1])
    model = build_model("simple_cnn1d", inputs, 2, {"hidden": 8})
    save_checkpoint(alone, model, card_of("beats", "mine", "beat", ["A", "B"]))
    leftover = alone / f".export.{'0' * 32}.part"  # of a job that was killed
    leftover.mkdir()
    (leftover / ONNX).write_bytes(b"half")
    found = export(alone)
    assert {path.name for path in alone.iterdir()} == {PROGRAM, ONNX, *BUNDLE, ".lock"}
    assert set(found["exports"]) == {PROGRAM, ONNX}
    assert found["left_out"] == {ONNX_INT8: "int8 needs training records"}
    assert found["exports"][ONNX]["agreement"]["split"] == "none: random numbers"


def test_other_shards_are_refused(finished, tmp_path):
    work = finished.parents[2]
    with pytest.raises(SettingsError, match="expected both or neither"):
        export(finished, shards=work / "shards")
    shards = shutil.copytree(work / "shards", tmp_path / "shards")
    manifest = read_json(shards / "manifest.json")
    write_json(shards / "manifest.json", manifest | {"key": "other"})
    before = (finished / CARD).read_bytes()
    with pytest.raises(DataError, match=f"not the shards .* expected key {KEY}, came other"):
        export(finished, shards, work / "examples.parquet")
    assert (finished / CARD).read_bytes() == before


def test_other_examples_are_refused(finished, tmp_path):
    work, before = finished.parents[2], (finished / CARD).read_bytes()

    def write(table: pd.DataFrame) -> Path:
        write_table(tmp_path / "examples.parquet", pa.Table.from_pandas(table))
        return tmp_path / "examples.parquet"

    own = read_table(work / "examples.parquet").to_pandas()
    swap = {"train": "test", "test": "train"}
    swapped = own.assign(split=own["split"].map(lambda name: swap.get(name, name)))
    label = next(name for name in own if name.startswith("target_"))
    turned = own.assign(**{label: 1 - own[label]})
    for other in (swapped, turned, own[own.index != own.index[own["split"] == "train"][0]]):
        with pytest.raises(DataError, match=r"examples\.parquet: not the examples that the chec"):
            export(finished, work / "shards", write(other))
    with pytest.raises(DataError, match=rf"expected the columns .*{label}.*, lacks {label}") as e:
        export(finished, work / "shards", write(own.drop(columns=label)))
    assert "\n" not in str(e.value)
    assert (finished / CARD).read_bytes() == before


def test_a_card_that_does_not_say_what_trained_has_nothing_quantised(finished, tmp_path):
    copy = shutil.copytree(finished, tmp_path / "checkpoint")
    card = read_json(copy / CARD)
    del card["training"]["data"]
    write_card(copy, card)
    work = finished.parents[2]
    found = export(copy, work / "shards", work / "examples.parquet")
    assert "the card lacks training.data.examples_sha256" in found["left_out"][ONNX_INT8]
    assert found["exports"][ONNX]["agreement"]["split"] == "none: random numbers"
    assert "metric" not in found["exports"][ONNX]["agreement"]


#: Not the recurrent ones, which are unrolled in time: that takes minutes.
LARGE = ["hmt_ecgnet", "resnet1d_wang", "fcn_wang", "xresnet1d18", "inception1d"]


@pytest.mark.parametrize(
    "name", ["ecg_transnet", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_architectures_export_with_the_columns_beside(tmp_path, name):
    inputs = ModelInputs.of(declared_reads(name).input)
    torch.manual_seed(0)
    model = build_model(name, inputs, 3, {}).eval()
    write_onnx(export_program(model, inputs), tmp_path / ONNX)
    values = [each.numpy() for each in example_batch(inputs, 7)]
    x_WLT, side_WM = values if len(values) > 1 else (values[0], np.empty((7, 0), np.float32))
    cpu = torch.device("cpu")
    card = {"architecture": name, "operating_point": {"kind": "multilabel"}}
    eager = torch_backend("eager", model, 3, cpu)

    def opened(name: str, path: Path) -> Backend:
        return onnx_backend(name, path.read_bytes(), path, 3, cpu, 1)

    verify(opened("onnx", tmp_path / ONNX), eager, x_WLT, side_WM, card)
    write_int8(tmp_path / ONNX, tmp_path / ONNX_INT8, x_WLT, side_WM)
    int8 = opened("onnx_int8", tmp_path / ONNX_INT8)
    assert 0 < np.abs(int8.logits(x_WLT, side_WM) - eager.logits(x_WLT, side_WM)).max() < 1


class Untraceable(torch.nn.Module):
    """Its path depends on the values that come."""

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        return x_BLT.mean(dim=2) if float(x_BLT.sum()) > 0 else x_BLT.sum(dim=2)


class Plain(torch.nn.Module):
    """Nothing in it can be quantised."""

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        return x_BLT.mean(dim=2)


def test_what_cannot_be_exported_says_so_in_one_line(tmp_path):
    inputs = ModelInputs(("I", "II"), 100, 100.0)
    with pytest.raises(DataError, match=r"cannot be exported to torch\.export") as caught:
        export_program(Untraceable(), inputs)
    assert "\n" not in str(caught.value)
    write_onnx(export_program(Plain(), inputs), tmp_path / ONNX)
    x_WLT = np.zeros((4, 2, 100), dtype=np.float32)
    with pytest.raises(DataError, match="nothing to quantise"):
        write_int8(tmp_path / ONNX, tmp_path / ONNX_INT8, x_WLT, np.empty((4, 0), np.float32))
