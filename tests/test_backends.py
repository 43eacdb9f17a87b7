"""Back ends: the same windows, the same answers, and a refusal where they are not."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper

from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import InputSettings
from rayecg.core.outputs import probabilities
from rayecg.core.settings import to_tree
from rayecg.models.backends import (
    BACKENDS,
    Backend,
    allowed,
    empty_windows,
    onnx_backend,
    open_backend,
    torch_backend,
    verify,
    window_logits,
)
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.models.checkpoint import (
    ONNX,
    ONNX_INT8,
    add_exports,
    exported,
    load_checkpoint,
    save_checkpoint,
)
from rayecg.models.export import OPSET, make_exports

CPU = torch.device("cpu")
INPUT = InputSettings(leads=("I", "II"), fs=100, duration_s=2.0)
INPUTS = ModelInputs.of(INPUT)
CARD = {
    "architecture": "simple_cnn1d",
    "hyperparameters": {"hidden": 8},
    "input": to_tree(INPUT),
    "task": {"name": "mine", "labels": ["A", "B", "C"], "unit": "record"},
    "operating_point": {
        "kind": "multilabel",
        "calibrator": {"method": "none", "split": "validation", "n_examples": 1},
        "thresholds_C": [0.5, 0.5, 0.5],
        "rule": "max_f1",
        "split": "validation",
        "n_examples": 1,
    },
}
#: What an int8 export would say of itself.
MEASURED = {"agreement": {"mean_dp": 0.01}}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """On batches as small as these, threads mostly wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A network that has learnt a little: which of three rates a wave has."""
    torch.manual_seed(0)
    model = build_model("simple_cnn1d", INPUTS, 3, CARD["hyperparameters"])
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for step in range(60):
        x_WLT, label_W = waves(32, step)
        target_WC = torch.nn.functional.one_hot(torch.from_numpy(label_W), 3).float()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(
            model(torch.from_numpy(x_WLT)), target_WC
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    folder = tmp_path_factory.mktemp("backends") / "bundle"
    save_checkpoint(folder, model, CARD)
    x_WLT, _ = waves(64, 1000)
    with_files = folder.parent / "files"
    with_files.mkdir()
    made = make_exports(model.eval(), INPUTS, with_files, (x_WLT, no_side(64)))
    made.said[ONNX_INT8] |= MEASURED
    add_exports(folder, with_files, made.said)
    return folder


def waves(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Windows of two leads with waves of 3, 6 or 12 Hz in noise, and which."""
    rng = np.random.default_rng(seed)
    label_W = rng.integers(0, 3, n)
    time_T = np.arange(INPUTS.n_times) / INPUTS.fs
    rate_W = np.array([3.0, 6.0, 12.0])[label_W]
    phase_WL1 = rng.uniform(0, 2 * np.pi, (n, 2, 1))
    x_WLT = np.sin(2 * np.pi * rate_W[:, None, None] * time_T + phase_WL1)
    return (x_WLT + rng.normal(0, 0.3, x_WLT.shape)).astype(np.float32), label_W


def no_side(n: int) -> np.ndarray:
    return np.empty((n, 0), dtype=np.float32)


def test_every_back_end_agrees_with_eager(bundle):
    model, card = load_checkpoint(bundle)
    x_WLT, label_W = waves(70, 2000)
    reference = open_backend("eager", bundle, model, 16)
    # Agreement of a network that knows nothing would say little.
    assert (reference.logits(x_WLT, no_side(70)).argmax(axis=1) == label_W).mean() > 0.9
    for name in BACKENDS:
        backend = open_backend(name, bundle, model, 16, threads=1)
        assert backend.name == name
        found = verify(backend, reference, x_WLT, no_side(70), card)
        assert found["n_windows"] == 70
        assert (found["max_dp"] == 0) == (name == "eager"), name
        logit_WC = backend.logits(x_WLT, no_side(70))
        assert logit_WC.dtype == np.float64
        assert logit_WC.shape == (70, 3)


@pytest.mark.parametrize("name", ["eager", "bf16", "onnx", "onnx_int8"])
def test_a_window_is_answered_alike_whatever_its_neighbours(bundle, name):
    model, _ = load_checkpoint(bundle)
    backend = open_backend(name, bundle, model, 8)
    x_WLT, _ = waves(21, 3000)
    together_WC = backend.logits(x_WLT, no_side(21))
    order = np.random.default_rng(0).permutation(21)
    np.testing.assert_array_equal(backend.logits(x_WLT[order], no_side(21)), together_WC[order])
    for i in (0, 7, 20):
        alone_WC = backend.logits(x_WLT[i : i + 1], no_side(1))
        np.testing.assert_array_equal(alone_WC[0], together_WC[i])


def test_batches_are_views_where_they_can_be_and_filled_up_where_not():
    seen: list[torch.Tensor] = []

    def run(batch: list[torch.Tensor]) -> torch.Tensor:
        seen.append(batch[0])
        return batch[0].sum(dim=(1, 2))[:, None].clone() + batch[1]

    x_WLT = empty_windows((11, 2, 32))
    x_WLT[:] = np.arange(x_WLT.size).reshape(x_WLT.shape) / 100
    side_WM = np.arange(11, dtype=np.float32)[:, None]
    before = x_WLT.copy()
    backend = Backend("eager", 4, run, CPU)
    found_WC = backend.logits(x_WLT, side_WM)
    np.testing.assert_allclose(found_WC, x_WLT.sum(axis=(1, 2))[:, None] + side_WM, rtol=1e-5)
    own = [batch.data_ptr() for batch in seen]
    assert own[:2] == [x_WLT[:4].ctypes.data, x_WLT[4:8].ctypes.data]
    assert (seen[2][3:] == 0).all()
    assert not x_WLT.ctypes.data <= own[2] < x_WLT.ctypes.data + x_WLT.nbytes
    np.testing.assert_array_equal(x_WLT, before)
    # Neither of another type, nor in another order, nor read-only: still right.
    x_WLT.flags.writeable = False
    for other in (x_WLT.astype(np.float64), np.asfortranarray(x_WLT), x_WLT):
        np.testing.assert_array_equal(backend.logits(other, side_WM), found_WC)
    backend.batch_size = 5
    np.testing.assert_allclose(backend.logits(x_WLT, side_WM), found_WC, rtol=1e-6)


def test_no_windows_have_no_logits(bundle):
    model, _ = load_checkpoint(bundle)
    empty_WLT = np.empty((0, 2, INPUTS.n_times), dtype=np.float32)
    assert window_logits(model, empty_WLT, no_side(0), 4, CPU).shape == (0, 3)
    assert open_backend("onnx", bundle, model, 4).logits(empty_WLT, no_side(0)).shape == (0, 3)


def test_the_columns_beside_a_window_are_read():
    inputs = ModelInputs.of(InputSettings(leads=("I",), duration_s=1.0, metadata=("age", "sex")))
    torch.manual_seed(0)
    model = build_model("ecg_transnet", inputs, 2, {}).eval()
    rng = np.random.default_rng(0)
    x_WLT = rng.normal(size=(5, 1, 100)).astype(np.float32)
    side_WM = rng.normal(size=(5, len(inputs.side))).astype(np.float32)
    found_WC = window_logits(model, x_WLT, side_WM, 2, CPU)
    with torch.inference_mode():
        expected_WC = model(torch.from_numpy(x_WLT), torch.from_numpy(side_WM)).numpy()
    # Other batch sizes add float32 in another order: some hundred roundings of 6e-8.
    np.testing.assert_allclose(found_WC, expected_WC, rtol=1e-4, atol=1e-5)
    assert not np.allclose(window_logits(model, x_WLT, side_WM[::-1], 2, CPU), found_WC)


class Shifted(torch.nn.Module):
    """A network whose logits are off by a constant."""

    def __init__(self, model: torch.nn.Module, by: float) -> None:
        super().__init__()
        self.model, self.by = model, by

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        return self.model(x_BLT) + self.by


@pytest.mark.parametrize(("name", "by"), [("onnx", 0.001), ("bf16", 1.0), ("onnx_int8", 3.0)])
def test_a_back_end_that_differs_is_refused(bundle, name, by):
    model, card = load_checkpoint(bundle)
    x_WLT, _ = waves(64, 4000)
    reference = torch_backend("eager", model, 16, CPU)
    verify(torch_backend(name, model, 16, CPU), reference, x_WLT, no_side(64), card)
    wrong = torch_backend(name, Shifted(model, by), 16, CPU)
    with pytest.raises(DataError, match=f"'{name}' differs from eager torch on simple_cnn1d: exp"):
        verify(wrong, reference, x_WLT, no_side(64), card)


def test_windows_without_finite_logits_prove_nothing(bundle):
    model, card = load_checkpoint(bundle)
    x_WLT, _ = waves(8, 4000)
    reference = torch_backend("eager", model, 4, CPU)
    other = torch_backend("onnx", model, 4, CPU)
    lost = torch_backend("onnx", Shifted(model, float("nan")), 4, CPU)
    held = "'onnx' cannot be held against eager torch on simple_cnn1d: expected"
    with pytest.raises(DataError, match=f"{held} windows with finite logits, came none among 8"):
        verify(other, lost, x_WLT * np.nan, no_side(8), card)
    with pytest.raises(DataError, match="came none among 0"):
        verify(other, reference, x_WLT[:0], no_side(0), card)
    for one, two in ((lost, reference), (other, lost)):
        with pytest.raises(DataError, match=f"{held} .* of the same windows, 8 of 8 differ"):
            verify(one, two, x_WLT, no_side(8), card)
    # Where both give nothing, the others count; also where a probability would hide an infinity.
    x_WLT[2] = np.nan
    assert verify(other, reference, x_WLT, no_side(8), card)["n_windows"] == 7
    endless = torch_backend("onnx", Shifted(model, float("inf")), 4, CPU)
    sure = torch_backend("eager", Shifted(model, 1e6), 4, CPU)
    with pytest.raises(DataError, match="of the same windows, 7 of 8 differ"):
        verify(endless, sure, x_WLT, no_side(8), card)


def test_onnx_runtime_says_where_it_runs(bundle):
    """On the CPU where it has no provider for a GPU; what eager torch rounds on one is granted to it."""
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime runs on a GPU")
    model, card = load_checkpoint(bundle)
    onnx_one = open_backend("onnx", bundle, model, 4, card=card)
    asked = exported(bundle, card, ONNX), bundle / ONNX, 4, torch.device("cuda")
    assert onnx_backend("onnx", *asked).device == CPU
    on_cpu, on_gpu = (Backend("eager", 4, lambda x: x[0], torch.device(d)) for d in ("cpu", "cuda"))
    assert allowed(onnx_one, on_cpu, card) == allowed(on_cpu, on_cpu, card)
    assert allowed(onnx_one, on_gpu, card) > allowed(onnx_one, on_cpu, card)
    assert allowed(on_gpu, on_gpu, card) == allowed(on_cpu, on_cpu, card)


def test_int8_may_differ_by_what_its_export_measured(bundle):
    model, card = load_checkpoint(bundle)
    x_WLT, _ = waves(64, 4000)
    reference = torch_backend("eager", model, 16, CPU)
    wrong = torch_backend("onnx_int8", Shifted(model, 0.6), 16, CPU)
    p_WC = probabilities(reference.logits(x_WLT, no_side(64)), "multilabel")
    q_WC = probabilities(reference.logits(x_WLT, no_side(64)) + 0.6, "multilabel")
    card["exports"][ONNX_INT8]["agreement"] = {"mean_dp": float(np.abs(p_WC - q_WC).mean())}
    found = verify(wrong, reference, x_WLT, no_side(64), card)
    assert found["mean_dp"] == pytest.approx(np.abs(p_WC - q_WC).mean(), rel=1e-3)


def test_a_back_end_that_cannot_run_says_so_in_one_line(bundle):
    model, card = load_checkpoint(bundle)
    reference = torch_backend("eager", model, 16, CPU)
    other = build_model("simple_cnn1d", ModelInputs.of(InputSettings(leads=("I",))), 3, {})
    with pytest.raises(DataError, match="'compile' cannot run simple_cnn1d") as caught:
        verify(torch_backend("compile", other.eval(), 16, CPU), reference, *some(), card)
    assert "\n" not in str(caught.value)


def some() -> tuple[np.ndarray, np.ndarray]:
    return waves(4, 0)[0], no_side(4)


def test_names_and_files_that_are_not_there_are_named(bundle, tmp_path):
    model, _ = load_checkpoint(bundle)
    with pytest.raises(SettingsError, match=r"no back end is named 'onx' \(nearest: onnx"):
        open_backend("onx", bundle, model, 4)
    save_checkpoint(tmp_path / "bundle", model, CARD)
    for name, file in (("onnx", ONNX), ("onnx_int8", ONNX_INT8)):
        with pytest.raises(DataError, match=rf"{file}: not exported yet: run jobs/export\.py"):
            open_backend(name, tmp_path / "bundle", model, 4)


def test_an_export_that_is_not_the_cards_is_refused(bundle, tmp_path):
    model, _ = load_checkpoint(bundle)
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    content = bytearray((copy / ONNX).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / ONNX).write_bytes(content)
    with pytest.raises(DataError, match=f"{ONNX}: tampered with or damaged: not the file of its"):
        open_backend("onnx", copy, model, 4)
    open_backend("onnx_int8", copy, model, 4)


def test_the_card_that_was_loaded_decides_which_export_runs(bundle, tmp_path):
    model, card = load_checkpoint(bundle)
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    made = tmp_path / "made"
    made.mkdir()
    shutil.copy(copy / ONNX_INT8, made / ONNX)
    add_exports(copy, made, {ONNX: {}})
    open_backend("onnx", copy, model, 4)
    with pytest.raises(DataError, match=f"{ONNX}: tampered with or damaged: not the file of its"):
        open_backend("onnx", copy, model, 4, card=card)


@pytest.mark.parametrize(
    ("location", "domain", "expected"),
    [
        ("../outside", "", "escapes"),
        ("{}/outside", "", "Absolute path not allowed"),
        ("inside", "", "does not exist"),
        (None, "evil", "not a registered function/op"),
    ],
)
def test_an_onnx_file_reads_no_other_and_brings_no_operators(
    tmp_path, monkeypatch, location, domain, expected
):
    """Even where the card vouches for it, and the other stands beside it and where the job runs."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in (tmp_path / "outside", folder / "inside"):
        np.zeros(4, dtype=np.float32).tofile(name)
    weights = onnx.TensorProto(name="w", data_type=onnx.TensorProto.FLOAT, dims=[4])
    if location is None:
        weights.float_data.extend([0.0] * 4)
    else:
        weights.data_location = onnx.TensorProto.EXTERNAL
        weights.external_data.add(key="location", value=location.format(tmp_path))
    node = helper.make_node("Evil" if domain else "Add", ["x", "w"], ["y"], domain=domain)
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph([node], "graph", [x], [y], [weights])
    opsets = [helper.make_opsetid("", OPSET), *([helper.make_opsetid(domain, 1)] * bool(domain))]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    content, path = model.SerializeToString(), folder / ONNX
    with pytest.raises(DataError, match=f"{ONNX}: ONNX Runtime cannot read it .*{expected}"):
        onnx_backend("onnx", content, path, 1, CPU, 1)
