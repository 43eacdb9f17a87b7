"""Rules about what a run was fitted, selected and thresholded on, as its checkpoint's card says."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from typing import Any

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated

#: Says of a run and its card what is wrong with it: a text, or None.
Look = Callable[[str, dict[str, Any]], str | None]


def each_card(
    evidence: Evidence, look: Look, fine: str, silence: str | None = None
) -> Iterator[Outcome]:
    """Look at the card of every run that trained to its end.

    One outcome names the runs that violate, one those of which nothing can be said (`silence` says
    why: `look` raised KeyError), one counts the rest. An ensemble is looked at like a run; its figures rest on those
    of its members, too.
    """
    if not evidence.cards:
        yield not_checked("no run has a checkpoint card")
        return
    wrong: dict[str, str] = {}
    silent = []
    for run, card in evidence.cards.items():
        if card is not None and not set(card.get("members", ())) <= set(evidence.cards):
            card = None  # nobody looked at its members
        try:
            text = None if card is None else look(run, card)
        except (KeyError, TypeError):  # the card does not say
            card = None
        if card is None:
            silent.append(run)
        elif text is not None:
            wrong[run] = text
    if wrong:
        n = f"{len(wrong)} of {len(evidence.cards)} runs"
        saying = "; ".join(f"{run}: {text}" for run, text in list(wrong.items())[:5])
        yield violated(f"{n}: {saying}", wrong, _resting_on(evidence, wrong))
    if silent:
        text = f"{len(silent)} of {len(evidence.cards)} runs {silence or evidence.silence}"
        taints = _resting_on(evidence, silent)
        yield not_checked(text, taints, n=len(silent), ids=silent[:20])
    n_fine = len(evidence.cards) - len(wrong) - len(silent)
    if n_fine:
        yield passed(f"{n_fine} of {len(evidence.cards)} runs: {fine}", n=n_fine)


def _resting_on(evidence: Evidence, runs: Collection[str]) -> list[str]:
    """Name the figures that rest on some runs: their own, and those of ensembles they are in."""
    ensembles = [
        name
        for name, card in evidence.cards.items()
        if name not in runs
        and card is not None
        and not set(runs).isdisjoint(card.get("members", ()))
    ]
    return [f"run:{name}" for name in (*runs, *ensembles)]


@rule(
    "threshold-on-test",
    title="Thresholds were chosen on the validation split",
    severity="invalidates",
    rationale="A threshold that was chosen on the test data fits its accidents. F1 and every other "
    "figure that rests on decisions is then a best case. Weights of a decision that follow from class "
    "frequencies must be those of other data, too.",
    source="operating_point of each checkpoint's card, against the validation examples and each "
    "run's validation.parquet; Kapoor and Narayanan 2023, Patterns 4(9):100804",
    catches="decision thresholds were chosen on the test split",
    needs="cards with the provenance of thresholds; a table's `threshold_source`",
)
def threshold_on_test(evidence: Evidence) -> Iterator[Outcome]:
    """Compare each operating point with the validation split, its size and its examples."""
    yield from _each_choice(evidence, lambda point: point, "chosen")


@rule(
    "calibrator-on-test",
    title="Calibrators were fitted on the validation split",
    severity="invalidates",
    rationale="A calibrator that was fitted on the test data moves its probabilities to where the "
    "test labels lie. Brier score, calibration error and net benefit are then a best case, and so "
    "is every figure at a fixed probability.",
    source="operating_point.calibrator of each checkpoint's card (its temperature, in older cards), "
    "against the validation examples and each run's validation.parquet; Guo et al. 2017, ICML "
    "(calibrators are fitted on held-out validation data)",
    catches="probabilities were calibrated on the test split",
    needs="cards with the provenance of the calibrator; a table's `calibrator_source`",
)
def calibrator_on_test(evidence: Evidence) -> Iterator[Outcome]:
    """Compare what each calibrator was fitted on with the validation split."""

    def fitted(point: dict[str, Any]) -> dict[str, Any]:
        if "calibrator" in point:
            found: dict[str, Any] = point["calibrator"]
            return found
        return point if "temperature" in point else {}

    yield from _each_choice(evidence, fitted, "fitted")


def _before_test(split: str | None) -> bool:
    """Say whether training and validation data alone decided, or nothing did."""
    return split is None or set(re.split(r", | and ", split)) <= {"train", "validation"}


def _each_choice(
    evidence: Evidence, choice: Callable[[dict[str, Any]], dict[str, Any]], chosen: str
) -> Iterator[Outcome]:
    """Look at one part of every operating point: on what, and on how much of it, it was chosen.

    Class frequencies of the training split may decide as well: they are no test data.
    """
    examples = evidence.examples
    if examples is None:
        runs = [f"run:{run}" for run in evidence.cards]
        yield not_checked("examples.parquet is not there", runs or ("test",))
        return
    own = examples[examples["split"] == "validation"]
    expected = set(zip(own["record_id"], own["offset"], strict=True))

    def look(run: str, card: dict[str, Any]) -> str | None:
        made = choice(card["operating_point"])
        split, n = made["split"], made["n_examples"]
        weights = made.get("weights")
        if isinstance(weights, dict) and not _before_test(weights["split"]):
            return f"weights from {weights['split']}"
        if not _before_test(split):
            return f"{chosen} on {split}" + ("" if n is None else f" ({n:,} examples)")
        if split != "validation":
            return None
        # Examples whose record cannot be prepared drop out, so the run's own list decides.
        used = evidence.validated(run)
        if used is not None and not used <= expected:
            return f"{len(used - expected)} of the examples it validated on are not of that split"
        n_expected = len(expected if used is None else used)
        if n is not None and n != n_expected:
            return f"{chosen} on {n:,} examples, its validation data are {n_expected:,}"
        return None

    fine = f"{chosen} among the {len(expected):,} validation examples"
    yield from each_card(evidence, look, fine if len(expected) else f"not {chosen} on test data")


@rule(
    "selection-on-test",
    title="The weights were selected on the validation split",
    severity="invalidates",
    rationale="Keeping the epoch that does best on the test data reports the luckiest of many tries.",
    source="training.selection of each checkpoint's card; Kapoor and Narayanan 2023, Patterns "
    "4(9):100804",
    catches="a checkpoint, epoch or setting was selected on the test split",
    needs="cards with the provenance of the selection; a table's `selection_source`",
)
def selection_on_test(evidence: Evidence) -> Iterator[Outcome]:
    """Read where each run's best epoch was found."""

    def look(_: str, card: dict[str, Any]) -> str | None:
        selection = card["training"]["selection"]
        if selection is None or _before_test(selection["split"]):
            return None
        return f"{selection.get('metric', 'epoch')} on {selection['split']}"

    yield from each_card(evidence, look, "selected on validation, or not selected at all")


@rule(
    "fit-outside-training",
    title="What is fitted to data was fitted to the training split",
    severity="invalidates",
    rationale="Class weights and other statistics that are taken over all the data carry knowledge "
    "of the test labels into training.",
    source="training.class_weights of each checkpoint's card; Kapoor and Narayanan 2023, Patterns "
    "4(9):100804",
    catches="class weights or other statistics were fitted on more than training records",
    needs="cards with the provenance of class weights; a table's `class_weights_source`",
)
def fit_outside_training(evidence: Evidence) -> Iterator[Outcome]:
    """Read where each run's class weights come from."""

    def look(_: str, card: dict[str, Any]) -> str | None:
        weights = card["training"]["class_weights"]
        if weights is None or weights["split"] == "train":
            return None
        return f"class weights from {weights['split']}"

    yield from each_card(evidence, look, "no class weights, or those of the training split")
