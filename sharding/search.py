"""Which way for each table: a search for the plan whose slowest rank is fastest.

For a bound on the slowest shard, each table takes the way with the least total load among those
within the bound, plus a price on memory. Sweeping bound and prices gives a few dozen proposals
(TorchRec: hundreds), equal tables choosing alike; a short local search then changes one table at a
time. Proposals whose lower bound is no better than what was found are not placed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from sharding.estimates import Candidate
from sharding.placement import Order, Placement, place
from sharding.shards import Array

_PRICES = (0.0, 1e-3, 1e-2, 0.1, 0.5, 2.0, 10.0, 1e3)
_NUM_BOUNDS = 16
_PLACED_SHARDS = 6_000_000
_LEAST_PLACEMENTS, _MOST_PLACEMENTS = 48, 1500
_CLOSE_ENOUGH = 1.001


@dataclass(frozen=True, eq=False)
class Found:
    """The best proposal.

    Attributes:
        choice: candidate of each table.
        placement: ranks of its shards.
        num_placements: proposals that were placed.
    """

    choice: tuple[Candidate, ...]
    placement: Placement
    num_placements: int


class Search:
    """Searches over the candidates of all tables.

    Args:
        candidates: ways of each table; equal tables share one tuple.
        capacity: bytes of HBM, DDR and SSD of an empty rank (3,).
        num_ranks: of the cluster.
        ranks_per_node: of a node.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[Candidate, ...]],
        *,
        capacity: Array,
        num_ranks: int,
        ranks_per_node: int,
    ) -> None:
        self.candidates = candidates
        self.capacity, self.num_ranks, self.ranks_per_node = capacity, num_ranks, ranks_per_node
        width = max(len(ways) for ways in candidates)
        shape = (len(candidates), width)
        self.load_TC = np.full(shape, np.inf)
        self.longest_TC = np.full(shape, np.inf)
        self.memory_TC3 = np.full((*shape, 3), np.inf)
        for index, ways in enumerate(candidates):
            self.load_TC[index, : len(ways)] = [way.load for way in ways]
            self.longest_TC[index, : len(ways)] = [way.longest for way in ways]
            self.memory_TC3[index, : len(ways)] = [way.memory for way in ways]
        self.tables = list(range(len(candidates)))
        shards = num_ranks * len(candidates)
        self.limit = int(
            np.clip(_PLACED_SHARDS // max(1, shards), _LEAST_PLACEMENTS, _MOST_PLACEMENTS)
        )
        self.seen: dict[tuple[bytes, Order], float] = {}
        self.best: tuple[float, Array, Placement] | None = None

    def run(self) -> Found | None:
        """The best plan found; None where no proposal fits."""
        self._try_proposals()
        if self.best is None:
            return None
        self._improve()
        _, picks, placement = self.best
        choice = tuple(ways[pick] for ways, pick in zip(self.candidates, picks, strict=True))
        return Found(choice, placement, len(self.seen))

    def _try_proposals(self) -> None:
        proposals = {picks.tobytes(): picks for picks in self._proposals()}
        ranked = sorted(proposals.values(), key=self._lower_bound)
        for picks in ranked:
            if len(self.seen) >= self.limit and self.best is not None:
                return
            if self._lower_bound(picks) * _CLOSE_ENOUGH >= self._rating:
                return
            self._place(picks, "memory")
            self._place(picks, "time")

    def _proposals(self) -> list[Array]:
        total = self.capacity.astype(float) * self.num_ranks
        # Padding has infinite load and no memory, so a price of nothing stays a number.
        share_TC3 = np.where(np.isfinite(self.memory_TC3), self.memory_TC3, 0) / np.maximum(
            total, 1.0
        )
        finite = self.longest_TC[np.isfinite(self.longest_TC)]
        least = self.longest_TC.min(axis=1).max()
        bounds = np.unique(np.append(finite[finite >= least], np.inf))
        if len(bounds) > _NUM_BOUNDS:
            bounds = bounds[np.linspace(0, len(bounds) - 1, _NUM_BOUNDS).round().astype(int)]
        scale = self.load_TC.min(axis=1).sum() or 1.0
        found = []
        for bound, hbm, ddr in product(bounds, _PRICES, _PRICES):
            if hbm and ddr and hbm != ddr:
                continue
            cost = self.load_TC / scale + hbm * share_TC3[..., 0] + ddr * share_TC3[..., 1]
            cost = np.where(self.longest_TC <= bound, cost, np.inf)
            found.append(cost.argmin(axis=1))
        for tier in (0, 1):
            found.append(self.memory_TC3[..., tier].argmin(axis=1))
        found.append(self.memory_TC3.sum(axis=2).argmin(axis=1))
        found.append(self.longest_TC.argmin(axis=1))
        found.extend(self._one_type_each())
        return [picks for picks in found if self._may_fit(picks)]

    def _one_type_each(self) -> list[Array]:
        """Every table by the same sharding type and kernel, where it has that way."""
        names = {(way.sharding_type, way.kernel) for ways in self.candidates for way in ways}
        found = []
        for name in sorted(names):
            matches = [
                [(way.sharding_type, way.kernel) == name for way in ways]
                + [False] * (self.load_TC.shape[1] - len(ways))
                for ways in self.candidates
            ]
            found.append(np.where(matches, self.load_TC / 1e12, self.load_TC).argmin(axis=1))
        return found

    def _may_fit(self, picks: Array) -> bool:
        needed = self.memory_TC3[self.tables, picks].sum(axis=0)
        return bool((needed <= self.capacity.astype(float) * self.num_ranks).all())

    def _lower_bound(self, picks: Array) -> float:
        load = self.load_TC[self.tables, picks].sum() / self.num_ranks
        return float(max(load, self.longest_TC[self.tables, picks].max()))

    @property
    def _rating(self) -> float:
        return np.inf if self.best is None else self.best[0]

    def _place(self, picks: Array, order: Order) -> float:
        key = (picks.tobytes(), order)
        if key not in self.seen:
            placement = place(
                [ways[pick] for ways, pick in zip(self.candidates, picks, strict=True)],
                capacity=self.capacity,
                num_ranks=self.num_ranks,
                ranks_per_node=self.ranks_per_node,
                order=order,
            )
            rating = np.inf if placement is None else placement.rating
            self.seen[key] = rating
            if placement is not None and rating < self._rating:
                self.best = (rating, picks.copy(), placement)
        return self.seen[key]

    def _improve(self) -> None:
        """Change one table, or all tables equal to it, while that helps."""
        improved = True
        while improved and len(self.seen) < self.limit:
            improved = False
            assert self.best is not None
            rating, picks, placement = self.best
            slowest = int(placement.perf_R.argmax())
            involved = [t for t in self.tables if (placement.ranks[t] == slowest).any()]
            moves: list[tuple[float, int, Array]] = []
            for table in involved:
                same = [t for t in self.tables if self.candidates[t] is self.candidates[table]]
                groups = [[table]] if len(same) == 1 else [[table], same]
                for way, group in product(range(len(self.candidates[table])), groups):
                    if way == picks[table]:
                        continue
                    changed = picks.copy()
                    changed[group] = way
                    bound = self._lower_bound(changed)
                    if bound < rating and self._may_fit(changed):
                        moves.append((bound, len(moves), changed))
            for _, _, changed in sorted(moves, key=lambda move: move[:2]):
                if len(self.seen) >= self.limit:
                    return
                self._place(changed, "memory")
                self._place(changed, "time")
                if self._rating < rating / _CLOSE_ENOUGH:
                    improved = True
                    break
