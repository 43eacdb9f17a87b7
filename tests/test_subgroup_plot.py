"""The plot of groups: what is drawn where, and how."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from stated_groups import group_of, make, results_of, stated, turned, write_records

from rayecg.report.style import COLOURS, png
from rayecg.report.subgroup_figures import FEWEST_PATIENTS
from rayecg.report.subgroups import LONGEST, forest, subgroup_tables

LONG = "The device with by far the longest name of all"


def dots_of(axes: Axes) -> dict[float, str]:
    """Give the colour of each dot's edge by its place on the y axis."""
    return {
        float(dots.get_offsets()[0][1]): to_hex(dots.get_edgecolor()[0])
        for dots in axes.collections
    }


def test_the_plot_marks_what_is_worse_and_cuts_long_names(tmp_path: Path) -> None:
    out = make(tmp_path / "out")
    write_records(out, lambda i: stated(i) | {"device": LONG})
    turned(out, [f"r{i:03d}" for i in range(60) if stated(i)["site"] == "B"])
    results = results_of(out)
    found = results.subgroups
    assert found is not None
    (plot,) = forest(results)
    axes = plot.figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    place_of = dict(zip(names, axes.get_yticks().tolist(), strict=True))
    cut = [name for name in names if name.startswith("device: ")]
    assert cut == [f"device: {LONG}"[: LONGEST - 1] + "…"]
    assert f"device {LONG} " in plot.alt
    assert any(row[0] == f"device: {LONG}" for row in next(iter(subgroup_tables(results))).rows)
    dots = dots_of(axes)
    worse = group_of(results, "site", "B")
    assert worse in found.worse
    assert dots[place_of["site: B"]] == COLOURS[1].lower()
    assert dots[place_of["site: A"]] == COLOURS[0].lower()
    small = group_of(results, "age", "under 18")
    assert small.n_patients < FEWEST_PATIENTS
    assert place_of["age: under 18"] not in dots
    texts = [text.get_text() for text in axes.texts]
    assert small.warning in texts
    assert any(text.endswith(f"({worse.n_patients})") for text in texts)
    # Kinds of groups stand apart.
    assert place_of["sex: male"] - place_of["age: not stated"] > 1
    (again,) = forest(results)
    assert png(again.figure) == png(plot.figure)
