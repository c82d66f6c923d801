"""Prices, durations and other amounts of any size as a few ids."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_levels(amounts: NDArray[np.float64], num_levels: int) -> NDArray[np.int32]:
    """Two levels for each doubling, int32.

    Args:
        amounts: below 0 where unknown.
        num_levels: what is too large gets the last of them.

    Returns:
        0 for unknown, else 1 and more.
    """
    levels = 1 + np.floor(2 * np.log2(1 + np.maximum(amounts, 0)))
    known = np.minimum(levels, num_levels - 1).astype(np.int32)
    return np.where(amounts < 0, np.int32(0), known)
