"""The rule about the search for settings: whose records it read."""

from __future__ import annotations

from collections.abc import Iterator

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated
from rayecg.core.files import read_json


@rule(
    "search-saw-test",
    title="The search for settings read no record of the test split",
    severity="invalidates",
    rationale="Settings that were chosen with the test records in sight fit them, and a figure on "
    "them is then a best case.",
    source="record_ids of each work/search/*/read.json, which say what windows were made of, against "
    "the test examples; Kapoor and Narayanan 2023, Patterns 4(9):100804",
    catches="a search for settings read test records",
    needs="a search made in the same output folder (`work/search`)",
)
def search_saw_test(evidence: Evidence) -> Iterator[Outcome]:
    """Compare the records that any search in this folder read with those tested on."""
    if evidence.examples is None:
        yield not_checked("examples.parquet is not there", ("test",))
        return
    notes = sorted((evidence.work / "search").glob("*/read.json"))
    if not notes:
        # No figure rests on a search that was not made: nothing is tainted.
        yield not_checked("no search for settings was made in this folder", ())
        return
    read = {record_id for note in notes for record_id in read_json(note)["record_ids"]}
    tested = set(evidence.examples.query("split == 'test'")["record_id"])
    counts = {"n_read": len(read), "n_tested": len(tested)}
    both = sorted(read & tested)
    if both:
        text = f"search read {len(both):,} of the {len(tested):,} test records"
        yield violated(text, both, ("test",), **counts)
    else:
        text = f"search read {len(read):,} records, none of the {len(tested):,} test records"
        yield passed(text, **counts)
