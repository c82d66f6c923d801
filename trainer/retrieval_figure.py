"""The figure of retrieval: every row's metric, and by how much the log knows of the user."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from matplotlib.figure import Figure

from trainer.figure_style import MARKERS, PALETTE, Report, Styles, legend_below
from trainer.report_tables import format_count
from trainer.retrieval_verdict import MIN_CASES


def retrieval(report: Report, styles: Styles) -> Figure | None:
    """The study's metric with 95 % intervals: of all cases, and by the user's impressions."""
    found = report.get("retrieval")
    if not found:
        return None
    metric = found["metric"]
    of_parts = metric if metric in found["rows"][0]["buckets"][0]["metrics"] else "recall@10"
    rows = [row for row in found["rows"] if row["metrics"].get(metric, {}).get("value") is not None]
    if not rows:  # e.g. no gap where one class leaves no AUC
        return None
    style_of = row_styles([row["name"] for row in rows], styles)
    figure = Figure(figsize=(12, 2.2 + 0.36 * len(rows)), layout="constrained")
    whole, parts = figure.subplots(1, 2)
    for place, row in enumerate(reversed(rows)):
        one = row["metrics"][metric]
        color, marker = style_of[row["name"]]
        whole.plot([one["value"]], [place], color=color, marker=marker, linestyle="none")
        if None not in one["ci"]:
            whole.hlines(place, *one["ci"], color=color, linewidth=2)
        paper = row["published"].get(metric)
        if paper is not None:
            whole.plot([paper], [place], color="#9CA3AF", marker="|", markersize=12)
    whole.set_yticks(range(len(rows)), [row["name"] for row in reversed(rows)])
    if metric != "gap":
        whole.set_xlim(left=0)
    whole.set_title(metric)
    cases = {one["bucket"]: one["cases"] for one in rows[0]["buckets"] if one["cases"] >= MIN_CASES}
    for row in rows:
        color, marker = style_of[row["name"]]
        values = {one["bucket"]: one["metrics"][of_parts]["value"] for one in row["buckets"]}
        parts.plot(
            range(len(cases)),
            [values[bucket] for bucket in cases],
            color=color,
            marker=marker,
            markersize=5,
            linewidth=1.4,
            label=row["name"],
        )
    parts.set_xticks(
        range(len(cases)),
        [f"{bucket}\n{format_count(number)}" for bucket, number in cases.items()],
    )
    parts.set_ylim(bottom=0)
    parts.set_title(f"{of_parts} by {found['bucketing']}")
    legend_below(figure, parts, len(rows))
    return figure


def row_styles(names: Sequence[str], styles: Styles) -> Styles:
    """Colour and marker of each row: those of the report, or a pair that no other row has."""
    taken = {styles[name][0] for name in names if name in styles}
    colors = [color for color in reversed(PALETTE) if color not in taken] or PALETTE
    free = itertools.cycle(
        (color, MARKERS[(place + turn) % len(MARKERS)])
        for turn in range(len(MARKERS))  # where colours come again, they come with other markers
        for place, color in enumerate(colors)
        if (color, MARKERS[(place + turn) % len(MARKERS)]) not in styles.values()
    )
    return {name: styles[name] if name in styles else next(free) for name in names}
