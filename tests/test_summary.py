"""The summary of a scored archive: figures by hand, shift that is planted, and none where there is none."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayecg.core.errors import DataError
from rayecg.core.predictions import RECORD_COLUMNS, WINDOW_COLUMNS, label_fields
from rayecg.score.shift import AS_BEFORE, flag_shift, percent, score_shift, share_of
from rayecg.score.summary import summarise, to_markdown
from rayecg.train.reference import score_reference

LABELS = ["MI", "NORM"]
SCHEMA = pa.schema([*RECORD_COLUMNS, *label_fields(LABELS)])


def card(scores: Any = None, quality: Any = None, unit: str = "record") -> dict[str, Any]:
    return {
        "architecture": "tiny",
        "task": {"name": "two", "unit": unit, "labels": LABELS},
        "training": {"reference": {"scores": scores, "quality": quality}},
        "limits": {"intended_use": "research"},
    }


def quality(flags: dict[str, float], n: int = 1000, **changes: Any) -> dict[str, Any]:
    known = {"n_records": n, "measured": True, "flags": flags, "fs": {"100": n}}
    return known | {"leads": {"I II": n}} | changes


def row(i: int, status: str = "ok", **changes: Any) -> dict[str, Any]:
    own = {"record_id": f"r{i}", "path": f"r{i}", "status": status, "abstain": status != "ok"}
    own |= {"limits": [], "n_windows": 1, "fs": 100.0, "leads": ["I", "II"], "n_times": 1000}
    return own | {"flags": []} | changes


def answer(mi: float, norm: float) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for label, p in (("MI", mi), ("NORM", norm)):
        found |= {f"probability_{label}": p, f"calibrated_{label}": p / 2}
        found |= {f"decision_{label}": int(p > 0.5)}
    return found


def table(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def archive() -> list[pa.Table]:
    """Six records in three parts, one of them empty."""
    broken = ["absent_leads:V1", "too_short:3.20 s"]
    unread = {"fs": None, "leads": None, "n_times": None, "flags": None, "n_windows": 0}
    lost = {"error_code": "bad_header", "error": "r4.hea: a | b\nc", **unread}
    degraded = answer(0.99, 0.99) | {f"decision_{label}": None for label in LABELS}
    first = [
        row(0, **answer(0.9, 0.2), flags=["noise:I", "noise:II", "flat:I"]),
        row(1, **answer(0.6, 0.1), n_times=2000),
        row(2, **answer(0.3, 0.3), fs=500.0),
    ]
    second = [
        row(3, "degraded", limits=broken, **degraded, leads=["I"]),
        row(4, "quarantined", **lost),
        row(5, "quarantined", **{**lost, "error": "r5.hea: also"}),
    ]
    return [table(first), table([]), table(second)]


def test_figures_are_those_counted_by_hand():
    found = summarise(iter(archive()), card(), {"n_input": 6, "seconds": 2.0, "actors": 2})
    assert found["statuses"] == {"ok": 3, "degraded": 1, "quarantined": 2}
    assert (found["n_input"], found["abstained"]) == (6, 3)
    assert found["run"]["records_per_s"] == 3.0
    assert found["errors"] == {
        "bad_header": {"n": 2, "record_id": "r4", "text": "r4.hea: a | b\nc"}
    }
    assert found["limits"]["absent_leads"] == {
        "n": 1,
        "record_id": "r3",
        "text": "absent_leads:V1",
    }
    own = found["recordings"]
    assert (own["n_read"], own["shortest_s"], own["longest_s"]) == (4, 2.0, 20.0)
    assert own["leads"] == {"I II": 3, "I": 1}
    assert own["fs"] == {"100": 3, "500": 1}
    # Of four that were read one has flags, noise in two leads.
    assert own["any_flag"] == 0.25
    assert own["flags"] == {name: {"n": 1, "share": 0.25} for name in ("flat", "noise")}
    mi = found["answers"]["labels"]["MI"]
    assert (mi["n_decided"], mi["positive"], mi["calibrated_mean"]) == (3, 0.666667, 0.3)
    # 0.3, 0.6 and 0.9, each to half a bin of a thousandth; the degraded 0.99 is no answer.
    assert mi["quantiles"]["0.05"] == pytest.approx(0.3, abs=0.00051)
    assert mi["quantiles"]["0.5"] == pytest.approx(0.6, abs=0.00051)
    assert mi["quantiles"]["0.95"] == pytest.approx(0.9, abs=0.00051)
    assert found["answers"]["labels"]["NORM"]["positive"] == 0.0
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_rows_that_do_not_add_up_are_refused():
    with pytest.raises(DataError, match=r"expected 7 rows.*came 6"):
        summarise(archive(), card(), {"n_input": 7})
    with pytest.raises(DataError, match="lost"):
        summarise([table([row(0, "lost")])], card(), {})


def test_a_continued_job_is_as_fast_as_what_it_scored():
    facts = {"n_input": 6, "n_scored": 3, "seconds": 2.0}
    assert summarise(archive(), card(), facts)["run"]["records_per_s"] == 1.5


@pytest.mark.parametrize(
    ("n", "of", "said"),
    [
        (9996, 10_000, "> 99.9 %"),
        # Six digits would be 1.
        (9_999_999, 10_000_000, "> 99.9 %"),
        (9994, 10_000, "99.9 %"),
        (10_000, 10_000, "100 %"),
        (1, 10_000_000, "< 0.1 %"),
        (1, 1000, "0.1 %"),
        (0, 1000, "0 %"),
        (1, 3, "33.3 %"),
        (0, 0, "-"),
    ],
)
def test_a_share_is_never_rounded_to_all_or_none(n, of, said):
    share = share_of(n, of)
    assert percent(share) == said
    assert share is None or (share == 1) == (n == of)


def test_speed_is_plain_and_says_whose_it_is():
    def page(**facts: Any) -> str:
        return to_markdown(summarise(archive(), card(), {"n_input": 6, **facts}))

    # A job of ten hours; 2,000 records/s.
    assert "\n0.0001667 records/s, 36,000 s.\n" in page(seconds=36_000.2)
    assert "\n2,000 records/s, 0.003 s.\n" in page(seconds=0.003)
    assert "\n1,000 records/s, 0.006 s.\n" in page(seconds=0.0060001)
    assert "\n3 records/s, 2 s.\n" in page(seconds=2.0, n_scored=6)
    said = "The last start scored 3 of 6 records: 1.5 records/s, 2 s, 2 actors."
    assert said in page(seconds=2.0, n_scored=3, actors=2)


def decided(mi_N: np.ndarray, **changes: Any) -> pa.Table:
    return table([row(i, **answer(float(p), 1 - float(p)), **changes) for i, p in enumerate(mi_N)])


def reference(mi_N: np.ndarray) -> dict[str, Any]:
    p_NC = np.stack([mi_N, 1 - mi_N], axis=1)
    decision_NC = (p_NC > 0.5).astype(int)
    return score_reference(LABELS, decision_NC, p_NC, p_NC / 2, decision_NC)


def test_the_reference_itself_is_no_shift_and_a_planted_one_is():
    rng = np.random.default_rng(0)
    before_N, again_N = rng.beta(1, 4, 600), rng.beta(1, 4, 400)
    known = card(reference(before_N), quality({}))
    same = summarise([decided(before_N[:300]), decided(before_N[300:])], known, {})
    for own in same["answers"]["labels"].values():
        # Shares are rounded to six digits: a sum of ten bins is off by less than 1e-4.
        assert own["shift"]["psi"] < 1e-4
        assert own["shift"]["ks"] < 1e-4
    assert same["looks"] == same["notes"] == []
    assert summarise([decided(again_N)], known, {})["looks"] == []

    found = summarise([decided(np.sqrt(again_N))], known, {})
    higher = found["answers"]["labels"]
    assert found["looks"][0].startswith(
        "MI: the distribution of its probabilities is much higher than in validation (PSI "
    )
    # Two quantities, each named: scores may rise below the threshold while fewer are above it.
    assert re.search(r"\); decided positive are [\d.]+ % here, [\d.]+ % there$", found["looks"][0])
    assert higher["MI"]["shift"]["reading"] == "much higher than in validation"
    assert higher["NORM"]["shift"]["reading"] == "much lower than in validation"


def test_the_indices_are_those_computed_by_hand():
    # Half a row in each of two bins: (40.5, 160.5) of 201 and (100.5, 100.5) of 201.
    found = score_shift(np.array([40, 160]), [0.5, 0.5], 200)
    p, q = np.array([40.5, 160.5]) / 201, np.array([100.5, 100.5]) / 201
    assert found["psi"] == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-5)  # six digits
    assert found["ks"] == 0.3
    # 6.6349 is the 99 % point of a chi-squared of one degree of freedom.
    assert found["chance"] == pytest.approx(6.6349 * (1 / 200 + 1 / 200), rel=1e-4)
    assert found["reading"] == "much higher than in validation"
    # From both sides to the middle.
    middle = score_shift(np.array([10, 180, 10]), [1 / 3] * 3, 300)
    assert middle["reading"] == "much otherwise spread than in validation"


@pytest.mark.parametrize(
    ("count_K", "growth", "said"),
    [
        # Of 1,000 in four even bins; remarks: gaps of the cumulative shares in thousandths, plus is lower.
        ([50, 150, 300, 500], 0.2, "much higher"),  # -200, -300, -250
        ([500, 300, 150, 50], -0.2, "much lower"),
        # Fewer are positive: what goes up elsewhere does not make them "higher".
        ([50, 150, 300, 500], -0.04, "much otherwise spread"),
        ([500, 300, 150, 50], 0.04, "much otherwise spread"),
        # Where all are decided alike, here and there, the scores alone speak.
        ([50, 150, 300, 500], 0.0, "much higher"),
        (
            [270, 50, 180, 500],
            0.2,
            "much higher",
        ),  # +20, -180, -250: a twelfth lies on the other side
        ([280, 50, 170, 500], 0.2, "much otherwise spread"),  # +30, -170, -250: more than a tenth
        ([500, 180, 50, 270], -0.2, "much lower"),
        ([500, 170, 50, 280], -0.2, "much otherwise spread"),
    ],
)
def test_a_direction_is_told_only_of_what_has_one(count_K, growth, said):
    found = score_shift(np.array(count_K), [0.25] * 4, 1000, growth)
    assert found["reading"].startswith(said)


def test_scores_that_rise_while_fewer_are_positive_are_no_higher():
    # Below the threshold of 0.5 all rise, from it on some fall under it.
    before_N = np.repeat([0.1, 0.3, 0.6, 0.9], 250)
    here_N = np.repeat([0.1, 0.3, 0.6, 0.9], [0, 540, 0, 460])
    found = summarise([decided(here_N)], card(reference(before_N), quality({})), {})
    own = found["answers"]["labels"]["MI"]
    assert (own["positive"], own["shift"]["positive_reference"]) == (0.46, 0.5)
    assert own["shift"]["reading"] == "much otherwise spread than in validation"
    assert found["looks"][0].startswith(
        "MI: the distribution of its probabilities is much otherwise"
    )


def test_little_data_that_chance_explains_is_no_shift():
    rng = np.random.default_rng(1)
    loud = sum(
        score_shift(np.bincount(rng.integers(10, size=100), minlength=10), [0.1] * 10, 100)[
            "reading"
        ]
        != AS_BEFORE
        for _ in range(200)
    )
    # The reference is exact here, so that chance makes less than the bound's 1 in 100; of 200 draws
    # more than 8 come in under 1 in 1,000 cases at that rate.
    assert loud <= 8


def test_tied_scores_are_compared_in_the_bins_that_they_make():
    p_N = np.repeat([0.2, 0.7], [200, 100])
    known = reference(p_N)
    assert known["labels"]["MI"]["edges"] == [0.2, 0.7]
    assert known["labels"]["MI"]["shares"] == [0.666667, 0.333333, 0.0]
    shift = summarise([decided(p_N)], card(known), {})["answers"]["labels"]["MI"]["shift"]
    assert shift["psi"] < 1e-4


def test_more_of_a_flag_than_in_training_is_told_in_words():
    parts = [decided(np.full(120, 0.4), flags=["noise:I"]), decided(np.full(880, 0.4))]
    found = summarise(parts, card(quality=quality({"noise": 0.03, "wander": 0.01})), {})
    flags = found["recordings"]["flags"]
    assert flags["noise"]["reading"] == (
        "noise: flagged in more recordings than in training (12 % here, 3 % there)"
    )
    assert flags["noise"]["difference"] == 0.09
    assert flags["wander"] == {
        **{"n": 0, "share": 0.0, "reference": 0.01, "difference": -0.01, "reading": ""}
    }
    assert found["looks"] == [flags["noise"]["reading"]]
    assert flags["noise"]["reading"] in to_markdown(found)
    # Of 99 records nothing is said, nor where training did not measure.
    assert not flag_shift({"noise": 99}, 99, quality({}))["noise"]["reading"]
    assert "reading" not in flag_shift({"noise": 200}, 200, quality({}, measured=False))["noise"]


def test_rates_and_leads_that_training_had_not_are_told():
    found = summarise(
        [decided(np.full(3, 0.4), fs=250.0, leads=["I"])], card(quality=quality({})), {}
    )
    assert found["looks"] == [
        "sampling rate: 3 recordings have one that was not seen in training, most often 250 Hz",
        "set of leads: 3 recordings have one that was not seen in training, most often I",
    ]


def test_little_data_or_no_reference_is_noted():
    few = summarise([decided(np.full(99, 0.4))], card(reference(np.linspace(0, 1, 500))), {})
    assert few["answers"]["labels"]["MI"]["shift"]["psi"] is None
    assert "too few to say (99 here, 500" in few["answers"]["labels"]["MI"]["shift"]["reading"]
    assert "With fewer than 100 decisions, nothing is said of shift." in few["notes"]
    bare = {name: value for name, value in card().items() if name in ("architecture", "task")}
    none = summarise(archive(), bare, {})
    assert none["answers"]["labels"]["MI"]["shift"] is None
    assert any("no reference of scores" in note for note in none["notes"])
    assert any("no reference of quality" in note for note in none["notes"])


def test_beats_are_summed_up_from_windows():
    schema = pa.schema([*WINDOW_COLUMNS, *label_fields(LABELS)])
    beats = [{"record_id": "r0", "offset": i, **answer(p, 0.1)} for i, p in enumerate((0.9, 0.1))]
    beats.append({"record_id": "r1", "offset": 0})  # abstained, and no output is finite
    windows = pa.Table.from_pylist(beats, schema=schema)
    found = summarise([table([row(0), row(1)])], card(unit="beat"), {}, iter([windows]))
    assert found["answers"]["of"] == "beats"
    assert found["answers"]["labels"]["MI"]["n_decided"] == 2
    assert found["answers"]["labels"]["MI"]["positive"] == 0.5
    # A task of records decides on records: its windows are parts of these.
    again = summarise([table([row(0, **answer(0.9, 0.1))])], card(), {}, [windows])
    assert again["answers"]["labels"]["MI"]["n_decided"] == 1


@pytest.mark.parametrize("rows", [[], archive()[2].slice(1).to_pylist()])
def test_nothing_but_quarantine_or_nothing_at_all_is_a_page(rows):
    known = card(reference(np.linspace(0, 1, 500)), quality({"noise": 0.1}))
    found = summarise([table(rows)] if rows else [], known, {"n_input": len(rows), "seconds": 0.0})
    assert found["statuses"] == {"ok": 0, "degraded": 0, "quarantined": len(rows)}
    assert found["answers"]["labels"]["MI"]["quantiles"] is None
    assert found["recordings"]["shortest_s"] is None
    assert found["looks"] == []
    assert "Nothing was decided." in found["notes"]
    page = to_markdown(found)
    assert "None could be read." in page
    assert "There are no decided records, so no label has figures." in page
    assert "| MI |" not in page
    assert "too few to say" not in page
    json.dumps(found, allow_nan=False)


def test_the_page_has_every_figure_and_keeps_texts_of_files_in_their_cells():
    facts = {"n_input": 6, "seconds": 2.0, "actors": 2}
    page = to_markdown(summarise(archive(), card(), facts))
    assert "synthetic" not in page
    assert "are synthetic" in to_markdown(summarise([], card(), {"synthetic": True}))
    assert "| ok | 3 | 50 % | answered |" in page
    assert "3 records/s, 2 s, 2 actors." in page
    assert "| quarantined | bad_header | 2 | `r4` | `r4.hea: a / b c` |" in page
    for line in page.splitlines():
        assert not line.startswith("|") or line.endswith("|")
    assert "Intended use: research" in page
