"""List columns of any size: Arrow counts values of lists in int32, so large ones are chunked."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

MOST_VALUES = 2**31 - 1
"""Of a chunk, and of a row group."""
_GROUP_ROWS = 1 << 20


def list_column(values: NDArray[Any], offsets: NDArray[np.int64]) -> pa.ChunkedArray[Any]:
    """A list column of N rows.

    Args:
        values: of all rows, one after the other.
        offsets: int64 (N + 1,), where each row's values begin.
    """
    cuts = [0]
    while cuts[-1] < len(offsets) - 1:
        reach = np.searchsorted(offsets, offsets[cuts[-1]] + MOST_VALUES, side="right") - 1
        cuts.append(max(cuts[-1] + 1, int(reach)))
    chunks: list[pa.Array[Any]] = []
    for start, stop in pairwise(cuts):
        first, last = offsets[start], offsets[stop]
        own = pa.array((offsets[start : stop + 1] - first).astype(np.int32))
        chunks.append(pa.ListArray.from_arrays(own, pa.array(values[first:last])))
    kind: Any = pa.list_(pa.from_numpy_dtype(values.dtype))
    found: pa.ChunkedArray[Any] = pa.chunked_array(chunks, type=kind)
    return found


def group_rows(widest: int) -> int:
    """Rows of a row group whose lists have at most `widest` values."""
    return max(1, min(_GROUP_ROWS, MOST_VALUES // max(1, widest)))
