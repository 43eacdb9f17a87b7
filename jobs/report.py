"""Audit and tables again, from the files of a benchmark alone."""

from __future__ import annotations

from rayecg.core.job import DONE, VIOLATED, Arguments, run_job


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--runs", required=True, help="output folder of a benchmark")
    arguments.add_argument("--out", required=True, help="where the report goes")
    arguments.add_argument("--strict", action="store_true", help="exit 3 if a rule is violated")
    given = arguments.parse_args()

    from rayecg import pipeline

    result = pipeline.report(given.runs, given.out)
    print(result.table)
    print(f"report: {result.page.resolve()}")
    return VIOLATED if given.strict and result.violated else DONE


if __name__ == "__main__":
    run_job(main)
