"""Plan files changed at random: all tables placed, or refused by our own words."""

import dataclasses
import json
import math

import torch

from sharding.fast_planner import plan_tables
from sharding.hardware import Cluster, cpu
from sharding.plan_io import (
    PlanMismatchError,
    plan_file,
    plan_from_json,
    plan_to_json,
    read_given_plan,
)
from sharding.tables import TableSpec
from tests.fuzz.inputs import fuzz, numbers_of_inputs
from tests.fuzz.refusals import refusal
from tests.fuzz.strategies import changed

TABLES = tuple(
    TableSpec(
        name=name,
        rows=rows,
        dim=dim,
        features=(name,),
        role="item_id" if pooling == "none" else "side",
        pooling=pooling,
        sharding_types=kinds,
    )
    for name, rows, dim, pooling, kinds in (
        ("a", 1000, 64, "sum", ("table_wise",)),
        ("b", 101, 64, "sum", ("column_wise",)),
        ("c", 77, 16, "none", ("row_wise",)),
        ("d", 53, 8, "sum", ("row_wise",)),
        ("e", 40, 8, "sum", ("data_parallel",)),
    )
)


@numbers_of_inputs(100, 1200)
def test_plan_files(number, tmp_path):
    cluster = Cluster(machine=dataclasses.replace(cpu(), ranks_per_node=2), nodes=1)
    plan = plan_tables(TABLES, cluster.topology(), batch_size=8).to_sharding_plan()
    documents = [plan_file(plan, TABLES, 2), plan_to_json(plan)]
    path = tmp_path / "plan.json"
    outcomes = set()

    def check(document):
        path.write_text(json.dumps(document))
        found = []

        def read():
            values = read_given_plan(path, 2)
            found.append(
                plan_from_json(values, TABLES, num_ranks=2, ranks_per_node=2, device="cpu")
            )

        said = refusal(read, PlanMismatchError)
        outcomes.add(said is None)
        if said is None:
            assert_covers(found[0])

    for document in documents:
        document = json.loads(json.dumps(document))
        check(document)
        fuzz(number // 2, changed(document), check)
    assert outcomes == {True, False}
    assert list(tmp_path.iterdir()) == [path]


def assert_covers(plan):
    """Every weight of every table has one place, on the rank that ids are sent to."""
    by_name = {table.name: table for table in TABLES}
    seen = set()
    for module in plan.plan.values():
        for name, parameter in module.items():
            seen.add(name)
            table = by_name[name]
            if parameter.sharding_type == "data_parallel":
                assert parameter.sharding_spec is None
                continue
            cells = torch.zeros(table.rows, table.dim)
            for place, shard in enumerate(parameter.sharding_spec.shards):
                (row, column), (rows, columns) = shard.shard_offsets, shard.shard_sizes
                cells[row : row + rows, column : column + columns] += 1
                assert shard.placement.rank() == parameter.ranks[place] in (0, 1)
                if parameter.sharding_type == "row_wise":
                    assert shard.placement.rank() == place
                    assert row == place * math.ceil(table.rows / 2)
            assert (cells == 1).all()
    assert seen == set(by_name)
