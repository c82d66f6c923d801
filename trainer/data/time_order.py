"""A log of any order and size, put in order of time, with features that need a user's whole past.

Rows go to disk by user, so that the rows of some users are in memory together; what is known of
these users is computed; then rows go to disk once more, by time.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from trainer.data.clock import HOUR
from trainer.data.spill import Spill

BYTES_OF_USERS = 256 << 20
"""Of the source's file, whose rows are in memory together while users are looked at."""
ROWS_OF_TIME = 2_000_000
"""Rows that are in memory together while they are put in order."""
MOST_PARTS = 500
"""Files that are open at a time; a process may have a thousand or so. Parts of logs that are beyond
500 times the above are larger."""
CHUNK_ROWS = 65_536

ROW = "row"
"""Column with the number of the row in its source, which orders rows of one second."""


def parts_of_file(path: Path) -> int:
    """Parts that users are put into, so that the rows of a part fit in memory."""
    return min(MOST_PARTS, 1 + path.stat().st_size // BYTES_OF_USERS)


def in_time_order(
    chunks: Iterable[pa.Table],
    of_users: Callable[[pa.Table], pa.Table],
    *,
    num_parts: int,
    beside: Path,
) -> Iterator[pa.Table]:
    """Put rows in order of time.

    Args:
        chunks: tables with the columns `user_id` and `timestamp` (int64), in any order.
        of_users: takes all rows of some users (with `row` besides) and returns those that stay,
            with the columns that it adds.
        num_parts: parts that users are put into.
        beside: folder on whose disk the parts lie; they are removed at the end.

    Yields:
        tables of at most `CHUNK_ROWS` rows, with `row`.
    """
    with tempfile.TemporaryDirectory(dir=beside, prefix=".order-") as folder:
        by_user = Spill(Path(folder) / "users")
        hours: Counter[int] = Counter()
        num_rows = 0
        for chunk in chunks:
            found, counts = np.unique(chunk["timestamp"].to_numpy() // HOUR, return_counts=True)
            hours.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            rows = np.arange(num_rows, num_rows + chunk.num_rows)
            by_user.add(
                chunk.append_column(ROW, pa.array(rows)), chunk["user_id"].to_numpy() % num_parts
            )
            num_rows += chunk.num_rows
        known = np.array(sorted(hours), np.int64)
        ends = np.cumsum([hours[hour] for hour in known.tolist()])
        by_time = Spill(Path(folder) / "times")
        rows_of_time = max(ROWS_OF_TIME, -(-num_rows // MOST_PARTS))
        for part in by_user.parts():
            rows_of_users = of_users(part)
            hour = np.searchsorted(known, rows_of_users["timestamp"].to_numpy() // HOUR)
            by_time.add(rows_of_users, (ends[hour] - 1) // rows_of_time)
        for part in by_time.parts():
            order = np.lexsort((part[ROW].to_numpy(), part["timestamp"].to_numpy()))
            ordered = part.take(order)
            for start in range(0, ordered.num_rows, CHUNK_ROWS):
                yield ordered.slice(start, CHUNK_ROWS)
