"""Colours, markers and fonts that all figures of a report share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#5B4B8A", "#7A3E1D")
GREYS = ("#6B7280", "#9CA3AF", "#4B5563")
MARKERS = ("o", "s", "D", "^", "v", "P")
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9CA3AF",
    "axes.labelcolor": "#374151",
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#E5E7EB",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": "#4B5563",
    "ytick.color": "#4B5563",
    "text.color": "#111827",
    "legend.frameon": False,
    # A name from data is text, never mathematics.
    "text.parse_math": False,
}

Report = Mapping[str, Any]
Styles = Mapping[str, tuple[str, str]]
"""Row name -> colour and marker."""


def row_styles(report: Report) -> dict[str, tuple[str, str]]:
    """Colour and marker of each row: baselines grey, one marker a tower."""
    towers = list(dict.fromkeys(row["tower"] for row in report["rows"] if row["kind"] == "model"))
    styles = {}
    num_models = num_others = 0
    for row in report["rows"]:
        if row["kind"] == "model":
            marker = MARKERS[towers.index(row["tower"]) % len(MARKERS)]
            styles[row["name"]] = (PALETTE[num_models % len(PALETTE)], marker)
            num_models += 1
        else:
            styles[row["name"]] = (GREYS[num_others % len(GREYS)], "x")
            num_others += 1
    return styles


def legend_below(figure: Figure, axes: Axes, entries: int) -> None:
    """Put the legend of `axes` under all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=entries if entries < 5 else 3, fontsize=9
    )
