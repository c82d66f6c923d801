"""The sparse side: every embedding table of a model, in TorchRec's collections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedTensor

from sharding.tables import TableSpec, check_tables
from trainer.batch import Batch
from trainer.modules.managed_ids import managed_collection


class SparseArch(nn.Module):
    """Looks up pooled features (EBC) and the identity of each distinct item (EC).

    Item tables serve the candidate and the history alike: a batch carries each distinct item
    once, the EmbeddingCollection returns the vectors of its ids, and the network gathers them.
    `forward` reads attributes of the batch only, so TrainPipelineSparseDist can trace it and start
    the exchange of the next batch's ids while this one computes.

    Args:
        tables: `pooling="none"` marks item tables, which may be managed; the others are pooled.
        device: `meta` for models that are sharded afterwards.

    Attributes:
        items: EC of the item tables that are not managed; None without such tables.
        managed: EC of those that are; None without.
    """

    def __init__(self, tables: Sequence[TableSpec], device: torch.device) -> None:
        super().__init__()
        check_tables(tables)
        pooled = [table for table in tables if table.pooling != "none"]
        items = [t for t in tables if t.pooling == "none" and t.managed is None]
        managed = [table for table in tables if table.managed is not None]
        self.pooled = EmbeddingBagCollection(
            tables=[table.to_config() for table in pooled], device=device
        )
        self.items = (
            EmbeddingCollection(tables=[table.to_config() for table in items], device=device)
            if items
            else None
        )
        self.managed = managed_collection(managed, device) if managed else None

    @property
    def collections(self) -> list[nn.Module]:
        """Every collection of tables that there is."""
        return [part for part in (self.pooled, self.items, self.managed) if part is not None]

    def forward(self, batch: Batch) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """Pooled embeddings (B, sum of dims) and the embeddings of each distinct item's ids."""
        pooled = self.pooled(batch.pooled)
        if self.managed is None:
            assert self.items is not None
            return pooled, self.items(batch.items)
        managed = self.managed(batch.items)[0]
        if self.items is None:
            return pooled, managed
        return pooled, joined(self.items(batch.items), managed)


@torch.fx.wrap
def joined(
    items: dict[str, JaggedTensor], managed: dict[str, JaggedTensor]
) -> dict[str, JaggedTensor]:
    """Both collections' embeddings; a call of its own, since a trace can't look into either."""
    return {**items, **managed}
