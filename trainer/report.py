"""The comparison report: `report.json`, `report.html`, figures and terminal tables.

`build_report` turns scores and costs of several rows into one dictionary in the shape of
`report.json`; everything that is shown is read from that dictionary, so a report can be drawn
again from its file.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import jinja2
import numpy as np
from numpy.typing import ArrayLike
from rich.console import Console

from trainer.comparison import Comparison
from trainer.evaluation import (
    NUM_RESAMPLES,
    EvaluationSplit,
    bucket_differences,
    describe,
    finite,
    measure,
    metric_differences,
)
from trainer.figures import FIGURE_CAPTIONS, draw_figures
from trainer.measurement import Measurement
from trainer.metrics import calibration_bins
from trainer.report_markdown import to_markdown
from trainer.report_tables import cost_table, machine_lines, quality_table, rich_table
from trainer.retrieval_report import retrieval_table
from trainer.sid_report import sid_tables
from trainer.study_report import describe_study, study_table
from trainer.verdict import pick_reference, write_verdict

RowKind = Literal["model", "baseline", "oracle"]
SPARSE_ROLES = ("item_id", "gen_token", "mem_token", "residual_id", "side")


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A point of a training curve.

    Args:
        samples: impressions trained on so far, over all ranks.
        loss: training loss, or None at a point that holds validation alone.
        valid_auc: AUC of the main task on valid, or None.
    """

    samples: int
    loss: float | None = None
    valid_auc: float | None = None


@dataclass(frozen=True, kw_only=True)
class RowRun:
    """One training run (one seed) of a row.

    Args:
        seed: of the run.
        scores: task -> (N,) probabilities of the evaluated rows, in order.
        curve: training curve.
        samples_per_s: training throughput over all ranks.
        wall_seconds: of the whole run.
        peak_rss_bytes: largest resident memory, summed over ranks.
        sids: of a tokenizer inside the model, see `trainer.models.dig.DigNetwork.sids`.
    """

    seed: int
    scores: Mapping[str, ArrayLike]
    curve: tuple[CurvePoint, ...] = ()
    samples_per_s: float | None = None
    wall_seconds: float | None = None
    peak_rss_bytes: int | None = None
    sids: Mapping[str, float | None] | None = None


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """One row of the comparison.

    Args:
        name: shown; unique in a report.
        runs: one a seed, at least one.
        kind: `baseline` trains no network, `oracle` knows what no model can (the true logit).
        tokens: what stands for an item: `none`, `item_id`, `gen_token`, `hybrid`, ...
        tower: name of the interaction architecture.
        dense_params: parameters outside embedding tables.
        sparse_params: role -> embedding parameters; absent roles are 0.
        sparse_bytes: of all embedding weights.
        flops_per_batch: forward + backward of the dense part for one batch of `batch_size`.
        batch_size: that `flops_per_batch` is counted for.
        details: shown beside the name in report.html, e.g. distinct token tuples.
    """

    name: str
    runs: tuple[RowRun, ...]
    kind: RowKind = "model"
    tokens: str = "none"
    tower: str = ""
    dense_params: int | None = None
    sparse_params: Mapping[str, int] = field(default_factory=dict)
    sparse_bytes: int | None = None
    flops_per_batch: int | None = None
    batch_size: int | None = None
    details: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check runs and roles.

        Raises:
            ValueError: without runs, on a seed that stands twice, or on an unknown role.
        """
        seeds = [run.seed for run in self.runs]
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"row {self.name!r}: expected one run a seed, found seeds {seeds}")
        unknown = sorted(set(self.sparse_params) - set(SPARSE_ROLES))
        if unknown:
            raise ValueError(
                f"row {self.name!r}: unknown table roles {', '.join(unknown)}; "
                f"expected {', '.join(SPARSE_ROLES)}"
            )


def build_report(
    *,
    experiment: str,
    dataset: str,
    split: EvaluationSplit,
    rows: Sequence[ReportRow],
    split_name: str = "test",
    machine: Mapping[str, str] | None = None,
    versions: Mapping[str, str] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
    comparison: Comparison | None = None,
    geometry: Sequence[Mapping[str, Any]] = (),
    retrieval: Mapping[str, Any] | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Measure every row and every pair of rows.

    With several seeds a row's metrics are medians over its seeds, and each bootstrap draw takes
    the median too; every seed's own values stand in `metrics[TASK]["by_seed"]`.

    Args:
        experiment: name of the comparison.
        dataset: name of the data set.
        split: evaluated rows; its first task is the main one.
        rows: in the order in which they are shown.
        split_name: of the evaluated part.
        machine: what it ran on, as shown.
        versions: package -> version.
        num_resamples: bootstrap draws of users.
        seed: of the draws.
        comparison: whose study, where it has one, says what is asked and over which row gains
            are taken.
        geometry: of the rows' embedding tables, see `trainer.geometry`.
        retrieval: of rows that retrieve, see `trainer.retrieval_report`.
        command: that makes the report again.

    Returns:
        `report.json` as a dictionary without nan.

    Raises:
        ValueError: when there is no row, a name stands twice, or scores do not fit the split.
    """
    names = [row.name for row in rows]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if not names or repeated:
        raise ValueError(f"report: expected rows with distinct names, found {names}")
    measured: dict[str, Measurement] = {}
    described: list[dict[str, Any]] = []
    for row in rows:
        try:
            runs = [
                measure(run.scores, split, num_resamples=num_resamples, seed=seed)
                for run in row.runs
            ]
        except ValueError as error:
            raise ValueError(f"row {row.name!r}: {error}") from error
        measured[row.name] = Measurement.median(runs)
        described.append(_describe_row(row, runs, measured[row.name], split))
    main_task = next(iter(split.labels))
    report: dict[str, Any] = {
        "experiment": experiment,
        "dataset": dataset,
        "split": {"name": split_name, **asdict(split.rows), "users": split.num_users},
        "tasks": list(split.labels),
        "main_task": main_task,
        "seeds": sorted({run.seed for row in rows for run in row.runs}),
        "machine": dict(machine or {}),
        "versions": dict(versions or {}),
        "bootstrap": {"resamples": num_resamples, "seed": seed, "level": 0.95, "unit": split.unit},
        "bucketings": {name: cut.title for name, cut in split.bucketings.items()},
        "rows": described,
        "pairs": [
            {"a": a, "b": b, **difference}
            for b, a in combinations(names, 2)
            for difference in metric_differences(measured[a], measured[b])
        ],
    }
    study = comparison.study if comparison is not None else None
    reference = study.reference if study is not None else None
    reference = reference or pick_reference(report)
    report["reference"] = reference
    report["geometry"] = list(geometry)
    if retrieval is not None:
        report["retrieval"] = dict(retrieval)
    report["command"] = command
    if comparison is not None and study is not None and reference is not None:
        report["study"] = describe_study(study, comparison.rows, report, reference)
    report["bucket_pairs"] = [
        {"a": name, "b": reference, **difference}
        for name in names
        if reference is not None and name != reference
        for difference in bucket_differences(measured[name], measured[reference], split)
    ]
    report["verdict"] = write_verdict(report)
    return report


def _describe_row(
    row: ReportRow, runs: Sequence[Measurement], middle: Measurement, split: EvaluationSplit
) -> dict[str, Any]:
    described = describe(middle, split)
    for task, metrics in described["metrics"].items():
        metrics["by_seed"] = {
            name: [finite(run.metrics[task][name].value) for run in runs]
            for name in middle.metrics[task]
        }
    first = row.runs[0].scores
    return {
        "name": row.name,
        "kind": row.kind,
        "tokens": row.tokens,
        "tower": row.tower,
        "seeds": [run.seed for run in row.runs],
        **described,
        "calibration_bins": {
            task: [asdict(one) for one in calibration_bins(labels, first[task])]
            for task, labels in split.labels.items()
        },
        "dense_params": row.dense_params,
        "sparse_params": {role: int(row.sparse_params.get(role, 0)) for role in SPARSE_ROLES},
        "sparse_bytes": row.sparse_bytes,
        "flops_per_batch": row.flops_per_batch,
        "batch_size": row.batch_size,
        "samples_per_s": _median([run.samples_per_s for run in row.runs]),
        "wall_seconds": _median([run.wall_seconds for run in row.runs]),
        "peak_rss_bytes": _median([run.peak_rss_bytes for run in row.runs]),
        "curves": [
            {"seed": run.seed, "points": [_describe_point(point) for point in run.curve]}
            for run in row.runs
        ],
        "details": dict(row.details),
        "sids": [{"seed": run.seed, **run.sids} for run in row.runs if run.sids is not None],
    }


def _describe_point(point: CurvePoint) -> dict[str, float | None]:
    """A point as JSON; a loss that was not finite is null."""
    return {name: None if value is None else finite(value) for name, value in asdict(point).items()}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Show tables and verdict on `console`; 120 columns hold them."""
    console.print()
    console.print(report["verdict"]["headline"], style="bold", markup=False, highlight=False)
    console.print(report["verdict"]["summary"], markup=False, highlight=False)
    if "retrieval" in report:
        console.print()
        console.print(rich_table(retrieval_table(report)))
    for task in report["tasks"]:
        console.print()
        console.print(rich_table(quality_table(report, task)))
    console.print()
    if "study" in report:
        for task in report["tasks"]:
            console.print(rich_table(study_table(report, task)))
            console.print()
    for table in [*sid_tables(report), cost_table(report)]:
        console.print(rich_table(table))
    console.print()
    marks = {"better": ("+", "green"), "worse": ("-", "red"), "unclear": ("~", "yellow")}
    for finding in report["verdict"]["findings"]:
        mark, style = marks.get(finding["kind"], (" ", ""))
        console.print(f" {mark} {finding['text']}", style=style, markup=False, highlight=False)
    console.print()


def write_report(folder: Path, report: Mapping[str, Any]) -> Path:
    """Write `report.json`, `.md`, `figures/*.png` and a self-contained `.html` into `folder`.

    Returns:
        Path of report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    _write(folder / "report.json", text + "\n")
    figures = draw_figures(report, folder / "figures")
    _write(folder / "report.md", to_markdown(report, figures))
    html = render_html(report, figures)
    _write(folder / "report.html", html)
    return folder / "report.html"


def render_html(report: Mapping[str, Any], figures: Mapping[str, Path]) -> str:
    """Render report.html; every text is escaped and figures are embedded."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("trainer", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(
        report=report,
        retrieval=[retrieval_table(report)] if "retrieval" in report else [],
        quality=[quality_table(report, task) for task in report["tasks"]],
        gains=[study_table(report, task) for task in report["tasks"] if "study" in report],
        sids=sid_tables(report),
        cost=cost_table(report),
        facts=machine_lines(report),
        figures=[
            {
                "title": FIGURE_CAPTIONS[name][0],
                "caption": FIGURE_CAPTIONS[name][1],
                "data": base64.b64encode(path.read_bytes()).decode("ascii"),
            }
            for name, path in figures.items()
        ],
    )


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
