"""Rules about the data: which release, what metadata give away, what networks read and knew before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated
from rayecg.audit.metadata import (
    DEVICE_LIKE,
    PHYSIOLOGY,
    LabelProbe,
    determines,
    probe_labels,
    varying,
)
from rayecg.audit.run_rules import each_card
from rayecg.audit.split_rules import NO_EXAMPLES, NO_SHARDS
from rayecg.audit.waveforms import shard_leads
from rayecg.core.errors import DataError
from rayecg.core.experiment import STANDARD_LEADS, InputSettings
from rayecg.core.files import read_json, read_table

#: AUROC from which metadata alone are said to give a label away: halfway from chance to certainty.
#: Device and site of PTB-XL reach 0.63 to 0.71 on its superclasses.
GIVEN_AWAY = 0.75
#: Words of a column's name that say that it is a label, or what was written once it was known.
FORBIDDEN = frozenset(
    [
        "code",
        "codes",
        "diagnosis",
        "diagnoses",
        "diagnostic",
        "dx",
        "finding",
        "findings",
        "fold",
        "heart_axis",
        "icd",
        "infarction_stadium",
        "infarction_stadium1",
        "infarction_stadium2",
        "interpretation",
        "label",
        "labels",
        "likelihood",
        "likelihoods",
        "opinion",
        "outcome",
        "patient_id",
        "prediction",
        "probability",
        "record_id",
        "report",
        "scp",
        "scp_codes",
        "second_opinion",
        "split",
        "statement",
        "statements",
        "strat_fold",
        "superclass",
        "target",
        "targets",
        "validated",
        "validated_by",
    ]
)
#: Archives that hold another one's records, by their kinds.
HOLDS = {"cinc": ("ptbxl", "incart", "ptb", "cpsc2018", "georgia", "chapman", "ningbo")}


@rule(
    "archive-version",
    title="The archive is a known release, or is called a subset",
    severity="weakens",
    rationale="Releases of one archive differ in their records (PTB-XL: 21,837, 21,801, 21,799), and many "
    "figures rest on a part of one. They do not compare with figures on the whole, and a reader cannot "
    "tell from the name.",
    source="n_input of the shards' manifest against the counts of the publishers' releases "
    "(`releases` of each archive kind); PhysioNet, PTB-XL 1.0.3 release notes",
    catches="the number of records is that of no release, and neither archive.subset nor archive.limit is "
    "set; or it is larger than any release's",
    needs="the shards' manifest",
)
def archive_version(evidence: Evidence) -> Iterator[Outcome]:
    """Compare the number of records with the releases'."""
    shards = evidence.shards
    if shards is None:
        yield not_checked(NO_SHARDS)
        return
    settings, n = shards["archive"], int(shards["n_input"])
    kind = settings["kind"]
    if shards.get("synthetic"):
        yield passed(f"{n:,} simulated records, of which there is no release", n=n)
        return
    releases: Mapping[str, int] | None = shards.get("releases")
    if not releases:
        why = "no release is published" if releases is not None else "the shards state no release"
        yield not_checked(f"{n:,} records: {why} of an archive of kind {kind!r}", n=n)
        return
    same = [name for name, count in releases.items() if count == n]
    known = ", ".join(f"{name}: {count:,}" for name, count in releases.items())
    limited = f"the first {n:,} (archive.limit)" if settings.get("limit") == n else None
    part = settings.get("subset") or limited
    taints = ("validation", "test")
    if same:
        yield passed(f"{n:,} records, as {kind} {' and '.join(same)} has", n=n)
    elif n > max(releases.values()):
        yield violated(f"{n:,} records, more than any release of {kind} has ({known})", (), taints)
    elif part is None:
        text = (
            f"{n:,} records, as no release of {kind} has ({known}), and it is not called a subset"
        )
        yield violated(f"{text} (archive.subset)", (), taints)
    else:
        yield passed(f"{n:,} records, called a subset: {part} ({known})", n=n)


@rule(
    "metadata-shortcut",
    title="Site, device and form of the recordings do not give the labels away",
    severity="weakens",
    rationale="Where the sick were recorded in one hospital or with one machine and the healthy in another, "
    "a network may read the machine from noise, filters and resolution, and its figures do not carry over "
    "to a place where that differs. Age and sex do bear on disease; what they reach alone is said beside, "
    "and is no violation.",
    source="Zech et al. 2018, PLoS Medicine 15(11):e1002683; DeGrave et al. 2021, Nature Machine "
    "Intelligence 3:610-619. Logistic regression on metadata alone, fitted on training",
    catches="a label's AUROC from metadata alone (site, device, rate, leads, length, gain, baseline, sample "
    "type, reading flags) is above 0.75 on an evaluated side, with 95 % certainty over patients and for all "
    "labels together",
    needs="the examples and the shards; a table's `site`, `device`, and its training rows",
)
def metadata_shortcut(evidence: Evidence) -> Iterator[Outcome]:
    """Rank the labels by metadata alone."""
    examples, metadata = evidence.examples, evidence.acquisition
    if examples is None or metadata is None:
        yield not_checked(NO_EXAMPLES if examples is None else NO_SHARDS)
        return
    used = metadata[metadata["record_id"].isin(examples["record_id"])]
    if not examples["split"].eq("train").any():
        yield not_checked("there are no training examples to fit metadata to")
        return
    columns, person = (varying(used, names) for names in (DEVICE_LIKE, PHYSIOLOGY))
    fine = []
    for side in ("validation", "test"):
        if not examples["split"].eq(side).any():
            continue
        found = probe_labels(examples, metadata, columns, side) if columns else []
        context = probe_labels(examples, metadata, person, side) if person else []
        given = [each for each in found if each.low > GIVEN_AWAY]
        beside = f"; {' and '.join(person)} alone: {_best(context)}" if context else ""
        if given:
            text = f"{', '.join(columns)} alone rank {_listed(given)} on {side}{beside}"
            yield violated(
                text,
                [each.label for each in given],
                (side,),
                sides=["train", side],
                auroc={each.label: round(each.auroc, 4) for each in found},
            )
        elif found:
            fine.append(f"{', '.join(columns)} alone on {side}: at most {_best(found)}{beside}")
    if not columns:
        yield passed("site, device and form are the same, or unknown, for all records")
    elif fine:
        yield passed("; ".join(fine))


def _best(found: Iterable[LabelProbe]) -> str:
    best = max(found, key=lambda each: each.auroc)
    return f"AUROC {best.auroc:.2f} ({best.label})"


def _listed(found: Iterable[LabelProbe]) -> str:
    return ", ".join(
        f"{each.label} with AUROC {each.auroc:.2f} (above {each.low:.2f})" for each in found
    )


@rule(
    "forbidden-input",
    title="No label, report or code is among the inputs",
    severity="invalidates",
    rationale="A report, a code or an axis that a physician wrote down once the diagnosis was known holds the "
    "label in other words; so does a column that happens to have one value for each label. A network that "
    "reads it classifies the text and not the recording.",
    source="input of each checkpoint's card, the columns of the shards; Kapoor and Narayanan 2023, Patterns "
    "4(9):100804 (illegitimate features)",
    catches="an input whose name says that it is a label, a report or a code, or a column of the records among "
    "the inputs whose values determine a label. Inputs that are neither leads, age, sex nor features of the "
    "signal are not checked",
    needs="each run's card with its input (leads, metadata, features, columns)",
)
def forbidden_input(evidence: Evidence) -> Iterator[Outcome]:
    """Read what each run takes in."""
    leads = set() if evidence.shards is None else shard_leads(evidence.shards_folder)
    known = _known_inputs() | {lead.lower() for lead in leads}
    told = _determining(evidence)

    def look(_: str, card: dict[str, Any]) -> str | None:
        if "members" in card:  # it reads what they read, and each is looked at
            return None
        names = _inputs(card)
        wrong = [name for name in names if _words(name) & FORBIDDEN]
        if wrong:
            return f"reads {', '.join(wrong)}"
        given = [f"{name}, which determines {told[name]}" for name in names if name in told]
        if given:
            return f"reads {'; '.join(given)}"
        strange = [name for name in names if name.lower() not in known]
        if strange:
            raise KeyError(strange[0])  # nobody knows what it is
        return None

    fine = "read leads, features of them, age and sex, or less"
    silence = "do not say what they read, or read what is not known to be allowed"
    yield from each_card(evidence, look, fine, silence)


def _inputs(card: Mapping[str, Any]) -> list[str]:
    """Name what a card says that the network reads; KeyError if it does not say."""
    stated = card["input"]
    names = [*stated["leads"]] if "columns" not in stated else [*stated["columns"]]
    return [*names, *stated.get("metadata", ()), *stated.get("features", ())]


def _known_inputs() -> set[str]:
    hints = get_type_hints(InputSettings)
    allowed = [
        name for field in ("metadata", "features") for name in get_args(get_args(hints[field])[0])
    ]
    return {name.lower() for name in (*allowed, *STANDARD_LEADS)}


def _words(name: str) -> set[str]:
    """Give a name, its words, and each two of them in a row, in lower case."""
    words = [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]
    joined = {"_".join(words[i : i + n]) for n in (1, 2) for i in range(len(words) - n + 1)}
    return {*joined, *words, "_".join(words)}


def _determining(evidence: Evidence) -> dict[str, str]:
    """Name columns of the records that determine a label, with that label."""
    examples, records = evidence.examples, evidence.records
    if examples is None or records is None:
        return {}
    columns = [name for name in ("age", "sex", "site", "device") if name in records]
    rows = examples[examples["split"] != "none"].merge(
        records[["record_id", *columns]], on="record_id", suffixes=("_example", "")
    )
    targets = [name for name in rows if str(name).startswith("target_")]
    return {
        column: str(target).removeprefix("target_")
        for column in columns
        for target in targets
        # The beats of one record share what is said of it: they are one witness, or contradict it.
        if determines(
            *(rows.drop_duplicates(["record_id", target])[name] for name in (column, target))
        )
    }


@rule(
    "pretraining-overlap",
    title="No network saw the test records before it was trained",
    severity="invalidates",
    rationale="Weights that were pretrained, with labels or without, on the records that they are later "
    "tested on know these records. Large collections hold the smaller archives whole (the challenge "
    "collections hold PTB-XL), so that an archive's name is enough for doubt.",
    source="training.pretraining of each checkpoint's card (archives, record_ids, waveform_sha256, "
    "manifest); Kapoor and Narayanan 2023, Patterns 4(9):100804; Alday et al. 2020, Physiol. Meas. "
    "41:124003 (what the challenge collections hold)",
    catches="a card states pretraining on records or waveforms of the test side; or on the benchmark's "
    "archive, or one that holds it, without listing the records",
    needs="each run's card with training.pretraining (null: weights start at random)",
)
def pretraining_overlap(evidence: Evidence) -> Iterator[Outcome]:
    """Compare what each run says it was pretrained on with the test side."""
    examples = evidence.examples
    if examples is None:
        runs = [f"run:{run}" for run in evidence.cards]
        yield not_checked(NO_EXAMPLES, runs or ("validation", "test"))
        return
    tested = set(examples.loc[examples["split"] == "test", "record_id"])
    records = evidence.records
    prints = (
        set()
        if records is None
        else set(records.loc[records["record_id"].isin(tested), "waveform_sha256"].dropna())
    )
    own = _archive_names(evidence.shards)

    def look(_: str, card: dict[str, Any]) -> str | None:
        stated = card["training"]["pretraining"]
        if stated is None:
            return None
        return _overlap(_listed_in(stated, evidence.work), stated, tested, prints, own)

    fine = "weights start at random, or were pretrained on none of the test records"
    yield from each_card(evidence, look, fine)


def _overlap(
    listed: Mapping[str, set[str]],
    stated: Mapping[str, Any],
    tested: set[str],
    prints: set[str],
    own: set[str],
) -> str | None:
    """Say what of the test side was pretrained on; KeyError if that cannot be known."""
    same = listed["waveform_sha256"] & prints
    if same:
        return f"pretrained on {len(same):,} of the {len(prints):,} test waveforms"
    archives = {_plain(name) for name in stated.get("archives") or ()}
    held = archives | {part for name in archives for part in HOLDS.get(name, ())}
    shared = archives & own or held & own or archives & {p for n in own for p in HOLDS.get(n, ())}
    ids = listed["record_ids"]
    # Another archive may give the same ids to other records.
    if ids & tested and (shared or not archives or not own):
        return f"pretrained on {len(ids & tested):,} of the {len(tested):,} test records"
    if shared and not ids:
        return f"pretrained on {', '.join(sorted(shared))} without saying on which records"
    if not archives and not ids and not listed["waveform_sha256"]:
        raise KeyError("pretraining")  # on something, and nobody says on what
    return None


def _listed_in(stated: Mapping[str, Any], work: Path) -> dict[str, set[str]]:
    """Gather the records and waveforms that a card, or the manifest it names, lists."""
    found = {
        name: {str(one) for one in stated.get(name) or ()}
        for name in ("record_ids", "waveform_sha256")
    }
    manifests = stated.get("manifest") or ()
    for manifest in [manifests] if isinstance(manifests, str) else manifests:
        more = _manifest(work / manifest)
        found = {name: ids | more[name] for name, ids in found.items()}
    return found


def _manifest(file: Path) -> dict[str, set[str]]:
    if not file.exists():
        raise KeyError("manifest")
    if file.suffix == ".json":
        told: Mapping[str, Any] = read_json(file)
        lists = {name: told.get(name) or () for name in ("record_ids", "waveform_sha256")}
    else:
        table = read_table(file)
        columns = {"record_ids": "record_id", "waveform_sha256": "waveform_sha256"}
        lists = {
            name: table[column].to_pylist() if column in table.column_names else ()
            for name, column in columns.items()
        }
    if not any(lists.values()):
        raise DataError(
            f"{file}: expected record_ids or waveform_sha256 of the pretraining, found neither"
        )
    return {name: {str(one) for one in ids} for name, ids in lists.items()}


def _archive_names(shards: Mapping[str, Any] | None) -> set[str]:
    """Give the archive's kind and the name of its folder, as names are compared."""
    if shards is None:
        return set()
    archive = shards["archive"]
    names = {_plain(archive["kind"]), _plain(str(archive.get("path") or "").rpartition("/")[2])}
    return names - {"", "wfdb"}


def _plain(name: str) -> str:
    """Write PTB-XL, ptb_xl and ptbxl alike."""
    return re.sub(r"[^a-z0-9]", "", str(name).lower())
