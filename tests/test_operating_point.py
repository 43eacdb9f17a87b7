"""Rules of decisions: against brute force, in settings, in training, in ensembles and in cards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_benchmark import RUNS, add_ensembles, card_of, edit_json, write_benchmark
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logit, softmax

from rayecg import pipeline
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import ArchitectureSettings, Experiment, InputSettings, TaskSettings
from rayecg.core.files import read_json, read_table
from rayecg.core.outputs import DecisionWeights, OperatingPoint, Uncalibrated, probabilities
from rayecg.core.predictions import stack_output
from rayecg.core.settings import load_settings, to_tree
from rayecg.core.train_settings import OperatingPointSettings, TrainSettings
from rayecg.metrics.operating_point import (
    RULES,
    check_operating_point,
    choose_operating_point,
    choose_thresholds,
    decision_weights,
    mean_weights,
    settings_of,
)
from rayecg.models.predictor import Predictor
from rayecg.tasks.task import load_task
from rayecg.train.loop import train_run
from rayecg.train.resident import resident_windows
from rayecg.train.run import Run

THRESHOLD_RULES = ("max_f1", "youden", "sensitivity")
WEIGHTED = OperatingPointSettings("weighted_argmax")

examples = st.lists(
    st.tuples(st.booleans(), st.sampled_from([0.1, 0.25, 0.5, 0.7, 1.0]) | st.floats(0, 1)),
    min_size=1,
    max_size=40,
)


def worth(rule: str, target_N: np.ndarray, decided_N: np.ndarray, least: float) -> float:
    """Say by the definition what decisions are worth to a rule."""
    hits, n_positive = (target_N & decided_N).sum(), target_N.sum()
    if rule == "max_f1":
        return float(2 * hits / (decided_N.sum() + n_positive))
    sensitivity = hits / n_positive
    if rule == "sensitivity":
        return float(sensitivity >= least)
    return float(sensitivity + (~decided_N & ~target_N).sum() / (~target_N).sum() - 1)


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
@given(pairs=examples, least=st.sampled_from([0.07, 0.5, 0.9, 1.0]))
def test_a_threshold_is_the_best_there_is(rule, pairs, least):
    target_N = np.array([t for t, _ in pairs])
    value_N = np.array([p for _, p in pairs])
    (threshold,), (chosen,) = choose_thresholds(rule, target_N[:, None], value_N[:, None], least)
    assert chosen == (target_N.any() and (rule != "youden" or not target_N.all()))
    if not chosen:
        assert threshold == 0.5
        return
    found = worth(rule, target_N, value_N >= threshold, least)
    every = {value: worth(rule, target_N, value_N >= value, least) for value in set(value_N)}
    assert found == pytest.approx(max(every.values()), abs=1e-12)
    # The highest of equals: raised past one more example, it is worth less.
    above = [value for value in every if value > threshold and (value_N >= value).sum()]
    assert all(every[value] < found + 1e-12 for value in above)
    if rule == "sensitivity":
        assert found == 1.0
        assert threshold in value_N[target_N]
        assert not any(every[value] for value in above)
    else:
        taken = value_N >= threshold
        refused = value_N[~taken].max(initial=0.0)
        assert refused <= threshold <= value_N[taken].min()


def test_thresholds_by_hand():
    target_NC = np.array([[1, 0], [1, 1], [0, 0], [0, 1], [1, 0]])
    value_NC = np.array([[0.9, 0.2], [0.7, 0.8], [0.3, 0.1], [0.6, 0.3], [0.2, 0.7]])

    def thresholds(rule: str, least: float = 0.9) -> list[float]:
        return choose_thresholds(rule, target_NC, value_NC, least)[0].tolist()

    # The first label's positives are at 0.9, 0.7 and 0.2, the second's at 0.8 and 0.3.
    assert thresholds("max_f1") == pytest.approx([0.65, 0.25], abs=1e-12)
    assert thresholds("youden") == pytest.approx([0.65, 0.25], abs=1e-12)
    assert thresholds("sensitivity") == [0.2, 0.3]
    assert thresholds("sensitivity", 0.5) == [0.7, 0.8]
    assert thresholds("sensitivity", 1 / 3) == [0.9, 0.8]


def test_youden_takes_the_highest_of_equals():
    """Sensitivity + specificity - 1 is 1/2 at 0.8 and again at 0.4."""
    target_N1 = np.array([[1], [0], [1], [0]])
    value_N1 = np.array([[0.8], [0.6], [0.4], [0.2]])
    assert choose_thresholds("youden", target_N1, value_N1, 0.9)[0] == pytest.approx([0.7])


@pytest.mark.parametrize("rule", ["max_f1", "youden"])
def test_the_threshold_between_neighbouring_numbers_refuses_the_lower(rule):
    for low in (0.0, 1e-300, *np.random.default_rng(3).random(50)):
        high = np.nextafter(low, 1.0)
        two_N1 = np.array([[low], [high]])
        ((threshold,), _) = choose_thresholds(rule, np.array([[0], [1]]), two_N1, 0.9)
        assert low < threshold <= high


@pytest.mark.parametrize("rule", THRESHOLD_RULES)
def test_a_threshold_that_nothing_chose_says_so(rule):
    logit_NC = np.array([[2.0, 1.0, 0.5], [-1.0, 0.0, 0.2], [0.5, 0.3, -2.0]])
    target_NC = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]])
    own = OperatingPointSettings(rule)
    point = choose_operating_point(logit_NC, target_NC, "multilabel", "validation", own)
    assert point.chosen_C == (True, False, rule != "youden")
    assert point.n_positive_C == (2, 0, 3)
    assert point.thresholds_C[1] == 0.5
    assert (point.rule, point.split, point.n_examples) == (rule, "validation", 3)
    assert point.sensitivity == (0.9 if rule == "sensitivity" else None)
    none = choose_operating_point(np.empty((0, 2)), np.empty((0, 2)), "multilabel", "validation")
    assert (none.thresholds_C, none.chosen_C) == ((0.5, 0.5), (False, False))


def test_weights_are_those_of_the_frequencies():
    target_NC = np.repeat(np.eye(4), [80, 15, 5, 0], axis=0)
    weights = decision_weights(target_NC, "multiclass", WEIGHTED)
    assert weights is not None
    assert (weights.method, weights.split, weights.n_examples) == ("inverse", "train", 100)
    own_C = np.array(weights.weights_C)
    np.testing.assert_allclose(own_C[:3] * [80, 15, 5], own_C[0] * 80, rtol=1e-12)
    assert own_C[3] == 0.0
    assert own_C[:3].mean() == pytest.approx(1.0)
    square = OperatingPointSettings("weighted_argmax", class_weights="sqrt_inverse")
    again = decision_weights(target_NC, "multiclass", square)
    assert again is not None
    root_C = np.array(again.weights_C)
    np.testing.assert_allclose(root_C[:3] ** 2 * [80, 15, 5], root_C[0] ** 2 * 80, rtol=1e-12)
    assert decision_weights(target_NC, "multiclass", OperatingPointSettings()) is None


@settings(max_examples=50)
@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=9))
def test_weighted_argmax_decides_as_if_classes_were_equally_frequent(values):
    """With likelihoods L and priors pi: argmax of pi L / pi is that of L."""
    log_likelihood_NC = np.round(np.array(values), 3)
    target_NC = np.repeat(np.eye(3), [70, 20, 10], axis=0)
    weights = decision_weights(target_NC, "multiclass", WEIGHTED)
    logit_NC = log_likelihood_NC + np.log([0.7, 0.2, 0.1])
    point = choose_operating_point(
        logit_NC, np.eye(3)[[0] * len(values)], "multiclass", "validation", WEIGHTED, weights
    )
    decided_NC = point.decide(softmax(logit_NC, axis=1))
    assert (decided_NC.sum(axis=1) == 1).all()
    chosen_N = decided_NC.argmax(axis=1)
    best_N = log_likelihood_NC.max(axis=1)
    # Equal to rounding, another class of equals may be taken.
    taken_N = log_likelihood_NC[np.arange(len(values)), chosen_N]
    np.testing.assert_allclose(taken_N, best_N, atol=1e-9)


def test_a_class_that_training_lacks_is_never_decided_for():
    weights = decision_weights(np.eye(3)[[0, 1, 1]], "multiclass", WEIGHTED)
    point = OperatingPoint(
        "multiclass", Uncalibrated("validation", 3), (), "weighted_argmax", "validation", 3
    )
    point = dataclasses.replace(point, weights=weights)
    assert point.decide(np.array([[0.005, 0.005, 0.99]])).tolist() == [[1, 0, 0]]


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_a_rule_must_fit_the_task(kind):
    every = {rule for rules in RULES.values() for rule in rules}
    for rule in sorted(every):
        own = OperatingPointSettings(rule)  # type: ignore[arg-type]
        if rule in RULES[kind]:
            check_operating_point(kind, own)
            continue
        text = f"train.operating_point.rule: expected one for a {kind} task (auto, "
        with pytest.raises(SettingsError) as error:
            check_operating_point(kind, own)
        assert str(error.value).startswith(text)
        assert str(error.value).endswith(f"came {rule}")
        with pytest.raises(SettingsError):
            choose_operating_point(np.zeros((2, 2)), np.eye(2), kind, "validation", own)


def test_weights_go_with_their_rule_alone():
    two = np.zeros((2, 2)), np.eye(2), "multiclass", "validation"
    with pytest.raises(ValueError, match="rule weighted_argmax: expected weights"):
        choose_operating_point(*two, WEIGHTED)
    weights = DecisionWeights("inverse", "train", 2, (1.0, 1.0))
    with pytest.raises(ValueError, match="rule argmax: expected weights for weighted_argmax alone"):
        choose_operating_point(*two, OperatingPointSettings("argmax"), weights)


@pytest.mark.parametrize(
    ("given_settings", "text"),
    [
        ("{rule: best}", "train.operating_point.rule: expected one of auto, max_f1, youden"),
        ("{rul: youden}", "unknown key 'train.operating_point.rul'"),
        ("{calibrator: beta}", "calibrator: expected one of temperature, platt, isotonic, none"),
        ("{sensitivity: 0.8}", "sensitivity: expected its default 0.9 with rule 'auto'"),
        ("{rule: sensitivity, sensitivity: 1.5}", "sensitivity: expected above 0, up to 1"),
        ("{rule: sensitivity, sensitivity: 0}", "sensitivity: expected above 0, up to 1"),
        ("{rule: argmax, class_weights: sqrt_inverse}", "class_weights: expected its default"),
    ],
)
def test_wrong_settings_are_told_in_one_line(given_settings, text):
    with pytest.raises(SettingsError) as error:
        load_settings(Experiment, None, [f"train.operating_point={given_settings}"])
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_the_rule_can_be_set_alone_and_for_one_architecture(tmp_path):
    assert TrainSettings().operating_point == OperatingPointSettings("auto", 0.9)
    found = load_settings(Experiment, None, ["train.operating_point=youden"])
    assert found.train.operating_point == OperatingPointSettings("youden")
    file = tmp_path / "own.yaml"
    file.write_text(
        "train: {operating_point: {calibrator: platt}}\n"
        "architectures: [{name: simple_cnn1d, train: {operating_point: youden}}]\n"
    )
    own = load_settings(Experiment, file)
    training = own.architectures[0].train.applied_to(own.train, "it", "train")
    assert training.operating_point == OperatingPointSettings("youden", calibrator="platt")


@pytest.mark.parametrize(
    ("task", "kind", "rule"),
    [("mitbih_aami5", "mitbih", "youden"), ("ptbxl_superdiagnostic", "synthetic", "argmax")],
)
def test_an_experiment_is_checked_before_anything_runs(task, kind, rule, tmp_path):
    overrides = [f"task={task}", f"archive.kind={kind}", f"train.operating_point={rule}"]
    if kind != "synthetic":
        (tmp_path / "100.atr").touch()  # what tells the archive's folder
        overrides.append(f"archive.path={tmp_path}")
    experiment = load_settings(Experiment, None, overrides)
    with pytest.raises(SettingsError, match=rf"train.operating_point.rule: .*came {rule}"):
        pipeline.check_experiment(experiment)


# Through training, prediction and ensembles.


@pytest.fixture(scope="module", params=["recordings", "beats"])
def fake(request, tmp_path_factory) -> tuple[str, Path]:
    return request.param, write_benchmark(tmp_path_factory.mktemp("fake") / "out", request.param)


@pytest.mark.parametrize("calibrator", ["platt", "isotonic", "none"])
def test_training_keeps_what_the_rule_chose(fake, calibrator, tmp_path):
    kind, out = fake
    beats = kind == "beats"
    task = load_task(TaskSettings("mitbih_aami5" if beats else "ptbxl_superdiagnostic"), None)
    leads = ("MLII",) if beats else ("I", "II")
    own = InputSettings(fs=50, duration_s=1.0 if beats else 4.0, leads=leads)
    rule = "weighted_argmax" if beats else "sensitivity"
    chosen = OperatingPointSettings(rule, calibrator=calibrator)  # type: ignore[arg-type]
    training = TrainSettings(epochs=1, batch_size=8, operating_point=chosen)
    architecture = ArchitectureSettings("simple_cnn1d", {"hidden": 8})
    run = Run("one", "key", architecture, 0, task, own, training, "shards", True)
    work = out / "work"
    windows = resident_windows(run, work / "shards", work / "examples.parquet", tmp_path / "cache")
    curves: list[dict[str, float]] = []
    summary = train_run(run, windows, tmp_path / "run", on_epoch=curves.append)
    predictor = Predictor(tmp_path / "run" / "checkpoint")
    point = predictor.operating_point
    assert point == OperatingPoint.from_tree(json.loads(json.dumps(to_tree(point))))
    assert (point.rule, point.split, point.calibrator.method) == (rule, "validation", calibrator)
    assert point.calibrator.n_examples == point.n_examples == windows["validation"].n_used
    labels = task.label_names
    table = read_table(tmp_path / "run" / "validation.parquet")
    logit_NC, value_NC = (stack_output(table, name, labels) for name in ("logit", "probability"))
    np.testing.assert_array_equal(value_NC, probabilities(logit_NC, task.kind))
    np.testing.assert_array_equal(
        stack_output(table, "calibrated", labels), point.calibrate(logit_NC)
    )
    decision_NC = stack_output(table, "decision", labels)
    np.testing.assert_array_equal(decision_NC, point.decide(value_NC))
    # The curves' metric rests on the same rule, though not on a calibrator.
    metric = task.primary_metric
    assert curves[0][f"validation_{metric}"] == summary["validation"][metric]
    if beats:
        assert point.weights is not None
        train = windows["train"]
        assert (point.weights.split, point.weights.n_examples) == ("train", train.n_used)
        n_C = train.target_WC[np.unique(train.example_W, return_index=True)[1]].sum(axis=0)
        own_C = np.array(point.weights.weights_C)
        assert ((own_C > 0) == (n_C > 0)).all()
        np.testing.assert_allclose((own_C * n_C)[n_C > 0], own_C[0] * n_C[0], rtol=1e-12)
    else:
        validation = windows["validation"]
        first_N = np.unique(validation.example_W, return_index=True)[1]
        target_NC = validation.target_WC[first_N]
        for label, known in enumerate(point.chosen_C):
            assert known == target_NC[:, label].any()
            if known:
                found = decision_NC[target_NC[:, label] > 0, label].mean()
                assert found >= point.sensitivity == 0.9


def set_point(out: Path, run: str, **changes: Any) -> None:
    edit_json(card_of(out, run), lambda tree: tree["operating_point"].update(changes))


def test_an_ensemble_follows_its_members_rule(fake, tmp_path):
    kind, _ = fake
    out = write_benchmark(tmp_path / "out", kind)
    changes: dict[str, Any] = {"rule": "youden"}
    if kind == "beats":
        weights = DecisionWeights("inverse", "train", 100, (0.5, 1.0, 1.0, 2.0, 0.5))
        changes = {"rule": "weighted_argmax", "weights": to_tree(weights)}
    none = to_tree(Uncalibrated("validation", 6))
    for run in RUNS:
        set_point(out, run, **changes, calibrator=none)
    if kind == "beats":
        other = dataclasses.replace(weights, n_examples=80, weights_C=(1.5, 1.0, 1.0, 0.0, 0.5))
        set_point(out, "wide-seed1", weights=to_tree(other))
    assert [report["status"] for report in add_ensembles(out, ("seeds",))] == ["ok"]
    point = OperatingPoint.from_tree(read_json(card_of(out, "wide-ensemble"))["operating_point"])
    assert point.rule == changes["rule"]
    assert point.calibrator.method == "none"
    if kind == "beats":
        expected = DecisionWeights("inverse", "train", 80, (1.0, 1.0, 1.0, 1.0, 0.5))
        assert point.weights == expected
    # Members that do not agree leave the default.
    set_point(out, "wide-seed1", rule="max_f1" if kind == "recordings" else "argmax")
    set_point(out, "wide-seed1", weights=None)
    default = read_json(card_of(out, "wide-seed0"))["operating_point"]["calibrator"]
    set_point(out, "wide-seed1", calibrator={**default, "method": "temperature", "temperature": 2})
    edit_json(out / "work/train/wide-seed1/run.json", lambda tree: tree.update(key="another"))
    add_ensembles(out, ("seeds",))
    point = OperatingPoint.from_tree(read_json(card_of(out, "wide-ensemble"))["operating_point"])
    assert point.rule == ("max_f1" if kind == "recordings" else "argmax")
    assert point.calibrator.method == "temperature"
    assert point.weights is None


def test_what_members_share_becomes_settings():
    logit_NC = logit(np.array([[0.9, 0.2], [0.7, 0.8], [0.3, 0.1]]))
    target_NC = np.array([[1, 0], [0, 1], [1, 0]])

    def point(own: OperatingPointSettings) -> OperatingPoint:
        return choose_operating_point(logit_NC, target_NC, "multilabel", "validation", own)

    own = OperatingPointSettings("sensitivity", 0.8, calibrator="platt")
    assert settings_of([point(own)] * 2) == own
    other = dataclasses.replace(own, sensitivity=0.7)
    found = settings_of([point(own), point(other)])
    assert found == OperatingPointSettings("auto", calibrator="platt")
    other = dataclasses.replace(own, calibrator="isotonic")
    assert settings_of([point(own), point(other)]) == OperatingPointSettings("sensitivity", 0.8)
    assert mean_weights([point(own)]) is None
