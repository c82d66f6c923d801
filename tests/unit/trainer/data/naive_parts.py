"""The protocol of last clicks by loops: what the writers of logs are held against."""

from __future__ import annotations

from typing import Any


def in_parts(rows: list[dict[str, Any]], label: str) -> list[dict[str, Any]]:
    """Rows in order of time with their `part`, in order of parts.

    A user's last positive and what follows it is 2 (test), the same of the one before 1
    (validation), the rest 0, as is all of a user without positives.
    """
    parts = []
    for at, row in enumerate(rows):
        own = [one[label] for one in rows if one["user_id"] == row["user_id"]]
        to_come = [one[label] for one in rows[at:] if one["user_id"] == row["user_id"]]
        parts.append(3 - min(max(sum(to_come), 1), 3) if sum(own) else 0)
    cut = [row | {"part": part} for row, part in zip(rows, parts, strict=True)]
    return sorted(cut, key=lambda row: row["part"])
