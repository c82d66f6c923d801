"""Tables of a report as cells, shown alike in the terminal, in report.html and in report.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

QUALITY = (
    ("auc", "AUC", "higher"),
    ("gauc", "GAUC", "higher"),
    ("qauc", "QAUC", "higher"),
    ("logloss", "LogLoss", "lower"),
    ("ne", "NE", "lower"),
    ("calibration", "Cal.", "near 1"),
)
WITH_INTERVAL = ("auc", "gauc", "qauc")
ROLES = (
    ("item_id", "item id"),
    ("gen_token", "gen"),
    ("mem_token", "mem"),
    ("residual_id", "other id"),
    ("side", "side"),
)
ABSENT = "-"


@dataclass(frozen=True)
class Cell:
    """A value, what stands beside it (an interval, seeds), and whether it is the column's best."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table: the first column names rows."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def format_count(value: float | None) -> str:
    """A count in three digits: 1.23M."""
    if value is None:
        return ABSENT
    for limit, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def format_bytes(value: float | None) -> str:
    """Bytes in three digits, decimal units: 4.1 MB."""
    if value is None:
        return ABSENT
    for limit, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            scaled = value / limit
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
    return f"{value:.0f} B"


def format_seconds(value: float | None) -> str:
    """A duration: 45s, 2m05s."""
    if value is None:
        return ABSENT
    minutes, seconds = divmod(round(value), 60)
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def quality_table(report: Mapping[str, Any], task: str) -> ReportTable:
    """Metrics of one task, with 95 % intervals; the best model of a column is marked.

    The note stands under the last task's table.
    """
    models = [row["metrics"][task] for row in report["rows"] if row["kind"] == "model"]
    best: dict[str, float] = {}
    for metric, _, direction in QUALITY:
        values = [found[metric] for found in models if found[metric] is not None]
        if values and direction != "near 1":
            best[metric] = max(values) if direction == "higher" else min(values)
    columns = ("", *(name for _, name, _ in QUALITY))
    rows = []
    for row in report["rows"]:
        found = row["metrics"][task]
        cells = [Cell(row["name"], _seeds(row, found))]
        for metric, _, _ in QUALITY:
            value = found[metric]
            cells.append(
                Cell(
                    ABSENT if value is None else f"{value:.{2 if metric == 'calibration' else 4}f}",
                    _interval(found[f"{metric}_ci"]) if metric in WITH_INTERVAL else "",
                    best=row["kind"] == "model" and value == best.get(metric, object()),
                )
            )
        rows.append(tuple(cells))
    if task != report["tasks"][-1]:
        return ReportTable(title=f"Quality: {task}", note="", columns=columns, rows=tuple(rows))
    split = report["split"]
    note = (
        f"{split['stop'] - split['start']:,} {split['name']} rows of {split['users']:,} users. "
        "GAUC within users, QAUC within queries or sessions, both weighted by impressions. "
        f"95 % intervals: bootstrap over {report['bootstrap']['unit']}s. NE: LogLoss over the "
        "entropy of the base rate. Cal.: predicted over observed."
    )
    return ReportTable(title=f"Quality: {task}", note=note, columns=columns, rows=tuple(rows))


def _seeds(row: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """AUC of every seed, where there are several."""
    values = found["by_seed"]["auc"]
    if len(values) < 2:
        return ""
    return "seeds " + " ".join(ABSENT if v is None else f"{v:.4f}"[1:] for v in values)


def _interval(ends: list[float | None]) -> str:
    if None in ends:
        return ""
    return "[" + " ".join(f"{end:.4f}".removeprefix("0") for end in ends) + "]"


def cost_table(report: Mapping[str, Any]) -> ReportTable:
    """Parameters by role, bytes, FLOPs, throughput and memory."""
    rows = []
    for row in report["rows"]:
        if row["kind"] == "oracle":
            continue
        held = {role: value for role, value in row["sparse_params"].items() if value}
        cells = [
            Cell(row["name"]),
            Cell(format_count(row["dense_params"])),
            *(Cell(format_count(held.get(role))) for role, _ in ROLES),
            Cell(format_bytes(row["sparse_bytes"])),
            Cell(format_count(row["flops_per_batch"])),
            Cell(format_count(row["samples_per_s"])),
            Cell(format_bytes(row["peak_rss_bytes"])),
            Cell(format_seconds(row["wall_seconds"])),
        ]
        rows.append(tuple(cells))
    batches = sorted({row["batch_size"] for row in report["rows"] if row["batch_size"]})
    batch = " or ".join(f"{size:,}" for size in batches)
    note = (
        "Embedding parameters by role; bytes are embedding weights. Samples/s: training, all ranks."
    )
    if batch:
        note += f" FLOPs: forward + backward, batch of {batch}."
    columns = (
        "",
        "dense",
        *(name for _, name in ROLES),
        "bytes",
        "FLOPs",
        "samp./s",
        "memory",
        "time",
    )
    return ReportTable(title="Cost", note=note, columns=columns, rows=tuple(rows))


def machine_lines(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was run where, as name and value."""
    return [
        *([("command", report["command"])] if report["command"] else []),
        ("data set", report["dataset"]),
        ("seeds", ", ".join(map(str, report["seeds"]))),
        *((name, str(value)) for name, value in report["machine"].items()),
        ("versions", ", ".join(f"{k} {v}" for k, v in report["versions"].items())),
    ]


def rich_table(table: ReportTable) -> Table:
    """Draw a table for a terminal of 120 columns; texts are never read as markup."""
    drawn = Table(
        title=Text(table.title, style="bold"),
        caption=Text(table.note, style="dim") if table.note else None,
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for index, name in enumerate(table.columns):
        drawn.add_column(
            Text(name), justify="right" if index else "left", no_wrap=index > 0, overflow="fold"
        )
    for row in table.rows:
        drawn.add_row(*(_rich_cell(cell, first=not index) for index, cell in enumerate(row)))
    return drawn


def _rich_cell(cell: Cell, *, first: bool) -> Text:
    text = Text(cell.text, style="bold" if cell.best else "")
    if cell.detail:
        text.append(("\n" if first else " ") + cell.detail, style="not bold dim")
    return text


def markdown_table(table: ReportTable) -> list[str]:
    """The lines of a table in Markdown, its title and note around it; an empty line ends it."""
    lines = [f"## {table.title}", "", _markdown_row(table.columns)]
    lines.append("|" + "---|" * len(table.columns))
    lines += [_markdown_row([_markdown_cell(cell) for cell in row]) for row in table.rows]
    return [*lines, "", *([table.note, ""] if table.note else [])]


def _markdown_cell(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} {cell.detail}".strip()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
