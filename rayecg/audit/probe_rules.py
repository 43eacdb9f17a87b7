"""Rules whose evidence is made by ordinary runs: scores in other batches, a run on permuted labels.

Legend: N example, C label.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from rayecg.audit.evidence import Evidence, PermutedRun
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated
from rayecg.audit.run_rules import each_card
from rayecg.metrics.bootstrap import Interval, bootstrap_interval

#: Probabilities may differ by this much: batches of another shape add the same float32 numbers up in
#: another order. The networks of the catalogue gave logits that then differ by up to 5e-7 of the
#: largest; of logits up to 20, a probability, whose slope is at most 1/4, moves by 2.5e-6.
TOLERANCE = 1e-5
#: On a GPU, in batches of another shape alone: cuDNN may take another algorithm there, and its TF32
#: rounds what it multiplies to 11 bits (5e-4): a logit of 20 is known to 1e-2, and its probability
#: to a quarter of that. No GPU was at hand to try it.
TOLERANCE_OTHER_SHAPE_GPU = 5e-3
#: How far from 0.5 the macro-AUROC of a run on permuted labels must lie with all of its interval. What
#: it learnt is a direction of its own making, the same for all patients, which may lie along the
#: labels by accident or against them, and the interval, over patients, does not know of that. Thirty
#: such runs of a small network (20 on 240 simulated recordings, 10 on MIT-BIH beats between patients,
#: an epoch each) gave 0.19 to 0.70, and lower ends of intervals up to 0.58.
MARGIN = 0.15
CHANCE = 0.5


@rule(
    "batch-dependence",
    title="The score of a record does not depend on its batch",
    severity="invalidates",
    rationale="A score that changes with the other records of its batch, or with their order, is no "
    "property of the patient: it cannot be repeated for one record alone, and where batches are "
    "ordered by label the neighbours betray it. Batch normalisation left in training mode does this. "
    "A sample of test windows is scored again one at a time, in batches of another size and order, and "
    "beside noise; float32 sums in another order are allowed for.",
    source="Ioffe and Szegedy 2015, ICML (batch statistics in training, fixed ones in inference); "
    "work/audit/batches, written by the pipeline (audit.batch_dependence)",
    catches="scores change with batch composition or order",
    needs="scores of a sample in other batches, which a benchmark makes (`audit.batch_dependence`)",
)
def batch_dependence(evidence: Evidence) -> Iterator[Outcome]:
    """Compare the scores of the same windows in other batches."""
    largest = 0.0

    def look(run: str, card: dict[str, Any]) -> str | None:
        nonlocal largest
        if "members" in card:  # its scores are made of theirs, row by row
            moved = [one for one in card["members"] if look(one, evidence.cards[one] or {})]
            return f"through {', '.join(moved)}" if moved else None
        found = evidence.batches(run)
        made_of = card["weights_sha256"], (evidence.shards or {}).get("key")
        if (
            found is None
            or not found["circumstances"]
            or made_of != (found["checkpoint_sha256"], found["source_key"])
        ):
            raise KeyError(run)
        apart = 0.0
        for one in found["circumstances"]:
            own_shape = one["batch_size"] == found["batch_size"]
            on_gpu = found["device"] != "cpu" and not own_shape
            allowed = TOLERANCE_OTHER_SHAPE_GPU if on_gpu else TOLERANCE
            if one["n_lost"]:
                why = f" ({one['error']})" if one.get("error") else ""
                return f"{one['n_lost']:,} windows have no score {one['name']}{why}"
            apart = max(apart, one["probability"])
            if one["probability"] > allowed:
                where = f"record {one['record_id']!r}, sample {one['offset']:,}"
                return f"{one['probability']:.2g} in probability {one['name']} ({where})"
        largest = max(largest, apart)
        return None

    outcomes = list(each_card(evidence, look, "", "were not scored in other batches"))
    for outcome in outcomes:
        if outcome.verdict == "passed":
            n, of = outcome.evidence["n"], len(evidence.cards)
            text = f"{n} of {of} runs: scores in other batches differ by {largest:.1g} at most"
            outcome.evidence.update(text=text, largest=largest)
        yield outcome


@rule(
    "permuted-labels",
    title="A run on permuted labels is near chance",
    severity="invalidates",
    rationale="Trained on labels that were dealt out anew, nobody can tell the true ones of the test "
    "split. A run that can has got them past its table of labels: its weights or statistics were "
    "fitted to them elsewhere, it was chosen by test figures, or the predictions are another run's. "
    "Labels among the inputs and records on two sides escape this rule, as what is learnt of them is "
    "permuted, too. It fires where the whole interval of the macro-AUROC over patients lies more than "
    f"{MARGIN:g} above 0.5, as one run's own direction may lie along the labels by accident; as far "
    "below is stated.",
    source="Ojala and Garriga 2010, JMLR 11:1833-1863 (permutation tests of classifiers); "
    "work/audit/permuted, written by the pipeline (audit.permuted_labels)",
    catches="a run on permuted labels is not near chance",
    needs="such a run, which a benchmark makes if asked (`audit.permuted_labels`)",
)
def permuted_labels(evidence: Evidence) -> Iterator[Outcome]:
    """Measure the runs on permuted labels against the true labels of the test split."""
    runs = evidence.permuted
    if runs is None or evidence.examples is None:
        yield not_checked(
            "no run on permuted labels was asked for (audit.permuted_labels)"
            if runs is None
            else "examples.parquet is not there"
        )
        return
    for run in runs:
        yield _permuted(run, evidence.examples)


def _permuted(run: PermutedRun, examples: pd.DataFrame) -> Outcome:
    if run.problem:
        return not_checked(f"{run.name}: {run.problem}")
    if _same_labels(run, examples):
        return not_checked(f"{run.name}: its labels are the true ones")
    test = examples[examples["split"] == "test"]
    rows = test.merge(run.predictions, on=run.keys, how="inner", validate="many_to_one")
    scores_NC = rows[[f"probability_{label}" for label in run.labels]].to_numpy(np.float64)
    known_N = ~np.isnan(scores_NC).any(axis=1)
    targets_NC = rows[[f"target_{label}" for label in run.labels]].to_numpy()[known_N]
    if not known_N.any():
        return not_checked(f"{run.name}: no test example has a prediction")
    record_N, patient_N = rows["record_id"], rows["patient_id"]
    groups_N = np.where(patient_N.isna(), "record " + record_N, "patient " + patient_N.astype(str))
    found = bootstrap_interval("macro_auroc", targets_NC, scores_NC[known_N], groups_N[known_N])
    if np.isnan(found.low):
        return not_checked(f"{run.name}: no label has both positives and negatives to rank")
    counts = {"macro_auroc": found.point, "low": found.low, "high": found.high}
    text = _phrase(run.name, found)
    if found.low > CHANCE + MARGIN:
        return violated(text, [run.name], ("validation", "test"), **counts)
    if found.high < CHANCE - MARGIN:
        text += "; it ranks against the labels, as an accident can and a leak cannot"
    return passed(text, **counts)


def _same_labels(run: PermutedRun, examples: pd.DataFrame) -> bool:
    """Say whether the training labels, of which there are several kinds, lie as they did."""
    columns = [f"target_{label}" for label in run.labels]
    keys = ["record_id", "offset"]
    dealt, own = (
        table.loc[table["split"] == "train", [*keys, *columns]].set_index(keys)[columns]
        for table in (run.examples, examples)
    )
    varied = len(own.drop_duplicates()) > 1
    return varied and dealt.index.equals(own.index) and bool((dealt == own).all(axis=None))


def _phrase(name: str, found: Interval) -> str:
    interval = f"95 % interval {found.low:.3f} to {found.high:.3f}"
    return (
        f"{name}: test macro-AUROC {found.point:.3f} ({interval} over {found.n_groups:,} patients), "
        "chance is 0.5"
    )
