"""Integers in place of text: by frequency where values are few, by their own digits where many."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

HEX_DIGITS = 8
MISSING = 1 << (4 * HEX_DIGITS)
"""Id of an empty value: one more than eight digits can say."""

_VALUE_OF = np.full(256, 255, np.uint8)
_VALUE_OF[np.frombuffer(b"0123456789", np.uint8)] = np.arange(10)
_VALUE_OF[np.frombuffer(b"abcdef", np.uint8)] = np.arange(10, 16)
_VALUE_OF[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16)
_WEIGHT_OF = np.int64(16) ** np.arange(HEX_DIGITS - 1, -1, -1, dtype=np.int64)


class TextIds:
    """Ids of the values of a column, the most frequent first.

    Values of equal count follow each other in order of the text, so ids don't depend on the order
    of rows.

    Args:
        max_ids: values get ids from 1 to `max_ids` - 1, and all that are rarer share 0; None for
            ids from 0 of all values.
    """

    def __init__(self, max_ids: int | None = None) -> None:
        self._max_ids = max_ids
        self._counts: Counter[str] = Counter()
        self._values: pa.Array[Any] = pa.array([], pa.string())

    def count(self, column: Any) -> None:
        """Count the values of a chunk."""
        for pair in pc.value_counts(column).to_pylist():
            self._counts[pair["values"]] += pair["counts"]

    def finish(self) -> TextIds:
        """Give ids to the values counted so far."""
        ranked = sorted(self._counts, key=lambda value: (-self._counts[value], value))
        kept = ranked if self._max_ids is None else ranked[: self._max_ids - 1]
        self._values = pa.array(kept, pa.string())
        return self

    @property
    def values(self) -> pa.Array[Any]:
        """Texts with an id of their own, in order of their ids."""
        return self._values

    def table(self, created_at: Mapping[str, int]) -> pa.Table:
        """An items.parquet of these values: id, time of birth, and the text as `source_id`."""
        columns: dict[str, Any] = {
            "item_id": np.arange(len(self._values)),
            "created_at": [created_at[str(value)] for value in self._values.to_pylist()],
            "source_id": self._values,
        }
        return pa.table(columns)

    def encode(self, column: Any) -> NDArray[np.int32]:
        """Ids of a chunk, int32.

        Raises:
            ValueError: when every value has an id, and one was not counted.
        """
        found: Any = pc.index_in(column, value_set=self._values)
        if self._max_ids is not None:
            return pc.add(pc.fill_null(found, -1), 1).to_numpy().astype(np.int32)
        if found.null_count:
            raise ValueError(
                f"{column.filter(pc.is_null(found))[0].as_py()!r} was not there when values were "
                "counted; the file changed between two reads"
            )
        ids: NDArray[np.int32] = found.to_numpy().astype(np.int32)
        return ids

    def count_and_encode(self, column: Any) -> NDArray[np.int32]:
        """Ids of a column that is in memory whole, int32."""
        self.count(column)
        return self.finish().encode(column)


def hex_ids(column: Any, *, name: str) -> NDArray[np.int64]:
    """The numbers that eight hexadecimal digits stand for, int64; `MISSING` for empty text.

    Args:
        column: text.
        name: of the column, for the message.

    Raises:
        ValueError: naming the first value of another form.
    """
    length = pc.binary_length(column).to_numpy()
    zeros = "0" * HEX_DIGITS
    fits = pc.equal(pc.binary_length(column), pa.scalar(HEX_DIGITS, pa.int32()))
    padded: Any = pc.if_else(fits, column, zeros)
    letters = np.frombuffer(pa.concat_arrays(padded.chunks).buffers()[2], np.uint8)
    digits = _VALUE_OF[letters[: len(length) * HEX_DIGITS].reshape(-1, HEX_DIGITS)]
    wrong = (digits == 255).any(axis=1) | ((length != HEX_DIGITS) & (length != 0))
    if wrong.any():
        raise ValueError(
            f"column {name!r}: expected {HEX_DIGITS} hexadecimal digits, found "
            f"{column[int(np.argmax(wrong))].as_py()!r}; is this the file as it was published?"
        )
    return np.where(length == 0, MISSING, digits.astype(np.int64) @ _WEIGHT_OF)
