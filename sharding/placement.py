"""From one way for each table to a rank for each shard.

The rules are those of TorchRec's GreedyPerfPartitioner: row-wise and data-parallel tables take
every rank, then the others follow from large to small, each shard to the least loaded rank (node)
where it fits. State is a few arrays over ranks, so placing a shard is one search through them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torchrec.distributed.types import ShardingType

from sharding.estimates import Candidate
from sharding.shards import Array

Order = Literal["memory", "time"]


@dataclass(frozen=True, eq=False)
class Placement:
    """Where the shards of each table go. R: ranks.

    Attributes:
        ranks: rank of each shard, by table.
        perf_R: rated milliseconds of each rank (R,).
        free_R3: bytes of HBM, DDR and SSD left on each rank (R, 3).
    """

    ranks: tuple[Array, ...]
    perf_R: Array
    free_R3: Array

    @property
    def rating(self) -> float:
        """TorchRec's rating of a plan: milliseconds of the slowest rank."""
        return float(self.perf_R.max())


class _Ranks:
    """Load and free memory of all ranks, in order of (place in the node, node).

    TorchRec breaks ties by the place in the node first, so that neighbours do not fill one host.
    """

    def __init__(self, capacity: Array, num_ranks: int, ranks_per_node: int) -> None:
        self.nodes = num_ranks // ranks_per_node
        self.per_node = ranks_per_node
        ids = np.arange(num_ranks).reshape(self.nodes, ranks_per_node)
        self.rank_of = ids.T.reshape(-1)
        self.perf = np.zeros(num_ranks)
        self.free = np.tile(capacity, (num_ranks, 1))

    def node_slots(self, node: int) -> Array:
        """Positions of a node's ranks, in order of rank."""
        return np.arange(self.per_node) * self.nodes + node

    def put(self, slots: Array, memory: Array, perf: Array) -> None:
        """Load each slot once; several shards of a slot are summed by the caller."""
        self.free[slots] -= memory
        self.perf[slots] += perf


def place(
    choice: Sequence[Candidate],
    *,
    capacity: Array,
    num_ranks: int,
    ranks_per_node: int,
    order: Order = "memory",
) -> Placement | None:
    """Place one way for each table; None where some shard fits nowhere.

    Args:
        choice: a candidate for each table.
        capacity: bytes of HBM, DDR and SSD of an empty rank (3,).
        num_ranks: of the cluster.
        ranks_per_node: of a node.
        order: which tables are placed first: the largest, or the slowest.
    """
    ranks = _Ranks(capacity, num_ranks, ranks_per_node)
    slots: list[Array | None] = [None] * len(choice)
    # Slot of rank r, for tables that take every rank in order.
    in_order = np.argsort(ranks.rank_of)
    for index, candidate in enumerate(choice):
        if candidate.partition_by == "uniform":
            kinds = candidate.grid.kind_S
            ranks.put(in_order, candidate.memory_K3[kinds], candidate.perf_by_kind[kinds])
            slots[index] = in_order
    if (ranks.free < 0).any():
        return None
    keys = [float(c.memory.sum()) if order == "memory" else c.load for c in choice]
    for index in sorted(range(len(choice)), key=lambda i: -keys[i]):
        if slots[index] is None:
            found = _PLACE[choice[index].partition_by](ranks, choice[index])
            if found is None:
                return None
            slots[index] = found
    perf, free = np.empty_like(ranks.perf), np.empty_like(ranks.free)
    perf[ranks.rank_of], free[ranks.rank_of] = ranks.perf, ranks.free
    placed = tuple(ranks.rank_of[taken] for taken in slots if taken is not None)
    return Placement(placed, perf, free)


def _on_ranks(ranks: _Ranks, candidate: Candidate) -> Array | None:
    """Each shard to the least loaded rank where it fits (all have one size)."""
    memory, perf = candidate.memory_K3[0], candidate.perf_by_kind[0]
    once = (
        candidate.kernel == "key_value"
        and candidate.sharding_type == ShardingType.COLUMN_WISE.value
    )
    load = np.where((ranks.free >= memory).all(axis=1), ranks.perf, np.inf)
    taken = np.empty(candidate.grid.num_shards, np.int64)
    for shard in range(len(taken)):
        slot = int(load.argmin())
        if load[slot] == np.inf:
            return None
        taken[shard] = slot
        ranks.free[slot] -= memory
        ranks.perf[slot] += perf
        fits = not once and bool((ranks.free[slot] >= memory).all())
        load[slot] = ranks.perf[slot] if fits else np.inf
    return taken


def _nodes_by_load(ranks: _Ranks) -> Array:
    return np.argsort(ranks.perf.reshape(ranks.per_node, ranks.nodes).sum(axis=0), kind="stable")


def _over_a_node(ranks: _Ranks, candidate: Candidate) -> Array | None:
    """Row blocks over the ranks of the least loaded node, or columns within it."""
    if candidate.sharding_type == ShardingType.TABLE_COLUMN_WISE.value:
        return _columns_in_a_node(ranks, candidate)
    kinds = candidate.grid.kind_S
    return _rows_in_a_node(ranks, candidate.memory_K3[kinds], candidate.perf_by_kind[kinds])


def _rows_in_a_node(
    ranks: _Ranks, memory_L3: Array, perf_L: Array, taken: Array | None = None
) -> Array | None:
    """One shard to each rank of the least loaded node that fits all; `taken` nodes come last."""
    by_place = ranks.free.reshape(ranks.per_node, ranks.nodes, 3)
    fits = (by_place >= memory_L3[:, None, :]).all(axis=(0, 2))
    load = ranks.perf.reshape(ranks.per_node, ranks.nodes).sum(axis=0)
    times = np.zeros(ranks.nodes) if taken is None else taken
    best = np.lexsort((np.where(fits, load, np.inf), np.where(fits, times, np.inf)))[0]
    if not np.asarray(fits)[best]:
        return None
    slots = ranks.node_slots(int(best))
    ranks.put(slots, memory_L3, perf_L)
    if taken is not None:
        taken[best] += 1
    return slots


def _columns_in_a_node(ranks: _Ranks, candidate: Candidate) -> Array | None:
    """All column blocks to ranks of one node, each to its least loaded one."""
    memory, perf = candidate.memory_K3[0], float(candidate.perf_by_kind[0])
    num_shards = candidate.grid.num_shards
    counted = memory > 0
    room = (ranks.free[:, counted] // memory[counted]).min(axis=1, initial=num_shards)
    enough: Array = room.reshape(ranks.per_node, ranks.nodes).sum(axis=0) >= num_shards
    for node in _nodes_by_load(ranks):
        if not enough[node]:
            continue
        slots = ranks.node_slots(int(node))
        left = room[slots]
        load = np.where(left > 0, ranks.perf[slots], np.inf)
        taken = np.empty(num_shards, np.int64)
        for shard in range(num_shards):
            place_in_node = int(load.argmin())
            taken[shard] = slots[place_in_node]
            left[place_in_node] -= 1
            load[place_in_node] += perf
            if left[place_in_node] <= 0:
                load[place_in_node] = np.inf
        used = np.bincount(taken, minlength=len(ranks.perf))
        ranks.free -= used[:, None] * memory
        ranks.perf += used * perf
        return taken
    return None


def _over_nodes(ranks: _Ranks, candidate: Candidate) -> Array | None:
    """Grid: each column block to a node, spread over its ranks by rows; nodes before repeats."""
    per_node = ranks.per_node
    kinds = candidate.grid.kind_S[:per_node]
    memory, perf = candidate.memory_K3[kinds], candidate.perf_by_kind[kinds]
    taken = np.zeros(ranks.nodes)
    blocks = []
    for _ in range(candidate.grid.num_shards // per_node):
        slots = _rows_in_a_node(ranks, memory, perf, taken)
        if slots is None:
            return None
        blocks.append(slots)
    return np.concatenate(blocks)


_PLACE = {"device": _on_ranks, "host": _over_a_node, "multi_host": _over_nodes}
