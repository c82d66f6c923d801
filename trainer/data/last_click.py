"""Parts by each user's last clicks, in place of parts by time.

The last click of a user is for the test, the one before for validation. So that both parts hold
impressions of both kinds, those without a click go with the click that they lead to: validation
begins after the third click from the end, the test after the second, and also has what comes after
the last. Users who never clicked are in training.

A log of this kind stands in the order training, validation, test, in order of time within each;
its column `part` takes the place of the time, and `SPLIT_AT_LAST_CLICKS` cuts it there. Histories
and statistics have to be computed before, in true order of time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.schema import DatasetSchema, TimesSplit
from trainer.data.spill import Spill

PART = "part"
"""Column of the part: 0 for training, 1 for validation, 2 for the test."""
SPLIT_AT_LAST_CLICKS = TimesSplit(valid_from=1, test_from=2)


def of_last_clicks(schema: DatasetSchema) -> DatasetSchema:
    """The schema of a log that is cut this way. It has no ages, since parts are no times."""
    return replace(schema, name=f"{schema.name}_last_click", time=PART, created_at=None)


def last_click_parts(
    users: NDArray[np.int64],
    times: NDArray[np.int64],
    rows: NDArray[np.int64],
    clicks: NDArray[np.bool_],
) -> NDArray[np.int64]:
    """Part of each row, int64 (R,).

    Args:
        users: (R,) of rows in any order; all rows of each user.
        times: (R,).
        rows: (R,) order of rows of one time.
        clicks: (R,).
    """
    order = np.lexsort((rows, times, users))
    # Backwards, so that counting up tells how many clicks are still to come.
    backwards = order[::-1]
    own = clicks[backwards].astype(np.int64)
    counted = np.cumsum(own)
    new_user = np.ones(len(order), np.bool_)
    new_user[1:] = users[backwards][1:] != users[backwards][:-1]
    start = np.maximum.accumulate(np.where(new_user, np.arange(len(order)), 0))
    to_come = counted - (counted - own)[start]
    # The last of a user's rows from the front is the first click: all of his clicks.
    last = np.append(np.flatnonzero(new_user)[1:], len(order)) - 1
    of_user = to_come[last][np.cumsum(new_user) - 1] if len(order) else to_come
    parts = np.empty(len(order), np.int64)
    parts[backwards] = np.where(of_user > 0, 3 - np.clip(to_come, 1, 3), 0)
    return parts


def in_order_of_parts(chunks: Iterable[pa.Table], *, beside: Path) -> Iterator[pa.Table]:
    """Training rows as they come, then those of validation, then those of the test.

    Args:
        chunks: tables with the column `part`.
        beside: folder on whose disk later parts wait.
    """
    with tempfile.TemporaryDirectory(dir=beside, prefix=".parts-") as folder:
        waiting = Spill(Path(folder) / "waiting")
        for chunk in chunks:
            part = chunk[PART].to_numpy()
            yield chunk.filter(pa.array(part == 0))
            waiting.add(chunk.filter(pa.array(part > 0)), part[part > 0])
        yield from waiting.chunks()
