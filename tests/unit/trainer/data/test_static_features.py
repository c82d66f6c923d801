import numpy as np
import pyarrow.parquet as pq
import pytest

from configs import datasets, dig
from tokenization.embedding_table import EmbeddingTable
from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.movielens import SCHEMA_1M
from trainer.data.static_features import (
    read_static_features,
    static_fields,
    without_static,
)
from trainer.data.synthetic import write_synthetic
from trainer.data.synthetic_config import SyntheticConfig, schema
from trainer.modules.learned_tokens import LearnedTokensConfig, StaticField

SMALL = SyntheticConfig(
    num_rows=600, num_items=40, num_users=20, num_queries=10, days=2, branching=(2, 2, 2)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("static") / "log"
    write_synthetic(SMALL, path)
    return path


def test_schema_divides_by_roles():
    assert static_fields(SCHEMA_1M) == (
        StaticField(name="year", rows=SCHEMA_1M.pooled_features[5].cardinality),
        StaticField(name="genres", rows=SCHEMA_1M.pooled_features[6].cardinality, bag=True),
    )
    left = {one.name for one in without_static(SCHEMA_1M).features}
    assert {"year", "genres"} & left == set()
    assert {"item_mean", "user_genre_mean", "hour"} <= left


def test_features_stand_in_the_order_of_items(folder):
    dataset = Dataset.open(folder, without_static(schema(SMALL)))
    config = LearnedTokensConfig(
        fields=static_fields(schema(SMALL)),
        text_dim=SMALL.embedding_dim,
        text_fields=2,
        embedding_column="embedding",
    )
    found = read_static_features(dataset, config)
    items = pq.read_table(folder / "items.parquet")
    values, offsets = found.ids["category_2"]
    assert values.tolist() == items["category_2"].to_pylist()
    assert offsets.tolist() == list(range(len(items) + 1))
    np.testing.assert_array_equal(
        found.text_NE.numpy(), np.stack(items["embedding"].to_numpy()).astype(np.float32)
    )


def test_missing_columns_and_texts_are_named(folder, tmp_path):
    dataset = Dataset.open(folder, without_static(schema(SMALL)))
    with pytest.raises(DataError, match="brand"):
        read_static_features(
            dataset, LearnedTokensConfig(fields=(StaticField(name="brand", rows=4),))
        )
    path = tmp_path / "texts.parquet"
    ids = dataset.item_ids[:-3]
    EmbeddingTable(item_ids=ids, embeddings=np.ones((len(ids), 4), dtype=np.float32)).save(path)
    config = LearnedTokensConfig(
        fields=static_fields(schema(SMALL)), text_dim=4, text_fields=2, embeddings=path
    )
    with pytest.raises(DataError, match="3 items without"):
        read_static_features(dataset, config)


def test_experiments_leave_static_columns_to_the_tokenizer():
    for made in (dig.smoke(), dig.movielens1m()):
        tables = {table.name for table in made.tables}
        assert not tables & {field.name for field in made.model.item.fields}
        assert set(made.model.item.features) <= tables
    assert dig.movielens1m().model.item.dim == 64
    assert dig.movielens1m().train.batch_size == 2048
    assert datasets.smoke().data.schema != dig.smoke().data.schema
