"""How one table is cut: sizes and places of its shards, as TorchRec cuts them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torchrec.distributed.planner.constants import MIN_CW_DIM
from torchrec.distributed.types import ShardingType

Array = np.ndarray[Any, Any]

_OVER_ALL_RANKS = ShardingType.ROW_WISE.value
_OVER_A_NODE = (ShardingType.TABLE_ROW_WISE.value, ShardingType.GRID_SHARD.value)
_BY_COLUMNS = (
    ShardingType.COLUMN_WISE.value,
    ShardingType.TABLE_COLUMN_WISE.value,
    ShardingType.GRID_SHARD.value,
)


@dataclass(frozen=True, eq=False)
class ShardGrid:
    """Shards of a table in TorchRec's order: column blocks outside, row blocks inside.

    Attributes:
        sizes_S2: rows and columns of each shard (S, 2) int64.
        offsets_S2: first row and column of each shard (S, 2) int64.
        distinct_K2: the few sizes that occur (K, 2) int64; K is at most 3.
        kind_S: index into `distinct_K2` of each shard (S,).
    """

    sizes_S2: Array
    offsets_S2: Array
    distinct_K2: Array
    kind_S: Array

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return len(self.sizes_S2)


def cut(
    rows: int,
    dim: int,
    sharding_type: str,
    *,
    num_ranks: int,
    ranks_per_node: int,
    min_partition: int | None,
) -> ShardGrid:
    """Cut a table.

    Args:
        rows: of the table.
        dim: columns of the table.
        sharding_type: TorchRec's name.
        num_ranks: of the cluster.
        ranks_per_node: of a node.
        min_partition: fewest columns of a column-wise shard; None for TorchRec's own.
    """
    if sharding_type == ShardingType.DATA_PARALLEL.value:
        sizes = np.broadcast_to(np.array([[rows, dim]]), (num_ranks, 2))
        offsets = np.zeros((num_ranks, 2), np.int64)
        return ShardGrid(sizes, offsets, sizes[:1], np.zeros(num_ranks, np.int64))
    row_parts = 1
    if sharding_type == _OVER_ALL_RANKS:
        row_parts = num_ranks
    elif sharding_type in _OVER_A_NODE:
        row_parts = ranks_per_node
    width = dim
    if sharding_type in _BY_COLUMNS:
        width = column_block(dim, min_partition)
    row_sizes = _row_blocks(rows, row_parts)
    row_offsets = np.concatenate(([0], np.cumsum(row_sizes)[:-1]))
    blocks = dim // width
    sizes = np.stack([np.tile(row_sizes, blocks), np.full(blocks * row_parts, width)], axis=1)
    offsets = np.stack(
        [np.tile(row_offsets, blocks), np.repeat(np.arange(blocks) * width, row_parts)], axis=1
    )
    distinct_rows, kind = np.unique(row_sizes, return_inverse=True)
    distinct = np.stack([distinct_rows, np.full(len(distinct_rows), width)], axis=1)
    return ShardGrid(sizes, offsets, distinct, np.tile(kind.reshape(-1), blocks))


def column_block(dim: int, min_partition: int | None) -> int:
    """Columns of a column-wise shard: the least divisor of `dim` that is allowed."""
    least = min_partition or MIN_CW_DIM
    return next((n for n in range(least, dim) if dim % n == 0 and n % 4 == 0), dim)


def _row_blocks(rows: int, parts: int) -> Array:
    """Equal blocks, the last one smaller, then empty ones: FBGEMM divides ids by the block."""
    block = -(-rows // parts)
    starts = np.minimum(np.arange(parts, dtype=np.int64) * block, rows)
    return np.minimum(starts + block, rows) - starts
