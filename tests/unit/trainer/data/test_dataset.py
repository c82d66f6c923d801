from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.schema import GlobalTimeSplit, RowRange


def rewrite(path: Any, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(path)), path)


def truncate(path: Any) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def repeat_first(log: Any, table: str) -> None:
    whole = getattr(log, table)
    setattr(log, table, pa.concat_tables([whole, whole.slice(0, 1)]))


SPOILED_BEFORE_WRITING = {
    "missing label": (
        lambda log: setattr(
            log, "interactions", log.interactions.rename_columns({"like": "likes"})
        ),
        r"part-00000.parquet: column 'like': expected an integer, float or bool column.*found no "
        r"such column \(the file has .*\); did you mean 'likes'\? rename",
    ),
    "missing item column": (
        lambda log: setattr(log, "items", log.items.drop_columns("genre")),
        r"items.parquet: column 'genre': expected an integer column, found no such column",
    ),
    "string id": (
        lambda log: log.cast("user_id", log.interactions["user_id"].cast(pa.string())),
        r"part-00000.parquet: column 'user_id': expected an integer column, found string; cast",
    ),
    "uint64 id": (
        lambda log: log.cast("item_id", log.interactions["item_id"].cast(pa.uint64())),
        r"column 'item_id': expected an integer column, found uint64",
    ),
    "timestamp type": (
        lambda log: log.cast("timestamp", log.interactions["timestamp"].cast(pa.timestamp("ms"))),
        r"column 'timestamp': expected an integer column \(seconds\), found timestamp\[ms\]",
    ),
    "bag is no list": (
        lambda log: log.cast("tags", log.interactions["user_id"]),
        r"column 'tags': expected a list<int32> or list<int64> column, found int32",
    ),
    "history of strings": (
        lambda log: log.cast("history", pa.array([["a"]] * log.num_rows)),
        r"column 'history': expected a list<int32> or list<int64> column, found list<.*string>",
    ),
    "dense of strings": (
        lambda log: log.cast("item_count", pa.array(["1"] * log.num_rows)),
        r"column 'item_count': expected an integer or float column, found string",
    ),
    "duplicate item": (
        lambda log: repeat_first(log, "items"),
        r"items.parquet: column 'item_id': expected each id once, found 1 repeated ids, the first "
        r"\d+ again in row 30; keep one",
    ),
    "duplicate user": (
        lambda log: repeat_first(log, "users"),
        r"users.parquet: column 'user_id': expected each id once, found 1 repeated ids",
    ),
    "no items": (
        lambda log: setattr(log, "items", log.items.slice(0, 0)),
        r"items.parquet: expected at least one row, found none",
    ),
    "null item price": (
        lambda log: log.put("price", 3, None, table="items"),
        r"items.parquet: column 'price': expected a value in every row, found 1 nulls, .*row 3",
    ),
    "item category out of range": (
        lambda log: log.put("genres", 4, [1, 6], table="items"),
        r"items.parquet: column 'genres': expected ids in \[0, 6\), found 6 in row 4; raise",
    ),
    "unsorted parts": (
        lambda log: log.cast("timestamp", pa.array([9] * 150 + [5] * 250)),
        r"part-00001.parquet: column 'timestamp': expected rows sorted by time, found 5 in row "
        r"group 0 after 9 before it; sort the whole log",
    ),
}


@pytest.mark.parametrize(
    ("spoil", "message"), SPOILED_BEFORE_WRITING.values(), ids=SPOILED_BEFORE_WRITING.keys()
)
def test_opening_refuses_bad_columns(small_log: Any, spoil: Any, message: str) -> None:
    spoil(small_log)
    small_log.write()
    with pytest.raises(DataError, match=message):
        small_log.open()


SPOILED_AFTER_WRITING = {
    "no folder": (
        lambda log: shutil.rmtree(log.folder),
        r"log: expected a data folder, found none",
    ),
    "no parts": (
        lambda log: shutil.rmtree(log.folder / "interactions"),
        r"interactions: expected interactions/part-00000.parquet .* found no parquet file",
    ),
    "no items": (
        lambda log: (log.folder / "items.parquet").unlink(),
        r"items.parquet: expected a parquet file, found none",
    ),
    "no users": (
        lambda log: (log.folder / "users.parquet").unlink(),
        r"users.parquet: expected a parquet file, found none",
    ),
    "empty part": (
        lambda log: rewrite(log.part(1), lambda table: table.slice(0, 0)),
        r"part-00001.parquet: expected at least one row, found an empty part; delete",
    ),
    "truncated part": (
        lambda log: truncate(log.part(1)),
        r"part-00001.parquet: expected a parquet file, found one that is truncated or not "
        r"parquet .*; write it again",
    ),
    "column whose name is no text": (
        lambda log: log.part(1).write_bytes(
            log.part(1).read_bytes().replace(b"user_id", b"\x80ser_id")
        ),
        r"part-00001.parquet: .* truncated or not parquet .*; write it again",
    ),
    "empty file": (
        lambda log: log.part(0).write_bytes(b""),
        r"part-00000.parquet: .* truncated or not parquet .*; write it again",
    ),
    "csv under a parquet name": (
        lambda log: (log.folder / "items.parquet").write_text("item_id,created_at\n1,2\n"),
        r"items.parquet: .* truncated or not parquet .*; write it again",
    ),
    "part with one column more": (
        lambda log: rewrite(log.part(1), lambda t: t.append_column("extra", t["like"])),
        r"part-00001.parquet: column 'extra': expected no such column as in part-00000.parquet, "
        r"found int8; write all parts",
    ),
    "part with one column less": (
        lambda log: rewrite(log.part(2), lambda t: t.drop_columns("rating")),
        r"part-00002.parquet: column 'rating': expected int64 as in part-00000.parquet, found no "
        r"such column",
    ),
    "part with another type": (
        lambda log: rewrite(
            log.part(1), lambda t: t.set_column(0, "user_id", t["user_id"].cast(pa.int64()))
        ),
        r"part-00001.parquet: column 'user_id': expected int32 as in part-00000.parquet, found "
        r"int64",
    ),
}


@pytest.mark.parametrize(
    ("spoil", "message"), SPOILED_AFTER_WRITING.values(), ids=SPOILED_AFTER_WRITING.keys()
)
def test_opening_refuses_bad_files(small_log: Any, spoil: Any, message: str) -> None:
    spoil(small_log.write())
    with pytest.raises(DataError, match=message):
        small_log.open()


# row 200 is row 50 of part-00001
BAD_VALUES = {
    "null label": ("like", None, r"column 'like': expected a value in every row, .* row 50; fill"),
    "NaN label": ("love", float("nan"), r"column 'love': expected labels 0 or 1, found nan in row"),
    "grade as label": ("like", 4, r"column 'like': expected labels 0 or 1, found 4 in row 50"),
    "null id": ("user_id", None, r"column 'user_id': expected a value in every row, found 1 null"),
    "null hashed id": ("device", None, r"column 'device': expected a value in every row"),
    "id too high": ("user_id", 8, r"column 'user_id': expected ids in \[0, 8\), found 8 in row 50"),
    "id below 0": ("user_id", -1, r"column 'user_id': .*found -1.* in row 50"),
    "bag id too high": ("tags", [3, 12], r"column 'tags': expected ids in \[0, 12\), found 12 in"),
    "null in bag": ("tags", [3, None], r"column 'tags': expected lists without null, .* row 50"),
    "null bag": ("tags", None, r"column 'tags': expected a value in every row"),
    "null dense": ("item_count", None, r"column 'item_count': expected a value in every row"),
    "negative count": ("item_count", -2, r"column 'item_count': expected numbers of at least 0"),
    "unsorted time": ("timestamp", 1068, r"column 'timestamp': .*found 1067 after 1068 in row 51"),
    "unknown item": (
        "item_id",
        5000,
        r"column 'item_id': expected ids that stand in items.parquet",
    ),
    "unknown item in history": ("history", [5000], r"column 'history': expected ids that stand in"),
    "null history": ("history", None, r"column 'history': expected a value in every row"),
    "long history": ("history", [0] * 6, r"column 'history': expected lists of at most 5 items, "),
}


@pytest.mark.parametrize(("column", "value", "message"), BAD_VALUES.values(), ids=BAD_VALUES.keys())
def test_reading_refuses_bad_values(
    small_log: Any, column: str, value: object, message: str
) -> None:
    if column == "history" and value == [0] * 6:
        value = [small_log.items["item_id"][0].as_py()] * 6
    if column == "user_id":  # leave the range check to the feature, not to users.parquet
        small_log.schema = replace(
            small_log.schema,
            features=tuple(f for f in small_log.schema.features if f.source != "users"),
        )
    small_log.put(column, 200, value)
    opened = small_log.write().open()
    with pytest.raises(DataError, match=r"part-00001.parquet: " + message):
        opened.validate()
    with pytest.raises(DataError, match=r"part-00001.parquet: " + message):
        opened.block(RowRange(190, 210))
    opened.block(RowRange(0, 190))


def test_nan_dense_is_refused(small_log: Any) -> None:
    counts = small_log.interactions["item_count"].cast(pa.float32()).to_pylist()
    counts[200] = float("nan")
    small_log.cast("item_count", pa.array(counts, pa.float32()))
    with pytest.raises(DataError, match=r"'item_count': expected finite numbers, found nan in row"):
        small_log.write().open().validate()


def test_null_groups_are_refused(small_log: Any) -> None:
    small_log.put("session_id", 200, None)
    with pytest.raises(DataError, match=r"part-00001.parquet: column 'session_id': .* row 50; "):
        small_log.write().open().validate()


def test_unknown_user_is_refused(small_log: Any) -> None:
    small_log.users = small_log.users.slice(1)
    with pytest.raises(DataError, match=r"'user_id': expected ids that stand in users.parquet, "):
        small_log.write().open().validate()


def test_time_that_falls_between_row_groups_without_statistics_is_found(small_log: Any) -> None:
    times = np.concatenate([np.full(40, 9), np.full(360, 5)])
    small_log.cast("timestamp", pa.array(times))
    small_log.write()
    for number in range(3):
        path = small_log.part(number)
        pq.write_table(pq.read_table(path), path, row_group_size=40, write_statistics=False)
    opened = small_log.open()
    with pytest.raises(DataError, match=r"part-00000.parquet: .* found 5 after 9 in row 40"):
        opened.validate()


def test_damaged_pages_are_told_when_read(small_log: Any) -> None:
    small_log.write()
    content = bytearray(small_log.part(1).read_bytes())
    content[4:3000] = b"\xff" * 2996
    small_log.part(1).write_bytes(bytes(content))
    opened = small_log.open()
    with pytest.raises(DataError, match=r"part-00001.parquet: .*truncated or damaged.*again"):
        opened.validate()


def test_a_good_log_is_valid_and_counted(dataset: Dataset) -> None:
    dataset.validate()
    assert (dataset.num_rows, dataset.num_items) == (400, 30)


def test_users_are_optional(small_log: Any) -> None:
    small_log.schema = replace(
        small_log.schema,
        features=tuple(f for f in small_log.schema.features if f.source != "users"),
    )
    (small_log.write().folder / "users.parquet").unlink()
    small_log.open().validate()


def test_split_moves_borders_to_the_next_time(dataset: Dataset) -> None:
    splits = dataset.split(GlobalTimeSplit(train=0.8, valid=0.1))
    times = dataset.read(RowRange(0, 400), ["timestamp"])["timestamp"]
    assert (splits.train.start, splits.test.stop) == (0, 400)
    assert splits.train.stop == splits.valid.start
    assert splits.valid.stop == splits.test.start
    for share, border in ((0.8, splits.valid.start), (0.9, splits.test.start)):
        wanted = int(400 * share)
        expected = next(i for i in range(wanted, 400) if times[i] != times[wanted - 1])
        assert border == expected
    assert splits.valid.start != 320  # three rows share a time: 320 itself is inside a group


def test_split_crosses_row_groups_and_parts(small_log: Any) -> None:
    small_log.cast("timestamp", pa.array([1] * 30 + [2] * 300 + [3] * 70))
    opened = small_log.write().open()
    splits = opened.split(GlobalTimeSplit(train=0.05, valid=0.2))
    assert (splits.train.stop, splits.valid.stop) == (30, 330)
    with pytest.raises(DataError, match="too few distinct times in column 'timestamp'"):
        opened.split(GlobalTimeSplit(train=0.2, valid=0.2))


@pytest.mark.parametrize("rows", [RowRange(0, 400), RowRange(37, 163), RowRange(9, 9)])
def test_read_joins_columns_as_plain_python_would(
    small_log: Any, dataset: Dataset, rows: RowRange
) -> None:
    log = small_log.interactions.to_pylist()[rows.start : rows.stop]
    items = {item["item_id"]: item for item in small_log.items.to_pylist()}
    users = {user["user_id"]: user for user in small_log.users.to_pylist()}
    columns = ["rating", "item_id", "created_at", "title", "gender", "like"]
    found = dataset.read(rows, columns)
    assert list(found) == columns
    assert found["rating"].tolist() == [row["rating"] for row in log]
    assert found["item_id"].tolist() == [row["item_id"] for row in log]
    assert found["like"].tolist() == [row["like"] for row in log]
    assert found["created_at"].tolist() == [items[row["item_id"]]["created_at"] for row in log]
    assert found["title"].tolist() == [items[row["item_id"]]["title"] for row in log]
    assert found["gender"].tolist() == [users[row["user_id"]]["gender"] for row in log]


def test_read_names_an_unknown_column_and_rows_out_of_the_log(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="column 'likes': expected it in interactions, items"):
        dataset.read(RowRange(0, 1), ["likes"])
    with pytest.raises(ValueError, match="rows 0 to 401 asked for, the log has 400"):
        dataset.read(RowRange(0, 401), ["like"])


def test_item_rows(dataset: Dataset) -> None:
    order = np.random.default_rng(1).permutation(30)
    assert dataset.item_rows(dataset.item_ids[order]).tolist() == order.tolist()
    with pytest.raises(DataError, match="2 unknown ids, the first 5000; add them"):
        dataset.item_rows(np.array([dataset.item_ids[0], 5000, -7]))
