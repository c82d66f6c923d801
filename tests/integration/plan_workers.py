"""What ranks do in the tests of plans; forked processes import it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.cost import memory_by_part
from sharding.dry_run import DryRunRequest, plan_target
from sharding.hardware import Cluster, Machine, cpu
from sharding.plan_io import PlanMismatchError
from sharding.sharders import sharders
from sharding.tables import OPTIMIZER_CLASSES, TableSpec
from tests.unit.sharding.plan_reference import meta_model
from trainer.distributed import start_ranks, stop_ranks
from trainer.experiment import Experiment
from trainer.loop import train

TYPES = (
    "data_parallel",
    "table_wise",
    "column_wise",
    "row_wise",
    "table_row_wise",
    "table_column_wise",
    "grid_shard",
)


def random_tables(seed: int, several_hosts: bool) -> tuple[TableSpec, ...]:
    """1 to 6 small tables in mixed sizes, dtypes, optimizers and ways; some left to the planner."""
    rng = np.random.default_rng(seed)
    tables = []
    for index in range(rng.integers(1, 7)):
        sequence = rng.random() < 0.3
        if sequence:
            allowed = ("table_wise", "column_wise", "row_wise")
        else:
            allowed = TYPES if several_hosts else TYPES[:4]
        fixed = rng.random() < 0.6
        tables.append(
            TableSpec(
                name=f"t{index}",
                rows=int(rng.integers(300, 5_000)),
                dim=16 if sequence else int(rng.choice([8, 16, 48, 64])),
                features=(f"f{index}",),
                role="side",
                pooling="none" if sequence else "sum",
                dtype="fp32" if sequence else str(rng.choice(["fp32", "fp16"])),
                optimizer=str(rng.choice(["rowwise_adagrad", "adagrad", "sgd"])),
                sharding_types=(str(rng.choice(allowed)),) if fixed else None,
            )
        )
    return tuple(tables)


def request(tables: tuple[TableSpec, ...], machine: Machine, nodes: int) -> DryRunRequest:
    """Eight impressions a rank, narrow column shards."""
    return DryRunRequest(
        name="test",
        tables=tables,
        clusters=(Cluster(machine=machine, nodes=nodes),),
        batch_size=8,
        min_partition=8,
    )


def execute_plans(machine: Machine, nodes: int, seeds: list[int], folder: Path) -> None:
    """Plan, shard, train a step, and leave predicted and allocated bytes of every set."""
    ranks = start_ranks()
    results = []
    for seed in seeds:
        tables = random_tables(seed, several_hosts=nodes > 1)
        asked = request(tables, machine, nodes)
        target = plan_target(asked, asked.clusters[0])
        assert target.plan is not None, target.reason
        predicted = memory_by_part(asked, target)[ranks.rank, 1, :2].sum()
        model = DistributedModelParallel(
            meta_model(tables),
            device=ranks.device,
            plan=target.plan.to_sharding_plan(),
            sharders=sharders(),
        )
        train_step(model, tables)
        ways = {entry.table.name: entry.way.sharding_type for entry in target.plan.tables}
        results.append((seed, int(predicted), allocated_bytes(model, tables), ways))
    torch.save(results, folder / f"rank{ranks.rank}.pt")
    stop_ranks()


def train_step(model: DistributedModelParallel, tables: tuple[TableSpec, ...]) -> None:
    """Look up two ids of each feature for eight impressions, and go backward."""
    loss = torch.zeros(())
    for name, pooled in (("pooled", True), ("items", False)):
        part = [table for table in tables if (table.pooling != "none") == pooled]
        if not part:
            continue
        ids = KeyedJaggedTensor(
            keys=[feature for table in part for feature in table.features],
            values=torch.cat([torch.randint(table.rows, (16,)) for table in part]),
            lengths=torch.full((8 * len(part),), 2),
        )
        out = getattr(model.module.sparse, name)(ids)
        vectors = [out.values()] if pooled else [value.values() for value in out.values()]
        loss = loss + sum(vector.float().sum() for vector in vectors)
    loss.backward()


def allocated_bytes(model: DistributedModelParallel, tables: tuple[TableSpec, ...]) -> int:
    """Bytes of the tensors that hold weights and optimizer state on this rank."""
    by_name = {table.name: table for table in tables}
    held: dict[int, int] = {}

    def add(tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = max(held.get(storage.data_ptr(), 0), storage.nbytes())

    # TorchRec keeps its kernels in a plain list, out of sight of `modules()`.
    lookups = [one for module in model.modules() for one in getattr(module, "_lookups", [])]
    for module in (module for lookup in lookups for module in lookup.modules()):
        if isinstance(module, SplitTableBatchedEmbeddingBagsCodegen):
            for weight in module.split_embedding_weights():
                add(weight)
            for states in module.split_optimizer_states():
                for state in states:
                    add(state)
    for path, weight in model.named_parameters():
        if hasattr(weight, "_in_backward_optimizers") or weight.data_ptr() in held:
            continue
        add(weight)
        optimizer = OPTIMIZER_CLASSES[by_name[path.split(".")[-2]].optimizer]([weight], lr=0.1)
        optimizer.step()
        for values in optimizer.state.values():
            for value in values.values():
                if torch.is_tensor(value) and value.numel() > 1:
                    held[id(value)] = value.nbytes
    return sum(held.values())


def small_host(ranks_per_node: int) -> Machine:
    """A CPU host with so many ranks."""
    machine = cpu()
    return Machine(**{**machine.__dict__, "name": "test", "ranks_per_node": ranks_per_node})


def train_with_plan(experiment: Experiment, folder: Path, plan: Path) -> None:
    """Train by a given plan, then resume without naming it, then train other tables by it."""
    train(experiment, folder / "run", plan=plan)
    train(experiment, folder / "run", resume=True)
    other = replace(
        experiment,
        tables=tuple(
            replace(table, optimizer="sgd") if table.name == "user_id" else table
            for table in experiment.tables
        ),
    )
    try:
        train(other, folder / "other", plan=plan)
    except PlanMismatchError as error:
        if start_ranks().is_first:
            (folder / "refused.txt").write_text(str(error))
    stop_ranks()
