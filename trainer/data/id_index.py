"""Look up the row of an id."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_SLOTS_PER_ID = 8
"""Ids whose range is at most this many times their number are looked up in one array."""


class IdIndex:
    """Rows of distinct ids.

    Dense ids are found by one array access each, ids spread over a wide range by binary search.

    Args:
        ids: distinct int64 (N,); the row of `ids[i]` is i.
    """

    def __init__(self, ids: NDArray[np.int64]) -> None:
        self._lowest = int(ids.min()) if len(ids) else 0
        num_slots = (int(ids.max()) - self._lowest + 1) if len(ids) else 0
        rows = np.arange(len(ids), dtype=np.int32)
        self._direct: NDArray[np.int32] | None = None
        if num_slots <= MAX_SLOTS_PER_ID * len(ids):
            self._direct = np.full(num_slots, -1, dtype=np.int32)
            self._direct[ids - self._lowest] = rows
        else:
            order = np.argsort(ids, kind="stable")
            self._sorted_ids = ids[order]
            self._sorted_rows = rows[order]

    def rows(self, ids: NDArray[np.integer]) -> NDArray[np.int32]:
        """Return the row of each id, -1 where an id is unknown."""
        if self._direct is not None:
            slots = ids.astype(np.int64, copy=self._lowest != 0)
            if self._lowest:
                slots -= self._lowest
            # seen as unsigned, an id below the lowest is far above the highest
            outside = slots.view(np.uint64) >= np.uint64(len(self._direct))
            if not outside.any():
                return self._direct.take(slots)
            found = np.full(slots.shape, -1, dtype=np.int32)
            found[~outside] = self._direct[slots[~outside]]
            return found
        at = np.searchsorted(self._sorted_ids, ids)
        at[at == len(self._sorted_ids)] = 0
        return np.where(self._sorted_ids[at] == ids, self._sorted_rows[at], np.int32(-1))


def refuse_repeated(ids: NDArray[np.integer], place: str) -> None:
    """Check that no id stands twice.

    Args:
        ids: of any order.
        place: of the column, for the message.

    Raises:
        ValueError: naming place and the first id that does.
    """
    values, counts = np.unique(ids, return_counts=True)
    if len(values) < len(ids):
        raise ValueError(f"{place}: expected each id once, found {values[counts > 1][0]} twice")
