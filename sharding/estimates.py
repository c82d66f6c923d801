"""What each way of sharding a table costs, by TorchRec's own estimators.

TorchRec estimates every shard of every way: 264,256 shards for 64 tables on 1,024 GPUs. Shards of
one way come in at most three sizes and equal tables cost the same, so each distinct size is
estimated once, by the same code, and the result stands for all of its shards. Ways that do not fit
into an empty rank are dropped before their time is estimated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.planner.constants import DEFAULT_PERF_ESTIMATOR
from torchrec.distributed.planner.enumerators import (
    EmbeddingPerfEstimatorFactory,
    get_partition_by_type,
)
from torchrec.distributed.planner.shard_estimators import EmbeddingStorageEstimator
from torchrec.distributed.planner.types import (
    ParameterConstraints,
    Shard,
    ShardingOption,
    Topology,
)
from torchrec.distributed.planner.utils import build_sharder_data_map, sharder_name
from torchrec.distributed.types import ModuleSharder, ShardingType
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection

from sharding.sharders import sharders
from sharding.shards import Array, ShardGrid, cut
from sharding.tables import OPTIMIZER_CLASSES, TableSpec, planner_constraints

PERF_PARTS = (
    "fwd_compute",
    "fwd_comms",
    "bwd_compute",
    "bwd_comms",
    "prefetch_compute",
    "input_dist_comms",
)
"""Parts of a predicted step; TorchRec's rating sums all but the last."""
NUM_RATED_PARTS = 5
_TORCH_DTYPES = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
}
_ON_DEMAND_TYPES = (ShardingType.GRID_SHARD.value,)
_ON_DEMAND_KERNELS = (EmbeddingComputeKernel.KEY_VALUE.value,)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to shard a table. K: distinct shard sizes, S: shards.

    Attributes:
        sharding_type: TorchRec's name.
        kernel: TorchRec's name.
        partition_by: how shards are placed: `uniform`, `device`, `host` or `multi_host`.
        grid: the cut.
        memory_K3: bytes of HBM, DDR and SSD of each distinct shard (K, 3) int64.
        parts_K6: milliseconds of each distinct shard by `PERF_PARTS` (K, 6).
        memory: bytes of HBM, DDR and SSD over all shards (3,) int64.
        load: rated milliseconds over all shards.
        longest: rated milliseconds of the slowest shard.
    """

    sharding_type: str
    kernel: str
    partition_by: str
    grid: ShardGrid
    memory_K3: Array
    parts_K6: Array
    memory: Array
    load: float
    longest: float

    @property
    def perf_by_kind(self) -> Array:
        """Rated milliseconds of each distinct shard (K,)."""
        return self.parts_K6[:, :NUM_RATED_PARTS].sum(axis=1)

    @property
    def memory_by_shard(self) -> Array:
        """Bytes of HBM, DDR and SSD of each shard (S, 3)."""
        return self.memory_K3[self.grid.kind_S]


class Estimator:
    """Estimates the ways of sharding tables on one topology.

    Args:
        tables: all tables of the model.
        topology: memory that tables may take, bandwidths.
        batch_size: impressions per rank and step.
        min_partition: fewest columns of a column-wise shard.
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        *,
        topology: Topology,
        batch_size: int,
        min_partition: int,
    ) -> None:
        self.topology = topology
        self.batch_size = batch_size
        self.constraints = planner_constraints(tables, min_partition=min_partition)
        storage = topology.devices[0].storage
        self.capacity = np.array([storage.hbm, storage.ddr, storage.ssd], np.int64)
        self.num_estimated = 0
        table_sharders = sharders()
        self._sharders: dict[bool, ModuleSharder[nn.Module]] = {
            True: table_sharders[0],
            False: table_sharders[1],
        }
        self._modules: dict[bool, nn.Module] = {
            True: EmbeddingBagCollection(tables=[], device=torch.device("meta")),
            False: EmbeddingCollection(tables=[], device=torch.device("meta")),
        }
        self._sharder_data = build_sharder_data_map(
            {sharder_name(s.module_type): s for s in table_sharders}
        )
        self._perf = EmbeddingPerfEstimatorFactory.create(
            DEFAULT_PERF_ESTIMATOR, topology=topology, constraints=self.constraints
        )
        self._storage = EmbeddingStorageEstimator(topology=topology, constraints=self.constraints)
        self._known: dict[TableSpec, tuple[Candidate, ...]] = {}

    def candidates(self, table: TableSpec) -> tuple[Candidate, ...]:
        """The ways in which `table` may be sharded and each of its shards fits an empty rank."""
        key = replace(table, name="", role="side", features=("",) * len(table.features))
        if key not in self._known:
            self._known[key] = tuple(self._estimate(table))
        return self._known[key]

    def _estimate(self, table: TableSpec) -> list[Candidate]:
        constraints = self.constraints[table.name]
        pooled = table.pooling != "none"
        sharder = self._sharders[pooled]
        device = self.topology.compute_device
        tensor = torch.empty(table.rows, table.dim, dtype=_TORCH_DTYPES[table.dtype], device="meta")
        tensor._optimizer_classes = [OPTIMIZER_CLASSES[table.optimizer]]  # type: ignore[attr-defined]
        found = []
        for sharding_type in sharder.sharding_types(device):
            if not _allowed(sharding_type, constraints.sharding_types, _ON_DEMAND_TYPES):
                continue
            grid = cut(
                table.rows,
                table.dim,
                sharding_type,
                num_ranks=self.topology.world_size,
                ranks_per_node=self.topology.intra_group_size,
                min_partition=constraints.min_partition,
            )
            for kernel in sharder.compute_kernels(sharding_type, device):
                if not _allowed(kernel, constraints.compute_kernels, _ON_DEMAND_KERNELS):
                    continue
                candidate = self._candidate(table, tensor, sharding_type, kernel, grid, constraints)
                if candidate is not None:
                    found.append(candidate)
        return found

    def _candidate(
        self,
        table: TableSpec,
        tensor: torch.Tensor,
        sharding_type: str,
        kernel: str,
        grid: ShardGrid,
        constraints: ParameterConstraints,
    ) -> Candidate | None:
        pooled = table.pooling != "none"
        option = ShardingOption(
            name=table.name,
            tensor=tensor,
            module=("", self._modules[pooled]),
            input_lengths=constraints.pooling_factors,
            batch_size=self.batch_size,
            sharding_type=sharding_type,
            partition_by=get_partition_by_type(sharding_type),
            compute_kernel=kernel,
            shards=[Shard(size=list(size), offset=[0, 0]) for size in grid.distinct_K2.tolist()],
            cache_params=constraints.cache_params,
            is_pooled=pooled,
        )
        self._storage.estimate([option], self._sharder_data)
        memory = np.array(
            [[s.storage.hbm, s.storage.ddr, s.storage.ssd] for s in option.shards if s.storage],
            np.int64,
        )
        memory += state_correction(table, tensor, grid, sharding_type, kernel, self.topology)
        self.num_estimated += len(memory)
        if (memory.max(axis=0) > self.capacity).any():
            return None
        self._perf.estimate([option], self._sharder_data)
        parts = np.array(
            [[getattr(shard.perf, part) for part in PERF_PARTS] for shard in option.shards]
        )
        counts = np.bincount(grid.kind_S, minlength=len(memory))
        perf = parts[:, :NUM_RATED_PARTS].sum(axis=1)
        return Candidate(
            sharding_type=sharding_type,
            kernel=kernel,
            partition_by=option.partition_by,
            grid=grid,
            memory_K3=memory,
            parts_K6=parts,
            memory=counts @ memory,
            load=float(counts @ perf),
            longest=float(perf.max()),
        )


def state_correction(
    table: TableSpec,
    tensor: torch.Tensor,
    grid: ShardGrid,
    sharding_type: str,
    kernel: str,
    topology: Topology,
) -> Array:
    """Bytes that TorchRec's storage estimate leaves out, of each distinct shard (K, 3) int64.

    It counts optimizer state in the weights' dtype, shares row-wise state among column shards
    (FBGEMM keeps it whole in each), forgets the scale of int8 rows, and counts no gradient of
    data-parallel tables. A correction is never negative: what it counts too much stays a reserve.
    """
    rows, columns = grid.distinct_K2[:, 0], grid.distinct_K2[:, 1]
    weights = rows * columns * tensor.element_size()
    counted = weights + np.ceil(weights * _counted_state(table)).astype(np.int64)
    needed = np.array(
        [table.shard_bytes(r, c) + table.shard_state_bytes(r, c) for r, c in grid.distinct_K2]
    )
    extra = np.maximum(needed - counted, 0)
    if sharding_type == ShardingType.DATA_PARALLEL.value:
        extra += weights
    tiers = np.zeros((len(extra), 3), np.int64)
    tiers[:, weights_tier(kernel, topology.compute_device)] = extra
    return tiers


def _counted_state(table: TableSpec) -> float:
    """State that TorchRec counts, as a share of the weights' bytes."""
    shares = {"sgd": 0.0, "rowwise_adagrad": 1 / table.dim, "adam": 2.0}
    return shares.get(table.optimizer, 1.0)


def weights_tier(kernel: str, device: str) -> int:
    """Where weights live: 0 HBM, 1 DDR, 2 SSD."""
    if kernel == EmbeddingComputeKernel.KEY_VALUE.value:
        return 2
    return 1 if device == "cpu" or "uvm" in kernel else 0


def _allowed(name: str, named: Sequence[str] | None, on_demand: tuple[str, ...]) -> bool:
    return name in named if named else name not in on_demand
