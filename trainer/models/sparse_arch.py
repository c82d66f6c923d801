"""The sparse side: every embedding table of a model, in TorchRec's two collections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec, check_tables
from trainer.batch import Batch


class SparseArch(nn.Module):
    """Looks up pooled features (EBC) and the identity of each distinct item (EC).

    Item tables serve the candidate and the history alike: a batch carries each distinct item
    once, the EmbeddingCollection returns the vectors of its ids, and the network gathers them.
    `forward` reads attributes of the batch only, so TrainPipelineSparseDist can trace it and start
    the exchange of the next batch's ids while this one computes.

    Args:
        tables: `pooling="none"` marks item tables; the others are pooled.
        device: `meta` for models that are sharded afterwards.
    """

    def __init__(self, tables: Sequence[TableSpec], device: torch.device) -> None:
        super().__init__()
        check_tables(tables)
        self.pooled = EmbeddingBagCollection(
            tables=[table.to_config() for table in tables if table.pooling != "none"],
            device=device,
        )
        self.items = EmbeddingCollection(
            tables=[table.to_config() for table in tables if table.pooling == "none"],
            device=device,
        )

    def forward(self, batch: Batch) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """Pooled embeddings (B, sum of dims) and the embeddings of each distinct item's ids."""
        return self.pooled(batch.pooled), self.items(batch.items)
