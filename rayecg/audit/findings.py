"""What a rule says, and what it found."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from rayecg.audit.evidence import Evidence, UnstatedError
from rayecg.core.errors import record_error

Verdict = Literal["passed", "violated", "not checked"]
#: "invalidates": the tainted figures do not mean what they say; "weakens": they do, and are less sure
#: than they look or do not compare with figures from elsewhere.
Severity = Literal["invalidates", "weakens"]

#: Evidence names at most this many ids, beside their full count.
MOST_IDS = 20


@dataclass(frozen=True)
class Finding:
    """One row of `findings.json`.

    Attributes
    ----------
    rule_id, title, severity, rationale, source
        The rule's own.
    verdict
        `passed`, `violated` or `not checked`.
    evidence
        `text` says what was seen; counts and ids stand beside it.
    taints
        The figures that rest on it: `test` (all of them), `validation` (all of them), `run:NAME`.
    """

    rule_id: str
    verdict: Verdict
    severity: Severity
    title: str
    evidence: dict[str, Any]
    taints: tuple[str, ...]
    rationale: str
    source: str


@dataclass(frozen=True)
class Outcome:
    """What one look at the evidence gives; a `Rule` makes findings of them."""

    verdict: Verdict
    evidence: dict[str, Any]
    taints: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """A rule of the catalogue: called with evidence, it gives its findings.

    A rule that stumbles over its evidence gives `not checked` with the error: what could not be read
    has not been checked.
    """

    rule_id: str
    title: str
    severity: Severity
    rationale: str
    source: str
    check: Callable[[Evidence], Iterator[Outcome]] = field(repr=False)
    #: When it fires, and what it must know for that, in words for the table of rules.
    catches: str = ""
    needs: str = ""

    def __call__(self, evidence: Evidence) -> list[Finding]:
        """Apply the rule."""
        try:
            outcomes = list(self.check(evidence))
        except UnstatedError as error:
            outcomes = [not_checked(str(error))]
        except Exception as error:  # damaged evidence of any kind is evidence that is not there
            _, text = record_error(error)
            text = text.replace(f"{evidence.work}/", "").replace(str(evidence.work), "work")
            for folder in (evidence.published, evidence.work.parent, evidence.shards_folder.parent):
                text = text.replace(f"{folder.resolve()}/", "").replace(f"{folder}/", "")
            outcomes = [not_checked(f"the evidence cannot be used: {text}")]
        return [
            Finding(
                rule_id=self.rule_id,
                verdict=outcome.verdict,
                severity=self.severity,
                title=self.title,
                evidence=outcome.evidence,
                taints=outcome.taints,
                rationale=self.rationale,
                source=self.source,
            )
            for outcome in outcomes
        ]


def rule(
    rule_id: str,
    *,
    title: str,
    severity: Severity,
    rationale: str,
    source: str,
    catches: str = "",
    needs: str = "",
) -> Callable[[Callable[[Evidence], Iterator[Outcome]]], Rule]:
    """Make a function that yields outcomes a rule."""

    def wrap(check: Callable[[Evidence], Iterator[Outcome]]) -> Rule:
        return Rule(rule_id, title, severity, rationale, source, check, catches, needs)

    return wrap


def passed(text: str, **counts: Any) -> Outcome:
    """Say that the evidence is whole and shows no violation."""
    return Outcome("passed", {"text": text, **counts})


def violated(text: str, ids: Iterable[str], taints: Iterable[str], **counts: Any) -> Outcome:
    """Say what violates; `ids` are cut to the first few, their number is kept."""
    ids = list(ids)
    evidence = {"text": text, "n": len(ids), "ids": ids[:MOST_IDS], **counts}
    return Outcome("violated", evidence, tuple(taints))


def not_checked(
    text: str, taints: Iterable[str] = ("validation", "test"), **counts: Any
) -> Outcome:
    """Say that the evidence, or a part of it, is not there."""
    return Outcome("not checked", {"text": text, **counts}, tuple(taints))
