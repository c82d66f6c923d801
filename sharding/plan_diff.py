"""What changed between two plan reports."""

from __future__ import annotations

import json
from pathlib import Path

from sharding.cost import MEMORY_PARTS, TIERS
from sharding.report import Report, human_bytes, rank_ranges

_COMPARED = ("fingerprint", "batch_size_per_rank", "num_parameters", "weight_bytes")


def read_plan_report(path: Path) -> Report:
    """Read a `plan_report.json` that `farewell plan` wrote.

    Raises:
        ValueError: no such file, no JSON, or JSON of something else, a single plan for instance.
    """
    try:
        report = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a plan_report.json of `farewell plan`, found {error}"
        ) from error
    missing = [key for key in (*_COMPARED, "targets") if key not in report]
    if missing:
        raise ValueError(
            f"{path}: expected a plan_report.json of `farewell plan`; it has no {missing[0]!r}"
        )
    return dict(report)


def difference(before: Report, after: Report) -> list[str]:
    """What changed between two reports, target by target.

    Args:
        before: report A.
        after: report B.
    """
    lines = []
    for what in _COMPARED:
        if before[what] != after[what]:
            lines.append(f"{what}: {before[what]} -> {after[what]}")
    first = {target["cluster"]: target for target in before["targets"]}
    second = {target["cluster"]: target for target in after["targets"]}
    for name in sorted(first.keys() | second.keys()):
        if name not in first or name not in second:
            lines.append(f"{name}: only in {'A' if name in first else 'B'}")
            continue
        lines += [f"{name}: {line}" for line in _target_difference(first[name], second[name])]
    return lines


def _target_difference(before: Report, after: Report) -> list[str]:
    if before["fits"] != after["fits"]:
        words = {True: "fits", False: "does not fit"}
        return [f"{words[before['fits']]} -> {words[after['fits']]}"]
    if not before["fits"]:
        return []
    lines = []
    old = {table["name"]: table for table in before["tables"]}
    new = {table["name"]: table for table in after["tables"]}
    for name in [*old, *(name for name in new if name not in old)]:
        if name not in old or name not in new:
            lines.append(f"table {name}: only in {'A' if name in old else 'B'}")
            continue
        for field in ("rows", "dim", "dtype", "optimizer", "sharding_type", "kernel", "ranks"):
            a, b = old[name][field], new[name][field]
            if a != b:
                shown = (rank_ranges(a), rank_ranges(b)) if field == "ranks" else (a, b)
                lines.append(f"table {name}: {field} {shown[0]} -> {shown[1]}")
    a, b = before["step"]["step_ms"], after["step"]["step_ms"]
    if a != b:
        lines.append(f"predicted step {a:.3f} ms -> {b:.3f} ms ({b / a - 1:+.1%})")
    for tier in TIERS:
        peaks = [
            max(
                sum(values)
                for values in zip(
                    *(report["memory_by_rank"][tier][part] for part in MEMORY_PARTS[:3]),
                    strict=True,
                )
            )
            for report in (before, after)
        ]
        if peaks[0] != peaks[1]:
            lines.append(
                f"{tier.upper()} of tables on the fullest rank {human_bytes(peaks[0])} -> "
                f"{human_bytes(peaks[1])}"
            )
    return lines
