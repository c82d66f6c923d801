import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.entity_table import EntityTable
from trainer.data.errors import DataError
from trainer.data.schema import Bag, Categorical, DatasetSchema, Dense, ItemSequence
from trainer.serving.identity import HashedRows, OwnRows
from trainer.serving.request import RequestReader

SCHEMA = DatasetSchema(
    name="shop",
    features=(
        Categorical(name="user_id", entity="user", cardinality=10),
        Categorical(name="city", entity="user", cardinality=4, source="users"),
        Bag(name="words", entity="request", cardinality=6),
        Bag(name="genres", entity="item", cardinality=5, source="items"),
        Dense(name="price", entity="item", source="items", transform="log1p"),
        Dense(name="hour", entity="request"),
    ),
    labels=("click",),
    histories=(ItemSequence(name="liked", max_length=3), ItemSequence(name="seen", max_length=4)),
    created_at=None,
)
ITEMS = {"item_id": [50, 7, 20], "genres": [[1], [], [4, 0]], "price": [0.0, 1.5, 9.0]}
USERS = {"user_id": [3, 8], "city": [2, 1]}
REQUEST = {
    "item_id": [7, 20, 7],
    "user_id": [3, 8, 3],
    "words": [[5], [], [1, 1]],
    "hour": [0.5, 2, 23],
    "liked": [[50], [], [7, 20]],
    "seen": [[], [7, 7, 50], [20]],
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    folder = tmp_path_factory.mktemp("request")
    for name, values in (("items", ITEMS), ("users", USERS)):
        pq.write_table(pa.table(values), folder / f"{name}.parquet")
    return RequestReader(
        SCHEMA,
        {"item_id": OwnRows(60), "hashed": HashedRows(5)},
        EntityTable(folder / "items.parquet", SCHEMA, source="items"),
        EntityTable(folder / "users.parquet", SCHEMA, source="users"),
    )


def batch_of(reader, request):
    return reader.batch(reader.from_dict(request)[0])


def lists(jagged, key):
    one = jagged[key]
    return [part.tolist() for part in one.values().split(one.lengths().tolist())]


def test_batch_says_what_the_request_says(reader):
    batch = batch_of(reader, REQUEST)
    assert batch.pooled.keys() == ["user_id", "city", "words", "genres"]
    assert lists(batch.pooled, "user_id") == [[3], [8], [3]]
    assert lists(batch.pooled, "city") == [[2], [1], [2]]
    assert lists(batch.pooled, "words") == [[5], [], [1, 1]]
    assert lists(batch.pooled, "genres") == [[], [4, 0], []]
    expected = [[np.log1p(1.5), 0.5], [np.log1p(9), 2], [np.log1p(1.5), 23]]
    np.testing.assert_allclose(batch.dense_BF, expected, rtol=1e-6)
    ids = [row[0] for row in lists(batch.items, "item_id")]
    assert sorted(ids) == [7, 20, 50]
    assert [ids[at] for at in batch.candidate_B] == [7, 20, 7]
    assert [ids[at] for at in batch.history_T] == [50, 7, 7, 50, 7, 20, 20]
    assert batch.history_kind_T.tolist() == [0, 1, 1, 1, 0, 0, 1]
    assert batch.history_offsets.tolist() == [0, 1, 4, 7]


def test_one_value_or_flat_list_stands_for_all_rows(reader):
    shared = {**REQUEST, "user_id": 3, "hour": 4, "words": [5, 2], "liked": [50], "seen": []}
    spelled = {
        **REQUEST,
        "user_id": [3] * 3,
        "hour": [4] * 3,
        "words": [[5, 2]] * 3,
        "liked": [[50]] * 3,
        "seen": [[]] * 3,
    }
    found, expected = batch_of(reader, shared), batch_of(reader, spelled)
    for name in ("dense_BF", "candidate_B", "history_T", "history_kind_T", "history_offsets"):
        assert getattr(found, name).tolist() == getattr(expected, name).tolist(), name
    assert found.pooled.values().tolist() == expected.pooled.values().tolist()


def test_single_impression_and_numpy_values(reader):
    one = {name: values[2] for name, values in REQUEST.items()}
    columns, single = reader.from_dict(one)
    assert single
    assert reader.batch(columns).candidate_B.shape == (1,)
    arrays = {n: np.asarray(v) if np.ndim(v[0]) == 0 else v for n, v in REQUEST.items()}
    assert batch_of(reader, arrays).pooled.values().tolist() == (
        batch_of(reader, REQUEST).pooled.values().tolist()
    )


def test_table_has_the_same_batch_as_the_request(reader, tmp_path):
    table = pa.table({**REQUEST, "click": [0, 1, 0], "unrelated": ["a", "b", "c"]})
    found = reader.batch(reader.from_table(table, tmp_path))
    expected = batch_of(reader, REQUEST)
    assert found.pooled.values().tolist() == expected.pooled.values().tolist()
    assert found.history_T.tolist() == expected.history_T.tolist()
    assert found.dense_BF.tolist() == expected.dense_BF.tolist()


def test_static_features_may_be_given(reader):
    batch = batch_of(reader, {**REQUEST, "city": 3, "genres": [2, 2], "price": [0, 0, 3]})
    assert lists(batch.pooled, "city") == [[3]] * 3
    assert lists(batch.pooled, "genres") == [[2, 2]] * 3
    np.testing.assert_allclose(batch.dense_BF[:, 0], [0, 0, np.log1p(3)], rtol=1e-6)


@pytest.mark.parametrize("name", ["item_id", "user_id", "words", "hour", "liked", "seen"])
def test_missing_columns_are_named(reader, tmp_path, name):
    rest = {column: values for column, values in REQUEST.items() if column != name}
    with pytest.raises(DataError, match=rf"request: column '{name}': expected .*no such column"):
        reader.from_dict(rest)
    path = tmp_path / "x.parquet"
    with pytest.raises(DataError, match=rf"x\.parquet: column '{name}': .*it was trained on"):
        reader.from_table(pa.table(rest), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"huor": 3}, "column 'huor': expected one of .*did you mean 'hour'"),
        ({"hour": [1, 2]}, "column 'hour': expected 3 values .*or one for all, found shape"),
        ({"hour": [1, None, 2]}, "column 'hour': .*found values of several types, or None"),
        ({"hour": "noon"}, "column 'hour': expected an integer or float column, found <U4"),
        ({"hour": [1, 2, float("nan")]}, "column 'hour': expected finite numbers.*in row 2"),
        ({"hour": [[1], [2], [3]]}, "column 'hour': .*found shape"),
        ({"user_id": [1.5, 2, 3]}, "column 'user_id': expected an integer column, found float64"),
        ({"user_id": [3, 8, 10]}, r"column 'user_id': expected ids whose city .*found 10 in row 2"),
        ({"user_id": [3, 8, 10], "city": 1}, r"'user_id': expected ids in \[0, 10\), found 10"),
        ({"item_id": [7, 20, 2**70]}, "column 'item_id': .*found"),
        ({"item_id": [[7], [2, 3], [7]]}, "column 'item_id': .*found"),
        ({"item_id": [7, 20, 60]}, "'item_id, histories': expected items with a row"),
        ({"item_id": [7, 20, 9]}, "column 'item_id': expected ids whose genres, price the export"),
        ({"item_id": None}, "column 'item_id': expected an integer column, found values of"),
        ({"words": [[1], [6], []]}, r"column 'words': expected ids in \[0, 6\), found 6 in row 1"),
        ({"words": [[1], [2]]}, "column 'words': expected 3 lists .*found 2 lists"),
        ({"words": [[1], 2, []]}, "column 'words': expected lists of integers, found"),
        ({"words": {"a": 1}}, "column 'words': expected a list<int32> or list<int64> column"),
        ({"words": "abc"}, "column 'words': expected a list<int32> or list<int64> column"),
        ({"words": [["a"], [], []]}, "column 'words': .*found <U1"),
        (
            {"liked": [[1, 1, 1, 1], [], []]},
            "'liked': expected lists of at most 3 items",
        ),
        ({"seen": [[61], [], []]}, "'item_id, histories': expected items with a row"),
        ({"price": [1, -2, 3]}, "column 'price': expected numbers of at least 0"),
    ],
)
def test_whatever_is_wrong_is_one_message(reader, change, message):
    with pytest.raises(DataError, match=message):
        batch_of(reader, {**REQUEST, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"hour": ["a", "b", "c"]},
            "column 'hour': expected an integer or float.*string",
        ),
        ({"hour": [1, None, 2]}, r"column 'hour': expected a value in every row, .*row 41"),
        ({"words": [[1], [None], []]}, r"column 'words': expected lists without null.*row 41"),
        ({"words": [[1], [6], []]}, r"column 'words': expected ids in \[0, 6\), found 6 in row 41"),
    ],
)
def test_files_are_checked_and_rows_are_numbered(reader, tmp_path, change, message):
    table = pa.table({**REQUEST, **change})
    with pytest.raises(DataError, match=message):
        columns = reader.from_table(table, tmp_path / "x.parquet", 40)
        reader.batch(columns, tmp_path / "x.parquet", 40)
