"""What ranks do in benchmarks of plans: shard tables by given plans and time their steps."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.plan_io import plan_from_json
from sharding.sharders import sharders
from sharding.tables import TableSpec
from trainer.distributed import start_ranks, stop_ranks
from trainer.optim import OptimConfig, attach_table_optimizers
from trainer.run_folder import write_json


class PooledTables(nn.Module):
    """Tables at the path where plans have them."""

    def __init__(self, tables: Sequence[TableSpec]) -> None:
        super().__init__()
        self.sparse = nn.Module()
        self.sparse.pooled = EmbeddingBagCollection(
            tables=[table.to_config() for table in tables], device=torch.device("meta")
        )

    def forward(self, ids: KeyedJaggedTensor) -> torch.Tensor:
        """Pooled vectors of all features, side by side."""
        return self.sparse.pooled(ids).values()


def shard(tables: Sequence[TableSpec], plan: dict[str, Any]) -> DistributedModelParallel:
    """The tables, sharded by a plan of `plan_to_json`."""
    ranks = start_ranks()
    model = PooledTables(tables)
    attach_table_optimizers([model.sparse.pooled], tables, OptimConfig())
    return DistributedModelParallel(
        model,
        device=ranks.device,
        plan=plan_from_json(
            plan,
            tables,
            num_ranks=ranks.world_size,
            ranks_per_node=ranks.local_world_size,
            device=ranks.device.type,
        ),
        sharders=sharders(),
    )


def random_ids(tables: Sequence[TableSpec], batch_size: int, seed: int) -> KeyedJaggedTensor:
    """Uniform ids, so many for each feature as its pooling factor says."""
    rng = np.random.default_rng(seed)
    values, lengths = [], []
    for table in tables:
        for factor in table.pooling_factors or (1.0,) * len(table.features):
            values.append(rng.integers(0, table.rows, batch_size * int(factor)))
            lengths.append(np.full(batch_size, int(factor), np.int32))
    return KeyedJaggedTensor(
        keys=[feature for table in tables for feature in table.features],
        values=torch.from_numpy(np.concatenate(values)),
        lengths=torch.from_numpy(np.concatenate(lengths)),
    )


def step(model: DistributedModelParallel, ids: KeyedJaggedTensor) -> None:
    """Forward, exchange, backward with the fused update."""
    model(ids).sum().backward()
    for weight in model.parameters():
        weight.grad = None


def time_plans(
    tables: tuple[TableSpec, ...],
    plans: list[dict[str, Any]],
    batch_size: int,
    rounds: int,
    path: Path,
) -> None:
    """Median milliseconds of a step under each plan; plans take turns in every round."""
    ranks = start_ranks()
    models = [shard(tables, plan) for plan in plans]
    batches = [random_ids(tables, batch_size, seed=7 * ranks.rank + i) for i in range(3)]
    times: list[list[float]] = [[] for _ in plans]
    for turn in range(rounds + 1):
        for place, model in enumerate(models):
            step(model, batches[0])
            ranks.barrier()
            start = time.perf_counter()
            for ids in batches:
                step(model, ids)
            ranks.barrier()
            if turn:
                times[place].append(1000 * (time.perf_counter() - start) / len(batches))
    if ranks.is_first:
        write_json(path, times)
    ranks.barrier()
    stop_ranks()


def read_times(path: Path) -> list[list[float]]:
    """What `time_plans` left: milliseconds by plan and round."""
    times: list[list[float]] = json.loads(path.read_text())
    return times
