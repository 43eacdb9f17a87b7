"""Rules about results: how often the test split was looked at, in what order, and how sure figures are.

Legend: N row, G group of rows, L label column, P permutation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated
from rayecg.audit.order import Grouping, grouping, grouping_in_batches, order_by_person
from rayecg.audit.others import TableEvidence
from rayecg.audit.split_rules import some
from rayecg.metrics.of_table import measured, persons

#: Test rows are grouped by a label where it changes less often than this share of what is expected.
LEAST_CHANGES = 0.5
#: And where chance gives as few changes in less than this share of draws, over all labels together.
CHANCE = 0.05

#: A published width "is" a resampled one within this factor. Over 2,000 resamples a percentile
#: interval's width is known to about 3 %, and somebody else's to no better; formulas for independent
#: rows differ from resampling them by some more.
SAME_WIDTH = 1.25
#: Widths over rows and over patients that differ by less than this do not tell the two apart.
CLEARLY_WIDER = SAME_WIDTH**2

#: Words for what intervals resample, and whether it is as coarse as the patient.
UNITS = {
    **dict.fromkeys(("patient", "subject", "person", "participant", "individual"), True),
    **dict.fromkeys(("site", "hospital", "centre", "center", "device"), True),
    **dict.fromkeys(("record", "recording", "ecg", "exam", "study", "example", "sample"), False),
    **dict.fromkeys(("row", "observation", "instance", "beat", "heartbeat", "cycle"), False),
    **dict.fromkeys(("window", "segment", "frame", "epoch", "slice"), False),
}


@rule(
    "test-looks",
    title="The test split was looked at once",
    severity="weakens",
    rationale="Whoever sees test figures, changes something and looks again selects by the test split, "
    "if only by stopping. A look is one evaluation: all checkpoints that one benchmark brings to the "
    "test split together, all of them shown, and what is called chosen chosen on validation. The same "
    "checkpoints again are the same look; a checkpoint that was not there before makes a further one, "
    "and so do looks elsewhere that the experiment states (audit.looks_elsewhere). Ensembles of "
    "checkpoints that were looked at, and runs made for the audit alone, make none. A statement of the "
    "correction (audit.looks_correction) is taken at its word and shown.",
    source="ledger.json of the output folder, one entry per checkpoint, and experiment.yaml; Dwork et "
    "al. 2015, Science 349(6248):636-638 (reuse of a holdout)",
    catches="the ledger shows more than one look at a test split, without a correction",
    needs="`ledger.json` of the output folder",
)
def test_looks(evidence: Evidence) -> Iterator[Outcome]:
    """Count the evaluations of the ledger on the task at hand."""
    ledger = evidence.ledger
    if ledger is None:
        yield not_checked("no ledger says how often the test split was looked at", ("test",))
        return
    task = None if evidence.task is None else evidence.task.get("name")
    own = [
        look
        for look in ledger
        if look["split"] == "test" and "audit" not in look and task in (None, look["task"])
    ]
    if not own:
        yield not_checked("the ledger has no look at this task's test split", ("test",))
        return
    looks = _looks(own)
    settings = evidence.experiment.get("audit") or {}
    elsewhere = int(settings.get("looks_elsewhere") or 0)
    correction = str(settings.get("looks_correction") or "")
    n = len(looks) + elsewhere
    text = some(n, "look")
    text += f", {elsewhere} of them in other folders" if elsewhere else ""
    each = [f"{some(len(runs), 'checkpoint')}: {', '.join(runs)}" for runs in looks.values()]
    counts = {"n_looks": n, "looks": each}
    if n == 1 and None in looks:
        yield not_checked("the ledger does not say which looks are one evaluation", ("test",))
    elif n == 1:
        yield passed(f"{text}, at {each[0]}", **counts)
    elif correction:
        yield passed(f"{text}; the experiment states: {correction}", **counts)
    else:
        yield violated(
            f"{text} at the test split, and no correction is stated", each, ("test",), **counts
        )


def _looks(entries: Sequence[Mapping[str, Any]]) -> dict[str | None, list[str]]:
    """Give the runs of each evaluation; those of one that nobody named stand under None."""
    found: dict[str | None, list[str]] = {}
    for look in entries:
        if not look.get("members"):
            found.setdefault(look.get("evaluation"), []).append(look["run"])
    return found


@rule(
    "label-grouped-input",
    title="Test rows are not grouped by their labels",
    severity="invalidates",
    rationale="Where a loader sorts the test data by label, or fills batches from one label, whatever "
    "sees neighbours sees the answer: a recurrent state, a sequence of beats, batch statistics. The "
    "labels along the order of the rows, or the distinct labels of each batch, are compared with many "
    "orders in which patients are shuffled and each one's rows stay as they are in time, so that runs "
    "of ectopic beats in a recording do not count. It fires where labels change less than half as "
    "often as that, and where fewer than 5 % of shuffles (over all labels, Bonferroni) change as "
    "rarely. A table that was sorted after scoring fires as well: give it in the order of scoring.",
    source="order of examples.parquet, or of a table's rows and its column `batch`; Phipson and Smyth "
    "2010, Stat. Appl. Genet. Mol. Biol. 9(1):39 (p values of permutations)",
    catches="test sequences or batches are ordered or grouped by label",
    needs="test rows with their labels, in the order in which they were scored",
)
def label_grouped_input(evidence: Evidence) -> Iterator[Outcome]:
    """Count label changes along the test rows of every order that is known."""
    orders = _orders(evidence)
    if not orders:
        yield not_checked("no test rows are known", ("test",))
        return
    fine = []
    for taints, name, rows in orders:
        targets = [column for column in map(str, rows) if column.startswith("target_")]
        where = f"{name}: " if name else ""
        values_NL = rows[targets].to_numpy(dtype=np.int64)
        together = order_by_person(persons(rows), rows["record_id"], rows["offset"])
        found = [(grouping(values_NL, *together), "label changes along the order")]
        if "batch" in rows and rows["batch"].notna().all():
            in_batches = grouping_in_batches(values_NL, *together, rows["batch"])
            found.append((in_batches, "further labels within batches"))
        for worst, what in found:
            text = f"{where}{_seen(worst, what, targets)}"
            if worst.share >= LEAST_CHANGES:
                fine.append(text)
            elif worst.p < CHANCE:
                counts = {"seen": worst.seen, "expected": worst.expected, "p": worst.p}
                yield violated(text, [name] if name else [], taints, **counts)
            else:
                yield not_checked(f"{text}: too few rows to tell from chance", taints)
    if fine:
        yield passed("; ".join(fine[:5]))


def _orders(evidence: Evidence) -> list[tuple[tuple[str, ...], str, pd.DataFrame]]:
    """List the orders of test rows, with whose figures they taint and their names."""
    if isinstance(evidence, TableEvidence):
        rows = [(run, evidence.table.of_run(run, "test")) for run in evidence.runs]
        alone = len(evidence.table.runs) == 1
        return [((f"run:{run}",), "" if alone else run, own) for run, own in rows if len(own)]
    examples = evidence.examples
    test = None if examples is None else examples[examples["split"] == "test"]
    return [] if test is None or not len(test) else [(("test",), "", test)]


def _seen(found: Grouping, what: str, targets: list[str]) -> str:
    of = "" if found.column is None else f" of {targets[found.column].removeprefix('target_')}"
    p = "" if found.share >= LEAST_CHANGES else f", p {found.p:.2g}"
    return f"{found.seen:,} {what}{of}, {found.expected:,.0f} expected of shuffled patients{p}"


@rule(
    "interval-excludes-point",
    title="Every published interval contains its point",
    severity="weakens",
    rationale="An interval that lies beside its own figure is not an interval of that figure: resamples "
    "without a class scored as chance, another metric, a slip of the pen. Ends are given half a unit of "
    "their last digit.",
    source="intervals.csv of the report, or the columns interval_low_, interval_high_ and point_ of a "
    "table, whose figure is computed where it is not stated",
    catches="a published interval misses its own point",
    needs="intervals with their points; a table's `interval_low_`, `interval_high_`",
)
def interval_excludes_point(evidence: Evidence) -> Iterator[Outcome]:
    """Compare each published interval with its figure."""
    intervals = evidence.intervals
    if intervals is None or not len(intervals):
        yield not_checked("no intervals are published", ("test",))
        return
    # What stands in the report's file has passed through six digits; sums have rounding errors.
    slack = intervals["slack"].fillna(0) + 1e-9
    ends = intervals[["low", "high"]]
    turned = ends["low"] > ends["high"] + 2 * slack
    beside = (intervals["point"] < ends["low"] - slack) | (
        intervals["point"] > ends["high"] + slack
    )
    wrong = intervals[turned | beside]
    if len(wrong):
        ids = [
            f"{one['metric']} of {one['name']}: {one['point']:.6g} in {one['low']:.6g} to "
            f"{one['high']:.6g}"
            for _, one in wrong.iterrows()
        ]
        text = f"{len(wrong):,} of {some(len(intervals), 'interval')} beside the point: {ids[0]}"
        yield violated(text, ids, _runs_of(wrong))
    unknown = intervals[intervals["point"].isna() & ~turned]
    if len(unknown):
        what = ", ".join(sorted(set(unknown["metric"]))[:5])
        text = f"{some(len(unknown), 'interval')} without a point that is stated or known: {what}"
        yield not_checked(text, _runs_of(unknown), n=len(unknown))
    n = len(intervals) - len(wrong) - len(unknown)
    if n:
        yield passed(f"{n:,} of {some(len(intervals), 'interval')} with the point inside", n=n)


def _runs_of(rows: pd.DataFrame) -> tuple[str, ...]:
    runs = dict.fromkeys(run for names in rows["runs"] for run in str(names).split())
    return tuple(f"run:{run}" for run in runs)


@rule(
    "resampling-unit",
    title="Intervals resample patients, or something coarser",
    severity="weakens",
    rationale="Recordings and beats of one patient resemble one another, and intervals that draw them "
    "one by one are too narrow: they count the same patient as many. Where nobody says what was "
    "resampled, a published width is compared with those over rows and over patients of the same "
    "predictions, if these differ by more than a half. It fires where the width is the first (within a "
    "quarter) and not the second.",
    source="column `unit` of the report's intervals.csv; a table's `resampling_unit`, or its own rows; "
    "Rutter 2000, Academic Radiology 7(6):413-419 (bootstrap of clustered data)",
    catches="intervals resample something finer than the patient",
    needs="the unit that intervals resample, or intervals of patients with several test rows",
)
def resampling_unit(evidence: Evidence) -> Iterator[Outcome]:
    """Read what intervals resampled, or find it in their widths."""
    intervals, examples = evidence.intervals, evidence.examples
    if intervals is None or not len(intervals) or examples is None:
        lacking = "no intervals are published" if examples is not None else "no test rows are known"
        yield not_checked(lacking, ("test",))
        return
    test = examples[examples["split"] == "test"]
    several = bool(test["patient_id"].duplicated().any() or test["patient_id"].isna().any())
    n_people = len(np.unique(persons(test)))
    for _, own in intervals.groupby(["unit", "n_units"], dropna=False, sort=False):
        unit, n_units, taints = own["unit"].iloc[0], own["n_units"].iloc[0], _runs_of(own)
        if pd.isna(unit) or not str(unit).strip():
            yield from _by_width(evidence, own)
            continue
        coarse = UNITS.get(str(unit).strip().lower().removesuffix("s"))
        word = f"{some(len(own), 'interval')} over {unit}"
        if coarse is None:
            yield not_checked(f"{word}, which is no unit that is known here", taints)
        elif coarse and pd.notna(n_units) and n_units > n_people:
            text = f"{word}: {int(n_units):,} of them, where {n_people:,} patients are tested on"
            yield violated(text, own["metric"], taints)
        elif coarse:
            yield passed(f"{word}", n=len(own))
        elif several:
            text = f"{word}, where {len(test):,} test rows come from {some(n_people, 'patient')}"
            yield violated(text, own["metric"], taints)
        else:
            yield passed(f"{word}, of which each patient has one", n=len(own))


def _by_width(evidence: Evidence, intervals: pd.DataFrame) -> Iterator[Outcome]:
    """Find in the widths of a table's intervals what was resampled."""
    if not isinstance(evidence, TableEvidence):
        yield not_checked("the intervals do not say what they resample", _runs_of(intervals))
        return
    narrow, fine, open_ = [], [], []
    for at, one in intervals.iterrows():
        own = measured(evidence.table, one["name"], "test", one["metric"])
        name = f"{one['metric']} of {one['name']}"
        if own is None:
            open_.append((at, f"{name} cannot be computed"))
            continue
        rows, people = (own.interval(by, one["level"]) for by in ("row", "patient"))
        width = one["high"] - one["low"]
        by_row, by_patient = rows.high - rows.low, people.high - people.low
        said = f"{name} is {width:.3g} wide; over rows {by_row:.3g}, over patients {by_patient:.3g}"
        if not by_patient > CLEARLY_WIDER * by_row > 0:
            open_.append((at, f"{said}: no difference to go by"))
        elif by_row / SAME_WIDTH <= width <= by_row * SAME_WIDTH:
            narrow.append((at, said))
        elif width >= by_patient / SAME_WIDTH:
            fine.append((at, said))
        else:
            open_.append((at, f"{said}: neither"))
    if narrow:
        ids = [said for _, said in narrow]
        text = f"{some(len(ids), 'interval')} as narrow as over single rows: {ids[0]}"
        yield violated(text, ids, _runs_of(intervals.loc[[at for at, _ in narrow]]))
    if open_:
        text = f"nobody says what {some(len(open_), 'interval')} resampled: {open_[0][1]}"
        yield not_checked(text, _runs_of(intervals.loc[[at for at, _ in open_]]), n=len(open_))
    if fine:
        text = f"{some(len(fine), 'interval')} as wide as over patients: {fine[0][1]}"
        yield passed(text, n=len(fine))
