"""A report on SIDs that learn inside a model: how many items share one, and whether they rest."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from trainer.report_tables import ABSENT, Cell, ReportTable

MOST_AT_START = 0.005
"""Share of items that may share an SID before the first step."""
MOST_COLLISIONS = 0.01
"""The same after training."""
COLUMNS = (
    ("initial_collision_rate", "initial collisions"),
    ("collision_rate", "final collisions"),
    ("drift", "drift"),
    ("dead_codes", "codes without items"),
)

Report = Mapping[str, Any]


def sid_tables(report: Report) -> list[ReportTable]:
    """The table of SIDs: a row for each row of the report with a tokenizer inside; none without."""
    rows = []
    for row in report["rows"]:
        if not row.get("sids"):
            continue
        cells = [Cell(row["name"])]
        for name, _ in COLUMNS:
            values = _values(row, name)
            seeds = [_shown(name, value) for value in values] if len(values) > 1 else []
            shown = _shown(name, median(values)) if values else ABSENT
            cells.append(Cell(shown, " ".join(seeds)))
        rows.append(tuple(cells))
    if not rows:
        return []
    note = (
        "Collisions: items that share their SID, as Eq. 2 assigns it, with another; before the "
        f"first step (limit {MOST_AT_START:.1%}) and after training (limit {MOST_COLLISIONS:.0%}). "
        "Drift: items whose SID has changed since the last look of training. Medians, and each "
        "seed's."
    )
    columns = ("", *(title for _, title in COLUMNS))
    return [ReportTable(title="SIDs", note=note, columns=columns, rows=tuple(rows))]


def sid_findings(report: Report) -> list[dict[str, str]]:
    """Collisions and drift of each row in words; what is above its limit is said to be so."""
    findings = []
    for row in report["rows"]:
        final = _values(row, "collision_rate")
        if not final:
            continue
        initial, drift = _values(row, "initial_collision_rate"), _values(row, "drift")
        above = [
            f"ABOVE the limit of {limit:.1%} {when}"
            for values, limit, when in (
                (initial, MOST_AT_START, "before the first step"),
                (final, MOST_COLLISIONS, "after training"),
            )
            if max(values) > limit
        ]
        text = (
            f"SIDs of {row['name']}: {_range(initial)} of the items shared theirs with another "
            f"before the first step, {_range(final)} after training"
        )
        text += f"; {_range(drift)} changed since the last look" if drift else ""
        text += f". {' and '.join(above)}." if above else ", within the limits of both."
        findings.append({"kind": "worse" if above else "note", "text": text})
    return findings


def _values(row: Mapping[str, Any], name: str) -> list[float]:
    """Of each seed, where it is known."""
    return [one[name] for one in row.get("sids", ()) if one[name] is not None]


def _range(values: list[float]) -> str:
    low, high = (f"{value:.2%}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _shown(name: str, value: float) -> str:
    return f"{value:.0f}" if name == "dead_codes" else f"{value:.2%}"
