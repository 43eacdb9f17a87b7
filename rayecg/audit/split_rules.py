"""Rules about who stands on which side of the split.

A side is `train`, `validation` or `test`; records that the task leaves out stand on none. What lies
both in training and in validation data makes validation figures flattering, and the choice of runs
with them; what lies in the test data and elsewhere does so to test figures.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import Any

import pandas as pd

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import MOST_IDS, Outcome, not_checked, passed, rule, violated
from rayecg.tasks.task import SPLITS

NO_EXAMPLES = "examples.parquet is not there"
NO_SHARDS = "the shards are not there"


def crossings(sides: pd.DataFrame, key: str) -> Iterator[tuple[tuple[str, str], list[str]]]:
    """Yield each pair of sides with the values of column `key` that stand on both."""
    on = {split: set(sides.loc[sides["split"] == split, key].dropna()) for split in SPLITS}
    for pair in combinations(SPLITS, 2):
        both = on[pair[0]] & on[pair[1]]
        if both:
            yield pair, in_order(both)


def in_order(ids: Iterable[str]) -> list[str]:
    """Sort ids, numbers among them by size."""
    return sorted(ids, key=lambda text: (len(text), text))


def taint_of(pair: tuple[str, str]) -> tuple[str, ...]:
    """Name the figures that rest on what lies on both sides."""
    return ("test",) if "test" in pair else ("validation",)


def touched_by(sides: pd.DataFrame, pair: tuple[str, str], touched: pd.Series) -> dict[str, Any]:
    """Count the examples on the side that is evaluated on."""
    there = sides["split"] == pair[1]
    return {
        "sides": list(pair),
        "n_examples": int(sides.loc[there & touched, "n_examples"].sum()),
        "of": int(sides.loc[there, "n_examples"].sum()),
    }


def touching(what: str, counts: dict[str, Any]) -> str:
    """Say what lies on both sides, and what share of the evaluated one it touches."""
    first, second = counts["sides"]
    return (
        f"{what} in both {first} and {second}: {counts['n_examples']:,} of {counts['of']:,} "
        f"{second} examples are touched"
    )


def fine(evidence: Evidence, text: str, n: int) -> Outcome:
    """Say that no two sides share anything, if it is known who was trained on and who tested."""
    stated = evidence.stated_splits
    if "train" in stated and "test" in stated:
        return passed(text, n=n)
    return not_checked(f"{text}, as far as {' and '.join(stated)} go: no other rows are given", n=n)


def some(n: int, one: str, many: str | None = None) -> str:
    """Give a number with its noun."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


@rule(
    "patient-overlap",
    title="No patient stands on two sides of the split",
    severity="invalidates",
    rationale="Recordings of one person resemble each other far more than those of two. A network "
    "that has seen the person can recognise the person instead of the finding, and its figures then "
    "say little about patients it has not seen.",
    source="de Chazal et al. 2004, IEEE Trans. Biomed. Eng. 51(7):1196-1206; Wagner et al. 2020, "
    "Scientific Data 7:154",
    catches="a patient is on two sides",
    needs="`examples.parquet` with patients; a table's `patient_id` and `split`, train and test",
)
def patient_overlap(evidence: Evidence) -> Iterator[Outcome]:
    """Look for one patient id on two sides."""
    sides = evidence.known_sides
    if sides is None:
        yield not_checked(NO_EXAMPLES)
        return
    fired = False
    for pair, ids in crossings(sides, "patient_id"):
        fired = True
        counts = touched_by(sides, pair, sides["patient_id"].isin(ids))
        verb = "lies" if len(ids) == 1 else "lie"
        text = touching(f"{some(len(ids), 'patient')} {verb}", counts)
        yield violated(text, ids, taint_of(pair), **counts)
    unknown = sides[sides["patient_id"].isna()]
    if len(unknown):
        text = f"{some(unknown['record_id'].nunique(), 'record')} with examples have no patient id"
        yield not_checked(text, n=int(unknown["record_id"].nunique()))
    elif not fired:
        n = int(sides["patient_id"].nunique())
        yield fine(evidence, f"{some(n, 'patient')}, each on one side", n)


@rule(
    "patient-alias",
    title="No person stands on two sides under two ids",
    severity="invalidates",
    rationale="Some archives hold one person under several patient ids. Their own documents say so, "
    "the task states it, and a split by id alone does not see it.",
    source="MIT-BIH Arrhythmia Database Directory, note on records 201 and 202 (one man), which the "
    "customary DS1 / DS2 split puts on two sides",
    catches="two ids known to be one person are on two sides",
    needs="the task's `aliases`; for a table `--alias`, or an archive that is known by shards or ids",
)
def patient_alias(evidence: Evidence) -> Iterator[Outcome]:
    """Look for ids that the task states to be one person on two sides."""
    sides, task = evidence.known_sides, evidence.task
    if sides is None or task is None:
        yield not_checked(NO_EXAMPLES if sides is None else "no task says who has several ids")
        return
    groups = [tuple(str(one) for one in group) for group in task.get("aliases", ())]
    person = {one: " = ".join(group) for group in groups for one in group}
    # A person known under one id alone is the business of patient-overlap.
    known = sides.assign(person=sides["patient_id"].map(person))
    fired = False
    for pair, names in crossings(known, "person"):
        fired = True
        counts = touched_by(known, pair, known["person"].isin(names))
        verb = "lies" if len(names) == 1 else "lie"
        people = some(len(names), "person", "persons")
        text = touching(f"{people} with several ids {verb}", counts)
        yield violated(f"{text} ({'; '.join(names[:5])})", names, taint_of(pair), **counts)
    if not fired:
        n = len(groups)
        text = f"{some(n, 'stated alias', 'stated aliases')}, none on two sides"
        yield fine(evidence, text if n else "the task states no aliases", n)


@rule(
    "record-astride",
    title="No recording has windows or beats on two sides",
    severity="invalidates",
    rationale="Neighbouring beats of one recording share electrodes, noise and morphology. Where "
    "they are dealt out one by one, the test side holds near copies of what was trained on.",
    source="Luz et al. 2016, Computer Methods and Programs in Biomedicine 127:144-164 (intra- against "
    "inter-patient evaluation)",
    catches="windows or beats of one record are on two sides",
    needs="`examples.parquet`; a table's `record_id`, `offset` and `split`, train and test",
)
def record_astride(evidence: Evidence) -> Iterator[Outcome]:
    """Look for examples of one record on two sides."""
    sides = evidence.known_sides
    if sides is None:
        yield not_checked(NO_EXAMPLES)
        return
    fired = False
    for pair, ids in crossings(sides, "record_id"):
        fired = True
        counts = touched_by(sides, pair, sides["record_id"].isin(ids))
        verb = "has" if len(ids) == 1 else "have"
        text = touching(f"{some(len(ids), 'record')} {verb} examples", counts)
        yield violated(text, ids, taint_of(pair), **counts)
    if not fired:
        n = int(sides["record_id"].nunique())
        yield fine(evidence, f"{some(n, 'record')}, each on one side", n)


@rule(
    "duplicate-exact",
    title="No waveform stands on two sides",
    severity="invalidates",
    rationale="The same samples under two record ids are one recording, whatever their patient ids "
    "say. Flat recordings count as well: what was learnt of one is repeated for the other.",
    source="SHA-256 of leads, sampling rate and digital samples, taken when the shards were made",
    catches="the same waveform is on two sides",
    needs="shards; a table's `waveform_sha256`",
)
def duplicate_exact(evidence: Evidence) -> Iterator[Outcome]:
    """Look for one waveform fingerprint on two sides, under different records."""
    sides, records = evidence.known_sides, evidence.records
    if sides is None or records is None:
        yield not_checked(NO_EXAMPLES if sides is None else NO_SHARDS)
        return
    # A record that is itself astride is the business of record-astride.
    counted = sides.groupby("record_id")["split"].transform("size")
    prints = records.set_index("record_id")["waveform_sha256"]
    waves = sides.assign(sha256=sides["record_id"].map(prints))
    fired = False
    for pair, hashes in crossings(waves[counted == 1], "sha256"):
        fired = True
        same = waves["sha256"].isin(hashes)
        counts = touched_by(waves, pair, same)
        here = waves[same & waves["split"].isin(pair)]
        groups = in_order(
            " = ".join(in_order(group)) for group in here.groupby("sha256")["record_id"].unique()
        )
        verb = "lies" if len(hashes) == 1 else "lie"
        text = touching(f"{some(len(hashes), 'waveform')} {verb}", counts)
        yield violated(text, groups, taint_of(pair), **counts)
    lost = waves[waves["sha256"].isna()]
    if len(lost):
        ids = in_order(lost["record_id"].unique())
        text = f"{some(len(ids), 'record')} with examples have no waveform in the shards"
        yield not_checked(text, n=len(ids), ids=ids[:MOST_IDS])
    elif not fired:
        n = int(waves["sha256"].nunique())
        yield fine(evidence, f"{some(n, 'distinct waveform')}, each on one side", n)


@rule(
    "folds-official",
    title="The split is the archive's own",
    severity="weakens",
    rationale="Publishers and the literature state which records train, validate and test. Figures "
    "from any other split do not compare with published ones, and a fold that was changed on the way "
    "hides it.",
    source="the archive's own documents: PTB-XL strat_fold 1-8 / 9 / 10 (Wagner et al. 2020); MIT-BIH "
    "DS1 / DS2 (de Chazal et al. 2004)",
    catches="fold assignment differs from the archive's own",
    needs="shards of an archive that states a split",
)
def folds_official(evidence: Evidence) -> Iterator[Outcome]:
    """Compare the sides with the archive's own split, and the folds with those of the shards."""
    examples, records, shards = evidence.examples, evidence.records, evidence.shards
    if examples is None or records is None or shards is None:
        yield not_checked(NO_EXAMPLES if examples is None else NO_SHARDS)
        return
    rows = examples.drop_duplicates(["record_id", "split", "reason", "strat_fold"])
    rows = rows.merge(records, on="record_id", how="left", suffixes=("", "_own"), indicator=True)
    lost = rows["_merge"] != "both"
    fold, own = (rows[name].astype("Float64") for name in ("strat_fold", "strat_fold_own"))
    differs = ~lost & ((fold != own).fillna(False) | (fold.isna() != own.isna())).astype(bool)
    fired = False
    if differs.any():
        fired = True
        ids = in_order(rows.loc[differs, "record_id"].unique())
        text = f"{some(len(ids), 'record')} with another strat_fold than in the shards"
        yield violated(text, ids, ("validation", "test"))
    official = shards.get("official_split")
    if official is None:
        yield not_checked("the archive states no split of its own")
        return
    by = official["by"]
    column = f"{by}_own" if f"{by}_own" in rows else by
    if column not in rows:
        yield not_checked(f"the archive's split is by {by}, which the shards do not hold")
        return
    for outcome in _misplaced(rows[~lost], column, official):
        fired = True
        yield outcome
    if lost.any():
        ids = in_order(rows.loc[lost, "record_id"].unique())
        text = f"{some(len(ids), 'record')} with examples are not in the shards"
        yield not_checked(text, n=len(ids), ids=ids[:MOST_IDS])
    elif not fired:
        n = int(rows.loc[rows["split"].isin(SPLITS), "record_id"].nunique())
        yield passed(f"{some(n, 'record')} on the side that the archive's {by} gives them", n=n)


def _misplaced(rows: pd.DataFrame, column: str, official: dict[str, Any]) -> Iterator[Outcome]:
    allowed = {split: {str(value) for value in official.get(split) or ()} for split in SPLITS}
    value = rows[column].map(lambda one: "" if pd.isna(one) else _plain(one))
    for split in SPLITS:
        there = rows["split"] == split
        wrong = there & ~value.isin(allowed[split])
        if wrong.any():
            ids = in_order(rows.loc[wrong, "record_id"].unique())
            meant = value[wrong].isin(allowed["test"]).any() or split == "test"
            text = (
                f"{some(len(ids), 'record')} in {split} that the archive's own split puts elsewhere"
            )
            yield violated(text, ids, ("test",) if meant else ("validation",), sides=[split])
    only_test = allowed["test"] - allowed["train"] - allowed["validation"]
    outside = (rows["split"] == "none") & (rows["reason"] == "outside the protocol")
    missed = outside & value.isin(only_test)
    if missed.any():
        ids = in_order(rows.loc[missed, "record_id"].unique())
        text = f"{some(len(ids), 'record')} of the archive's own test side left out of the test"
        yield violated(text, ids, ("test",), sides=["test"])


def _plain(value: Any) -> str:
    """Write 3, 3.0 and "3" alike."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
