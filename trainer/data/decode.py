"""Arrow columns to checked numpy arrays.

Values are never touched one by one in Python: lists are read through their offsets and values, and
every check is one pass over an array. Each function takes the :class:`Place` of its column, from
which its message is made.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainer.data.errors import Place
from trainer.data.hashing import hash_buckets
from trainer.data.ragged import Ragged


def one_array(column: pa.ChunkedArray[Any]) -> Any:
    """Return the column as a single array; no copy where it has one chunk already."""
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def _refuse_null(array: pa.Array[Any], place: Place) -> None:
    if array.null_count:
        raise place.error(
            expected="a value in every row",
            found=f"{array.null_count} nulls, the first",
            row=int(np.argmax(array.is_null().to_numpy(zero_copy_only=False))),
            mend="fill or drop these rows",
        )


def scalars(column: pa.ChunkedArray[Any], place: Place) -> NDArray[Any]:
    """Return a column of single values in its own dtype.

    Raises:
        DataError: on a null.
    """
    array = one_array(column)
    _refuse_null(array, place)
    return array.to_numpy(zero_copy_only=False)


def lists(column: pa.ChunkedArray[Any], place: Place) -> Ragged:
    """Return a list column; values keep their dtype. Slices of larger arrays are fine.

    Raises:
        DataError: on a null list or a null in a list.
    """
    array = one_array(column)
    _refuse_null(array, place)
    if len(array) == 0:
        empty = np.zeros(0, dtype=array.type.value_type.to_pandas_dtype())
        return Ragged(empty, np.zeros(1, dtype=np.int64))
    offsets = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
    values = array.values.slice(offsets[0], offsets[-1] - offsets[0])
    offsets -= offsets[0]
    if values.null_count:
        at = int(np.argmax(values.is_null().to_numpy(zero_copy_only=False)))
        raise place.error(
            expected="lists without null",
            found=f"{values.null_count} nulls inside lists, the first",
            row=_row_of(offsets, at),
            mend="drop these elements",
        )
    return Ragged(values.to_numpy(zero_copy_only=False), offsets)


def feature_ids(
    values: NDArray[Any],
    place: Place,
    *,
    cardinality: int,
    hashed: bool,
    offsets: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Return table ids in `[0, cardinality)`.

    Args:
        values: integers as they stand in the file.
        place: of the column.
        cardinality: number of ids or buckets.
        hashed: hash ids of any size into buckets.
        offsets: of the lists that the values lie in, so that the message names the row.

    Raises:
        DataError: when an id that is not hashed is out of range.
    """
    if hashed:
        return hash_buckets(values, cardinality)
    if len(values) and (values.min() < 0 or values.max() >= cardinality):
        at = int(np.argmax((values < 0) | (values >= cardinality)))
        raise place.error(
            expected=f"ids in [0, {cardinality})",
            found=str(values[at]),
            row=at if offsets is None else _row_of(offsets, at),
            mend="raise the feature's cardinality, or set hashed=True",
        )
    return values.astype(np.int64)


def dense_values(
    values: NDArray[Any], place: Place, *, transform: Literal["none", "log1p"]
) -> NDArray[np.float32]:
    """Return transformed numbers.

    Raises:
        DataError: on NaN, an infinite number, or one below 0 under `log1p`.
    """
    numbers = values.astype(np.float32)
    fine = np.isfinite(numbers)
    if not fine.all():
        at = int(np.argmin(fine))
        raise place.error(
            expected="finite numbers",
            found=str(values[at]),
            row=at,
            mend="fill it (0 and an indicator column, for instance)",
        )
    if transform == "none":
        return numbers
    if len(numbers) and numbers.min() < 0:
        at = int(np.argmax(numbers < 0))
        raise place.error(
            expected="numbers of at least 0 (transform='log1p')",
            found=str(values[at]),
            row=at,
            mend="set transform='none' or mend the column",
        )
    return np.log1p(numbers)


def label_values(values: NDArray[Any], place: Place) -> NDArray[np.float32]:
    """Return labels as 0.0 and 1.0.

    Raises:
        DataError: on NaN or any other number.
    """
    labels = values.astype(np.float32)
    fine = (labels == 0) | (labels == 1)
    if not fine.all():
        at = int(np.argmin(fine))
        raise place.error(
            expected="labels 0 or 1",
            found=str(values[at]),
            row=at,
            mend="drop rows without a label, and turn grades into 0 and 1",
        )
    return labels


def sorted_times(
    values: NDArray[Any], place: Place, *, after: int | None = None
) -> NDArray[np.int64]:
    """Return times in seconds.

    Args:
        values: integers as they stand in the file.
        place: of the column.
        after: last time of the rows before these, where known.

    Raises:
        DataError: when a time is before that of the row above it.
    """
    times = values.astype(np.int64, copy=False)
    late = None
    if after is not None and len(times) and times[0] < after:
        late, above = 0, after
    elif (falls := times[1:] < times[:-1]).any():
        late = int(np.argmax(falls)) + 1
        above = int(times[late - 1])
    if late is not None:
        raise place.error(
            expected="rows sorted by time",
            found=f"{times[late]} after {above}",
            row=late,
            mend="sort the whole log by time and write it again, parts in order of their names",
        )
    return times


def known_rows(
    rows: NDArray[np.int32],
    ids: NDArray[Any],
    place: Place,
    *,
    file: str,
    offsets: NDArray[np.int64] | None = None,
) -> NDArray[np.int32]:
    """Return `rows`, the places of `ids` in `file`.

    Raises:
        DataError: when an id has no row there (-1).
    """
    if len(rows) and rows.min() < 0:
        at = int(np.argmax(rows < 0))
        raise place.error(
            expected=f"ids that stand in {file}",
            found=f"{ids[at]}, which does not,",
            row=at if offsets is None else _row_of(offsets, at),
            mend=f"add it to {file} or drop these rows",
        )
    return rows


def _row_of(offsets: NDArray[np.int64], at: int) -> int:
    return int(np.searchsorted(offsets, at, side="right")) - 1
