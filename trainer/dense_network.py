"""The network on its ranks: activations recomputed, layers compiled, weights sharded and drawn.

The order matters: recomputation wraps a block's forward pass, sharding gathers a block's weights
around both, and weights are drawn when each rank knows its part.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard

from trainer.distributed import Ranks
from trainer.initialize import initialize
from trainer.models.ranking_network import RankingNetwork


def prepare_network(
    network: RankingNetwork,
    ranks: Ranks,
    *,
    sharded: bool,
    seed: int,
    compiled: bool = False,
    activation_checkpointing: bool = False,
) -> None:
    """Make a network ready to train, in place.

    Args:
        network: on the meta device, or with weights of its own, equal on every rank.
        ranks: this process among all.
        sharded: FSDP2, block by block; otherwise every rank holds the whole network.
        seed: of the weights, where they are on the meta device.
        compiled: compile the tower, see :func:`compile_training`.
        activation_checkpointing: keep each block's input alone and compute the rest of its
            activations again in the backward pass, with the same dropout masks.
    """
    if activation_checkpointing:
        for block in network.fsdp_units():
            checkpoint(block)
    if compiled:
        # Gathering and recomputation happen between blocks, where a graph could not go on.
        in_blocks = sharded or activation_checkpointing
        modules = network.tower.blocks if in_blocks else [network.get_submodule("tower")]
        for module in modules:
            compile_training(module)
    if sharded:
        shard_network(network, ranks)
    initialize(network, seed=seed, device=ranks.device)


def compile_training(module: nn.Module) -> None:
    """Compile a module's forward and backward pass for training; evaluation stays eager.

    Batches of training have one size, those of evaluation several, each of which would be compiled
    anew. Dropout draws from torch's generator as eager code does, so masks are the same.
    """
    eager = module.forward
    compiled = torch.compile(eager, options={"fallback_random": True})

    def forward(*inputs: Any) -> Any:
        return compiled(*inputs) if module.training else eager(*inputs)

    module.forward = forward


def shard_network(network: RankingNetwork, ranks: Ranks) -> None:
    """FSDP2: each large block is a unit, the rest of the network one more."""
    mesh = init_device_mesh(ranks.device.type, (ranks.world_size,))

    def placement(weight: nn.Parameter) -> Shard | None:
        return even_shard(weight, ranks.world_size)

    for block in network.fsdp_units():
        fully_shard(block, mesh=mesh, shard_placement_fn=placement)
    fully_shard(network, mesh=mesh, shard_placement_fn=placement)


def sharded_bytes(network: RankingNetwork, world_size: int) -> int:
    """Bytes that a rank needs for a network sharded by FSDP2, without activations.

    Its share of weights, gradients and AdamW's two moments, and two units gathered with their
    gradients: the one that computes and the one that is fetched meanwhile.
    """
    whole = sum(weight.nbytes for weight in network.parameters())
    units = [sum(weight.nbytes for weight in unit.parameters()) for unit in network.fsdp_units()]
    rest = whole - sum(units)
    return 4 * whole // world_size + 2 * 2 * max([rest, *units])


def even_shard(weight: torch.Tensor, world_size: int) -> Shard | None:
    """The first dim that all ranks can share evenly, so that memory falls as 1 / ranks.

    None (the first dim, unevenly) where there is none: a bias of 10 values on 4 ranks.
    """
    for dim, size in enumerate(weight.shape):
        if size % world_size == 0:
            return Shard(dim)
    return None
