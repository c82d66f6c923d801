import numpy as np
import pyarrow as pa
import pytest

from trainer.data import time_order
from trainer.data.time_order import in_time_order, parts_of_file

NUM_ROWS = 500


def chunks(rng):
    users, times = rng.integers(0, 40, NUM_ROWS), rng.integers(0, 9, NUM_ROWS) * 1_800
    log = pa.table({"user_id": users, "timestamp": times})
    return log, [log.slice(start, 70) for start in range(0, NUM_ROWS, 70)]


def test_rows_come_in_order_of_time_and_users_are_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(time_order, "ROWS_OF_TIME", 100)
    monkeypatch.setattr(time_order, "CHUNK_ROWS", 33)
    log, parts = chunks(np.random.default_rng(0))
    calls = []

    def of_users(rows):
        calls.append(rows)
        users = rows["user_id"].to_numpy()
        counts = np.bincount(users, minlength=40)
        rows = rows.append_column("own", pa.array(counts[users]))
        return rows.filter(pa.array(users != 3))

    found = list(in_time_order(iter(parts), of_users, num_parts=4, beside=tmp_path))
    assert len(calls) == 4
    assert len(found) > NUM_ROWS // 33
    table = pa.concat_tables(found)
    users, times = log["user_id"].to_numpy(), log["timestamp"].to_numpy()
    kept = np.flatnonzero(users != 3)
    order = kept[np.argsort(times[kept], kind="stable")]
    assert table["row"].to_pylist() == order.tolist()
    assert table["timestamp"].to_pylist() == times[order].tolist()
    assert table["own"].to_pylist() == np.bincount(users)[users[order]].tolist()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_on_disk_when_a_step_fails(tmp_path):
    _, parts = chunks(np.random.default_rng(0))

    def of_users(rows):
        raise ValueError("a bad value")

    with pytest.raises(ValueError, match="a bad value"):
        list(in_time_order(iter(parts), of_users, num_parts=2, beside=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_larger_files_have_more_parts(tmp_path, monkeypatch):
    (tmp_path / "log").write_text("x" * 1_000)
    assert parts_of_file(tmp_path / "log") == 1
    monkeypatch.setattr(time_order, "BYTES_OF_USERS", 300)
    assert parts_of_file(tmp_path / "log") == 4
    monkeypatch.setattr(time_order, "MOST_PARTS", 3)
    assert parts_of_file(tmp_path / "log") == 3


def test_few_files_are_open_however_long_the_log(tmp_path, monkeypatch):
    monkeypatch.setattr(time_order, "ROWS_OF_TIME", 10)
    monkeypatch.setattr(time_order, "MOST_PARTS", 5)
    log, parts = chunks(np.random.default_rng(1))
    made = []
    plain = time_order.Spill.add

    def add(self, table, part):
        made.append(int(part.max(initial=0)) + 1)
        plain(self, table, part)

    monkeypatch.setattr(time_order.Spill, "add", add)
    found = pa.concat_tables(
        in_time_order(iter(parts), lambda rows: rows, num_parts=2, beside=tmp_path)
    )
    assert max(made) <= 5
    times = log["timestamp"].to_numpy()
    assert found["row"].to_pylist() == np.argsort(times, kind="stable").tolist()
