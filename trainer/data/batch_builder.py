"""Impressions to the record that models read."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from trainer.batch import Batch
from trainer.data.block import FeatureColumns, RowBlock
from trainer.data.dataset import Dataset
from trainer.data.item_features import ItemFeatures
from trainer.data.schema import Bag, Dense


class DistinctItems:
    """Finds the distinct items among many item rows, by one slot an item instead of a hash table.

    Args:
        num_items: item rows are in `[0, num_items)`.
    """

    def __init__(self, num_items: int) -> None:
        self._slots = np.zeros(num_items, dtype=np.int32)

    def find(self, rows: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the distinct rows, and for each of `rows` its position among these."""
        wide_rows = rows.astype(np.int64)  # numpy indexes by int64 fastest
        positions = np.arange(len(rows), dtype=np.int32)
        self._slots[wide_rows] = positions  # of equal rows one keeps the slot, and stands for all
        distinct = wide_rows[self._slots.take(wide_rows) == positions]
        self._slots[distinct] = positions[: len(distinct)]
        return distinct, self._slots.take(wide_rows).astype(np.int64)


class BatchBuilder:
    """Joins static columns and item identities to impressions and packs tensors.

    Not for use by two threads at a time.

    Args:
        dataset: that the impressions are from.
        item_features: ids of every item.
    """

    def __init__(self, dataset: Dataset, item_features: ItemFeatures) -> None:
        self._schema = dataset.schema
        self._items = dataset.items.features
        self._users = None if dataset.users is None else dataset.users.features
        self._item_features = item_features
        self._distinct_items = DistinctItems(dataset.num_items)

    def build(self, block: RowBlock) -> Batch:
        """Return the batch of these impressions, in their order."""
        num_rows = len(block)
        if block.history is None:
            members, history_offsets = block.item, np.zeros(num_rows + 1, dtype=np.int64)
            kinds = np.zeros(0, dtype=np.int64)
        else:
            history_items, kinds = np.divmod(block.history.values, len(self._schema.histories))
            members = np.concatenate([block.item, history_items])
            history_offsets = block.history.offsets
        distinct, inverse = self._distinct_items.find(members)
        dense = [self._dense(block, f) for f in self._schema.dense_features]
        return Batch(
            dense_BF=torch.from_numpy(
                np.stack(dense, axis=1) if dense else np.zeros((num_rows, 0), dtype=np.float32)
            ),
            pooled=self._pooled(block),
            items=keyed(
                {key: ids.take(distinct) for key, ids in self._item_features.features.items()},
                stride=len(distinct),
            ),
            candidate_B=torch.from_numpy(inverse[:num_rows]),
            history_T=torch.from_numpy(inverse[num_rows:]),
            history_kind_T=torch.from_numpy(kinds),
            history_offsets=torch.from_numpy(history_offsets),
            labels_BN=torch.from_numpy(block.labels),
            row_B=torch.from_numpy(block.row),
        )

    def _columns(
        self, block: RowBlock, source: str
    ) -> tuple[FeatureColumns, NDArray[np.int32] | None]:
        """Return the columns of a file and the rows of them to take, None for all in order."""
        if source == "interactions":
            return block.features, None
        if source == "items":
            return self._items, block.item
        assert self._users is not None and block.user is not None
        return self._users, block.user

    def _dense(self, block: RowBlock, feature: Dense) -> NDArray[np.float32]:
        columns, rows = self._columns(block, feature.source)
        values = columns.dense[feature.name]
        return values if rows is None else values.take(rows)

    def _pooled(self, block: RowBlock) -> KeyedJaggedTensor:
        ones = np.ones(len(block), dtype=np.int64)
        lists: dict[str, tuple[NDArray[Any], NDArray[np.int64]]] = {}
        for feature in self._schema.pooled_features:
            columns, rows = self._columns(block, feature.source)
            if isinstance(feature, Bag):
                bag = columns.bags[feature.name]
                lists[feature.name] = (bag.values, bag.lengths) if rows is None else bag.take(rows)
            else:
                ids = columns.ids[feature.name]
                lists[feature.name] = (ids if rows is None else ids.take(rows), ones)
        return keyed(lists, stride=len(block))


def keyed(
    lists: dict[str, tuple[NDArray[Any], NDArray[np.int64]]], *, stride: int
) -> KeyedJaggedTensor:
    """Pack (values, lengths) of each key into a KeyedJaggedTensor.

    Args:
        lists: key -> values of `stride` lists one after the other, and the length of each.
        stride: number of lists of a key.
    """
    return KeyedJaggedTensor(
        keys=list(lists),
        values=_joined([values for values, _ in lists.values()]),
        lengths=_joined([lengths for _, lengths in lists.values()]),
        stride=stride,
    )


def _joined(arrays: list[NDArray[Any]]) -> Tensor:
    if not arrays:
        return torch.zeros(0, dtype=torch.int64)
    return torch.from_numpy(np.concatenate(arrays).astype(np.int64, copy=False))
