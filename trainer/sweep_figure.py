"""The figure of a sweep: quality and cost against the size that a study varies (STORE Fig. 2)."""

from __future__ import annotations

from matplotlib.figure import Figure

from trainer.figure_style import PALETTE, Report, Styles, legend_below


def sweep(report: Report, styles: Styles) -> Figure | None:
    """AUC of the main task with 95 % intervals, and training FLOPs; one line a series."""
    found = (report.get("study") or {}).get("sweep")
    if not found:
        return None
    task = report["main_task"]
    rows = {row["name"]: row for row in report["rows"]}
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    quality, cost = figure.subplots(1, 2)
    every = [point["value"] for point in found["points"]]
    width = max(every) - min(every)
    series = list(dict.fromkeys(point["series"] for point in found["points"]))
    for number, name in enumerate(series):
        color = PALETTE[number % len(PALETTE)]
        points = sorted(
            (point for point in found["points"] if point["series"] == name),
            key=lambda point: point["value"],
        )
        values = [point["value"] for point in points]
        measured = [rows[point["row"]]["metrics"][task] for point in points]
        quality.plot(values, [one["auc"] for one in measured], color=color, marker="o", label=name)
        bars = [
            (value, *one["auc_ci"])
            for value, one in zip(values, measured, strict=True)
            if one["auc_ci"] is not None and None not in one["auc_ci"]
        ]
        if bars:
            at, low, high = zip(*bars, strict=True)
            beside = 0.006 * width * (number - (len(series) - 1) / 2)  # bars do not hide each other
            quality.vlines(
                [value + beside for value in at], low, high, color=color, linewidth=1.2, alpha=0.6
            )
        flops = [rows[point["row"]]["flops_per_batch"] for point in points]
        if None not in flops:
            tera = [
                1e-12 * 1024 * count / rows[point["row"]]["batch_size"]
                for count, point in zip(flops, points, strict=True)
            ]
            cost.plot(values, tera, color=color, marker="o", label=name)
    quality.set_title(f"{task} AUC")
    cost.set_title("training TFLOPs a batch of 1,024")
    for axes in (quality, cost):
        axes.set_xlabel(found["axis"])
        axes.set_xticks(sorted(set(every)))
    cost.set_ylim(0, 1.1 * cost.get_ylim()[1])
    legend_below(figure, quality, len(series))
    return figure
