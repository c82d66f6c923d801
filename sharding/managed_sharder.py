"""Shards managed tables, and begins anew the rows that they take back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.mc_embedding import (
    ManagedCollisionEmbeddingCollectionSharder,
    ShardedManagedCollisionEmbeddingCollection,
)
from torchrec.distributed.types import ParameterSharding, ShardingEnv
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection


class ShardedManagedTables(ShardedManagedCollisionEmbeddingCollection):
    """A managed EmbeddingCollection on many ranks.

    TorchRec resets rows that change hands by `fbgemm::reset_weight_momentum`, which has no CPU
    kernel and knows row-wise Adagrad alone. Here weights and optimizer state are written through
    the views that FBGEMM gives of them, on every device and for every optimizer.
    """

    def _evict(self, evictions_per_table: dict[str, Tensor | None]) -> None:
        """Draw new weights for the rows that got another id, and zero their optimizer state."""
        for table, rows in evictions_per_table.items():
            if rows is None or not rows.numel():
                continue
            tbe, index = self._table_to_tbe_and_index[table]
            config = self._embedding_module._table_name_to_config[table]
            weights = tbe.split_embedding_weights()[int(index)]
            with torch.no_grad():
                weights[rows] = config.init_fn(torch.empty_like(weights[rows]))
                for states in tbe.split_optimizer_states()[int(index) : int(index) + 1]:
                    for state in states:
                        state[rows] = 0


class ManagedSharder(ManagedCollisionEmbeddingCollectionSharder):
    """Shards managed tables by rows, with rows in device memory."""

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """`fused` alone: TorchRec offers caches too, in which rows can't be reset."""
        return [EmbeddingComputeKernel.FUSED.value]

    def shard(
        self,
        module: ManagedCollisionEmbeddingCollection,
        params: dict[str, ParameterSharding],
        env: ShardingEnv,
        device: torch.device | None = None,
        module_fqn: str | None = None,
    ) -> ShardedManagedTables:
        """The sharded collection."""
        return ShardedManagedTables(
            module,
            params,
            ec_sharder=self._e_sharder,
            mc_sharder=self._mc_sharder,
            env=env,
            device=device or torch.device("cpu"),
        )

    @property
    def sharded_module_type(self) -> type[nn.Module]:
        """What `shard` returns."""
        return ShardedManagedTables
