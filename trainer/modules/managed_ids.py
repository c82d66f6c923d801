"""Ids of any size to the rows of a table of fixed size, the rows changing hands while training.

TorchRec's managed-collision modules do the work (Liu et al. 2022, "Monolith", describes the idea:
a collisionless table whose rows expire). What is added here lets a run stop and go on bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingCollection
from torchrec.modules.mc_embedding_modules import ManagedCollisionEmbeddingCollection
from torchrec.modules.mc_modules import (
    DistanceLFU_EvictionPolicy,
    LFU_EvictionPolicy,
    LRU_EvictionPolicy,
    ManagedCollisionCollection,
    MCHEvictionPolicy,
    MCHManagedCollisionModule,
)
from torchrec.sparse.jagged_tensor import JaggedTensor

from sharding.managed_ids import ManagedIds
from sharding.tables import TableSpec

HASH_SIZE = 2**62
"""Ids are spread over `[0, HASH_SIZE)`, which is split evenly over ranks. Among 10^8 ids the odds
that any two meet are one in a thousand."""


def spread(ids: Tensor, hash_size: int) -> Tensor:
    """Mix ids as `trainer.data.hashing.hash_buckets` does, into `[0, hash_size)`.

    Args:
        ids: int64 of any sign and shape.
        hash_size: a power of two.
    """
    mixed = ids + _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    mixed = mixed ^ _shifted(mixed, 31)
    return mixed & (hash_size - 1)


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def _shifted(values: Tensor, bits: int) -> Tensor:
    """Shift right, zeros coming in (torch's shift repeats the sign)."""
    return (values >> bits) & (2 ** (64 - bits) - 1)


class RowManager(MCHManagedCollisionModule):
    """One managed table's map from ids to rows.

    TorchRec keeps the ids since the last round in a buffer that no checkpoint holds and whose size
    is that of the first batch. Here every id counts, rounds come at steps that the interval
    divides, and `pending` can be saved and put back.

    Args:
        managed: policy and interval.
        **arguments: of TorchRec's module.
    """

    def __init__(self, *, managed: ManagedIds, **arguments: Any) -> None:
        super().__init__(
            eviction_policy=eviction_policy(managed),
            eviction_interval=managed.eviction_interval,
            input_hash_size=HASH_SIZE,
            input_hash_func=spread,
            **arguments,
        )
        self.managed = managed
        self._pending: list[tuple[int, Tensor]] = []

    def profile(self, features: dict[str, JaggedTensor]) -> dict[str, JaggedTensor]:
        """Note the ids of a training step; at the end of an interval, give rows to ids."""
        if not self.training:
            return features
        self._current_iter_tensor += 1
        self._current_iter = int(self._current_iter_tensor)
        for feature in features.values():
            self._pending.append((self._current_iter, feature.values().clone()))
        if self._current_iter % self._eviction_interval == 0:
            self._history_accumulator, steps = self._joined()
            self._current_history_buffer_offset = len(steps)
            self._history_metadata = {
                info.metadata_name: steps
                for info in self._eviction_policy.metadata_info
                if info.is_history_metadata
            }
            self._pending.clear()
            if len(steps):
                self._coalesce_history()
        return features

    @property
    def pending(self) -> Tensor:
        """Ids (hashed) since the last round and the step of each, int64 (2, n)."""
        return torch.stack(self._joined())

    @pending.setter
    def pending(self, ids_and_steps: Tensor) -> None:
        ids, steps = ids_and_steps.to(self.device)
        self._pending = [(int(step), ids[steps == step]) for step in steps.unique_consecutive()]

    def _joined(self) -> tuple[Tensor, Tensor]:
        """Ids since the last round, and the step of each."""
        if not self._pending:
            nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
            return nothing, nothing
        return (
            torch.cat([ids for _, ids in self._pending]),
            torch.cat([torch.full_like(ids, step) for step, ids in self._pending]),
        )

    def rebuild_with_output_id_range(
        self,
        output_id_range: tuple[int, int],
        output_segments: list[int],
        device: torch.device | None = None,
    ) -> RowManager:
        """The map of one rank's rows."""
        return RowManager(
            managed=self.managed,
            name=self._name,
            zch_size=output_id_range[1] - output_id_range[0],
            device=device or self.device,
            output_global_offset=output_id_range[0],
            output_segments=output_segments,
            buckets=len(output_segments) - 1,
        )


def eviction_policy(managed: ManagedIds) -> MCHEvictionPolicy:
    """TorchRec's policy."""
    if managed.policy == "lfu":
        return LFU_EvictionPolicy()
    if managed.policy == "lru":
        return LRU_EvictionPolicy()
    return DistanceLFU_EvictionPolicy(decay_exponent=managed.decay)


def managed_collection(
    tables: Sequence[TableSpec], device: torch.device
) -> ManagedCollisionEmbeddingCollection:
    """An EmbeddingCollection whose tables take ids of any size.

    Args:
        tables: managed ones.
        device: `meta` for models that are sharded afterwards.
    """
    configs = []
    managers: dict[str, RowManager] = {}
    # TorchRec wants a multiple of the ranks; sharding puts the number of ranks in its place.
    buckets = dist.get_world_size() if dist.is_initialized() else 1
    for table in tables:
        config = table.to_config()
        assert isinstance(config, EmbeddingConfig) and table.managed is not None
        configs.append(config)
        managers[table.name] = RowManager(
            managed=table.managed,
            name=table.name,
            zch_size=table.rows,
            device=device,
            buckets=buckets,
        )
    return ManagedCollisionEmbeddingCollection(
        EmbeddingCollection(tables=configs, device=device),
        ManagedCollisionCollection(managers, configs),
    )


def row_managers(module: nn.Module) -> dict[str, RowManager]:
    """The maps inside a module, by table name."""
    return {
        path.split(".")[-1]: part
        for path, part in module.named_modules()
        if isinstance(part, RowManager)
    }
