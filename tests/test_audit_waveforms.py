"""The rules that line waveforms up: copies of every kind fire, other recordings do not."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_benchmark import KEY, edit_table, write_benchmark
from hypothesis import given
from hypothesis import strategies as st
from test_audit import check, edit_examples, one, put

from rayecg.archives.catalogue import open_archive
from rayecg.audit.copies import LEAST, CopySearch, align, candidates, spectra, whitened
from rayecg.audit.evidence import Evidence
from rayecg.audit.neighbours import Vectors, mixtures, probe
from rayecg.audit.waveform_rules import stem_of
from rayecg.audit.waveforms import FS, N_TIMES, low_rate, read_windows
from rayecg.core.experiment import ArchiveSettings
from rayecg.core.files import write_json, write_table
from rayecg.core.record import Record
from rayecg.core.shard_format import (
    Layout,
    index_table,
    shard_batch,
    shard_files,
)
from rayecg.core.shard_reader import read_records
from rayecg.core.units import unit_suffix
from rayecg.signal.filters import resample

NEAR, MADE, NEIGHBOUR = "duplicate-near", "resample-before-split", "nearest-neighbour"
#: Of `recordings`: all training records, and those of the test (fold 10).
TEST = ("r018", "r019", "r038", "r039", "r058", "r059")
#: A sixteenth of a sample at 50 Hz: the step of the lag's grid.
LAG_STEP = 1 / 16 / FS


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("waveforms")
    return {kind: write_benchmark(place / kind, kind) for kind in ("recordings", "beats")}


@pytest.fixture
def recordings(clean: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean["recordings"], tmp_path / "copy"))


@pytest.fixture
def beats(clean: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean["beats"], tmp_path / "copy"))


def stored(out: Path) -> dict[str, tuple[dict[str, Any], Record]]:
    return {
        row["record_id"]: (row, record)
        for file in shard_files(out / "work" / "shards")
        for row, record in read_records(file)
    }


def write_shards(folder: Path, held: Mapping[str, tuple[dict[str, Any], Record]]) -> None:
    """Write records as shards, one for each layout."""
    groups = defaultdict(list)
    for row, record in held.values():
        groups[Layout.of(record)].append((row, record))
    for i, (layout, pairs) in enumerate(groups.items()):
        batch = shard_batch(index_table([row for row, _ in pairs]), [r for _, r in pairs], layout)
        file = folder / "records" / f"{i:06d}{unit_suffix(KEY)}"
        write_table(file, pa.Table.from_batches([batch]))


def plant(out: Path, made: Mapping[str, Record]) -> None:
    """Give records other waveforms."""
    held = stored(out)
    for record_id, record in made.items():
        held[record_id] = (held[record_id][0], record)
    for file in shard_files(out / "work" / "shards"):
        file.unlink()
    write_shards(out / "work" / "shards", held)


def changed(record: Record, digital_LT: np.ndarray, **more: Any) -> Record:
    whole_LT = np.rint(digital_LT).astype(np.int16)
    return dataclasses.replace(record, digital_LT=whole_LT, **more)


def copy_of(record: Record, kind: str) -> Record:
    """Change a recording of 100 Hz as an export or an augmentation does."""
    x_LT = record.digital_LT.astype(np.float64)
    rng = np.random.default_rng(5)
    if kind == "gain":  # 2.5 times as large in mV, and shifted
        return changed(record, 1.25 * x_LT + 300, gain_L=record.gain_L / 2)
    if kind == "lag":  # another signal for the last two seconds
        return changed(record, np.concatenate([x_LT[:, 200:], x_LT[::-1, 300:500]], axis=1))
    if kind == "crop":
        return changed(record, x_LT[:, 150:950])
    if kind == "resampled":
        return changed(record, resample(x_LT, 100, 250), fs=250.0)
    assert kind == "noise"
    return changed(record, x_LT + rng.normal(size=x_LT.shape) * x_LT.std(axis=1)[:, None] * 0.3)


@pytest.mark.parametrize("kind", ["gain", "lag", "crop", "resampled", "noise"])
def test_changed_copy_on_two_sides_fires(recordings: Path, kind: str) -> None:
    plant(recordings, {"r018": copy_of(stored(recordings)["r000"][1], kind)})
    found = one(recordings, NEAR, "violated")
    assert found.evidence["ids"] == ["r000 ~ r018"]
    assert found.taints == ("test",)
    assert (found.evidence["n_examples"], found.evidence["of"]) == (1, 6)
    (pair,) = found.evidence["pairs"]
    assert pair["correlation"] >= LEAST
    lag_s = {"lag": -2.0, "crop": -1.5}.get(kind, 0.0)
    # The step of the grid, and as much again for what noise and the ends move.
    assert pair["lag_s"] == pytest.approx(lag_s, abs=2 * LAG_STEP)
    # Noise in the copy leaves the gain, a regression on the original, as it is, to its own error.
    assert pair["gain"] == pytest.approx(2.5 if kind == "gain" else 1.0, rel=0.03)


def test_copy_in_training_and_validation_taints_validation(recordings: Path) -> None:
    plant(recordings, {"r016": copy_of(stored(recordings)["r000"][1], "noise")})
    found = one(recordings, NEAR, "violated")
    assert found.taints == ("validation",)
    assert found.evidence["sides"] == ["train", "validation"]


@pytest.mark.parametrize("record_id", ["r002", "r018"])
def test_no_copy_does_not_fire(recordings: Path, record_id: str) -> None:
    """A copy on the same side, and an inverted one on the other."""
    first = stored(recordings)["r000"][1]
    made = (
        copy_of(first, "noise") if record_id == "r002" else changed(first, -1.0 * first.digital_LT)
    )
    plant(recordings, {record_id: made})
    assert one(recordings, NEAR, "passed")


def test_exact_copy_is_left_to_the_rule_on_exact_ones(recordings: Path) -> None:
    plant(recordings, {"r018": stored(recordings)["r000"][1]})
    assert one(recordings, "duplicate-exact", "violated").evidence["ids"] == ["r000 = r018"]
    assert one(recordings, NEAR, "passed")


def test_short_record_is_not_a_pass(recordings: Path) -> None:
    first = stored(recordings)["r018"][1]
    plant(recordings, {"r018": changed(first, first.digital_LT[:, :450])})
    found = check(recordings, NEAR)
    assert [finding.verdict for finding in found] == ["not checked"]
    assert found[0].evidence["ids"] == ["r018"]


def test_flat_record_and_absent_lead_are_compared_without(recordings: Path) -> None:
    held = stored(recordings)
    flat, some = held["r018"][1], held["r000"][1]
    made = copy_of(some, "noise").digital_LT.copy()
    made[:3] = 0
    plant(recordings, {"r018": changed(flat, 0 * flat.digital_LT), "r038": changed(some, made)})
    found = one(recordings, NEAR, "violated")
    assert found.evidence["ids"] == ["r000 ~ r038"]
    assert found.evidence["pairs"][0]["n_leads"] < 8


def test_record_that_is_not_in_the_shards_is_not_a_pass(recordings: Path) -> None:
    edit_examples(recordings, lambda t: t.assign(record_id=t["record_id"].replace("r018", "gone")))
    assert one(recordings, NEAR, "not checked").evidence["ids"] == ["gone"]


def test_nothing_to_compare_is_not_a_pass(beats: Path) -> None:
    put(beats, "split", "test", lambda t: t.index % 2 == 0)
    put(beats, "split", "train", lambda t: t.index % 2 == 1)
    assert "every record" in one(beats, NEAR, "not checked").evidence["text"]


def band_limited(seed: int, n_leads: int, seconds: float, fs: int) -> np.ndarray:
    """Draw a signal whose energy lies between 1 and 15 Hz."""
    rng = np.random.default_rng(seed)
    n = round(seconds * fs)
    hz_F = np.fft.rfftfreq(n, 1 / fs)
    shape = (n_leads, len(hz_F))
    spectrum_LF = rng.normal(size=shape) + 1j * rng.normal(size=shape)
    spectrum_LF[:, (hz_F < 1) | (hz_F > 15)] = 0
    signal_LT: np.ndarray = np.fft.irfft(spectrum_LF, n, axis=1)
    return signal_LT / signal_LT.std()


@given(st.integers(0, 10_000), st.integers(-2000, 2000), st.floats(0.2, 5), st.sampled_from([1, 3]))
def test_lag_and_gain_are_found(seed: int, lag: int, gain: float, n_leads: int) -> None:
    """Two cuts of one recording, at a lag of up to 4 s in steps of 2 ms."""
    long_LT = band_limited(seed, n_leads, 20, 500)
    x_LT = low_rate(long_LT[:, 2500:7500], 500)
    y_LT = low_rate(gain * long_LT[:, 2500 - lag : 7500 - lag], 500)
    found = align(x_LT, y_LT, N_TIMES, N_TIMES)
    # Each cut joins its ends, which rings for some tenths of a second of at least six: that moves the lag
    # by a step of the grid beside the half that the grid itself does.
    assert found.lag_s == pytest.approx(lag / 500, abs=2 * LAG_STEP)
    assert found.correlation > 0.97
    assert found.gain == pytest.approx(gain, rel=0.05)
    assert found.overlap_s == pytest.approx(10 - abs(lag) / 500, abs=1.01 / FS)


def test_noise_lowers_the_correlation_as_derived() -> None:
    """1 / sqrt(1 + share squared), which is how the threshold's noise is stated."""
    x_LT = band_limited(0, 8, 10, FS).astype(np.float32)
    for share in (0.2, 1 / 3, 0.5):
        y_LT = x_LT + share * band_limited(1, 8, 10, FS).astype(np.float32)
        found = align(x_LT, y_LT, N_TIMES, N_TIMES)
        # About 2,200 independent values: their chance correlation is 0.02, of which the share counts.
        expected = 1 / np.sqrt(1 + share**2)
        assert found.correlation == pytest.approx(expected, abs=3 * 0.02 * share)


@pytest.mark.parametrize("fs", [100, 128, 250, 360, 500, 1000])
def test_low_rate_keeps_the_band_and_nothing_else(fs: int) -> None:
    """Whole periods in 10 s, so that nothing leaks: equal to the rounding of float32."""
    time_T, low_T = np.arange(10 * fs) / fs, np.arange(N_TIMES) / FS
    kept = low_rate(np.sin(2 * np.pi * 5 * time_T)[None], fs)
    np.testing.assert_allclose(kept[0], np.sin(2 * np.pi * 5 * low_T), atol=1e-5)
    for hz in (0.2, 30.0):
        gone = low_rate(3 + np.sin(2 * np.pi * hz * time_T)[None], fs)
        assert np.abs(gone).max() < 1e-4


def test_screening_finds_what_an_exhaustive_look_finds() -> None:
    x_NLT = np.stack([band_limited(seed, 3, 10, FS) for seed in range(400)]).astype(np.float32)
    for place in range(20):  # cropped copies: two seconds are gone
        x_NLT[380 + place] = 0
        x_NLT[380 + place, :, :400] = x_NLT[place, :, 100:]
    embedding_ND = whitened(spectra(x_NLT))
    np.testing.assert_allclose(np.linalg.norm(embedding_ND, axis=1), 1, rtol=1e-5)
    found = dict(candidates(embedding_ND, np.arange(200, 400), np.arange(300), n_nearest=10))
    assert all(place in found[380 + place] for place in range(20))
    assert {len(nearest) for nearest in found.values()} == {10}


def test_long_record_gives_all_its_windows_or_evenly_spaced_ones(beats: Path) -> None:
    held = stored(beats)
    record = held["100"][1]
    long = changed(record, np.tile(record.digital_LT, (1, 5)), beat_times=record.beat_times)
    plant(beats, {"100": long})
    shards = beats / "work" / "shards"
    every = read_windows(shards, ["100"])
    assert every.start_N.tolist() == [10.0 * i for i in range(10)]
    few = read_windows(shards, ["100", "103"], most_windows=6)
    own = np.array(few.record_ids)[few.record_N]
    assert few.start_N[own == "103"].tolist() == [0.0, 10.0]
    assert few.start_N[own == "100"].tolist() == [0.0, 40.0, 90.0]
    np.testing.assert_array_equal(few.x_NLT[own == "100"][2], every.x_NLT[9])
    power_N = np.square(every.x_NLT.astype(np.float64)).mean(axis=(1, 2))
    np.testing.assert_allclose(power_N, 1, rtol=2e-3)  # float16 has 11 bits


def test_windows_of_a_record_in_the_shards_are_one_record(recordings: Path) -> None:
    """As `shards.window_s` stores them."""
    held = stored(recordings)
    folder = recordings / "work" / "shards"
    whole = read_windows(folder, list(held))
    for file in shard_files(folder):
        file.unlink()
    rows, records = zip(*held.values(), strict=True)
    layout = dataclasses.replace(Layout.of(records[0]), n_times=400)
    pieces = [(i, offset) for i in range(len(rows)) for offset in (0, 400, 800)]
    index = index_table([rows[i] for i, _ in pieces])
    offsets = [offset for _, offset in pieces]
    batch = shard_batch(index, [records[i] for i, _ in pieces], layout, offsets=offsets)
    table = pa.Table.from_batches([batch])
    write_table(folder / "records" / f"000000{unit_suffix(KEY)}", table)
    parts = read_windows(folder, list(held))
    assert parts.record_ids == whole.record_ids
    np.testing.assert_array_equal(parts.x_NLT, whole.x_NLT)
    assert len(Evidence(recordings / "work").records) == len(held)
    assert one(recordings, NEAR, "passed")
    assert one(recordings, "patient-overlap", "passed")


def test_patients_of_ptbxl_are_no_copies_of_one_another(data_folder: Path, tmp_path: Path) -> None:
    settings = ArchiveSettings("ptbxl", str(data_folder / "ptb-xl"), rate=100, limit=150)
    archive = open_archive(settings)
    rows = archive.index().to_pylist()
    held = {row["record_id"]: (row, archive.read(row)) for row in rows}
    write_shards(tmp_path, held)
    write_json(tmp_path / "manifest.json", {"key": KEY})
    search = CopySearch(tmp_path, held)
    half = frozenset(list(held)[::2])
    patient = {row["record_id"]: row["patient_id"] for row in rows}
    found = search.between(half, frozenset(held) - half)
    strangers = [pair for pair in found if patient[pair.first] != patient[pair.second]]
    assert not any(pair.is_copy for pair in strangers)
    assert len(search.windows) == len(held)


def test_name_says_what_it_is_a_copy_of() -> None:
    made = (
        "17_aug2",
        "17-copy",
        "aug_17",
        "17.smote-3",
        "Copy 2 of 17",
        "17_augmented",
        "noisy-17",
    )
    assert [stem_of(name) for name in made] == ["17", "17", "17", "17", "of 17", "17", "17"]
    for name in ("17", "r017", "records/17_hr", "copycat", "17_0001", "augusta", "shifty_17"):
        assert stem_of(name) is None


def rename(out: Path, old: str, new: str) -> None:
    edit_examples(out, lambda t: t.assign(record_id=t["record_id"].replace(old, new)))
    for file in shard_files(out / "work" / "shards"):
        edit_table(file, lambda t: t.assign(record_id=t["record_id"].replace(old, new)))


@pytest.mark.parametrize("other", ["r018_aug1", "r016_aug1"])
def test_copies_by_name_on_two_sides_fire(recordings: Path, other: str) -> None:
    old = other.partition("_")[0]
    rename(recordings, old, other)
    assert one(recordings, MADE, "passed")  # a name alone, without what it is a copy of
    rename(recordings, "r000", old)
    found = one(recordings, MADE, "violated")
    assert found.evidence["how"] == "name"
    assert found.evidence["ids"] == [old]
    assert found.taints == (("test",) if old == "r018" else ("validation",))


def test_example_on_two_sides_fires(recordings: Path) -> None:
    edit_examples(
        recordings,
        lambda t: pd.concat([t, t[t["record_id"] == "r000"].assign(split="test")]),
    )
    found = one(recordings, MADE, "violated")
    assert (found.evidence["how"], found.evidence["ids"]) == ("row", ["r000 at 0"])


@pytest.mark.parametrize("kinds", [("noise",) * 5, ("exact",) * 3 + ("gain", "crop")])
def test_many_copies_on_two_sides_fire(recordings: Path, kinds: tuple[str, ...]) -> None:
    held = stored(recordings)
    made = {}
    for i, (record_id, kind) in enumerate(zip(TEST, kinds, strict=False)):
        original = held[f"r{2 + i:03d}"][1]
        made[record_id] = original if kind == "exact" else copy_of(original, kind)
    few = dict(list(made.items())[:4])
    plant(recordings, few)
    assert one(recordings, MADE, "passed")  # as an archive's own accidents
    plant(recordings, made)
    found = one(recordings, MADE, "violated")
    assert (found.evidence["how"], found.evidence["n"]) == ("waveform", 5)
    assert found.evidence["ids"] == sorted(made)


def test_mixtures_of_training_examples_fire(recordings: Path) -> None:
    """As SMOTE makes them: a + share x (b - a)."""
    held = stored(recordings)
    made = {}
    for i, record_id in enumerate(TEST[:5]):
        first, second = held[f"r{2 + i:03d}"][1], held[f"r{22 + i:03d}"][1]
        share = 0.25 + 0.12 * i
        x_LT = (1 - share) * first.digital_LT + share * second.digital_LT
        made[record_id] = changed(first, x_LT)
    plant(recordings, made)
    found = one(recordings, MADE, "violated")
    assert (found.evidence["how"], found.evidence["n_examples"]) == ("mixture", 5)
    assert found.taints == ("test",)
    parents = {text.split(" at ")[0]: text for text in found.evidence["ids"]}
    assert set(parents) == set(made)
    assert {"r002", "r022"} == {name[:4] for name in parents["r018"].split(" of ")[1].split(", ")}


def vectors(signal_ND: np.ndarray, split: list[str], label_N: np.ndarray) -> Vectors:
    rows = pd.DataFrame({"record_id": [f"r{i}" for i in range(len(split))], "split": split})
    rows = rows.assign(offset=0, **{f"target_{k}": (label_N == k).astype(int) for k in range(3)})
    unit_ND = signal_ND / np.linalg.norm(signal_ND, axis=1, keepdims=True)
    return Vectors(rows, unit_ND, unit_ND, {s: split.count(s) for s in set(split)})


@given(st.integers(0, 1000))
def test_what_is_no_mixture_is_none(seed: int) -> None:
    """Neither a copy of one example, nor a difference of two, nor anything else."""
    rng = np.random.default_rng(seed)
    x_ND = rng.normal(size=(30, 64))
    made = np.stack([2 * x_ND[0], x_ND[1] - 0.5 * x_ND[2], rng.normal(size=64), -x_ND[3]])
    side = [*["train"] * 30, *["test"] * 4]
    given_ = vectors(np.concatenate([x_ND, made]), side, np.zeros(34, dtype=int))
    assert mixtures(given_, "test", 0.05) == []


def people(leaky: bool, seed: int) -> tuple[Vectors, np.ndarray]:
    """Draw 40 people with a shape each and beats that resemble it; labels depend on both."""
    rng = np.random.default_rng(seed)
    person_N = np.repeat(np.arange(40), 12)
    shape_ND = rng.normal(size=(40, 12))[person_N] + 0.3 * rng.normal(size=(480, 12))
    own_N = rng.integers(3, size=40)[person_N]
    label_N = np.where(rng.random(480) < 0.85, own_N, rng.integers(3, size=480))
    trains = rng.random(480) < 0.5 if leaky else person_N < 20
    split = np.where(trains, "train", "test").tolist()
    return vectors(shape_ND, split, label_N), person_N.astype(str)


@pytest.mark.parametrize("seed", range(5))
def test_probe_tells_a_split_over_beats_from_one_over_people(seed: int) -> None:
    leak, own = (probe(*people(leaky, seed), "test") for leaky in (True, False))
    assert leak.low > 0.2
    assert leak.across > 0.7
    assert own.low < 0 < own.high
    assert leak.low <= leak.across - leak.within <= leak.high


def test_beats_dealt_out_at_random_fire(beats: Path) -> None:
    """Each recording has one class, and its neighbours know it."""

    def label(table: pd.DataFrame) -> pd.DataFrame:
        own = pd.factorize(table["record_id"])[0] % 3
        for k, name in enumerate("NSVFQ"):
            table[f"target_{name}"] = (own == k).astype(table[f"target_{name}"].dtype)
        dealt = np.random.default_rng(0).random(len(table))
        split = np.where(dealt < 0.5, "train", np.where(dealt < 0.6, "validation", "test"))
        return table.assign(split=split)

    edit_examples(beats, label)
    found = {f.taints: f for f in check(beats, NEIGHBOUR) if f.verdict == "violated"}
    assert ("test",) in found
    evidence = found["test",].evidence
    assert evidence["across"] > evidence["within"] + 0.3


def test_probe_without_patients_is_not_a_pass(recordings: Path) -> None:
    for file in shard_files(recordings / "work" / "shards"):
        edit_table(file, lambda t: t.assign(patient_id=None))
    assert "patient" in one(recordings, NEIGHBOUR, "not checked").evidence["text"]


def test_probe_with_one_training_patient_is_not_a_pass(recordings: Path) -> None:
    put(recordings, "split", "none", lambda t: (t["split"] == "train") & (t["patient_id"] != "p0"))
    assert "1 training patient" in one(recordings, NEIGHBOUR, "not checked").evidence["text"]
