"""Batches of records against the same records one by one: the same bits, rows and errors."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import hmac
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayecg.core.batch import Batch, batches, shard_batches
from rayecg.core.errors import DataError, RecordError, record_error
from rayecg.core.experiment import InputSettings
from rayecg.core.outputs import probabilities
from rayecg.core.predictions import RECORD_COLUMNS, WINDOW_COLUMNS, label_fields, output_columns
from rayecg.core.record import Record, invalid_value
from rayecg.core.settings import to_tree
from rayecg.core.shard_format import (
    Layout,
    index_table,
    shard_batch,
)
from rayecg.core.shard_reader import read_records
from rayecg.models.backends import open_backend
from rayecg.models.catalogue import ModelInputs, build_model
from rayecg.models.checkpoint import save_checkpoint
from rayecg.models.predictor import Predictor, combine_logits
from rayecg.score.tables import Stamps, record_table, window_table
from rayecg.signal.prepare import Prepared, fill_windows, prepare, stand_whole

LEADS = ("I", "II", "V1")
PLAIN = {"fs": 100, "duration_s": 2.0, "leads": LEADS}
#: What each checkpoint reads; all but the last are of whole records.
INPUTS = {
    "plain": InputSettings(**PLAIN),
    "spread": InputSettings(**PLAIN, normalisation="record", combine="max"),
    "patient": InputSettings(**PLAIN, metadata=("age", "sex"), absent_leads="refuse"),
    "filtered": InputSettings(**PLAIN, bandpass_hz=(0.5, 40.0)),
    "beats": InputSettings(**PLAIN, beats="detected"),
}
STAMPS = Stamps("checkpoint", "code")
LABELS = ["A", "B"]


@pytest.fixture(autouse=True)
def _one_thread():
    """Several would wait for one another longer than such small networks take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def predictor(kind: str) -> Predictor:
    own = INPUTS[kind]
    name = "resconv_bilstm_attention" if own.metadata else "simple_cnn1d"
    hyperparameters = {} if own.metadata else {"hidden": 4}
    torch.manual_seed(3)
    card = {
        "architecture": name,
        "hyperparameters": hyperparameters,
        "input": to_tree(own),
        "task": {"name": "mine", "labels": LABELS, "unit": "beat" if kind == "beats" else "record"},
        "operating_point": {
            "kind": "multiclass" if kind == "spread" else "multilabel",
            "calibrator": {
                "method": "temperature",
                "temperature": 1.5,
                "split": "validation",
                "n_examples": 1,
            },
            "thresholds_C": [] if kind == "spread" else [0.5, 0.5],
            "rule": "argmax",
            "split": "validation",
            "n_examples": 1,
        },
    }
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(name, ModelInputs.of(own), 2, hyperparameters)
        save_checkpoint(Path(folder) / "bundle", model, card)
        return Predictor(Path(folder) / "bundle", batch_size=4)


def prepare_each(own: Predictor, items) -> list[Prepared | Exception]:
    """Prepare records one by one."""
    made: list[Prepared | Exception] = []
    for row, found in items:
        try:
            if isinstance(found, Exception):
                raise found
            made.append(own.prepare(found.physical, found.fs, found.leads, found.beat_times, row))
        except Exception as error:
            made.append(error)
    return made


def rows_of(own: Predictor, items) -> tuple[pa.Table, pa.Table]:
    """Give the rows of records, and of their windows, made one by one."""
    records, windows = [], []
    point, labels = own.operating_point, LABELS
    made = prepare_each(own, items)
    logits = own.backend.logits(
        np.concatenate([np.empty((0, 3, 200), np.float32)] + [p.x_WLT for p in made if _good(p)]),
        np.concatenate(
            [np.empty((0, len(own.input.metadata)), np.float32)]
            + [p.side_WM for p in made if _good(p)]
        ),
    )

    def outputs(logit_NC: np.ndarray, decided: bool) -> list[pa.Array]:
        p_NC = probabilities(logit_NC, point.kind)
        decision_NC = point.decide(p_NC) if decided else np.full(p_NC.shape, -1)
        return output_columns(labels, logit_NC, p_NC, point.calibrate(logit_NC), decision_NC)

    start = 0
    for (row, found), item in zip(items, made, strict=True):
        n = len(item.x_WLT) if _good(item) else 0
        own_WC = logits[start : start + n]
        start += n
        code, text = (None, None) if _good(item) else record_error(item)
        status = "quarantined" if code else "degraded" if item.limits else "ok"
        record_C = np.full((1, 2), np.nan)
        if n:
            record_C = combine_logits(own_WC, np.zeros(1, int), own.input.combine)
        read = isinstance(found, Record)
        left = {
            "record_id": row["record_id"],
            "path": row["path"],
            "patient_id": row.get("patient_id"),
            "status": status,
            "error_code": code,
            "error": text,
            "abstain": status != "ok",
            "limits": list(item.limits) if _good(item) else [],
            "flags": list(found.flags) if read else None,
            "leads": list(found.leads) if read else None,
            "fs": found.fs if read else None,
            "n_times": found.digital_LT.shape[1] if read else None,
            "n_windows": n,
            "checkpoint": "checkpoint",
            "code_version": "code",
        }
        decided = status == "ok"
        records.append(
            _beside(RECORD_COLUMNS, [left], outputs(record_C, decided and own.unit == "record"))
        )
        if n > 1 or (n and own.unit == "beat"):
            below = [{"record_id": row["record_id"], "offset": o} for o in item.offset_W.tolist()]
            windows.append(_beside(WINDOW_COLUMNS, below, outputs(own_WC, decided)))
    none = pa.schema([*WINDOW_COLUMNS, *label_fields(labels)]).empty_table()
    return pa.concat_tables(records), pa.concat_tables([none, *windows])


def _good(item) -> bool:
    return isinstance(item, Prepared)


def _beside(fields, rows, columns) -> pa.Table:
    left = pa.Table.from_pylist(rows, schema=pa.schema(fields))
    schema = pa.schema([*fields, *label_fields(LABELS)])
    return pa.Table.from_arrays([*left.columns, *columns], schema=schema)


@st.composite
def records(draw, leads=None, fs=None, dtype=None, n_times=None):
    """Draw a record; what is given is fixed."""
    leads = leads or draw(
        st.sampled_from([LEADS, LEADS, LEADS, ("V1", "II", "I"), ("I", "II"), ("aVR",)])
    )
    fs = fs or draw(st.sampled_from([100.0, 100.0, 100, 250.0, 50.0]))
    dtype = dtype or draw(st.sampled_from(["int16", "int16", "int32"]))
    n_times = n_times or draw(st.sampled_from([200, 200, 200, 150, 219, 430]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    digital_LT = rng.integers(-3000, 3000, (len(leads), n_times)).astype(dtype)
    defect = draw(st.sampled_from([None, None, None, "some", "many", "lead", "all", "flat"]))
    invalid = invalid_value(digital_LT.dtype)
    if defect == "some":
        digital_LT[0, 3:9] = invalid
    elif defect == "many":
        digital_LT[:, ::2] = invalid
    elif defect == "lead":
        digital_LT[-1] = invalid
    elif defect == "all":
        digital_LT[:] = invalid
    elif defect == "flat":
        digital_LT[0] = 7
    gain = draw(st.sampled_from([1000.0, 1000.0, 204.7, 0.0, np.nan, 1e-40]))
    gain_L = np.full(len(leads), 500.0)
    gain_L[0] = gain
    beats = draw(st.sampled_from([None, [], [20, 90], [5, 60, 100, 149], [10_000]]))
    return Record(
        digital_LT=digital_LT,
        gain_L=gain_L,
        baseline_L=np.full(len(leads), draw(st.sampled_from([0, -30, 2**24]))),
        fs=fs,
        leads=leads,
        flags=draw(st.sampled_from([(), ("noise:II",), ("duplicate:r1", "clipped:V1")])),
        beat_times=None if beats is None else np.array(beats, dtype=np.int64),
        beat_symbols=None if beats is None else ("N",) * len(beats),
    )


def row(i: int, draw) -> dict:
    return {
        "record_id": f"r{i}",
        "path": f"records/r{i}",
        "patient_id": draw(st.sampled_from([None, "p1", "p2"])),
        "age": draw(st.sampled_from([None, 40.0, 71.5])),
        "sex": draw(st.sampled_from([None, "F", "M"])),
    }


@st.composite
def archives(draw):
    """Draw index rows, each with a record or with why there is none."""
    broken = st.sampled_from([RecordError("bad_header", "x.hea: not one"), OSError("x.dat: gone")])
    found = draw(st.lists(st.one_of(records(), records(), records(), broken), max_size=9))
    return [(row(i, draw), one) for i, one in enumerate(found)]


def assert_rows(own: Predictor, found, items) -> None:
    """Hold the tables of batches against those made one by one."""
    tables = [(own.answer(own.prepare_batch(batch)), batch) for batch in found]
    expected = rows_of(own, items) if items else (None, None)
    for make, table in (
        (lambda p, b: record_table(b, p, STAMPS), expected[0]),
        (lambda p, b: window_table(b, p, STAMPS, own.unit), expected[1]),
    ):
        if table is not None:
            came = pa.concat_tables(make(*pair) for pair in tables)
            assert came.schema.equals(table.schema)
            for name in table.column_names:
                assert came[name].to_pylist() == table[name].to_pylist(), name


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of dividing by gains that are no gains
@pytest.mark.parametrize("kind", INPUTS)
@settings(max_examples=20)
@given(items=archives(), size=st.integers(1, 10))
def test_batches_give_the_rows_of_single_records(kind, items, size):
    assert_rows(predictor(kind), list(batches(items, size)), items)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["plain", "spread", "patient"])
@settings(max_examples=20)
@given(items=archives())
def test_windows_have_the_bits_of_single_records(kind, items):
    own = predictor(kind)
    windows = own.prepare_batch(Batch.of(items))
    for i, one in enumerate(prepare_each(own, items)):
        mine = slice(windows.edges()[i], windows.edges()[i + 1])
        if isinstance(one, Exception):
            assert record_error(windows.errors[i]) == record_error(one)
            assert windows.n_windows_B[i] == 0
            continue
        assert windows.x_WLT[mine].tobytes() == one.x_WLT.tobytes()
        np.testing.assert_array_equal(windows.side_WM[mine], one.side_WM)
        assert windows.offset_W[mine].tolist() == one.offset_W.tolist()
        assert windows.limits.get(i, ()) == one.limits


def test_normalising_many_records_gives_the_bits_of_one():
    # Ten seconds: sums go in blocks, whose number must not depend on what stands beside.
    rng = np.random.default_rng(2)
    own = predictor("spread")
    whole = dataclasses.replace(own.input, duration_s=10.0)
    items = [
        (
            {"record_id": str(i), "path": ""},
            Record(x_LT, np.full(3, 204.8), np.zeros(3, int), 100, LEADS),
        )
        for i, x_LT in enumerate(rng.integers(-3000, 3000, (70, 3, 1000), dtype=np.int16))
    ]
    [group] = Batch.of(items).groups
    assert stand_whole(group, whole).all()
    x_WLT = np.zeros((70, 3, 1000), dtype=np.float32)
    fill_windows(x_WLT, np.arange(70), group, np.arange(70), whole)
    for x_LT, (_, record) in zip(x_WLT, items, strict=True):
        expected = prepare(record.physical, 100, LEADS, whole)
        assert x_LT.tobytes() == expected.x_WLT[0].tobytes()


def write_shard(file: Path, items, room: int, group_rows: int) -> None:
    """Write records as rows of `room` samples, longer ones as several."""
    parts = [
        (row, record, offset)
        for row, record in items
        for offset in range(0, record.digital_LT.shape[1], room)
    ]
    first = items[0][1]
    layout = Layout(first.leads, float(first.fs), room, first.digital_LT.dtype.name)
    rows, own, offsets = zip(*parts, strict=True)
    made = shard_batch(index_table(rows), own, layout, offsets=list(offsets))
    pq.write_table(pa.Table.from_batches([made]), file, row_group_size=group_rows)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["plain", "spread", "patient", "beats"])
@settings(max_examples=20)
@given(
    data=st.data(),
    lengths=st.sampled_from([[200], [200, 150, 199], [200, 430]]),
    room=st.sampled_from([200, 100]),
    size=st.integers(1, 7),
    group_rows=st.integers(1, 5),
)
def test_shards_give_the_rows_of_single_records(kind, data, lengths, room, size, group_rows):
    dtype = data.draw(st.sampled_from(["int16", "int32"]))
    own = [
        records(LEADS, 100.0, dtype, data.draw(st.sampled_from(lengths)))
        for _ in range(data.draw(st.integers(1, 9)))
    ]
    items = [(row(i, data.draw), data.draw(one)) for i, one in enumerate(own)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "shard.parquet"
        write_shard(file, items, room, group_rows)
        stored = list(read_records(file))
        assert_rows(predictor(kind), list(shard_batches(file, size)), stored)


def test_a_shard_of_whole_records_is_not_copied_into_objects(tmp_path):
    items = [({"record_id": str(i), "path": "p"}, healthy(i)) for i in range(5)]
    write_shard(tmp_path / "shard.parquet", items, 200, 2)
    found = list(shard_batches(tmp_path / "shard.parquet", 4))
    assert [len(batch) for batch in found] == [2, 2, 1]  # row groups have two
    for batch in found:
        [group] = batch.groups
        assert isinstance(group.digital_NLT, np.ndarray)
        assert stand_whole(group, predictor("plain").input).all()


def test_what_is_no_shard_is_named(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), file)
    with pytest.raises(DataError, match="signal"):
        list(shard_batches(file))
    file.write_text("text")
    with pytest.raises(DataError, match="not a readable Parquet file"):
        list(shard_batches(file))


def healthy(seed: int, peak: int = 3000) -> Record:
    rng = np.random.default_rng(seed)
    digital_LT = rng.integers(-peak, peak, (3, 200), dtype=np.int16)
    return Record(digital_LT, np.full(3, 1000.0), np.zeros(3, int), 100.0, LEADS)


class Choosy(torch.nn.Module):
    """Raises for, or gives NaN for, a batch with a window above a level (mV)."""

    def __init__(self, model: torch.nn.Module, raises: bool) -> None:
        super().__init__()
        self.model, self.raises = model, raises

    def forward(self, x_BLT: torch.Tensor) -> torch.Tensor:
        """Give the logits."""
        loud_B = x_BLT.abs().amax(dim=(1, 2)) > 10
        if self.raises and loud_B.any():
            raise RuntimeError("too loud")
        return torch.where(loud_B[:, None], torch.nan, self.model(x_BLT))


@pytest.mark.parametrize(
    ("raises", "error"),
    [
        (True, ("internal_error", "RuntimeError: too loud")),
        (False, ("not_finite", "the network's output is not finite")),
    ],
)
@pytest.mark.parametrize("loud", [(), (0,), (5,), (2, 3, 10), tuple(range(11))])
def test_a_record_that_the_network_cannot_do_is_alone(tmp_path, raises, error, loud):
    own = predictor("plain")
    items = [
        ({"record_id": f"r{i}", "path": "p"}, healthy(i, 30_000 if i in loud else 3000))
        for i in range(11)
    ]
    plain = own.answer(own.prepare_batch(Batch.of(items)))
    model = Choosy(own.model, raises).eval()
    bundle = tmp_path / "bundle"
    save_checkpoint(bundle, own.model, own.card)
    other = Predictor(bundle, batch_size=4)
    other.backend = open_backend("eager", bundle, model, 4)
    found = other.answer(other.prepare_batch(Batch.of(items)))
    assert found.errors == tuple(error if i in loud else None for i in range(11))
    kept = [i for i in range(11) if i not in loud]
    np.testing.assert_array_equal(found.records.logit[kept], plain.records.logit[kept])
    assert np.isnan(found.records.logit[list(loud)]).all()
    assert (found.records.decision[list(loud)] == -1).all()


def test_a_network_that_raises_for_everything_is_an_error_of_its_own(tmp_path):
    own = predictor("plain")
    save_checkpoint(tmp_path / "bundle", own.model, own.card)
    other = Predictor(tmp_path / "bundle", batch_size=4)
    other.backend = open_backend("eager", tmp_path / "bundle", Choosy(own.model, True).eval(), 4)
    loud = [({"record_id": f"r{i}", "path": "p"}, healthy(i, 30_000)) for i in range(32)]
    assert set(other.answer(other.prepare_batch(Batch.of(loud[:31]))).status) == {"quarantined"}
    with pytest.raises(DataError, match=r"raised for every one of 32 records.*too loud"):
        other.answer(other.prepare_batch(Batch.of(loud)))


def test_ids_are_hashed_under_a_key():
    key = b"a key of sixteen"

    def digits(text: str, kind: str = "record") -> str:
        return hmac.new(key, f"{kind}:{text}".encode(), hashlib.sha256).hexdigest()[:32]

    copy = dataclasses.replace(healthy(1), flags=("noise:II", "duplicate:r0"))
    long = dataclasses.replace(healthy(2), digital_LT=np.tile(healthy(2).digital_LT, 2))
    items = [
        ({"record_id": "r0", "path": "a/r0", "patient_id": "p"}, healthy(0)),
        ({"record_id": "r1", "path": "a/r1", "patient_id": None}, copy),
        (
            {"record_id": "r2", "path": "a/r2", "patient_id": "p"},
            RecordError("bad_header", "r2.hea"),
        ),
        ({"record_id": "r3", "path": "a/r3", "patient_id": "p"}, long),
    ]
    own = predictor("plain")
    batch = Batch.of(items)
    found = own.answer(own.prepare_batch(batch))
    stamps = dataclasses.replace(STAMPS, hash_key=key)
    table = record_table(batch, found, stamps)
    assert table["record_id"].to_pylist() == [digits(f"r{i}") for i in range(4)]
    assert table["patient_id"].to_pylist() == [
        None if name is None else digits(name, "patient") for name in ("p", None, "p", "p")
    ]
    assert table["path"].to_pylist() == [None] * 4
    assert table["error"].to_pylist() == [None] * 4
    assert table["error_code"].to_pylist() == [None, None, "bad_header", None]
    assert table["flags"].to_pylist() == [[], ["noise:II", f"duplicate:{digits('r0')}"], None, []]
    below = window_table(batch, found, stamps, own.unit)
    assert below["record_id"].to_pylist() == [digits("r3")] * 2
    open_table = record_table(batch, found, STAMPS)
    for name in set(table.column_names) - {"record_id", "path", "patient_id", "error", "flags"}:
        assert table[name].to_pylist() == open_table[name].to_pylist()
