"""Runs on permuted labels: the evidence that the audit's rule `permuted-labels` reads.

They are ordinary runs in a folder of their own, where no table of runs looks for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from rayecg.core.errors import RayecgError
from rayecg.core.files import fingerprint, read_table, write_json, write_table
from rayecg.core.train_settings import TrainSettings
from rayecg.tasks.permute import SEED, permuted_examples
from rayecg.train.run import Run
from rayecg.train.runs import Places, run_report, train_runs


def permuted(run: Run) -> Run:
    """Give the run that differs in its labels alone."""
    key = fingerprint([run.key, "permuted labels", SEED])
    return dataclasses.replace(run, name=f"{run.name}-permuted", key=key)


def train_permuted(
    runs: Sequence[Run], settings: TrainSettings, places: Places, out: Path
) -> list[str]:
    """Train runs once more, on labels that were dealt out anew.

    A run that fails is told to the audit, and is no failure of the benchmark.

    Parameters
    ----------
    runs
        The ordinary runs to repeat; none if nobody asks for it.
    settings
        The experiment's; worker groups and their restarts are as for ordinary runs.
    places
        Of the ordinary runs, whose resident windows are read.
    out
        Gets `examples.parquet` with the labels as they were dealt, `train/<run>/` and `plan.json`:
        the names of the runs, and why there is none where training could not begin.

    Returns
    -------
    list of str
        The runs that ended well.
    """
    own = [permuted(run) for run in runs]
    error, done = None, []
    if own:
        here = Places(places.shards, out / "examples.parquet", out / "train", places.cache)
        write_table(here.examples, permuted_examples(read_table(places.examples)))
        try:
            train_runs(own, settings.scaling, settings.failure.max_failures, here)
        except RayecgError as found:
            error = str(found)
        reports = {run.name: run_report(here, run) for run in own}
        done = [name for name, said in reports.items() if said and said["status"] == "ok"]
    write_json(out / "plan.json", {"runs": [run.name for run in own], "error": error})
    return done
