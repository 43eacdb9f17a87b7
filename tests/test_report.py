"""The report of small, invented benchmarks: totals, honesty about what is missing, and bytes."""

from __future__ import annotations

import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from fake_benchmark import (
    DEGRADED,
    FAILED,
    LOST,
    RUNS,
    edit_json,
    edit_table,
    write_benchmark,
)
from PIL import Image
from sklearn.metrics import f1_score, roc_auc_score

from rayecg.audit.run import audit
from rayecg.core.catalogue import look_up
from rayecg.core.errors import DataError
from rayecg.core.files import read_json, read_table
from rayecg.report.runs import verdict
from rayecg.report.text import (
    NOTHING,
    SYNTHETIC_LABEL,
    markdown_table,
    mean_and_spread,
    number,
    shorten_paths,
)
from rayecg.report.write import PLOTS, ReportResult, report

LABELS = ("NORM", "MI", "STTC", "CD", "HYP")
TABLES = ("runs.parquet", "summary.csv", "per_class.csv", "summary.md", "index.html")


def make(folder: Path, kind: str, synthetic: bool = True) -> tuple[Path, ReportResult]:
    out = write_benchmark(folder, kind, synthetic)
    audit(out / "work", out)
    return out, report(out, out)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportResult]:
    return make(tmp_path_factory.mktemp("report") / "recordings", "recordings")


@pytest.fixture(scope="module")
def beats(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportResult]:
    return make(tmp_path_factory.mktemp("report") / "beats", "beats", synthetic=False)


@pytest.fixture
def copy(recordings: tuple[Path, ReportResult], tmp_path: Path) -> Path:
    return Path(shutil.copytree(recordings[0], tmp_path / "copy"))


def runs_of(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "runs.parquet").set_index("run")


def page_of(out: Path) -> str:
    return (out / "index.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Collects what a test asks of the page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_every_run_has_a_row(recordings: tuple[Path, ReportResult]) -> None:
    runs = runs_of(recordings[0])
    assert list(runs.index) == sorted([*RUNS, FAILED])
    assert runs["status"].value_counts().to_dict() == {"ok": 3, "failed": 1}
    assert runs["chosen"].sum() == 1
    assert runs["validation_macro_auroc"].idxmax() == runs["chosen"].idxmax()
    assert runs.loc[FAILED, "verdict"] == "no figures"
    assert runs.loc[FAILED, [c for c in runs if c.startswith("test_")]].isna().all()
    assert runs["synthetic"].all()


def test_choice_ignores_the_test_split(copy: Path) -> None:
    """The best of all on test, and the worst on validation, is not chosen."""

    def worst(said: dict) -> None:
        said["validation"]["macro_auroc"] = 0.01

    best = runs_of(copy)["test_macro_auroc"].idxmax()
    edit_json(copy / "work" / "train" / best / "run.json", worst)
    report(copy, copy)
    runs = runs_of(copy)
    assert runs["chosen"].idxmax() != best
    assert runs["test_macro_auroc"].idxmax() == best
    summary = pd.read_csv(copy / "summary.csv")
    means = summary["validation_macro_auroc_mean"].dropna()
    assert means.is_monotonic_decreasing


def test_counts_and_metrics_are_those_of_the_files(recordings: tuple[Path, ReportResult]) -> None:
    out, runs = recordings[0], runs_of(recordings[0])
    examples = pd.read_parquet(out / "work" / "examples.parquet")
    test = examples[examples["split"] == "test"]
    assert {LOST, DEGRADED} < set(test["record_id"])
    for run in RUNS:
        given = read_table(out / "work" / "score" / run / "predictions").to_pandas()
        rows = test.merge(given, on="record_id")
        scored = rows[rows["probability_NORM"].notna()]
        decided = scored[scored["decision_NORM"].notna()]
        found = runs.loc[run]
        assert found["n_test"] == len(test) == 6
        assert found["n_test_missing"] == 1
        assert found["n_test_scored"] == len(scored) == 5
        assert found["n_test_abstained"] == len(scored) - len(decided) == 1
        aurocs, scores = [], []
        for label in LABELS:
            truth = scored[f"target_{label}"]
            assert found[f"test_n_positive_{label}"] == truth.sum()
            if 0 < truth.sum() < len(truth):
                aurocs.append(roc_auc_score(truth, scored[f"probability_{label}"]))
                assert found[f"test_auroc_{label}"] == pytest.approx(aurocs[-1], abs=1e-12)
            else:
                assert np.isnan(found[f"test_auroc_{label}"])
            if decided[f"target_{label}"].any():
                pair = decided[f"target_{label}"], decided[f"decision_{label}"]
                scores.append(f1_score(*pair))
                assert found[f"test_f1_{label}"] == pytest.approx(scores[-1], abs=1e-12)
            else:
                assert np.isnan(found[f"test_f1_{label}"])
        assert found["test_macro_auroc"] == pytest.approx(np.mean(aurocs), abs=1e-12)
        assert found["test_macro_f1"] == pytest.approx(np.mean(scores), abs=1e-12)


def test_beats_are_joined_by_record_and_offset(beats: tuple[Path, ReportResult]) -> None:
    out, runs = beats[0], runs_of(beats[0])
    examples = pd.read_parquet(out / "work" / "examples.parquet")
    test = examples[examples["split"] == "test"]
    for run in RUNS:
        given = read_table(out / "work" / "score" / run / "windows").to_pandas()
        rows = test.merge(given, on=["record_id", "offset"])
        assert runs.loc[run, "n_test"] == runs.loc[run, "n_test_scored"] == len(test) == len(rows)
        pair = rows["target_V"], rows["decision_V"]
        assert runs.loc[run, "test_f1_V"] == pytest.approx(f1_score(*pair), abs=1e-12)
        # No beat of the class Q is there.
        assert np.isnan(runs.loc[run, "test_f1_Q"])


def test_summary_is_mean_and_spread_over_seeds(recordings: tuple[Path, ReportResult]) -> None:
    runs, summary = runs_of(recordings[0]), pd.read_csv(recordings[0] / "summary.csv")
    row = summary.set_index("architecture").loc["wide"]
    values = runs.loc[["wide-seed0", "wide-seed1"], "test_macro_auroc"]
    assert row["n_seeds"] == 2
    assert row["test_macro_auroc_mean"] == pytest.approx(values.mean(), rel=1e-5)
    assert row["test_macro_auroc_sd"] == pytest.approx(values.std(ddof=1), rel=1e-5)
    assert row["test_macro_auroc_min"] == pytest.approx(values.min(), rel=1e-5)
    assert np.isnan(summary.set_index("architecture").loc["deep", "test_macro_auroc_sd"])
    broken = summary.set_index("architecture").loc["broken"]
    assert (broken["n_seeds"], broken["n_failed"]) == (0, 1)
    assert np.isnan(broken["test_macro_auroc_mean"])


def test_every_row_carries_the_verdict_and_the_label(recordings: tuple[Path, ReportResult]) -> None:
    for name in ("summary.csv", "per_class.csv"):
        table = pd.read_csv(recordings[0] / name)
        assert (table["data"] == SYNTHETIC_LABEL).all()
        assert table["verdict"].isin(["passed", "no figures"]).all()
        assert (table["verdict"] == "passed").any()
    assert len(pd.read_csv(recordings[0] / "per_class.csv")) == 2 * len(LABELS)
    for text in ((recordings[0] / "summary.md").read_text(), recordings[1].table):
        assert SYNTHETIC_LABEL in text.lower()
        assert "not a confidence interval" in text
        assert FAILED in text


def test_real_recordings_carry_no_synthetic_label(beats: tuple[Path, ReportResult]) -> None:
    for name in ("summary.csv", "per_class.csv", "summary.md", "index.html"):
        assert SYNTHETIC_LABEL not in (beats[0] / name).read_text(encoding="utf-8").lower()


def test_violation_marks_every_row_that_rests_on_it(copy: Path) -> None:
    card = copy / "work" / "train" / "deep-seed0" / "checkpoint" / "card.json"
    edit_json(card, lambda tree: tree["operating_point"].update(split="test"))
    audit(copy / "work", copy)
    result = report(copy, copy)
    runs = runs_of(copy)
    assert runs.loc["deep-seed0", "verdict"] == "violated: threshold-on-test"
    assert runs.loc["wide-seed0", "verdict"] == "passed"
    summary = pd.read_csv(copy / "summary.csv").set_index("architecture")
    assert summary.loc["deep", "verdict"] == "violated: threshold-on-test"
    assert "violated: threshold-on-test" in result.table
    assert "Audit: violated: threshold-on-test" in Reader(page_of(copy)).text
    manifest = copy / "work" / "shards" / "manifest.json"
    edit_json(manifest, lambda tree: tree.update(official_split=None))
    audit(copy / "work", copy)
    report(copy, copy)
    runs = runs_of(copy)
    assert runs.loc["wide-seed0", "verdict"] == "1 rule not checked"
    assert runs.loc["deep-seed0", "verdict"] == "violated: threshold-on-test; 1 rule not checked"


def test_without_an_audit_nothing_has_passed(copy: Path) -> None:
    (copy / "findings.json").unlink()
    report(copy, copy)
    assert set(runs_of(copy)["verdict"]) == {"not audited", "no figures"}
    assert "No audit was made" in page_of(copy)


def test_verdict_needs_every_rule() -> None:
    def finding(rule: str, verdict: str, *taints: str) -> dict:
        return {"rule_id": rule, "verdict": verdict, "taints": list(taints)}

    fine = finding("a", "passed")
    assert verdict([fine], ["r"]) == "passed"
    assert verdict([], ["r"]) == verdict(None, ["r"]) == "not audited"
    other = finding("b", "violated", "run:s")
    assert verdict([fine, other], ["r"]) == "passed"
    assert verdict([fine, other], ["r", "s"]) == "violated: b"
    open_ones = [finding(rule, "not checked", "test") for rule in "cd"]
    assert verdict([fine, *open_ones], ["r"]) == "2 rules not checked"


def test_run_that_was_not_scored_has_a_row(copy: Path) -> None:
    (copy / "work" / "score" / "wide-seed0" / "manifest.json").unlink()
    report(copy, copy)
    runs = runs_of(copy)
    assert runs.loc["wide-seed0", "status"] == "not scored"
    assert np.isnan(runs.loc["wide-seed0", "test_macro_auroc"])
    summary = pd.read_csv(copy / "summary.csv").set_index("architecture")
    assert (summary.loc["wide", "n_seeds"], summary.loc["wide", "n_failed"]) == (1, 1)


def test_planned_run_without_a_trace_has_a_row(copy: Path) -> None:
    settings = copy / "experiment.yaml"
    settings.write_text(settings.read_text().replace("seeds: [0]", "seeds: [0, 7]"))
    report(copy, copy)
    runs = runs_of(copy)
    absent = runs[runs["status"] == "not finished"]
    assert sorted(absent["architecture"]) == ["broken", "deep", "wide"]
    assert (absent["seed"] == 7).all()


def test_prediction_that_stands_twice_is_an_error(copy: Path) -> None:
    file = copy / "work" / "score" / "wide-seed0" / "predictions" / "0.parquet"
    edit_table(file, lambda table: pd.concat([table, table.iloc[:1]]))
    with pytest.raises(DataError, match="r000"):
        report(copy, copy)


@pytest.mark.parametrize("kind", ["recordings", "beats"])
def test_no_run_at_all_still_makes_a_page(kind: str, tmp_path: Path) -> None:
    out = write_benchmark(tmp_path, kind)
    for run in RUNS:
        shutil.rmtree(out / "work" / "train" / run)
        shutil.rmtree(out / "work" / "score" / run)
    audit(out / "work", out)
    result = report(out, out)
    assert "no run finished" in page_of(out)
    assert FAILED in result.table
    shutil.rmtree(out / "work" / "train")
    (out / "experiment.yaml").unlink()
    report(out, out)
    assert not len(runs_of(out))


def test_page_escapes_and_shows_what_failed(recordings: tuple[Path, ReportResult]) -> None:
    page = page_of(recordings[0])
    assert "<script" not in page.lower()
    reader = Reader(page)
    assert "<script>alert('x')</script> in loop.py, line 3" in reader.text
    assert "A fake & its <b>title</b>" in reader.text
    assert ("b", {}) not in reader.tags
    markdown = (recordings[0] / "summary.md").read_text()
    assert "<script>" not in markdown
    assert "&lt;script>" in markdown


def test_page_needs_nothing_beside_itself(recordings: tuple[Path, ReportResult]) -> None:
    page = page_of(recordings[0])
    reader = Reader(page)
    for _tag, attributes in reader.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:image/png;base64,", "#"))
    assert not re.search(r"url\(|@import|https?://", page)
    ids = {attributes["id"] for _, attributes in reader.tags if attributes.get("id")}
    links = {a["href"][1:] for t, a in reader.tags if t == "a" and a.get("href")}
    assert links <= ids


def test_page_is_readable_without_seeing(recordings: tuple[Path, ReportResult]) -> None:
    reader = Reader(page_of(recordings[0]))
    images = [a for t, a in reader.tags if t == "img"]
    assert len(images) >= 10
    for image in images:
        assert len(image["alt"] or "") > 20
        assert int(image["width"] or 0) > 0
    headers = [a for t, a in reader.tags if t == "th"]
    assert all(a.get("scope") in ("col", "row") for a in headers)
    assert sum(t == "table" for t, _ in reader.tags) == sum(t == "caption" for t, _ in reader.tags)
    assert ("html", {"lang": "en"}) in reader.tags
    assert any(t == "meta" and a.get("name") == "viewport" for t, a in reader.tags)


def test_page_says_what_it_rests_on(recordings: tuple[Path, ReportResult]) -> None:
    reader = Reader(page_of(recordings[0]))
    assert reader.text.lower().count(SYNTHETIC_LABEL) > 10
    for text in (
        "not a confidence interval",
        "bad_header",
        "no label of the task",
        "chosen on validation",
        "synthetic (my-archive)",
        "Up to 1 recording of them have no probability",
        "For up to 1 recording a run abstained",
        "de Chazal",
    ):
        assert text in reader.text


def test_no_output_names_the_machine(
    recordings: tuple[Path, ReportResult], beats: tuple[Path, ReportResult]
) -> None:
    for out, result in (recordings, beats):
        for name in TABLES:
            data = (out / name).read_bytes()
            for path in (str(out), "/home/", "/mnt/", "/tmp/", "/private/"):
                assert path.encode() not in data, (name, path)
        assert str(out) not in result.table


@pytest.mark.parametrize("kind", ["recordings", "beats"])
def test_same_files_give_the_same_bytes(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    out, result = request.getfixturevalue(kind)
    shutil.copy(out / "findings.json", tmp_path / "findings.json")
    again = report(out, tmp_path)
    assert again.table == result.table
    names = [*TABLES, *(f"plots/{file.name}" for file in (out / "plots").iterdir())]
    assert len(names) > len(TABLES) + 6
    for name in names:
        assert (tmp_path / name).read_bytes() == (out / name).read_bytes(), name
    assert not list(tmp_path.rglob("*.part"))


def test_plots_are_drawn(
    recordings: tuple[Path, ReportResult], beats: tuple[Path, ReportResult]
) -> None:
    common = {"primary_metric", "per_class_auroc", "roc", "precision_recall", "reliability"}
    common |= {"decision_curves", "comparison"}
    common |= {"training_loss", "validation_loss", "training_validation"}
    expected = {
        recordings[0]: common | {f"example_{label}" for label in LABELS},
        beats[0]: common | {"confusion", "beats"},
    }
    for out, names in expected.items():
        assert {file.stem for file in (out / "plots").iterdir()} == names
        for file in (out / "plots").iterdir():
            image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
            assert min(image.size) > 100
            assert len(image.getcolors(2**20) or ()) > 10
    for name in PLOTS:
        assert callable(look_up(PLOTS, name, "plot"))


def test_runs_table_is_typed(recordings: tuple[Path, ReportResult]) -> None:
    schema = pq.read_schema(recordings[0] / "runs.parquet")
    assert str(schema.field("seed").type) == "int64"
    assert str(schema.field("error").type) == "string"
    assert str(schema.field("test_macro_auroc").type) == "double"
    assert read_json(recordings[0] / "findings.json", list)


def test_figures_in_words() -> None:
    assert number(float("nan")) == number(None) == NOTHING
    assert number(0.12345) == "0.123"
    assert mean_and_spread(0.5, float("nan")) == "0.500"
    assert mean_and_spread(0.5, 0.01) == "0.500 ± 0.010"
    assert markdown_table(["a"], [["x|y\n<b>"]]).splitlines()[2] == "| x\\|y &lt;b> |"


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ('File "/usr/lib/python3/x.py", line 3', 'File "x.py", line 3'),
        ("/work/out/records/7.dat: truncated", "7.dat: truncated"),
        ("DS1 / DS2 and 1/2 and and/or", "DS1 / DS2 and 1/2 and and/or"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        (r"C:\Users\me\x.py broke", "x.py broke"),
        ("file:///home/me/x.py", "x.py"),
        ("in ~/private/x.py.", "in x.py."),
        ("/home/me/data/", "data"),
        ("a tag </script> ends", "a tag </script> ends"),
        ("records/00000/1_hr", "records/00000/1_hr"),
    ],
)
def test_paths_are_cut_to_their_last_name(text: str, short: str) -> None:
    assert shorten_paths(text) == short
