"""The figure of quality against storage, with names beside the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from trainer.figure_style import Report, Styles, legend_below
from trainer.report_tables import format_bytes

Row = Mapping[str, Any]
UP, DOWN = "\u2191", "\u2193"


def quality_against_storage(report: Report, styles: Styles) -> Figure | None:
    """AUC of the main task over bytes of embeddings."""
    task = report["main_task"]
    known = [row for row in report["rows"] if row["metrics"][task]["auc"] is not None]
    stored = [row for row in known if row["sparse_bytes"]]
    if not stored:
        return None
    figure = Figure(figsize=(9, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    sizes = [row["sparse_bytes"] for row in stored]
    spread = max(max(sizes) / min(sizes), 1.3)
    obstacles: list[Box] = []
    points: list[tuple[float, Row]] = []
    for row, size in zip(stored, _side_by_side(sizes, spread), strict=True):
        points.append((size, row))
        found = row["metrics"][task]
        color, marker = styles[row["name"]]
        value = found["auc"]
        low, high = (value if end is None else end for end in found["auc_ci"])
        axes.errorbar(
            [size],
            [value],
            yerr=np.maximum([[value - low], [high - value]], 0),
            fmt=marker,
            color=color,
            markersize=8,
            elinewidth=1.6,
            capsize=3,
            label=row["name"],
        )
        obstacles.append(Box(np.log(size), np.log(size), low, high))
    axes.set_xlim(min(sizes) / spread**0.5, max(sizes) * spread**0.6)
    axes.xaxis.set_major_locator(
        LogLocator(subs=(1.0, 2.0, 5.0) if spread < 100 else (1.0,), numticks=12)
        if spread > 4
        else MaxNLocator(6)
    )
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_bytes(value)))
    low, high = min(box.low for box in obstacles), max(box.high for box in obstacles)
    room = max(high - low, 1e-4)
    for row in known:
        if not row["sparse_bytes"]:
            _reference(axes, row, task, styles, within=(low - room, high + room))
    axes.margins(y=0.12)
    if not _name_points(axes, task, points, obstacles, styles):
        legend_below(figure, axes, len(stored))
    axes.set_xlabel("embedding weights")
    axes.set_ylabel(f"{task} AUC ({report['split']['name']})")
    return figure


def _side_by_side(sizes: Sequence[int], spread: float) -> list[float]:
    """Where rows are drawn: those of equal size a little apart, around their size."""
    places = []
    for index, size in enumerate(sizes):
        equal = sizes.count(size)
        step = min(0.04, 0.2 / equal)
        places.append(size * spread ** (step * (sizes[:index].count(size) - (equal - 1) / 2)))
    return places


def _reference(
    axes: Axes, row: Row, task: str, styles: Styles, *, within: tuple[float, float]
) -> None:
    """A line for a row that stores no embeddings; a note at the edge where it is far away."""
    color, _ = styles[row["name"]]
    value, (low, high) = row["metrics"][task]["auc"], within
    near, above = low <= value <= high, value > high
    if near:
        axes.axhline(value, color=color, linestyle="--", linewidth=1.2)
        text, up = row["name"], 3.0
    else:
        edge = f"{above}"
        others = sum(note.get_gid() == edge for note in axes.texts)
        text = f"{UP if above else DOWN} {row['name']} {value:.4f}"
        up = -14.0 * (others + 1) if above else 6 + 14.0 * others
    note = axes.annotate(
        text,
        (0, value if near else float(above)),
        xycoords=("axes fraction", "data" if near else "axes fraction"),
        xytext=(6, up),
        textcoords="offset points",
        color=color,
        fontsize=9,
    )
    note.set_gid("" if near else f"{above}")


class Box(NamedTuple):
    """A rectangle that names keep clear of: logarithm of bytes, AUC."""

    left: float
    right: float
    low: float
    high: float

    def overlap(self, other: Box) -> bool:
        """Whether the two share a point."""
        return (
            self.left <= other.right
            and other.left <= self.right
            and self.low <= other.high
            and other.low <= self.high
        )


def _name_points(
    axes: Axes,
    task: str,
    points: Sequence[tuple[float, Row]],
    obstacles: list[Box],
    styles: Styles,
) -> bool:
    """Write each row's name at the first free place: right, left, above or below its bar.

    Returns:
        Whether every name found a place; nothing is written otherwise.
    """
    texts: list[tuple[float, float, Literal["left", "right", "center"], str]] = []
    left, right = np.log(axes.get_xlim())
    low, high = axes.get_ylim()
    line, gap = 0.045 * (high - low), 0.016 * (right - left)
    for size, row in sorted(points, key=lambda point: -point[1]["metrics"][task]["auc"]):
        value, x = row["metrics"][task]["auc"], np.log(size)
        bar = next(box for box in obstacles if box.left == x and box.low <= value <= box.high)
        width = 0.0135 * len(row["name"]) * (right - left)
        places: dict[Literal["left", "right", "center"], list[tuple[float, float]]] = {
            "left": [(x + gap, value + step * line) for step in (0, 1, -1)],
            "right": [(x - gap, value + step * line) for step in (0, 1, -1)],
            "center": [(x, bar.high + line), (x, bar.low - line)],
        }
        for align, at in ((align, at) for align, found in places.items() for at in found):
            shift = {"left": 0.0, "right": -width, "center": -width / 2}[align]
            box = Box(at[0] + shift, at[0] + shift + width, at[1] - line / 2, at[1] + line / 2)
            inside = left < box.left and box.right < right and low < box.low and box.high < high
            if inside and not any(map(box.overlap, obstacles)):
                break
        else:
            return False
        obstacles.append(box)
        texts.append((float(np.exp(at[0])), at[1], align, row["name"]))
    for x, y, align, name in texts:
        axes.text(
            x, y, name, ha=align, va="center", color=styles[name][0], fontsize=9, fontweight="bold"
        )
    return True
