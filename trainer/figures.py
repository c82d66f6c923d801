"""Figures of a report, drawn from the `report.json` dictionary into PNG files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from trainer.figure_style import STYLE, Report, Styles, legend_below, row_styles
from trainer.report_tables import format_count
from trainer.retrieval_figure import retrieval
from trainer.storage_figure import quality_against_storage
from trainer.study_figures import embedding_spectrum, gain_map, norm_variance
from trainer.sweep_figure import sweep
from trainer.verdict import MIN_BUCKET_ROWS

FIGURE_CAPTIONS = {
    "retrieval": (
        "What is retrieved",
        "The study's metric over the whole catalogue with 95 % bootstrap intervals over users, and "
        "by the user's impressions in training (below: cases). Grey strokes: the paper's values, "
        "on another log.",
    ),
    "quality_against_storage": (
        "Quality against storage",
        "AUC of the main task against bytes of embedding weights, logarithmic. Bars: 95 % "
        "bootstrap intervals over users; rows of equal size stand side by side. Dashed: rows "
        "without embeddings.",
    ),
    "gain_by_bucket": (
        "Where the difference lies",
        "Difference in AUC to the reference row (the line at 0), with paired 95 % intervals. "
        f"Below each bucket: its rows. Buckets under {MIN_BUCKET_ROWS} rows are left out; bars of "
        "buckets under 2 % of the rows may run out of the frame.",
    ),
    "gain_map": (
        "Gain by row and bucket",
        "Difference in AUC to the reference row; a star and bold print where the paired 95 % "
        f"interval leaves 0. Below each bucket: its rows; under {MIN_BUCKET_ROWS} it is left out.",
    ),
    "norm_variance": (
        "Norms of embeddings over training",
        "Variance of the norms of embedding rows that training has looked up, and their relative "
        "spread, at each checkpoint of the first seed (TRM Figure 1). `item vector` is what the "
        "network makes of an item's embeddings, of one width in every row.",
    ),
    "embedding_spectrum": (
        "Spectrum of embeddings",
        "Share of the variance along each principal direction at the end of training, and the "
        "effective rank (exponential of the spectrum's entropy) over the width (TRM A.1.5).",
    ),
    "sweep": (
        "What the size changes",
        "AUC of the main task with 95 % bootstrap intervals over users, and the FLOPs of one "
        "forward and backward pass, against the size that the study varies.",
    ),
    "training_curves": (
        "Training",
        "Training loss of the labels (means over stretches of a curve) and AUC on the validation "
        "part against impressions trained on; one line a seed.",
    ),
    "calibration": (
        "Calibration",
        "Observed rate minus predicted probability in twenty bins of equal size, main task, "
        "first seed. On the line at 0 a prediction can be taken at its word.",
    ),
}

CURVE_POINTS = 60


def draw_figures(report: Report, folder: Path) -> dict[str, Path]:
    """Draw every figure that the report has data for.

    Returns:
        Name -> path of `<folder>/<name>.png`, in the order in which they are shown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawers: dict[str, Callable[[Report, Styles], Figure | None]] = {
        "retrieval": retrieval,
        "quality_against_storage": quality_against_storage,
        "gain_by_bucket": gain_by_bucket,
        "gain_map": gain_map,
        "norm_variance": norm_variance,
        "embedding_spectrum": embedding_spectrum,
        "sweep": sweep,
        "training_curves": training_curves,
        "calibration": calibration,
    }
    styles = row_styles(report)
    paths = {}
    with mpl.rc_context(STYLE):
        for name, draw in drawers.items():
            figure = draw(report, styles)
            if figure is None:
                continue
            FigureCanvasAgg(figure)
            unfinished = folder / f".{name}.{os.getpid()}.png"
            figure.savefig(unfinished, dpi=160, facecolor="white")
            paths[name] = folder / f"{name}.png"
            os.replace(unfinished, paths[name])
    return paths


def gain_by_bucket(report: Report, styles: Styles) -> Figure | None:
    """Paired differences to the reference row by bucket, a panel for each bucketing."""
    task = report["main_task"]
    models = [row["name"] for row in report["rows"] if row["kind"] == "model"]
    pairs = [
        pair
        for pair in report["bucket_pairs"]
        if pair["task"] == task
        and pair["a"] in models
        and pair["rows"] >= MIN_BUCKET_ROWS
        and pair["difference"] is not None
        and None not in pair["ci"]
    ]
    if not pairs:
        return None
    cuts = [cut for cut in report["bucketings"] if any(pair["bucketing"] == cut for pair in pairs)]
    names = [name for name in models if any(pair["a"] == name for pair in pairs)]
    figure = Figure(figsize=(12, 4.8), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(cuts), sharey=True))
    for axes, cut in zip(panels, cuts, strict=True):
        here = [pair for pair in pairs if pair["bucketing"] == cut]
        buckets = list(dict.fromkeys(pair["bucket"] for pair in here))
        for index, name in enumerate(names):
            shown = [pair for pair in here if pair["a"] == name]
            shift = (index - (len(names) - 1) / 2) * min(0.17, 0.7 / len(names))
            value = np.array([pair["difference"] for pair in shown])
            ends = np.array([pair["ci"] for pair in shown])
            color, marker = styles[name]
            axes.errorbar(
                [buckets.index(pair["bucket"]) + shift for pair in shown],
                value,
                yerr=np.maximum([value - ends[:, 0], ends[:, 1] - value], 0),
                fmt=marker,
                color=color,
                markersize=6,
                elinewidth=1.5,
                label=name,
            )
        rows = {pair["bucket"]: pair["rows"] for pair in here}
        axes.set_xticks(
            range(len(buckets)), [f"{name}\n{format_count(rows[name])}" for name in buckets]
        )
        axes.set_xlim(-0.6, len(buckets) - 0.4)
        axes.grid(visible=False, axis="x")
        axes.axhline(0, color="#111827", linewidth=1.2)
        axes.set_title(report["bucketings"][cut])
    panels[0].set_ylabel(f"{task} AUC minus {report['reference']}")
    panels[0].set_ylim(*_frame(pairs))
    legend_below(figure, panels[0], len(names))
    return figure


def _frame(pairs: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Hold every point, and every interval of a bucket with at least 2 % of the rows."""
    whole = max(
        sum(p["rows"] for p in pairs if (p["a"], p["bucketing"]) == key)
        for key in {(p["a"], p["bucketing"]) for p in pairs}
    )
    held = [0.0, *(pair["difference"] for pair in pairs)]
    held += [end for pair in pairs if pair["rows"] >= 0.02 * whole for end in pair["ci"]]
    margin = 0.08 * max(max(held) - min(held), 1e-6)
    return min(held) - margin, max(held) + margin


def training_curves(report: Report, styles: Styles) -> Figure | None:
    """Training loss and validation AUC over impressions."""
    rows = [row for row in report["rows"] if any(curve["points"] for curve in row["curves"])]
    if not rows:
        return None
    figure = Figure(figsize=(12, 4.4), layout="constrained")
    loss_axes, auc_axes = figure.subplots(1, 2)
    for row in rows:
        color, marker = styles[row["name"]]
        for index, curve in enumerate(row["curves"]):
            label = row["name"] if index == 0 else None
            samples, losses = _series(curve["points"], "loss")
            samples, losses = _block_means(samples), _block_means(losses)
            loss_axes.plot(samples, losses, color=color, linewidth=1.4)
            samples, values = _series(curve["points"], "valid_auc")
            auc_axes.plot(
                samples,
                values,
                color=color,
                linewidth=1.4,
                marker=marker,
                markersize=4,
                label=label,
            )
    loss_axes.set_title("training loss")
    auc_axes.set_title(f"{report['main_task']} AUC on valid")
    for axes in (loss_axes, auc_axes):
        axes.set_xlabel("impressions")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
    legend_below(figure, auc_axes, len(rows))  # whose lines have markers: colours come again
    return figure


def _series(
    points: Sequence[Mapping[str, Any]], name: str
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    held = [(point["samples"], point[name]) for point in points if point[name] is not None]
    array = np.array(held, dtype=np.float64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def _block_means(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    parts = np.array_split(values, min(CURVE_POINTS, len(values)) or 1)
    return np.array([part.mean() for part in parts if len(part)])


def calibration(report: Report, styles: Styles) -> Figure | None:
    """Observed minus predicted rate over the prediction."""
    task = report["main_task"]
    figure = Figure(figsize=(9, 4.8), layout="constrained")
    axes = figure.add_subplot()
    for row in report["rows"]:
        bins = row["calibration_bins"][task]
        predicted = np.array([one["predicted"] for one in bins])
        observed = np.array([one["observed"] for one in bins])
        color, marker = styles[row["name"]]
        axes.plot(
            predicted,
            observed - predicted,
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.4,
            alpha=0.9,
            label=row["name"],
        )
    axes.axhline(0, color="#111827", linewidth=1.2)
    axes.set_xlabel(f"predicted probability of {task}")
    axes.set_ylabel("observed minus predicted")
    legend_below(figure, axes, len(report["rows"]))
    return figure
