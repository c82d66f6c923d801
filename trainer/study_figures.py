"""Figures of studies: gain by row and bucket as a map, and the geometry of embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from trainer.figure_style import Report, Styles, legend_below
from trainer.report_tables import format_count
from trainer.verdict import MIN_BUCKET_ROWS

LINES = ("-", "--", ":", "-.")
_PLAIN = FuncFormatter(lambda value, _: f"{value:g}")
"""Logarithmic axes would write powers as formulas, which our figures do not set."""


def gain_map(report: Report, styles: Styles) -> Figure | None:
    """Gain over the reference by row (down) and bucket (across), where the study names a cut."""
    cut = (report.get("study") or {}).get("heat_map")
    names = [
        row["name"]
        for row in report["rows"]
        if row["kind"] == "model" and row["name"] != report["reference"]
    ]
    pairs = {
        (pair["a"], pair["bucket"]): pair
        for pair in report["bucket_pairs"]
        if pair["bucketing"] == cut
        and pair["task"] == report["main_task"]
        and pair["a"] in names
        and pair["rows"] >= MIN_BUCKET_ROWS
        and pair["difference"] is not None
        and None not in pair["ci"]
    }
    if not pairs:
        return None
    buckets = list(dict.fromkeys(bucket for _, bucket in pairs))
    gain = np.full((len(names), len(buckets)), np.nan)
    for (name, bucket), pair in pairs.items():
        gain[names.index(name), buckets.index(bucket)] = pair["difference"]
    figure = Figure(figsize=(9, 1.6 + 0.6 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    reach = max(float(np.nanmax(np.abs(gain))), 1e-6)
    image = axes.imshow(gain, cmap="RdBu_r", norm=TwoSlopeNorm(0.0, -reach, reach), aspect="auto")
    for (name, bucket), pair in pairs.items():
        sure = pair["ci"][0] > 0 or pair["ci"][1] < 0
        value = pair["difference"]
        axes.text(
            buckets.index(bucket),
            names.index(name),
            f"{value:+.4f}{'*' if sure else ''}",
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold" if sure else "normal",
            color="white" if abs(value) > 0.6 * reach else "#111827",
        )
    rows = {bucket: pair["rows"] for (_, bucket), pair in pairs.items()}
    axes.set_xticks(
        range(len(buckets)), [f"{name}\n{format_count(rows[name])}" for name in buckets]
    )
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False)
    axes.set_title(report["bucketings"][cut])
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(f"{report['main_task']} AUC minus {report['reference']}")
    return figure


def norm_variance(report: Report, styles: Styles) -> Figure | None:
    """Variance of embedding norms over training: a colour a row, a line style a table."""
    measured = _first_seeds(report)
    if not measured:
        return None
    tables = _tables(measured)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for one in measured:
        color, marker = styles[one["row"]]
        for table in tables:
            points = [point for point in one["points"] if point["table"] == table]
            if not points:
                continue
            for axes, value in zip(panels, ("norm_variance", "norm_spread"), strict=True):
                axes.plot(
                    [point["samples"] for point in points],
                    [point[value] for point in points],
                    color=color,
                    marker=marker,
                    markersize=4,
                    linestyle=LINES[tables.index(table) % len(LINES)],
                    linewidth=1.4,
                    label=f"{one['row']}: {table}",
                )
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter(_PLAIN)
    panels[0].set_title("variance of norms")
    panels[1].set_title("standard deviation of norms over their mean")
    for axes in panels:
        axes.set_xlabel("impressions")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    legend_below(figure, panels[0], sum(len(one["final"]) for one in measured))
    return figure


def embedding_spectrum(report: Report, styles: Styles) -> Figure | None:
    """Share of variance by principal direction, and effective rank over dense parameters."""
    measured = _first_seeds(report)
    if not measured:
        return None
    tables = _tables(measured)
    dense = {row["name"]: row["dense_params"] for row in report["rows"]}
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    shares_axes, rank_axes = figure.subplots(1, 2)
    for one in measured:
        color, marker = styles[one["row"]]
        for table, final in one["final"].items():
            shares = np.array(final["spectrum"])
            shares_axes.plot(
                np.arange(1, len(shares) + 1),
                np.maximum(shares, 1e-6),
                color=color,
                linestyle=LINES[tables.index(table) % len(LINES)],
                linewidth=1.4,
                label=f"{one['row']}: {table}",
            )
            rank_axes.plot(
                dense[one["row"]],
                final["effective_rank"] / final["dim"],
                color=color,
                marker=marker,
                fillstyle=("full", "none", "left", "right")[tables.index(table) % 4],
                linestyle="none",
            )
    shares_axes.set_yscale("log")
    shares_axes.yaxis.set_major_formatter(_PLAIN)
    shares_axes.set_xlabel("principal direction")
    shares_axes.set_title("share of variance")
    rank_axes.set_xscale("log")
    sizes = sorted({dense[one["row"]] for one in measured})
    rank_axes.set_xticks(sizes, [format_count(size) for size in sizes])
    rank_axes.minorticks_off()
    rank_axes.set_xlabel("dense parameters")
    rank_axes.set_title("effective rank over width")
    rank_axes.set_ylim(0, 1)
    legend_below(figure, shares_axes, sum(len(one["final"]) for one in measured))
    return figure


def _first_seeds(report: Report) -> list[Mapping[str, Any]]:
    """One measurement a row: that of its first seed."""
    by_row: dict[str, Mapping[str, Any]] = {}
    for one in report.get("geometry", ()):
        by_row.setdefault(one["row"], one)
    return list(by_row.values())


def _tables(measured: Sequence[Mapping[str, Any]]) -> list[str]:
    """Every table that is measured, in order of appearance."""
    return list(dict.fromkeys(table for one in measured for table in one["final"]))
