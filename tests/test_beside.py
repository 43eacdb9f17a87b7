"""Several benchmarks in one table: rows, verdicts and the plot, and what cannot stand side by side."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_benchmark import add_ensembles, edit_table, write_benchmark
from PIL import Image

from rayecg import pipeline
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.files import read_json
from rayecg.report.beside import write_beside

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`inter` is as it should be; `intra` tests on beats of the records it trains on."""
    place = tmp_path_factory.mktemp("beside")
    inter = write_benchmark(place / "inter", "beats")
    intra = Path(shutil.copytree(inter, place / "intra"))

    def deal(table: pd.DataFrame) -> pd.DataFrame:
        trained = table["split"] == "train"
        moved = trained & (np.arange(len(table)) % 2 == 0)
        return table.assign(split=table["split"].mask(moved, "test"))

    edit_table(intra / "work" / "examples.parquet", deal)
    add_ensembles(inter)
    return place


@pytest.fixture(scope="module")
def compared(place: Path) -> tuple[str, tuple[str, ...]]:
    return pipeline.compare([place / "inter", place / "intra"], place / "out")


def test_rows_stand_beside_one_another_with_their_verdicts(
    place: Path, compared: tuple[str, tuple[str, ...]]
) -> None:
    out, (table, violated) = place / "out", compared
    expected = {"patient-overlap", "record-astride", "folds-official"}
    assert expected <= set(violated)
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "inter",
        "intra",
        "per_class.csv",
        "plots",
        "summary.csv",
        "summary.md",
    ]
    summary = pd.read_csv(out / "summary.csv")
    # The ensembles are rows of their own report.
    assert summary["benchmark"].tolist() == ["inter"] * 3 + ["intra"] * 3
    own = pd.read_csv(out / "intra" / "summary.csv").set_index("architecture")
    for _, row in summary[summary["benchmark"] == "intra"].iterrows():
        same = own.loc[row["architecture"]]
        pd.testing.assert_series_equal(row[own.columns], same, check_names=False)
    for name, rows in summary[summary["n_seeds"] > 0].groupby("benchmark"):
        for verdict in rows["verdict"]:
            fired = {rule for rule in expected if rule in verdict}
            assert fired == (expected if name == "intra" else set())
    text = (out / "summary.md").read_text()
    assert table in text
    assert "[A fake & its <b>title</b>](intra/index.html) violates" in text
    assert "| record-astride | passed: " in text
    assert "violated: 3 records have examples in both train and test" in text
    assert str(place) not in text
    labels = pd.read_csv(out / "per_class.csv")
    assert set(labels["benchmark"]) == {"inter", "intra"}
    picture = Image.open(out / "plots" / "beside.png")
    assert min(picture.size) > 300
    for name in ("inter", "intra"):
        assert (out / name / "index.html").exists()
        assert read_json(out / name / "findings.json", list)
        settings = (place / name / "experiment.yaml").read_bytes()
        assert (out / name / "experiment.yaml").read_bytes() == settings


def test_the_same_files_give_the_same_bytes(
    place: Path, compared: tuple[str, tuple[str, ...]], tmp_path: Path
) -> None:
    sources = {name: (place / name, place / "out" / name) for name in ("inter", "intra")}
    assert write_beside(sources, tmp_path) == compared[0]
    for file in ("summary.md", "summary.csv", "per_class.csv", "plots/beside.png"):
        assert (tmp_path / file).read_bytes() == (place / "out" / file).read_bytes()


def test_what_cannot_stand_side_by_side_is_refused(place: Path, tmp_path: Path) -> None:
    other, clean = write_benchmark(tmp_path / "other", "recordings"), place / "inter"
    with pytest.raises(DataError, match=r"other: expected the labels .*'S'.* came .*'MI'"):
        write_beside({"inter": (clean, clean), "other": (other, other)}, tmp_path / "out")
    with pytest.raises(SettingsError, match="different names"):
        pipeline.compare([clean, clean], tmp_path / "out")
    with pytest.raises(DataError, match="finished benchmark"):
        pipeline.compare([tmp_path / "none", clean], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_job_says_it_in_a_table_and_strict_exits_3(place: Path, tmp_path: Path) -> None:
    command = [sys.executable, ROOT / "jobs" / "compare.py", "--strict", "--out", tmp_path / "out"]
    done = subprocess.run(
        [*map(str, command), "--runs", str(place / "inter"), str(place / "intra")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 3, done.stderr
    assert "record-astride" in done.stdout
    assert "| test macro F1 |" in done.stdout
