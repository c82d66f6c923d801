"""What a moment is to people: hour of the day and day of the week."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

HOUR = 3_600
DAY = 24 * HOUR
BEIJING = 8 * HOUR
"""Seconds that clocks there are ahead of UTC."""


def clock_columns(seconds: NDArray[np.int64], *, ahead: int = 0) -> dict[str, NDArray[np.int32]]:
    """Columns `hour` (0 to 23) and `weekday` (0 for Monday), int32.

    Args:
        seconds: since 1970, UTC.
        ahead: seconds that the log's clock is ahead of UTC.
    """
    hours = (seconds + ahead) // HOUR
    # The first of January 1970 was a Thursday.
    weekday = (hours // 24 + 3) % 7
    return {"hour": (hours % 24).astype(np.int32), "weekday": weekday.astype(np.int32)}
