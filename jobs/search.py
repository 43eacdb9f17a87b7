"""Search settings of an experiment with Ray Tune, on its training and validation data alone."""

from __future__ import annotations

from pathlib import Path

from rayecg.core.experiment import Experiment
from rayecg.core.job import DONE, Arguments, run_job
from rayecg.core.settings import load_settings


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--experiment", required=True, help="YAML file with a section search")
    arguments.add_argument("--set", action="append", default=[], help="section.key=value")
    arguments.add_argument("--out", required=True, help="output folder")
    given = arguments.parse_args()
    experiment = load_settings(Experiment, given.experiment, given.set)

    from rayecg import pipeline  # imports torch, which wrong settings need not wait for

    print(pipeline.search(experiment, given.out))
    print(f"the best settings: {(Path(given.out) / 'best.yaml').resolve()}")
    return DONE


if __name__ == "__main__":
    run_job(main)
