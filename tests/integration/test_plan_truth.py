"""Plans are executed on gloo ranks; the bytes they predict are the bytes that are allocated."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from sharding.dry_run import dry_run
from sharding.report import plan_files
from tests.integration.plan_workers import execute_plans, request, small_host, train_with_plan
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


def test_training_executes_the_plan_it_is_given(smoke, tmp_path):
    """From the file to the run's record; resumption keeps it; other tables are refused."""
    experiment = replace(
        smoke, train=replace(smoke.train, max_steps=2, eval_every=None, checkpoint_every=None)
    )
    # Ways that the planner would not choose by itself for tables so small.
    planned = tuple(
        replace(table, sharding_types=("row_wise" if index % 2 else "table_wise",))
        for index, table in enumerate(experiment.tables)
    )
    result = dry_run(request(planned, small_host(2), nodes=1))
    (document,) = plan_files(result).values()
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(document))
    run_ranks(train_with_plan, 2, experiment, tmp_path, path)
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == document["modules"]
    refused = (tmp_path / "refused.txt").read_text()
    assert "'user_id'" in refused
    assert "optimizer" in refused
