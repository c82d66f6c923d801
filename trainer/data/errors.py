"""The one exception for data that does not keep the contract."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class DataError(ValueError):
    """A file or column that breaks the data contract; the message says how to mend it."""


@dataclass(frozen=True)
class Place:
    """Where a column stands, for messages.

    Args:
        path: file.
        column: column name.
        first_row: row of the file at which the values in hand begin.
    """

    path: Path
    column: str
    first_row: int = 0

    def error(self, *, expected: str, found: str, mend: str, row: int | None = None) -> DataError:
        """Return the error for this column.

        Args:
            expected: what the contract asks for.
            found: what stands there.
            mend: what to do.
            row: index among the values in hand; printed as a row of the file.
        """
        at_row = "" if row is None else f" in row {self.first_row + row}"
        return DataError(
            f"{self.path}: column {self.column!r}: expected {expected}, found {found}{at_row}; "
            f"{mend}"
        )
