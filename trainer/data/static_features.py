"""DIG's division of features (its Table 1) by the roles of a schema, and its Type I features.

| type | what | roles |
|---|---|---|
| I | item-side, static | entity item, from items.parquet; texts' embeddings |
| II | request-level | entity user or request |
| III | cross | entity cross, and what of the item changes from row to row of the log |

Legend: N items, E width of texts.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from tokenization.embedding_table import EmbeddingTable
from trainer.data.block import FeatureColumns
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.id_index import IdIndex
from trainer.data.ragged import Ragged
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense
from trainer.modules.learned_tokens import LearnedTokensConfig, StaticField
from trainer.modules.vq_encoder import StaticFeatures


def is_static(feature: Categorical | Bag | Dense) -> bool:
    """Whether a feature is of Type I."""
    return feature.entity == "item" and feature.source == "items"


def static_fields(schema: DatasetSchema) -> tuple[StaticField, ...]:
    """The categorical and bag features of Type I, as the encoder takes them."""
    return tuple(
        StaticField(
            name=one.name, rows=one.cardinality, bag=isinstance(one, Bag), hashed=one.hashed
        )
        for one in schema.pooled_features
        if is_static(one)
    )


def static_dense(schema: DatasetSchema) -> tuple[str, ...]:
    """The numbers of Type I."""
    return tuple(one.name for one in schema.dense_features if is_static(one))


def without_static(schema: DatasetSchema) -> DatasetSchema:
    """The schema of Types II and III alone: what a row of the log brings, not its item."""
    return replace(schema, features=tuple(one for one in schema.features if not is_static(one)))


def read_static_features(dataset: Dataset, config: LearnedTokensConfig) -> StaticFeatures:
    """Type I features of every item, in the order of items.parquet; the encoder standardizes them.

    Raises:
        DataError: on a column that is missing or holds a bad value, or an item without a text.
    """
    wanted: list[Categorical | Bag | Dense] = [
        (Bag if field.bag else Categorical)(
            name=field.name,
            entity="item",
            cardinality=field.rows,
            source="items",
            hashed=field.hashed,
        )
        for field in config.fields
    ]
    wanted += [Dense(name=name, entity="item", source="items") for name in config.dense_columns]
    part = dataset.items.part
    missing = [one.name for one in wanted if one.name not in part.schema.names]
    if missing:
        raise DataError(
            f"{part.path}, column {missing[0]!r}: expected it for model.item, found "
            f"{', '.join(part.schema.names)}; write the column or leave it out of model.item"
        )
    columns = FeatureColumns.decode(part.read([one.name for one in wanted]), wanted, path=part.path)
    ids = {}
    for field in config.fields:
        lists = columns.bags.get(field.name)
        if lists is None:
            lists = Ragged(columns.ids[field.name], np.arange(dataset.num_items + 1))
        ids[field.name] = (
            torch.from_numpy(lists.values.astype(np.int64)),
            torch.from_numpy(lists.offsets.astype(np.int64)),
        )
    dense_NF = np.zeros((dataset.num_items, 0), dtype=np.float32)
    if config.dense_columns:
        dense_NF = np.stack([columns.dense[name] for name in config.dense_columns], axis=1)
    return StaticFeatures(
        ids=ids,
        dense_NF=torch.from_numpy(dense_NF.astype(np.float32)),
        text_NE=torch.from_numpy(_texts(dataset, config)),
    )


def _texts(dataset: Dataset, config: LearnedTokensConfig) -> NDArray[np.float32]:
    """Text embeddings (N, E)."""
    if not config.text_dim:
        return np.zeros((dataset.num_items, 0), dtype=np.float32)
    if config.embeddings is not None:
        path = config.embeddings
        table = EmbeddingTable.load(path)
    else:
        assert config.embedding_column is not None
        path = dataset.items.part.path
        table = EmbeddingTable.load(path, column=config.embedding_column)
    rows = IdIndex(table.item_ids).rows(dataset.item_ids)
    if (rows < 0).any():
        raise DataError(
            f"{path}: expected an embedding for every item of {dataset.items.part.path}, found "
            f"{int((rows < 0).sum())} items without, the first "
            f"{dataset.item_ids[np.argmax(rows < 0)]}; run `farewell embed` again"
        )
    text_NE: NDArray[np.float32] = table.embeddings[rows].astype(np.float32)
    return text_NE
