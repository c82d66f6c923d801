from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization.embedding_table import EmbeddingTable


def test_save_and_load(tmp_path):
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    path = tmp_path / "new" / "embeddings.parquet"
    made = {"encoder": "mine", "alignment": {"hidden": 3}}
    EmbeddingTable(item_ids=np.arange(30) * 7, embeddings=embeddings, made=made).save(path)
    loaded = EmbeddingTable.load(path)
    assert loaded.made == made
    np.testing.assert_array_equal(loaded.item_ids, np.arange(30) * 7)
    np.testing.assert_array_equal(loaded.embeddings, embeddings)
    assert pq.read_schema(path).field("embedding").type == pa.list_(pa.float32())
    assert [file.name for file in path.parent.iterdir()] == ["embeddings.parquet"]


@pytest.mark.parametrize("list_type", [pa.list_(pa.float64()), pa.list_(pa.float32(), 2)])
def test_other_list_types_are_read(tmp_path, list_type):
    lists = pa.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], type=list_type)
    table = pa.table({"vector": lists, "item_id": pa.array([3, 1, 2], type=pa.int32())})
    pq.write_table(table, tmp_path / "items.parquet", row_group_size=2)
    loaded = EmbeddingTable.load(tmp_path / "items.parquet", column="vector")
    assert loaded.embeddings.tolist() == [[1, 2], [3, 4], [5, 6]]
    assert loaded.embeddings.dtype == np.float32
    assert loaded.made == {}
    assert loaded.item_ids.tolist() == [3, 1, 2]
    assert loaded.item_ids.dtype == np.int64


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": [1, 2]}, "expected column 'embedding', found item_id"),
        ({"item": [1], "embedding": [[1.0]]}, "expected column 'item_id', found item, embedding"),
        ({"item_id": [1, 1], "embedding": [[1.0], [2.0]]}, "each item once, found 1 again"),
        ({"item_id": ["a"], "embedding": [[1.0]]}, "item_id: expected integers, found string"),
        ({"item_id": [1, None], "embedding": [[1.0]] * 2}, "item_id: expected no nulls, found 1"),
        ({"item_id": [1, 2], "embedding": [[1.0], None]}, "embedding: expected no nulls, found 1"),
        ({"item_id": [1], "embedding": [[1.0, None]]}, "no nulls in the lists, found 1"),
        ({"item_id": [1], "embedding": ["text"]}, "expected lists of floats, found string"),
        ({"item_id": [1], "embedding": [[1, 2]]}, "expected lists of floats, found list"),
        (
            {"item_id": [1, 2], "embedding": [[1.0], [1.0, 2.0]]},
            r"one length, found lengths \[1, 2\]",
        ),
        ({"item_id": [1, 2], "embedding": [[1.0], [float("nan")]]}, "NaN .* the first is row 1"),
    ],
)
def test_bad_files(tmp_path, columns, message):
    path = tmp_path / "embeddings.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=message) as raised:
        EmbeddingTable.load(path)
    assert str(path) in str(raised.value)


def test_no_rows_no_file_half_a_file(tmp_path):
    path = tmp_path / "embeddings.parquet"
    with pytest.raises(ValueError, match="no such file"):
        EmbeddingTable.load(path)
    schema = pa.schema({"item_id": pa.int64(), "embedding": pa.list_(pa.float32())})
    pq.write_table(schema.empty_table(), path)
    with pytest.raises(ValueError, match="expected at least one item, found no rows"):
        EmbeddingTable.load(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="expected a whole parquet file"):
        EmbeddingTable.load(path)
