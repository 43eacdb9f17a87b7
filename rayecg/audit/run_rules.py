"""Rules about what a run was fitted, selected and thresholded on, as its checkpoint's card says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated

#: Says of a card what is wrong with it: a text, or None.
Look = Callable[[dict[str, Any]], str | None]


def each_card(evidence: Evidence, look: Look, fine: str) -> Iterator[Outcome]:
    """Look at the card of every run that trained to its end.

    One outcome names the runs that violate, one those that have no card or one that says nothing
    of the matter, one counts the rest.
    """
    if not evidence.cards:
        yield not_checked("no run has a checkpoint card")
        return
    wrong: dict[str, str] = {}
    silent = []
    for run, card in evidence.cards.items():
        try:
            text = None if card is None else look(card)
        except (KeyError, TypeError):  # the card does not say
            card = None
        if card is None:
            silent.append(run)
        elif text is not None:
            wrong[run] = text
    if wrong:
        n = f"{len(wrong)} of {len(evidence.cards)} runs"
        saying = "; ".join(f"{run}: {text}" for run, text in list(wrong.items())[:5])
        yield violated(f"{n}: {saying}", wrong, [f"run:{run}" for run in wrong])
    if silent:
        text = f"{len(silent)} of {len(evidence.cards)} runs have no card that says"
        yield not_checked(text, [f"run:{run}" for run in silent], n=len(silent), ids=silent[:20])
    n_fine = len(evidence.cards) - len(wrong) - len(silent)
    if n_fine:
        yield passed(f"{n_fine} of {len(evidence.cards)} runs: {fine}", n=n_fine)


@rule(
    "threshold-on-test",
    title="Thresholds and temperature were chosen on the validation split",
    severity="invalidates",
    rationale="A threshold that was chosen on the test data fits its accidents. F1 and every other "
    "figure that rests on decisions is then a best case, and so is calibration.",
    source="operating_point of each checkpoint's card, against the number of validation examples; "
    "Kapoor and Narayanan 2023, Patterns 4(9):100804",
)
def threshold_on_test(evidence: Evidence) -> Iterator[Outcome]:
    """Compare each operating point with the validation split and its size."""
    examples = evidence.examples
    expected = None if examples is None else int((examples["split"] == "validation").sum())

    def look(card: dict[str, Any]) -> str | None:
        point = card["operating_point"]
        split, n = point["split"], point["n_examples"]
        if split != "validation":
            return f"chosen on {split} ({n} examples)"
        if expected is not None and n != expected:
            return f"chosen on {n} examples, the validation split has {expected}"
        return None

    if expected is None and evidence.cards:
        for outcome in each_card(evidence, look, ""):
            if outcome.verdict != "passed":
                yield outcome
        yield not_checked("the number of validation examples: examples.parquet is not there")
        return
    yield from each_card(evidence, look, f"chosen on the {expected} validation examples")


@rule(
    "selection-on-test",
    title="The weights were selected on the validation split",
    severity="invalidates",
    rationale="Keeping the epoch that does best on the test data reports the luckiest of many tries.",
    source="training.selection of each checkpoint's card; Kapoor and Narayanan 2023, Patterns "
    "4(9):100804",
)
def selection_on_test(evidence: Evidence) -> Iterator[Outcome]:
    """Read where each run's best epoch was found."""

    def look(card: dict[str, Any]) -> str | None:
        selection = card["training"]["selection"]
        if selection is None or selection["split"] == "validation":
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
)
def fit_outside_training(evidence: Evidence) -> Iterator[Outcome]:
    """Read where each run's class weights come from."""

    def look(card: dict[str, Any]) -> str | None:
        weights = card["training"]["class_weights"]
        if weights is None or weights["split"] == "train":
            return None
        return f"class weights from {weights['split']}"

    yield from each_card(evidence, look, "no class weights, or those of the training split")
