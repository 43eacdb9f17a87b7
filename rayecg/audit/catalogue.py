"""Audit rules: `rule id -> "module:rule"`, in the order of the findings."""

from __future__ import annotations

from rayecg.audit.findings import Rule
from rayecg.core.catalogue import look_up

RULES = {
    "patient-overlap": "rayecg.audit.split_rules:patient_overlap",
    "patient-alias": "rayecg.audit.split_rules:patient_alias",
    "record-astride": "rayecg.audit.split_rules:record_astride",
    "duplicate-exact": "rayecg.audit.split_rules:duplicate_exact",
    "duplicate-near": "rayecg.audit.waveform_rules:duplicate_near",
    "resample-before-split": "rayecg.audit.waveform_rules:resample_before_split",
    "nearest-neighbour": "rayecg.audit.waveform_rules:nearest_neighbour",
    "folds-official": "rayecg.audit.split_rules:folds_official",
    "archive-version": "rayecg.audit.data_rules:archive_version",
    "metadata-shortcut": "rayecg.audit.data_rules:metadata_shortcut",
    "forbidden-input": "rayecg.audit.data_rules:forbidden_input",
    "pretraining-overlap": "rayecg.audit.data_rules:pretraining_overlap",
    "threshold-on-test": "rayecg.audit.run_rules:threshold_on_test",
    "calibrator-on-test": "rayecg.audit.run_rules:calibrator_on_test",
    "selection-on-test": "rayecg.audit.run_rules:selection_on_test",
    "fit-outside-training": "rayecg.audit.run_rules:fit_outside_training",
    "batch-dependence": "rayecg.audit.probe_rules:batch_dependence",
    "permuted-labels": "rayecg.audit.probe_rules:permuted_labels",
    "search-saw-test": "rayecg.audit.search_rules:search_saw_test",
    "test-looks": "rayecg.audit.result_rules:test_looks",
    "label-grouped-input": "rayecg.audit.result_rules:label_grouped_input",
    "interval-excludes-point": "rayecg.audit.result_rules:interval_excludes_point",
    "resampling-unit": "rayecg.audit.result_rules:resampling_unit",
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
