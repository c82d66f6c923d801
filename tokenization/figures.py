"""The picture of a token quality report."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#B8860B", "#5B4B8A", "#7A3E1D")
_GREY = "#9CA3AF"
_MARKED = 8  # levels that get a colour of their own; more are drawn in grey
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GREY,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E5E7EB",
    "legend.frameon": False,
    "text.parse_math": False,
}


def draw_quality(report: dict[str, Any]) -> bytes:
    """Return a PNG of six panels.

    Args:
        report: values of `tokenization.report.measure`.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(13, 7.5), layout="constrained", dpi=110)
        panels = figure.subplots(2, 3)
        levels = report["quality"]["levels"]
        _distortion(panels[0, 0], levels)
        _use(panels[0, 1], levels, len(report["code_counts"][0]))
        _balance(panels[0, 2], report["code_counts"])
        _neighbours(panels[1, 0], report.get("neighbour_recall"))
        _histogram(
            panels[1, 1],
            report["mem_token_frequency"],
            "Mem-tokens by items that have them",
            "items",
        )
        _histogram(
            panels[1, 2], report["mem_token_length"], "Mem-tokens by codes they join", "codes"
        )
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _distortion(axes: Axes, levels: list[dict[str, Any]]) -> None:
    numbers = np.arange(len(levels) + 1)
    shares = [1.0] + [level["distortion_share"] for level in levels]
    axes.plot(numbers, shares, color=_COLOURS[0], marker="o")
    if len(levels) <= _MARKED:
        for number, share in zip(numbers, shares, strict=True):
            axes.annotate(
                f"{share:.0%}", (number, share), textcoords="offset points", xytext=(5, 5)
            )
    axes.set_title("Variance left after each level")
    axes.set_xlabel("levels decoded")
    axes.set_ylim(0, max(1.1, *shares))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _use(axes: Axes, levels: list[dict[str, Any]], num_codes: int) -> None:
    numbers = np.arange(1, len(levels) + 1)
    used = [level["utilization"] for level in levels]
    even = [level["perplexity"] / num_codes for level in levels]
    axes.bar(numbers - 0.2, used, 0.38, color=_COLOURS[0], label="codes that occur")
    axes.bar(numbers + 0.2, even, 0.38, color=_COLOURS[1], label="perplexity / codes")
    axes.set_title("Use of the codebooks")
    axes.set_xlabel("level")
    axes.set_ylim(0, 1.18)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.legend(loc="upper right", ncols=2, fontsize=8)


def _balance(axes: Axes, code_counts: list[list[int]]) -> None:
    for level, counts in enumerate(code_counts):
        ordered = np.sort(np.array(counts))
        share = np.concatenate([[0.0], np.cumsum(ordered) / max(ordered.sum(), 1)])
        named = level < _MARKED
        axes.plot(
            np.linspace(0, 1, len(share)),
            share,
            color=_COLOURS[level] if named else _GREY,
            linewidth=1.6 if named else 0.8,
            label=f"level {level + 1}" if named else None,
        )
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle="--", linewidth=1, label="all equal")
    axes.set_title("Balance (Lorenz curves)")
    axes.set_xlabel("share of codes, rarest first")
    axes.set_ylabel("share of items")
    axes.legend(loc="upper left", fontsize=8)


def _neighbours(axes: Axes, recall: list[dict[str, float]] | None) -> None:
    axes.set_title("Co-click neighbours that share the first codes")
    if recall is None:
        axes.text(0.5, 0.5, "no log given", ha="center", transform=axes.transAxes, color=_GREY)
        axes.set_axis_off()
        return
    lengths = [entry["length"] for entry in recall]
    axes.plot(lengths, [e["recall"] for e in recall], color=_COLOURS[0], marker="o", label="ours")
    chance = [max(entry["chance"], 1e-6) for entry in recall]
    axes.plot(lengths, chance, color=_GREY, marker="x", label="random pairs")
    axes.set_yscale("log")
    axes.set_xlabel("codes shared")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.4%}".rstrip("0%").rstrip(".") + "%")
    axes.legend(fontsize=8)


def _histogram(axes: Axes, counts: dict[str, int], title: str, label: str) -> None:
    axes.set_title(title)
    if not counts or not sum(counts.values()):
        axes.text(0.5, 0.5, "no mem-tokens", ha="center", transform=axes.transAxes, color=_GREY)
        axes.set_axis_off()
        return
    bars = axes.bar(list(counts), list(counts.values()), color=_COLOURS[2])
    axes.bar_label(bars, fmt="{:,.0f}", fontsize=8, padding=2)
    axes.set_xlabel(label)
    axes.tick_params(axis="x", labelrotation=30 if len(counts) > 6 else 0)
    axes.margins(y=0.12)
