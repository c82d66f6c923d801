"""What a sweep says in words: one series beside the other, and how each changes along its sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainer.pair_gains import pair_gain

Report = Mapping[str, Any]

_WORDS = {"better": "above", "worse": "below", "unclear": "not to be told from"}


def sweep_findings(report: Report) -> list[dict[str, str]]:
    """Findings of a study with a sweep; none without."""
    sweep = report["study"]["sweep"]
    rows: dict[str, dict[float, str]] = {}
    for point in sorted(sweep["points"], key=lambda one: one["value"]) if sweep else ():
        rows.setdefault(point["series"], {})[point["value"]] = point["row"]
    between = _between_two(report, rows) if len(rows) == 2 else []
    return [*between, *_along_each(report, rows)]


def _between_two(report: Report, rows: dict[str, dict[float, str]]) -> list[dict[str, str]]:
    """The first series less the second at every size."""
    task, axis = report["main_task"], report["study"]["sweep"]["axis"]
    (first, of_first), (second, of_second) = rows.items()
    gains = {
        value: pair_gain(report, row, of_second[value], task=task)
        for value, row in of_first.items()
        if value in of_second
    }
    parts = [
        f"{value:g}: {gain.value:+.4f} [{gain.low:+.4f} {gain.high:+.4f}]"
        for value, gain in gains.items()
        if gain is not None
    ]
    if not parts:
        return []
    text = f"{task} AUC of {first} less {second}, by {axis}: {', '.join(parts)}."
    return [{"kind": "note", "text": text}]


def _along_each(report: Report, rows: dict[str, dict[float, str]]) -> list[dict[str, str]]:
    """Where each series is best, and whether its ends can be told from that."""
    task, axis = report["main_task"], (report["study"]["sweep"] or {}).get("axis")
    auc = {row["name"]: row["metrics"][task]["auc"] for row in report["rows"]}
    findings = []
    for name, of_series in rows.items():
        best = max(of_series, key=lambda value: auc[of_series[value]])
        told = []
        for end in (min(of_series), max(of_series)):
            if end == best:
                continue
            gain = pair_gain(report, of_series[end], of_series[best], task=task)
            if gain is not None:
                told.append(
                    f"{end:g} is {_WORDS[gain.kind]} it ({gain.value:+.4f} "
                    f"[{gain.low:+.4f} {gain.high:+.4f}])"
                )
        if told:
            text = (
                f"{task} AUC of {name}, by {axis}: best at {best:g} "
                f"({auc[of_series[best]]:.4f}); {', '.join(told)}."
            )
            findings.append({"kind": "note", "text": text})
    return findings
