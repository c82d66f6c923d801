import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization import list_columns
from tokenization.embedding_table import EmbeddingTable
from tokenization.list_columns import group_rows, list_column


@pytest.mark.parametrize("most", [3, 4, 7, 100])
def test_lists_are_cut_where_offsets_end(most, monkeypatch):
    monkeypatch.setattr(list_columns, "MOST_VALUES", most)
    lists = [[1, 2, 3], [], [4], [5, 6], [], [7, 8, 9], []]
    offsets = np.cumsum([0, *map(len, lists)])
    found = list_column(np.arange(1, 10, dtype=np.int32), offsets)
    assert found.to_pylist() == lists
    assert found.type == pa.list_(pa.int32())
    assert all(len(chunk.flatten()) <= most for chunk in found.chunks)
    assert (found.num_chunks == 1) == (most == 100)


def test_no_rows():
    assert list_column(np.zeros(0, np.float32), np.zeros(1, np.int64)).to_pylist() == []


def test_embeddings_of_several_chunks_are_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(list_columns, "MOST_VALUES", 50)
    embeddings = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    EmbeddingTable(item_ids=np.arange(30), embeddings=embeddings).save(tmp_path / "e.parquet")
    file = pq.ParquetFile(tmp_path / "e.parquet")
    assert file.num_row_groups == 3
    np.testing.assert_array_equal(
        EmbeddingTable.load(tmp_path / "e.parquet").embeddings, embeddings
    )


def test_row_groups_hold_what_can_be_read():
    assert group_rows(384) == 1 << 20
    assert group_rows(4096) * 4096 <= 2**31 - 1
    assert group_rows(2**32) == 1
