import numpy as np
import pyarrow as pa
import pytest

from trainer.data.dataset import Dataset
from trainer.data.errors import DataError
from trainer.data.last_click import (
    SPLIT_AT_LAST_CLICKS,
    in_order_of_parts,
    last_click_parts,
    of_last_clicks,
)
from trainer.data.schema import Categorical, DatasetSchema, TimesSplit
from trainer.data.writer import DatasetWriter

SCHEMA = DatasetSchema(
    name="small",
    features=(Categorical(name="user_id", entity="user", cardinality=9),),
    labels=("click",),
    query_group="user_id",
)


def test_parts_follow_from_each_user_s_last_clicks():
    rng = np.random.default_rng(0)
    users, times = rng.integers(0, 9, 200), rng.integers(0, 30, 200)
    clicks = rng.random(200) < 0.2
    clicks[users == 4] = False
    clicks[np.flatnonzero(users == 5)] = False
    clicks[np.flatnonzero(users == 5)[3]] = True
    rows = np.arange(200)
    found = last_click_parts(users, times, rows, clicks)
    for user in range(9):
        own = rows[users == user]
        own = own[np.argsort(times[own], kind="stable")]
        at_clicks = np.flatnonzero(clicks[own])
        # Test after the second click from the end, validation after the third.
        second, third = (at_clicks[-n] if len(at_clicks) >= n else -1 for n in (2, 3))
        place = np.arange(len(own))
        expected = np.where(place > second, 2, np.where(place > third, 1, 0))
        expected = expected if len(at_clicks) else np.zeros(len(own))
        assert found[own].tolist() == expected.tolist()
    assert len(last_click_parts(*(np.zeros(0, np.int64),) * 3, np.zeros(0, np.bool_))) == 0


def log_of(parts, times):
    rows = len(parts)
    return pa.table(
        {
            "user_id": np.arange(rows) % 9,
            "item_id": np.zeros(rows, np.int64),
            "timestamp": times,
            "click": np.arange(rows, dtype=np.int8) % 2,
            "part": np.asarray(parts, np.int8),
        }
    )


def test_a_log_in_order_of_parts_is_cut_between_them(tmp_path):
    rng = np.random.default_rng(1)
    parts, times = rng.choice(3, 120, p=(0.6, 0.1, 0.3)), np.sort(rng.integers(0, 99, 120))
    log = log_of(parts, times)
    chunks = [log.slice(start, 25) for start in range(0, 120, 25)]
    schema = of_last_clicks(SCHEMA)
    with DatasetWriter(tmp_path / "log", schema=schema, source={}) as out:
        out.write_items(pa.table({"item_id": [0]}))
        for chunk in in_order_of_parts(iter(chunks), beside=tmp_path):
            out.write(chunk)
        out.finish()
    dataset = Dataset.open(tmp_path / "log", schema)
    dataset.validate()
    splits = dataset.split(SPLIT_AT_LAST_CLICKS)
    for number, rows in enumerate((splits.train, splits.valid, splits.test)):
        read = dataset.read(rows, ["part", "timestamp"])
        assert read["part"].tolist() == [number] * int((parts == number).sum())
        assert read["timestamp"].tolist() == times[parts == number].tolist()


def test_a_log_is_cut_at_dates(tmp_path):
    log = log_of([0] * 40, np.repeat(np.arange(100, 110), 4))
    with DatasetWriter(tmp_path / "log", schema=SCHEMA, source={}) as out:
        out.write_items(pa.table({"item_id": [0], "created_at": [0]}))
        out.write(log)
        out.finish()
    dataset = Dataset.open(tmp_path / "log", SCHEMA)
    splits = dataset.split(TimesSplit(valid_from=105, test_from=107))
    assert (splits.train.stop, splits.valid.stop, splits.test.stop) == (20, 28, 40)
    with pytest.raises(DataError, match="expected rows in train, valid and test"):
        dataset.split(TimesSplit(valid_from=105, test_from=200))
    with pytest.raises(ValueError, match="valid_from=7 must be before test_from=7"):
        TimesSplit(valid_from=7, test_from=7)
