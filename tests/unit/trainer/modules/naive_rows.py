"""Who has which row of a managed table, in plain Python, from the policies' descriptions."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

HASH_SIZE = 2**62


def hashed(raw_id: int) -> int:
    """splitmix64's mix of one id."""
    mixed = (raw_id + 0x9E3779B97F4A7C15) % 2**64
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) % 2**64
    return (mixed ^ (mixed >> 31)) % HASH_SIZE


@dataclass
class Row:
    """A row and the (hashed) id that has it, if any."""

    number: int
    id: int | None = None
    count: int = 0
    last: int = 0


class NaiveRows:
    """One shard's rows; the last one is shared by all ids without one."""

    def __init__(self, num_rows, interval, policy, first_row=0):
        self.rows = [Row(first_row + n) for n in range(num_rows - 1)]
        self.shared = first_row + num_rows - 1
        self.interval, self.policy = interval, policy
        self.now, self.waiting = 0, []
        self.changed = []

    def step(self, ids):
        """Hashed ids of a training step."""
        self.now += 1
        self.changed = []
        self.waiting += [(one, self.now) for one in ids]
        if self.now % self.interval == 0:
            self.round()
            self.waiting = []

    def row_of(self, one):
        for row in self.rows:
            if row.id == one:
                return row.number
        return self.shared

    def score(self, count, last):
        away = self.now - last + 1
        scores = {"lfu": count, "lru": -away, "distance_lfu": np.float32(count) / np.float32(away)}
        return scores[self.policy]

    def round(self):
        counts = Counter(one for one, _ in self.waiting)
        last = {one: max(s for other, s in self.waiting if other == one) for one in counts}
        for row in self.rows:
            if row.id in counts:
                row.count += counts[row.id]
                row.last = last[row.id]
        known = {row.id for row in self.rows}
        newcomers = [
            Row(-1, one, counts[one], last[one])
            for one in sorted(counts, key=lambda one: (-counts[one], one))
            if one not in known
        ]
        ranked = sorted(
            [*self.rows, *newcomers], key=lambda row: self.score(row.count, row.last), reverse=True
        )
        winners = [row for row in ranked[: len(self.rows)] if row.number == -1]
        losers = [row for row in ranked[len(self.rows) :] if row.number != -1]
        for winner, loser in zip(winners, losers, strict=True):
            loser.id, loser.count, loser.last = winner.id, winner.count, winner.last
            self.changed.append(loser.number)
        self.rows.sort(key=lambda row: HASH_SIZE if row.id is None else row.id)
