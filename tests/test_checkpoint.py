"""Checkpoint bundles: loaded as they were saved, and refused when anything is off."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import rayecg
from rayecg.core.errors import DataError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import file_sha256
from rayecg.core.settings import to_tree
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.models.checkpoint import CARD, WEIGHTS, load_checkpoint, read_card, save_checkpoint

INPUT = InputSettings(fs=100, duration_s=2.0, leads=("I", "II"), normalisation="record")
LABELS = {"A": ["a"], "B": ["b"], "C": ["c"]}
POINT = {
    "kind": "multilabel",
    "temperature": 1.5,
    "thresholds_C": [0.5, 0.5, 0.5],
    "rule": "max_f1",
    "split": "validation",
    "n_examples": 10,
}


def card_of(**changes) -> dict:
    card = {
        "architecture": "simple_cnn1d",
        "hyperparameters": {"hidden": 8},
        "input": to_tree(INPUT),
        "task": {"name": "mine", "labels": LABELS, "unit": "record"},
        "operating_point": POINT,
    }
    return card | changes


@pytest.fixture
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("simple_cnn1d", ModelInputs.of(INPUT), 3, {"hidden": 8})


@pytest.fixture
def bundle(tmp_path, model) -> Path:
    save_checkpoint(tmp_path / "bundle", model, card_of())
    return tmp_path / "bundle"


def change_card(bundle: Path, **changes) -> None:
    card = json.loads((bundle / CARD).read_text())
    (bundle / CARD).write_text(json.dumps(card | changes))


def test_a_bundle_comes_back_as_it_was(bundle, model):
    loaded, card = load_checkpoint(bundle)
    assert sorted(path.name for path in bundle.iterdir()) == [CARD, WEIGHTS]
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert card == card_of(format_version=1, weights_sha256=file_sha256(bundle / WEIGHTS))
    assert read_card(bundle) == card
    x_BLT = torch.randn(4, 2, 200)
    with torch.inference_mode():
        assert torch.equal(loaded(x_BLT), model.eval()(x_BLT))


def test_saving_again_replaces_the_bundle(bundle, model):
    with torch.no_grad():
        model.head[0].weight.zero_()
    save_checkpoint(bundle, model, card_of())
    loaded, _ = load_checkpoint(bundle)
    assert (loaded.head[0].weight == 0).all()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def test_what_cannot_be_saved_leaves_the_old_bundle(bundle, model):
    before = (bundle / CARD).read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint(bundle, model, card_of(extra=object()))
    assert (bundle / CARD).read_bytes() == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    load_checkpoint(bundle)


def test_loading_leaves_the_random_state_alone(bundle):
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    load_checkpoint(bundle)
    assert torch.equal(torch.rand(4), expected)


def test_tampered_weights_are_refused(bundle):
    content = bytearray((bundle / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (bundle / WEIGHTS).write_bytes(content)
    with pytest.raises(DataError, match=r"not the weights of its card \(expected SHA-256"):
        load_checkpoint(bundle)


@pytest.mark.parametrize("part", [WEIGHTS, CARD])
def test_a_missing_part_is_named(bundle, part):
    (bundle / part).unlink()
    with pytest.raises(DataError, match=f"{part}: .*(found nothing|No such file)"):
        load_checkpoint(bundle)


def test_a_missing_bundle_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.card\.json: cannot be read"):
        rayecg.load(tmp_path / "nowhere")


@pytest.mark.parametrize("version", [0, 2, None, "1"])
def test_another_format_version_is_refused(bundle, version):
    change_card(bundle, format_version=version)
    with pytest.raises(DataError, match=f"expected a card of format 1, came {version}"):
        load_checkpoint(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null"])
def test_a_card_that_is_no_card_is_refused(bundle, content):
    (bundle / CARD).write_text(content)
    with pytest.raises(DataError, match=r"not valid JSON|expected a JSON dict"):
        load_checkpoint(bundle)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "simple_cnn"}, "no architecture is named 'simple_cnn'"),
        ({"architecture": "os:system"}, "no architecture is named 'os:system'"),
        ({"hyperparameters": {"hidden": 9}}, "size mismatch"),
        ({"hyperparameters": {"wide": 9}}, "has no hyperparameter 'wide'"),
        ({"task": {"name": "mine", "labels": {"A": ["a"]}}}, "size mismatch"),
        ({"task": {}}, "expected a field 'labels'"),
        ({"task": None}, "cannot be loaded"),
        ({"hyperparameters": None}, "cannot be loaded"),
        ({"input": {"fs": 100, "lead": ["I"]}}, "unknown key 'input.lead'"),
        ({"input": None}, "cannot be loaded"),
        ({"weights_sha256": None}, "not the weights of its card"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(bundle, changes, expected):
    change_card(bundle, **changes)
    with pytest.raises(DataError, match=expected) as caught:
        load_checkpoint(bundle)
    assert "\n" not in str(caught.value)


def test_a_card_without_a_field_is_refused(bundle):
    for name in ("architecture", "hyperparameters", "input", "task"):
        card = json.loads((bundle / CARD).read_text())
        del card[name]
        (bundle.parent / "less").mkdir(exist_ok=True)
        (bundle.parent / "less" / CARD).write_text(json.dumps(card))
        (bundle.parent / "less" / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes())
        with pytest.raises(DataError, match=f"card.json: expected a field '{name}'"):
            load_checkpoint(bundle.parent / "less")


def test_weights_are_data(bundle):
    """A pickle in place of the weights is not run, even where the card vouches for it."""
    torch.save({"head.0.weight": torch.zeros(1)}, bundle / WEIGHTS)
    change_card(bundle, weights_sha256=file_sha256(bundle / WEIGHTS))
    with pytest.raises(DataError, match="cannot be loaded"):
        load_checkpoint(bundle)


def test_weights_of_shared_memory_are_stored_whole(tmp_path, model):
    model.head[3].weight = torch.nn.Parameter(model.head[3].weight.detach().T.contiguous().T)
    save_checkpoint(tmp_path / "bundle", model, card_of())
    stored = safetensors.torch.load_file(tmp_path / "bundle" / WEIGHTS)
    assert torch.equal(stored["head.3.weight"], model.head[3].weight)


def test_a_loaded_bundle_predicts(bundle):
    predictor = rayecg.load(bundle)
    x_BLT = np.random.default_rng(0).normal(size=(3, 2, 450)).astype(np.float32)
    x_BLT[1] = np.nan
    found = predictor.predict(x_BLT, 100, ("II", "I"))
    assert found.labels == ("A", "B", "C")
    assert found.status == ("ok", "quarantined", "ok")
    assert found.abstain.tolist() == [False, True, False]
    assert found.errors[1][0] == "all_invalid"
    assert np.isnan(found.probability[1]).all()
    assert (found.decision[1] == -1).all()
    assert found.window_record.tolist() == [0, 0, 0, 2, 2, 2]
    assert found.window_offset.tolist() == [0, 200, 250] * 2
    # A record's logit is the mean of its windows' logits.
    np.testing.assert_allclose(
        found.records.logit[2], found.windows.logit[3:].mean(axis=0), rtol=1e-12
    )
    alone = predictor.predict(x_BLT[2:], 100, ("II", "I"))
    np.testing.assert_array_equal(alone.probability[0], found.probability[2])
    swapped = predictor.predict(x_BLT[2:, ::-1], 100, ("I", "II"))
    np.testing.assert_array_equal(swapped.probability[0], found.probability[2])
    expected = (found.probability[[0, 2]] >= 0.5).astype(int)
    np.testing.assert_array_equal(found.decision[[0, 2]], expected)


def test_an_array_of_another_shape_is_an_error_of_its_row(bundle):
    found = rayecg.load(bundle).predict(np.zeros((1, 200, 2)), 100, ("I", "II"))
    assert found.status == ("quarantined",)
    assert found.errors[0] is not None
    assert "expected an array of 2 leads by times, came shape (200, 2)" in found.errors[0][1]


def test_a_beat_wise_bundle_needs_beats(tmp_path, model):
    card = card_of(task={"name": "mine", "labels": LABELS, "unit": "beat"})
    save_checkpoint(tmp_path / "bundle", model, card)
    predictor = rayecg.load(tmp_path / "bundle")
    x_BLT = np.random.default_rng(0).normal(size=(3, 2, 1000))
    beats = {"beat_times": [[200, 700, 999], None, []]}
    found = predictor.predict(x_BLT, 100, ("I", "II"), beats)
    assert found.status == ("ok", "quarantined", "quarantined")
    assert [error and error[0] for error in found.errors] == [None, "no_beats", "no_beats"]
    assert found.window_offset.tolist() == [200, 700, 999]
    assert (found.windows.decision >= 0).all()
    assert (found.decision == -1).all()  # decided by beat, not by record


def test_broken_limits_leave_a_probability_without_a_decision(bundle):
    x_LT = np.random.default_rng(0).normal(size=(1, 150))
    found = rayecg.load(bundle).predict([x_LT], 100, ("II",))
    assert found.status == ("degraded",)
    assert found.limits == (("absent_leads:I", "too_short:1.50 s"),)
    assert np.isfinite(found.probability).all()
    assert (found.decision == -1).all()
    assert found.abstain.all()
