"""Estimates of distinct shard sizes are TorchRec's estimates of every shard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sharding.estimates import PERF_PARTS, Estimator
from sharding.hardware import Cluster, cpu, h100
from sharding.tables import TableSpec
from tests.unit.sharding.plan_reference import stock_options

ALL_TYPES = (
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)
TABLES = (
    TableSpec(name="small", rows=1_000, dim=16, features=("a",), role="gen_token"),
    TableSpec(
        name="two_features",
        rows=1_000_003,
        dim=128,
        features=("b", "c"),
        role="side",
        pooling_factors=(3.5, 40.0),
        sharding_types=ALL_TYPES,
    ),
    TableSpec(
        name="item_id", rows=50_000_017, dim=64, features=("d",), role="item_id", pooling="none"
    ),
    TableSpec(
        name="adagrad", rows=777_777, dim=256, features=("e",), role="side", optimizer="adagrad"
    ),
    TableSpec(name="sgd", rows=777_777, dim=96, features=("f",), role="side", optimizer="sgd"),
)
ON_GPUS = (
    replace(TABLES[3], name="cached", features=("g",), cache_load_factor=0.05),
    replace(TABLES[3], name="adam", features=("h",), optimizer="adam", kernels=("fused_uvm",)),
    replace(TABLES[3], name="ssd", features=("i",), kernels=("key_value",)),
)


@pytest.mark.parametrize(
    ("cluster", "tables"),
    [
        (Cluster(machine=h100(), nodes=2), TABLES + ON_GPUS),
        (Cluster(machine=cpu(), nodes=3), TABLES),
    ],
    ids=["gpus", "cpus"],
)
def test_every_shard_costs_what_torchrec_estimates(cluster, tables):
    """Time is equal; memory too, but for what TorchRec leaves out of it."""
    topology = cluster.topology()
    estimator = Estimator(tables, topology=topology, batch_size=512, min_partition=32)
    ours = {
        (table.name, way.sharding_type, way.kernel): way
        for table in tables
        for way in estimator.candidates(table)
    }
    stock = stock_options(tables, topology, batch_size=512)
    assert len(stock) == len(ours) > 20
    for option in stock:
        way = ours[option.name, option.sharding_type, option.compute_kernel]
        expected = [[getattr(s.perf, part) for part in PERF_PARTS] for s in option.shards]
        np.testing.assert_array_equal(way.parts_K6[way.grid.kind_S], expected)
        memory = np.array(
            [[s.storage.hbm, s.storage.ddr, s.storage.ssd] for s in option.shards], np.int64
        )
        extra = way.memory_by_shard - memory
        assert (extra >= 0).all()
        # Row-wise state that each column shard keeps, and gradients of data-parallel tables.
        column_wise = option.sharding_type in ("column_wise", "table_column_wise", "grid_shard")
        if option.sharding_type != "data_parallel" and not column_wise:
            assert extra.max() <= 8  # TorchRec rounds a share of the bytes
        assert way.load == pytest.approx(option.total_perf)
        assert way.longest == pytest.approx(max(s.perf.total for s in option.shards))


def test_ways_that_no_empty_rank_holds_are_left_out():
    """A table of 256 GB goes neither whole nor by columns to device memory."""
    table = TableSpec(name="t", rows=500_000_000, dim=128, features=("a",), role="item_id")
    topology = Cluster(machine=h100(), nodes=4).topology()
    estimator = Estimator([table], topology=topology, batch_size=512, min_partition=64)
    names = {(way.sharding_type, way.kernel) for way in estimator.candidates(table)}
    assert ("table_wise", "fused") not in names
    assert ("column_wise", "fused") not in names
    assert {("row_wise", "fused"), ("table_row_wise", "fused")} <= names


def test_equal_tables_are_estimated_once():
    """Names and features differ; rows, dims and choices do not."""
    tables = [replace(TABLES[0], name=f"t{i}", features=(f"f{i}",)) for i in range(5)]
    topology = Cluster(machine=h100(), nodes=1).topology()
    estimator = Estimator(tables, topology=topology, batch_size=512, min_partition=32)
    ways = [estimator.candidates(table) for table in tables]
    assert all(way is ways[0] for way in ways)
