"""Settings: read strictly, and wrong ones refused with the place and the nearest right key."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from rayecg import pipeline
from rayecg.core.errors import SettingsError
from rayecg.core.experiment import (
    ArchitectureSettings,
    Experiment,
    ImageSettings,
    InputSettings,
)
from rayecg.core.session import RaySettings
from rayecg.core.settings import Overrides, build, load_settings, to_tree
from rayecg.core.train_settings import LossSettings
from rayecg.tasks.task import load_task

EXPERIMENTS = Path(__file__).resolve().parent.parent / "jobs" / "experiments"


def load(tmp_path: Path, text: str, *overrides: str) -> Experiment:
    file = tmp_path / "experiment.yaml"
    file.write_text(text, encoding="utf-8")
    return load_settings(Experiment, file, overrides)


def error_of(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_need_no_file():
    assert load_settings(Experiment, None) == Experiment()


def test_a_file_fills_every_kind_of_field(tmp_path):
    found = load(
        tmp_path,
        """
name: mine
archive: {kind: ptbxl, path: /data/ptb-xl, rate: 500}
shards: {fs: null, checks: flag}
task: {name: ptbxl_superdiagnostic, minimum_likelihood: 50}
input: {fs: 100, duration_s: 5, leads: [I, II], bandpass_hz: [0.5, 40]}
architectures:
  - simple_cnn1d
  - {name: simple_cnn1d, label: wide, hyperparameters: {hidden: 128}}
seeds: [3, 4]
train: {patience: null, scaling: {num_workers: 2, resources_per_worker: {CPU: 1}}}
ray: {num_cpus: 2}
""",
    )
    assert found.archive.rate == 500
    assert found.shards.checks == "flag"
    assert found.task.minimum_likelihood == 50.0
    own = found.input.applied_to(InputSettings(), "defaults")
    assert own == InputSettings(100, 5.0, ("I", "II"), (0.5, 40.0))
    assert isinstance(own.duration_s, float)
    assert own.n_times == 500
    assert found.architectures == (
        ArchitectureSettings("simple_cnn1d"),
        ArchitectureSettings("simple_cnn1d", {"hidden": 128}, "wide"),
    )
    assert [a.title for a in found.architectures] == ["simple_cnn1d", "wide"]
    assert found.seeds == (3, 4)
    assert found.train.scaling.resources_per_worker == {"CPU": 1.0}
    assert found.ray == RaySettings(num_cpus=2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {}", "unknown key 'trian' (nearest: train"),
        ("train: {epoch: 3}", "unknown key 'train.epoch' (nearest: epochs"),
        ("train: {scaling: {num_worker: 3}}", "unknown key 'train.scaling.num_worker' (nearest"),
        ("architectures: [{nam: x}]", "unknown key 'architectures[0].nam' (nearest: name"),
        ("3: x", "unknown key '3' (known: "),
    ],
)
def test_unknown_keys_name_the_place_and_the_nearest(tmp_path, text, expected):
    message = error_of(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'experiment.yaml'}: {expected}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("name: 3", "name: expected text, came 3"),
        ("name: null", "name: expected text, came None"),
        ("train: {epochs: 3.5}", "train.epochs: expected a whole number, came 3.5"),
        ("train: {epochs: true}", "train.epochs: expected a whole number, came True"),
        ("train: {epochs: '3'}", "train.epochs: expected a whole number, came '3'"),
        ("train: {learning_rate: fast}", "train.learning_rate: expected a number, came 'fast'"),
        ("train: {learning_rate: true}", "train.learning_rate: expected a number, came True"),
        ("train: {learning_rate: [1]}", "train.learning_rate: expected a number, came [1]"),
        ("train: {schedule: step}", "train.schedule: expected one of constant, cosine, one_cycle"),
        ("train: 3", "train: expected a section of keys and values, came 3"),
        ("train: [1]", "train: expected a section of keys and values, came [1]"),
        ("seeds: 3", "seeds: expected a list, came 3"),
        ("seeds: [0, x]", "seeds[1]: expected a whole number, came 'x'"),
        ("input: {bandpass_hz: [1]}", "input.bandpass_hz: expected a list of 2, came [1]"),
        ("ray: {include_dashboard: 1}", "ray.include_dashboard: expected true or false, came 1"),
        ("train: {scaling: {resources_per_worker: {CPU: x}}}", "resources_per_worker.CPU: expect"),
        ("architectures: [{hyperparameters: 3}]", "architectures[0].hyperparameters: expected a"),
    ],
)
def test_wrong_types_name_the_place(tmp_path, text, expected):
    assert expected in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {epochs: 0}", "train: epochs: expected more than 0, came 0"),
        ("train: {learning_rate: .nan}", "train: learning_rate: expected more than 0, came nan"),
        ("train: {batch_size: 9, scaling: {num_workers: 2}}", "batch_size: expected a multiple"),
        ("train: {scaling: {resources_per_worker: {GPU: 1}}}", "expected CPU above 0"),
        ("archive: {n_records: -1}", "archive: n_records: expected more than 0, came -1"),
        ("shards: {records_per_shard: 0}", "shards: records_per_shard: expected more than 0"),
        ("score: {batch_size: 0}", "score: batch_size: expected more than 0"),
        (
            "score: {num_gpus: .nan}",
            "score: num_gpus: expected 0 or more, whole from 1 on, came nan",
        ),
        ("score: {num_gpus: -0.5}", "score: num_gpus: expected 0 or more"),
        ("score: {num_gpus: 1.5}", "whole from 1 on, came 1.5"),
        ("input: {leeds: [I]}", "unknown key 'input.leeds' (nearest: leads)"),
        ("input: {leads: [1]}", "input.leads[0]: expected text, came 1"),
        ("input: [I]", "input: expected a section of keys and values"),
        ("input: {image: {siz: 64}}", "unknown key 'input.image.siz' (nearest: size)"),
        ("input: {image: {size: big}}", "input.image.size: expected a whole number"),
        ("input: {metadata: [weight]}", "input.metadata[0]: expected one of age, sex"),
        (
            "architectures: [{name: simple_cnn1d, train: {epoch: 3}}]",
            "unknown key 'architectures[0].train.epoch' (nearest: epochs)",
        ),
        (
            "architectures: [{name: simple_cnn1d, train: {scaling: {num_workers: 2}}}]",
            "architectures[0]: train: scaling is the same for all architectures",
        ),
        ("split: {protocol: kfold, k: 2}", "split: k: expected 3 or more, came 2"),
        (
            "split: {protocol: holdout, fractions: [0.5, 0.5, 0.5]}",
            "split: fractions: expected three above 0",
        ),
        (
            "split: {protocol: holdout, fractions: [.nan, 0.5, 0.5]}",
            "split: fractions: expected three above 0 that add up to 1, came (nan, 0.5, 0.5)",
        ),
        ("train: {weight_decay: -1}", "train: weight_decay: expected 0 or more, came -1.0"),
        ("train: {weight_decay: .nan}", "train: weight_decay: expected 0 or more, came nan"),
        ("train: {weight_decay: .inf}", "train: weight_decay: expected 0 or more, came inf"),
        (
            "train: {learning_rate: .inf}",
            "learning_rate: expected more than 0, and finite, came inf",
        ),
        (
            "train: {gradient_clip: .inf}",
            "gradient_clip: expected more than 0, and finite, came inf",
        ),
        ("train: {plateau_factor: 1.0}", "train: plateau_factor: expected between 0 and 1"),
        ("ray: {num_cpus: 0}", "ray: num_cpus: expected at least 1, came 0"),
        ("architectures: []", "architectures, seeds: expected at least one of each"),
        ("seeds: []", "architectures, seeds: expected at least one of each"),
        ("seeds: [1, 1]", "architectures, seeds: expected each once"),
        ("architectures: [simple_cnn1d, simple_cnn1d]", "expected each once (give variants"),
        ("architectures: [a, {name: b, label: a}]", "expected each once"),
    ],
)
def test_values_that_cannot_be(tmp_path, text, expected):
    assert expected in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("split: {k: 9}", "split: k: expected its default 5 with protocol 'task', which does not"),
        ("split: {seed: 1}", "read it (kfold, holdout, rotate would), came 1"),
        ("split: {fractions: [0.8, 0.1, 0.1]}", "read it (holdout would), came (0.8, 0.1, 0.1)"),
        (
            "split: {protocol: holdout, k: 9}",
            "split: k: expected its default 5 with protocol 'hold",
        ),
        ("split: {protocol: kfold, fractions: [0.8, 0.1, 0.1]}", "fractions: expected its default"),
        (
            "split: {protocol: rotate, fractions: [0.8, 0.1, 0.1]}",
            "fractions: expected its default",
        ),
        (
            "train: {loss: {name: bce, alpha: 0.3}}",
            "alpha: expected its default None with name 'bce'",
        ),
        ("train: {loss: {gamma: 3}}", "read it (focal would), came 3"),
        ("train: {loss: {name: focal, clip: 0.1}}", "read it (asymmetric would), came 0.1"),
        (
            "train: {loss: {name: asymmetric, gamma: 1}}",
            "train.loss: gamma: expected its default 2.0",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(tmp_path, text, expected):
    assert expected in error_of(tmp_path, text)


def test_what_is_read_is_taken(tmp_path):
    fractions = "fractions: [0.8, 0.1, 0.1]"
    for protocol, more in (("kfold", "k: 9"), ("rotate", "k: 9"), ("holdout", fractions)):
        found = load(tmp_path, f"split: {{protocol: {protocol}, seed: 1, {more}}}").split
        assert found.protocol == protocol
        assert found.seed == 1
    found = load(tmp_path, "", "split.protocol=kfold", "split.k=9")
    assert found.split.k == 9


def test_scores_of_an_experiment_are_not_parted(tmp_path):
    experiment = load(tmp_path, "score: {partition: site}")
    with pytest.raises(SettingsError, match=r"^score\.partition: expected none .*, came site$"):
        pipeline.check_experiment(experiment)


def test_the_loss_of_one_architecture_is_checked_with_what_it_differs_from(tmp_path):
    focal = "train: {loss: {name: focal, alpha: 0.3}}\n"
    own = load(tmp_path, focal + "architectures: [{name: a, train: {loss: {gamma: 3}}}]")
    found = own.architectures[0].train.applied_to(own.train, "a", "train")
    assert found.loss == LossSettings("focal", gamma=3.0, alpha=0.3)
    own = load(tmp_path, focal + "architectures: [{name: a, train: {loss: bce}}]")
    with pytest.raises(SettingsError, match=r"a: train\.loss: alpha: expected its default None"):
        own.architectures[0].train.applied_to(own.train, "a", "train")


@pytest.mark.parametrize("empty", ["loss:", "loss: {}", "loss: null, augment:"])
def test_an_empty_section_of_one_architecture_changes_nothing(tmp_path, empty):
    text = "train: {loss: focal, augment: {noise: 0.1}}\n"
    found = load(tmp_path, f"{text}architectures: [{{name: a, train: {{{empty}}}}}]")
    assert found.architectures[0].train.applied_to(found.train, "a") == found.train
    # Where a section can be absent, null says so.
    assert load(tmp_path, "input: {image: }").input == {"image": None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "{train: {augment: foo}}",
            "train.augment: expected a section of keys and values, came 'foo'",
        ),
        ("{train: {loss: foo}}", "train.loss.name: expected one of auto, bce, cross_entropy"),
        (
            "{input: {image: {SHORTHAND: x}}}",
            "input.image.SHORTHAND' (known: backend, kind, n_bins,",
        ),
        ("{input: {SHORTHAND: x}}", "unknown key 'architectures[0].input.SHORTHAND'"),
    ],
)
def test_wrong_fields_of_one_architecture(tmp_path, text, expected):
    message = error_of(tmp_path, f"architectures: [{text}]")
    assert expected in message
    assert "architectures[0]" in message


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"duration_s": float("inf")}, "duration_s: expected more than 0, and finite, came inf"),
        ({"duration_s": float("nan")}, "duration_s: expected more than 0, came nan"),
        ({"duration_s": 1e307}, "fs, duration_s: expected 1e6 (Hz, s) or less each"),
        ({"fs": 10**400}, "fs, duration_s: expected 1e6 (Hz, s) or less each"),
        (
            {"bandpass_hz": [1, float("inf")]},
            "bandpass_hz: expected 0 < low < high, came (1.0, inf)",
        ),
    ],
)
def test_an_input_that_has_no_end_is_refused(change, expected):
    with pytest.raises(SettingsError, match=re.escape(expected)):
        Overrides(change).applied_to(InputSettings(), "here", "input")


def test_a_variant_with_a_label_of_its_own_is_no_duplicate(tmp_path):
    found = load(tmp_path, "architectures: [simple_cnn1d, {name: simple_cnn1d, label: again}]")
    assert len(found.architectures) == 2


@pytest.mark.parametrize(("text", "value"), [("1e-3", 1e-3), ("2", 2.0), ("5E2", 500.0)])
def test_numbers_without_a_dot_are_numbers(tmp_path, text, value):
    # YAML 1.1 reads 1e-3 as text.
    assert load(tmp_path, f"train: {{learning_rate: {text}}}").train.learning_rate == value
    assert load(tmp_path, "", f"train.learning_rate={text}").train.learning_rate == value


def test_what_differs_is_kept_apart_from_what_it_differs_from(tmp_path):
    text = "input: {image: mtf, fs: 50}\nsplit: holdout"
    found = load(tmp_path, text, "input.image.size=64", "input.metadata=[age]")
    assert found.input == {"image": {"kind": "mtf", "size": 64}, "fs": 50, "metadata": ["age"]}
    assert found.split.protocol == "holdout"
    declared = InputSettings(duration_s=4.0, image=ImageSettings("gadf", 32, n_bins=9))
    changed = found.input.applied_to(declared, "here")
    assert changed == dataclasses.replace(
        declared, fs=50, metadata=("age",), image=ImageSettings("mtf", 64, n_bins=9)
    )
    with pytest.raises(SettingsError, match=r"here: x: image.size: expected at most the window's"):
        Overrides({"image": {"size": 1000}}).applied_to(changed, "here", "x")


def test_overrides(tmp_path):
    text = "name: mine\ntrain: {epochs: 3}\ninput:"
    found = load(
        tmp_path, text, "train.epochs=5", "input.leads=[I]", "archive.path=/data", "seeds=[7]"
    )
    assert (found.name, found.train.epochs) == ("mine", 5)
    assert (found.input, found.archive.path, found.seeds) == ({"leads": ["I"]}, "/data", (7,))
    assert load(tmp_path, text, "train.epochs=5", "train.epochs=6").train.epochs == 6
    assert load(tmp_path, text, "shards.fs=").shards.fs is None


def test_an_override_reaches_into_a_section_written_in_short(tmp_path):
    found = load(tmp_path, "task: ptbxl_superdiagnostic", "task.minimum_likelihood=50")
    assert found.task.name == "ptbxl_superdiagnostic"
    assert found.task.minimum_likelihood == 50.0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.epochs", "--set train.epochs: expected section.key=value"),
        ("=3", "--set =3: expected section.key=value"),
        ("train.epochs=x", "--set train.epochs=x: train.epochs: expected a whole number, came 'x'"),
        ("train.epoch=3", "--set train.epoch=3: unknown key 'train.epoch' (nearest: epochs"),
        ("name.more=3", "--set name.more=3: 'name' holds a value, not a section"),
        ("train.epochs=[1", "--set train.epochs=[1: the value is not YAML"),
        ("train.epochs=-1", "--set train.epochs=-1: train: epochs: expected more than 0"),
    ],
)
def test_wrong_overrides_are_quoted(tmp_path, override, expected):
    assert error_of(tmp_path, "name: mine", override).startswith(expected)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"name: [1", "not valid YAML"),
        (b"a: b: c", "not valid YAML"),
        (b"- 1", "expected keys and values, came list"),
        (b"just text", "expected keys and values, came str"),
        (b"name: \xff\xfe", "cannot be read"),
        (b"name: !!python/object/apply:os.getcwd []", "not valid YAML"),
        (
            b"train: {epochs: 1}\ntrain: {epochs: 2}",
            "not valid YAML (the key 'train' stands there twice",
        ),
    ],
)
def test_a_file_that_is_no_settings_file(tmp_path, content, expected):
    file = tmp_path / "broken.yaml"
    file.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        load_settings(Experiment, file)
    assert str(caught.value).startswith(f"{file}: {expected}")
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read \(No such file"):
        load_settings(Experiment, tmp_path / "nowhere.yaml")
    with pytest.raises(SettingsError, match=r"cannot be read \(Is a directory\)"):
        load_settings(Experiment, tmp_path)


def test_an_empty_file_is_the_defaults(tmp_path):
    assert load(tmp_path, "# nothing\n") == Experiment()


def test_missing_fields_of_a_dataclass_are_named():
    with pytest.raises(SettingsError, match=r"origin: place: .*'version'"):
        build(type(load_task(Experiment().task)), {"name": "x"}, "origin", "place")


@given(
    epochs=st.integers(1, 1000),
    rate=st.floats(1e-9, 1e3),
    clip=st.none() | st.floats(1e-3, 10),
    name=st.from_regex(r"[a-z0-9][\w.-]{0,20}", fullmatch=True),
    seeds=st.lists(st.integers(0, 99), min_size=1, max_size=4, unique=True),
)
def test_settings_survive_the_way_through_yaml(epochs, rate, clip, name, seeds):
    made = Experiment(name=name, seeds=tuple(seeds))
    train = dataclasses.replace(made.train, epochs=epochs, learning_rate=rate, gradient_clip=clip)
    made = dataclasses.replace(made, train=train)
    assert build(Experiment, yaml.safe_load(yaml.safe_dump(to_tree(made))), "yaml") == made


@pytest.mark.parametrize("file", sorted(EXPERIMENTS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_experiment_file_loads_and_names_what_exists(file):
    found = load_settings(Experiment, file)
    assert found.name == file.stem
    assert found.title
    load_task(found.task, found.archive.kind)
