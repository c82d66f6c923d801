"""Figures of plans: memory of ranks, places of shards, and systems side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sharding.cost import MEMORY_PARTS, TIERS

Report = dict[str, Any]
_PART_COLOURS = ("#0072B2", "#56B4E9", "#CC79A7", "#D55E00", "#9CA3AF", "#F3F4F6")
_TYPE_COLOURS = {
    "data_parallel": "#009E73",
    "table_wise": "#0072B2",
    "column_wise": "#56B4E9",
    "row_wise": "#D55E00",
    "table_row_wise": "#B8860B",
    "table_column_wise": "#5B4B8A",
    "grid_shard": "#CC79A7",
}
_ROLE_COLOURS = ("#D55E00", "#56B4E9", "#0072B2", "#9CA3AF", "#009E73")
_MACHINE_COLOURS = colormaps["Dark2"]
_MOST_BARS = 256


def write_figures(target: Report, folder: Path, stem: str) -> list[str]:
    """Write `<stem>_memory.png` and `<stem>_shards.png`; returns their names.

    Args:
        target: an entry of a report's `targets` that fits.
        folder: where the files go.
        stem: beginning of the file names.
    """
    names = []
    for kind, draw in (("memory", _memory), ("shards", _shards)):
        name = f"{stem}_{kind}.png"
        unfinished = folder / f".{name}"
        draw(target).savefig(unfinished, dpi=130, format="png")
        unfinished.replace(folder / name)
        names.append(name)
    return names


def _memory(target: Report) -> Figure:
    tiers = [tier for tier in TIERS if any(target["memory_by_rank"][tier]["weights"])]
    figure = Figure(figsize=(10, 0.6 + 2.9 * max(1, len(tiers))), layout="constrained")
    step = -(-target["num_ranks"] // _MOST_BARS)
    ranks = np.arange(0, target["num_ranks"], step)
    for index, tier in enumerate(tiers):
        axes = figure.add_subplot(len(tiers), 1, index + 1)
        bottom = np.zeros(len(ranks))
        for part, colour in zip(MEMORY_PARTS, _PART_COLOURS, strict=True):
            values = np.asarray(target["memory_by_rank"][tier][part])[ranks] / 1e9
            axes.bar(ranks, values, width=step, bottom=bottom, color=colour, label=part)
            bottom += values
        axes.set_ylabel(f"{tier.upper()} in GB")
        axes.set_xlim(-0.5 * step, target["num_ranks"] - 0.5 * step)
        axes.spines[["top", "right"]].set_visible(False)
        every = "" if step == 1 else f" (one of every {step} is drawn)"
        axes.set_xlabel(f"rank{every}")
    handles = [Patch(color=c, label=p) for p, c in zip(MEMORY_PARTS, _PART_COLOURS, strict=True)]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"Memory of each rank: {target['cluster']}", x=0.01, ha="left", fontsize=11)
    return figure


def _shards(target: Report) -> Figure:
    tables = target["tables"]
    figure = Figure(figsize=(10, 1.6 + 0.22 * len(tables)), layout="constrained")
    axes = figure.add_subplot()
    kinds = list(_TYPE_COLOURS)
    grid = np.zeros((len(tables), target["num_ranks"]), np.int64)
    for index, table in enumerate(tables):
        grid[index, table["ranks"]] = 1 + kinds.index(table["sharding_type"])
    colours = ListedColormap(["#FFFFFF", *_TYPE_COLOURS.values()])
    axes.imshow(grid, aspect="auto", cmap=colours, vmin=0, vmax=len(kinds), interpolation="nearest")
    axes.set_yticks(range(len(tables)), [table["name"] for table in tables], fontsize=7)
    axes.set_xlabel("rank")
    used = sorted({table["sharding_type"] for table in tables}, key=kinds.index)
    figure.legend(
        handles=[Patch(color=_TYPE_COLOURS[kind], label=kind) for kind in used],
        loc="outside lower center",
        ncols=len(used),
        frameon=False,
    )
    figure.suptitle(
        f"Where each table's shards lie: {target['cluster']}", x=0.01, ha="left", fontsize=11
    )
    return figure


def write_storage_figure(report: Report, folder: Path) -> str:
    """Write `storage.png`: parameters by role, and the least number of ranks by machine.

    Args:
        report: of :func:`sharding.compare.compare_storage`.
        folder: where the file goes.
    """
    systems = report["systems"]
    titles = [system["title"] for system in systems][::-1]
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(systems)), layout="constrained")
    left_axes, right_axes = figure.subplots(1, 2, sharey=True)
    left = np.zeros(len(systems))
    for index, role in enumerate(systems[0]["parameters_by_role"]):
        values = np.array([s["parameters_by_role"][role] for s in systems][::-1]) / 1e12
        if values.any():
            left_axes.barh(titles, values, left=left, color=_ROLE_COLOURS[index], label=role)
            left += values
    left_axes.bar_label(left_axes.containers[-1], [f"{total:.2f} T" for total in left], padding=3)
    left_axes.set_xlabel("sparse parameters in 10^12")
    left_axes.set_xlim(0, 1.15 * left.max())
    left_axes.legend(frameon=False, fontsize=8, loc="lower right")
    names = [machine["name"] for machine in report["machines"]]
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        ranks = [system["machines"][name]["num_ranks"] for system in systems][::-1]
        places = np.arange(len(systems)) + 0.4 - (index + 0.5) * height
        bars = right_axes.barh(places, ranks, height, label=name, color=_MACHINE_COLOURS(index))
        right_axes.bar_label(bars, padding=2, fontsize=7)
    right_axes.set_xlabel("least number of GPUs (or CPU ranks), planned")
    right_axes.legend(frameon=False, fontsize=8, loc="lower right")
    for axes in (left_axes, right_axes):
        axes.spines[["top", "right"]].set_visible(False)
    unfinished = folder / ".storage.png"
    figure.savefig(unfinished, dpi=130, format="png")
    unfinished.replace(folder / "storage.png")
    return "storage.png"
