"""TorchRec's own planner, for comparison."""

from __future__ import annotations

import torch
from torch import nn
from torchrec.distributed.planner import EmbeddingShardingPlanner
from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.optim.apply_optimizer_in_backward import apply_optimizer_in_backward

from sharding.sharders import sharders
from sharding.tables import OPTIMIZER_CLASSES, planner_constraints


def meta_model(tables):
    """The tables on the meta device, at the paths of the trainer's model, optimizers attached."""
    root = nn.Module()
    root.sparse = nn.Module()
    for path, kind, part in (
        ("pooled", EmbeddingBagCollection, [t for t in tables if t.pooling != "none"]),
        ("items", EmbeddingCollection, [t for t in tables if t.pooling == "none"]),
    ):
        if part:
            configs = [table.to_config() for table in part]
            root.sparse.add_module(path, kind(tables=configs, device=torch.device("meta")))
    by_name = {table.name: table for table in tables}
    for path, weight in root.named_parameters():
        optimizer = OPTIMIZER_CLASSES[by_name[path.split(".")[-2]].optimizer]
        apply_optimizer_in_backward(optimizer, [weight], {"lr": 0.1})
    return root


def stock_options(tables, topology, *, batch_size, min_partition=32):
    """Every way of every table with every shard estimated, as TorchRec does it."""
    enumerator = EmbeddingEnumerator(
        topology=topology,
        batch_size=batch_size,
        constraints=planner_constraints(tables, min_partition=min_partition),
    )
    return enumerator.enumerate(meta_model(tables), sharders())


def stock_rating(tables, topology, *, batch_size, min_partition=32):
    """Milliseconds of the slowest rank of TorchRec's plan; raises PlannerError without one."""
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=batch_size,
        constraints=planner_constraints(tables, min_partition=min_partition),
        storage_reservation=FixedPercentageStorageReservation(0.0),
    )
    planner.plan(meta_model(tables), sharders())
    perf = [0.0] * topology.world_size
    for option in planner._best_plan:
        for shard in option.shards:
            perf[shard.rank] += shard.perf.total
    return max(perf)
