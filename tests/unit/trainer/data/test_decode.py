from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from trainer.data import decode
from trainer.data.errors import DataError, Place

PLACE = Place(Path("log.parquet"), "column", first_row=100)


def chunked(values: list, kind: pa.DataType, *, slice_from: int = 0) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, type=kind)]).slice(slice_from)


@pytest.mark.parametrize("make", [pa.list_, pa.large_list])
@pytest.mark.parametrize("item", [pa.int32(), pa.int64()])
@pytest.mark.parametrize("slice_from", [0, 2, 5])
def test_lists_follow_to_pylist_on_slices(make, item, slice_from: int) -> None:
    column = chunked([[1, 2], [], [3], [4, 5, 6], []], make(item), slice_from=slice_from)
    ragged = decode.lists(column, PLACE)
    parts = [
        ragged.values[a:b].tolist()
        for a, b in zip(ragged.offsets[:-1], ragged.offsets[1:], strict=True)
    ]
    assert parts == column.to_pylist()
    assert ragged.values.dtype == item.to_pandas_dtype()


def test_lists_over_several_chunks() -> None:
    chunks = [pa.array([[1], [2, 3]]), pa.array([[4]]).slice(0), pa.array([[9], [], [5]]).slice(1)]
    ragged = decode.lists(pa.chunked_array(chunks), PLACE)
    assert ragged.values.tolist() == [1, 2, 3, 4, 5]
    assert ragged.offsets.tolist() == [0, 1, 3, 4, 4, 5]


def test_null_before_a_slice_is_no_error_and_one_inside_is() -> None:
    column = chunked([[None], [1], [2, None], [3]], pa.list_(pa.int64()))
    assert decode.lists(column.slice(1, 1), PLACE).values.tolist() == [1]
    with pytest.raises(DataError, match=r"1 nulls inside lists, the first in row 101"):
        decode.lists(column.slice(1), PLACE)
    with pytest.raises(DataError, match=r"expected a value in every row, found 1 nulls.* row 101"):
        decode.lists(chunked([[1], None], pa.list_(pa.int64())), PLACE)


@pytest.mark.parametrize("kind", [pa.int8(), pa.float32(), pa.bool_()])
def test_labels_of_every_type(kind: pa.DataType) -> None:
    column = chunked([1, 0, 1], pa.int64()).cast(kind)
    labels = decode.label_values(decode.scalars(column, PLACE), PLACE)
    assert labels.dtype == np.float32
    assert labels.tolist() == [1, 0, 1]


def test_dense_is_transformed_and_counted_from_the_file_row() -> None:
    values = np.array([0, 3, 8])
    assert np.allclose(
        decode.dense_values(values, PLACE, transform="log1p"), [0, np.log(4), np.log(9)]
    )
    assert decode.dense_values(-values, PLACE, transform="none").tolist() == [0, -3, -8]
    with pytest.raises(DataError, match=r"at least 0 .*found -3 in row 101"):
        decode.dense_values(-values, PLACE, transform="log1p")
    with pytest.raises(DataError, match=r"finite numbers, found inf in row 102"):
        decode.dense_values(np.array([0, 1, np.inf]), PLACE, transform="none")


def test_time_is_compared_with_the_rows_before() -> None:
    times = np.array([5, 5, 7])
    assert decode.sorted_times(times, PLACE, after=5).tolist() == [5, 5, 7]
    with pytest.raises(DataError, match=r"found 5 after 6 in row 100"):
        decode.sorted_times(times, PLACE, after=6)
    with pytest.raises(DataError, match=r"found 4 after 7 in row 102"):
        decode.sorted_times(np.array([5, 7, 4]), PLACE)
