"""Plans are executed on gloo ranks; the bytes they predict are the bytes that are allocated."""

from __future__ import annotations

import pytest
import torch

from tests.integration.plan_workers import execute_plans, small_host
from tests.integration.rank_processes import run_ranks

SEEDS = list(range(10))
TOLERANCE = 0.02


@pytest.mark.parametrize(("num_ranks", "hosts"), [(2, 1), (4, 2)])
def test_predicted_bytes_are_allocated(num_ranks, hosts, tmp_path):
    """Weights and optimizer state of every rank, for ten random sets that train a step each."""
    run_ranks(
        execute_plans,
        num_ranks,
        small_host(num_ranks // hosts),
        hosts,
        SEEDS,
        tmp_path,
        hosts=hosts,
    )
    seen = set()
    for rank in range(num_ranks):
        results = torch.load(tmp_path / f"rank{rank}.pt")
        assert [seed for seed, *_ in results] == SEEDS
        for seed, predicted, allocated, ways in results:
            assert predicted == pytest.approx(allocated, rel=TOLERANCE), (seed, rank, ways)
            seen |= set(ways.values())
    assert {"data_parallel", "table_wise", "column_wise", "row_wise"} <= seen
    if hosts > 1:
        assert seen & {"table_row_wise", "table_column_wise", "grid_shard"}
