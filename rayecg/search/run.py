"""The search stage: Ray Tune draws settings, and gives up trials that fall behind.

It reads the training and the validation examples of the searched folds. Those of the test split are
taken off the list before any window is made, and `read.json` says which records windows were made
of, for the audit. The folder holds Tune's own notes, which are read back with pickle: continue a
search only in a folder of your own.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import ray
import yaml
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search import Searcher
from ray.tune.search.basic_variant import BasicVariantGenerator

from rayecg.core.errors import DataError
from rayecg.core.experiment import Experiment
from rayecg.core.files import (
    MANIFEST,
    fingerprint,
    finished,
    read_json,
    read_table,
    write_json,
    write_table,
    write_text,
)
from rayecg.core.progress import Progress
from rayecg.core.search_settings import RangeSettings, SearchSettings
from rayecg.core.session import own_node
from rayecg.core.settings import to_tree
from rayecg.core.versions import code_fingerprint
from rayecg.search.space import Plan, search_of, searched_runs, with_values
from rayecg.search.trial import FIGURE, REPORT, STEP, Job, run_trial
from rayecg.train.resident import READ, build_windows
from rayecg.train.run import Run
from rayecg.train.runs import KEEPS_MEMORY

#: Which records windows were made of; beside it in `OUT/work/search` may lie those of other searches.
READ_FILE = "read.json"
NOTE = "note.json"
#: Tune's own way of saying things: no files for TensorBoard, its notes every few seconds, Ctrl-C
#: left to the job.
QUIET = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


def search(
    experiment: Experiment, plan: Plan, shards: Path, examples: Path, out: Path
) -> dict[str, Any]:
    """Run a search, from where it was interrupted, and write `best.yaml`.

    Parameters
    ----------
    experiment
        One that `check_search` let pass.
    plan
        Gives an experiment's runs.
    shards, examples
        Folder of shards, and `examples.parquet` of the experiment's splits.
    out
        Gets `best.yaml`, and in `work/search` a folder named by what decides the search.

    Returns
    -------
    dict
        The manifest: `title`, `metric`, `unit` (of an example), `synthetic`, `space`, `folds`
        (`[None]` where there are none), `best` (a place in `trials`), and `trials` in the order they
        were begun. Of each its `values`, `status` (`ok`, `stopped` early, `failed`), `error`, `steps`
        (of each epoch the `figure` and the `examples_seen` so far), and `of_fold`, the figures that
        the last one is the mean of.

    Raises
    ------
    DataError
        If no trial came to its end.
    """
    settings = search_of(experiment)
    first = {name: to_tree(own.edges[0]) for name, own in settings.space.items()}
    runs = searched_runs(experiment, first, plan)
    key = fingerprint([to_tree(settings), [run.key for run in runs], code_fingerprint("search")])
    job = Job(experiment, plan, shards.resolve(), (out / "work" / "search" / key).resolve())
    progress = Progress("search", settings.n_trials, "trials")
    manifest = finished(job.folder, key)
    if manifest is None:
        manifest = {
            "key": key,
            "title": experiment.title or experiment.name,
            "metric": runs[0].task.primary_metric,
            "unit": runs[0].task.unit,
            "synthetic": runs[0].synthetic,
            "space": to_tree(settings.space),
            "folds": [run.task.split.fold for run in runs],
            **_ended(_run(job, runs, examples, progress)),
        }
        write_json(job.folder / MANIFEST, manifest)
    for folder in job.folder.iterdir():  # what is left below is needed no more
        if folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)
    status = [trial["status"] for trial in manifest["trials"]]
    progress.done(f"{status.count('stopped')} stopped early, {status.count('failed')} failed")
    values = manifest["trials"][manifest["best"]]["values"]
    tree = to_tree(with_values(experiment, values))
    tree |= {"title": f"{manifest['title']}, settings of a search ({len(status)} trials)"}
    del tree["search"]
    write_text(out / "best.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    return manifest


def _ended(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """Find the best trial: of those that came to their end, as one trained anew will."""
    whole = [i for i, trial in enumerate(trials) if trial["status"] == "ok"]
    if not whole:
        error = next((trial["error"] for trial in trials if trial["error"]), "none was begun")
        raise DataError(f"no trial came to its end; the first: {error}")
    best = max(whole, key=lambda i: trials[i]["steps"][-1][FIGURE])
    return {"best": best, "trials": trials}


def _run(job: Job, runs: Sequence[Run], examples: Path, progress: Progress) -> list[dict[str, Any]]:
    """Give the trials, in the order they were begun."""
    _read(job, runs, examples)
    tune_job = ray.remote(
        max_retries=0, runtime_env={"env_vars": QUIET | KEEPS_MEMORY}, **own_node()
    )(_tune)
    task = tune_job.remote(job)
    while not ray.wait([task], timeout=0.5)[0]:
        if (job.folder / NOTE).exists():
            note = read_json(job.folder / NOTE)
            progress.update(note["ended"], note["text"])
    return _trials(job, ray.get(task))


def _read(job: Job, runs: Sequence[Run], examples: Path) -> None:
    """Make the windows of training and validation, and write down which records they are of."""
    table = read_table(examples).filter(pc.field("split").isin(list(READ)))
    folds = [run.task.split.fold for run in runs]
    if folds != [None]:
        table = table.filter(pc.field("fold").isin(folds))
    write_table(job.examples, table)
    space = search_of(job.experiment).space
    choices = {name: space[name].edges for name in space if name.startswith("input.")}
    first = {name: own.edges[0] for name, own in space.items()}
    inputs: dict[Any, Run] = {}
    for edges in itertools.product(*choices.values()):
        values = to_tree({**first, **dict(zip(choices, edges, strict=True))})
        run = searched_runs(job.experiment, values, job.plan)[0]
        inputs.setdefault(run.input, run)

    @ray.remote(num_cpus=1)
    def build(run: Run) -> str:
        return build_windows(run, job.shards, job.examples, job.cache).name

    record_ids = set()
    for name in ray.get([build.remote(run) for run in inputs.values()]):
        made = read_table(job.cache / name / "windows.parquet", columns=["record_id"])
        record_ids |= set(pc.unique(made["record_id"]).to_pylist())
        # Read too, though no window came of it.
        record_ids |= {each for each, _ in read_json(job.cache / name / "windows.json")["dropped"]}
    said = {"folds": folds, "n_records": len(record_ids), "record_ids": sorted(record_ids)}
    write_json(job.folder / READ_FILE, said)


def _tune(job: Job) -> list[tuple[dict[str, Any], str | None]]:
    """Run Tune, outside the job's own process; gives what each trial drew, and how its worker died."""
    settings, training = search_of(job.experiment), job.experiment.train
    wanted = {
        ("cpu" if n == "CPU" else n): a for n, a in training.scaling.resources_per_worker.items()
    }
    if training.scaling.use_gpu:
        wanted["gpu"] = wanted.pop("GPU", 1.0)
    trainable = tune.with_resources(tune.with_parameters(run_trial, job=job), wanted)
    space = {name: _domain(own) for name, own in settings.space.items()}
    # Its notes hold whole paths, so those of a folder that was moved are not found.
    name = f"tune-{fingerprint(str(job.folder))}"
    if any((job.folder / name).glob("experiment_state-*.json")):
        tuner = tune.Tuner.restore(str(job.folder / name), trainable, param_space=space)
    else:
        tuner = tune.Tuner(
            trainable,
            param_space=space,
            tune_config=tune.TuneConfig(
                metric=FIGURE,
                mode="max",
                num_samples=settings.n_trials,
                search_alg=_sampler(settings),
                scheduler=ASHAScheduler(
                    time_attr=STEP,
                    max_t=training.epochs,
                    grace_period=settings.grace_period,
                    reduction_factor=settings.reduction_factor,
                ),
                reuse_actors=True,
                trial_dirname_creator=_trial_id,
            ),
            run_config=tune.RunConfig(
                name=name,
                storage_path=str(job.folder),
                failure_config=tune.FailureConfig(max_failures=training.failure.max_failures),
                callbacks=[_Notes(job.folder / NOTE)],
                verbose=0,
            ),
        )
    results = tuner.fit()
    return [
        (result.config or {}, None if result.error is None else type(result.error).__name__)
        for result in results
    ]


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _domain(own: RangeSettings) -> Any:
    """Give Tune's own range; of a choice it draws the place, since samplers want plain values."""
    if own.kind == "choice":
        return tune.choice(list(range(len(own.edges))))
    low, high = own.edges
    if own.kind == "integer":
        return tune.randint(low, high + 1)
    return tune.loguniform(low, high) if own.kind == "log_uniform" else tune.uniform(low, high)


def _sampler(settings: SearchSettings) -> BasicVariantGenerator | Searcher:
    if settings.sampler == "random":
        return BasicVariantGenerator(random_state=settings.seed)
    from ray.tune.search.optuna import OptunaSearch

    return OptunaSearch(metric=FIGURE, mode="max", seed=settings.seed)


class _Notes(tune.Callback):
    """Writes down how far the search is, for the job's progress line."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def _write(self, trials: Sequence[Any]) -> None:
        ended = sum(trial.is_finished() for trial in trials)
        figures = [trial.last_result.get(FIGURE, -math.inf) for trial in trials]
        best = max(figures, default=-math.inf)
        text = f"best {best:.3f}" if best > -math.inf else ""
        write_json(self.file, {"ended": ended, "text": text})

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **_: Any
    ) -> None:
        """Note a step."""
        self._write(trials)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **_: Any) -> None:
        """Note a trial's end."""
        self._write(trials)


def _trials(job: Job, ended: Sequence[tuple[dict[str, Any], str | None]]) -> list[dict[str, Any]]:
    """Read what each trial said; what was drawn twice was tried once, and is listed once."""
    found = {}
    for drawn, died in ended:
        folder, values = job.trial(drawn), job.values(drawn)
        said: dict[str, Any] = {"values": values, "status": "running", "error": None}
        said |= {"begun": math.inf, "steps": [], "of_fold": []}
        if (folder / REPORT).exists():
            said |= read_json(folder / REPORT)
        if said["status"] == "running":
            said["status"] = "stopped" if died is None else "failed"
            said["error"] = None if died is None else f"its worker died ({died})"
        found[folder.name] = said
    in_order = sorted(found.values(), key=lambda said: said["begun"])
    return [{name: said[name] for name in said if name != "begun"} for said in in_order]
