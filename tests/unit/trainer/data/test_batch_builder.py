from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.modules.embedding_configs import EmbeddingBagConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection

from trainer.data.batch_builder import BatchBuilder, DistinctItems
from trainer.data.dataset import Dataset
from trainer.data.item_features import item_id_features
from trainer.data.schema import RowRange


def test_distinct_items_invert() -> None:
    finder = DistinctItems(1000)
    rng = np.random.default_rng(0)
    for size in (0, 1, 500, 3000):  # one after the other: slots of earlier calls must not show
        rows = rng.integers(0, 1000, size).astype(np.int32)
        distinct, inverse = finder.find(rows)
        assert sorted(distinct.tolist()) == sorted(set(rows.tolist()))
        assert (distinct[inverse] == rows).all()


def test_embedding_bags_read_the_pooled_features(dataset: Dataset) -> None:
    features = item_id_features(dataset, cardinality=1000, hashed=False)
    block = dataset.block(RowRange(30, 90))
    batch = BatchBuilder(dataset, features).build(block)
    collection = EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=f"t_{f.name}",
                num_embeddings=f.cardinality,
                embedding_dim=4,
                feature_names=[f.name],
            )
            for f in dataset.schema.pooled_features
        ]
    )
    pooled = collection(batch.pooled).to_dict()
    tags = block.features.bags["tags"]
    weight = collection.embedding_bags["t_tags"].weight
    for i in range(60):
        ids = torch.from_numpy(tags.values[tags.offsets[i] : tags.offsets[i + 1]])
        assert torch.allclose(pooled["tags"][i], weight[ids].sum(dim=0), atol=1e-6)


def test_without_history_dense_or_pooled_features(small_log: Any) -> None:
    small_log.schema = replace(small_log.schema, features=(), histories=())
    dataset = small_log.write().open()
    features = item_id_features(dataset, cardinality=1000, hashed=False)
    batch = BatchBuilder(dataset, features).build(dataset.block(RowRange(0, 12)))
    assert batch.dense_BF.shape == (12, 0)
    assert batch.pooled.keys() == []
    assert batch.pooled.stride() == 12
    assert batch.history_T.shape == (0,)
    assert batch.history_offsets.tolist() == [0] * 13
    found = batch.items.values()[batch.candidate_B].tolist()
    assert found == small_log.interactions["item_id"].to_pylist()[:12]


@pytest.mark.parametrize("num_rows", [1, 5])
def test_small_batches(dataset: Dataset, num_rows: int) -> None:
    features = item_id_features(dataset, cardinality=1000, hashed=False)
    batch = BatchBuilder(dataset, features).build(dataset.block(RowRange(0, num_rows)))
    assert batch.batch_size == num_rows
