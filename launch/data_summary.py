"""What `farewell data` shows: a bar while it writes, and what the folder holds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from trainer.data import writer
from trainer.data.last_click import PART
from trainer.data.writer import Manifest


@contextmanager
def rows_written(name: str, *, before: str = "writing") -> Iterator[writer.Progress]:
    """Show a bar of the rows written of all; yields what moves it.

    Args:
        name: of what is written.
        before: what is done until the first rows are written.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("rows"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(f"{name}: {before}", total=None)

        def advance(done: int, total: int) -> None:
            progress.update(task, description=f"{name}: writing", completed=done, total=total)

        yield advance


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
