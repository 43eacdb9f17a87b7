"""What a scored archive comes to, on one page: rates, statuses, labels, and shift against training.

Tables stream through: one of them is in memory at a time, and what is kept are counts.

Legend: N row, C label, K bin of the reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayecg.core.errors import DataError
from rayecg.core.predictions import STATUSES, stack_output
from rayecg.score.shift import (
    AS_BEFORE,
    CHANCE,
    DIFFERENCE,
    FEWEST,
    PSI_LARGE,
    PSI_SOME,
    flag_shift,
    percent,
    rounded,
    score_shift,
    share_of,
)

#: Bins of the probabilities' histogram: quantiles are known to half a bin, 0.0005.
N_BINS = 1000
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Summary = dict[str, Any]


def summarise(
    tables: Iterable[pa.Table],
    card: Mapping[str, Any],
    facts: Mapping[str, Any],
    windows: Iterable[pa.Table] = (),
) -> Summary:
    """Sum up predictions.

    Parameters
    ----------
    tables
        Parts of `predictions/`, in order; see `rayecg.core.predictions`.
    card
        Of the checkpoint. Without `training.reference` nothing is said of shift.
    facts
        What the tables do not know, kept as it is: `seconds`, `actors`, `n_input` (the records of the
        source), `n_scored` (how many of them these seconds scored, where a job was continued),
        `synthetic` (whether the recordings are).
    windows
        Parts of `windows/`: a beat-wise checkpoint decides on beats, and its labels are theirs.

    Returns
    -------
    Summary
        What `summary.json` holds; `to_markdown` makes a page of it.

    Raises
    ------
    DataError
        If the statuses do not add up to the rows, or these not to `n_input`.
    """
    task, reference = card["task"], card.get("training", {}).get("reference") or {}
    beats = task["unit"] == "beat"
    scores = reference.get("scores") or {}
    recordings, answers = _Recordings(), _Answers(task["labels"], scores)
    for table in tables:
        recordings.add(table)
        if not beats:
            answers.add(table)
    for table in windows if beats else ():
        answers.add(table)
    n_rows = recordings.n_rows
    expected = facts.get("n_input", n_rows)
    if sum(recordings.statuses[status] for status in STATUSES) != n_rows or n_rows != expected:
        raise DataError(
            f"predictions: expected {expected} rows, each {', '.join(STATUSES)}, "
            f"came {n_rows}: {dict(recordings.statuses)}"
        )
    seconds = facts.get("seconds")
    rate = facts.get("n_scored", n_rows) / seconds if seconds else None
    quality = reference.get("quality")
    labels = answers.labels()
    flags = flag_shift(recordings.flags, recordings.n_read, quality)
    return {
        "architecture": card.get("architecture"),
        "task": task["name"],
        "run": {**facts, "records_per_s": rounded(rate)},
        "n_input": n_rows,
        "statuses": {status: recordings.statuses[status] for status in STATUSES},
        "abstained": recordings.abstained,
        "errors": _with_first(recordings.errors, recordings.first_error),
        "limits": _with_first(recordings.limits, recordings.first_limit),
        "recordings": {
            "n_read": recordings.n_read,
            "leads": dict(recordings.leads.most_common()),
            "fs": {f"{fs:g}": n for fs, n in sorted(recordings.rates.items())},
            "shortest_s": rounded(recordings.shortest),
            "longest_s": rounded(recordings.longest),
            "any_flag": share_of(recordings.flagged, recordings.n_read),
            "flags": flags,
        },
        "answers": {"of": "beats" if beats else "records", "labels": labels},
        "looks": _looks(labels, flags, recordings, quality),
        "notes": _notes(scores, quality, answers, recordings),
        "intended_use": card.get("limits", {}).get("intended_use"),
    }


class _Recordings:
    """Counts what became of records, and what kind they are."""

    def __init__(self) -> None:
        self.n_rows = self.n_read = self.abstained = self.flagged = 0
        self.statuses: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.limits: Counter[str] = Counter()
        self.flags: Counter[str] = Counter()
        self.leads: Counter[str] = Counter()
        self.rates: Counter[float] = Counter()
        self.first_error: dict[str, tuple[str, str]] = {}
        self.first_limit: dict[str, tuple[str, str]] = {}
        self.shortest, self.longest = np.inf, -np.inf

    def add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        ids = table["record_id"].combine_chunks()
        self.n_rows += table.num_rows
        self.statuses.update(_counts(table["status"]))
        self.abstained += pc.sum(table["abstain"]).as_py() or 0
        codes = table["error_code"].combine_chunks()
        for code, n in _counts(codes).items():
            self.errors[code] += n
            row = pc.index(codes, code).as_py()
            self.first_error.setdefault(code, (ids[row].as_py(), table["error"][row].as_py() or ""))
        for name, (n, row, text) in _named(table["limits"]).items():
            self.limits[name] += n
            self.first_limit.setdefault(name, (ids[row].as_py(), text))
        read = table.filter(table["fs"].is_valid())
        self.n_read += read.num_rows
        self.flags.update({name: n for name, (n, _, _) in _named(read["flags"]).items()})
        self.flagged += pc.sum(pc.greater(pc.list_value_length(read["flags"]), 0)).as_py() or 0
        self.leads.update(_counts(pc.binary_join(read["leads"], " ")))
        self.rates.update(_counts(read["fs"]))
        if read.num_rows:
            ends = pc.min_max(pc.divide(read["n_times"].cast(pa.float64()), read["fs"]))
            self.shortest = min(self.shortest, ends["min"].as_py())
            self.longest = max(self.longest, ends["max"].as_py())


class _Answers:
    """Adds up the labels of what was decided: probabilities without a decision are no answers."""

    def __init__(self, labels: list[str], scores: Mapping[str, Any]) -> None:
        self.names, self.n_reference = labels, scores.get("n_examples", 0)
        self.references = [scores.get("labels", {}).get(label) for label in labels]
        n = len(labels)
        self.n_C, self.positive_C, self.calibrated_C = (
            np.zeros(n, int),
            np.zeros(n, int),
            np.zeros(n),
        )
        self.histogram_C = np.zeros((n, N_BINS), dtype=np.int64)
        self.count_CK = [
            np.zeros(len(own["edges"]) + 1, dtype=np.int64) if own else None
            for own in self.references
        ]

    def add(self, table: pa.Table) -> None:
        if not table.num_rows:
            return
        p_NC, calibrated_NC, decision_NC = (
            stack_output(table, name, self.names)
            for name in ("probability", "calibrated", "decision")
        )
        decided_NC = ~np.isnan(decision_NC) & ~np.isnan(p_NC)
        self.n_C += decided_NC.sum(axis=0)
        self.positive_C += ((decision_NC == 1) & decided_NC).sum(axis=0)
        self.calibrated_C += np.where(decided_NC, calibrated_NC, 0.0).sum(axis=0)
        for c, own in enumerate(self.references):
            p_N = p_NC[decided_NC[:, c], c]
            bins_N = np.minimum((p_N * N_BINS).astype(int), N_BINS - 1)
            self.histogram_C[c] += np.bincount(bins_N, minlength=N_BINS)
            count_K = self.count_CK[c]
            if own is not None and count_K is not None:
                # Against the reference's own edges, so that shift has no resolution of bins.
                place_N = np.searchsorted(own["edges"], p_N, side="left")
                count_K += np.bincount(place_N, minlength=len(count_K))

    def labels(self) -> dict[str, Any]:
        """Give the figures of every label."""
        found = {}
        for c, label in enumerate(self.names):
            n, own, count_K = int(self.n_C[c]), self.references[c], self.count_CK[c]
            positive, shift = share_of(int(self.positive_C[c]), n), None
            if own is not None and count_K is not None:
                growth = (positive or 0.0) - own["positive"]
                shift = {
                    **score_shift(count_K, own["shares"], self.n_reference, growth),
                    "positive_reference": own["positive"],
                    "prevalence_reference": own["prevalence"],
                }
            found[label] = {
                "n_decided": n,
                "positive": positive,
                "calibrated_mean": rounded(self.calibrated_C[c] / n) if n else None,
                "quantiles": _quantiles(self.histogram_C[c]),
                "shift": shift,
            }
        return found


def _looks(
    labels: Mapping[str, Any],
    flags: Mapping[str, Any],
    found: _Recordings,
    quality: Mapping[str, Any] | None,
) -> list[str]:
    """List what differs from training, in words."""
    looks = []
    for label, own in labels.items():
        shift = own["shift"]
        if shift and shift["psi"] is not None and shift["reading"] != AS_BEFORE:
            looks.append(
                f"{label}: the distribution of its probabilities is {shift['reading']} "
                f"(PSI {shift['psi']:.2f}, KS {shift['ks']:.2f}); decided positive are "
                f"{percent(own['positive'])} here, {percent(shift['positive_reference'])} there"
            )
    looks += [own["reading"] for own in flags.values() if own.get("reading")]
    if quality:
        rates = {f"{fs:g} Hz": n for fs, n in found.rates.items()}
        for what, counts, known in (
            ("sampling rate", rates, {f"{fs} Hz" for fs in quality["fs"]}),
            ("set of leads", found.leads, set(quality["leads"])),
        ):
            new = {name: n for name, n in counts.items() if name not in known}
            if new:
                most = max(new, key=lambda name: new[name])
                looks.append(
                    f"{what}: {sum(new.values()):,} recordings have one that was not seen in "
                    f"training, most often {most}"
                )
    return looks


def _notes(
    scores: Mapping[str, Any],
    quality: Mapping[str, Any] | None,
    answers: _Answers,
    found: _Recordings,
) -> list[str]:
    notes = []
    if not scores:
        notes.append("The card has no reference of scores: nothing can be said of their shift.")
    elif 0 < answers.n_C.max(initial=0) < FEWEST or answers.n_reference < FEWEST:
        notes.append(f"With fewer than {FEWEST} decisions, nothing is said of shift.")
    if not quality or not quality["measured"]:
        notes.append("The card has no reference of quality: flags cannot be compared.")
    elif min(found.n_read, quality["n_records"]) < FEWEST:
        notes.append(f"With fewer than {FEWEST} recordings, nothing is said of flags.")
    if not answers.n_C.any():
        notes.append("Nothing was decided.")
    return notes


def to_markdown(summary: Summary) -> str:
    """Give the page of a summary."""
    n, statuses, run = summary["n_input"], summary["statuses"], summary["run"]
    lines = [f"# {n:,} records scored by {summary['architecture']}", ""]
    meaning = {
        "ok": "answered",
        "degraded": "a probability, but no decision: a limit of the checkpoint is broken",
        "quarantined": "no probability",
    }
    rows = [[s, f"{k:,}", percent(share_of(k, n)), meaning[s]] for s, k in statuses.items()]
    lines += _table(["status", "records", "share", "meaning"], rows)
    if run["records_per_s"] is not None:
        lines += [_speed(run, n), ""]
    if run.get("synthetic"):
        lines += ["The recordings are synthetic: these figures say nothing of patients.", ""]
    lines += ["## Differs from training", ""]
    lines += [f"- {_plain(look)}" for look in summary["looks"]] or ["Nothing that was compared."]
    lines += [*(f"- {note}" for note in summary["notes"]), ""]
    lines += _labels_page(summary["answers"])
    if summary["errors"] or summary["limits"]:
        lines += ["## Why there is no answer", ""]
        rows = [
            [status, name, f"{own['n']:,}", _code(own["record_id"]), _code(own["text"])]
            for status, group in (("quarantined", "errors"), ("degraded", "limits"))
            for name, own in summary[group].items()
        ]
        lines += _table(["status", "reason", "records", "the first", "it says"], rows)
    lines += _recordings_page(summary["recordings"])
    lines += [
        "---",
        "",
        f"PSI: population stability index against the validation scores; {PSI_SOME} (some) and "
        f"{PSI_LARGE} (large) are conventions, and it is told only where chance makes as much in less "
        f"than {percent(CHANCE)} of cases. KS: largest difference of cumulative shares. Flags are told "
        f"from {100 * DIFFERENCE:g} percentage points on. Quantiles are exact to {0.5 / N_BINS:g}.",
    ]
    if summary["intended_use"]:
        lines += ["", f"Intended use: {summary['intended_use']}"]
    return "\n".join(lines) + "\n"


def _speed(run: Mapping[str, Any], n: int) -> str:
    """Say how fast it was: time is of the last start, which need not have scored all."""
    scored = run.get("n_scored", n)
    part = f"The last start scored {scored:,} of {n:,} records: " if scored < n else ""
    actors = f", {run['actors']} actors" if run.get("actors") else ""
    return f"{part}{_amount(run['records_per_s'])} records/s, {_amount(run['seconds'])} s{actors}."


def _labels_page(answers: Mapping[str, Any]) -> list[str]:
    labels, of = answers["labels"], answers["of"]
    lines = [f"## Labels, of decided {of}", ""]
    if not any(own["n_decided"] for own in labels.values()):
        return [*lines, f"There are no decided {of}, so no label has figures.", ""]
    heads = [
        *("label", "decided", "positive", "positive in validation", "prevalence in validation"),
        *("mean calibrated", "5 %, median, 95 %", "PSI", "KS", "distribution of probabilities"),
    ]
    return lines + _table(heads, [_label_row(label, own) for label, own in labels.items()])


def _label_row(label: str, own: Mapping[str, Any]) -> list[str]:
    shift, points = own["shift"] or {}, own["quantiles"] or {}
    spread = ", ".join(f"{points[str(q)]:.3f}" for q in (0.05, 0.5, 0.95)) if points else "-"
    return [
        _plain(label),
        f"{own['n_decided']:,}",
        percent(own["positive"]),
        percent(shift.get("positive_reference")),
        percent(shift.get("prevalence_reference")),
        _figure(own["calibrated_mean"], 3),
        spread,
        _figure(shift.get("psi"), 2),
        _figure(shift.get("ks"), 2),
        shift.get("reading", "no reference"),
    ]


def _recordings_page(own: Mapping[str, Any]) -> list[str]:
    lines = ["## Recordings", ""]
    if not own["n_read"]:
        return [*lines, "None could be read.", ""]
    rates = ", ".join(f"{fs} Hz ({n:,})" for fs, n in own["fs"].items())
    layouts = [f"{_plain(leads)} ({n:,})" for leads, n in list(own["leads"].items())[:3]]
    more = f" and {len(own['leads']) - 3} other sets" if len(own["leads"]) > 3 else ""
    length = " to ".join(dict.fromkeys(f"{own[end]:g}" for end in ("shortest_s", "longest_s")))
    lines += [f"{rates}; {length} s; leads {'; '.join(layouts)}{more}.", ""]
    if own["flags"]:
        rows = [
            [_plain(name), f"{f['n']:,}", percent(f["share"]), percent(f.get("reference"))]
            for name, f in own["flags"].items()
        ]
        lines += _table(["flag", "recordings", "share", "in training"], rows)
    return lines


def _counts(column: Any) -> dict[Any, int]:
    """Count what is not null."""
    pairs = pc.value_counts(column.drop_null()).to_pylist()
    return {pair["values"]: pair["counts"] for pair in pairs}


def _named(column: pa.ChunkedArray) -> dict[str, tuple[int, int, str]]:
    """Count the rows with each name of a list of `name` or `name:detail`; with the first and its text."""
    lists = column.combine_chunks()
    texts, rows = pc.list_flatten(lists).to_pylist(), pc.list_parent_indices(lists).to_pylist()
    found: dict[str, dict[int, str]] = {}
    for text, row in zip(texts, rows, strict=True):
        found.setdefault(text.partition(":")[0], {}).setdefault(row, text)
    return {name: (len(own), *next(iter(own.items()))) for name, own in found.items()}


def _with_first(
    counts: Counter[str], first: Mapping[str, tuple[str, str]]
) -> dict[str, dict[str, Any]]:
    return {
        name: {"n": n, "record_id": first[name][0], "text": first[name][1]}
        for name, n in counts.most_common()
    }


def _quantiles(count_K: np.ndarray) -> dict[str, float] | None:
    """Give the middles of the bins that hold the quantiles."""
    total = count_K.sum()
    if not total:
        return None
    places = np.searchsorted(np.cumsum(count_K), np.array(QUANTILES) * total)
    return {str(q): (k + 0.5) / N_BINS for q, k in zip(QUANTILES, places, strict=True)}


def _amount(value: float) -> str:
    """Give four digits; from a thousand on, all before the point."""
    return f"{value:,.0f}" if value >= 999.95 else f"{value:.4g}"


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return [*("| " + " | ".join(line) + " |" for line in lines), ""]


def _plain(text: str) -> str:
    """Keep names of an archive from being read as Markdown or HTML."""
    return " ".join("".join(f"\\{c}" if c in "\\`*[]<>|#!" else c for c in text).split())


def _code(text: str) -> str:
    """Quote text of an archive's files, in a cell of a table."""
    short = " ".join(text.replace("`", "'").replace("|", "/").split())
    return f"`{short if len(short) <= 100 else short[:99] + '…'}`" if short else ""
