"""What `farewell data` shows: a bar while it writes, and what the folder holds."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.data.last_click import PART
from trainer.data.writer import Manifest


def progress_bar() -> Progress:
    """Rows written of all."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
    )


def print_summary(manifest: Manifest, folder: Path) -> None:
    """Print what the folder holds."""
    table = Table(title=f"{manifest.name} in {folder}", show_header=False)
    table.add_row("rows", f"{manifest.num_rows:,}")
    table.add_row("users", f"{manifest.num_users:,}")
    table.add_row("items", f"{manifest.num_items:,}")
    # Where a log has parts, they stand in the place of times.
    if PART not in manifest.columns.get("interactions", {}):
        days = [
            datetime.fromtimestamp(seconds, tz=UTC).strftime("%Y-%m-%d")
            for seconds in (manifest.first_time, manifest.last_time)
        ]
        table.add_row("time", f"{days[0]} to {days[1]}")
    for label, positives in manifest.positives.items():
        share = positives / manifest.num_rows
        table.add_row(f"{label} positives", f"{positives:,.0f} ({share:.1%})")
    for name, value in manifest.facts.items():
        table.add_row(name.replace("_", " "), f"{value:.4f}")
    table.add_row("size", f"{manifest.num_bytes / 1e6:,.1f} MB")
    Console().print(table)
