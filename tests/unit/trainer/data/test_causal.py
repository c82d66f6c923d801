from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from tests.unit.trainer.data.naive_causal import HISTORIES, assert_same, naive_rows
from trainer.data.causal import CausalConfig, CausalFeatures
from trainer.data.ragged import Ragged
from trainer.data.writer import ragged_column

NUM_USERS, NUM_ITEMS, NUM_GENRES = 7, 11, 4
CONFIG = CausalConfig(max_history=5, session_gap=30, prior=3.0)
# One item without a genre, one with two.
GENRES = [[i % NUM_GENRES] for i in range(NUM_ITEMS - 2)] + [[], [0, 3]]


def random_log(num_rows, seed=0, tie_every=3):
    rng = np.random.default_rng(seed)
    gaps = rng.integers(0, 12, num_rows) * (rng.integers(0, tie_every, num_rows) > 0)
    return {
        "users": rng.integers(0, NUM_USERS, num_rows),
        "items": rng.integers(0, NUM_ITEMS, num_rows),
        "timestamps": 1_000 + np.cumsum(gaps),
        "positives": rng.random(num_rows) < 0.6,
    }


def features(config=CONFIG):
    lengths = np.array([len(genres) for genres in GENRES])
    return CausalFeatures(
        num_users=NUM_USERS,
        item_genres=Ragged.from_lengths(np.concatenate(GENRES).astype(int), lengths),
        num_genres=NUM_GENRES,
        config=config,
    )


def as_rows(columns):
    table = columns.table_columns()
    for name in HISTORIES:
        table[name] = table[name].to_pylist()
    return [
        {name: values[row] for name, values in table.items()}
        for row in range(len(table["session_id"]))
    ]


def slices(log, cuts):
    edges = [0, *cuts, len(log["users"])]
    for start, stop in pairwise(edges):
        yield {name: values[start:stop] for name, values in log.items()}


@pytest.mark.parametrize("seed", [0, 1])
def test_equals_a_row_by_row_reference_with_ties(seed):
    log = random_log(400, seed)
    assert np.mean(np.diff(log["timestamps"]) == 0) > 0.2
    assert_same(as_rows(features().transform(**log)), naive_rows(log, GENRES, CONFIG))


@pytest.mark.parametrize("cuts", [range(1, 300), [7, 7, 150], [299]])
def test_chunks_do_not_matter_even_within_a_second(cuts):
    log = random_log(300, seed=2, tie_every=2)
    whole = as_rows(features().transform(**log))
    stream = features()
    parts = [row for part in slices(log, cuts) for row in as_rows(stream.transform(**part))]
    assert_same(parts, whole)


def test_nothing_from_the_same_second_or_later_is_seen():
    log = random_log(300, seed=3, tie_every=2)
    before = as_rows(features().transform(**log))
    for row in (50, 120, 222):
        changed = {name: values.copy() for name, values in log.items()}
        now = log["timestamps"] >= log["timestamps"][row]
        changed["positives"][now] = ~changed["positives"][now]
        after = as_rows(features().transform(**changed))
        last = np.flatnonzero(log["timestamps"] == log["timestamps"][row])[-1]
        assert_same(after[: last + 1], before[: last + 1])
        assert after[last + 1 :] != before[last + 1 :]


def test_order_within_a_second_does_not_matter():
    log = random_log(200, seed=4, tie_every=2)
    rng = np.random.default_rng(0)
    order = np.lexsort([rng.random(200), log["timestamps"]])
    shuffled = as_rows(features().transform(**{k: v[order] for k, v in log.items()}))
    plain = as_rows(features().transform(**log))
    for name in ("user_count", "item_mean", "user_genre_mean", "user_recency"):
        assert [row[name] for row in shuffled] == [plain[at][name] for at in order]


def test_history_takes_item_ids():
    log = random_log(50)
    ids = np.arange(NUM_ITEMS) * 10 + 5
    columns = features().transform(**log)
    assert columns.table_columns(ids)["history"].flatten().to_pylist() == (
        ids[columns.history.values].tolist()
    )


def test_bad_input_is_named():
    log = random_log(20)
    with pytest.raises(ValueError, match=r"user positions span .*expected 0\.\.6"):
        features().transform(**{**log, "users": log["users"] + 5})
    with pytest.raises(ValueError, match=r"item positions"):
        features().transform(**{**log, "items": log["items"] - 1 - log["items"].min()})
    with pytest.raises(ValueError, match="time order"):
        features().transform(**{**log, "timestamps": log["timestamps"][::-1].copy()})
    stream = features()
    stream.transform(**log)
    with pytest.raises(ValueError, match="time order"):
        stream.transform(**log)
    with pytest.raises(ValueError, match="session_gap is 0"):
        CausalConfig(session_gap=0)


def test_wide_ids_stay_what_they_are():
    ids = np.arange(NUM_ITEMS) * 10**12 + 2**32
    log = random_log(50)
    found = features().transform(**log).table_columns(ids)
    expected = naive_rows(log, GENRES, CONFIG)
    for name in HISTORIES:
        assert found[name].type.value_type == pa.int64()
        assert found[name].to_pylist() == [[ids[i] for i in row[name]] for row in expected]
    narrow = features().transform(**log).table_columns(np.arange(NUM_ITEMS) + 7)
    assert narrow["history"].type.value_type == pa.int32()


def without_genres():
    no_genres = Ragged.from_lengths(np.zeros(0, int), np.zeros(4, dtype=int))
    return CausalFeatures(num_users=2, item_genres=no_genres, num_genres=1, config=CONFIG)


def test_positions_beyond_int32_are_held(monkeypatch):
    few = without_genres()
    assert few._ring.dtype == np.int32
    monkeypatch.setattr("trainer.data.causal.MOST_NARROW", 3)
    wide = without_genres()
    assert wide._ring.dtype == np.int64
    log = {
        "users": np.zeros(3, int),
        "items": np.array([3, 2, 1]),
        "timestamps": np.arange(3),
        "positives": np.array([True, False, True]),
    }
    assert wide.transform(**log).history.values.tolist() == [3, 3]


def test_lists_beyond_int32_are_refused_unless_wide():
    lists = Ragged.from_lengths(np.array([2**31]), np.array([1]))
    with pytest.raises(ValueError, match="expected int32 values, found 2147483648"):
        ragged_column(lists)
    assert ragged_column(lists, is_wide=True).to_pylist() == [[2**31]]
