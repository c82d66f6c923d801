"""The report of a comparison as Markdown, to be kept beside a project's documents."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.figures import FIGURE_CAPTIONS
from trainer.report_tables import cost_table, machine_lines, markdown_table, quality_table
from trainer.retrieval_report import retrieval_table
from trainer.sid_report import sid_tables
from trainer.study_report import study_table

MARKS = {"better": "(+) ", "worse": "(-) ", "unclear": "(~) "}


def to_markdown(report: Mapping[str, Any], figures: Mapping[str, Path]) -> str:
    """Everything that report.html says; `figures` stand in the folder `figures` beside it."""
    verdict = report["verdict"]
    lines = [f"# {report['experiment']}", "", f"**{verdict['headline']}.** {verdict['summary']}"]
    lines += ["", "## What the numbers say", ""]
    lines += [f"* {MARKS.get(one['kind'], '')}{one['text']}" for one in verdict["findings"]]
    lines.append("")
    if "retrieval" in report:
        lines += markdown_table(retrieval_table(report))
    for task in report["tasks"]:
        if "study" in report:
            lines += markdown_table(study_table(report, task))
        lines += markdown_table(quality_table(report, task))
    for table in [*sid_tables(report), cost_table(report)]:
        lines += markdown_table(table)
    for name, path in figures.items():
        title, caption = FIGURE_CAPTIONS[name]
        lines += [f"## {title}", "", f"![{title}](figures/{path.name})", "", caption, ""]
    lines += ["## How it was run", ""]
    lines += [f"* {name}: {value}" for name, value in machine_lines(report) if value]
    return "\n".join(lines) + "\n"
