"""The rules about releases, metadata, inputs and pretraining: each fires, and each can tell when not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_benchmark import (
    BOTH,
    EVERYONE,
    RUNS,
    SEEDS,
    add_ensembles,
    card_of,
    edit_json,
    edit_table,
    write_benchmark,
)
from test_audit import check, one

from rayecg.archives.catalogue import ARCHIVES
from rayecg.audit.data_rules import FORBIDDEN, GIVEN_AWAY, HOLDS
from rayecg.audit.metadata import DEVICE_LIKE, acquisition, determines, probe_labels, varying
from rayecg.core.catalogue import look_up
from rayecg.core.experiment import ArchiveSettings, Experiment
from rayecg.core.files import read_json, write_json, write_table
from rayecg.core.settings import load_settings
from rayecg.core.shard_format import shard_files

VERSION, SHORTCUT = "archive-version", "metadata-shortcut"
INPUT, BEFORE = "forbidden-input", "pretraining-overlap"
PTBXL = {"1.0.0, 1.0.1": 21837, "1.0.2": 21801, "1.0.3": 21799}
EXPERIMENTS = sorted((Path(__file__).parents[1] / "jobs" / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("data") / "recordings")


@pytest.fixture
def out(clean: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clean, tmp_path / "copy"))


def say_archive(out: Path, n_input: int, releases: Any = PTBXL, **archive: Any) -> None:
    def edit(tree: dict[str, Any]) -> None:
        tree.update(synthetic=False, n_input=n_input, releases=releases)
        tree["archive"] = {
            "kind": "ptbxl",
            "path": "ptb-xl",
            "limit": None,
            "subset": None,
        } | archive

    edit_json(out / "work" / "shards" / "manifest.json", edit)


@pytest.mark.parametrize("n_input", [21837, 21801, 21799])
@pytest.mark.parametrize("subset", [None, "what lies there"])
def test_release_passes_also_where_a_subset_may_lie(
    out: Path, n_input: int, subset: str | None
) -> None:
    say_archive(out, n_input, subset=subset)
    assert "as ptbxl 1.0" in one(out, VERSION, "passed").evidence["text"]


@pytest.mark.parametrize(
    "archive", [{}, {"limit": 5000}, {"limit": 200}], ids=["none", "more", "less"]
)
def test_part_that_is_not_called_one_fires(out: Path, archive: dict[str, Any]) -> None:
    """Nor does a limit that did not cut say so."""
    say_archive(out, 2992, **archive)
    found = one(out, VERSION, "violated")
    assert found.taints == ("validation", "test")
    assert found.severity == "weakens"
    assert "2,992" in found.evidence["text"]
    assert "21,799" in found.evidence["text"]


@pytest.mark.parametrize("archive", [{"subset": "every seventh record"}, {"limit": 2992}])
def test_part_that_is_called_one_passes(out: Path, archive: dict[str, Any]) -> None:
    say_archive(out, 2992, **archive)
    text = one(out, VERSION, "passed").evidence["text"]
    assert ("every seventh record" if "subset" in archive else "archive.limit") in text


def test_more_records_than_any_release_fire_whatever_is_said(out: Path) -> None:
    say_archive(out, 21838, subset="some")
    assert "more than any" in one(out, VERSION, "violated").evidence["text"]


@pytest.mark.parametrize("releases", [None, {}])
def test_unknown_releases_are_not_a_pass(out: Path, releases: Any) -> None:
    say_archive(out, 21799, releases=releases)
    assert one(out, VERSION, "not checked")


def test_releases_are_those_of_the_publishers() -> None:
    """PTB-XL's release notes; MIT-BIH and LUDB by their record lists; the challenges' own tables."""
    kinds = {kind: look_up(ARCHIVES, kind, "archive kind") for kind in ARCHIVES}
    known = {kind: dict(found.releases) for kind, found in kinds.items()}
    assert known["ptbxl"] == PTBXL
    assert known["mitbih"] == {"1.0.0": 48}
    assert set(known["ludb"].values()) == {200}
    assert known["synthetic"] == known["wfdb"] == {}
    cinc = known["cinc"]
    parts = ["cpsc_2018", "cpsc_2018_extra", "st_petersburg_incart", "ptb", "ptb-xl", "georgia"]
    assert sum(cinc[part] for part in parts) == cinc["2020 training"]
    more = cinc["chapman_shaoxing"] + cinc["ningbo"]
    assert cinc["2020 training"] + more == cinc["2021 training"]


@pytest.mark.parametrize("file", EXPERIMENTS, ids=lambda file: file.stem)
def test_experiments_on_ptbxl_call_a_subset_one(file: Path) -> None:
    archive = load_settings(Experiment, file).archive
    assert (archive.subset is not None) == (archive.kind == "ptbxl")
    assert ArchiveSettings().subset is None


def edit_shards(out: Path, edit: Any) -> None:
    for file in shard_files(out / "work" / "shards"):
        edit_table(file, edit)


def by_label(out: Path, label: str, column: str, values: tuple[Any, Any]) -> None:
    """Give a column one value where the label is there, and another where it is not."""
    examples = pd.read_parquet(out / "work" / "examples.parquet").set_index("record_id")

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        carried = table["record_id"].map(examples[f"target_{label}"]).to_numpy()
        table[column] = [values[int(value)] for value in carried]
        return table

    edit_shards(out, edit)


@pytest.mark.parametrize("column", ["device", "site"])
def test_device_that_gives_a_label_away_fires(out: Path, column: str) -> None:
    by_label(out, "NORM", column, ("CS-12", "AT-6"))
    found = [f for f in check(out, SHORTCUT) if f.taints == ("test",)]
    assert [f.verdict for f in found] == ["violated"]
    assert found[0].evidence["ids"] == ["NORM"]
    assert found[0].evidence["auroc"]["NORM"] == 1.0
    assert column in found[0].evidence["text"]


def test_form_of_the_recording_counts_as_device(out: Path) -> None:
    by_label(out, "NORM", "gain", ([1000.0] * 12, [500.0] * 12))
    verdicts = {f.verdict for f in check(out, SHORTCUT)}
    assert "violated" in verdicts
    assert varying(acquisition(out / "work" / "shards"), DEVICE_LIKE) == ["gain"]


def test_age_and_sex_are_context_and_no_violation(out: Path) -> None:
    by_label(out, "NORM", "sex", ("M", "F"))
    edit_shards(out, lambda t: t.assign(device=np.where(np.arange(len(t)) % 2, "a", "b")))
    found = one(out, SHORTCUT, "passed")
    assert "sex alone: AUROC 1.00 (NORM)" in found.evidence["text"]


def test_metadata_that_say_nothing_pass(out: Path) -> None:
    rng = np.random.default_rng(0)
    edit_shards(out, lambda t: t.assign(device=rng.choice(["a", "b", "c"], len(t))))
    assert "device alone" in one(out, SHORTCUT, "passed").evidence["text"]


def test_quality_is_no_metadata(out: Path) -> None:
    """What is measured on the signal is not what stands beside it; how it was read is."""
    flags = [["noise:V1"], ["derived:III"]]
    edit_shards(out, lambda t: t.assign(flags=[flags[i % 2] for i in range(len(t))]))
    found = acquisition(out / "work" / "shards")
    assert set(found["reading"]) == {"", "derived:III"}


def drawn(n_people: int, tells: float, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw people of three recordings each, whose device follows a label in a share of cases."""
    rng = np.random.default_rng(seed)
    person = np.repeat(np.arange(n_people), 3)
    label = rng.integers(2, size=n_people)[person]
    device = np.where(rng.random(n_people) < tells, label[::3], rng.integers(2, size=n_people))
    ids = [f"r{i}" for i in range(len(person))]
    split = np.where(person < n_people // 2, "train", "test")
    examples = pd.DataFrame({"record_id": ids, "split": split, "target_A": label})
    examples["target_B"] = rng.integers(2, size=len(ids))
    patients = [f"p{i}" for i in person]
    devices = device[person].astype(str)
    return examples, pd.DataFrame({"record_id": ids, "patient_id": patients, "device": devices})


def test_bound_is_sure_by_patient() -> None:
    """A device that tells 9 in 10: sure with 400 people, not with eight."""
    many, few = (probe_labels(*drawn(n, tells=0.9), ["device"], "test")[0] for n in (400, 8))
    # The device agrees with the label in 0.9 + 0.1 / 2 of people: AUROC 0.95 with balanced labels.
    assert many.auroc == pytest.approx(0.95, abs=3 * 0.02)
    assert GIVEN_AWAY < many.low < many.auroc
    assert few.low < GIVEN_AWAY


@pytest.mark.parametrize("seed", range(10))
def test_chance_does_not_fire(seed: int) -> None:
    assert all(
        label.low < GIVEN_AWAY
        for label in probe_labels(*drawn(60, tells=0.0, seed=seed), ["device"], "test")
    )


def test_numbers_are_cut_and_unknown_ones_kept() -> None:
    examples, metadata = drawn(200, tells=0.0)
    rng = np.random.default_rng(1)
    value = examples["target_A"] * 10.0 + rng.normal(size=len(examples))
    metadata["n_times"] = value.where(rng.random(len(value)) < 0.8)
    label = probe_labels(examples, metadata, ["n_times"], "test")[0]
    # Four in five are told apart, and the fifth is a tie: 0.8 * 0.8 + (1 - 0.8 * 0.8) / 2 at least.
    assert label.auroc > 0.82 - 3 * 0.02


def say_input(out: Path, run: str, **changes: Any) -> None:
    edit_json(card_of(out, run), lambda tree: tree["input"].update(changes))


@pytest.mark.parametrize(
    "name",
    ["report", "scp_codes", "Diagnosis", "heart axis", "label_AF", "infarction_stadium1", "strat_fold",
     "validated_by", "target", "initial_autogenerated_report"],
)  # fmt: skip
@pytest.mark.parametrize("field", ["metadata", "features", "columns", "leads"])
def test_label_among_the_inputs_fires(out: Path, name: str, field: str) -> None:
    say_input(out, "deep-seed0", **{field: ["II", name] if field != "metadata" else ["age", name]})
    found = one(out, INPUT, "violated")
    assert found.evidence["ids"] == ["deep-seed0"]
    assert name in found.evidence["text"]
    assert one(out, INPUT, "passed").evidence["n"] == len(RUNS) - 1


def test_usual_inputs_pass_and_strange_ones_are_not_checked(out: Path) -> None:
    say_input(out, "deep-seed0", metadata=["age", "sex"], features=["intervals", "rhythm"])
    assert one(out, INPUT, "passed").evidence["n"] == len(RUNS)
    say_input(out, "deep-seed0", metadata=["potassium"])
    assert one(out, INPUT, "not checked").taints == ("run:deep-seed0",)
    edit_json(card_of(out, "wide-seed0"), lambda tree: tree.pop("input"))
    assert one(out, INPUT, "not checked").evidence["n"] == 2


@pytest.mark.parametrize(("column", "values"), [("sex", ("M", "F")), ("age", (30.0, 70.0))])
def test_column_that_determines_a_label_fires_where_it_is_read(
    out: Path, column: str, values: tuple[Any, Any]
) -> None:
    by_label(out, "NORM", column, values)
    assert one(out, INPUT, "passed").evidence["n"] == len(RUNS)
    say_input(out, "deep-seed0", metadata=[column])
    found = one(out, INPUT, "violated")
    assert f"{column}, which determines NORM" in found.evidence["text"]


def test_what_determines_a_label_is_no_accident() -> None:
    label = pd.Series([0, 1] * 20)
    assert determines(pd.Series(["a", "b"] * 20), label)
    assert determines(label + np.linspace(0, 0.5, 40), label)  # by a threshold
    assert not determines(pd.Series(["a", "b"] * 19 + ["b", "a"]), label)
    assert not determines(pd.Series([f"id{i}" for i in range(40)]), label)  # every value once
    assert not determines(pd.Series(["a", "b"] * 5), label[:10])  # too few to say so
    assert not determines(pd.Series([None] * 40), label)


def test_forbidden_words_and_allowed_inputs_do_not_meet() -> None:
    assert not FORBIDDEN & {
        "age",
        "sex",
        "intervals",
        "rhythm",
        "beat_shape",
        "beat",
        "measurements",
    }


def say_pretraining(out: Path, run: str, stated: Any) -> None:
    edit_json(card_of(out, run), lambda tree: tree["training"].update(pretraining=stated))


def prints_of(out: Path, record_id: str) -> str:
    for file in shard_files(out / "work" / "shards"):
        table = pd.read_parquet(file, columns=["record_id", "waveform_sha256"])
        own = table.loc[table["record_id"] == record_id, "waveform_sha256"]
        if len(own):
            return str(own.iloc[0])
    raise AssertionError(record_id)


@pytest.mark.parametrize(
    ("stated", "fires"),
    [
        ({"archives": ["my-archive"]}, "without saying on which"),
        ({"archives": ["Synthetic"], "record_ids": ["r000", "r018"]}, "1 of the"),
        ({"record_ids": ["r018", "r019"]}, "2 of the"),
        ({"archives": ["elsewhere"], "waveform_sha256": ["of r018"]}, "1 of the"),
    ],
)
def test_pretraining_on_test_records_fires(out: Path, stated: dict[str, Any], fires: str) -> None:
    if "waveform_sha256" in stated:
        stated = stated | {"waveform_sha256": [prints_of(out, "r018")]}
    say_pretraining(out, "deep-seed0", stated)
    found = one(out, BEFORE, "violated")
    assert found.taints == ("run:deep-seed0",)
    assert fires in found.evidence["text"]


@pytest.mark.parametrize(
    "stated",
    [
        None,
        {"archives": ["elsewhere"]},
        {"archives": ["my-archive"], "record_ids": ["r000", "r001"]},
        {"archives": ["elsewhere"], "record_ids": ["r018"]},  # another archive's r018
        {"waveform_sha256": ["f" * 64]},
    ],
)
def test_pretraining_elsewhere_passes(out: Path, stated: Any) -> None:
    say_pretraining(out, "deep-seed0", stated)
    assert one(out, BEFORE, "passed").evidence["n"] == len(RUNS)


@pytest.mark.parametrize("name", ["seen.json", "seen.parquet"])
def test_manifest_of_the_pretraining_is_read(out: Path, name: str) -> None:
    file = out / "work" / name
    say_pretraining(out, "deep-seed0", {"archives": ["my-archive"], "manifest": name})
    assert one(out, BEFORE, "not checked").taints == ("run:deep-seed0",)  # it is not there
    for ids, verdict in ((["r000"], "passed"), (["r000", "r018"], "violated")):
        if name.endswith("json"):
            write_json(file, {"record_ids": ids})
        else:
            write_table(file, pa.table({"record_id": ids}))
        found = {f.verdict for f in check(out, BEFORE)}
        assert found == {"passed", verdict}


@pytest.mark.parametrize("stated", [{}, {"archives": []}, {"by": "somebody"}])
def test_pretraining_on_nobody_knows_what_is_not_checked(out: Path, stated: dict[str, Any]) -> None:
    say_pretraining(out, "deep-seed0", stated)
    assert one(out, BEFORE, "not checked").taints == ("run:deep-seed0",)
    edit_json(card_of(out, "wide-seed0"), lambda tree: tree["training"].pop("pretraining"))
    assert one(out, BEFORE, "not checked").evidence["n"] == 2


def test_collection_that_holds_the_archive_fires(out: Path) -> None:
    say_archive(out, 21799)
    assert "ptbxl" in HOLDS["cinc"]
    say_pretraining(out, "deep-seed0", {"archives": ["CinC"]})
    assert one(out, BEFORE, "violated").taints == ("run:deep-seed0",)


def test_ensemble_inherits_what_its_members_knew(out: Path) -> None:
    say_pretraining(out, "wide-seed0", {"archives": ["my-archive"], "manifest": "seen.json"})
    say_pretraining(out, "wide-seed1", {"archives": ["elsewhere"], "record_ids": ["r018"]})
    write_json(out / "work" / "seen.json", {"record_ids": ["r018"]})
    add_ensembles(out, BOTH)
    card = read_json(card_of(out, SEEDS))
    assert card["training"]["pretraining"] == {
        "archives": ["elsewhere", "my-archive"],
        "record_ids": ["r018"],
        "manifest": ["seen.json"],
    }
    found = one(out, BEFORE, "violated")
    assert {f"run:{name}" for name in ("wide-seed0", SEEDS, EVERYONE)} <= set(found.taints)


def test_ensemble_of_runs_from_random_weights_says_so(out: Path) -> None:
    add_ensembles(out, BOTH)
    assert read_json(card_of(out, SEEDS))["training"]["pretraining"] is None
    assert one(out, BEFORE, "passed").evidence["n"] == len(RUNS) + 2
    assert one(out, INPUT, "passed").evidence["n"] == len(RUNS) + 2
