"""What a report makes of the audit: the verdict beside its figures, `--strict`, the table of rules."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_benchmark import card_of, edit_json, write_benchmark

from rayecg import pipeline
from rayecg.audit.catalogue import RULES
from rayecg.audit.rules_table import rules_rows
from rayecg.core.files import write_text
from rayecg.report.runs import verdict

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    return write_benchmark(tmp_path / "benchmark")


def test_a_report_carries_the_verdict_on_its_own_intervals(recordings: Path) -> None:
    (recordings / "intervals.csv").unlink()
    result = pipeline.report(recordings, recordings)
    assert result.violated == ()
    runs = pd.read_parquet(recordings / "runs.parquet").set_index("run")
    assert runs.loc["deep-seed0", "verdict"] == "passed"
    summary = pd.read_csv(recordings / "summary.csv").set_index("architecture")
    own = pd.read_csv(recordings / "intervals.csv").set_index(["name", "metric"])
    found = own.loc[("wide", "macro_auroc")]
    assert found["low"] == pytest.approx(summary.loc["wide", "test_macro_auroc_low"], rel=1e-5)
    assert found["runs"] == "wide-seed0 wide-seed1"
    first = (recordings / "intervals.csv").read_bytes()
    pipeline.report(recordings, recordings)
    assert (recordings / "intervals.csv").read_bytes() == first


def test_a_rule_that_weakens_reads_otherwise_than_one_that_invalidates(recordings: Path) -> None:
    write_text(recordings / "experiment.yaml", "audit: {looks_elsewhere: 1}\n")
    result = pipeline.report(recordings, recordings)
    assert result.violated == ("test-looks",)
    page = result.page.read_text()
    assert 'class="verdict weakened">violated: test-looks (weakens)' in page
    assert "weakens what rests on it" in page
    edit_json(
        card_of(recordings, "deep-seed0"), lambda t: t["operating_point"].update(split="test")
    )
    page = pipeline.report(recordings, recordings).page.read_text()
    assert 'class="verdict violated">violated: threshold-on-test, test-looks (weakens)' in page


def test_verdict_marks_what_weakens() -> None:
    def said(rule_id: str, severity: str) -> dict[str, Any]:
        return {"rule_id": rule_id, "severity": severity, "verdict": "violated", "taints": ["test"]}

    both = [said("a", "invalidates"), said("b", "weakens")]
    assert verdict(both, ["r"]) == "violated: a, b (weakens)"


@pytest.mark.parametrize("violation", [False, True])
def test_strict_reports_exit_3(recordings: Path, tmp_path: Path, violation: bool) -> None:
    if violation:
        write_text(recordings / "experiment.yaml", "audit: {looks_elsewhere: 1}\n")
    script = [sys.executable, str(ROOT / "jobs" / "report.py"), "--strict"]
    command = [*script, "--runs", str(recordings), "--out", str(tmp_path / "report")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == (3 if violation else 0), done.stderr


# The table of rules.


def test_every_rule_says_when_it_fires_and_what_it_needs() -> None:
    rows = rules_rows()
    assert [row[0] for row in rows] == list(RULES)
    assert all(len(cell) > 5 for row in rows for cell in row), rows


@pytest.mark.parametrize("name", ["rules.md", "rules.csv"])
def test_the_committed_table_of_rules_is_the_one_that_the_job_writes(
    tmp_path: Path, name: str
) -> None:
    printed = pipeline.list_rules(tmp_path)
    committed = (ROOT / "reports" / "audit_rules" / name).read_text(encoding="utf-8")
    assert committed == (tmp_path / name).read_text(encoding="utf-8"), (
        "python jobs/audit.py --rules --out reports/audit_rules writes it again"
    )
    assert printed == (tmp_path / "rules.md").read_text(encoding="utf-8")
