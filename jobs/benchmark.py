"""Shards, training, scores, audit and report of one experiment."""

from __future__ import annotations

from pathlib import Path

from rayecg.core.experiment import Experiment
from rayecg.core.job import DONE, VIOLATED, Arguments, run_job
from rayecg.core.settings import load_settings

DEMO = Path(__file__).resolve().parent / "experiments" / "demo.yaml"


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--experiment", default=str(DEMO), help="YAML file of the experiment")
    arguments.add_argument("--set", action="append", default=[], help="section.key=value")
    arguments.add_argument("--out", help="output folder (default: reports/NAME)")
    arguments.add_argument("--strict", action="store_true", help="exit 3 if a rule is violated")
    given = arguments.parse_args()
    experiment = load_settings(Experiment, given.experiment, given.set)

    from rayecg import pipeline  # imports torch, which wrong settings need not wait for

    result = pipeline.benchmark(experiment, given.out or Path("reports") / experiment.name)
    print(result.table)
    print(f"report: {result.page.resolve()}")
    return VIOLATED if given.strict and result.violated else DONE


if __name__ == "__main__":
    run_job(main)
