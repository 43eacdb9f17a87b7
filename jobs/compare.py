"""Several finished benchmarks in one table, each audited and reported anew from its files."""

from __future__ import annotations

from rayecg.core.job import DONE, VIOLATED, Arguments, run_job


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--runs", required=True, nargs="+", help="output folders of benchmarks")
    arguments.add_argument("--out", required=True, help="where the table and the reports go")
    arguments.add_argument("--strict", action="store_true", help="exit 3 if a rule is violated")
    given = arguments.parse_args()

    from rayecg import pipeline

    table, violated = pipeline.compare(given.runs, given.out)
    print(table)
    return VIOLATED if given.strict and violated else DONE


if __name__ == "__main__":
    run_job(main)
