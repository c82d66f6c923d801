"""plan.json comes back as the plan it was, or is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from sharding.fast_planner import plan_tables
from sharding.hardware import Cluster, cpu
from sharding.plan_io import PlanMismatchError, plan_file, plan_from_json, plan_to_json
from sharding.tables import TableSpec

CLUSTER = Cluster(machine=replace(cpu(), ranks_per_node=2), nodes=1)
TABLES = (
    TableSpec(name="a", rows=1000, dim=64, features=("a",), role="side"),
    TableSpec(
        name="b",
        rows=1001,
        dim=64,
        features=("b",),
        role="side",
        sharding_types=("column_wise",),
    ),
    TableSpec(name="c", rows=77, dim=16, features=("c",), role="item_id", pooling="none"),
    TableSpec(
        name="d", rows=5000, dim=8, features=("d",), role="side", sharding_types=("row_wise",)
    ),
)
RUN = {"num_ranks": 2, "ranks_per_node": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def plan():
    """A plan for two CPU ranks."""
    return plan_tables(TABLES, CLUSTER.topology(), batch_size=8).to_sharding_plan()


@pytest.mark.parametrize("with_header", [True, False], ids=["farewell_plan", "run_folder"])
def test_a_plan_comes_back_as_it_was(plan, with_header):
    """Through JSON text, with and without what it was made for."""
    values = plan_file(plan, TABLES, 2) if with_header else plan_to_json(plan)
    back = plan_from_json(json.loads(json.dumps(values)), TABLES, **RUN)
    assert set(back.plan) == set(plan.plan) == {"sparse.pooled", "sparse.items"}
    for path, module in plan.plan.items():
        for name, parameter in module.items():
            found = back.plan[path][name]
            assert found.sharding_type == parameter.sharding_type
            assert found.compute_kernel == parameter.compute_kernel
            assert found.ranks == parameter.ranks
            assert found.sharding_spec == parameter.sharding_spec


@pytest.mark.parametrize(
    ("tables", "run", "message"),
    [
        (TABLES, {"num_ranks": 4}, "for 2 ranks, this run has 4"),
        (TABLES[:3], {}, r"only in the plan: \['d'\]"),
        ((replace(TABLES[0], rows=999), *TABLES[1:]), {}, "'a': the plan is for rows 1000"),
        ((replace(TABLES[0], optimizer="sgd"), *TABLES[1:]), {}, "'a': .*optimizer"),
        ((replace(TABLES[0], pooling="none"), *TABLES[1:]), {}, "'a': the plan has it in"),
    ],
)
def test_a_plan_for_something_else_is_refused(plan, tables, run, message):
    """The message names the table and both values."""
    values = plan_file(plan, TABLES, 2)
    with pytest.raises(PlanMismatchError, match=message):
        plan_from_json(values, tables, **{**RUN, **run})


def test_a_run_folders_plan_is_checked_by_its_shards(plan):
    """Without a header, rectangles tell the size of the table."""
    tables = (*TABLES[:3], replace(TABLES[3], rows=5001))
    with pytest.raises(PlanMismatchError, match="'d': the plan's shards make 5000 x 8"):
        plan_from_json(plan_to_json(plan), tables, **RUN)


def test_kernels_and_types_of_another_device_are_refused(plan):
    """UVM does not run on the CPU, nor do replicated sequence tables."""
    values = plan_file(plan, TABLES, 2)
    values["modules"]["sparse.pooled"]["b"]["compute_kernel"] = "fused_uvm"
    with pytest.raises(PlanMismatchError, match=r"'b': .*fused_uvm.*cpu"):
        plan_from_json(values, TABLES, **RUN)
    values = plan_file(plan, TABLES, 2)
    values["modules"]["sparse.items"]["c"]["sharding_type"] = "data_parallel"
    with pytest.raises(PlanMismatchError, match=r"'c': .*data_parallel.*cpu"):
        plan_from_json(values, TABLES, **RUN)
