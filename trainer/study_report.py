"""A study's part of the report: gains over its reference row, beside what the paper reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from trainer.comparison import ComparedRow, Study, Sweep
from trainer.pair_gains import Gain, pair_gain
from trainer.paper_orders import orders_finding, paper_order
from trainer.report_tables import ABSENT, Cell, ReportTable
from trainer.sweep_findings import sweep_findings

STUDY_METRICS = (("auc", "AUC"), ("qauc", "QAUC"))
EQUAL_PARAMS = 0.05
"""Dense parameters count as equal up to this share."""

Report = Mapping[str, Any]


def describe_study(
    study: Study, rows: Sequence[ComparedRow], report: Report, reference: str
) -> dict[str, Any]:
    """The study as it stands in report.json under `study`.

    Args:
        study: what is asked.
        rows: with the paper's gains.
        report: with `rows`, `pairs` and `tasks`.
        reference: row that gains are taken over.

    Returns:
        `question`, `source`, `notes`, `heat_map`, `sweep`, `equal_dense`, `reference`, `gains` (one
        a row, task and metric, in percent of the reference's value, with the paper's beside) and
        `orders` (every two rows that the paper orders, and how they come out here).
    """
    paper = {row.title: dict(zip(report["tasks"], row.paper, strict=False)) for row in rows}
    values = {row["name"]: row["metrics"] for row in report["rows"]}
    gains, orders = [], []
    for task in report["tasks"]:
        for metric, _ in STUDY_METRICS:
            base = values[reference][task][metric]
            published = {
                title: getattr(by_task[task], metric)
                for title, by_task in paper.items()
                if task in by_task and getattr(by_task[task], metric) is not None
            }
            for row in rows:
                gain = (
                    None
                    if row.title == reference
                    else pair_gain(report, row.title, reference, task=task, metric=metric)
                )
                percent = _percent(gain, base)
                gains.append(
                    {
                        "row": row.title,
                        "task": task,
                        "metric": metric,
                        "gain_percent": percent[0],
                        "ci_percent": percent[1],
                        "paper_percent": published.get(row.title),
                    }
                )
            orders += [
                {
                    "task": task,
                    "metric": metric,
                    **paper_order(
                        first, second, pair_gain(report, first, second, task=task, metric=metric)
                    ),
                }
                for a, b in combinations(published, 2)
                if published[a] != published[b]
                for first, second in [(a, b) if published[a] > published[b] else (b, a)]
            ]
    return {
        "question": study.question,
        "source": study.source,
        "notes": list(study.notes),
        "heat_map": study.heat_map,
        "sweep": _describe_sweep(study.sweep),
        "equal_dense": study.equal_dense,
        "reference": reference,
        "gains": gains,
        "orders": orders,
    }


def _describe_sweep(sweep: Sweep | None) -> dict[str, Any] | None:
    if sweep is None:
        return None
    points = [
        {"row": row, "series": series, "value": value}
        for row, (series, value) in sweep.points.items()
    ]
    return {"axis": sweep.axis, "points": points}


def _percent(gain: Gain | None, base: float | None) -> tuple[float | None, list[float] | None]:
    if gain is None or not base:
        return None, None
    return 100 * gain.value / base, [100 * gain.low / base, 100 * gain.high / base]


def study_table(report: Report, task: str) -> ReportTable:
    """Gains over the reference in one task with 95 % intervals, and the paper's gains."""
    study = report["study"]
    by_cell = {(one["row"], one["metric"]): one for one in study["gains"] if one["task"] == task}
    has_paper = any(one["paper_percent"] is not None for one in by_cell.values())
    columns = [""]
    for _, name in STUDY_METRICS:
        columns += [name, *(["paper"] if has_paper else [])]
    rows = []
    for title in dict.fromkeys(row for row, _ in by_cell):
        cells = [Cell(title)]
        for metric, _ in STUDY_METRICS:
            one = by_cell[title, metric]
            if title == study["reference"]:
                cells.append(Cell("reference"))
            elif one["gain_percent"] is None:
                cells.append(Cell(ABSENT))
            else:
                low, high = one["ci_percent"]
                cells.append(Cell(f"{one['gain_percent']:+.2f} %", f"[{low:+.2f} {high:+.2f}]"))
            if has_paper:
                paper = one["paper_percent"]
                cells.append(Cell(ABSENT if paper is None else f"{paper:+.2f} %"))
        rows.append(tuple(cells))
    note = f"Relative gains over {study['reference']}; 95 % intervals from users drawn anew."
    if has_paper:
        note += (
            f" paper: {study['source']}, on another log and at another size; only the order of "
            "rows can be expected to carry over."
        )
    return ReportTable(title=f"Gains: {task}", note=note, columns=tuple(columns), rows=tuple(rows))


def study_headline(report: Report) -> tuple[str, str]:
    """Headline and summary of a study without item-ID rows."""
    study, task = report["study"], report["main_task"]
    reference = study["reference"]
    ahead = [
        (gain.value, row["name"], gain)
        for row in report["rows"]
        if row["kind"] == "model" and row["name"] != reference
        for gain in [pair_gain(report, row["name"], reference, task=task)]
        if gain is not None
    ]
    if not ahead:
        return f"{reference} stands alone", study["question"]
    value, name, gain = max(ahead)
    summary = (
        f"{study['question']} Best beside {reference}: {name}, {value:+.4f} {task} AUC, 95 % "
        f"interval {gain.low:+.4f} to {gain.high:+.4f}."
    )
    headlines = {
        "better": f"{name} beats {reference} by {value:.4f} {task} AUC",
        "worse": f"No row reaches {reference} in {task} AUC",
        "unclear": f"No row can be told above {reference} in {task} AUC",
    }
    return headlines[gain.kind], summary


def study_findings(report: Report) -> list[dict[str, str]]:
    """Rows against the reference, orders against the paper's, sizes, and the study's notes."""
    study = report["study"]
    return [
        *_against_reference(report),
        *_against_paper(report),
        *sweep_findings(report),
        *_effective_ranks(report),
        *(_equal_dense(report) if study["equal_dense"] else []),
        *({"kind": "note", "text": note} for note in study["notes"]),
    ]


def _against_reference(report: Report) -> list[dict[str, str]]:
    study, task = report["study"], report["main_task"]
    words = {"better": "Above", "unclear": "Not to be told from", "worse": "Below"}
    findings = []
    for metric, shown in STUDY_METRICS:
        rows: dict[str, list[str]] = {kind: [] for kind in words}
        for one in study["gains"]:
            if (one["task"], one["metric"]) == (task, metric) and one["ci_percent"] is not None:
                low, high = one["ci_percent"]
                kind = Gain(one["gain_percent"], low, high).kind
                rows[kind].append(f"{one['row']} ({one['gain_percent']:+.2f} %)")
        findings += [
            {
                "kind": kind,
                "text": f"{words[kind]} {study['reference']} in {task} {shown}: {', '.join(held)}.",
            }
            for kind, held in rows.items()
            if held
        ]
    return findings


def _against_paper(report: Report) -> list[dict[str, str]]:
    """Orders that come out as in the paper, otherwise, or not at all; the second are named."""
    study = report["study"]
    found = [
        (
            f"{task} {shown}",
            [one for one in study["orders"] if (one["task"], one["metric"]) == (task, metric)],
        )
        for task in report["tasks"]
        for metric, shown in STUDY_METRICS
    ]
    return [orders_finding(what, orders, study["source"]) for what, orders in found if orders]


def _effective_ranks(report: Report) -> list[dict[str, str]]:
    """How many directions the embeddings of each row use at the end of training; means of seeds."""
    ranks: dict[tuple[str, str, int], list[float]] = {}
    for one in report.get("geometry", ()):
        for table, final in one["final"].items():
            key = (one["row"], table, final["dim"])
            ranks.setdefault(key, []).append(final["effective_rank"])
    if not ranks:
        return []
    told = [
        f"{row}, {table}: {sum(held) / len(held):.1f} of {dim}"
        for (row, table, dim), held in ranks.items()
    ]
    text = f"Effective rank at the end of training, of the width: {'; '.join(told)}."
    return [{"kind": "note", "text": text}]


def _equal_dense(report: Report) -> list[dict[str, str]]:
    sizes = {
        row["name"]: row["dense_params"]
        for row in report["rows"]
        if row["kind"] == "model" and row["dense_params"]
    }
    if len(sizes) < 2:
        return []
    apart = max(sizes.values()) / min(sizes.values()) - 1
    verdict = "equal" if apart <= EQUAL_PARAMS else "NOT equal"
    text = (
        f"Dense parameters of all {len(sizes)} rows, {min(sizes.values()):,} to "
        f"{max(sizes.values()):,}, differ by {100 * apart:.1f} %: {verdict} at the tolerance of "
        f"{100 * EQUAL_PARAMS:.0f} %."
    )
    return [{"kind": "note", "text": text}]
