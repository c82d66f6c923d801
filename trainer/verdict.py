"""What a comparison shows, in words that are written from its numbers alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, groupby
from typing import Any

from trainer.pair_gains import Gain, pair_gain
from trainer.report_tables import format_bytes
from trainer.retrieval_verdict import retrieval_findings, retrieval_headline
from trainer.sid_report import sid_findings
from trainer.study_report import EQUAL_PARAMS, study_findings, study_headline

MIN_BUCKET_ROWS = 200
"""Buckets below this are listed in report.json, and neither drawn nor talked about."""

Row = Mapping[str, Any]


def pick_reference(report: Mapping[str, Any]) -> str | None:
    """Name of the item-ID row with the best AUC of the main task, None without ID rows.

    A study that names its reference takes precedence: `build_report` asks here otherwise.
    """
    best = _best([row for row in _models(report) if row["tokens"] == "item_id"], report)
    return None if best is None else str(best["name"])


def write_verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """Write headline, summary and findings.

    Returns:
        `{"headline": str, "summary": str, "findings": [{"kind", "text"}]}` with kind `better` or
        `worse` (the interval leaves 0), `unclear` (it does not) or `note`.
    """
    tokens = [row for row in _models(report) if row["tokens"] != "item_id"]
    ids = [row for row in _models(report) if row["tokens"] == "item_id"]
    best_token, best_id = _best(tokens, report), _best(ids, report)
    study = report.get("study")
    findings: list[dict[str, str]] = study_findings(report) if study is not None else []
    if "retrieval" in report:
        headline, summary = retrieval_headline(report)
        findings = [*retrieval_findings(report), *findings]
    elif best_token is not None and best_id is not None:
        headline, summary = _headline(report, best_token, best_id)
        for rival in ids:
            if rival is not best_id and rival["tower"] == best_token["tower"]:
                findings.append(_compare(report, best_token, rival))
        findings += [
            _compare(report, best_token, best_id, task=task)
            for task in report["tasks"]
            if task != report["main_task"]
        ]
        findings += _where(report, best_token)
    elif study is not None:
        headline, summary = study_headline(report)
    else:
        best = _best(_models(report), report) or _best(report["rows"], report)
        task = report["main_task"]
        headline = (
            f"No {task} AUC could be measured"
            if best is None
            else f"{best['name']} has the best {task} AUC, {_value(best, report)}"
        )
        summary = "No item-ID row stands beside a token row, so the two are not compared."
    if study is None:
        findings += _among_tokens(report, tokens)
    findings += _against_baselines(report)
    findings += sid_findings(report)
    findings += _one_class(report)
    findings += _ceiling(report)
    findings += _fairness(report)
    return {"headline": headline, "summary": summary, "findings": findings}


def _models(report: Mapping[str, Any]) -> list[Row]:
    return [row for row in report["rows"] if row["kind"] == "model"]


def _auc(row: Row, task: str) -> float | None:
    value = row["metrics"][task]["auc"]
    return None if value is None else float(value)


def _value(row: Row, report: Mapping[str, Any], task: str | None = None) -> str:
    return f"{_auc(row, task or report['main_task']):.4f}"


def _best(rows: Sequence[Row], report: Mapping[str, Any]) -> Row | None:
    task = report["main_task"]
    known = [row for row in rows if _auc(row, task) is not None]
    return max(known, key=lambda row: _auc(row, task) or 0.0) if known else None


def _gain(report: Mapping[str, Any], a: Row, b: Row, task: str) -> Gain:
    """Difference a - b in AUC; both rows have one."""
    gain = pair_gain(report, a["name"], b["name"], task=task)
    assert gain is not None
    return gain


def _interval(gain: Gain) -> str:
    return f"95 % interval {gain.low:+.4f} to {gain.high:+.4f}"


def _compare(
    report: Mapping[str, Any], a: Row, b: Row, *, task: str | None = None
) -> dict[str, str]:
    task = task or report["main_task"]
    if _auc(a, task) is None or _auc(b, task) is None:
        return {"kind": "note", "text": f"{task}: no AUC, the split holds one class."}
    gain = _gain(report, a, b, task)
    words = {"better": "is above", "worse": "is below", "unclear": "cannot be told from"}
    text = (
        f"{task}: {a['name']} ({_value(a, report, task)}) {words[gain.kind]} {b['name']} "
        f"({_value(b, report, task)}): AUC {gain.value:+.4f}, {_interval(gain)}."
    )
    return {"kind": gain.kind, "text": text}


def _headline(report: Mapping[str, Any], token: Row, best_id: Row) -> tuple[str, str]:
    task = report["main_task"]
    gain = _gain(report, token, best_id, task)
    size = f"{abs(gain.value):.4f} {task} AUC"
    words = {
        "better": f"{token['name']} beats the best item-ID row by {size}",
        "worse": f"{token['name']} falls short of the best item-ID row by {size}",
        "unclear": f"{token['name']} and the best item-ID row cannot be told apart in {task} AUC",
    }
    text = (
        f"{token['name']} reaches {_value(token, report)}, {best_id['name']} "
        f"{_value(best_id, report)}: {gain.value:+.4f}, {_interval(gain)}."
    )
    if token["sparse_bytes"] and best_id["sparse_bytes"]:
        share = 100 * token["sparse_bytes"] / best_id["sparse_bytes"]
        text += (
            f" Embeddings: {format_bytes(token['sparse_bytes'])} against "
            f"{format_bytes(best_id['sparse_bytes'])} ({share:.0f} %)."
        )
    return words[gain.kind], text


def _where(report: Mapping[str, Any], token: Row) -> list[dict[str, str]]:
    """Buckets in which the interval of the difference to the reference leaves 0."""
    reference = report["reference"]
    looked = [
        pair
        for pair in report["bucket_pairs"]
        if pair["a"] == token["name"]
        and pair["task"] == report["main_task"]
        and pair["rows"] >= MIN_BUCKET_ROWS
        and None not in pair["ci"]
    ]
    findings = []
    for kind, verb in (("better", "gains over"), ("worse", "loses to")):
        places = [
            f"{report['bucketings'][cut]} "
            + ", ".join(f"{pair['bucket']} ({pair['difference']:+.4f})" for pair in pairs)
            for cut, pairs in groupby(
                (pair for pair in looked if Gain(pair["difference"], *pair["ci"]).kind == kind),
                key=lambda pair: pair["bucketing"],
            )
        ]
        if places:
            text = f"Where {token['name']} {verb} {reference}: {'; '.join(places)}."
            findings.append({"kind": kind, "text": text})
    if looked:
        chance = "about one in twenty leaves 0 by chance"
        if findings:
            text = f"{len(looked)} buckets were looked at; {chance}."
        else:
            text = f"In none of {len(looked)} buckets does the interval leave 0."
        findings.append({"kind": "note", "text": text})
    return findings


def _among_tokens(report: Mapping[str, Any], tokens: Sequence[Row]) -> list[dict[str, str]]:
    """Token rows of one tower against each other, the better one first."""
    findings = []
    for a, b in combinations(tokens, 2):
        if a["tower"] == b["tower"]:
            first, second = (a, b) if _best([a, b], report) is not b else (b, a)
            findings.append(_compare(report, first, second))
    return findings


def _against_baselines(report: Mapping[str, Any]) -> list[dict[str, str]]:
    task = report["main_task"]
    base = _best([row for row in report["rows"] if row["kind"] == "baseline"], report)
    models = [row for row in _models(report) if _auc(row, task) is not None]
    if base is None or not models:
        return []
    against: dict[str, list[str]] = {"better": [], "unclear": [], "worse": []}
    for row in models:
        gain = _gain(report, row, base, task)
        against[gain.kind].append(f"{row['name']} ({gain.value:+.4f})")
    words = {"better": "Above", "unclear": "Not to be told from", "worse": "Below"}
    return [
        {
            "kind": kind,
            "text": f"{words[kind]} the best baseline, {base['name']} ({_value(base, report)}): "
            f"{', '.join(names)}.",
        }
        for kind, names in against.items()
        if names
    ]


def _one_class(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Tasks whose rows are all positive, or all negative."""
    return [
        {
            "kind": "note",
            "text": f"{task}: the {report['split']['name']} rows hold one class, so there are no "
            "AUCs.",
        }
        for task in report["tasks"]
        if all(row["metrics"][task]["auc"] is None for row in report["rows"])
    ]


def _ceiling(report: Mapping[str, Any]) -> list[dict[str, str]]:
    best = _best(_models(report), report)
    return [
        {
            "kind": "note",
            "text": f"The best possible AUC is {_value(row, report)} ({row['name']}); "
            f"{best['name']} leaves {-_gain(report, best, row, report['main_task']).value:.4f}.",
        }
        for row in report["rows"]
        if row["kind"] == "oracle" and best is not None
    ]


def _fairness(report: Mapping[str, Any]) -> list[dict[str, str]]:
    """Equal dense parameters within a tower, and what the intervals do not cover."""
    findings = []
    towers = sorted({row["tower"] for row in _models(report) if row["tower"]})
    if (report.get("study") or {}).get("equal_dense") or report.get("geometry"):
        towers = []  # said of all rows at once, or sizes are what differs
    for tower in towers:
        sizes = [
            row["dense_params"]
            for row in _models(report)
            if row["tower"] == tower and row["dense_params"]
        ]
        if len(sizes) > 1:
            apart = max(sizes) / min(sizes) - 1
            verdict = "equal" if apart <= EQUAL_PARAMS else "NOT equal"
            text = (
                f"Dense parameters of the {tower} rows differ by {100 * apart:.1f} %: {verdict} "
                f"at the tolerance of {100 * EQUAL_PARAMS:.0f} %."
            )
            findings.append({"kind": "note", "text": text})
    seeds = report["seeds"]
    if len(seeds) == 1:
        text = (
            f"One seed ({seeds[0]}): intervals cover which users were asked, not how training "
            "came out; use more seeds before a close call is believed."
        )
    else:
        text = (
            f"Medians of seeds {', '.join(map(str, seeds))}; intervals cover which users were "
            "asked, and the spread over seeds is listed row by row."
        )
    return [*findings, {"kind": "note", "text": text}]
