"""A planner for thousands of GPUs: TorchRec's estimates and rules, in seconds.

TorchRec 1.8 spends its time in deep copies of the search space, in estimates of every shard and in
hundreds of proposals that are each placed shard by shard in Python objects. Here each distinct
shard size is estimated once (:mod:`sharding.estimates`), proposals are rows of indices
(:mod:`sharding.search`) and ranks are arrays (:mod:`sharding.placement`). The result is TorchRec's
own `ShardingPlan`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.distributed._shard.metadata import ShardMetadata
from torch.distributed.remote_device import _remote_device
from torchrec.distributed.planner.types import Topology
from torchrec.distributed.sharding_plan import placement as rank_placement
from torchrec.distributed.types import (
    CacheParams,
    EmbeddingModuleShardingPlan,
    EnumerableShardingSpec,
    ParameterSharding,
    ShardingPlan,
    ShardingType,
)

from sharding.estimates import PERF_PARTS, Candidate, Estimator
from sharding.search import Search
from sharding.shards import Array
from sharding.tables import TableSpec, check_device, check_managed_rows, check_tables

POOLED_PATH = "sparse.pooled"
SEQUENCE_PATH = "sparse.items"
MANAGED_PATH = "sparse.managed"
"""Where the trainer's model keeps pooled tables (EBC), sequence tables (EC) and managed ones."""


def module_path(table: TableSpec) -> str:
    """Where the trainer's model keeps this table."""
    if table.managed is not None:
        return MANAGED_PATH
    return SEQUENCE_PATH if table.pooling == "none" else POOLED_PATH


class NoPlanError(ValueError):
    """No proposal fits into the memory of the ranks."""


@dataclass(frozen=True, eq=False)
class TablePlan:
    """One table's way and ranks.

    Attributes:
        table: its spec.
        way: sharding type, kernel, cut, estimates.
        ranks_S: rank of each shard (S,).
    """

    table: TableSpec
    way: Candidate
    ranks_S: Array


@dataclass(frozen=True, eq=False)
class FastPlan:
    """A plan with its estimates.

    Attributes:
        tables: in the order asked for.
        topology: that was planned for.
        capacity: bytes of HBM, DDR and SSD that tables may take on a rank (3,).
        num_placements: proposals that were placed.
    """

    tables: tuple[TablePlan, ...]
    topology: Topology
    capacity: Array
    num_placements: int

    def memory_by_rank(self) -> Array:
        """Bytes of HBM, DDR and SSD that tables take on each rank (R, 3), as estimated."""
        total = np.zeros((self.topology.world_size, 3), np.int64)
        for plan in self.tables:
            np.add.at(total, plan.ranks_S, plan.way.memory_by_shard)
        return total

    def parts_by_rank(self) -> Array:
        """Predicted milliseconds of each rank by `PERF_PARTS` (R, 6)."""
        total = np.zeros((self.topology.world_size, len(PERF_PARTS)))
        for plan in self.tables:
            np.add.at(total, plan.ranks_S, plan.way.parts_K6[plan.way.grid.kind_S])
        return total

    @property
    def rating(self) -> float:
        """TorchRec's rating: rated milliseconds of the slowest rank."""
        return float(self.parts_by_rank()[:, :-1].sum(axis=1).max())

    def to_sharding_plan(self) -> ShardingPlan:
        """TorchRec's record, as `DistributedModelParallel` takes it."""
        places = [
            _remote_device(
                rank_placement(self.topology.compute_device, rank, self.topology.local_world_size)
            )
            for rank in range(self.topology.world_size)
        ]
        modules: dict[str, EmbeddingModuleShardingPlan] = {}
        for plan in self.tables:
            module = modules.setdefault(module_path(plan.table), EmbeddingModuleShardingPlan())
            module[plan.table.name] = _parameter_sharding(plan, places)
        return ShardingPlan(dict(modules))


def _parameter_sharding(plan: TablePlan, places: list[_remote_device]) -> ParameterSharding:
    grid, ranks = plan.way.grid, plan.ranks_S.tolist()
    spec = None
    if plan.way.sharding_type != ShardingType.DATA_PARALLEL.value:
        spec = EnumerableShardingSpec(
            [
                ShardMetadata(shard_offsets=offset, shard_sizes=size, placement=places[rank])
                for offset, size, rank in zip(
                    grid.offsets_S2.tolist(), grid.sizes_S2.tolist(), ranks, strict=True
                )
            ]
        )
    cache = None
    if plan.way.kernel == "fused_uvm_caching" and plan.table.cache_load_factor is not None:
        cache = CacheParams(load_factor=plan.table.cache_load_factor)
    return ParameterSharding(
        sharding_type=plan.way.sharding_type,
        compute_kernel=plan.way.kernel,
        ranks=ranks,
        sharding_spec=spec,
        cache_params=cache,
    )


def plan_tables(
    tables: Sequence[TableSpec],
    topology: Topology,
    *,
    batch_size: int,
    min_partition: int = 32,
) -> FastPlan:
    """Plan tables on a cluster; needs no GPU, no process group and no model.

    Args:
        tables: what is planned.
        topology: ranks, the memory that tables may take, bandwidths.
        batch_size: impressions per rank and step.
        min_partition: fewest columns of a column-wise shard.

    Raises:
        NoPlanError: when nothing fits.
        ValueError: when a table asks for what the device does not have.
    """
    check_tables(tables)
    check_device(tables, topology.compute_device)
    check_managed_rows(tables, topology.world_size)
    estimator = Estimator(
        tables, topology=topology, batch_size=batch_size, min_partition=min_partition
    )
    candidates = [estimator.candidates(table) for table in tables]
    without = [t.name for t, ways in zip(tables, candidates, strict=True) if not ways]
    if without:
        raise NoPlanError(
            f"no shard of {', '.join(without[:5])}{' ...' if len(without) > 5 else ''} fits an "
            "empty rank in any way that is allowed"
        )
    found = Search(
        candidates,
        capacity=estimator.capacity,
        num_ranks=topology.world_size,
        ranks_per_node=topology.intra_group_size,
    ).run()
    if found is None:
        raise NoPlanError("the tables together do not fit in any way that was tried")
    return FastPlan(
        tables=tuple(
            TablePlan(table, way, ranks)
            for table, way, ranks in zip(tables, found.choice, found.placement.ranks, strict=True)
        ),
        topology=topology,
        capacity=estimator.capacity,
        num_placements=found.num_placements,
    )
