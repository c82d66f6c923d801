"""Cuts are TorchRec's own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchrec.distributed.sharding_plan import calculate_shard_sizes_and_offsets
from torchrec.distributed.types import ShardingType

from sharding.shards import cut


@pytest.mark.parametrize("sharding_type", [t.value for t in ShardingType])
@pytest.mark.parametrize("rows", [1, 7, 64, 1001])
@pytest.mark.parametrize("dim", [4, 20, 64, 96, 256])
@pytest.mark.parametrize("min_partition", [None, 4, 32])
def test_sizes_and_offsets_equal_torchrecs(sharding_type, rows, dim, min_partition):
    """Every shard of every way, also where rows do not divide and ranks stay empty."""
    sizes, offsets = calculate_shard_sizes_and_offsets(
        torch.empty(rows, dim, device="meta"), 16, 8, sharding_type, min_partition
    )
    grid = cut(
        rows, dim, sharding_type, num_ranks=16, ranks_per_node=8, min_partition=min_partition
    )
    assert grid.sizes_S2.tolist() == sizes
    assert grid.offsets_S2.tolist() == offsets
    np.testing.assert_array_equal(grid.distinct_K2[grid.kind_S], grid.sizes_S2)
    assert len(grid.distinct_K2) <= 3
