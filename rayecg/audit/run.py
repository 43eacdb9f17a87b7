"""The audit stage: every rule of the catalogue on the evidence of one benchmark."""

from __future__ import annotations

from pathlib import Path

from rayecg.audit.catalogue import RULES, load_rule
from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Finding
from rayecg.core.files import write_json
from rayecg.core.settings import to_tree

FINDINGS = "findings.json"


def audit(work: Path, out: Path) -> list[Finding]:
    """Check a benchmark's files against the rules.

    Parameters
    ----------
    work
        What the stages wrote (`OUT/work`).
    out
        Gets `findings.json`: a list of findings in the order of the catalogue.

    Returns
    -------
    list of Finding
        At least one for each rule.
    """
    evidence = Evidence(Path(work).resolve())
    findings = [finding for rule_id in RULES for finding in load_rule(rule_id)(evidence)]
    write_json(Path(out) / FINDINGS, [to_tree(finding) for finding in findings])
    return findings
