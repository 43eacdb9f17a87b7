"""The audit stage: every rule of the catalogue on the evidence of one benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rayecg.audit.catalogue import RULES, load_rule
from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Finding
from rayecg.core.files import fingerprint, write_json
from rayecg.core.settings import to_tree

FINDINGS = "findings.json"


def audit(work: Path, out: Path) -> list[Finding]:
    """Check a benchmark's files against the rules.

    Parameters
    ----------
    work
        What the stages wrote (`OUT/work`).
    out
        Gets `findings.json`: a list of findings in the order of the catalogue. The report's
        `intervals.csv` lies there, if there is one.

    Returns
    -------
    list of Finding
        At least one for each rule.
    """
    findings = findings_of(Evidence(Path(work).resolve(), published=Path(out)))
    write_findings(findings, out)
    return findings


def findings_of(evidence: Evidence) -> list[Finding]:
    """Check evidence against every rule of the catalogue, in its order."""
    return [finding for rule_id in RULES for finding in apply_rule(rule_id, evidence)]


def write_findings(findings: Sequence[Finding], out: Path) -> None:
    """Write `findings.json`."""
    write_json(Path(out) / FINDINGS, [to_tree(finding) for finding in findings])


def apply_rule(rule_id: str, evidence: Evidence) -> list[Finding]:
    """Check the evidence of all folds against one rule."""
    return merged([(one.fold, load_rule(rule_id)(one)) for one in evidence.folds])


def merged(per_fold: Sequence[tuple[int | None, Sequence[Finding]]]) -> list[Finding]:
    """Put the findings of one rule on several folds together.

    What is said of all folds alike is said once; anything else names its fold.
    """
    if len(per_fold) == 1:
        return list(per_fold[0][1])
    folds_of: dict[str, list[int | None]] = {}
    first: dict[str, Finding] = {}
    for fold, findings in per_fold:
        for finding in findings:
            same = fingerprint(to_tree(finding))
            first.setdefault(same, finding)
            folds_of.setdefault(same, []).append(fold)
    found = []
    for same, finding in first.items():
        folds = folds_of[same]
        everywhere = len(folds) == len(per_fold)
        where = "each fold" if everywhere else f"fold {', '.join(map(str, folds))}"
        evidence = {
            **finding.evidence,
            "text": f"{where}: {finding.evidence['text']}",
            "folds": folds,
        }
        found.append(dataclasses.replace(finding, evidence=evidence))
    return found
