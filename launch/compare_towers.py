r"""Count parameters and training FLOPs of models that are described, without building them.

    farewell compare towers.trm_table1
    farewell compare mine.py:comparison --folder runs/mine

Writes `structure_report.{json,md}` and a figure.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro
from rich.table import Table

from launch.terminal import result_console
from trainer.run_folder import write_json
from trainer.structure import StructureComparison, compare_structure
from trainer.structure_report import (
    part_rows,
    reasons,
    size_rows,
    structure_markdown,
    write_structure_figure,
)


@dataclass(frozen=True, kw_only=True)
class CompareTowersOptions:
    """Where the report goes.

    Args:
        folder: of the report; by default `runs/<comparison>`.
        json: file to write the report to, beside the folder.
    """

    folder: Path | None = None
    json: Path | None = None


def compare_towers_of(comparison: StructureComparison, args: Sequence[str]) -> None:
    """Count, print and write a comparison of structures."""
    options = tyro.cli(
        CompareTowersOptions,
        prog=f"farewell compare {comparison.name}",
        description=__doc__,
        args=args,
    )
    # TorchRec asks torch whether it is being traced, which torch answers with advice on naming.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    console = result_console()
    with console.status("counting") as status:
        report = compare_structure(comparison, lambda what: status.update(f"counting {what}"))
    for title, (header, rows) in (
        ("Size beside the paper's", size_rows(report)),
        ("Where parameters lie and FLOPs go", part_rows(report)),
    ):
        table = Table(*header, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in reasons(report):
        console.print(f"* {line}")
    console.print(report["counted"])
    console.print(report["assumption"])
    folder = options.folder or Path("runs") / comparison.name
    folder.mkdir(parents=True, exist_ok=True)
    figure = write_structure_figure(report, folder)
    write_json(folder / "structure_report.json", report)
    text = folder / ".structure_report.md"
    text.write_text(structure_markdown(report, (figure,)))
    text.replace(folder / "structure_report.md")
    if options.json is not None:
        write_json(options.json, report)
    console.print(f"report: {folder / 'structure_report.md'}", soft_wrap=True)
