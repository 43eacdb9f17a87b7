"""A record's score is its own: not its batch's, its neighbours', its place's or its worker's.

Everything here is held bit for bit but one: another batch size of the network itself, which is another
product of matrices, and which a plan therefore fixes.

Legend: L lead, T time, W window, C label.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scored_archive import rows, write_checkpoint, write_records
from torch import nn

import rayecg
from rayecg import pipeline
from rayecg.core.experiment import (
    STANDARD_LEADS,
    ArchiveSettings,
    InputSettings,
    ScoreSettings,
    ShardSettings,
)
from rayecg.core.units import Units
from rayecg.models.backends import ROUNDINGS, window_logits
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.models.checkpoint import input_settings, read_card, save_checkpoint
from rayecg.models.predictor import Predictor
from rayecg.pipeline.scoring import open_source
from rayecg.score.run import decides
from rayecg.score.sources import ArchiveSource
from rayecg.score.unit import UnitScorer

LABELS = ("A", "B")
N, N_DEFECTIVE = 64, 6
#: Of three seconds, which a checkpoint reads as two windows of two.
N_TIMES = 300
DEFECTS = ("nothing valid", "no leads", "a lead more", "no time", "huge", "infinite")


@pytest.fixture(autouse=True)
def _threads_of_an_actor():
    before = torch.get_num_threads()
    torch.set_num_threads(ScoreSettings().threads)
    yield
    torch.set_num_threads(before)


def published(folder: Path, name: str) -> Path:
    """Write a checkpoint of a network as it was published.

    In a small one even a batch that is not filled up gives the same bits: its sums are too short to
    be cut in other places.
    """
    card = read_card(write_checkpoint(folder / "small"))
    torch.manual_seed(0)
    model = build_model(name, ModelInputs.of(input_settings(card)), len(LABELS), {})
    save_checkpoint(folder / "own", model, card | {"architecture": name, "hyperparameters": {}})
    return folder / "own"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return published(tmp_path_factory.mktemp("checkpoint"), "simple_cnn1d")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("archive") / "records"
    return write_records(folder, N, n_defective=N_DEFECTIVE)


def score(
    checkpoint: Path, archive: Path, out: Path, size: int, actors: int, **options: Any
) -> Path:
    """Score a WFDB archive in units of some size."""
    own = ScoreSettings(actors, records_per_unit=size)
    pipeline.score(checkpoint, ArchiveSettings("wfdb", str(archive)), out, own, **options)
    return out


@pytest.fixture(scope="module")
def reference(ray, checkpoint, archive, tmp_path_factory) -> pd.DataFrame:
    """Rows of one run, by record; every other way of scoring is held against them."""
    out = score(checkpoint, archive, tmp_path_factory.mktemp("reference") / "out", 16, 1)
    found = by_record(rows(out))
    statuses = found["status"].value_counts()
    assert len(found) == N
    assert 0 < statuses["quarantined"] <= N_DEFECTIVE
    assert found.loc[found["status"] == "ok", "logit_A"].nunique() == statuses["ok"]
    return found


def by_record(frame: pd.DataFrame) -> pd.DataFrame:
    """Give what a record's row says of itself, by its name."""
    outputs = ("logit", "probability", "calibrated", "decision")
    numbers = [f"{output}_{label}" for output in outputs for label in LABELS]
    found = frame.set_index("record_id")[[*numbers, "n_windows", "status", "error_code"]]
    # Columns of pandas have another type where nothing is missing.
    found[numbers] = found[numbers].astype(float)
    return found.fillna({"error_code": ""}).sort_index()


def assert_same_bits(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    assert len(found)
    pd.testing.assert_frame_equal(found, expected.loc[found.index], check_exact=True)


# `predict`


def signal(i: int) -> np.ndarray:
    """Give one of `N` recordings, in mV."""
    rng = np.random.default_rng(i)
    return rng.normal(size=(len(STANDARD_LEADS), N_TIMES)).cumsum(axis=1) * 10.0 ** (i % 4 - 2)


def defective(kind: str, like_LT: np.ndarray) -> np.ndarray:
    if kind == "nothing valid":
        return np.full_like(like_LT, np.nan)
    if kind == "huge":
        return like_LT * 1e300
    if kind == "infinite":
        return np.where(np.arange(N_TIMES) == 7, np.inf, like_LT)
    shapes = {"no leads": like_LT[:0], "a lead more": np.tile(like_LT, (2, 1))[:13]}
    return shapes.get(kind, like_LT[:, :0])


def predicted_alone(own: Predictor, signals: list[np.ndarray]) -> list[np.ndarray]:
    """Give each recording's logits, and its windows', in calls of one."""
    found = [own.predict([signal_LT], 100, STANDARD_LEADS) for signal_LT in signals]
    assert all(one.status == ("ok",) for one in found)
    return [np.concatenate([one.records.logit, one.windows.logit]) for one in found]


def assert_calls_agree(own: Predictor, alone: list[np.ndarray], n: int, seed: int) -> None:
    """Predict so many recordings at once, defective ones among them, in an order that is drawn."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(alone), n)
    kinds = [str(rng.choice(DEFECTS)) if rng.random() < 0.2 else "" for _ in drawn]
    signals = [
        defective(kind, signal(i)) if kind else signal(i)
        for i, kind in zip(drawn, kinds, strict=True)
    ]
    with np.errstate(all="ignore"):
        found = own.predict(signals, 100, STANDARD_LEADS)
    assert len(found.status) == n
    edges = np.searchsorted(found.window_record, np.arange(n + 1))
    for k, (i, kind) in enumerate(zip(drawn, kinds, strict=True)):
        came = np.concatenate(
            [found.records.logit[k : k + 1], found.windows.logit[edges[k] : edges[k + 1]]]
        )
        if not kind:
            assert found.status[k] == "ok"
            assert came.tobytes() == alone[i].tobytes()
        elif kind != "infinite":  # one sample of many, which counts as a gap
            assert found.status[k] == "quarantined"
            assert np.isnan(came).all()


@settings(max_examples=25)
@given(n=st.integers(1, 512), seed=st.integers(0, 2**31))
def test_a_call_of_any_size_gives_each_record_the_bits_it_has_alone(checkpoint, n, seed):
    own = rayecg.load(checkpoint)
    assert_calls_agree(own, predicted_alone(own, [signal(i) for i in range(8)]), n, seed)


@pytest.mark.slow
def test_so_it_is_with_a_deep_network(tmp_path):
    own = rayecg.load(published(tmp_path, "xresnet1d18"))
    alone = predicted_alone(own, [signal(i) for i in range(16)])
    for n in (1, 31, 33, 512):
        assert_calls_agree(own, alone, n, seed=n)


# `score`


@settings(max_examples=10)
@given(drawn=st.lists(st.integers(0, N - 1), min_size=1, max_size=200), one_by_one=st.booleans())
def test_units_of_any_records_in_any_order_give_the_same_bits(
    checkpoint, archive, reference, drawn, one_by_one
):
    source = open_source(ArchiveSettings("wfdb", str(archive)), None)
    assert isinstance(source, ArchiveSource)
    parts = [[i] for i in dict.fromkeys(drawn)] if one_by_one else [drawn]
    with tempfile.TemporaryDirectory() as folder:
        units = Units(folder, "0" * 16)
        plans = {"own": decides(read_card(checkpoint), source, ScoreSettings(), None)}
        own = {"own": checkpoint}
        worker = UnitScorer(source, own, {"own": units}, plans, ScoreSettings())
        worker.open()
        for k, part in enumerate(parts):
            worker({"unit": f"{k:06d}", "rows": source.records.take(np.array(part))})
        assert_same_bits(by_record(rows(Path(folder))), reference)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "actors"), [(1, 2), (7, 1), (64, 2)])
def test_any_number_of_actors_and_records_of_a_unit_gives_the_same_bits(
    checkpoint, archive, reference, tmp_path, size, actors
):
    found = by_record(rows(score(checkpoint, archive, tmp_path / "out", size, actors)))
    assert len(found) == N
    assert_same_bits(found, reference)


@pytest.mark.slow
def test_records_without_their_defective_neighbours_give_the_same_bits(
    checkpoint, archive, reference, tmp_path
):
    kept = reference.index[reference["status"] != "quarantined"]
    names = ", ".join(f"'{name}'" for name in kept)
    out = score(
        checkpoint, archive, tmp_path / "out", 7, 2, select=f"record_id IN ({names})", limit=50
    )
    found = by_record(rows(out))
    assert list(found.index) == list(kept[:50])
    assert_same_bits(found, reference)


def test_an_archive_in_another_order_gives_the_same_bits(checkpoint, archive, reference, tmp_path):
    moved = tmp_path / "records"
    moved.mkdir()
    for k, name in enumerate(np.random.default_rng(0).permutation(reference.index)):
        for file in archive.glob(f"{name}.*"):
            own = moved / f"{k:03d}-{file.name}"
            data = file.read_bytes()
            if own.suffix == ".hea":
                data = data.replace(f"{name}".encode(), f"{k:03d}-{name}".encode())
            own.write_bytes(data)
    frame = rows(score(checkpoint, moved, tmp_path / "out", 7, 2))
    assert list(frame["record_id"].str[4:]) != sorted(frame["record_id"].str[4:])
    frame["record_id"] = frame["record_id"].str[4:]
    found = by_record(frame)
    assert len(found) == N
    assert_same_bits(found, reference)


@pytest.mark.slow
def test_shards_and_predict_give_the_bits_of_the_raw_archive(
    checkpoint, archive, reference, tmp_path
):
    where = ArchiveSettings("wfdb", str(archive))
    pipeline.make_shards(where, ShardSettings(records_per_shard=24), tmp_path / "shards")
    pipeline.score(checkpoint, None, tmp_path / "out", shards=tmp_path / "shards")
    found = by_record(rows(tmp_path / "out"))
    assert len(found) == N
    assert_same_bits(found, reference)
    own = rayecg.load(checkpoint)
    for name, row in found[found["status"] == "ok"].iterrows():
        record = rayecg.read_record(archive / name)
        one = own.predict([record.physical], record.fs, record.leads)
        expected = [row[f"logit_{label}"] for label in LABELS]
        assert one.records.logit[0].tolist() == expected


# Another batch size of the network


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simple_cnn1d", "xresnet1d18"])
@pytest.mark.parametrize("size", [1, 16, 256])
def test_another_batch_size_moves_a_logit_by_no_more_than_roundings(name, size):
    # Another shape may choose another kernel, which adds up the same products in another order. Of
    # `ROUNDINGS` roundings of float32, if all err one way, a sum is off by `ROUNDINGS * 2**-24` of
    # what is added up, which is up to four times the largest logit (see `models.backends.allowed`).
    # Measured of logits up to 18 on one machine: 2.3e-5 at size 1 (1.4e-6 of the largest; 4e-6 in
    # probability), nothing at 16 and 256.
    own = InputSettings(fs=100, duration_s=10.0, leads=STANDARD_LEADS)
    rng = np.random.default_rng(0)
    x_WLT = rng.normal(size=(72, 12, 1000)).cumsum(axis=2).astype(np.float32) / 10
    side_WM = np.zeros((len(x_WLT), 0), dtype=np.float32)
    torch.manual_seed(0)
    model = build_model(name, ModelInputs.of(own), 5, {})
    model.train()
    with torch.no_grad():
        for _ in range(10):  # normalisation learns its statistics
            model(torch.from_numpy(x_WLT[rng.permutation(len(x_WLT))[:32]]))
    model.eval()

    def logits(n: int) -> np.ndarray:
        return window_logits(model, x_WLT, side_WM, n, torch.device("cpu"))

    head = [each for each in model.modules() if isinstance(each, nn.Linear)][-1]
    before_WC = logits(64)
    with torch.no_grad():  # as far apart as those of a trained network
        head.bias -= torch.from_numpy(before_WC.mean(axis=0)).float()
        scale = 4.0 / before_WC.std(axis=0).mean()
        head.weight *= scale
        head.bias *= scale
    usual_WC = logits(64)
    assert 5 < np.abs(usual_WC).max() < 50
    allowed = 4 * ROUNDINGS * 2.0**-24 * np.abs(usual_WC).max()
    assert np.abs(logits(size) - usual_WC).max() <= allowed
