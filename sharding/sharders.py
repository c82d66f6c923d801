"""In which ways, and with which kernels, TorchRec may shard our tables."""

from __future__ import annotations

from typing import Any

from torch import nn
from torchrec.distributed.embedding import EmbeddingCollectionSharder
from torchrec.distributed.embedding_types import EmbeddingComputeKernel
from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder
from torchrec.distributed.types import ModuleSharder, ShardingType

from sharding.managed_sharder import ManagedSharder
from sharding.tables import TableSpec


def compute_kernels(sharding_type: str, device_type: str) -> list[str]:
    """TorchRec kernels for one sharding type on this device.

    Data-parallel tables are dense parameters; all others update inside the backward pass.
    TorchRec's CPU estimator rejects UVM kernels, and its planner takes `key_value` (SSD) for
    tables that name it alone.
    """
    if sharding_type == ShardingType.DATA_PARALLEL.value:
        return [EmbeddingComputeKernel.DENSE.value]
    kernels = [EmbeddingComputeKernel.FUSED]
    if device_type == "cuda":
        kernels += [
            EmbeddingComputeKernel.FUSED_UVM,
            EmbeddingComputeKernel.FUSED_UVM_CACHING,
            EmbeddingComputeKernel.KEY_VALUE,
        ]
    return [kernel.value for kernel in kernels]


class BagSharder(EmbeddingBagCollectionSharder):
    """Shards EBCs in all of TorchRec's ways.

    TorchRec hides row-wise, table-row-wise and grid sharding on the CPU, though they run there
    (`farewell doctor` and the tests prove it on the versions installed).
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Every sharding type of TorchRec."""
        return [sharding_type.value for sharding_type in ShardingType]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Kernels that train: see :func:`compute_kernels`."""
        return compute_kernels(sharding_type, compute_device_type)


class SequenceSharder(EmbeddingCollectionSharder):
    """Shards ECs in all ways that run on the device.

    Data-parallel ECs fail in the forward pass on the CPU, so they are left out there.
    """

    def sharding_types(self, compute_device_type: str) -> list[str]:
        """Table-, row- and column-wise; data-parallel on CUDA only."""
        types = [ShardingType.TABLE_WISE, ShardingType.ROW_WISE, ShardingType.COLUMN_WISE]
        if compute_device_type == "cuda":
            types.append(ShardingType.DATA_PARALLEL)
        return [sharding_type.value for sharding_type in types]

    def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
        """Kernels that train: see :func:`compute_kernels`."""
        return compute_kernels(sharding_type, compute_device_type)


def sharders(fused_params: dict[str, Any] | None = None) -> list[ModuleSharder[nn.Module]]:
    """Sharders of pooled, sequence and managed tables; `fused_params` go to the TBE kernels."""
    return [
        BagSharder(fused_params=dict(fused_params or {})),
        SequenceSharder(fused_params=dict(fused_params or {})),
        ManagedSharder(SequenceSharder(fused_params=dict(fused_params or {}))),
    ]


def sharder_of(table: TableSpec) -> ModuleSharder[nn.Module]:
    """The sharder that a table is sharded by."""
    pooled, sequence, managed = sharders()
    if table.managed is not None:
        return managed
    return sequence if table.pooling == "none" else pooled
