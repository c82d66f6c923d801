"""What a report says of retrieval in words, written from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.pair_gains import Gain
from trainer.paper_orders import orders_finding
from trainer.retrieval_report import gain_of

LOWEST_BUCKETS = 2
"""Buckets of least activity that findings speak of."""
MIN_CASES = 30
"""Buckets with fewer cases are in report.json alone."""

Report = Mapping[str, Any]


def retrieval_headline(report: Report) -> tuple[str, str]:
    """Headline and summary: the reference beside the best other row."""
    retrieval = report["retrieval"]
    reference, metric = retrieval["reference"], retrieval["metric"]
    others = [
        (gain.value, row["name"], gain)
        for row in retrieval["rows"]
        if row["name"] != reference
        for gain in [gain_of(retrieval, row["name"], reference, metric)]
        if gain is not None
    ]
    question = (report.get("study") or {}).get("question", "")
    if not others:
        own = next(row for row in retrieval["rows"] if row["name"] == reference)
        value = own["metrics"].get(metric, {}).get("value")
        shown = "not measured" if value is None else f"{value:.4f}"
        return f"{reference}: {metric} {shown}", question
    difference, name, gain = max(others)
    values = {row["name"]: row["metrics"].get(metric, {}).get("value") for row in retrieval["rows"]}
    if metric == "gap":
        better = f"{name}: retrieval keeps up with ranking better than in {reference}"
        worse = f"In no row does retrieval keep up with ranking as well as in {reference}"
    else:
        better = f"{name} retrieves better than {reference}"
        worse = f"No row retrieves as well as {reference}"
    unclear = f"{reference} and {name} can't be told apart in {metric}"
    headlines = {"better": better, "worse": worse, "unclear": unclear}
    summary = (
        f"{question} {metric}: {name} {values[name]:.4f}, {reference} {values[reference]:.4f}, "
        f"difference {difference:+.4f}, 95 % interval {gain.low:+.4f} to {gain.high:+.4f}."
    )
    return headlines[gain.kind], summary.strip()


def retrieval_findings(report: Report) -> list[dict[str, str]]:
    """Rows against the reference, gaps of paths, orders against the paper's."""
    retrieval = report["retrieval"]
    source = (report.get("study") or {}).get("source", "the paper")
    return [
        *_against_reference(retrieval),
        *_beside_free(retrieval),
        *_for_few_impressions(retrieval),
        *_gaps(retrieval),
        *(
            orders_finding(
                metric, [one for one in retrieval["orders"] if one["metric"] == metric], source
            )
            for metric in dict.fromkeys(one["metric"] for one in retrieval["orders"])
        ),
    ]


def _against_reference(retrieval: Mapping[str, Any]) -> list[dict[str, str]]:
    words = {"better": "Above", "unclear": "Not to be told from", "worse": "Below"}
    reference = retrieval["reference"]
    findings = []
    for metric in dict.fromkeys((retrieval["metric"], "ndcg@10", "recall_auc")):
        rows: dict[str, list[str]] = {kind: [] for kind in words}
        for row in retrieval["rows"]:
            gain = gain_of(retrieval, row["name"], reference, metric)
            if gain is not None and row["name"] != reference:
                interval = f"{gain.low:+.4f} to {gain.high:+.4f}"
                rows[gain.kind].append(f"{row['name']} {gain.value:+.4f} ({interval})")
        findings += [
            {
                "kind": kind,
                "text": f"{words[kind]} {reference} in {metric}, with 95 % intervals: "
                f"{', '.join(held)}.",
            }
            for kind, held in rows.items()
            if held
        ]
    return findings


def _beside_free(retrieval: Mapping[str, Any]) -> list[dict[str, str]]:
    """The best row that learns beside the best one that trains nothing."""
    metric = retrieval["metric"]
    best: dict[bool, tuple[float, str]] = {}
    for row in retrieval["rows"]:
        value = row["metrics"].get(metric, {}).get("value")
        is_free = row["name"] in retrieval["free"]
        if value is not None and value > best.get(is_free, (-1.0, ""))[0]:
            best[is_free] = (value, row["name"])
    if len(best) < 2:
        return []
    (learned, name), (free, free_name) = best[False], best[True]
    gain = gain_of(retrieval, name, free_name, metric)
    if gain is None:
        return []
    words = {"better": "ABOVE", "unclear": "NOT to be told from", "worse": "BELOW"}
    text = (
        f"The best row that learns, {name} ({metric} {learned:.4f}), is {words[gain.kind]} "
        f"{free_name} ({free:.4f}), which trains nothing: difference {gain.value:+.4f}, 95 % "
        f"interval {gain.low:+.4f} to {gain.high:+.4f}."
    )
    return [{"kind": gain.kind, "text": text}]


def _for_few_impressions(retrieval: Mapping[str, Any]) -> list[dict[str, str]]:
    """The users of least activity: rows whose interval leaves 0, side by side."""
    reference, metric = retrieval["reference"], retrieval["metric"]
    of_users = retrieval["bucketing"].removesuffix(" of the user")
    findings = []
    own = next(row for row in retrieval["rows"] if row["name"] == reference)
    for bucket in [one["bucket"] for one in own["buckets"]][:LOWEST_BUCKETS]:
        rows: dict[str, list[str]] = {"better": [], "worse": []}
        num_cases = 0
        for pair in retrieval["bucket_pairs"]:
            if (pair["bucket"], pair["metric"]) != (bucket, metric) or pair["cases"] < MIN_CASES:
                continue
            if pair["difference"] is None or None in pair["ci"]:
                continue
            gain, num_cases = Gain(pair["difference"], *pair["ci"]), pair["cases"]
            if gain.kind in rows:
                interval = f"{gain.low:+.4f} to {gain.high:+.4f}"
                rows[gain.kind].append(f"{pair['a']} {gain.value:+.4f} ({interval})")
        for kind, word in (("better", "above"), ("worse", "below")):
            if rows[kind]:
                text = (
                    f"Users with {bucket} {of_users} ({num_cases:,} cases), {word} {reference} in "
                    f"{metric}, with 95 % intervals: {', '.join(rows[kind])}."
                )
                findings.append({"kind": kind, "text": text})
    return findings


def _gaps(retrieval: Mapping[str, Any]) -> list[dict[str, str]]:
    findings = []
    for row in retrieval["rows"]:
        gap = row["metrics"].get("gap")
        if gap is None or gap["value"] is None or None in gap["ci"]:
            continue
        low, high = gap["ci"]
        text = (
            f"{row['name']}: AUC {row['metrics']['recall_auc']['value']:.4f} by the retrieval "
            f"path, {row['metrics']['rank_auc']['value']:.4f} by the ranking path, gap "
            f"{gap['value']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f}."
        )
        findings.append({"kind": "note", "text": text})
    return findings
