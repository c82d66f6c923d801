"""Pairs of a log that belong together: items clicked in a row, queries and what was clicked.

Both are mined out of core: the log is read block by block and users are worked off in groups, so
that memory follows the number of distinct pairs, not the length of the log (TRM section 3.1).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from tokenization.base import check_at_least

logger = logging.getLogger(__name__)

_BLOCK_ROWS = 1 << 20
_GROUP_ROWS = 20_000_000  # rows of the log whose users are worked off together


@dataclass(frozen=True, kw_only=True)
class ClickLog:
    """Which rows of a log are clicks.

    Args:
        path: parquet file, or folder of parts in the order of their names, in time order.
        user: column of user ids.
        item: column of item ids.
        positive: column that is above 0 where the feedback is positive; None when every row is.
        query: column of query ids, for query-item pairs.
        share: of the rows, from the first on, that are read; below 1 where the rest is kept for
            evaluation.
        rows: most rows that are read, from the first on; None for all of `share`.
    """

    path: Path
    user: str = "user_id"
    item: str = "item_id"
    positive: str | None = None
    query: str | None = None
    share: float = 1.0
    rows: int | None = None

    def open(self) -> ds.Dataset:
        """Open the log.

        Raises:
            ValueError: no such log, a column that is missing, or a share out of range.
        """
        if not 0 < self.share <= 1:
            raise ValueError(f"log share: expected above 0 and at most 1, found {self.share}")
        if self.rows is not None:
            check_at_least(self.rows, 1, name="log rows")
        parts = sorted(self.path.glob("*.parquet")) if self.path.is_dir() else [self.path]
        if not parts or not parts[0].exists():
            raise ValueError(f"{self.path}: expected a parquet file, or a folder of them")
        log = ds.dataset([str(part) for part in parts], format="parquet")
        missing = [name for name in self.columns if name not in log.schema.names]
        if missing:
            raise ValueError(
                f"{self.path}: expected column {missing[0]!r}, found {', '.join(log.schema.names)}"
            )
        for name in (self.user, self.item, self.query):
            if name is not None and not pa.types.is_integer(log.schema.field(name).type):
                raise ValueError(
                    f"{self.path}, column {name!r}: expected integers, found "
                    f"{log.schema.field(name).type}; number the ids first"
                )
        return log

    @property
    def columns(self) -> list[str]:
        """Columns that are read."""
        names = (self.user, self.item, self.positive, self.query)
        return [name for name in names if name is not None]

    @property
    def num_rows(self) -> int:
        """Rows that are read, clicks or not."""
        total = self.open().count_rows()
        return min(int(total * self.share), total if self.rows is None else self.rows)

    def clicks(self) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the columns of positive rows, some 2^20 at a time, whatever the row groups are."""
        waiting: list[dict[str, NDArray[Any]]] = []
        number = 0
        for block in self._batches():
            waiting.append(block)
            number += len(block[self.user])
            if number >= _BLOCK_ROWS:
                yield _joined(waiting)
                waiting, number = [], 0
        if waiting:
            yield _joined(waiting)

    def _batches(self) -> Iterator[dict[str, NDArray[Any]]]:
        """The same, as the file has them."""
        log = self.open()
        left = self.num_rows
        for batch in log.to_batches(columns=self.columns, batch_size=_BLOCK_ROWS):
            batch = batch.slice(0, left)
            left -= len(batch)
            if self.positive is not None:
                positive = batch.column(self.positive).to_numpy(zero_copy_only=False) > 0
                batch = batch.filter(pa.array(positive))
            yield {name: batch.column(name).to_numpy() for name in (self.user, self.item)} | (
                {} if self.query is None else {self.query: batch.column(self.query).to_numpy()}
            )
            if left == 0:
                return


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Pairs, best first.

    Attributes:
        left: item ids (or query ids), int64 `(P,)`.
        right: item ids, int64 `(P,)`.
        count: how often they occurred, int64 `(P,)`.
        score: what they were ranked by, float64 `(P,)`.
    """

    left: NDArray[np.int64]
    right: NDArray[np.int64]
    count: NDArray[np.int64]
    score: NDArray[np.float64]

    def __len__(self) -> int:
        """Number of pairs, P."""
        return len(self.left)

    def take(self, kept: NDArray[np.bool_]) -> Pairs:
        """Return some of the pairs."""
        return Pairs(
            left=self.left[kept],
            right=self.right[kept],
            count=self.count[kept],
            score=self.score[kept],
        )


def mine_co_clicks(
    log: ClickLog, *, window: int = 5, min_count: int = 2, max_pairs: int | None = 2_000_000
) -> Pairs:
    """Return item-item pairs that the same users clicked close to one another.

    A pair occurs when a user clicks one within `window` clicks of the other. Its score is
    `count / sqrt(clicks of the one * clicks of the other)`: without that, the most popular items
    would be everyone's neighbours.

    Args:
        log: of clicks, in time order.
        window: clicks that lie between two of a pair at most, plus one.
        min_count: occurrences that a pair needs.
        max_pairs: best pairs that are kept, None for all; the paper takes two million.

    Raises:
        ValueError: see `ClickLog.open`; no pair.
    """
    for name, value in (("window", window), ("min_count", min_count)):
        check_at_least(value, 1, name=name)
    if max_pairs is not None:
        check_at_least(max_pairs, 1, name="max_pairs")
    num_groups = -(-log.num_rows // _GROUP_ROWS)
    keys = np.zeros(0, dtype=np.int64)
    counts = np.zeros(0, dtype=np.int64)
    items, clicks = _count_items(log)
    for group in range(num_groups):
        users, places = [], []
        for block in log.clicks():
            mine = _group_of(block[log.user], num_groups) == group
            users.append(block[log.user][mine])
            places.append(np.searchsorted(items, block[log.item][mine]))
        found = _pairs_in_windows(np.concatenate(users), np.concatenate(places), len(items), window)
        keys, counts = _merge(np.concatenate([keys, found[0]]), np.concatenate([counts, found[1]]))
    frequent = counts >= min_count
    keys, counts = keys[frequent], counts[frequent]
    if not len(keys):
        raise ValueError(
            f"{log.path}: no two items were clicked within {window} clicks {min_count} times; "
            f"lower min_count, or take a longer log"
        )
    left, right = keys // len(items), keys % len(items)
    score = _co_click_score(counts, clicks[left], clicks[right])
    order = np.lexsort((keys, -score))[:max_pairs]
    logger.info("%s: %d co-click pairs, %d kept", log.path, len(keys), len(order))
    return Pairs(
        left=items[left[order]],
        right=items[right[order]],
        count=counts[order],
        score=score[order],
    )


def co_clicks(
    users: NDArray[np.integer], items: NDArray[np.int64], *, num_items: int, window: int = 5
) -> Pairs:
    """Return what `mine_co_clicks` finds, of clicks in memory: every pair, in order of its items.

    Args:
        users: of each click, in time order.
        items: int64, clicked, from 0 to `num_items` - 1.
        num_items: of the catalogue.
        window: clicks that lie between two of a pair at most, plus one.

    Raises:
        ValueError: for a window below 1.
    """
    check_at_least(window, 1, name="window")
    keys, counts = _pairs_in_windows(users, items, num_items, window)
    left, right = keys // num_items, keys % num_items
    clicks = np.bincount(items, minlength=num_items)
    return Pairs(
        left=left,
        right=right,
        count=counts,
        score=_co_click_score(counts, clicks[left], clicks[right]),
    )


def mine_query_items(log: ClickLog, *, min_count: int = 1, max_pairs: int = 2_000_000) -> Pairs:
    """Return pairs of a query and an item that was clicked for it, most frequent first.

    Raises:
        ValueError: a log without query column, or no pair.
    """
    if log.query is None:
        raise ValueError("query: expected the name of the log's query column, found none")
    parts = []
    for block in log.clicks():
        table = pa.table({"left": block[log.query], "right": block[log.item]})
        parts.append(table.group_by(["left", "right"]).aggregate([([], "count_all")]))
        if sum(part.num_rows for part in parts[1:]) > parts[0].num_rows:
            parts = [_summed(parts)]
    merged = _summed(parts).filter(pc.field("count_all") >= min_count)
    if not merged.num_rows:
        raise ValueError(f"{log.path}: no query has an item clicked {min_count} times")
    left, right, count = (
        merged[name].to_numpy().astype(np.int64) for name in ("left", "right", "count_all")
    )
    order = np.lexsort((right, left, -count))[:max_pairs]
    return Pairs(
        left=left[order], right=right[order], count=count[order], score=count[order].astype(float)
    )


def with_queries(item_pairs: Pairs, query_pairs: Pairs) -> Pairs:
    """Return pairs of both kinds in one, each kind drawn as often as the other.

    Args:
        item_pairs: of items.
        query_pairs: of a query (left) and an item; query `q` becomes id `-1 - q`.
    """
    item_score = item_pairs.score / item_pairs.score.sum()
    query_score = query_pairs.score / query_pairs.score.sum()
    return Pairs(
        left=np.concatenate([item_pairs.left, query_id(query_pairs.left)]),
        right=np.concatenate([item_pairs.right, query_pairs.right]),
        count=np.concatenate([item_pairs.count, query_pairs.count]),
        score=np.concatenate([item_score, query_score]),
    )


def query_id(queries: NDArray[np.int64]) -> NDArray[np.int64]:
    """Ids of queries among those of items: negative ones.

    Raises:
        ValueError: a query whose own id is negative.
    """
    if queries.size and queries.min() < 0:
        raise ValueError(f"query ids: expected at least 0, found {queries.min()}")
    return -1 - queries


def _count_items(log: ClickLog) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Clicked item ids, ascending, and their clicks."""
    items, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    waiting = [(items, counts)]
    for block in log.clicks():
        waiting.append(np.unique(block[log.item].astype(np.int64), return_counts=True))
        # What waits is merged once it is as much as there is, so that items are sorted log times.
        if sum(len(found) for found, _ in waiting[1:]) > len(waiting[0][0]):
            waiting = [_merge(*map(np.concatenate, zip(*waiting, strict=True)))]
    items, counts = _merge(*map(np.concatenate, zip(*waiting, strict=True)))
    if not len(items):
        raise ValueError(f"{log.path}: expected clicks, found none in the rows that are read")
    return items, counts


def _joined(blocks: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Blocks as one."""
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _group_of(users: NDArray[Any], num_groups: int) -> NDArray[np.uint64]:
    """A group for each user, as many users in each whatever the ids have in common."""
    hashed = users.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (hashed >> np.uint64(32)) % np.uint64(num_groups)


def _summed(parts: list[pa.Table]) -> pa.Table:
    """Counts of pairs in several tables as one."""
    whole = pa.concat_tables(parts).group_by(["left", "right"])
    return whole.aggregate([("count_all", "sum")]).rename_columns(["left", "right", "count_all"])


def _merge(
    keys: NDArray[np.int64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    distinct, place = np.unique(keys, return_inverse=True)
    return distinct, np.bincount(place, weights=counts, minlength=len(distinct)).astype(np.int64)


def _co_click_score(
    counts: NDArray[np.int64], left: NDArray[np.int64], right: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Counts of pairs over the geometric mean of both items' clicks."""
    scores: NDArray[np.float64] = counts / np.sqrt(left.astype(np.float64) * right)
    return scores


def _pairs_in_windows(
    users: NDArray[Any], places: NDArray[np.int64], num_items: int, window: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(users, kind="stable")  # users in a row, each in time order
    users, places = users[order], places[order]
    keys, counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for distance in range(1, window + 1):
        one, other = places[:-distance], places[distance:]
        kept = (users[:-distance] == users[distance:]) & (one != other)
        low, high = np.minimum(one, other)[kept], np.maximum(one, other)[kept]
        found, times = np.unique(low * num_items + high, return_counts=True)
        keys, counts = _merge(np.concatenate([keys, found]), np.concatenate([counts, times]))
    return keys, counts


def rows_of(pairs: Pairs, ids: NDArray[np.integer]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return where the pairs' ids stand among `ids`.

    Returns:
        rows of `ids`, int64 `(Q, 2)`, of the pairs whose ids are both there; which these are,
        bool `(P,)`.
    """
    order = np.argsort(ids)
    sides = np.stack([pairs.left, pairs.right], axis=1)
    rows = order[np.searchsorted(ids, sides, sorter=order).clip(max=len(ids) - 1)]
    known = (ids[rows] == sides).all(axis=1)
    return rows[known], known


def only_best(pairs: Pairs, num_best: int) -> Pairs:
    """Return the pairs in which one is among the other's `num_best` best."""
    item_ids = np.unique(np.concatenate([pairs.left, pairs.right]))
    best = top_neighbours(pairs, item_ids, num_best)
    rows, places = np.nonzero(best >= 0)
    ends = np.sort(np.stack([rows, best[rows, places]]), axis=0)
    wanted = np.unique(ends[0] * len(item_ids) + ends[1])
    sides = np.sort(np.searchsorted(item_ids, np.stack([pairs.left, pairs.right])), axis=0)
    return pairs.take(np.isin(sides[0] * len(item_ids) + sides[1], wanted))


def top_neighbours(
    pairs: Pairs, item_ids: NDArray[np.int64], num_neighbours: int
) -> NDArray[np.int64]:
    """Return each item's best neighbours.

    Args:
        pairs: item-item pairs, best first.
        item_ids: int64 `(N,)`; pairs of other items are left out.
        num_neighbours: most neighbours an item.

    Returns:
        rows of `item_ids`, int64 `(N, num_neighbours)`, best first, -1 in unused places.
    """
    ends, known = rows_of(pairs, item_ids)
    one, other = ends.T.reshape(-1), ends[:, ::-1].T.reshape(-1)
    by_item = np.lexsort((-np.tile(pairs.score[known], 2), one))
    one, other = one[by_item], other[by_item]
    rank = np.arange(len(one)) - np.searchsorted(one, one)
    kept = rank < num_neighbours
    table = np.full((len(item_ids), num_neighbours), -1, dtype=np.int64)
    table[one[kept], rank[kept]] = other[kept]
    return table
