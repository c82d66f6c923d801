"""The part of a report that is about retrieval, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from trainer.evaluation import finite, interval_json
from trainer.measurement import Estimate
from trainer.pair_gains import Gain
from trainer.paper_orders import paper_order
from trainer.report_tables import ABSENT, Cell, ReportTable
from trainer.retrieval_study import (
    LENGTHS,
    MeasuredRow,
    RetrievalMeasure,
    RetrievalRow,
    RetrievalStudy,
)

SHOWN = (
    ("recall@10", "R@10"),
    ("ndcg@10", "N@10"),
    ("recall@50", "R@50"),
    ("ranked recall@10", "ranked"),
    ("rank_auc", "rank AUC"),
    ("recall_auc", "recall AUC"),
    ("gap", "gap"),
)
WITH_INTERVAL = ("recall@10", "ndcg@10")

Report = Mapping[str, Any]


def describe_retrieval(
    study: RetrievalStudy,
    rows: Sequence[RetrievalRow],
    measure: RetrievalMeasure,
    *,
    num_items: int,
) -> dict[str, Any]:
    """The part `retrieval` of report.json.

    Args:
        study: what is asked.
        rows: trained rows and retrievers, in the order in which they are shown.
        measure: of the cases.
        num_items: items that a list may hold.

    Returns:
        `reference`, `metric`, `free`, sizes, `rows` (metrics with intervals and each seed's values,
        and the same by bucket), `pairs` (differences of every two rows), `bucket_pairs` (of rows to
        the reference) and `orders` (every two rows that the paper orders, and how they come out
        here).
    """
    measured = {row.title: measure.measure(row) for row in rows}
    pairs = [
        {"a": a, "b": b, "metric": metric, **_difference(estimate, measured[b].metrics[metric])}
        for b, a in combinations(measured, 2)
        for metric, estimate in measured[a].metrics.items()
        if metric in measured[b].metrics
    ]
    reference = measured[study.reference]
    bucket_pairs = [
        {
            "a": title,
            "b": study.reference,
            "bucket": bucket,
            "cases": int(measure.buckets[bucket].sum()),
            "metric": metric,
            **_difference(estimate, reference.buckets[bucket][metric]),
        }
        for title, row in measured.items()
        if title != study.reference
        for bucket, estimates in row.buckets.items()
        for metric, estimate in estimates.items()
        if metric in reference.buckets[bucket]
    ]
    found: dict[str, Any] = {
        "reference": study.reference,
        "metric": study.metric,
        "free": list(study.free),
        "at": list(LENGTHS),
        "cases": len(measure.cases),
        "users": measure.num_users,
        "items": num_items,
        "cases_per_user": study.cases_per_user,
        "leave_out_history": study.leave_out_history,
        "width": study.width,
        "bucketing": measure.title,
        "rows": [_describe_row(row, study, measure) for row in measured.values()],
        "pairs": pairs,
        "bucket_pairs": bucket_pairs,
    }
    found["orders"] = _orders(study, found)
    return found


def _describe_row(
    row: MeasuredRow, study: RetrievalStudy, measure: RetrievalMeasure
) -> dict[str, Any]:
    return {
        "name": row.row.title,
        "kind": row.row.kind,
        "seeds": [run.seed for run in row.row.runs],
        "metrics": {
            name: {**_estimate(one), "by_seed": [finite(value) for value in row.by_seed[name]]}
            for name, one in row.metrics.items()
        },
        "buckets": [
            {
                "bucket": bucket,
                "cases": int(measure.buckets[bucket].sum()),
                "metrics": {name: _estimate(one) for name, one in estimates.items()},
            }
            for bucket, estimates in row.buckets.items()
        ],
        "published": dict(study.published.get(row.row.title, {})),
    }


def _estimate(one: Estimate) -> dict[str, Any]:
    return {"value": finite(one.value), "ci": interval_json(one.ci)}


def _difference(a: Estimate, b: Estimate) -> dict[str, Any]:
    gain = a - b
    return {"difference": finite(gain.value), "ci": interval_json(gain.ci)}


def _orders(study: RetrievalStudy, retrieval: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every two rows that the paper orders."""
    return [
        {"metric": metric, **paper_order(first, second, gain_of(retrieval, first, second, metric))}
        for a, b in combinations(study.published, 2)
        for metric, value in study.published[a].items()
        if study.published[b].get(metric, value) != value
        for first, second in [(a, b) if value > study.published[b][metric] else (b, a)]
    ]


def gain_of(retrieval: Mapping[str, Any], a: str, b: str, metric: str) -> Gain | None:
    """Difference a - b in a metric; None where one of the two lacks it."""
    for pair in retrieval["pairs"]:
        if pair["metric"] != metric or {pair["a"], pair["b"]} != {a, b}:
            continue
        if pair["difference"] is None or None in pair["ci"]:
            return None
        sign = 1 if pair["a"] == a else -1
        low, high = sorted(sign * end for end in pair["ci"])
        return Gain(sign * pair["difference"], low, high)
    return None


def retrieval_table(report: Report) -> ReportTable:
    """Recall and NDCG of every row, and the AUCs of rankers' paths."""
    retrieval = report["retrieval"]
    rows = retrieval["rows"]
    shown = [
        (metric, name) for metric, name in SHOWN if any(metric in row["metrics"] for row in rows)
    ]
    metric = retrieval["metric"]
    has_paper = any(metric in row["published"] for row in rows)
    values_of = {
        name: [row["metrics"][name]["value"] for row in rows if name in row["metrics"]]
        for name, _ in shown
        if name != "gap"
    }
    # Where one class leaves no AUC, no row has one.
    best = {name: max(values) for name, values in values_of.items() if None not in values}
    cells = []
    for row in rows:
        line = [Cell(row["name"], _seeds(row, metric))]
        line += [_cell(row["metrics"].get(name), name, best) for name, _ in shown]
        if has_paper:
            paper = row["published"].get(metric)
            line.append(Cell(ABSENT if paper is None else f"{paper:.4f}"))
        cells.append(tuple(line))
    names = dict(SHOWN)
    columns = ["", *(name for _, name in shown)]
    columns += [f"paper {names.get(metric, metric)}"] if has_paper else []
    known = "items of the history left out" if retrieval["leave_out_history"] else "none left out"
    beams = f"beams of {retrieval['width']} SIDs"
    if retrieval["leave_out_history"]:
        beams += (
            " (models: and one more for each item of the longest history; retrievers of tokens: "
            "wider where a list stays short)"
        )
    note = (
        f"{retrieval['cases']:,} positives of {retrieval['users']:,} users (the last "
        f"{retrieval['cases_per_user']} of each), lists over all {retrieval['items']:,} items, "
        f"{known}; {beams}. R, N: Recall and NDCG in the order of the beam search; ranked: R@10 of "
        "the same items ranked, with what retrieval has for u2t in the place of cross features, "
        "which a log has of its own pairs alone. 95 % intervals: bootstrap over users. gap: AUC of "
        "the retrieval path less that of the ranking path, on all rows."
    )
    return ReportTable(title="Retrieval", note=note, columns=tuple(columns), rows=tuple(cells))


def _seeds(row: Mapping[str, Any], metric: str) -> str:
    values = row["metrics"].get(metric, {}).get("by_seed", [])
    if len(values) < 2:
        return ""
    return "seeds " + " ".join(ABSENT if v is None else f"{v:.4f}"[1:] for v in values)


def _cell(found: Mapping[str, Any] | None, metric: str, best: Mapping[str, float]) -> Cell:
    if found is None or found["value"] is None:
        return Cell(ABSENT)
    sign = "+" if metric == "gap" else ""
    detail = ""
    if metric in WITH_INTERVAL and None not in found["ci"]:
        detail = "[" + " ".join(f"{end:{sign}.4f}".replace("0.", ".", 1) for end in found["ci"])
        detail += "]"
    value = found["value"]
    return Cell(f"{value:{sign}.4f}", detail, best=value == best.get(metric))
