"""TorchRec's planner for the machine that we train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch.distributed as dist
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner, Topology
from torchrec.distributed.planner.storage_reservations import HeuristicalStorageReservation
from torchrec.distributed.planner.types import PlannerError
from torchrec.distributed.types import ModuleSharder, ShardingPlan, ShardingType

from sharding.tables import (
    TableSpec,
    check_device,
    check_managed_rows,
    planner_constraints,
)

_RESERVED_SHARE = 0.15
"""Of a rank's memory, as TorchRec's planner keeps by default."""


class PlanDoesNotFitError(ValueError):
    """The tables do not fit on the ranks."""


def plan_on_ranks(
    model: nn.Module,
    tables: Sequence[TableSpec],
    sharders: list[ModuleSharder[nn.Module]],
    *,
    compute_device: str,
    world_size: int,
    local_world_size: int,
    hbm_bytes: int,
    ddr_bytes: int,
    batch_size: int,
    min_partition: int,
    network_bytes: int | None = None,
) -> ShardingPlan:
    """Plan where each shard of each table goes; every rank gets rank 0's plan.

    TorchRec's estimate leaves out the maps of managed tables (`TableSpec.num_bytes` has them, and
    so has the dry run).

    Args:
        model: holds the tables on the meta device, optimizers attached.
        tables: the tables' specs.
        sharders: how modules may be sharded.
        compute_device: `cpu` or `cuda`.
        world_size: number of ranks.
        local_world_size: ranks per host.
        hbm_bytes: device memory of a rank.
        ddr_bytes: host memory of a rank.
        batch_size: impressions per rank and step.
        min_partition: fewest columns of a column-wise shard.
        network_bytes: memory that a rank needs for the rest of the model; None for one that every
            rank holds, which TorchRec takes six times for gradients, moments and buckets.

    Raises:
        PlanDoesNotFitError: with the bytes needed and the bytes there are.
        ValueError: when a table asks for what the device does not have.
    """
    check_device(tables, compute_device)
    check_managed_rows(tables, world_size)
    topology = Topology(
        world_size=world_size,
        local_world_size=local_world_size,
        compute_device=compute_device,
        hbm_cap=hbm_bytes or None,
        ddr_cap=ddr_bytes,
    )
    if world_size == 1:
        # Nothing to split: splitting by rows would still bucketize every batch, and replicating
        # would make every weight a dense parameter. The planner's estimates see neither.
        tables = [
            table
            if table.managed is not None
            else replace(
                table, sharding_types=table.sharding_types or (ShardingType.TABLE_WISE.value,)
            )
            for table in tables
        ]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=planner_constraints(tables, min_partition=min_partition),
        storage_reservation=HeuristicalStorageReservation(
            _RESERVED_SHARE, dense_tensor_estimate=network_bytes
        ),
    )
    group = dist.group.WORLD
    if group is None:
        raise RuntimeError("plan_on_ranks needs a process group")
    try:
        return planner.collective_plan(model, sharders, group)
    except PlannerError as error:
        sizes = {table.name: table.num_bytes + table.num_state_bytes for table in tables}
        needed, largest = sum(sizes.values()), max(sizes, key=lambda name: sizes[name])
        there = world_size * (hbm_bytes if compute_device == "cuda" else ddr_bytes)
        raise PlanDoesNotFitError(
            f"no sharding plan for {len(tables)} tables on {world_size} ranks: weights and "
            f"optimizer state take {needed / 2**30:.1f} GiB (the largest, {largest!r}, "
            f"{sizes[largest] / 2**30:.1f} GiB), the ranks have {there / 2**30:.1f} GiB in all, of "
            "which the planner keeps a share for the network. Use fewer rows, a smaller dim, "
            "dtype='fp16', or more ranks."
        ) from error
