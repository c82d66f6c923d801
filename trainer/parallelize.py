"""From a single-process model to one on many ranks, in one fixed order.

1. each table's optimizer is fused into its backward pass (tables are on the meta device);
2. the planner says where each shard of each table goes;
3. a large network is sharded with FSDP2, block by block; the weights of each rank's part are drawn;
4. DistributedModelParallel makes the tables' shards, and replicates a small network with DDP.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torchrec.distributed.model_parallel import (
    DefaultDataParallelWrapper,
    DistributedModelParallel,
)
from torchrec.distributed.types import ShardingPlan, ShardingType

from sharding.planner import plan_on_ranks
from sharding.sharders import sharders
from sharding.tables import TableSpec
from trainer.dense_network import prepare_network, sharded_bytes
from trainer.distributed import Ranks, memory_per_rank
from trainer.models.ranking_model import RankingModel, RankingNetwork
from trainer.optim import DenseOptimizer, OptimConfig, attach_table_optimizers

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ShardingConfig:
    """How the model is spread over ranks.

    Args:
        fsdp_min_parameters: networks with at least this many parameters are sharded with FSDP2;
            smaller ones are replicated with DDP.
        min_partition: fewest columns of a column-wise shard of a table.
    """

    fsdp_min_parameters: int = 50_000_000
    min_partition: int = 32


@dataclass(frozen=True)
class ParallelModel:
    """A model spread over ranks, with its optimizer and the plan that it follows.

    Attributes:
        model: takes a batch and returns loss and predictions.
        optimizer: steps everything that is not fused.
        plan: of the tables.
        uses_fsdp: whether the network is sharded.
    """

    model: DistributedModelParallel
    optimizer: DenseOptimizer
    plan: ShardingPlan
    uses_fsdp: bool

    @property
    def network(self) -> RankingNetwork:
        """The dense part."""
        return unwrapped(self.model).network

    def sparse_weights(self) -> dict[str, nn.Parameter]:
        """This rank's part of each table, by path in the model."""
        return dict(unwrapped(self.model).sparse.named_parameters())


def unwrapped(model: DistributedModelParallel) -> RankingModel:
    """The ranking model inside DMP and DDP."""
    inner = model.module
    return inner if isinstance(inner, RankingModel) else inner.module


def parallelize(
    model: RankingModel,
    *,
    tables: Sequence[TableSpec],
    ranks: Ranks,
    optim: OptimConfig,
    sharding: ShardingConfig,
    batch_size: int,
    num_steps: int,
    plan: ShardingPlan | None = None,
    seed: int = 0,
    compiled: bool = False,
    activation_checkpointing: bool = False,
    gradient_accumulation: int = 1,
) -> ParallelModel:
    """Spread `model` over ranks; world size 1 follows the same path.

    Args:
        model: tables on the meta device; the network there too, or with weights that are kept.
        tables: the tables' specs.
        ranks: this process among all.
        optim: optimizers.
        sharding: how to spread.
        batch_size: impressions per rank and step, for the planner's estimates.
        num_steps: length of the schedule.
        plan: use this plan instead of asking the planner.
        seed: of the network's weights, where it is on the meta device.
        compiled: compile the tower (under FSDP its blocks).
        activation_checkpointing: compute the activations of the tower's blocks twice, not to keep
            them.
        gradient_accumulation: parts in which a rank's batch goes through the network.

    Raises:
        PlanDoesNotFitError: when the tables do not fit on the ranks.
    """
    attach_table_optimizers(model.sparse.collections, tables, optim)
    table_sharders = sharders(optim.fused_params())
    hbm_bytes, ddr_bytes = memory_per_rank(ranks)
    num_parameters = sum(parameter.numel() for parameter in model.network.parameters())
    uses_fsdp = num_parameters >= sharding.fsdp_min_parameters
    plan = plan or plan_on_ranks(
        model,
        tables,
        table_sharders,
        compute_device=ranks.device.type,
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        hbm_bytes=hbm_bytes,
        ddr_bytes=ddr_bytes,
        batch_size=batch_size,
        min_partition=sharding.min_partition,
        network_bytes=sharded_bytes(model.network, ranks.world_size) if uses_fsdp else None,
    )
    prepare_network(
        model.network,
        ranks,
        sharded=uses_fsdp,
        seed=seed,
        compiled=compiled,
        activation_checkpointing=activation_checkpointing,
    )
    if gradient_accumulation > 1:
        model.train_in_parts(gradient_accumulation)
    parallel = DistributedModelParallel(
        model,
        device=ranks.device,
        plan=plan,
        sharders=table_sharders,
        init_data_parallel=not uses_fsdp,
        # DDP takes a graph for static when each gradient arrives once a step; parts bring several.
        data_parallel_wrapper=DefaultDataParallelWrapper(static_graph=gradient_accumulation == 1),
    )
    replicated = replicated_tables(model, plan)
    if optim.max_sparse_gradient is not None and replicated:
        logger.warning(
            "optim.max_sparse_gradient is clipped inside the fused kernel; the data-parallel "
            "tables %s have none and are not clipped: give them sharding_types without "
            "data_parallel where that matters",
            ", ".join(sorted(replicated)),
        )
    optimizer = DenseOptimizer(
        model.network,
        replicated,
        parallel.fused_optimizer,
        tables=tables,
        config=optim,
        num_steps=num_steps,
        waiting=model.network.waiting_parameters,
    )
    return ParallelModel(parallel, optimizer, plan, uses_fsdp)


def replicated_tables(model: RankingModel, plan: ShardingPlan) -> dict[str, nn.Parameter]:
    """Weights of the data-parallel tables, by table name."""
    names = {
        table
        for module in plan.plan.values()
        for table, parameter in module.items()
        if parameter.sharding_type == ShardingType.DATA_PARALLEL.value
    }
    return {
        path.split(".")[-2]: weight
        for path, weight in model.sparse.named_parameters()
        if path.split(".")[-2] in names
    }
