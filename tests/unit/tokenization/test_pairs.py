from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization import pairs as pairs_module
from tokenization.pairs import (
    ClickLog,
    co_clicks,
    mine_co_clicks,
    mine_query_items,
    only_best,
    top_neighbours,
)


@pytest.fixture
def log(tmp_path):
    rng = np.random.default_rng(0)
    rows = {
        "user_id": rng.integers(0, 12, 900),
        "item_id": (rng.zipf(1.3, 900) % 25) * 10,
        "query_id": rng.integers(0, 6, 900),
        "like": rng.integers(0, 2, 900).astype(np.int8),
    }
    for part, stop in ((0, 400), (1, 900)):
        cut = {name: values[part * 400 : stop] for name, values in rows.items()}
        pq.write_table(pa.table(cut), tmp_path / f"part-{part}.parquet", row_group_size=70)
    return ClickLog(path=tmp_path, positive="like", query="query_id"), rows


def naive(rows, window, num_rows=900):
    by_user: dict[int, list[int]] = {}
    clicks: Counter[int] = Counter()
    for n in range(num_rows):
        if rows["like"][n]:
            by_user.setdefault(int(rows["user_id"][n]), []).append(int(rows["item_id"][n]))
            clicks[int(rows["item_id"][n])] += 1
    count: Counter[tuple[int, int]] = Counter()
    for items in by_user.values():
        for i, one in enumerate(items):
            for other in items[i + 1 : i + 1 + window]:
                if one != other:
                    count[min(one, other), max(one, other)] += 1
    return count, clicks


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("group_rows", [10**9, 200])
def test_co_clicks_are_those_of_the_naive_count(log, window, group_rows, monkeypatch):
    monkeypatch.setattr(pairs_module, "_GROUP_ROWS", group_rows)
    found = mine_co_clicks(log[0], window=window, min_count=2)
    count, clicks = naive(log[1], window)
    expected = {pair: n for pair, n in count.items() if n >= 2}
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert dict(zip(pairs, found.count.tolist(), strict=True)) == expected
    for pair, score in zip(pairs, found.score, strict=True):
        assert score == pytest.approx(count[pair] / (clicks[pair[0]] * clicks[pair[1]]) ** 0.5)
    assert (np.diff(found.score) <= 0).all()
    assert len(mine_co_clicks(log[0], window=window, max_pairs=7)) == 7


@pytest.mark.parametrize("window", [1, 4])
def test_co_clicks_in_memory_are_those_of_the_naive_count(log, window):
    rows = log[1]
    liked = rows["like"] > 0
    items = rows["item_id"][liked].astype(np.int64)
    found = co_clicks(rows["user_id"][liked], items, num_items=int(items.max()) + 5, window=window)
    count, clicks = naive(rows, window)
    pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
    assert dict(zip(pairs, found.count.tolist(), strict=True)) == dict(count)
    expected = [count[one] / (clicks[one[0]] * clicks[one[1]]) ** 0.5 for one in pairs]
    np.testing.assert_allclose(found.score, expected)
    with pytest.raises(ValueError, match="window: expected at least 1"):
        co_clicks(items, items, num_items=100, window=0)


def test_a_share_of_the_log_leaves_the_later_rows_out(log):
    early = ClickLog(path=log[0].path, positive="like", share=0.5)
    found = mine_co_clicks(early, window=2, min_count=1)
    count, _ = naive(log[1], 2, num_rows=450)
    assert dict(
        zip(zip(found.left.tolist(), found.right.tolist(), strict=True), found.count, strict=True)
    ) == dict(count)


def test_the_first_rows_alone_are_read(log):
    early = ClickLog(path=log[0].path, positive="like", rows=450)
    assert early.num_rows == 450
    by_share = ClickLog(path=log[0].path, positive="like", share=0.5)
    found, expected = (
        mine_co_clicks(clicks, window=2, min_count=1) for clicks in (early, by_share)
    )
    np.testing.assert_array_equal(found.left, expected.left)
    np.testing.assert_array_equal(found.count, expected.count)
    assert ClickLog(path=log[0].path, rows=10**6).num_rows == 900
    with pytest.raises(ValueError, match="log rows: expected at least 1"):
        mine_co_clicks(ClickLog(path=log[0].path, rows=0))


def test_pairs_among_the_best_of_either_item(log):
    pairs = mine_co_clicks(log[0], window=3, min_count=1)
    kept = only_best(pairs, 2)
    ends = list(zip(pairs.left.tolist(), pairs.right.tolist(), strict=True))
    ranked: dict[int, list[tuple[int, int]]] = {}
    for left, right in ends:  # best first
        ranked.setdefault(left, []).append((left, right))
        ranked.setdefault(right, []).append((left, right))
    found = set(zip(kept.left.tolist(), kept.right.tolist(), strict=True))
    sure = {pair for item in ranked for pair in ranked[item][:2]}
    assert len(found) < len(ends)
    assert len(found ^ sure) <= 4  # where scores are equal, either may be kept
    assert (np.diff(kept.score) <= 0).all()


def test_query_item_pairs_from_positive_feedback(log):
    found = mine_query_items(log[0], min_count=2)
    rows = log[1]
    liked = rows["like"] == 1
    count = Counter(
        zip(rows["query_id"][liked].tolist(), rows["item_id"][liked].tolist(), strict=True)
    )
    pairs = zip(found.left.tolist(), found.right.tolist(), strict=True)
    expected = {pair: n for pair, n in count.items() if n >= 2}
    assert dict(zip(pairs, found.count.tolist(), strict=True)) == expected
    assert (np.diff(found.count) <= 0).all()


def test_neighbours_of_each_item_best_first(log):
    found = mine_co_clicks(log[0], window=3, min_count=1)
    item_ids = np.array([50, 10, 30, 999, 20])
    table = top_neighbours(found, item_ids, 2)
    assert table.shape == (5, 2)
    assert table[3].tolist() == [-1, -1]
    scores = {}
    for left, right, score in zip(found.left, found.right, found.score, strict=True):
        scores[int(left), int(right)] = scores[int(right), int(left)] = score
    for row, item in enumerate(item_ids.tolist()):
        ranked = sorted(
            (o for o in item_ids.tolist() if (item, o) in scores),
            key=lambda other: -scores[item, other],
        )
        mine = [scores[item, int(item_ids[n])] for n in table[row] if n >= 0]
        assert mine == [scores[item, other] for other in ranked[:2]]


def test_blocks_of_clicks_do_not_follow_row_groups(log, monkeypatch):
    monkeypatch.setattr(pairs_module, "_BLOCK_ROWS", 300)
    blocks = list(log[0].clicks())
    assert [len(block["user_id"]) >= 300 for block in blocks[:-1]] == [True] * (len(blocks) - 1)
    liked = log[1]["like"] > 0
    for name in ("user_id", "item_id", "query_id"):
        found = np.concatenate([block[name] for block in blocks])
        assert found.tolist() == log[1][name][liked].tolist()


def test_counts_do_not_depend_on_blocks(log, monkeypatch):
    whole = pairs_module._count_items(log[0])
    queries = mine_query_items(log[0])
    monkeypatch.setattr(pairs_module, "_BLOCK_ROWS", 10)
    parts = pairs_module._count_items(log[0])
    assert [one.tolist() for one in parts] == [one.tolist() for one in whole]
    again = mine_query_items(log[0])
    assert (again.left.tolist(), again.count.tolist()) == (
        queries.left.tolist(),
        queries.count.tolist(),
    )


def test_groups_of_users_are_even_whatever_their_ids_have_in_common():
    users = np.arange(100_000) * 1_024
    counts = np.bincount(pairs_module._group_of(users, 8).astype(int), minlength=8)
    assert counts.min() > 0.9 * counts.max()


def test_labels_may_be_boolean(log, tmp_path):
    of_ints, rows = log
    table = pa.table({**rows, "like": rows["like"].astype(bool)})
    (tmp_path / "bools").mkdir()
    pq.write_table(table, tmp_path / "bools" / "part-0.parquet")
    of_bools = ClickLog(path=tmp_path / "bools", positive="like")
    one, other = (mine_co_clicks(each, min_count=1) for each in (of_ints, of_bools))
    assert one.count.tolist() == other.count.tolist()
    assert one.left.tolist() == other.left.tolist()


def test_ids_that_are_no_integers_are_named(log, tmp_path):
    pq.write_table(pa.table({"user_id": ["a"], "item_id": [1]}), tmp_path / "text.parquet")
    with pytest.raises(
        ValueError, match=r"text\.parquet, column 'user_id': expected integers, found"
    ):
        list(ClickLog(path=tmp_path / "text.parquet").clicks())


def test_logs_that_can_t_be_mined(log, tmp_path):
    with pytest.raises(ValueError, match="expected column 'love', found user_id"):
        mine_co_clicks(ClickLog(path=tmp_path, positive="love"))
    with pytest.raises(ValueError, match="expected a parquet file"):
        mine_co_clicks(ClickLog(path=tmp_path / "none"))
    with pytest.raises(ValueError, match="no two items were clicked"):
        mine_co_clicks(log[0], min_count=10**6)
    with pytest.raises(ValueError, match="name of the log's query column"):
        mine_query_items(ClickLog(path=tmp_path))
    with pytest.raises(ValueError, match="log share"):
        mine_co_clicks(ClickLog(path=tmp_path, share=0.0))
