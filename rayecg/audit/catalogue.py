"""Audit rules: `rule id -> "module:rule"`, in the order of the findings."""

from __future__ import annotations

from rayecg.audit.findings import Rule
from rayecg.core.catalogue import look_up

RULES = {
    "patient-overlap": "rayecg.audit.split_rules:patient_overlap",
    "patient-alias": "rayecg.audit.split_rules:patient_alias",
    "record-astride": "rayecg.audit.split_rules:record_astride",
    "duplicate-exact": "rayecg.audit.split_rules:duplicate_exact",
    "folds-official": "rayecg.audit.split_rules:folds_official",
    "threshold-on-test": "rayecg.audit.run_rules:threshold_on_test",
    "selection-on-test": "rayecg.audit.run_rules:selection_on_test",
    "fit-outside-training": "rayecg.audit.run_rules:fit_outside_training",
    "search-saw-test": "rayecg.audit.search_rules:search_saw_test",
}


def load_rule(rule_id: str) -> Rule:
    """Give a rule by its id.

    Raises
    ------
    SettingsError
        If there is none of that id.
    """
    found: Rule = look_up(RULES, rule_id, "audit rule")
    return found
