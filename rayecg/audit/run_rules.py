"""Rules about what a run was fitted, selected and thresholded on, as its checkpoint's card says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

from rayecg.audit.evidence import Evidence
from rayecg.audit.findings import Outcome, not_checked, passed, rule, violated

#: Says of a run and its card what is wrong with it: a text, or None.
Look = Callable[[str, dict[str, Any]], str | None]


def each_card(evidence: Evidence, look: Look, fine: str) -> Iterator[Outcome]:
    """Look at the card of every run that trained to its end.

    One outcome names the runs that violate, one those that have no card or one that says nothing
    of the matter, one counts the rest. An ensemble is looked at like a run; its figures rest on those
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
        text = f"{len(silent)} of {len(evidence.cards)} runs have no card that says"
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
    title="Thresholds and temperature were chosen on the validation split",
    severity="invalidates",
    rationale="A threshold that was chosen on the test data fits its accidents. F1 and every other "
    "figure that rests on decisions is then a best case, and so is calibration.",
    source="operating_point of each checkpoint's card, against the validation examples and each "
    "run's validation.parquet; Kapoor and Narayanan 2023, Patterns 4(9):100804",
)
def threshold_on_test(evidence: Evidence) -> Iterator[Outcome]:
    """Compare each operating point with the validation split, its size and its examples."""
    examples = evidence.examples
    if examples is None:
        runs = [f"run:{run}" for run in evidence.cards]
        yield not_checked("examples.parquet is not there", runs or ("test",))
        return
    own = examples[examples["split"] == "validation"]
    expected = set(zip(own["record_id"], own["offset"], strict=True))

    def look(run: str, card: dict[str, Any]) -> str | None:
        point = card["operating_point"]
        split, n = point["split"], point["n_examples"]
        if split != "validation":
            return f"chosen on {split} ({n:,} examples)"
        # Examples whose record cannot be prepared drop out, so the run's own list decides.
        used = evidence.validated(run)
        if used is not None and not used <= expected:
            return f"{len(used - expected)} of the examples it validated on are not of that split"
        n_expected = len(expected if used is None else used)
        if n != n_expected:
            return f"chosen on {n:,} examples, its validation data are {n_expected:,}"
        return None

    yield from each_card(evidence, look, f"chosen among the {len(expected):,} validation examples")


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

    def look(_: str, card: dict[str, Any]) -> str | None:
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

    def look(_: str, card: dict[str, Any]) -> str | None:
        weights = card["training"]["class_weights"]
        if weights is None or weights["split"] == "train":
            return None
        return f"class weights from {weights['split']}"

    yield from each_card(evidence, look, "no class weights, or those of the training split")
