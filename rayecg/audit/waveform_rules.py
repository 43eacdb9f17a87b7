"""Rules that look at the waveforms themselves: near copies, made copies, telling neighbours."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from typing import Any

import pandas as pd

from rayecg.audit.copies import LEAST, LEAST_OF_HALF, LEAST_OF_ONE_LEAD, SHOWN, CopySearch, Likeness
from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import MOST_IDS, Outcome, not_checked, passed, rule, violated
from rayecg.audit.neighbours import Vectors, mixtures, probe
from rayecg.audit.split_rules import (
    NO_EXAMPLES,
    NO_SHARDS,
    crossings,
    in_order,
    some,
    taint_of,
    touched_by,
    touching,
)
from rayecg.audit.waveforms import LEAST_S
from rayecg.tasks.task import SPLITS

#: What the lower end of the interval of a 1-NN probe's advantage (macro F1) must exceed.
MARGIN = 0.05
#: Copies on the evaluated side from which they are called made: so many, and this share of it.
LEAST_COPIES, LEAST_SHARE = 5, 0.01
#: Share of an example's length that two parents may leave unexplained. Rounding to the steps of the
#: ADC and to 16-bit floats leaves under 0.01; no example of PTB-XL's or of DS2's side has two parents
#: in training that leave under 0.1.
MOST_LEFT = 0.05
#: Words that programs put to the name of a copy, before or behind the original's.
_MADE = (
    "aug(?:ment(?:ed|ation)?)?|cop(?:y|ied)|dup(?:licate)?|smote|adasyn|over(?:sampled?)?|"
    "resampled?|nois[ye]|flip(?:ped)?|shift(?:ed)?|scaled?|jitter(?:ed)?|warp(?:ed)?|"
    "crop(?:ped)?|mixup|rotated?"
)
_BEHIND = re.compile(rf"(?P<stem>.*\w)[-_. ]+(?:{_MADE})[-_. ]*\d*", re.IGNORECASE)
_BEFORE = re.compile(rf"(?:{_MADE})[-_. ]*\d*[-_. ]+(?P<stem>\w.*)", re.IGNORECASE)


def near_copies(
    search: CopySearch, sides: pd.DataFrame, records: pd.DataFrame
) -> Iterator[tuple[tuple[str, str], list[Likeness]]]:
    """Yield each pair of sides with the pairs of records on them that resemble each other.

    A record that is itself on two sides is the business of `record-astride`, and samples that are the
    same that of `duplicate-exact`.
    """
    counted = sides.groupby("record_id")["split"].transform("size")
    own = sides[counted == 1]
    on = {split: frozenset(own.loc[own["split"] == split, "record_id"]) for split in SPLITS}
    side_of = dict(zip(own["record_id"], own["split"], strict=True))
    sha256 = records.set_index("record_id")["waveform_sha256"].to_dict()
    found: dict[tuple[str, str], list[Likeness]] = {pair: [] for pair in combinations(SPLITS, 2)}
    for queries, among in (
        (on["test"], on["train"] | on["validation"]),
        (on["validation"], on["train"]),
    ):
        for pair in search.between(queries, among):
            same = sha256.get(pair.first) == sha256.get(pair.second)
            if pair.first in sha256 and same:
                continue
            found[side_of[pair.first], side_of[pair.second]].append(pair)
    yield from found.items()


@rule(
    "duplicate-near",
    title="No waveform stands on two sides after gain, lag, crop or resampling",
    severity="invalidates",
    rationale="A recording that was exported twice (in other units, at another rate, cut elsewhere, "
    "with some noise) is one recording under two ids, whatever their patient ids say. Its samples "
    "differ, so that no fingerprint sees it; lined up, the two are one. Recordings of different people "
    "do not come near that, at the same heart rate either: the intervals from beat to beat and the "
    "shapes in several leads differ.",
    source="10-s windows at 50 Hz, 0.5-20 Hz, screened by whitened amplitude spectra, then lined up over "
    "all leads (rayecg/audit/copies.py, with the figures that the threshold rests on); after Barz and "
    "Denzler 2020, Journal of Imaging 6(6):41, who found 3-10 % near duplicates across a published split",
    catches="two records on different sides correlate by 0.95 or more where 10 s overlap, 0.97 where 5 s do "
    "(0.98 on one lead), at the best lag within 5 s; not inverted, renamed or time-stretched copies",
    needs="the shards, with 5 s or more of each record",
)
def duplicate_near(evidence: Evidence) -> Iterator[Outcome]:
    """Line up what resembles each other across sides."""
    sides, records, search = evidence.sides, evidence.records, evidence.copies
    if sides is None or records is None or search is None:
        yield not_checked(NO_EXAMPLES if sides is None else NO_SHARDS)
        return
    closest: Likeness | None = None
    fired = False
    for sides_pair, likenesses in near_copies(search, sides, records):
        for likeness in likenesses[:1]:
            if closest is None or likeness.alignment.correlation > closest.alignment.correlation:
                closest = likeness
        found = [likeness for likeness in likenesses if likeness.is_copy]
        if not found:
            continue
        fired = True
        ids = {record_id for pair in found for record_id in (pair.first, pair.second)}
        counts = touched_by(sides, sides_pair, sides["record_id"].isin(ids))
        text = touching(f"{some(len(found), 'pair')} of near copies, one each", counts)
        best = found[0]
        text += (
            f" (the closest, {best.first} and {best.second}, correlate by "
            f"{best.alignment.correlation:.3f})"
        )
        yield violated(
            text,
            [f"{pair.first} ~ {pair.second}" for pair in found],
            taint_of(sides_pair),
            **counts,
            pairs=[pair.as_evidence() for pair in found[:MOST_IDS]],
        )
    left_out = list(_left_out(evidence, search))
    yield from left_out
    if fired or left_out:
        return
    if _nothing_to_compare(sides):
        yield not_checked("every record is itself on two sides: there are no two sides to compare")
    else:
        windows = search.windows
        near = (
            f"none correlate by {SHOWN}"
            if closest is None
            else f"the closest, {closest.first} and {closest.second}, correlate by "
            f"{closest.alignment.correlation:.3f}"
        )
        limit = (
            f"{LEAST} to {LEAST_OF_HALF}, by how far they overlap ({LEAST_OF_ONE_LEAD} on one lead)"
        )
        text = (
            f"{some(len(windows), 'window')} of {some(len(windows.record_ids), 'record')}: {near}"
        )
        yield passed(
            f"{text}; copies do by {limit}",
            n=len(windows.record_ids),
            pairs=[] if closest is None else [closest.as_evidence()],
        )


def _nothing_to_compare(sides: pd.DataFrame) -> bool:
    """Whether fewer than two sides have records of their own."""
    counted = sides.groupby("record_id")["split"].transform("size")
    return sides.loc[counted == 1, "split"].nunique() < 2


def _left_out(evidence: Evidence, search: CopySearch) -> Iterator[Outcome]:
    """Say which records could not be compared; flat ones are equal to any other flat one."""
    sides = evidence.sides
    used = set() if sides is None else set(sides["record_id"])
    for what, ids in (
        (f"shorter than {LEAST_S:g} s, too short to be told apart", search.windows.short),
        ("not in the shards", search.windows.absent),
    ):
        own = in_order(used & set(ids))
        if own:
            yield not_checked(
                f"{some(len(own), 'record')} with examples: {what}", n=len(own), ids=own[:MOST_IDS]
            )


def stem_of(record_id: str) -> str | None:
    """Give what a record is a copy of by its name; None if the name does not say it is one."""
    found = _BEHIND.fullmatch(record_id) or _BEFORE.fullmatch(record_id)
    return found["stem"] if found else None


@rule(
    "resample-before-split",
    title="No over-sampled or augmented copies stand on two sides",
    severity="invalidates",
    rationale="Rare classes are often over-sampled, by copies, by noise or by mixtures of two examples "
    "(SMOTE), and the lot then divided. The test side then holds what was made of training examples, "
    "and figures rise with the number of copies. Copies belong into training alone, after the split.",
    source="Chawla et al. 2002, J. Artif. Intell. Res. 16:321-357 (SMOTE); Santos et al. 2018, IEEE "
    "Comput. Intell. Mag. 13(4):59-76 (over-sampling before cross-validation)",
    catches="names that say so (`17_aug2`, `copy-17`); one example (record and place) on two sides; copies, "
    "exact or near, of 5 or more records and 1 % of an evaluated side; 5 or more, and 1 %, of its sampled "
    "examples that are mixtures of two training examples. Not: fewer copies, which the rules on "
    "duplicates name; heavy noise (over a third of the RMS), warped time, mixtures of whose parents one "
    "is outside training or the sample",
    needs="the examples and the shards",
)
def resample_before_split(evidence: Evidence) -> Iterator[Outcome]:
    """Look for made copies by name, by row, by waveform and by mixture."""
    sides, examples, records = evidence.sides, evidence.examples, evidence.records
    if sides is None or examples is None:
        yield not_checked(NO_EXAMPLES)
        return
    outcomes = [*_by_name(sides), *_by_row(examples)]
    search, vectors = evidence.copies, evidence.vectors
    if records is None or search is None or vectors is None:
        yield from outcomes
        yield not_checked(f"{NO_SHARDS}: only names and rows were looked at")
        return
    outcomes += [*_by_waveform(sides, records, search), *_by_mixture(vectors)]
    yield from outcomes
    short = [*_left_out(evidence, search)]
    yield from short
    if not outcomes and not short:
        yield passed(
            f"no copies by name among {some(sides['record_id'].nunique(), 'record')}, by row among "
            f"{some(len(examples), 'example')}, in number by waveform, or by mixture among "
            f"{some(len(vectors.rows), 'sampled example')}"
        )


def _by_name(sides: pd.DataFrame) -> Iterator[Outcome]:
    stem = sides["record_id"].map(stem_of)
    if "copy_of" in sides:  # somebody else's table may say so
        stem = sides["copy_of"].fillna(stem)
    family = sides.assign(family=stem.fillna(sides["record_id"]))
    made = set(stem.dropna())
    family = family[family["family"].isin(made)]
    # One record on two sides is no copy: it is the business of record-astride.
    several = family.groupby("family")["record_id"].transform("nunique") > 1
    for pair, names in crossings(family[several], "family"):
        own = family[family["family"].isin(names)]
        counts = touched_by(sides, pair, sides["record_id"].isin(own["record_id"]))
        verb = "has" if len(names) == 1 else "have"
        text = touching(f"{some(len(names), 'record')} {verb} copies by name", counts)
        yield violated(text, names, taint_of(pair), **counts, how="name")


def _by_row(examples: pd.DataFrame) -> Iterator[Outcome]:
    used = examples[examples["split"].isin(SPLITS)]
    keys = used["record_id"].astype(str) + " at " + used["offset"].astype(str)
    rows = used.assign(row=keys, n_examples=1)
    for pair, names in crossings(rows, "row"):
        counts = touched_by(rows, pair, rows["row"].isin(names))
        verb = "stands" if len(names) == 1 else "stand"
        text = touching(f"{some(len(names), 'example')} {verb}", counts)
        yield violated(text, names, taint_of(pair), **counts, how="row")


def _by_waveform(
    sides: pd.DataFrame, records: pd.DataFrame, search: CopySearch
) -> Iterator[Outcome]:
    """Count exact and near copies together: a few are an archive's accidents, many were made."""
    counted = sides.groupby("record_id")["split"].transform("size")
    prints = records.set_index("record_id")["waveform_sha256"]
    waves = sides[counted == 1].assign(sha256=lambda own: own["record_id"].map(prints))
    exact = dict(crossings(waves, "sha256"))
    for pair, likenesses in near_copies(search, sides, records):
        copies = {found.second for found in likenesses if found.is_copy}
        there = waves[waves["split"] == pair[1]]
        copies |= set(there.loc[there["sha256"].isin(exact.get(pair, [])), "record_id"])
        if len(copies) < max(LEAST_COPIES, LEAST_SHARE * len(there)):
            continue
        counts = touched_by(sides, pair, sides["record_id"].isin(copies))
        text = touching(f"so many waveforms lie, or copies of them ({len(copies)}),", counts)
        yield violated(text, in_order(copies), taint_of(pair), **counts, how="waveform")


def _by_mixture(vectors: Vectors) -> Iterator[Outcome]:
    for side in ("validation", "test"):
        found = mixtures(vectors, side, MOST_LEFT)
        n = len(vectors.of(side))
        if len(found) < max(LEAST_COPIES, LEAST_SHARE * n):
            continue
        names = (vectors.rows["record_id"] + " at " + vectors.rows["offset"].astype(str)).tolist()
        text = (
            f"{len(found):,} of {n:,} sampled {side} examples are mixtures of two training examples, "
            f"to {MOST_LEFT:.0%} of their size"
        )
        ids = [f"{names[example]} of {names[a]}, {names[b]}" for example, a, b, _ in found]
        yield violated(
            text, ids, (side,), sides=["train", side], n_examples=len(found), of=n, how="mixture"
        )


@rule(
    "nearest-neighbour",
    title="The nearest training example tells no more than another patient's would",
    severity="invalidates",
    rationale="To copy the label of the nearest training example does as well on a side of new patients "
    "as it does among the training patients when the neighbour must be another one. Where it does "
    "clearly better, the side holds the training patients, under whatever ids, and a network can do the "
    "same: as in splits over beats, whose 99 % are those of one nearest neighbour.",
    source="macro F1 of 1-NN labels, across the split against leave-one-patient-out in training, with its "
    "interval over patients (rayecg/audit/neighbours.py); Luz et al. 2016, Computer Methods and Programs "
    "in Biomedicine 127:144-164",
    catches="the lower end of the 95 % interval of the difference in macro F1 is above 0.05",
    needs="the examples with their patients, and the shards",
)
def nearest_neighbour(evidence: Evidence) -> Iterator[Outcome]:
    """Compare a 1-NN probe across the split with one between training patients."""
    vectors, records = evidence.vectors, evidence.records
    if evidence.examples is None or records is None or vectors is None:
        yield not_checked(NO_EXAMPLES if evidence.examples is None else NO_SHARDS)
        return
    patients = vectors.rows["record_id"].map(records.set_index("record_id")["patient_id"])
    if patients.isna().any():
        n = vectors.rows.loc[patients.isna(), "record_id"].nunique()
        yield not_checked(f"{some(int(n), 'record')} with examples have no patient id", n=int(n))
        return
    patients_N = patients.to_numpy(dtype=str)
    n_training = len(set(patients_N[vectors.of("train")]))
    if n_training < 2:
        yield not_checked(f"{some(n_training, 'training patient')}: none can stand for another")
        return
    fine: list[str] = []
    shown: list[dict[str, Any]] = []
    for side in ("validation", "test"):
        if not len(vectors.of(side)):
            continue
        found = probe(vectors, patients_N, side)
        figures = (
            f"1-NN macro F1 {found.across:.3f} on {side}, {found.within:.3f} between training patients "
            f"(difference {found.across - found.within:+.3f}, 95 % interval {found.low:+.3f} to "
            f"{found.high:+.3f})"
        )
        counts = {
            "sides": ["train", side],
            "across": round(found.across, 4),
            "within": round(found.within, 4),
            "interval": [round(found.low, 4), round(found.high, 4)],
            "n_patients": len(set(patients_N[vectors.of(side)])),
            "n_sampled": found.n_across,
            "of": vectors.n_examples[side],
        }
        if found.low > MARGIN:
            yield violated(figures, (), (side,), **counts)
        else:
            fine.append(figures)
            shown.append(counts)
    if fine:
        yield passed("; ".join(fine), probes=shown)
