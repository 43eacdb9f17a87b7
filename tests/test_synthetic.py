"""The synthetic archive: its layout, its determinism, its physics, and that it can be learnt."""

from __future__ import annotations

import ast
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import wfdb
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rayecg.archives import morphology, synthesis
from rayecg.archives.base import SYNTHETIC_MARKER
from rayecg.archives.synthetic import DEFECTS, SyntheticSettings, write_archive
from rayecg.archives.wfdb_reader import read_record
from rayecg.core.errors import DataError, RecordError

SUPERCLASSES = ("NORM", "MI", "STTC", "CD", "HYP")
SETTINGS = SyntheticSettings(n_records=1200, fs=100, seed=3)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    return write_archive(tmp_path_factory.mktemp("synthetic") / "archive", SETTINGS)


@pytest.fixture(scope="module")
def table(archive) -> pd.DataFrame:
    return pd.read_csv(archive / "ptbxl_database.csv")


@pytest.fixture(scope="module")
def marker(archive) -> dict:
    return json.loads((archive / SYNTHETIC_MARKER).read_text())


@pytest.fixture(scope="module")
def labels(archive, table) -> np.ndarray:
    statements = pd.read_csv(archive / "scp_statements.csv", index_col=0)
    superclass = statements["diagnostic_class"].dropna().to_dict()
    found = [
        {superclass[c] for c in ast.literal_eval(text) if c in superclass}
        for text in table["scp_codes"]
    ]
    return np.array([[name in classes for name in SUPERCLASSES] for classes in found])


def digital(archive: Path, path: str) -> np.ndarray:
    return np.fromfile(archive / f"{path}.dat", "<i2").reshape(-1, 12)


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_wfdb_reads_what_was_written(archive, table, marker):
    for path in table["filename_lr"].drop([*table.index[40:]]):
        if path in marker["defects"]:
            continue
        record = wfdb.rdrecord(str(archive / path), physical=False)
        assert record.sig_name == list(morphology.LEADS)
        assert (record.fs, record.sig_len, record.n_sig) == (100, 1000, 12)
        assert record.adc_gain == [1000.0] * 12
        assert record.baseline == [0] * 12
        assert record.units == ["mV"] * 12
        assert record.checksum == record.calc_checksum()
        assert record.init_value == record.d_signal[0].tolist()
        np.testing.assert_array_equal(record.d_signal, digital(archive, path))


def test_samples_are_the_model_rounded_to_a_microvolt(archive, table, marker):
    block = synthesis.draw_block(SETTINGS.seed, 1)
    x_NLT = synthesis.simulate(block, 100, n_records=8)
    for n, path in enumerate(table["filename_lr"][256:264]):
        if path not in marker["defects"]:
            # Half a unit of rounding, and float32 of a few thousand units.
            difference = np.abs(digital(archive, path).T - 1000.0 * x_NLT[n])
            assert difference.max() <= 0.5 + 1e-3


def test_every_rate_has_its_own_folder_and_file_name_column(tmp_path):
    for fs, column, other in (
        (100, "filename_lr", "filename_hr"),
        (500, "filename_hr", "filename_lr"),
        (257, "filename_hr", "filename_lr"),
    ):
        small = SyntheticSettings(n_records=5, fs=fs, duration_s=4.0, n_defective=0)
        folder = write_archive(tmp_path / str(fs), small)
        table = pd.read_csv(folder / "ptbxl_database.csv")
        suffix = column[-2:]
        assert table[column][4] == f"records{fs}/00000/00005_{suffix}"
        assert table[other].isna().all()
        record = wfdb.rdrecord(str(folder / table[column][4]))
        assert (record.fs, record.sig_len) == (fs, 4 * fs)


def test_folders_hold_a_thousand_ids_as_in_ptbxl(table):
    paths = table.set_index("ecg_id")["filename_lr"]
    assert paths[999] == "records100/00000/00999_lr"
    assert paths[1000] == "records100/01000/01000_lr"


def test_same_settings_same_bytes(tmp_path):
    settings = SyntheticSettings(n_records=40, fs=100, seed=5)
    first = tree(write_archive(tmp_path / "first", settings))
    assert first == tree(write_archive(tmp_path / "second", settings))
    other = tree(write_archive(tmp_path / "third", replace(settings, seed=6)))
    signals = [name for name in set(first) & set(other) if name.endswith(".dat")]
    assert len(signals) > 30
    assert all(first[name] != other[name] for name in signals)


def test_a_record_does_not_depend_on_how_many_there_are(archive, table, tmp_path):
    settings = replace(SETTINGS, n_records=300, n_defective=0)
    fewer = write_archive(tmp_path / "fewer", settings)
    defects = json.loads((archive / SYNTHETIC_MARKER).read_text())["defects"]
    few = pd.read_csv(fewer / "ptbxl_database.csv")
    same = ["ecg_id", "patient_id", "age", "sex", "scp_codes", "report", "filename_lr"]
    pd.testing.assert_frame_equal(few[same], table[same][:300])
    for path in few["filename_lr"]:
        if path not in defects:
            np.testing.assert_array_equal(digital(archive, path), digital(fewer, path))


def test_limb_leads_obey_einthoven_and_goldberger_within_rounding(archive, table, marker):
    for path in table["filename_lr"][:200]:
        if path in marker["defects"]:
            continue
        one, two, three, right, left, foot = digital(archive, path).T[:6].astype(int)
        # Each lead is rounded by up to half a unit; float32 adds far less than 0.01 of one.
        assert np.abs(one + three - two).max() <= 1
        assert np.abs(right + (one + two) / 2).max() <= 1.01
        assert np.abs(left - (one - three) / 2).max() <= 1.01
        assert np.abs(foot - (two + three) / 2).max() <= 1.01


def test_lead_and_electrode_matrices_give_dower(archive):
    leads = morphology.lead_matrix() @ morphology.electrode_matrix()
    eight = leads[[0, 1, 6, 7, 8, 9, 10, 11]]
    np.testing.assert_allclose(eight, morphology.DOWER, atol=1e-12)


def test_defects_are_listed_and_as_stated(archive, table, marker):
    defects = marker["defects"]
    assert len(defects) == 6  # 0.5 % of 1200
    assert set(defects.values()) == set(DEFECTS)
    for path in table["filename_lr"]:
        if path in defects:
            with pytest.raises(RecordError) as caught:
                read_record(archive / path)
            assert caught.value.code == DEFECTS[defects[path]], path
        else:
            assert read_record(archive / path).digital.shape == (12, 1000)


@pytest.mark.parametrize(
    ("n_records", "n_defective", "expected"),
    [(1200, None, 6), (100, None, 4), (9, None, 2), (3, None, 0), (100, 0, 0), (10, 10, 10)],
)
def test_number_of_defects(tmp_path, n_records, n_defective, expected):
    settings = SyntheticSettings(n_records, 100, 2.0, n_defective=n_defective)
    folder = write_archive(tmp_path / "archive", settings)
    assert len(json.loads((folder / SYNTHETIC_MARKER).read_text())["defects"]) == expected


def test_flat_and_noisy_leads_are_listed_and_so(archive, marker):
    flat = {p: lead for p, lead in marker["flat_leads"].items() if p not in marker["defects"]}
    noisy = {p: lead for p, lead in marker["noisy_leads"].items() if p not in marker["defects"]}
    assert len(flat) >= 8
    assert len(noisy) >= 8
    for path, lead in flat.items():
        constant = np.ptp(digital(archive, path), axis=0) == 0
        assert [morphology.LEADS[i] for i in np.flatnonzero(constant)] == [lead]
    for path, lead in noisy.items():
        steps = np.abs(np.diff(digital(archive, path).astype(int), axis=0))
        assert morphology.LEADS[int(np.median(steps, axis=0).argmax())] == lead


def test_patients_keep_to_one_fold_and_folds_are_alike(table, labels):
    by_patient = table.groupby("patient_id")
    assert (by_patient["strat_fold"].nunique() == 1).all()
    assert by_patient.size().between(1, 5).all()
    assert 1.4 < by_patient.size().mean() < 1.8
    assert (by_patient[["age", "sex"]].nunique() == 1).all().all()
    assert sorted(table["strat_fold"].unique()) == list(range(1, 11))
    assert table["strat_fold"].value_counts().between(90, 150).all()
    assert table.loc[table["strat_fold"] > 8, "validated_by_human"].all()
    for fold in range(1, 11):
        assert (labels[table["strat_fold"] == fold].sum(axis=0) >= 5).all()


def test_labels_look_like_ptbxl(table, labels):
    share = dict(zip(SUPERCLASSES, labels.mean(axis=0), strict=True))
    assert 0.35 < share["NORM"] < 0.55
    assert all(0.07 < share[name] < 0.35 for name in SUPERCLASSES[1:])
    n_classes = labels.sum(axis=1)
    assert (n_classes >= 2).mean() > 0.05
    assert 3 <= (n_classes == 0).sum() <= 0.08 * len(table)
    readings = [ast.literal_eval(text) for text in table["scp_codes"]]
    likelihoods = {value for codes in readings for value in codes.values()}
    assert likelihoods == {0.0, 15.0, 35.0, 50.0, 80.0, 100.0}
    rhythms = {"SR", "AFIB", "STACH", "SBRAD", "SARRH"}
    assert all(len(rhythms & set(codes)) == 1 for codes in readings)
    seen = {code for codes in readings for code in codes}
    assert set(morphology.CONDITIONS) | rhythms | {"NORM", "ABQRS"} <= seen
    assert set(table["age"][table["age"] > 89]) == {300.0}


def test_columns_are_the_publishers(table, archive):
    assert " ".join(table.columns) == (
        "ecg_id patient_id age sex height weight nurse site device recording_date report scp_codes "
        "heart_axis infarction_stadium1 infarction_stadium2 validated_by second_opinion "
        "initial_autogenerated_report validated_by_human baseline_drift static_noise burst_noise "
        "electrodes_problems extra_beats pacemaker strat_fold filename_lr filename_hr"
    )
    assert pd.to_datetime(table["recording_date"]).is_monotonic_increasing
    statements = pd.read_csv(archive / "scp_statements.csv", index_col=0)
    assert {"description", "diagnostic", "form", "rhythm"} < set(statements.columns)
    assert {"diagnostic_class", "diagnostic_subclass"} < set(statements.columns)


def test_beats_surround_the_record_and_af_is_irregular():
    for index in range(3):
        block = synthesis.draw_block(0, index)
        peaks_NK = synthesis.beat_times(block, 10.0)
        assert (peaks_NK[:, 0] <= 0.0).all()
        assert (peaks_NK[:, -1] >= 10.0).all()
        interval_NK = np.diff(peaks_NK, axis=1)
        assert interval_NK.min() > 0.3
        variation_N = interval_NK.std(axis=1) / interval_NK.mean(axis=1)
        assert variation_N[block.afib_N].min() > np.median(variation_N[~block.afib_N])


def test_rate_changes_noise_but_not_the_heart():
    block = synthesis.draw_block(0, 0)
    quiet = replace(block, muscle_NV=0 * block.muscle_NV, mains_N=0 * block.mains_N)
    slow = synthesis.simulate(quiet, 100, n_records=16)
    fast = synthesis.simulate(quiet, 500, n_records=16)
    # Every fifth sample is the same instant of the same function; float32 of a few mV.
    np.testing.assert_allclose(fast[:, :, ::5], slow, atol=2e-4)


def mean_beat(x_LT: np.ndarray) -> np.ndarray:
    """Average 0.7 s around the steepest points of a record at 100 Hz: crude, and enough here."""
    slope_T = np.abs(np.diff(x_LT, axis=1)).sum(axis=0)
    slope_T = np.convolve(slope_T, np.ones(8), "same")
    places, left = [], slope_T.copy()
    for _ in range(8):
        place = int(left.argmax())
        left[max(0, place - 30) : place + 30] = 0.0
        if 25 <= place < x_LT.shape[1] - 45:
            places.append(place)
    beat_LT = np.median([x_LT[:, p - 25 : p + 45] for p in places], axis=0)
    return (beat_LT - np.median(beat_LT, axis=1, keepdims=True))[:, ::2].ravel()


def test_superclasses_can_be_told_apart_but_not_perfectly(archive, table, labels, marker):
    use = ~table["filename_lr"].isin(list(marker["defects"])) & labels.any(axis=1)
    features = np.array(
        [mean_beat(digital(archive, p).T / 1000.0) for p in table["filename_lr"][use]]
    )
    known, train = labels[use], (table["strat_fold"][use] <= 8).to_numpy()
    auroc = {}
    for c, name in enumerate(SUPERCLASSES):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.003, max_iter=300))
        model.fit(features[train], known[train, c])
        probability = model.predict_proba(features[~train])[:, 1]
        auroc[name] = roc_auc_score(known[~train, c], probability)
    assert 0.75 < np.mean(list(auroc.values())) < 0.98, auroc
    assert min(auroc.values()) > 0.6, auroc


def test_site_and_device_say_nothing_about_labels(table, labels):
    for column in ("site", "device", "nurse"):
        for group, rows in table.groupby(column):
            if len(rows) >= 100:
                # Five standard errors of a share in that many records, patients counted twice.
                margin = 5 * np.sqrt(2 * 0.25 / len(rows))
                shares = labels[rows.index].mean(axis=0)
                assert np.abs(shares - labels.mean(axis=0)).max() < margin, (column, group)


def test_a_standing_archive_is_left_alone(tmp_path):
    settings = SyntheticSettings(n_records=6, fs=100, n_defective=0)
    folder = write_archive(tmp_path / "archive", settings)
    before = os.stat(folder / SYNTHETIC_MARKER).st_mtime_ns
    assert write_archive(folder, settings) == folder
    assert os.stat(folder / SYNTHETIC_MARKER).st_mtime_ns == before
    with pytest.raises(DataError, match=r"expected a synthetic archive of .*'seed': 1.*'seed': 0"):
        write_archive(folder, replace(settings, seed=1))
    assert os.listdir(tmp_path) == ["archive"]


def test_a_foreign_folder_is_never_touched(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    settings = SyntheticSettings(n_records=6, fs=100)
    with pytest.raises(DataError, match=r"precious\.txt"):
        write_archive(tmp_path, settings)
    with pytest.raises(DataError, match="found a file"):
        write_archive(tmp_path / "precious.txt", settings)
    assert os.listdir(tmp_path) == ["precious.txt"]
    (tmp_path / "empty").mkdir()
    assert (write_archive(tmp_path / "empty", settings) / SYNTHETIC_MARKER).exists()


def test_an_interrupted_writer_leaves_nothing(tmp_path):
    calls = []

    def interrupt(done: int, total: int) -> None:
        calls.append((done, total))
        if done > 256:
            raise KeyboardInterrupt

    settings = SyntheticSettings(n_records=600, fs=100, duration_s=2.0)
    with pytest.raises(KeyboardInterrupt):
        write_archive(tmp_path / "archive", settings, interrupt)
    assert calls == [(256, 600), (512, 600)]
    assert os.listdir(tmp_path) == []


def test_the_quicker_of_two_writers_wins(tmp_path):
    settings = SyntheticSettings(n_records=6, fs=100, n_defective=0)
    inode = []

    def be_quicker(done: int, total: int) -> None:
        inode.append(
            (write_archive(tmp_path / "archive", settings) / SYNTHETIC_MARKER).stat().st_ino
        )

    folder = write_archive(tmp_path / "archive", settings, be_quicker)
    assert (folder / SYNTHETIC_MARKER).stat().st_ino == inode[0]
    assert os.listdir(tmp_path) == ["archive"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_records": 0},
        {"fs": 10},
        {"fs": 500.0},
        {"duration_s": 1.0},
        {"duration_s": 1e6},
        {"seed": -1},
        {"n_defective": -1},
        {"n_defective": 1201},
        {"records_per_patient": 5.5},
    ],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}: expected .*, came"):
        SyntheticSettings(**wrong)


def test_the_archive_says_that_it_is_synthetic(archive, table, marker):
    assert "NOT RECORDED FROM ANY PERSON" in (archive / "README.txt").read_text()
    assert marker["kind"] == "synthetic"
    assert marker["settings"]["seed"] == SETTINGS.seed
    assert marker["settings"]["n_defective"] == 6
    assert marker["n_patients"] == table["patient_id"].nunique()
    assert table["report"].str.startswith("simulated").all()
