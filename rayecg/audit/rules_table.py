"""All rules as a table: what each catches, how much it weighs, on what grounds, from what evidence."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from rayecg.audit.catalogue import RULES, load_rule
from rayecg.core.files import write_text

COLUMNS = ("id", "fires when", "severity", "rationale", "source", "needs")


def rules_rows() -> list[tuple[str, ...]]:
    """List the rules in the order of the catalogue, with the cells of `COLUMNS`."""
    rules = [load_rule(rule_id) for rule_id in RULES]
    return [(r.rule_id, r.catches, r.severity, r.rationale, r.source, r.needs) for r in rules]


def rules_markdown() -> str:
    """Give the table as Markdown."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [(f"`{rule_id}`", *rest) for rule_id, *rest in rules_rows()]
    table = "\n".join(
        f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines
    )
    return f"""# Rules of the audit

Printed by `python jobs/audit.py --rules`. A rule whose evidence is not there is "not checked", never
"passed". A violated rule that invalidates says that a figure does not mean what it says; one that weakens,
that it is less sure than it looks or does not compare with others.

{table}
"""


def write_rules(out: Path) -> None:
    """Write `rules.md` and `rules.csv`."""
    write_text(out / "rules.md", rules_markdown())
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([COLUMNS, *rules_rows()])
    write_text(out / "rules.csv", text.getvalue())
