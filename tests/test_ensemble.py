"""Ensembles: averages by hand, what they leave out, and what becomes of those that fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from fake_benchmark import (
    BOTH,
    DEGRADED,
    EVERYONE,
    LOST,
    RUNS,
    SEEDS,
    add_ensembles,
    card_of,
    edit_json,
    edit_table,
    write_benchmark,
)
from scipy.special import expit, logit, softmax

import rayecg
from rayecg.audit.run import audit
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import Experiment
from rayecg.core.files import read_json, read_table, write_table
from rayecg.core.outputs import OperatingPoint, Temperature
from rayecg.core.predictions import RECORD_COLUMNS
from rayecg.core.settings import load_settings
from rayecg.metrics.classification import evaluate
from rayecg.metrics.operating_point import choose_operating_point
from rayecg.report.results import Results
from rayecg.report.write import report
from rayecg.score import ensemble as stage
from rayecg.score.average import mean_logits, worst_of
from rayecg.score.ensemble import plan_ensembles


@pytest.fixture(scope="module", params=["recordings", "beats"])
def clean(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = write_benchmark(tmp_path_factory.mktemp("ensemble") / "out", request.param)
    assert [report["status"] for report in add_ensembles(out)] == ["ok", "ok"]
    return out


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_benchmark(tmp_path_factory.mktemp("ensemble") / "out")


@pytest.fixture
def out(recordings: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings, tmp_path / "copy"))


def test_the_mean_is_that_of_the_probabilities():
    logit_MNC = np.array([[[0.0, 3.0, -1.0]], [[2.0, -3.0, 4.0]], [[-1.0, 0.5, 0.0]]])
    expected_NC = expit(logit_MNC).mean(axis=0)
    found_NC = mean_logits(logit_MNC, "multilabel")
    np.testing.assert_allclose(found_NC, logit(expected_NC), rtol=1e-13)
    expected_NC = softmax(logit_MNC, axis=2).mean(axis=0)
    found_NC = mean_logits(logit_MNC, "multiclass")
    np.testing.assert_allclose(found_NC, np.log(expected_NC), rtol=1e-13)
    # By hand: (1/2 + 1/4) / 2 = 3/8, whose odds are 3/5.
    two = mean_logits(np.array([[[0.0]], [[np.log(1 / 3)]]]), "multilabel")
    assert two[0, 0] == pytest.approx(np.log(3 / 5), abs=1e-15)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_certainty_and_absence_are_borne(kind):
    """Probabilities that round to 0 or 1 have finite logits; a row of NaN stays one."""
    logit_MNC = np.array(
        [[[800.0, -800.0], [1, 2], [0, 0]], [[800.0, -800.0], [np.nan] * 2, [0, 0]]]
    )
    found_NC = mean_logits(logit_MNC, kind)
    assert np.isfinite(found_NC[[0, 2]]).all()
    assert np.isnan(found_NC[1]).all()


def test_who_is_averaged():
    def planned(kinds, *rows):
        names = ("run", "architecture", "fold", "status")
        found = plan_ensembles(kinds, [dict(zip(names, row, strict=True)) for row in rows])
        return {each.name: each.members for each in found}

    a, b, c = ("a0", "a", None, "ok"), ("a1", "a", None, "failed"), ("b0", "b", None, "ok")
    assert planned(["seeds"], a, b, c) == {"a-ensemble": ("a0", "a1")}
    assert planned(BOTH, a, c) == {"ensemble": ("a0", "b0")}
    assert planned(BOTH, a, b) == {"a-ensemble": ("a0", "a1")}
    assert planned([], a, b, c) == planned(["seeds"], a, c) == planned(BOTH) == {}
    folds = [(f"{x}-{f}-{s}", x, f, "ok") for s in (0, 1) for f in (0, 1) for x in "ab"]
    assert planned(BOTH, *folds) == {
        "a-fold0-ensemble": ("a-0-0", "a-0-1"),
        "a-fold1-ensemble": ("a-1-0", "a-1-1"),
        "b-fold0-ensemble": ("b-0-0", "b-0-1"),
        "b-fold1-ensemble": ("b-1-0", "b-1-1"),
        "fold0-ensemble": ("a-0-0", "b-0-0", "a-0-1", "b-0-1"),
        "fold1-ensemble": ("a-1-0", "b-1-0", "a-1-1", "b-1-1"),
    }


def test_settings_name_the_kinds():
    assert Experiment().ensembles == ("seeds",)
    assert load_settings(Experiment, None, ["ensembles=[]"]).ensembles == ()
    for wrong, text in (("[seed]", "seeds"), ("[seeds, seeds]", "each kind once")):
        with pytest.raises(SettingsError, match=text):
            load_settings(Experiment, None, [f"ensembles={wrong}"])


@pytest.mark.parametrize(
    ("name", "members"), [(SEEDS, ("wide-seed0", "wide-seed1")), (EVERYONE, tuple(RUNS))]
)
def test_outputs_are_those_of_the_mean(clean, name, members):
    """Every number of the tables again, from the members' probabilities alone."""
    work = clean / "work"
    card, said = read_json(card_of(clean, name)), read_json(work / "train" / name / "run.json")
    labels, kind = card["task"]["labels"], card["task"]["kind"]
    beats = card["task"]["unit"] == "beat"
    keys = ["record_id", "offset"] if beats else ["record_id"]

    def stack(table: pd.DataFrame, output: str) -> np.ndarray:
        return table[[f"{output}_{label}" for label in labels]].to_numpy(float, na_value=np.nan)

    def mean_and_table(place: Callable[[str], Path]) -> tuple[np.ndarray, pd.DataFrame]:
        own = read_table(place(name)).to_pandas()
        each = [
            own[keys].merge(read_table(place(m)).to_pandas(), on=keys, how="left") for m in members
        ]
        return np.mean([stack(table, "probability") for table in each], axis=0), own

    mean_NC, table = mean_and_table(lambda run: work / "train" / run / "validation.parquet")
    examples = read_table(work / "examples.parquet").to_pandas()
    examples = examples[examples["split"] == "validation"]
    target_NC = stack(table.merge(examples, on=["record_id", "offset"]), "target").astype(int)
    assert len(table) == len(target_NC) == len(examples)
    logit_NC = logit(mean_NC) if kind == "multilabel" else np.log(mean_NC)
    np.testing.assert_allclose(stack(table, "logit"), logit_NC, atol=1e-9)
    expected = choose_operating_point(logit_NC, target_NC, kind, "validation")
    point = OperatingPoint.from_tree(card["operating_point"])
    assert (point.split, point.rule, point.n_examples) == ("validation", expected.rule, len(table))
    fitted, again = point.calibrator, expected.calibrator
    assert isinstance(fitted, Temperature)
    assert isinstance(again, Temperature)
    assert fitted.temperature == pytest.approx(again.temperature, rel=1e-6)
    assert (fitted.split, fitted.n_examples) == ("validation", len(table))
    assert point.thresholds_C == pytest.approx(expected.thresholds_C, abs=1e-12)
    figures = evaluate(target_NC, mean_NC, stack(table, "decision").astype(int), labels)
    assert said["validation"] == pytest.approx(figures, nan_ok=True)

    mean_NC, table = mean_and_table(
        lambda run: work / "score" / run / ("windows" if beats else "predictions")
    )
    np.testing.assert_allclose(stack(table, "probability"), mean_NC, atol=1e-12)
    np.testing.assert_allclose(
        stack(table, "calibrated"), point.calibrate(stack(table, "logit")), atol=1e-12
    )
    decided = ~np.isnan(stack(table, "decision"))
    expected_NC = point.decide(stack(table, "probability"))
    np.testing.assert_array_equal(stack(table, "decision")[decided], expected_NC[decided])
    assert decided.all() if beats else decided.any()
    assert said["n_parameters"] == card["n_parameters"] == 1234 * len(members)
    assert list(said["members"]) == list(card["members"]) == list(members)
    assert (said["seed"], said["status"], said["error"]) == (None, "ok", None)


def test_every_record_has_its_row(clean):
    """With what the member says that fared worst."""
    place = clean / "work" / "score" / EVERYONE
    manifest, table = read_json(place / "manifest.json"), read_table(place / "predictions")
    member = read_table(clean / "work" / "score" / "deep-seed0" / "predictions")
    assert table.schema.equals(member.schema)
    rows = table.to_pandas().set_index("record_id")
    assert len(rows) == manifest["n_input"] == member.num_rows
    for status in ("ok", "degraded", "quarantined"):
        assert manifest[f"n_{status}"] == (rows["status"] == status).sum()


def test_a_row_is_no_members_own_and_older_files_do(tmp_path):
    rows = [
        {"record_id": i, "status": status, "abstain": False, "n_windows": 1, "checkpoint": "mine"}
        for i, status in (("a", "ok"), ("b", "degraded"))
    ]
    table = pa.Table.from_pylist(rows, schema=pa.schema(RECORD_COLUMNS))
    write_table(tmp_path / "new" / "0.parquet", table)
    older = table.drop_columns(["checkpoint", "code_version"]).set_column(
        3, table.schema.field("status"), pa.array(["degraded", "ok"])
    )
    write_table(tmp_path / "older" / "0.parquet", older)
    found = worst_of([tmp_path / "new", tmp_path / "older"], pd.Index(["a", "b"]))
    assert found.schema.equals(table.schema)
    assert found["status"].to_pylist() == ["degraded", "degraded"]
    assert found["checkpoint"].null_count == found["code_version"].null_count == 2


def test_no_decision_where_a_member_abstained_and_nothing_where_one_has_nothing(out):
    """The members' records differ: r002 is degraded in one, r004 quarantined in one."""

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        table = table.set_index("record_id", drop=False)
        outputs = [c for c in table if c.startswith(("logit", "probability", "calibrated"))]
        decisions = [c for c in table if c.startswith("decision")]
        table.loc[["r002", "r004"], decisions] = None
        table.loc["r002", ["status", "abstain"]] = ["degraded", True]
        table.loc["r004", ["status", "abstain", "error_code"]] = ["quarantined", True, "not_finite"]
        table.loc["r004", outputs] = np.nan
        return table

    edit_table(out / "work" / "score" / "wide-seed1" / "predictions" / "0.parquet", edit)
    add_ensembles(out, ("seeds",))
    rows = read_table(out / "work" / "score" / SEEDS / "predictions").to_pandas()
    rows = rows.set_index("record_id")
    outputs = [c for c in rows if c.startswith(("logit", "probability", "calibrated"))]
    decisions = [c for c in rows if c.startswith("decision")]
    lost, degraded = ["r004", LOST], ["r002", DEGRADED]
    assert (rows.loc[lost, "status"] == "quarantined").all()
    assert (rows.loc[degraded, "status"] == "degraded").all()
    assert rows.loc["r004", "error_code"] == "not_finite"
    assert rows.loc[[*lost, *degraded], "abstain"].all()
    assert rows.loc[lost, [*outputs, *decisions]].isna().all(axis=None)
    assert rows.loc[degraded, outputs].notna().all(axis=None)
    assert rows.loc[degraded, decisions].isna().all(axis=None)
    rest = rows.drop([*lost, *degraded])
    assert rest[[*outputs, *decisions]].notna().all(axis=None)
    assert not rest["abstain"].any()
    manifest = read_json(out / "work" / "score" / SEEDS / "manifest.json")
    assert (manifest["n_degraded"], manifest["n_quarantined"]) == (2, 2)


def test_a_beat_that_a_member_lacks_has_no_probability(tmp_path):
    out = write_benchmark(tmp_path / "out", "beats")
    file = out / "work" / "score" / "wide-seed0" / "windows" / "0.parquet"
    edit_table(file, lambda table: table[table["record_id"] != "100"])
    add_ensembles(out, ("seeds",))
    rows = read_table(out / "work" / "score" / SEEDS / "windows").to_pandas()
    own = rows["record_id"] == "100"
    assert own.any()
    assert rows.loc[own, ["probability_N", "decision_N"]].isna().all(axis=None)
    assert rows.loc[~own, ["probability_N", "decision_N"]].notna().all(axis=None)


@pytest.mark.parametrize(
    ("stage_of", "file", "edit", "text"),
    [
        ("train", "validation.parquet", lambda t: t.iloc[1:], "1 are in one of them alone"),
        (
            "train",
            "validation.parquet",
            lambda t: t.assign(offset=t["offset"] + 1),
            "wide-seed1, validation: expected the rows of wide-seed0",
        ),
        ("train", "validation.parquet", lambda t: pd.concat([t, t.iloc[:1]]), "came twice"),
        ("score", "predictions/0.parquet", lambda t: t.iloc[1:], "the first: record_id r000"),
    ],
)
def test_members_that_do_not_fit_together_are_a_row_with_one_line(out, stage_of, file, edit, text):
    edit_table(out / "work" / stage_of / "wide-seed1" / file, edit)
    (found,) = add_ensembles(out, ("seeds",))
    assert found["status"] == "failed"
    assert text in found["error"]
    assert "\n" not in found["error"]
    assert not card_of(out, SEEDS).exists()
    runs = Results(out, out / "findings.json").runs.set_index("run")
    assert runs.loc[SEEDS, "status"] == "failed"
    assert runs.loc["wide-seed0", "status"] == "ok"


def test_validation_rows_are_of_the_validation_split(out):
    for run in ("wide-seed0", "wide-seed1"):
        file = out / "work" / "train" / run / "validation.parquet"
        edit_table(file, lambda t: t.assign(record_id=t["record_id"].replace("r016", "r018")))
    (found,) = add_ensembles(out, ("seeds",))
    assert "no example of the validation split: record_id r018" in found["error"]


def test_one_whose_members_did_not_all_finish_is_not_made(out):
    assert [report["status"] for report in add_ensembles(out)] == ["ok", "ok"]
    edit_json(
        out / "work" / "train" / "wide-seed1" / "run.json",
        lambda tree: tree.update(status="failed", error="out of memory"),
    )
    found = add_ensembles(out)
    assert [report["status"] for report in found] == ["not made"] * 2
    assert found[0]["error"] == "needs all its members, and wide-seed1 did not finish"
    assert not (out / "work" / "score" / SEEDS).exists()
    audit(out / "work", out)
    written = report(out, out)
    assert written.table.count("not made: wide-ensemble: needs all its members") == 1
    # The table of means has nothing to say of it.
    assert set(pd.read_csv(out / "summary.csv")["architecture"]) == {"wide", "deep", "broken"}


def mtimes(out: Path) -> dict[Path, int]:
    return {f: f.stat().st_mtime_ns for f in (out / "work").rglob("*") if "ensemble" in str(f)}


def test_a_second_time_does_nothing_and_other_weights_do(out):
    add_ensembles(out)
    before = mtimes(out)
    assert len(before) > 10
    first = read_json(card_of(out, SEEDS))
    add_ensembles(out)
    assert mtimes(out) == before
    edit_json(card_of(out, "wide-seed1"), lambda tree: tree.update(weights_sha256="other"))
    add_ensembles(out)
    second = read_json(card_of(out, SEEDS))
    assert second["members"] == {"wide-seed0": "wide0", "wide-seed1": "other"}
    assert second["weights_sha256"] != first["weights_sha256"]
    assert all(now != before[file] for file, now in mtimes(out).items() if file.suffix)


@pytest.mark.parametrize("writes", range(1, 8))
def test_a_killed_job_leaves_nothing_that_is_taken_for_a_result(out, writes, monkeypatch):
    """Killed at any of the files that it writes; the next start makes the whole."""
    left = [writes]

    def dying(write):
        def once(*arguments, **options):
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return write(*arguments, **options)

        return once

    with monkeypatch.context() as patched:
        for name in ("write_json", "write_table", "write_card"):
            patched.setattr(stage, name, dying(getattr(stage, name)))
        try:
            add_ensembles(out, ("seeds",))
        except KeyboardInterrupt:
            assert not (out / "work" / "train" / SEEDS / "run.json").exists()
            assert not list(out.rglob("*.part"))
        else:
            assert writes > 5
    (found,) = add_ensembles(out, ("seeds",))
    results = Results(out, out / "findings.json")
    assert found["status"] == results.runs.set_index("run").loc[SEEDS, "status"] == "ok"
    assert read_json(out / "work" / "score" / SEEDS / "manifest.json")["key"] == found["key"]


def test_nothing_takes_its_card_for_a_checkpoint(out):
    add_ensembles(out, ("seeds",))
    with pytest.raises(DataError, match=r"load its members: wide-seed0, wide-seed1$") as caught:
        rayecg.load(card_of(out, SEEDS).parent)
    assert "\n" not in str(caught.value)
