"""Sums over what lies before each row: the causal features of one key, all rows at once."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def sums_before(
    keys: NDArray[np.int64], times: NDArray[np.int64], values: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Sums of the rows with the same key and a smaller time; rows may stand in any order.

    `trainer.data.causal` does this for a log in order of time with a state for each user and item;
    here there is none, so keys may be as many as there are pairs of users and categories.

    Args:
        keys: (R,).
        times: (R,).
        values: (R, V).

    Returns:
        float64 (R, V).
    """
    order = np.lexsort((times, keys))
    keys, times = keys[order], times[order]
    before = np.cumsum(values[order], axis=0, dtype=np.float64) - values[order]
    place = np.arange(len(keys))
    new_key = np.ones(len(keys), np.bool_)
    new_key[1:] = keys[1:] != keys[:-1]
    new_time = new_key.copy()
    new_time[1:] |= times[1:] != times[:-1]
    # Sums up to the first row of the same key and time, less all that other keys have added.
    first_of_key = np.maximum.accumulate(np.where(new_key, place, 0))
    first_of_time = np.maximum.accumulate(np.where(new_time, place, 0))
    sums = np.empty_like(before)
    sums[order] = before[first_of_time] - before[first_of_key]
    return sums
