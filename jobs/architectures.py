"""Measure every architecture of the catalogue: parameters, multiply-adds, and speed on this machine."""

from __future__ import annotations

from rayecg.core.job import DONE, Arguments, run_job


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--out", required=True, help="output folder")
    arguments.add_argument("--only", nargs="+", metavar="NAME", help="some architectures alone")
    given = arguments.parse_args()

    from rayecg import pipeline

    print(pipeline.measure_architectures(given.out, given.only))
    return DONE


if __name__ == "__main__":
    run_job(main)
