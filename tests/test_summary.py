"""The summary of a scored archive: figures by hand, shift that is planted, and none where there is none."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayecg.core.errors import DataError
from rayecg.core.predictions import RECORD_COLUMNS, WINDOW_COLUMNS, label_fields
from rayecg.score.shift import AS_BEFORE, flag_shift, score_shift
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
    higher = summarise([decided(np.sqrt(again_N))], known, {})["answers"]["labels"]
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
    assert flags["noise"]["reading"] == "more noise than in training: 12 % against 3 %"
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
        "3 recordings of rate not seen in training, most often 250 Hz",
        "3 recordings of leads not seen in training, most often I",
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
