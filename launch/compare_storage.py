r"""Plan sets of tables on machines that need not be there, at the least number of nodes.

    farewell compare storage.trm_paper
    farewell compare mine.py:comparison --folder runs/mine

Writes `storage_report.{json,md}` and a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from launch.terminal import result_console
from sharding.compare import (
    StorageComparison,
    assumed_tables,
    compare_storage,
    step_rows,
    storage_markdown,
    system_rows,
)
from sharding.figures import write_storage_figure
from trainer.run_folder import write_json


@dataclass(frozen=True, kw_only=True)
class CompareStorageOptions:
    """Where the report goes.

    Args:
        folder: of the report; by default `runs/<comparison>`.
        json: file to write the report to, beside the folder.
    """

    folder: Path | None = None
    json: Path | None = None


def compare_storage_of(comparison: StorageComparison, args: Sequence[str]) -> None:
    """Plan, print and write a storage comparison.

    Raises:
        ValueError: when a system fits on no number of nodes.
    """
    options = tyro.cli(
        CompareStorageOptions,
        prog=f"farewell compare {comparison.name}",
        description=__doc__,
        args=args,
    )
    console = result_console()
    with console.status("planning") as status:
        report = compare_storage(comparison, lambda what: status.update(f"planning {what}"))
    for title, (header, rows) in (
        ("Tables", assumed_tables(report)),
        ("Systems, and the least number of ranks that holds them", system_rows(report)),
        ("Predicted step there, and samples/s a rank", step_rows(report)),
    ):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    console.print(report["assumption"])
    folder = options.folder or Path("runs") / comparison.name
    folder.mkdir(parents=True, exist_ok=True)
    figure = write_storage_figure(report, folder)
    write_json(folder / "storage_report.json", report)
    text = folder / ".storage_report.md"
    text.write_text(storage_markdown(report, (figure,)))
    text.replace(folder / "storage_report.md")
    if options.json is not None:
        write_json(options.json, report)
    console.print(f"report: {folder / 'storage_report.md'}", soft_wrap=True)
