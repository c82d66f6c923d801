from dataclasses import replace

import pytest
from torchrec.distributed.planner import Topology
from torchrec.distributed.types import ShardingType

from sharding.fast_planner import NoPlanError, plan_tables
from sharding.managed_ids import ManagedIds
from sharding.plan_io import PlanMismatchError, plan_file, plan_from_json
from sharding.tables import TableSpec, check_managed_rows, planner_constraints

TABLE = TableSpec(
    name="item_id",
    rows=1000,
    dim=16,
    features=("item_id",),
    role="item_id",
    pooling="none",
    managed=ManagedIds(),
)
OTHER = replace(TABLE, name="other", features=("other",), managed=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "fifo"}, "managed.policy is 'fifo', expected one of lru, lfu, distance_lfu"),
        ({"eviction_interval": 0}, "managed.eviction_interval is 0, expected at least 1"),
        ({"decay": 0.0}, "managed.decay is 0.0, expected above 0"),
        ({"policy": "lru", "decay": 2.0}, "only policy 'distance_lfu' weighs distance"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ManagedIds(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pooling": "sum"}, "table 'item_id': managed is set and pooling is 'sum'"),
        ({"sharding_types": ("table_wise",)}, "run with sharding_types=.'row_wise',. alone"),
        ({"kernels": ("fused", "fused_uvm")}, "run with kernels=.'fused',. alone"),
        ({"dtype": "int8"}, "dtype is 'int8', whose rows can't be reset"),
        ({"cache_load_factor": 0.5}, "cache_load_factor would have no effect"),
    ],
)
def test_ways_in_which_no_table_can_be_managed_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TABLE, **changes)


def test_planner_may_only_split_by_rows_in_device_memory():
    constraints = planner_constraints([TABLE], min_partition=8)["item_id"]
    assert constraints.sharding_types == ["row_wise"]
    assert constraints.compute_kernels == ["fused"]


@pytest.mark.parametrize(("policy", "columns"), [("lru", 3), ("lfu", 3), ("distance_lfu", 4)])
def test_map_counts_among_the_bytes(policy, columns):
    table = replace(TABLE, managed=ManagedIds(policy=policy))
    assert table.num_bytes == 4 * 16 * 1000 + 8 * columns * 1000
    assert table.num_state_bytes == 4 * 1000
    assert replace(TABLE, managed=None).num_bytes == 4 * 16 * 1000


def topology(num_ranks, ddr_bytes=10**9):
    return Topology(
        world_size=num_ranks,
        local_world_size=num_ranks,
        compute_device="cpu",
        ddr_cap=ddr_bytes,
        hbm_cap=0,
    )


def test_dry_run_has_the_map_in_its_bytes_and_the_plan_where_the_model_keeps_the_table():
    managed, plain = (
        plan_tables([table], topology(2), batch_size=4)
        for table in (TABLE, replace(TABLE, managed=None, sharding_types=("row_wise",)))
    )
    extra = managed.memory_by_rank().sum(axis=0) - plain.memory_by_rank().sum(axis=0)
    assert extra[1] >= 32 * 1000
    plan = managed.to_sharding_plan()
    assert set(plan.plan) == {"sparse.managed"}
    assert plan.plan["sparse.managed"]["item_id"].sharding_type == ShardingType.ROW_WISE.value


def test_tables_whose_weights_fit_but_not_their_maps_do_not_fit():
    room = topology(1, ddr_bytes=1000 * (16 * 4 + 4) + 20_000)
    unmanaged = replace(TABLE, managed=None, sharding_types=("row_wise",))
    assert plan_tables([unmanaged], room, batch_size=1)
    with pytest.raises(NoPlanError, match="no shard of item_id fits"):
        plan_tables([TABLE], room, batch_size=1)


def test_plan_is_read_back_and_one_of_another_kind_is_refused():
    plan = plan_tables([TABLE, OTHER], topology(2), batch_size=4).to_sharding_plan()
    values = plan_file(plan, [TABLE, OTHER], 2)
    read = {"num_ranks": 2, "ranks_per_node": 2, "device": "cpu"}
    assert set(plan_from_json(values, [TABLE, OTHER], **read).plan) == set(plan.plan)
    with pytest.raises(PlanMismatchError, match=r"in 'sparse\.managed', the model in .*items'"):
        plan_from_json(values, [replace(TABLE, managed=None), OTHER], **read)
    values["modules"]["sparse.managed"]["item_id"]["sharding_type"] = "table_wise"
    with pytest.raises(PlanMismatchError, match="shards it table_wise"):
        plan_from_json(values, [TABLE, OTHER], **read)


@pytest.mark.parametrize(("rows", "ranks", "fits"), [(4, 2, True), (3, 2, False), (5, 4, False)])
def test_every_rank_needs_a_row_to_give_and_one_to_share(rows, ranks, fits):
    tables = [replace(TABLE, rows=rows)]
    if fits:
        check_managed_rows(tables, ranks)
        return
    with pytest.raises(ValueError, match=f"{rows} managed rows over {ranks} ranks leave"):
        check_managed_rows(tables, ranks)
    check_managed_rows([replace(OTHER, rows=rows)], ranks)
