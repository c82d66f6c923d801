"""The scaling study shown: figure, tables, Markdown and HTML, all from `scaling.json`."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from trainer.figure_style import MARKERS, PALETTE, STYLE, legend_below
from trainer.report_tables import (
    ABSENT,
    Cell,
    ReportTable,
    format_count,
    format_seconds,
    markdown_table,
)
from trainer.run_folder import write_json
from trainer.scaling_law import PowerLaw

AXES = (
    ("dense_params", "dense parameters N"),
    ("flops_per_batch", "training FLOPs per batch"),
)
CAPTION = (
    "Above: loss on the test rows; lines on the left are the fitted laws. Below: gain in QAUC over "
    "the baseline, with paired 95 % intervals over users. All size axes are logarithmic."
)

Report = Mapping[str, Any]


def scaling_figure(report: Report) -> Figure:
    """Loss and gain in QAUC over parameters and FLOPs."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(2, 2)
    for number, side in enumerate(report["sides"]):
        color, marker = PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)]
        points = side["points"]
        loss = np.array([point["logloss"] for point in points])
        known = [point for point in points if None not in point["qauc_gain_ci"]]
        for column, (key, _) in enumerate(AXES):
            size = np.array([point[key] for point in points])
            panels[0, column].plot(
                size,
                loss,
                color=color,
                marker=marker,
                linestyle="none" if column == 0 else "-",
                linewidth=1.0,
                label=side["title"],
            )
            gain = np.array([point["qauc_gain_percent"] for point in known])
            ends = np.array([point["qauc_gain_ci"] for point in known]).reshape(-1, 2)
            panels[1, column].errorbar(
                [point[key] for point in known],
                gain,
                yerr=np.maximum([gain - ends[:, 0], ends[:, 1] - gain], 0),
                color=color,
                marker=marker,
                elinewidth=0.8,
                linewidth=1.2,
            )
        panels[0, 0].plot(*_fitted(side), color=color, linewidth=1.4)
    for column, (_, label) in enumerate(AXES):
        for axes in panels[:, column]:
            axes.set_xscale("log")
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_count(value)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        _log_losses(panels[0, column])
        panels[1, column].axhline(0, color="#111827", linewidth=1.0)
    panels[0, 0].set_ylabel(f"{report['task']} LogLoss")
    panels[1, 0].set_ylabel(f"{report['task']} QAUC gain over the baseline, %")
    legend_below(figure, panels[0, 0], len(report["sides"]))
    return figure


def _fitted(side: Mapping[str, Any]) -> tuple[Any, Any]:
    sizes = [point["dense_params"] for point in side["points"]]
    fit = side["fit"]
    law = PowerLaw(
        floor=fit["floor"],
        factor=fit["factor"],
        exponent=float("nan") if fit["exponent"] is None else fit["exponent"],
    )
    shown = np.geomspace(min(sizes), max(sizes), 100)
    return shown, law(shown)


def _log_losses(axes: Axes) -> None:
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.4g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    low, high = axes.get_ylim()
    axes.set_yticks(np.geomspace(low, high, 6))
    axes.minorticks_off()


def points_table(report: Report) -> ReportTable:
    """Every model: size, cost, loss, gain."""
    rows = []
    for side in report["sides"]:
        for point in side["points"]:
            seeds = " ".join(f"{loss:.5f}"[1:] for loss in point["logloss_by_seed"])
            gain, ends = point["qauc_gain_percent"], point["qauc_gain_ci"]
            rows.append(
                (
                    Cell(side["title"]),
                    Cell(format_count(point["dense_params"])),
                    Cell(format_count(point["flops_per_batch"])),
                    Cell(
                        f"{point['logloss']:.5f}",
                        f"seeds {seeds}" if len(point["logloss_by_seed"]) > 1 else "",
                    ),
                    Cell(ABSENT if point["qauc"] is None else f"{point['qauc']:.4f}"),
                    Cell(
                        ABSENT if gain is None else f"{gain:+.2f} %",
                        "" if None in ends else f"[{ends[0]:+.2f} {ends[1]:+.2f}]",
                    ),
                    Cell(format_seconds(point["train_seconds"])),
                )
            )
    base = report["baseline"]
    first = report["sides"][0]["points"][0]
    note = (
        f"{report['task']} on {report['split']['stop'] - report['split']['start']:,} test rows of "
        f"{report['split']['users']:,} users, after {report['samples']:,} impressions. FLOPs: "
        f"forward + backward, batch of {first['flops_batch']:,}. Gain: QAUC over the baseline of "
        f"{format_count(base['dense_params'])} dense parameters (LogLoss {base['logloss']:.5f}), "
        "95 % intervals over users."
    )
    return ReportTable(
        title="Models",
        note=note,
        columns=("", "dense", "FLOPs", "LogLoss", "QAUC", "QAUC gain", "time"),
        rows=tuple(rows),
    )


def laws_table(report: Report) -> ReportTable:
    """The law of every side."""
    rows = []
    for side in report["sides"]:
        fit = side["fit"]
        rows.append(
            (
                Cell(side["title"]),
                Cell(side["kind"]),
                Cell(
                    ABSENT if fit["exponent"] is None else f"{fit['exponent']:.3f}",
                    _ends(fit["exponent_ci"], 2),
                ),
                Cell(f"{fit['floor']:.4f}", _ends(fit["floor_ci"], 4)),
                Cell(f"{fit['factor']:.3g}"),
                Cell(f"{fit['noise']:.5f}"),
                Cell(f"{100 * fit['undefined']:.0f} %"),
            )
        )
    note = (
        "L(N) = L_inf + A N^-beta (TRM Eq. 8), N dense parameters; 95 % intervals over test users "
        "and trainings. Scatter: of a mean loss from one training to the next. No exponent: draws "
        "in which loss does not fall with size."
    )
    columns = ("", "items are", "beta", "L_inf", "A", "scatter", "no exponent")
    return ReportTable(title="Laws", note=note, columns=columns, rows=tuple(rows))


def exponents_table(report: Report) -> ReportTable:
    """beta_token - beta_id for every pair of sides."""
    rows = [
        (
            Cell(f"{one['a']} - {one['b']}"),
            Cell(
                ABSENT if one["difference"] is None else f"{one['difference']:+.3f}",
                _ends(one["ci"], 2),
            ),
            Cell(f"{100 * one['undefined']:.0f} %"),
            Cell(one["verdict"]),
        )
        for one in report["exponents"]
    ]
    columns = ("", "difference of beta", "no exponent", "token side's beta")
    return ReportTable(title="Exponents", note="", columns=columns, rows=tuple(rows))


def _ends(ends: list[float | None], digits: int) -> str:
    return "" if None in ends else "[" + " ".join(f"{end:.{digits}f}" for end in ends) + "]"


def tables(report: Report) -> tuple[ReportTable, ...]:
    """All tables, in the order in which they are read."""
    return laws_table(report), exponents_table(report), points_table(report)


def markdown(report: Report) -> str:
    """The report as Markdown, figure beside it."""
    lines = [f"# Scaling study {report['study']}", "", f"**{report['words'][0]}**", ""]
    lines += [f"* {word}" for word in report["words"][1:]]
    lines += ["", "![loss and gain over size](scaling.png)", "", CAPTION, ""]
    for table in tables(report):
        lines += markdown_table(table)
    lines += ["## How it was run", ""]
    lines += [f"* {name}: {value}" for name, value in facts(report)]
    return "\n".join(lines) + "\n"


def facts(report: Report) -> list[tuple[str, str]]:
    """What was run where, as name and value."""
    return [
        ("command", report["command"]),
        ("data set", report["dataset"]),
        ("seeds", str(report["seeds"])),
        *report["machine"].items(),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
    ]


def write_scaling_report(folder: Path, report: Report) -> Path:
    """Write `scaling.json`, `.md`, `.png` and `.html` into `folder`; returns the last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "scaling.json", report)
    with mpl.rc_context(STYLE):
        figure = scaling_figure(report)
        FigureCanvasAgg(figure)
        unfinished = folder / f".scaling.{os.getpid()}.png"
        figure.savefig(unfinished, dpi=140, facecolor="white")
        os.replace(unfinished, folder / "scaling.png")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("scaling.html.j2").render(
        report=report,
        tables=tables(report),
        caption=CAPTION,
        image=base64.b64encode((folder / "scaling.png").read_bytes()).decode("ascii"),
        facts=facts(report),
    )
    for name, text in (("scaling.md", markdown(report)), ("scaling.html", page)):
        unfinished = folder / f".{name}.{os.getpid()}.tmp"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, folder / name)
    return folder / "scaling.html"
