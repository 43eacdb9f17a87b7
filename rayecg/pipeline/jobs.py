"""One function per job, but for scoring and exporting."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from rayecg.archives.catalogue import open_archive
from rayecg.archives.provide import ensure_archive
from rayecg.audit.ledger import note_looks
from rayecg.core.catalogue import look_up
from rayecg.core.errors import DataError, SettingsError
from rayecg.core.experiment import (
    ArchiveSettings,
    Experiment,
    ShardSettings,
)
from rayecg.core.files import (
    only_job_on,
    read_json,
    write_json,
    write_text,
)
from rayecg.core.folders import Folders
from rayecg.core.progress import Progress
from rayecg.core.session import RaySettings, ray_session
from rayecg.core.settings import to_tree
from rayecg.core.storage import shown_path
from rayecg.models.catalogue import ARCHITECTURES
from rayecg.pipeline.planning import check_experiment, plan_runs, prepare
from rayecg.tasks.task import load_task


@dataclass(frozen=True)
class BenchmarkResult:
    """What a benchmark ends with: its table, its page, and whether an audit rule is violated."""

    table: str
    page: Path
    violated: tuple[str, ...]


def make_shards(
    archive: ArchiveSettings,
    settings: ShardSettings,
    out: str | Path,
    ray: RaySettings | None = None,
) -> dict[str, Any]:
    """Turn an archive into shards; see `rayecg.shards.build.make_shards`."""
    from rayecg.shards.build import make_shards as build

    opened = open_archive(ensure_archive(archive, None))
    with only_job_on(Path(out)), ray_session(ray):
        return build(opened, settings, out)


def _train(experiment: Experiment, folders: Folders) -> tuple[list[Any], Any, list[dict[str, Any]]]:
    """Have shards, examples and every run; gives the runs, their places and their reports."""
    from rayecg.train.runs import Places, run_report, train_runs

    task, shards_key = prepare(experiment, folders)
    synthetic = read_json(folders.shards / "manifest.json")["synthetic"]
    runs = plan_runs(experiment, task, shards_key, synthetic)
    places = Places(folders.shards.resolve(), folders.examples.resolve(), folders.train.resolve())
    settings = experiment.train
    train_runs(runs, settings.scaling, settings.failure.max_failures, places)
    reports = [run_report(places, run) for run in runs]
    return runs, places, [report for report in reports if report is not None]


def train(experiment: Experiment, out: str | Path) -> list[dict[str, Any]]:
    """Train every architecture and seed; shards that are missing are built.

    Returns
    -------
    list
        Each run's report, failed ones included.
    """
    check_experiment(experiment)
    folders = Folders.of_training(out)
    with only_job_on(folders.out), ray_session(experiment.ray):
        return _train(experiment, folders)[2]


def search(experiment: Experiment, out: str | Path) -> str:
    """Search settings on training and validation data; gives what is said of the trials."""
    from rayecg.audit.evidence import Evidence
    from rayecg.audit.run import apply_rule
    from rayecg.report.search import write_search
    from rayecg.search.run import search as run_search
    from rayecg.search.space import check_search

    task = load_task(experiment.task)
    plan = functools.partial(plan_runs, task=task, shards_key="", synthetic=False)
    check_search(experiment, check_experiment, plan)
    folders = Folders.of_benchmark(out)
    with only_job_on(folders.out), ray_session(experiment.ray):
        task, key = prepare(experiment, folders)
        synthetic = read_json(folders.shards / "manifest.json")["synthetic"]
        plan = functools.partial(plan_runs, task=task, shards_key=key, synthetic=synthetic)
        manifest = run_search(experiment, plan, folders.shards, folders.examples, folders.out)
    found = apply_rule("search-saw-test", Evidence(folders.work.resolve()))
    said = [f"Audit, {one.rule_id}: {one.verdict}: {one.evidence['text']}." for one in found]
    return write_search(manifest, said, folders.out)


def measure_architectures(out: str | Path, names: Sequence[str] | None = None) -> str:
    """Measure what each architecture costs, and write the table; gives its text.

    Raises
    ------
    SettingsError
        If a name is unknown.
    """
    from rayecg.report.architectures import write_architectures
    from rayecg.train.cost import BASE, cost

    names = list(names or ARCHITECTURES)
    for name in names:
        look_up(ARCHITECTURES, name, "architecture")
    with only_job_on(Path(out)):
        progress = Progress("architectures", len(names), "architectures")
        rows = []
        for i, name in enumerate(names):
            rows.append(cost(name))
            progress.update(i + 1, name)
        progress.done()
        return write_architectures(rows, BASE, torch.get_num_threads(), Path(out))


def benchmark(experiment: Experiment, out: str | Path) -> BenchmarkResult:
    """Shards, training, scores, ensembles, audit and report of one experiment.

    Raises
    ------
    DataError
        If every run failed; the report is written all the same.
    """
    from rayecg.score.actors import check_local_room
    from rayecg.score.batches import probe_batches
    from rayecg.score.ensemble import Places, make_ensembles
    from rayecg.score.run import score as run_scores
    from rayecg.score.sources import ShardSource

    check_experiment(experiment)
    folders = Folders.of_benchmark(out)
    with only_job_on(folders.out):
        # It says that the files below are of one finished benchmark.
        (folders.work / "runs.json").unlink(missing_ok=True)
        with ray_session(experiment.ray):
            check_local_room(experiment.score)
            runs, trained_at, reports = _train(experiment, folders)
            done = [report["run"] for report in reports if report["status"] == "ok"]
            probes = _train_permuted(experiment, folders, runs, trained_at) if done else []
            checkpoints = {run: (folders.train / run / "checkpoint").resolve() for run in done}
            scores = {run: (folders.scores / run).resolve() for run in done}
            source = ShardSource(folders.shards.resolve())
            if done:
                own = folders.permuted.resolve()
                run_scores(
                    checkpoints | {run: own / "train" / run / "checkpoint" for run in probes},
                    source,
                    scores | {run: own / "score" / run for run in probes},
                    experiment.score,
                )
                n_again = experiment.audit.batch_dependence
                if n_again:
                    place = folders.examples.resolve(), folders.batches.resolve()
                    probe_batches(checkpoints, source, scores, *place, experiment.score, n_again)
        places = Places(folders.train, folders.scores, folders.examples)
        ensembles = make_ensembles(experiment.ensembles, reports, places)
        write_text(folders.out / "experiment.yaml", _experiment_yaml(experiment))
        everyone = [*reports, *ensembles]
        write_json(folders.work / "runs.json", [report["run"] for report in everyone])
        note_looks(folders, [report["run"] for report in everyone if report["status"] == "ok"])
        note_looks(folders, probes, "permuted-labels")
        result = _report(folders.out, folders.out)
    if not done:
        raise DataError(f"every run failed; the first: {reports[0]['error']}")
    return result


def _train_permuted(
    experiment: Experiment, folders: Folders, runs: Sequence[Any], places: Any
) -> list[str]:
    """Repeat on permuted labels what the experiment asks for; gives the runs that ended well."""
    from rayecg.train.permuted import train_permuted

    asked = experiment.audit.permuted_labels, experiment.seeds[0]
    own = [run for run in runs if (run.architecture.title, run.seed) == asked]
    return train_permuted(own, experiment.train, places, folders.permuted.resolve())


def _experiment_yaml(experiment: Experiment) -> str:
    """Give the settings without the place of this machine's files."""
    tree = to_tree(experiment)
    if tree["archive"]["path"]:
        tree["archive"]["path"] = shown_path(tree["archive"]["path"])
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def report(benchmark_out: str | Path, out: str | Path) -> BenchmarkResult:
    """Audit and report again, from the files of a benchmark alone.

    Raises
    ------
    DataError
        If `benchmark_out` is not the output of a finished benchmark.
    """
    source = Path(benchmark_out)
    if not (source / "work" / "runs.json").exists():
        raise DataError(f"{source}: expected the output folder of a finished benchmark")
    with only_job_on(Path(out)):
        return _report(source, Path(out))


def compare(benchmarks: Sequence[str | Path], out: str | Path) -> tuple[str, tuple[str, ...]]:
    """Audit and report finished benchmarks, and put them into one table.

    Returns
    -------
    str, tuple of str
        The table, and the rules that are violated in any of them.

    Raises
    ------
    SettingsError
        If two of the folders have one name, which names the reports.
    DataError
        If one is not the output of a finished benchmark, or labels or metrics differ.
    """
    from rayecg.report.beside import write_beside

    sources = {Path(one).resolve().name: Path(one) for one in benchmarks}
    if len(sources) < len(benchmarks):
        raise SettingsError(
            f"expected folders of different names, came {', '.join(map(str, benchmarks))}"
        )
    results = {name: report(source, Path(out) / name) for name, source in sources.items()}
    places = {name: (source, Path(out) / name) for name, source in sources.items()}
    violated = {rule_id: None for result in results.values() for rule_id in result.violated}
    return write_beside(places, Path(out)), tuple(violated)


def audit(
    predictions: str | Path,
    out: str | Path,
    shards: str | Path | None = None,
    aliases: Sequence[Sequence[str]] = (),
) -> BenchmarkResult:
    """Audit somebody else's predictions; see `rayecg.core.prediction_table` for what a table holds.

    `out` gets `findings.json`, `figures.csv` and `index.html`; `shards` is a `make_shards` output of the
    same archive, `aliases` are groups of patient ids that are one person. Raises as `read_prediction_table` and `rayecg.audit.others.audit_table` do.
    """
    from rayecg.audit.others import audit_table
    from rayecg.core.prediction_table import read_prediction_table
    from rayecg.report.audit_page import write_audit

    table = read_prediction_table(predictions)
    place = None if shards is None else Path(shards)
    with only_job_on(Path(out)):
        findings = audit_table(table, place, Path(out), aliases)
        against = "" if place is None else f"the shards in {place.resolve().name}"
        written = write_audit(table, against, Path(out))
    violated = tuple(f.rule_id for f in findings if f.verdict == "violated")
    return BenchmarkResult(written.table, written.page, violated)


def list_rules(out: str | Path | None = None) -> str:
    """Give the table of all audit rules as Markdown; `out` gets it, and as CSV."""
    from rayecg.audit.rules_table import rules_markdown, write_rules

    if out is not None:
        with only_job_on(Path(out)):
            write_rules(Path(out))
    return rules_markdown()


def _report(source: Path, out: Path) -> BenchmarkResult:
    from rayecg.audit.run import FINDINGS
    from rayecg.audit.run import audit as check
    from rayecg.report.published import publish_intervals
    from rayecg.report.results import Results
    from rayecg.report.write import report as write_report

    results = Results(source, out / FINDINGS)
    publish_intervals(results, out)  # so that the audit judges them, too
    findings = check(source / "work", out)
    written = write_report(source, out, results)
    violated = tuple(f.rule_id for f in findings if f.verdict == "violated")
    return BenchmarkResult(written.table, out / "index.html", violated)
