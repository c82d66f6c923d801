import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data import writer
from trainer.data.ragged import Ragged
from trainer.data.schema import Categorical, DatasetSchema
from trainer.data.writer import DatasetWriter, ragged_column

SCHEMA = DatasetSchema(
    name="toy",
    features=(Categorical(name="user_id", entity="user", cardinality=3),),
    labels=("like",),
)
ITEMS = pa.table({"item_id": np.arange(4), "created_at": np.zeros(4, np.int64)})


def rows(start, count):
    at = np.arange(start, start + count)
    like = (at % 5 == 0).astype(np.int8)
    return pa.table({"user_id": at % 3, "item_id": at % 4, "timestamp": at, "like": like})


def write(folder, chunk_sizes):
    with DatasetWriter(folder, schema=SCHEMA, source={"file": "toy.csv"}) as out:
        out.write_items(ITEMS)
        out.write_users(pa.table({"user_id": np.arange(3)}))
        start = 0
        for size in chunk_sizes:
            out.write(rows(start, size))
            start += size
        return out.finish({"bayes_auc": 0.5})


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(writer, "ROW_GROUP_ROWS", 100)
    monkeypatch.setattr(writer, "PART_ROWS", 300)


@pytest.mark.parametrize("chunks", [[1_050], [1] * 50 + [1_000], [99, 0, 2, 700, 249]])
def test_row_groups_and_parts_do_not_depend_on_chunks(tmp_path, small_groups, chunks):
    write(tmp_path / "toy", chunks)
    parts = sorted((tmp_path / "toy" / "interactions").iterdir())
    assert [part.name for part in parts] == [f"part-{i:05d}.parquet" for i in range(4)]
    sizes = [
        [meta.row_group(group).num_rows for group in range(meta.num_row_groups)]
        for meta in map(pq.read_metadata, parts)
    ]
    assert sizes == [[100] * 3, [100] * 3, [100] * 3, [100, 50]]
    assert pa.concat_tables(map(pq.read_table, parts)).equals(rows(0, 1_050))


def test_row_groups_have_the_contract_size(tmp_path):
    write(tmp_path / "toy", [70_000])
    meta = pq.read_metadata(tmp_path / "toy" / "interactions" / "part-00000.parquet")
    assert [meta.row_group(group).num_rows for group in (0, 1)] == [65_536, 70_000 - 65_536]
    assert meta.row_group(0).column(0).compression == "ZSTD"


def test_manifest_tells_what_is_there(tmp_path):
    manifest = write(tmp_path / "toy", [30, 20])
    stored = json.loads((tmp_path / "toy" / "manifest.json").read_text())
    assert stored["num_rows"] == manifest.num_rows == 50
    assert (stored["num_users"], stored["num_items"]) == (3, 4)
    assert (stored["first_time"], stored["last_time"]) == (0, 49)
    assert stored["positives"] == {"like": 10.0}
    assert stored["facts"] == {"bayes_auc": 0.5}
    assert stored["source"] == {"file": "toy.csv"}
    assert stored["columns"]["interactions"]["like"] == "int8"
    assert stored["num_bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "toy").rglob("*.parquet")
    )


def test_an_error_leaves_nothing_and_keeps_the_old_data(tmp_path):
    write(tmp_path / "toy", [30])
    with (
        pytest.raises(RuntimeError),
        DatasetWriter(tmp_path / "toy", schema=SCHEMA, source={}) as out,
    ):
        out.write(rows(0, 70_000))
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    assert pq.read_table(tmp_path / "toy" / "interactions").num_rows == 30


def test_a_data_set_is_replaced_and_anything_else_is_not(tmp_path):
    write(tmp_path / "toy", [30])
    write(tmp_path / "toy", [40])
    assert pq.read_table(tmp_path / "toy" / "interactions").num_rows == 40
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("")
    with pytest.raises(ValueError, match="photos: exists and is no data set"):
        write(tmp_path / "photos", [30])


def test_time_order_and_completeness_are_demanded(tmp_path):
    with DatasetWriter(tmp_path / "toy", schema=SCHEMA, source={}) as out:
        out.write(rows(10, 5))
        with pytest.raises(ValueError, match="'timestamp' falls"):
            out.write(rows(9, 5))
        with pytest.raises(ValueError, match="needs impressions and items"):
            out.finish()
    assert not (tmp_path / "toy").exists()


def test_ragged_column_holds_lists_of_32_bit_integers():
    lists = ragged_column(Ragged(np.array([4, 5, 6]), np.array([0, 2, 2, 3])))
    assert lists.to_pylist() == [[4, 5], [], [6]]
    assert lists.type.value_type == pa.int32()
