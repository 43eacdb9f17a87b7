"""The search for settings: what is drawn, what is read, what is written, what survives a kill."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import yaml
from fake_benchmark import edit_table
from PIL import Image

from rayecg import pipeline
from rayecg.audit.catalogue import load_rule
from rayecg.audit.evidence import Evidence
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import ArchitectureSettings, ArchiveSettings, Experiment, SplitSettings
from rayecg.core.files import read_json, read_table, write_json, write_table
from rayecg.core.folders import Folders
from rayecg.core.search_settings import RangeSettings, SearchSettings
from rayecg.core.settings import Overrides, load_settings
from rayecg.core.shard_format import shard_files
from rayecg.core.train_settings import LossSettings, ScalingSettings, TrainSettings
from rayecg.report.search import write_search
from rayecg.search import trial
from rayecg.search.space import check_search, drawn_value, with_values
from rayecg.search.trial import Job, run_trial
from rayecg.train import loop

ROOT = Path(__file__).resolve().parent.parent
SPACE = {
    "train.learning_rate": RangeSettings(log_uniform=(1e-4, 1e-2)),
    "train.augment.noise": RangeSettings(uniform=(0.0, 0.1)),
    "hyperparameters.hidden": RangeSettings(integer=(8, 16)),
    "hyperparameters.filters": RangeSettings(choice=((4, 8, 8), (8, 8, 8))),
}


def small(**changes: object) -> Experiment:
    settings = Experiment(
        name="small",
        archive=ArchiveSettings("synthetic", rate=100, n_records=120),
        split=SplitSettings("rotate", k=2),
        input=Overrides(duration_s=2.0),
        architectures=(ArchitectureSettings("simple_cnn1d"),),
        seeds=(0, 1),
        train=TrainSettings(epochs=2, batch_size=16),
        search=SearchSettings(SPACE, n_trials=3, reduction_factor=2),
    )
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


def searching(**changes: object) -> SearchSettings:
    return dataclasses.replace(small().search, **changes)  # type: ignore[type-var]


def checked(experiment: Experiment) -> None:
    plan = functools.partial(
        pipeline.plan_runs,
        task=pipeline.load_task(experiment.task),
        shards_key="",
        synthetic=True,
    )
    check_search(experiment, pipeline.check_experiment, plan)


@pytest.fixture(scope="module")
def searched(ray: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of one search, whose shards are spoilt for the records of the test split."""
    out = tmp_path_factory.mktemp("search") / "out"
    with_shards = small(train=TrainSettings(epochs=1, batch_size=16))
    pipeline.prepare(with_shards, Folders.of_benchmark(out))
    examples = read_table(out / "work" / "examples.parquet").to_pandas()
    tested = set(examples.query("split == 'test'")["record_id"])
    assert len(tested) > 5

    def spoil(table: pd.DataFrame) -> pd.DataFrame:
        table["gain"] = [
            None if one in tested else gain
            for one, gain in zip(table["record_id"], table["gain"], strict=True)
        ]
        return table

    for file in shard_files(out / "work" / "shards"):
        edit_table(file, spoil)
    pipeline.search(small(), out)
    return out


def manifest_of(out: Path) -> dict:
    (file,) = (out / "work" / "search").glob("*/manifest.json")
    return read_json(file)


def test_a_search_reads_no_test_record(searched: Path) -> None:
    (file,) = (searched / "work" / "search").glob("*/read.json")
    examples = read_table(searched / "work" / "examples.parquet").to_pandas()
    own = examples[examples["split"].isin(["train", "validation"])]
    assert set(read_json(file)["record_ids"]) == set(own["record_id"])
    kept = read_table(file.parent / "examples.parquet").to_pandas()
    assert set(kept["split"]) == {"train", "validation"}
    assert "search-saw-test: passed" in (searched / "search.md").read_text()


def test_a_spoilt_record_would_be_noticed(searched: Path, tmp_path: Path) -> None:
    """The search above passed because it left the test records alone, and not by luck."""
    from rayecg.train.resident import build_windows

    experiment = small()
    task = pipeline.load_task(experiment.task)
    (run, *_) = pipeline.plan_runs(experiment, task, "", True)
    examples = read_table(searched / "work" / "examples.parquet").to_pandas()
    examples["split"] = examples["split"].replace("test", "train")
    write_table(tmp_path / "examples.parquet", pa.Table.from_pandas(examples))
    with pytest.raises((TypeError, ValueError, IndexError)):
        build_windows(
            run, searched / "work" / "shards", tmp_path / "examples.parquet", tmp_path / "cache"
        )


def test_every_trial_is_a_row(searched: Path) -> None:
    rows = pd.read_parquet(searched / "trials.parquet")
    assert list(rows["trial"]) == [1, 2, 3]
    assert set(rows["status"]) <= {"ok", "stopped"}
    assert rows["train.learning_rate"].is_unique
    assert rows["validation_macro_auroc"].between(0, 1).all()
    folds = rows[["validation_macro_auroc_fold0", "validation_macro_auroc_fold1"]]
    np.testing.assert_allclose(folds.mean(axis=1), rows["validation_macro_auroc"])
    # Of two folds' train splits, every record is in one; of 10 s, it has five windows.
    n_read = read_json(next(searched.glob("work/search/*/read.json")))["n_records"]
    assert (rows["examples_seen"] == rows["epochs"] * n_read * 5).all()
    assert pd.read_csv(searched / "trials.csv").shape == rows.shape
    assert min(Image.open(searched / "trials.png").size) > 400
    said = (searched / "search.md").read_text()
    assert f"{rows['examples_seen'].sum():,} training examples" in said
    assert "not evidence of clinical worth" in said


def test_the_same_seed_draws_the_same_trials(searched: Path, ray: None, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    for name in ("archive", "shards"):
        (tmp_path / "work" / name).symlink_to(searched / "work" / name)
    once = manifest_of(searched)["trials"]
    pipeline.search(small(search=searching(n_trials=2)), tmp_path)
    again = manifest_of(tmp_path)["trials"]
    drawn = [[each["values"] for each in trials] for trials in (once, again)]
    assert all(values in drawn[0] for values in drawn[1])
    steps = {str(each["values"]): each["steps"] for each in once}
    for each in again:  # as far as both were trained, to the same figures
        pairs = zip(each["steps"], steps[str(each["values"])], strict=False)
        assert all(one == other for one, other in pairs)


def test_a_finished_search_is_not_run_again(
    searched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayecg.search import run

    before = (searched / "best.yaml").read_bytes(), (searched / "trials.png").read_bytes()
    monkeypatch.setattr(run, "_run", None)
    pipeline.search(small(), searched)
    assert ((searched / "best.yaml").read_bytes(), (searched / "trials.png").read_bytes()) == before


@pytest.mark.slow
def test_the_best_settings_train_as_they_are(searched: Path, ray: None, tmp_path: Path) -> None:
    manifest = manifest_of(searched)
    best = load_settings(Experiment, searched / "best.yaml")
    values = manifest["trials"][manifest["best"]]["values"]
    assert "search" not in yaml.safe_load((searched / "best.yaml").read_text())
    assert best.train.learning_rate == values["train.learning_rate"]
    assert best.architectures[0].hyperparameters["filters"] == values["hyperparameters.filters"]
    assert dataclasses.replace(best, title="") == with_values(small(), values)
    assert "search" in best.title
    one = dataclasses.replace(best, seeds=(0,))
    figures = {}
    for report in pipeline.train(one, tmp_path / "runs"):
        assert report["status"] == "ok", report["error"]
        figures[report["fold"]] = report["validation"]["macro_auroc"]
    # The same run, trained an epoch at a time by the search and at once here.
    expected = manifest["trials"][manifest["best"]]["of_fold"]
    assert [figures[fold] for fold in (0, 1)] == pytest.approx(expected, abs=1e-12)


def test_a_trial_that_is_started_again_trains_only_what_is_left(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = pipeline.load_task(small().task)
    plan = functools.partial(pipeline.plan_runs, task=task, shards_key="", synthetic=True)
    shutil.copy(next(searched.glob("work/search/*/examples.parquet")), tmp_path)
    job = Job(small(), plan, searched / "work" / "shards", tmp_path)
    drawn = dict.fromkeys(SPACE, 0) | {"train.learning_rate": 1e-3, "hyperparameters.hidden": 8}
    said: list[dict[str, float]] = []
    n_trained = []

    def report(step: dict[str, float]) -> None:
        said.append(step)
        if len(said) == 1:
            raise SystemExit  # as Tune ends a trial's thread

    def train_run(*given: object) -> None:
        n_trained.append(len(said))
        loop.train_run(*given)

    monkeypatch.setattr(trial.tune, "report", report)
    monkeypatch.setattr(trial, "train_run", train_run)
    with pytest.raises(SystemExit):
        run_trial(drawn, job)
    assert n_trained == [0, 0]  # an epoch of each fold, then a report
    run_trial(drawn, job)
    assert n_trained == [0, 0, 2, 2]  # the second start says the first step again
    assert said[0] == said[1]
    assert [step["epoch"] for step in said] == [1, 1, 2]
    found = read_json(job.trial(drawn) / "trial.json")
    assert found["status"] == "ok"
    assert [step["epoch"] for step in found["steps"]] == [1, 2]


@pytest.mark.slow
def test_trials_that_fail_are_rows_and_a_search_without_result_says_why(
    ray: None, searched: Path, tmp_path: Path
) -> None:
    """One of the two choices builds on the meta device, but asks for terabytes when trained."""
    (tmp_path / "work").mkdir()
    for name in ("archive", "shards"):
        (tmp_path / "work" / name).symlink_to(searched / "work" / name)
    too_large = [4, 8, 10**10]
    space = {"hyperparameters.filters": RangeSettings(choice=((4, 8, 8), tuple(too_large)))}
    pipeline.search(small(search=SearchSettings(space, n_trials=8, seed=2)), tmp_path)
    rows = pd.read_csv(tmp_path / "trials.csv")
    assert sorted(rows["status"]) == ["failed", "ok"]  # what is drawn again is tried once
    failed = rows[rows["status"] == "failed"].iloc[0]
    assert failed["hyperparameters.filters"] == str(too_large)
    assert len(failed["error"]) > 10
    assert failed["epochs"] == 0

    space = {"hyperparameters.filters": RangeSettings(choice=((4, 8, 10**11), tuple(too_large)))}
    with pytest.raises(DataError, match="no trial came to its end; the first: "):
        pipeline.search(small(search=SearchSettings(space, n_trials=1)), tmp_path)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"search": None}, "search.space: expected at least one"),
        ({"search": SearchSettings()}, "search.space: expected at least one"),
        ({"architectures": Experiment().architectures}, "a search is of one, came simple_cnn1d, "),
        (
            {"train": TrainSettings(scaling=ScalingSettings(num_workers=2))},
            "num_workers: expected 1 in a search",
        ),
        ({"search": searching(grace_period=9)}, r"grace_period: expected at most .* \(2\), came 9"),
        ({"search": searching(folds=(2,))}, r"search.folds: .* \(0 to 1\), came \[2\]"),
        ({"split": SplitSettings("kfold", k=3)}, "search.folds: expected one fold with"),
        (
            {"split": SplitSettings(), "search": searching(folds=(0,))},
            r"\(it has none\), came \[0\]",
        ),
    ],
)
def test_what_cannot_be_searched_is_refused(changes: dict, expected: str) -> None:
    with pytest.raises(SettingsError, match=expected) as error:
        checked(small(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "own", "expected"),
    [
        ("train.lerning_rate", {"uniform": (0.1, 0.2)}, "train.lerning_rate.*learning_rate"),
        ("seeds", {"choice": (0, 1)}, r"expected names like train\.….*'seeds'"),
        ("hyperparameters", {"choice": (0, 1)}, "expected names like"),
        ("train.epochs", {"integer": (1, 9)}, "train.epochs is the same for all trials"),
        ("train.scaling.num_workers", {"integer": (1, 2)}, "train.scaling is the same"),
        ("train.augment.crop", {"uniform": (0.5, 1.0)}, "crop=1.0.*expected 0 or more, below 1"),
        ("train.loss.gamma", {"uniform": (0.0, 1.0)}, "expected its default 2.0 with name 'auto'"),
        ("train.batch_size", {"uniform": (8.0, 16.0)}, "whole number"),
        ("hyperparameters.depth", {"integer": (1, 2)}, "no hyperparameter 'depth'"),
        ("input.duration_s", {"uniform": (1.0, 2.0)}, "input.duration_s: expected a choice"),
        ("input.features", {"choice": ((), ("measurements",))}, "make no difference"),
    ],
)
def test_a_space_is_checked_before_anything_runs(name: str, own: dict, expected: str) -> None:
    search = SearchSettings({"train.weight_decay": RangeSettings(uniform=(0.0, 0.1))})
    checked(small(search=search))
    space = {**search.space, name: RangeSettings(**own)}
    with pytest.raises(SettingsError, match=expected) as error:
        checked(small(search=dataclasses.replace(search, space=space)))
    assert "\n" not in str(error.value)


def test_every_pair_of_choices_must_fit() -> None:
    names, gammas = RangeSettings(choice=("focal", "auto")), RangeSettings(uniform=(1.0, 3.0))
    space = {"train.loss.name": names, "train.loss.gamma": gammas}
    with pytest.raises(SettingsError, match=r"name=auto.*gamma: expected its default"):
        checked(small(search=SearchSettings(space)))
    focal = dataclasses.replace(small().train, loss=LossSettings("focal"))
    checked(small(train=focal, search=SearchSettings({"train.loss.gamma": gammas})))


def test_what_the_architecture_says_itself_cannot_be_searched() -> None:
    own = ArchitectureSettings("simple_cnn1d", train=Overrides(learning_rate=1e-3))
    with pytest.raises(SettingsError, match="learning_rate: its values make no difference"):
        checked(small(architectures=(own,)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{uniform: [0, 1], choice: [1, 2]}", "expected one of"),
        ("{}", "came none"),
        ("{uniform: [1, 1]}", "low < high"),
        ("{log_uniform: [0, 1]}", "0 < low < high"),
        ("{integer: [1.5, 2]}", "whole number"),
        ("{choice: [1]}", "two values or more"),
        ("{choice: [1, 1]}", "each once"),
        ("{normal: [0, 1]}", "unknown key"),
        ("{uniform: [0, 1]}, train: {choice: [0, 1]}", "is a part of train"),
    ],
)
def test_ranges_are_read_strictly(tmp_path: Path, text: str, expected: str) -> None:
    (tmp_path / "a.yaml").write_text(f"search: {{space: {{train.weight_decay: {text}}}}}")
    with pytest.raises(SettingsError, match=expected):
        load_settings(Experiment, tmp_path / "a.yaml")


def test_drawn_numbers_are_short_and_stay_inside() -> None:
    assert drawn_value(RangeSettings(log_uniform=(1e-4, 1e-2)), 0.00123456) == 0.001235
    assert drawn_value(RangeSettings(uniform=(0.12344, 1.0)), 0.123441) == 0.12344
    assert drawn_value(RangeSettings(integer=(1, 3)), np.int64(3)) == 3
    assert drawn_value(RangeSettings(choice=("a", (1, 2))), 1) == [1, 2]


def test_optuna_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SettingsError, match="optuna is not installed"):
        checked(small(search=searching(sampler="optuna")))


def test_the_report_of_many_trials_is_cut_and_pure(tmp_path: Path) -> None:
    trials = [
        {
            "values": {"train.learning_rate": 1e-4 * (i + 1)},
            "status": "ok" if i % 2 else "stopped",
            "error": None,
            "steps": [{"epoch": 1, "figure": 0.5 + i / 500, "examples_seen": 100}],
            "of_fold": [0.5 + i / 500],
        }
        for i in range(60)
    ]
    space = {"train.learning_rate": {"log_uniform": [1e-4, 1e-2], "choice": None}}
    manifest = {"title": "Many", "metric": "macro_f1", "unit": "beat", "synthetic": False}
    manifest |= {"space": space, "folds": [None], "best": 59, "trials": trials}
    text = write_search(manifest, ["said by the audit"], tmp_path)
    files = ("trials.png", "trials.csv", "trials.parquet", "search.md")
    before = [(tmp_path / name).read_bytes() for name in files]
    write_search(manifest, ["said by the audit"], tmp_path)
    assert [(tmp_path / name).read_bytes() for name in files] == before
    assert "The first 50 of 60" in text
    assert "6,000 training examples seen (beats)" in text


def evidence(work: Path, read: list[str] | None) -> Evidence:
    sides = {"a": "train", "b": "validation", "c": "test", "d": "test"}
    rows = [
        {"record_id": one, "patient_id": one, "offset": 0, "fold": None, "split": side}
        for one, side in sides.items()
    ]
    write_table(work / "examples.parquet", pa.Table.from_pylist(rows))
    if read is not None:
        write_json(work / "search" / "one" / "read.json", {"record_ids": ["a", "b"]})
        write_json(work / "search" / "two" / "read.json", {"record_ids": read})
    return Evidence(work)


@pytest.mark.parametrize(
    ("read", "verdict", "ids"),
    [(None, "not checked", None), (["a"], "passed", None), (["a", "d"], "violated", ["d"])],
)
def test_the_audit_tells_what_a_search_read(
    tmp_path: Path, read: list[str] | None, verdict: str, ids: list[str] | None
) -> None:
    (finding,) = load_rule("search-saw-test")(evidence(tmp_path, read))
    assert finding.verdict == verdict
    assert finding.evidence.get("ids") == ids
    assert finding.taints == (("test",) if verdict == "violated" else ())


@pytest.mark.slow
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT])
def test_a_search_that_was_killed_goes_on(tmp_path: Path, kill: signal.Signals) -> None:
    experiment = tmp_path / "search.yaml"
    experiment.write_text(
        "archive: {kind: synthetic, rate: 100, n_records: 120}\n"
        "split: {protocol: rotate, k: 2}\n"
        "input: {duration_s: 2.0}\n"
        "architectures: [simple_cnn1d]\n"
        "train: {epochs: 20, batch_size: 16}\n"
        "ray: {num_cpus: 2}\n"
        "search: {n_trials: 3, grace_period: 20, space: "
        "{train.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}}}\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(ROOT / "jobs" / "search.py")]
    command += ["--experiment", str(experiment), "--out", str(out)]

    def steps() -> dict[str, int]:
        found = {}
        for file in out.glob("work/search/*/trials/*/trial.json"):
            found[file.parent.name] = len(read_json(file).get("steps", []))
        return found

    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as job:
        until = time.monotonic() + 300
        while not any(3 < n < 15 for n in steps().values()) and time.monotonic() < until:
            time.sleep(0.1)
        assert job.poll() is None, "it ended before it could be killed"
        job.send_signal(kill)
        _, said = job.communicate(timeout=120)
    if kill == signal.SIGINT:
        assert job.returncode == 130
        assert said.splitlines()[-1].endswith("the same command continues from here")
        assert "Traceback" not in said
    time.sleep(5)  # orphans of the killed one may still write
    done = steps()
    assert max(done.values()) > 3
    again = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment)
    assert again.returncode == 0, again.stderr
    rows = pd.read_csv(out / "trials.csv")
    assert len(rows) == 3
    assert list(rows["status"]) == ["ok"] * 3
    assert (rows["epochs"] == 20).all()
