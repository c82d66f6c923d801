import numpy as np
import pyarrow as pa

from trainer.data.spill import Spill


def test_parts_come_back_whole_in_order_and_leave_nothing(tmp_path):
    rng = np.random.default_rng(0)
    spill = Spill(tmp_path / "parts")
    part = rng.choice([5, 1, 7], 300)
    lists = [rng.integers(0, 9, rng.integers(0, 4)).tolist() for _ in range(300)]
    table = pa.table({"row": np.arange(300), "ids": pa.array(lists, pa.list_(pa.int32()))})
    for start in (0, 100, 200):
        spill.add(table.slice(start, 100), part[start : start + 100])
        spill.add(table.slice(0, 0), part[:0])
    found = list(spill.parts())
    assert len(found) == 3
    for number, one in zip((1, 5, 7), found, strict=True):
        assert one.equals(table.take(np.flatnonzero(part == number)))
    assert list((tmp_path / "parts").iterdir()) == []
    assert list(spill.parts()) == []


def test_parts_come_back_in_the_pieces_that_were_added(tmp_path):
    spill = Spill(tmp_path / "parts")
    table = pa.table({"row": np.arange(20)})
    part = np.arange(20) % 2
    for start in (0, 8):
        spill.add(table.slice(start, 8), part[start : start + 8])
    pieces = [one["row"].to_pylist() for one in spill.chunks()]
    assert pieces == [[0, 2, 4, 6], [8, 10, 12, 14], [1, 3, 5, 7], [9, 11, 13, 15]]
    assert list((tmp_path / "parts").iterdir()) == []
