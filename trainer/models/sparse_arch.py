"""The sparse side: every embedding table of a model, in TorchRec's collections."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

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
        whole_item_tables: look up every row of the item tables in each step, in place of the rows
            of the batch's items: for small tables whose rows are chosen inside the network.

    Attributes:
        items: EC of the item tables that are not managed; None without such tables.
        managed: EC of those that are; None without.
    """

    def __init__(
        self,
        tables: Sequence[TableSpec],
        device: torch.device,
        *,
        whole_item_tables: bool = False,
    ) -> None:
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
        self.whole_rows: dict[str, int] | None = None
        if whole_item_tables:
            self.whole_rows = {feature: one.rows for one in items for feature in one.features}

    @property
    def collections(self) -> list[nn.Module]:
        """Every collection of tables that there is."""
        return [part for part in (self.pooled, self.items, self.managed) if part is not None]

    def forward(self, batch: Batch) -> tuple[KeyedTensor, dict[str, JaggedTensor]]:
        """Pooled embeddings (B, sum of dims) and the embeddings of each distinct item's ids."""
        pooled = self.pooled(batch.pooled)
        if self.managed is None:
            assert self.items is not None
            if self.whole_rows is not None:
                return pooled, self.items(every_row(batch.items, self.whole_rows))
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


@torch.fx.wrap
def every_row(items: KeyedJaggedTensor, rows: dict[str, int]) -> KeyedJaggedTensor:
    """Ids of all rows of each feature's table, on the device of `items`; stride 1."""
    device = items.device()
    return KeyedJaggedTensor(
        keys=list(rows),
        values=torch.cat([torch.arange(number, device=device) for number in rows.values()]),
        lengths=torch.tensor(list(rows.values()), device=device),
        stride=1,
    )
