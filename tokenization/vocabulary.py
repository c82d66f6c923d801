"""Which row of its table a token owns.

Gen-token (level, code) owns row `level * num_codes + code` of the gen table. Mem-token `i`, made
by merge `i`, owns row `i` of the mem table. In BPE both share one line of *symbols*: the gen rows
first, then the merges.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def gen_row(codes: NDArray[np.integer], num_codes: int) -> NDArray[np.int64]:
    """Return the gen table's rows of codes.

    Args:
        codes: integers `(N, L)` in `[0, num_codes)`.
        num_codes: codes per level, K.

    Returns:
        int64 `(N, L)` in `[0, L * K)`.

    Raises:
        ValueError: a code outside `[0, num_codes)`, which would fall into another level's rows.
    """
    if codes.size and (codes.min() < 0 or codes.max() >= num_codes):
        raise ValueError(
            f"codes: expected values in [0, {num_codes}), found {codes.min()} to {codes.max()}"
        )
    return codes.astype(np.int64) + np.arange(codes.shape[1], dtype=np.int64) * num_codes


def gen_code(rows: NDArray[np.integer], num_codes: int) -> NDArray[np.int32]:
    """Return the codes int32 `(N, L)` of gen rows `(N, L)`: the inverse of `gen_row`.

    Raises:
        ValueError: a row that is not one of its column's level.
    """
    codes = rows.astype(np.int64) - np.arange(rows.shape[1], dtype=np.int64) * num_codes
    if codes.size and (codes.min() < 0 or codes.max() >= num_codes):
        raise ValueError(
            f"rows: expected column l to hold rows of level l, [l * {num_codes}, (l + 1) * "
            f"{num_codes}); found others"
        )
    return codes.astype(np.int32)
