"""Checkpoint bundles: loaded as they were saved, and refused when anything is off."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

import rayecg
from rayecg.core.errors import DataError
from rayecg.core.experiment import InputSettings
from rayecg.core.files import file_sha256, read_json, write_json
from rayecg.core.settings import to_tree
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.models.checkpoint import (
    CARD,
    ONNX,
    ONNX_INT8,
    PROGRAM,
    WEIGHTS,
    add_exports,
    exported,
    identity,
    load_checkpoint,
    read_card,
    save_checkpoint,
    write_card,
)
from rayecg.models.predictor import Predictor

INPUT = InputSettings(fs=100, duration_s=2.0, leads=("I", "II"), normalisation="record")
LABELS = ["A", "B", "C"]
POINT = {
    "kind": "multilabel",
    "calibrator": {
        "method": "temperature",
        "split": "validation",
        "n_examples": 10,
        "temperature": 1.5,
    },
    "thresholds_C": [0.5, 0.5, 0.5],
    "rule": "max_f1",
    "split": "validation",
    "n_examples": 10,
}
TASK = {"name": "mine", "labels": LABELS, "unit": "record"}


def card_of(**changes) -> dict:
    card = {
        "architecture": "simple_cnn1d",
        "hyperparameters": {"hidden": 8},
        "input": to_tree(INPUT),
        "task": TASK,
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
    """Change a card and sign it anew, as a forger would."""
    write_card(bundle, read_json(bundle / CARD) | changes)


def test_a_bundle_comes_back_as_it_was(bundle, model):
    loaded, card = load_checkpoint(bundle)
    assert sorted(path.name for path in bundle.iterdir()) == [CARD, WEIGHTS]
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert card == card_of(
        format_version=2,
        weights_sha256=file_sha256(bundle / WEIGHTS),
        fingerprint=card["fingerprint"],
    )
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
    with pytest.raises(
        DataError, match=rf"{WEIGHTS}: tampered with or damaged: .* \(expected SHA-256"
    ):
        load_checkpoint(bundle)


@pytest.mark.parametrize(
    "edit",
    [
        lambda card: card["operating_point"]["thresholds_C"].__setitem__(0, 0.1),
        lambda card: card["input"]["leads"].reverse(),
        lambda card: card["task"].update(labels=["B", "A", "C"]),
        lambda card: card.update(note="harmless"),
        lambda card: card.pop("hyperparameters"),
        lambda card: card.pop("fingerprint"),
        lambda card: card.update(fingerprint="0" * 64),
        lambda card: card.update(exports={ONNX: {"sha256": "0" * 64}}),
    ],
)
def test_a_tampered_card_is_refused(bundle, edit):
    card = read_json(bundle / CARD)
    edit(card)
    write_json(bundle / CARD, card)
    with pytest.raises(DataError, match=rf"{CARD}: tampered with or damaged: its fingerprint"):
        load_checkpoint(bundle)


def test_a_card_written_otherwise_says_the_same(bundle):
    """The fingerprint is of what the card says, whatever its spaces and the order of its keys."""
    card = read_json(bundle / CARD)
    (bundle / CARD).write_text(json.dumps(dict(sorted(card.items(), reverse=True))))
    assert read_card(bundle) == card


def test_what_a_card_holds_comes_back_signed(tmp_path, model):
    """Also what JSON has no type for: pairs, numbers as keys, values that are not finite."""
    extra = {"pair": (1, 2), "by_number": {10: "a", 9: "b"}, "none": float("nan"), "é": "ü"}
    saved = save_checkpoint(tmp_path / "bundle", model, card_of(extra=extra))
    assert read_card(tmp_path / "bundle")["fingerprint"] == saved["fingerprint"]


def test_a_bundle_can_be_pinned(bundle):
    stated = read_card(bundle)["fingerprint"]
    assert read_card(bundle, stated[:12])["fingerprint"] == stated
    load_checkpoint(bundle, stated)
    for wrong in ("0" * 12, stated + "0", ""):
        with pytest.raises(DataError, match=f"expected fingerprint '{wrong}', came {stated[:12]}"):
            load_checkpoint(bundle, wrong)
    change_card(bundle, note="a forger's")
    with pytest.raises(DataError, match="expected fingerprint"):
        load_checkpoint(bundle, stated[:12])


def test_exports_are_stated_and_change_nothing_else(bundle, tmp_path):
    before = read_card(bundle)
    made = tmp_path / "made"
    made.mkdir()
    for round_, names in enumerate([(ONNX, PROGRAM), (ONNX,)]):
        for name in names:
            (made / name).write_bytes(f"{name} {round_}".encode())
        card = add_exports(bundle, made, {name: {"kind": name} for name in names})
    assert card == read_card(bundle)
    assert not list(made.iterdir())
    assert set(card["exports"]) == {ONNX, PROGRAM}
    for name, content in ((ONNX, f"{ONNX} 1"), (PROGRAM, f"{PROGRAM} 0")):
        said = {"kind": name, "sha256": file_sha256(bundle / name), "size": len(content)}
        assert card["exports"][name] == said
        assert exported(bundle, card, name) == content.encode()
    assert card["fingerprint"] != before["fingerprint"]
    assert identity(card) == identity(before)
    assert identity(card | {"operating_point": {}}) != identity(before)
    load_checkpoint(bundle)
    (bundle / ONNX).write_bytes(b"another")
    with pytest.raises(DataError, match=f"{ONNX}: tampered with or damaged"):
        exported(bundle, card, ONNX)
    with pytest.raises(DataError, match=f"{ONNX_INT8}: not exported yet: run jobs/export.py"):
        exported(bundle, card, ONNX_INT8)


def test_exporting_that_is_cut_off_leaves_no_file_under_a_false_card(bundle, tmp_path, monkeypatch):
    made = tmp_path / "made"
    made.mkdir()
    (made / ONNX).write_bytes(b"first")
    add_exports(bundle, made, {ONNX: {}})
    (made / ONNX).write_bytes(b"second")
    move = os.replace

    def move_and_die(source: Path, target: Path) -> None:
        move(source, target)
        if Path(target).name == ONNX:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", move_and_die)
    with pytest.raises(KeyboardInterrupt):
        add_exports(bundle, made, {ONNX: {}})
    monkeypatch.undo()
    assert (bundle / ONNX).read_bytes() == b"second"
    load_checkpoint(bundle)
    with pytest.raises(DataError, match="not exported yet"):
        exported(bundle, read_card(bundle), ONNX)


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (3, r"made by a newer rayecg \(format 3, this one reads 2\): update rayecg"),
        (1, r"made by an older rayecg \(format 1, this one reads 2\): train it again"),
        (0, "made by an older rayecg"),
        (None, "expected a format_version, came None"),
        ("2", "expected a format_version, came '2'"),
        (True, "expected a format_version, came True"),
    ],
)
def test_another_format_version_is_refused(bundle, version, expected):
    change_card(bundle, format_version=version)
    with pytest.raises(DataError, match=expected):
        load_checkpoint(bundle)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", '{"a": "\\ud800"}', "[" * 100_000])
def test_a_card_that_is_no_card_is_refused(bundle, content):
    (bundle / CARD).write_text(content)
    expected = rf"{CARD}: (not valid JSON|not readable JSON|expected a JSON dict)"
    with pytest.raises(DataError, match=expected) as caught:
        load_checkpoint(bundle)
    assert "\n" not in str(caught.value)


def test_a_card_may_spell_its_characters(bundle):
    """Half a pair is no character; both halves are one, and say what it says itself."""
    change_card(bundle, note="\N{ANATOMICAL HEART}")
    card = read_card(bundle)
    (bundle / CARD).write_text(json.dumps(card))
    assert "\\ud83e\\udec0" in (bundle / CARD).read_text()
    assert read_card(bundle) == card


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"architecture": "simple_cnn"}, "no architecture is named 'simple_cnn'"),
        ({"architecture": "os:system"}, "no architecture is named 'os:system'"),
        ({"hyperparameters": {"hidden": 9}}, "size mismatch"),
        ({"hyperparameters": {"wide": 9}}, "has no hyperparameter 'wide'"),
        ({"task": {}}, "card.json: expected a field 'labels'"),
        ({"task": None}, "cannot be loaded"),
        (
            {"task": TASK | {"labels": {"A": ["a"], "B": ["b"]}}},
            "expected a list of distinct names",
        ),
        (
            {"task": TASK | {"labels": ["A", "B", "A"]}},
            "expected a list of distinct names, came .*'A'",
        ),
        ({"task": TASK | {"labels": ["A", "B", 3]}}, "expected a list of distinct names"),
        ({"task": TASK | {"labels": []}}, r"json: task.labels: expected a list of .* came \[\]"),
        ({"task": {"labels": LABELS}}, "card.json: expected a field 'unit'"),
        ({"task": TASK | {"unit": "day"}}, "json: task.unit: expected record or beat, came 'day'"),
        ({"task": TASK | {"labels": ["A", "B"]}}, "json: thresholds_C: expected 2, .* came 3"),
        ({"operating_point": {}}, "card.json: operating_point: expected the fields"),
        ({"operating_point": None}, "card.json: operating_point: expected the fields"),
        ({"operating_point": {**POINT, "thresholds_C": [0.5]}}, "json: thresholds_C: expected 3"),
        ({"members": 3}, "an ensemble has no weights of its own; load its members: it names none"),
        ({"members": {"a": "0", "b": "1"}}, "load its members: a, b"),
        ({"hyperparameters": None}, "cannot be loaded"),
        ({"input": {"fs": 100, "lead": ["I"]}}, "unknown key 'input.lead'"),
        ({"input": None}, "cannot be loaded"),
        ({"weights_sha256": None}, "not the file of its card"),
    ],
)
def test_a_card_that_does_not_fit_is_refused_in_one_line(bundle, changes, expected):
    change_card(bundle, **changes)
    with pytest.raises(DataError, match=expected) as caught:
        load_checkpoint(bundle)
    assert "\n" not in str(caught.value)


def test_a_card_without_a_field_is_refused(bundle):
    for name in ("architecture", "hyperparameters", "input", "task", "operating_point"):
        card = read_json(bundle / CARD)
        del card[name]
        (bundle.parent / "less").mkdir(exist_ok=True)
        write_card(bundle.parent / "less", card)
        (bundle.parent / "less" / WEIGHTS).write_bytes((bundle / WEIGHTS).read_bytes())
        with pytest.raises(DataError, match=f"card.json: expected a field '{name}'"):
            load_checkpoint(bundle.parent / "less")


@pytest.mark.parametrize("file", [WEIGHTS, ONNX])
def test_what_is_used_is_what_was_hashed(bundle, tmp_path, monkeypatch, file):
    """A file that is replaced after the look at it changes nothing: it is read once."""
    made = tmp_path / "made"
    made.mkdir()
    (made / ONNX).write_bytes(b"exported")
    card = add_exports(bundle, made, {ONNX: {}})
    model, _ = load_checkpoint(bundle)
    opened, read = [], Path.read_bytes

    def read_and_replace(path: Path) -> bytes:
        content = read(path)
        if path.name == file:
            opened.append(path)
            path.write_bytes(b"another")
        return content

    monkeypatch.setattr(Path, "read_bytes", read_and_replace)
    if file == ONNX:
        assert exported(bundle, card, ONNX) == b"exported"
    else:
        again, _ = load_checkpoint(bundle)
        assert torch.equal(again.head[0].weight, model.head[0].weight)
    assert opened == [bundle / file]


def test_a_predictor_refuses_a_bundle_that_was_replaced(bundle, tmp_path):
    """Also one that was only exported anew: a back end would run another file."""
    stated = read_card(bundle)["fingerprint"]
    assert Predictor(bundle, fingerprint=stated).card == read_card(bundle)
    made = tmp_path / "made"
    made.mkdir()
    (made / ONNX).write_bytes(b"exported")
    add_exports(bundle, made, {ONNX: {}})
    with pytest.raises(DataError, match=f"{CARD}: expected fingerprint '{stated}', came"):
        Predictor(bundle, fingerprint=stated)
    Predictor(bundle)


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
    card = card_of(task=TASK | {"unit": "beat"})
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
