"""What `farewell doctor` runs in a process of its own: name the device, train a tiny table."""

from __future__ import annotations

import sys

import torch
from torch import nn
from torchrec.distributed.model_parallel import DistributedModelParallel
from torchrec.modules.embedding_modules import EmbeddingBagCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from sharding.planner import plan_on_ranks
from sharding.sharders import sharders
from sharding.tables import TableSpec
from trainer.distributed import memory_per_rank, runs_bf16_natively, start_ranks
from trainer.optim import OptimConfig, attach_table_optimizers

LEARNING_RATE = 0.5


def describe_device() -> str:
    """Device, collective backend and precision in one line."""
    ranks = start_ranks()
    backend = "nccl" if ranks.device.type == "cuda" else "gloo"
    precision = "bf16 natively" if runs_bf16_natively(ranks.device) else "fp32 (bf16 is emulated)"
    return f"{ranks.device}, {backend}, {precision}, {torch.get_num_threads()} threads"


def train_row_wise_table() -> str:
    """Shard a table row-wise, train one step, check the weights that came out.

    TorchRec does not offer row-wise sharding on the CPU by itself; `trainer.distributed` does.

    Raises:
        RuntimeError: when the update is not what stochastic gradient descent gives.
    """
    ranks = start_ranks()
    table = TableSpec(
        name="canary",
        rows=8,
        dim=4,
        features=("canary",),
        role="side",
        optimizer="sgd",
        sharding_types=("row_wise",),
    )
    bags = EmbeddingBagCollection(tables=[table.to_config()], device=torch.device("meta"))
    model = nn.ModuleDict({"bags": bags})
    attach_table_optimizers([bags], [table], OptimConfig(sparse_lr=LEARNING_RATE))
    hbm_bytes, ddr_bytes = memory_per_rank(ranks)
    plan = plan_on_ranks(
        model,
        [table],
        sharders(),
        compute_device=ranks.device.type,
        world_size=ranks.world_size,
        local_world_size=ranks.local_world_size,
        hbm_bytes=hbm_bytes,
        ddr_bytes=ddr_bytes,
        batch_size=2,
        min_partition=4,
    )
    sharded = DistributedModelParallel(model, device=ranks.device, plan=plan, sharders=sharders())
    weight = dict(sharded.named_parameters())["bags.embedding_bags.canary.weight"]
    before = weight.detach().clone()
    ids = KeyedJaggedTensor(
        keys=["canary"], values=torch.tensor([1, 5]), lengths=torch.tensor([1, 1])
    ).to(ranks.device)
    sharded.module["bags"](ids).values().sum().backward()
    change = before - weight.detach()
    expected = torch.zeros_like(change)
    expected[[1, 5]] = LEARNING_RATE
    if not torch.allclose(change, expected):
        raise RuntimeError(f"weights moved by {change.sum():.3f}, expected {expected.sum():.3f}")
    return "yes"


if __name__ == "__main__":
    print(describe_device() if sys.argv[1] == "device" else train_row_wise_table())
