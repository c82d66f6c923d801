"""Plans of the fast planner: whole, within memory, and no slower than TorchRec's."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torchrec.distributed.planner.types import PlannerError

from sharding.fast_planner import NoPlanError, plan_tables
from sharding.hardware import Cluster, a100, b200, cpu, h100
from sharding.tables import TableSpec
from tests.unit.sharding.plan_reference import stock_rating

QUALITY = 1.02


def table_sets(max_log_rows, max_tables=12):
    """Up to so many tables of mixed sizes."""
    one = st.tuples(
        st.floats(0.5, max_log_rows),
        st.sampled_from([4, 16, 64, 96, 128, 256]),
        st.booleans(),
        st.sampled_from(["rowwise_adagrad", "adagrad", "sgd"]),
        st.sampled_from([1.0, 3.0, 50.0]),
        st.sampled_from([None, ("row_wise", "column_wise"), ("grid_shard", "table_wise")]),
    )
    return st.lists(one, min_size=1, max_size=max_tables).map(
        lambda rows: [
            TableSpec(
                name=f"t{i}",
                rows=int(10**log_rows),
                dim=64 if sequence else dim,
                features=(f"f{i}",),
                role="side",
                pooling="none" if sequence else "sum",
                optimizer=optimizer,
                pooling_factors=(factor,),
                sharding_types=None if sequence else types,
            )
            for i, (log_rows, dim, sequence, optimizer, factor, types) in enumerate(rows)
        ]
    )


def clusters(max_nodes):
    """Nodes of one kind."""
    return st.builds(
        lambda machine, nodes: Cluster(machine=machine, nodes=nodes),
        st.sampled_from([a100(), h100(), b200(), cpu()]),
        st.integers(1, max_nodes),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(tables=table_sets(10.0), cluster=clusters(5))
def test_plans_cover_every_cell_once_and_fit(tables, cluster):
    """Rectangles of a table are disjoint, add up to it, and no rank holds more than it may."""
    topology = cluster.topology()
    try:
        plan = plan_tables(tables, topology, batch_size=256)
    except NoPlanError:
        needed = sum(table.num_bytes for table in tables)
        machine = cluster.machine
        # The largest sets do not fit; everything that takes a hundredth of a rank must.
        assert needed > (machine.hbm_bytes + machine.ddr_bytes) / 100
        return
    used = np.zeros((cluster.num_ranks, 3), np.int64)
    sharded = plan.to_sharding_plan().plan
    by_name = {name: p for module in sharded.values() for name, p in module.items()}
    assert set(by_name) == {table.name for table in tables}
    for entry in plan.tables:
        table, parameter = entry.table, by_name[entry.table.name]
        assert parameter.ranks == entry.ranks_S.tolist()
        for rank, memory in zip(parameter.ranks, entry.way.memory_by_shard, strict=True):
            used[rank] += memory
        if parameter.sharding_type == "data_parallel":
            assert parameter.ranks == list(range(cluster.num_ranks))
            continue
        cells = []
        for shard, rank in zip(parameter.sharding_spec.shards, parameter.ranks, strict=True):
            assert shard.placement.rank() == rank
            rows, columns = shard.shard_sizes
            row, column = shard.shard_offsets
            if rows and columns:
                cells.append((row, row + rows, column, column + columns))
        assert sum((b - a) * (d - c) for a, b, c, d in cells) == table.rows * table.dim
        assert max(b for _, b, _, _ in cells) == table.rows
        assert max(d for _, _, _, d in cells) == table.dim
        cells.sort(key=lambda cell: (cell[2], cell[0]))
        for (_, end, left, _), (start, _, next_left, _) in pairwise(cells):
            assert next_left > left or start >= end
        _check_neighbours(entry, cluster)
    machine = cluster.machine
    assert (used <= [machine.hbm_bytes, machine.ddr_bytes, machine.ssd_bytes]).all()
    np.testing.assert_array_equal(used, plan.memory_by_rank())


def _check_neighbours(entry, cluster):
    """Ways that need one node stay on it; row-wise takes every rank once."""
    node = entry.ranks_S // cluster.machine.ranks_per_node
    kind = entry.way.sharding_type
    if kind in ("table_row_wise", "table_column_wise"):
        assert len(set(node)) == 1
    if kind == "row_wise":
        assert entry.ranks_S.tolist() == list(range(cluster.num_ranks))
    if kind == "grid_shard":
        blocks = entry.ranks_S.reshape(-1, cluster.machine.ranks_per_node)
        assert all(len(set(b // cluster.machine.ranks_per_node)) == 1 for b in blocks)


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tables=table_sets(9.5, max_tables=4), cluster=clusters(2))
def test_no_slower_than_torchrecs_plan_and_found_wherever_it_finds_one(tables, cluster):
    """By TorchRec's own rating, on the same memory."""
    topology = cluster.topology()
    try:
        stock = stock_rating(tables, topology, batch_size=256)
    except PlannerError:
        return
    assert plan_tables(tables, topology, batch_size=256).rating <= QUALITY * stock


@pytest.mark.parametrize(
    ("free_bytes", "fits"), [(999_900, True), (999_899, False)], ids=["fits", "does_not"]
)
def test_memory_decides_to_the_byte(free_bytes, fits):
    """One table of 999,900 bytes with state, on one rank, next to no buffers."""
    topology = Cluster(machine=h100(), nodes=1).topology(hbm_bytes=free_bytes, ddr_bytes=0)
    table = TableSpec(
        name="t",
        rows=7_575,
        dim=32,
        features=("f",),
        role="side",
        pooling_factors=(0.0,),
        sharding_types=("table_wise",),
    )
    assert table.num_bytes + table.num_state_bytes == 999_900
    if fits:
        plan = plan_tables([table], topology, batch_size=1)
        assert plan.memory_by_rank().max() <= free_bytes
    else:
        with pytest.raises(NoPlanError):
            plan_tables([table], topology, batch_size=1)


def test_the_kind_of_table_decides_its_way():
    """Gen-token tables are replicated, mem-token and ID tables split: nobody tells the planner."""
    items = 1 + 50  # candidate and history
    tables = [
        TableSpec(
            name=name,
            rows=rows,
            dim=64,
            features=(name,),
            role=name,
            pooling="none",
            pooling_factors=(items * tokens,),
        )
        for name, rows, tokens in (("gen_token", 20_480, 5.0), ("mem_token", 20_000_000, 2.0))
    ]
    tables.append(
        TableSpec(name="user", rows=3_000_000_000, dim=128, features=("u",), role="residual_id")
    )
    plan = plan_tables(tables, Cluster(machine=h100(), nodes=16).topology(), batch_size=512)
    ways = {entry.table.name: entry.way.sharding_type for entry in plan.tables}
    assert ways["gen_token"] == "data_parallel"
    assert ways["mem_token"] in ("row_wise", "column_wise", "table_wise")
    assert ways["user"] in ("row_wise", "column_wise", "table_row_wise", "table_column_wise")
