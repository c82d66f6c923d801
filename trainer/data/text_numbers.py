"""Numbers that a file holds as text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

ABSENT = ("", "NULL")
"""How files write that there is no value."""


def whole_numbers(column: Any, *, place: str, absent: int | None = None) -> NDArray[np.int64]:
    """Integers of a text column, also of such as `3.0`, int64.

    Args:
        column: text.
        place: of the column, for the message.
        absent: stands for a value that is not there; None refuses such rows.

    Raises:
        ValueError: naming place and value.
    """
    numbers = real_numbers(column, place=place, absent=absent)
    whole = numbers.astype(np.int64)
    if (whole != numbers).any():
        wrong = column[int(np.argmax(whole != numbers))].as_py()
        raise ValueError(f"{place}: expected whole numbers, found {wrong!r}")
    return whole


def real_numbers(column: Any, *, place: str, absent: float | None = None) -> NDArray[np.float64]:
    """Finite numbers of a text column, float64; arguments as in `whole_numbers`.

    Raises:
        ValueError: naming place and value.
    """
    text: Any = pc.utf8_trim_whitespace(column)
    missing: Any = pc.is_in(text, value_set=pa.array(ABSENT))
    if absent is None and pc.any(missing).as_py():
        raise ValueError(f"{place}: expected a number in every row, found an empty value")
    filled: Any = pc.if_else(missing, "0" if absent is None else repr(float(absent)), text)
    try:
        numbers: NDArray[np.float64] = filled.cast(pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise ValueError(f"{place}: expected numbers, but: {error}") from error
    if not np.isfinite(numbers).all():
        wrong = column[int(np.argmin(np.isfinite(numbers)))].as_py()
        raise ValueError(f"{place}: expected finite numbers, found {wrong!r}")
    return numbers


def zeros_and_ones(column: Any, *, place: str) -> NDArray[np.int8]:
    """A label of a text column, int8.

    Raises:
        ValueError: naming place and value.
    """
    ones: Any = pc.equal(column, pa.scalar("1"))
    wrong: Any = pc.invert(pc.or_(ones, pc.equal(column, pa.scalar("0"))))
    if pc.any(wrong).as_py():
        raise ValueError(f"{place}: expected 0 or 1, found {column.filter(wrong)[0].as_py()!r}")
    labels: NDArray[np.int8] = ones.cast(pa.int8()).to_numpy()
    return labels
