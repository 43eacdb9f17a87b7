"""The audit of somebody else's predictions, or a table of all rules (--rules).

Exit status: 0 done; 1 the table cannot be used; 2 wrong usage; 3 with --strict, a rule is violated.
"""

from __future__ import annotations

from rayecg.core.job import DONE, VIOLATED, Arguments, run_job


def main() -> int:
    """Run the job; see `--help`."""
    arguments = Arguments(__doc__ or "")
    arguments.add_argument("--predictions", help="CSV or Parquet table, a row per example")
    arguments.add_argument("--shards", help="output folder of make_shards on the same archive")
    arguments.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="ID=ID",
        help="patient ids of one person (again for each)",
    )
    arguments.add_argument("--out", help="where findings and page go")
    arguments.add_argument("--strict", action="store_true", help="exit 3 if a rule is violated")
    arguments.add_argument(
        "--rules", action="store_true", help="print all rules, and write them to OUT"
    )
    given = arguments.parse_args()
    if given.rules and (given.predictions or given.shards or given.strict or given.alias):
        arguments.error("--rules goes with --out alone")
    if not given.rules and not (given.predictions and given.out):
        arguments.error("expected --predictions and --out, or --rules")
    wrong = [one for one in given.alias if "=" not in one.strip("=")]
    if wrong:
        arguments.error(f"--alias: expected two ids or more, as 201=202, came {wrong[0]!r}")

    from rayecg import pipeline

    if given.rules:
        print(pipeline.list_rules(given.out), end="")
        return DONE
    aliases = [one.split("=") for one in given.alias]
    result = pipeline.audit(given.predictions, given.out, given.shards, aliases)
    print(result.table)
    print(f"audit: {result.page.resolve()}")
    return VIOLATED if given.strict and result.violated else DONE


if __name__ == "__main__":
    run_job(main)
