"""Train every architecture and seed of an experiment; shards that are missing are built."""

from __future__ import annotations

from pathlib import Path

from rayecg.core.experiment import Experiment
from rayecg.core.job import DONE, FAILED, Arguments, run_job
from rayecg.core.settings import load_settings


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--experiment", required=True, help="YAML file of the experiment")
    arguments.add_argument("--set", action="append", default=[], help="section.key=value")
    arguments.add_argument("--out", required=True, help="output folder")
    given = arguments.parse_args()
    experiment = load_settings(Experiment, given.experiment, given.set)

    from rayecg import pipeline  # imports torch, which wrong settings need not wait for

    reports = pipeline.train(experiment, given.out)
    metric = f"validation_{pipeline.load_task(experiment.task).primary_metric}"
    for report in reports:
        if report["status"] == "ok":
            value = report["validation"][metric.removeprefix("validation_")]
            print(f"{report['run']}: {metric} {value:.4f}, epoch {report['best_epoch'] + 1}")
            print(f"    {(Path(given.out) / report['run'] / 'checkpoint').resolve()}")
        else:
            print(f"{report['run']}: failed: {report['error']}")
    return FAILED if all(report["status"] != "ok" for report in reports) else DONE


if __name__ == "__main__":
    run_job(main)
