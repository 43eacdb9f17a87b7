"""The page: one HTML file that needs nothing beside itself."""

from __future__ import annotations

import base64
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from rayecg.report import layout
from rayecg.report.layout import Table
from rayecg.report.results import Results
from rayecg.report.style import Plot
from rayecg.report.tables import largest_count
from rayecg.report.text import (
    NOTHING_NOTE,
    SPREAD_NOTE,
    SYNTHETIC_LABEL,
    count,
    metric_title,
    number,
    shorten_paths,
    some,
)


def render_page(
    results: Results, plots: Mapping[str, tuple[Plot, bytes]], more: Sequence[Table] = ()
) -> str:
    """Fill the page.

    Parameters
    ----------
    results
        Tables and the chosen run.
    plots
        Name to the plot and its PNG, in the order of the page.
    more
        Tables that name their section.
    """
    benchmark = results.benchmark
    return fill(
        "page.html",
        title=benchmark.title,
        task=benchmark.task,
        unit=benchmark.unit,
        primary=metric_title(benchmark.primary),
        synthetic=benchmark.synthetic,
        synthetic_label=SYNTHETIC_LABEL,
        spread_note=SPREAD_NOTE,
        nothing_note=NOTHING_NOTE,
        verdict=results.verdict,
        headline=headline(results),
        summary=layout.summary_table(results),
        per_class=layout.per_class_table(results),
        archive=layout.archive_table(results),
        quarantine=layout.quarantine_table(results),
        population=layout.population_table(results),
        left_out=layout.left_out_table(results),
        runs=layout.runs_table(results),
        failed=layout.failed_table(results),
        findings=layout.findings_rows(benchmark.findings),
        audit_counts=audit_counts(results),
        looks=_looks(results),
        more=more,
        sections={t.section for t in more} | {plot.section for plot, _ in plots.values()},
        plots=[_inlined(plot, data) for plot, data in plots.values()],
        settings=shorten_paths(benchmark.experiment_text),
        task_settings=yaml.safe_dump(benchmark.task, sort_keys=False, allow_unicode=True),
        versions=_versions(results),
    )


def fill(template: str, **values: Any) -> str:
    """Fill a template of this room, with its style sheet as `css`; what is filled in is escaped."""
    room = resources.files("rayecg.report")

    def source(name: str) -> str:
        return (room / name).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, loader=jinja2.FunctionLoader(source)
    )
    # The style sheet is the project's own; nothing of the benchmark enters it.
    return environment.get_template(template).render(css=Markup(source("page.css")), **values)


def headline(results: Results) -> list[dict[str, str]]:
    """Give what a reader should see first."""
    benchmark, chosen = results.benchmark, results.chosen
    metric = metric_title(benchmark.primary)
    items = []
    if chosen is None:
        items.append({"name": "Chosen on validation", "value": results.none_chosen, "note": ""})
    else:
        validation = number(results.chosen_figure("validation"))
        items.append(
            {
                "name": "Chosen on validation",
                "value": results.chosen_name,
                "note": f"validation {metric} {validation}",
            }
        )
        own = results.chosen_verdict
        items.append(
            {
                "name": f"Its test {metric}",
                "value": results.chosen_test,
                "note": _scored(results) + (f"; audit: {own}" if own != "passed" else ""),
            }
        )
    runs = results.single
    n_done = int((runs["status"] == "ok").sum())
    n_failed = len(runs) - n_done
    items.append(
        {
            "name": "Runs with figures",
            "value": f"{n_done} of {len(runs)}",
            "note": f"{n_failed} without, listed below" if n_failed else "none failed",
        }
    )
    items.append(
        {
            "name": "Audit",
            "value": results.verdict,
            "note": audit_counts(results),
        }
    )
    return items


def _scored(results: Results) -> str:
    """Say what the test figure of the choice rests on."""
    chosen = results.runs[results.runs["chosen"]]
    done = chosen[chosen["status"] == "ok"]
    n = largest_count(done, "n_test_scored", results.benchmark)
    if n is None:
        return "not scored"
    lacking = "" if len(done) == len(chosen) else f" in {len(done)} of {len(chosen)} runs"
    return some(n, f"test {results.benchmark.unit}") + lacking


def audit_counts(results: Results) -> str:
    """Count the rules by their verdict."""
    return rule_counts(results.benchmark.findings)


def rule_counts(findings: Sequence[Mapping[str, Any]] | None) -> str:
    """Count the rules of findings by their verdict; a rule counts as its worst finding."""
    worst: dict[str, str] = {}
    order = ("passed", "not checked", "violated")
    for finding in findings or ():
        now = worst.get(finding["rule_id"], "passed")
        worst[finding["rule_id"]] = max(now, finding["verdict"], key=order.index)
    if not worst:
        return "no rule was checked"
    found = Counter(worst.values())
    parts = [f"{found[verdict]} {verdict}" for verdict in order if found[verdict]]
    return f"{some(len(worst), 'rule')}: {', '.join(parts)}"


def _looks(results: Results) -> str | None:
    """Say how often the test split has been looked at, from the ledger that the pipeline keeps."""
    looks = results.benchmark.looks
    if looks is None:
        return None
    # Nothing is chosen by the figures of runs that the audit alone asks for.
    n = len({look["checkpoint_sha256"] for look in looks if not look.get("audit")})
    what = some(n, "checkpoint or ensemble", "checkpoints and ensembles")
    return (
        f"The ledger of this output folder counts {what} evaluated on the test split "
        "so far. Each further look makes the best figure among them more flattering."
    )


def _versions(results: Results) -> Table:
    """List what the shards and the chosen run were made with."""
    benchmark = results.benchmark
    shards: Mapping[str, str] = benchmark.shards.get("versions") or {}
    cards = [card.get("versions") or {} for card in benchmark.cards.values()]
    rows = []
    for package in {**shards, **(cards[0] if cards else {})}:
        trained = sorted({str(card.get(package, "")) for card in cards})
        rows.append((package, str(shards.get(package, "")), ", ".join(filter(None, trained))))
    return Table("Versions that the files state", ("package", "shards", "runs"), rows)


def _inlined(plot: Plot, data: bytes) -> dict[str, Any]:
    width, height = struct.unpack(">II", data[16:24])  # of the PNG's first chunk
    return {
        **{name: getattr(plot, name) for name in ("section", "title", "caption", "alt")},
        "data": base64.b64encode(data).decode(),
        "width": width,
        "height": height,
    }


def terminal_text(results: Results) -> str:
    """Give the table that a job prints at its end."""
    from rayecg.report.text import plain_table

    benchmark, table = results.benchmark, layout.summary_table(results)
    keep = [0, 1, 2, 3, 4, 5, len(table.columns) - 1]
    rows = [[row[i] for i in keep] for row in table.rows]
    parts = [f"{benchmark.title}: {benchmark.task['title']}"]
    if benchmark.synthetic:
        parts.append(SYNTHETIC_LABEL)
    parts += ["", plain_table([table.columns[i] for i in keep], rows), SPREAD_NOTE, ""]
    chosen, metric = results.chosen, metric_title(benchmark.primary)
    if chosen is not None:
        parts.append(
            f"chosen on validation: {results.chosen_name} (validation {metric} "
            f"{number(results.chosen_figure('validation'))}, test "
            f"{results.chosen_test})"
        )
    for run, status, error in layout.failed_table(results).rows:
        parts.append(f"{status}: {run}: {' '.join(error.split())[:160]}")
    shards = benchmark.shards
    parts.append(
        f"records: {count(shards['n_input'])} in, {count(shards['n_ok'])} ok, "
        f"{count(shards['n_degraded'])} degraded, {count(shards['n_quarantined'])} quarantined"
    )
    parts.append(f"audit: {results.verdict} ({audit_counts(results)})")
    return "\n".join(parts)
