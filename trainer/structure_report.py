"""Tables, text and figure of a comparison of structures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from trainer.structure import Report

PARAMETER_TOLERANCE, FLOPS_TOLERANCE = 0.02, 0.15
"""Relative distance from a published number that counts as met."""
Colour = tuple[float, float, float, float]
_COLOURS = colormaps["tab20"]


def ratio_to_published(entry: Report, what: str) -> float | None:
    """Ours over the paper's; None where the paper says nothing."""
    published = entry["published"][what]
    return None if published is None else entry[what] / published


def missed(entry: Report) -> list[str]:
    """The published numbers that a model is too far from."""
    found = []
    for what, tolerance in (
        ("dense_parameters", PARAMETER_TOLERANCE),
        ("training_flops", FLOPS_TOLERANCE),
    ):
        ratio = ratio_to_published(entry, what)
        if ratio is not None and abs(ratio - 1) > tolerance:
            found.append(what)
    return found


def size_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row a model: parameters and FLOPs beside the paper's."""
    header = ["model", "dense", "paper", "ratio", "sparse", "paper", "FLOPs", "paper", "ratio"]
    rows = []
    for entry in report["models"]:
        published = entry["published"]
        row = [entry["title"]]
        for what, unit, sign in (
            ("dense_parameters", 1e6, "M"),
            ("sparse_parameters", 1e12, "T"),
            ("training_flops", 1e12, "T"),
        ):
            digits = 0 if sign == "M" else 2
            row.append(f"{entry[what] / unit:,.{digits or 1}f}{sign}")
            paper = published[what]
            row.append("-" if paper is None else f"{paper / unit:,.{digits}f}{sign}")
            if what != "sparse_parameters":
                ratio = ratio_to_published(entry, what)
                mark = " *" if what in missed(entry) else ""
                row.append("-" if ratio is None else f"{ratio:.3f}{mark}")
        rows.append(row)
    return header, rows


def part_rows(report: Report) -> tuple[list[str], list[list[str]]]:
    """Header and one row a model: where parameters lie and FLOPs go."""
    header = ["model", "tower", "item encoder", "history", "dense input", "next token"]
    header += ["FLOPs of items", "of next token", "over 6 P B"]
    rows = []
    for entry in report["models"]:
        parts = entry["dense_parameters_by_part"]
        sizes = (
            parts.get("tower", 0),
            parts.get("item_encoder", 0),
            parts.get("history", 0) + parts.get("feedback_sum", 0),
            parts.get("dense_arch", 0),
            parts.get("next_token", 0),
        )
        flops = entry["training_flops"]
        rows.append(
            [
                entry["title"],
                *("-" if not size else f"{size / 1e6:,.2f}M" for size in sizes),
                f"{entry['training_flops_of_items'] / flops:.1%}",
                f"{entry['training_flops_of_next_token'] / flops:.1%}",
                f"{entry['flops_over_6pb']:.2f}",
            ]
        )
    return header, rows


def reasons(report: Report) -> list[str]:
    """One line for each model that misses a published number."""
    return [
        f"{entry['title']} ({', '.join(missed(entry)).replace('_', ' ')}): "
        f"{entry['reason'] or 'no reason is known.'}"
        for entry in report["models"]
        if missed(entry)
    ]


def structure_markdown(report: Report, figures: Sequence[str] = ()) -> str:
    """The comparison as markdown; `figures` are file names beside it."""
    batch = report["batch"]
    lines = [
        f"# {report['name']}",
        "",
        f"`farewell compare {report['name']}` counts this anew.",
        "",
        f"Per batch of {batch['batch_size']:,} impressions with {batch['history_length']} history "
        f"items each, {batch['num_distinct_items']:,} distinct items in all. A star: more than "
        f"{PARAMETER_TOLERANCE:.0%} (parameters) or {FLOPS_TOLERANCE:.0%} (FLOPs) from the "
        "paper's.",
        "",
    ]
    for title, (header, rows) in (
        ("Size beside the paper's", size_rows(report)),
        ("Where parameters lie and FLOPs go", part_rows(report)),
    ):
        lines += [f"## {title}", ""]
        lines += ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header))]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines.append("")
    if found := reasons(report):
        lines += ["## What is missed, and why", "", *(f"* {line}" for line in found), ""]
    lines += ["## What is counted", "", report["counted"], ""]
    lines += ["## Assumption", "", report["assumption"], ""]
    lines += [f"![{name}]({name})" for name in figures]
    return "\n".join(lines).rstrip() + "\n"


def write_structure_figure(report: Report, folder: Path) -> str:
    """Write `structure.png`: FLOPs over parameters, and FLOPs over 6 P B, ours and the paper's.

    Args:
        report: of :func:`trainer.structure.compare_structure`.
        folder: where the file goes.
    """
    entries = report["models"]
    series = list(dict.fromkeys(entry["series"] for entry in entries))
    colours = {name: _COLOURS(index % _COLOURS.N) for index, name in enumerate(series)}
    figure = Figure(figsize=(12, 2.2 + 0.26 * max(len(entries), 12)), layout="constrained")
    sizes, shares = figure.subplots(1, 2)
    _sizes(sizes, report, colours)
    _shares(shares, report, colours)
    for axes in (sizes, shares):
        axes.spines[["top", "right"]].set_visible(False)
    handles = [
        Line2D([], [], color="#374151", marker="o", ms=5, ls="", label="counted here"),
        Line2D([], [], color="#374151", marker="x", ms=7, ls="", label="the paper's"),
        Line2D([], [], color="#9CA3AF", ls=":", label="6 P B"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    unfinished = folder / ".structure.png"
    figure.savefig(unfinished, dpi=130, format="png")
    unfinished.replace(folder / "structure.png")
    return "structure.png"


def _sizes(axes: Axes, report: Report, colours: dict[str, Colour]) -> None:
    entries, batch_size = report["models"], report["batch"]["batch_size"]
    every = [entry["dense_parameters"] for entry in entries]
    span = np.array([0.7 * min(every), 1.4 * max(every)])
    axes.plot(span, 6 * span * batch_size, color="#9CA3AF", lw=1, ls=":")
    for name, colour in colours.items():
        own = [entry for entry in entries if entry["series"] == name]
        points = [(entry["dense_parameters"], entry["training_flops"]) for entry in own]
        axes.plot(*zip(*points, strict=True), marker="o", ms=5, lw=1, color=colour)
        for entry in own:
            if (paper := _published(entry)) is not None:
                axes.plot(*paper, marker="x", ms=7, ls="", color=colour)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("dense parameters")
    axes.set_ylabel(f"training FLOPs per batch of {batch_size:,}")


def _shares(axes: Axes, report: Report, colours: dict[str, Colour]) -> None:
    entries, batch_size = report["models"], report["batch"]["batch_size"]
    for place, entry in enumerate(reversed(entries)):
        colour = colours[entry["series"]]
        axes.plot(entry["flops_over_6pb"], place, marker="o", ms=5, color=colour)
        if (paper := _published(entry)) is not None:
            parameters, flops = paper
            axes.plot(flops / (6 * parameters * batch_size), place, marker="x", ms=7, color=colour)
    axes.axvline(1, color="#9CA3AF", lw=1, ls=":")
    axes.set_yticks(range(len(entries)), [entry["title"] for entry in entries][::-1], fontsize=8)
    axes.set_xlim(left=0)
    axes.set_xlabel("training FLOPs over 6 P B")


def _published(entry: Report) -> tuple[float, float] | None:
    """The paper's parameters and FLOPs, where it has both."""
    published = entry["published"]
    pair = published["dense_parameters"], published["training_flops"]
    return None if None in pair else pair
