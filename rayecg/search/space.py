"""What a search may draw: settings of an experiment, checked before anything runs."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rayecg.core.errors import SettingsError
from rayecg.core.experiment import Experiment
from rayecg.core.search_settings import RangeSettings, SearchSettings
from rayecg.core.settings import Overrides, to_tree
from rayecg.tasks.task import load_task
from rayecg.train.run import Run

#: Gives the runs of an experiment: all seeds, folds and architectures.
Plan = Callable[[Experiment], list[Run]]

SECTIONS = ("train", "input", "hyperparameters")
#: Settings that decide no weights, or that early stopping counts in.
FIXED = ("train.scaling", "train.failure", "train.epochs")
#: Digits that a drawn number keeps: what is written down is what was trained with.
DIGITS = 4


def with_values(experiment: Experiment, values: Mapping[str, Any]) -> Experiment:
    """Give the experiment with drawn values in their places, and without its search.

    Raises
    ------
    SettingsError
        If a name is unknown, or a value does not fit.
    """
    architecture = to_tree(experiment.architectures[0])
    tree: dict[str, Any] = {"search": None, "architectures": [architecture]}
    for name, value in values.items():
        section, *rest = name.split(".")
        place = architecture if section == "hyperparameters" else tree
        for key in (section, *rest[:-1]):
            place = place.setdefault(key, {})
        place[rest[-1]] = value
    return Overrides[Experiment](tree).applied_to(experiment, "experiment")


def searched_runs(experiment: Experiment, values: Mapping[str, Any], plan: Plan) -> list[Run]:
    """Give the runs of one trial: the first seed on every searched fold."""
    search = search_of(experiment)
    return [
        run
        for run in plan(with_values(experiment, values))
        if run.seed == experiment.seeds[0]
        and (search.folds is None or run.task.split.fold in search.folds)
    ]


def search_of(experiment: Experiment) -> SearchSettings:
    """Give the section `search`.

    Raises
    ------
    SettingsError
        If there is none, or its space is empty.
    """
    if experiment.search is None or not experiment.search.space:
        raise SettingsError("search.space: expected at least one setting to search")
    return experiment.search


def drawn_value(own: RangeSettings, drawn: Any) -> Any:
    """Give the value of a setting from what a sampler drew: a number, or the place of a choice."""
    if own.kind == "choice":
        return to_tree(own.edges[int(drawn)])
    if own.kind == "integer":
        return int(drawn)
    low, high = own.edges
    return min(max(float(f"{drawn:.{DIGITS}g}"), low), high)


def check_search(experiment: Experiment, check: Callable[[Experiment], None], plan: Plan) -> None:
    """Find what is wrong with a search before anything is run.

    Every edge of every range is tried with every edge of every other one, the rest at their first.

    Parameters
    ----------
    experiment
        With a section `search`.
    check
        Raises `SettingsError` for an experiment that cannot be run.
    plan
        Gives an experiment's runs.

    Raises
    ------
    SettingsError
        In one line.
    """
    search = search_of(experiment)
    _check_outside_space(experiment, search)
    for name in search.space:
        section, _, rest = name.partition(".")
        if section not in SECTIONS or not all(rest.split(".")):
            began = ", ".join(f"{each}.…" for each in SECTIONS)
            raise SettingsError(f"search.space: expected names like {began}, came {name!r}")
        fixed = [each for each in FIXED if name == each or name.startswith(f"{each}.")]
        if fixed:
            raise SettingsError(f"search.space: {fixed[0]} is the same for all trials")
        if section == "input" and search.space[name].kind != "choice":
            raise SettingsError(
                f"search.space.{name}: expected a choice: all windows are made for each value"
            )
    for values in _corners(search.space):
        try:
            check(with_values(experiment, values))
        except SettingsError as error:
            said = ", ".join(f"{name}={value}" for name, value in values.items())
            raise SettingsError(f"search.space: {said}: {error}") from None
    first = {name: own.edges[0] for name, own in search.space.items()}
    for name, own in search.space.items():
        keys = [searched_runs(experiment, {**first, name: e}, plan)[0].key for e in own.edges]
        if len(set(keys)) < len(keys):
            raise SettingsError(
                f"search.space.{name}: its values make no difference: "
                f"{experiment.architectures[0].title} has its own, or does not read it"
            )


def _corners(space: Mapping[str, RangeSettings]) -> Iterator[dict[str, Any]]:
    first = {name: to_tree(own.edges[0]) for name, own in space.items()}
    yield first
    for name, own in space.items():
        yield from ({**first, name: to_tree(edge)} for edge in own.edges[1:])
    for (one, own), (two, other) in itertools.combinations(space.items(), 2):
        for edges in itertools.product(own.edges[1:], other.edges[1:]):
            yield {**first, one: to_tree(edges[0]), two: to_tree(edges[1])}


def _check_outside_space(experiment: Experiment, search: SearchSettings) -> None:
    names = [architecture.title for architecture in experiment.architectures]
    if len(names) > 1:
        raise SettingsError(f"architectures: a search is of one, came {', '.join(names)}")
    settings, split = experiment.train, experiment.split
    if settings.scaling.num_workers > 1:
        raise SettingsError(
            f"train.scaling.num_workers: expected 1 in a search, which runs trials side by side, "
            f"came {settings.scaling.num_workers}"
        )
    if search.grace_period > settings.epochs:
        raise SettingsError(
            f"search.grace_period: expected at most train.epochs ({settings.epochs}), "
            f"came {search.grace_period}"
        )
    if load_task(experiment.task).split.leaky:
        raise SettingsError(
            f"task: {experiment.task.name} has records on both sides of its split: no search can "
            "leave its test data unread"
        )
    k = split.k if split.protocol in ("kfold", "rotate") else 0
    if not set(search.folds or ()) <= set(range(k)):
        raise SettingsError(
            f"search.folds: expected folds of split.protocol {split.protocol!r} "
            f"({f'0 to {k - 1}' if k else 'it has none'}), came {list(search.folds or ())}"
        )
    if split.protocol == "kfold" and len(search.folds or ()) != 1:
        raise SettingsError(
            "search.folds: expected one fold with split.protocol 'kfold', where one fold's test "
            "records train the others ('rotate' validates on each fold in turn and leaves the "
            "test split unread)"
        )
    if search.sampler == "optuna" and importlib.util.find_spec("optuna") is None:
        raise SettingsError("search.sampler: optuna is not installed (pip install optuna)")
